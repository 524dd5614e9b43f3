//! Where things are on this machine: programs, a port, the user without rights.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use crate::error::{KitError, machine};

/// Ports are taken from here: below those that the kernel gives to outgoing connections, one of which might
/// otherwise hold the port when a server comes back to it.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// Tries for a free one.
const PORT_TRIES: u32 = 1000;
/// Has no rights, on every machine.
const NOBODY: &str = "nobody";

/// A program in PATH, where administrators' programs are, or in one of `folders`.
pub(crate) fn program(
    name: &'static str,
    package: &'static str,
    folders: &[PathBuf],
) -> Result<PathBuf, KitError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    let mut files = folders
        .iter()
        .cloned()
        .chain(usual)
        .map(|folder| folder.join(name));
    files.find(|file| file.is_file()).ok_or(KitError::Missing {
        what: name,
        package,
    })
}

/// The folders `folder/*/sub`, the newest version first.
pub(crate) fn versions(folder: &Path, sub: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |name: &OsStr| name.to_str().and_then(|name| name.parse::<u32>().ok());
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((number(&entry.file_name())?, entry.path().join(sub))))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// A TCP port of 127.0.0.1 that nobody listens on, of those that no outgoing connection is given: a server can come
/// back to it. It is free at this moment; nothing is reserved.
///
/// # Errors
/// None was found in many tries.
pub fn free_port() -> Result<u16, KitError> {
    let mut last = std::io::Error::other("no try");
    for _ in 0..PORT_TRIES {
        let port = rand::random_range(PORTS);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(machine("no free port was found on 127.0.0.1")(last))
}

/// Whom servers run as where this is root: several refuse root, and none needs it. `None`: as whoever runs the
/// test.
pub(crate) fn unprivileged() -> Result<Option<(u32, u32)>, KitError> {
    if !rustix::process::getuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").map_err(machine("/etc/passwd"))?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(NOBODY)).then_some(())?;
        let mut ids = fields.skip(1).map(|field| field.parse::<u32>().ok());
        Some((ids.next()??, ids.next()??))
    });
    ids.map(Some).ok_or_else(|| {
        let error = std::io::Error::other("there is none in /etc/passwd");
        machine("the user nobody, whom servers of tests run as")(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_is_named_with_the_command_that_installs_it() {
        let error = program("no-such-server", "no-such-package", &[]).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("no-such-server is missing"), "{said}");
        let command = "apt-get install --no-install-recommends no-such-package";
        assert!(said.contains(command), "{said}");
        assert!(program("sh", "dash", &[]).is_ok());
    }

    #[test]
    fn the_newest_version_is_the_first_by_number() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["9", "15", "common", "11"] {
            std::fs::create_dir(folder.path().join(version)).unwrap();
        }
        let found = versions(folder.path(), "bin");
        let expected = ["15/bin", "11/bin", "9/bin"].map(|path| folder.path().join(path));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_free_port_can_be_bound_and_no_outgoing_connection_is_given_it() {
        let port = free_port().unwrap();
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(PORTS.end <= first, "outgoing ones begin at {first}");
    }
}
