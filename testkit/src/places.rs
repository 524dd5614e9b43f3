//! Where things are on this machine: programs, a port, the user without rights.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
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

/// A port of 127.0.0.1 as [`free_ports`] finds them.
pub(crate) fn free_port() -> Result<u16, KitError> {
    Ok(take_port()?.port)
}

/// So many different ports of 127.0.0.1 that nobody has, for TCP or for UDP, of those that no outgoing connection is
/// given: a server can come back to them. They are free at this moment; nothing is reserved.
///
/// # Errors
/// One was not found in many tries.
pub fn free_ports(count: usize) -> Result<Vec<u16>, KitError> {
    // All are held at once, so that all differ.
    let taken: Vec<_> = std::iter::repeat_with(take_port).take(count).collect();
    taken.into_iter().map(|one| Ok(one?.port)).collect()
}

/// `127.0.0.1:PORT`, of each, with commas.
pub fn loopback(ports: &[u16]) -> String {
    let each = ports.iter().map(|port| format!("127.0.0.1:{port}"));
    each.collect::<Vec<_>>().join(",")
}

/// A port, held until this is dropped.
struct Taken {
    port: u16,
    _held: (TcpListener, UdpSocket),
}

fn take_port() -> Result<Taken, KitError> {
    let mut last = std::io::Error::other("no try");
    for _ in 0..PORT_TRIES {
        let port = rand::random_range(PORTS);
        let at = (Ipv4Addr::LOCALHOST, port);
        match TcpListener::bind(at).and_then(|tcp| Ok((tcp, UdpSocket::bind(at)?))) {
            Ok(_held) => return Ok(Taken { port, _held }),
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
    fn free_ports_differ_and_are_free_for_tcp_and_udp() {
        let ports = free_ports(50).unwrap();
        let different: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(different.len(), 50);
        for port in &ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap();
            UdpSocket::bind((Ipv4Addr::LOCALHOST, *port)).unwrap();
        }
        assert_eq!(loopback(&[1, 2]), "127.0.0.1:1,127.0.0.1:2");
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
