//! The server's data directory: who may read it, who runs on it, where the local server is.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::fault::{Exit, Fault};

/// The folder of the identity.
pub(crate) const IDENTITY: &str = "identity";
const LOCK_FILE: &str = "lock";
const READY_FILE: &str = "ready.json";

/// The data directory that was named, or the default.
pub(crate) fn path(named: Option<&Path>) -> PathBuf {
    named.map_or_else(|| Config::default().data_dir, Path::to_owned)
}

/// Where a running server can be reached: one JSON object, printed and written to `ready.json` when
/// everything listens, and gone when the server stops in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// URL of the API, where this process has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<String>,
    /// URL of the API for programs from outside, where it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) public: Option<String>,
    /// The certificate that the API shows, where it speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api_certificate: Option<PathBuf>,
    /// URL of health and figures, where they are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<String>,
    /// `host:port` for agents on this machine, where this process has an agent server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) agents: Option<String>,
    /// `host:port` for process servers on this machine, where they come from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<String>,
    /// File with an API token of role admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin_token_file: Option<PathBuf>,
    /// The data directory.
    pub(crate) data_dir: PathBuf,
    /// The server's process.
    pub(crate) pid: u32,
    /// The server's profile.
    pub(crate) profile: String,
    /// The server's version.
    pub(crate) version: String,
}

#[cfg(test)]
impl Ready {
    /// Of a server for everything, at the default addresses.
    pub(crate) fn example() -> Self {
        Self {
            api: Some("http://127.0.0.1:7440".to_owned()),
            public: None,
            api_certificate: None,
            admin: Some("http://127.0.0.1:7441".to_owned()),
            agents: Some("127.0.0.1:7443".to_owned()),
            link: None,
            admin_token_file: Some("/d/admin.token".into()),
            data_dir: "/d".into(),
            pid: 1,
            profile: "all".to_owned(),
            version: "0.1.0".to_owned(),
        }
    }
}

/// An open data directory. No other server runs on it while this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is missing (mode 0700) and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        if !path.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| {
                    Fault::io("create the data directory", path, &error).advise(
                        "name another one with --data-dir, or mend its parent's permissions",
                    )
                })?;
        }
        let path = path
            .canonicalize()
            .map_err(|error| Fault::io("open the data directory", path, &error))?;
        check_private(&path)?;
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// The directory, absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Says where the server is. The file appears whole or not at all.
    pub(crate) fn write_ready(&self, ready: &Ready) -> Result<(), Fault> {
        let target = self.path.join(READY_FILE);
        let draft = self.path.join(format!("{READY_FILE}.new"));
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_string(ready)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            std::fs::rename(&draft, &target)
        };
        write().map_err(|error| Fault::io("write", &target, &error))
    }

    /// The server is gone. One that never got ready has written no file.
    pub(crate) fn remove_ready(&self) {
        let target = self.path.join(READY_FILE);
        if let Err(error) = std::fs::remove_file(&target)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %target.display(), %error, "cannot remove");
        }
    }
}

/// Whether a server runs on a directory. The lock is tried, shared with others who look, and let go at
/// once: a server that starts in just these microseconds is refused.
pub(crate) fn is_in_use(directory: &Path) -> std::io::Result<bool> {
    let lock = match File::open(directory.join(LOCK_FILE)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Since when the server on this directory has been ready; `None` when it never was or stopped in order.
pub(crate) fn ready_since(directory: &Path) -> Option<std::time::SystemTime> {
    let file = std::fs::metadata(directory.join(READY_FILE)).ok()?;
    file.modified().ok()
}

/// Where the server on this directory said it is; `None` when it never did or stopped in order.
pub(crate) fn read_ready(directory: &Path) -> Option<Ready> {
    let text = std::fs::read_to_string(directory.join(READY_FILE)).ok()?;
    serde_json::from_str(&text).ok()
}

/// It holds the keys of the whole fleet.
fn check_private(path: &Path) -> Result<(), Fault> {
    let metadata = std::fs::metadata(path).map_err(|error| Fault::io("look at", path, &error))?;
    if !metadata.is_dir() {
        return Err(
            Fault::usage(format_args!("{} is not a directory", path.display()))
                .advise("name a directory with --data-dir"),
        );
    }
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    let empty = std::fs::read_dir(path)
        .map_err(|error| Fault::io("read", path, &error))?
        .next()
        .is_none();
    if empty {
        return std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|error| Fault::io("make private", path, &error));
    }
    Err(Fault::usage(format_args!(
        "{} can be read or written by other users (mode {:04o})",
        path.display(),
        metadata.permissions().mode() & 0o7777
    ))
    .advise(format_args!(
        "it holds the keys of the fleet: chmod 700 {}",
        path.display()
    )))
}

fn lock(path: &Path) -> Result<File, Fault> {
    let file = path.join(LOCK_FILE);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .map_err(|error| Fault::io("open", &file, &error))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let owner = read_ready(path).map_or_else(
                || "another server".to_owned(),
                |ready| format!("the server with process id {}", ready.pid),
            );
            Err(
                Fault::new(format_args!("{} is in use by {owner}", path.display()))
                    .advise("stop it first, or give this one its own --data-dir")
                    .exit(Exit::Usage),
            )
        }
        Err(error) => Err(Fault::io("lock", &file, &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(directory: &Path) -> Ready {
        Ready {
            admin_token_file: Some(directory.join("admin.token")),
            data_dir: directory.to_owned(),
            pid: 7,
            ..Ready::example()
        }
    }

    #[test]
    fn a_new_directory_is_private_and_belongs_to_one_server() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        first.write_ready(&ready(&path)).unwrap();
        let fault = DataDir::open(&path).unwrap_err();
        assert!(fault.what.contains("process id 7"), "{fault:?}");
        assert!(is_in_use(&path).unwrap());
        drop(first);
        assert!(!is_in_use(&path).unwrap());
        assert!(
            !is_in_use(parent.path()).unwrap(),
            "no server ever ran there"
        );
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_read_is_refused_once_it_holds_something() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        drop(DataDir::open(&path).unwrap());
        std::fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        let fault = DataDir::open(&path).unwrap_err();
        assert!(fault.advice.unwrap().contains("chmod 700"));
    }

    #[test]
    fn clients_find_a_server_only_while_it_is_there() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataDir::open(&parent.path().join("data")).unwrap();
        assert_eq!(read_ready(data.path()), None);
        data.write_ready(&ready(data.path())).unwrap();
        assert_eq!(read_ready(data.path()), Some(ready(data.path())));
        data.remove_ready();
        assert_eq!(read_ready(data.path()), None);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        std::fs::write(&path, "x").unwrap();
        let fault = DataDir::open(&path).unwrap_err();
        assert!(fault.what.contains("is not a directory"), "{fault:?}");
    }
}
