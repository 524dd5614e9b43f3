//! What both brokers need: to be found, and a commander that knows who is there.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;

/// Debian keeps servers here, which is not on everybody's PATH.
const SYSTEM: &str = "/usr/sbin";
/// `.ci/peers` installs here, beside the build profiles' folders.
const TOOLS: &str = "tools/bin";

/// The program of a broker: on PATH, or where `.ci/peers` has installed it.
///
/// # Errors
/// When it is not there; says how to come by it.
pub(super) fn find(program: &str, peer: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let tools = own.parent().and_then(Path::parent);
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(&path, tools, program).with_context(|| {
        format!(
            "{program} is not installed; install it with .ci/peers, or leave it out: --peers with \
             every name but {peer}"
        )
    })
}

fn find_in(path: &OsStr, target: Option<&Path>, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .chain([PathBuf::from(SYSTEM)])
        .chain(target.map(|target| target.join(TOOLS)))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The clients that have said hello: each does once it can take commands.
#[derive(Default)]
pub(super) struct Greeted(Mutex<HashSet<Vec<u8>>>);

impl Greeted {
    /// One says hello; that it says it again, after a reconnect, changes nothing.
    pub(super) fn hello(&self, name: &[u8]) {
        self.lock().insert(name.to_owned());
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_on_path_or_among_the_tools() {
        let target = tempfile::tempdir().unwrap();
        let tools = target.path().join(TOOLS);
        std::fs::create_dir_all(&tools).unwrap();
        let find = |path: &Path| find_in(path.as_os_str(), Some(target.path()), "a-broker");
        assert_eq!(find(Path::new("")), None);
        std::fs::write(tools.join("a-broker"), "").unwrap();
        assert_eq!(find(Path::new("")), Some(tools.join("a-broker")));
        std::fs::write(target.path().join("a-broker"), "").unwrap();
        assert_eq!(find(target.path()), Some(target.path().join("a-broker")));
    }

    #[test]
    fn a_client_counts_once() {
        let greeted = Greeted::default();
        greeted.hello(b"1");
        greeted.hello(b"2");
        greeted.hello(b"1");
        assert_eq!(greeted.count(), 2);
    }
}
