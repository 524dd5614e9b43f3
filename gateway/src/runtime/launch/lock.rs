//! The lock file that keeps a second gateway away.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::LaunchError;

/// Held while it lives; the kernel frees it however the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock and writes the number of this process into the file, for whoever comes next.
    pub(super) fn take(path: &Path) -> Result<Self, LaunchError> {
        let failed = |source| LaunchError::LockFile {
            path: path.to_owned(),
            source,
        };
        // Not truncated on opening: what the present holder wrote is for the error message.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let holder = match Read::by_ref(&mut file).take(16).read_to_string(&mut text) {
                    Ok(_) => text.trim().parse().ok(),
                    Err(_) => None,
                };
                return Err(LaunchError::Locked {
                    path: path.to_owned(),
                    holder,
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is_until_that_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.lock");
        let first = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err();
        let me = std::process::id();
        assert!(matches!(error, LaunchError::Locked { holder: Some(pid), .. } if pid == me));
        assert!(error.to_string().contains(&format!("(process {me})")));
        drop(first);
        Lock::take(&path).unwrap();
    }

    #[test]
    fn a_missing_directory_is_said_to_be_missing() {
        let error = Lock::take(Path::new("/nowhere/at/all/gateway.lock")).unwrap_err();
        assert!(error.to_string().contains("is the directory there"));
    }
}
