//! The keeper of a server: a shell that outlives the test by a moment, however the test ends.
//!
//! It reads the server's process id from a pipe, a line for each start. When the pipe closes, because the test
//! let go or because its process is gone, it kills the server and removes the folder. A parent-death signal would
//! not do: the kernel sends it when the *thread* ends that started the server, and test runners end threads; and
//! it leaves the folder behind.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::error::{KitError, machine};

/// `$1` is the folder. A group is killed, as a server may have helpers.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
server=
while read -r line; do server=$line; done
[ -z "$server" ] || kill -9 "-$server" 2>/dev/null
rm -rf -- "$1"
"#;

/// Ends a server and removes its folder when dropped, or when this process is gone.
pub(crate) struct Keeper {
    shell: Child,
    pipe: Option<ChildStdin>,
    folder: PathBuf,
}

impl Keeper {
    /// Keeps a new folder.
    pub(crate) fn new(name: &str) -> Result<Self, KitError> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("drover-{name}-"))
            .tempdir()
            .map_err(machine("a temporary folder"))?;
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "keeper"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Whoever ends the test ends its group; this one has work to do then.
            .process_group(0)
            .current_dir("/")
            .spawn()
            .map_err(machine("/bin/sh, the keeper of a server"))?;
        let pipe = shell.stdin.take();
        Ok(Self {
            shell,
            pipe,
            folder: folder.keep(),
        })
    }

    /// The folder that it will remove.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it is to kill at the end: the group of this process; `None`: nothing runs.
    pub(crate) fn watch(&mut self, server: Option<u32>) -> Result<(), KitError> {
        let line = server.map_or_else(|| "\n".to_owned(), |id| format!("{id}\n"));
        let pipe = self
            .pipe
            .as_mut()
            .map(|pipe| pipe.write_all(line.as_bytes()));
        pipe.unwrap_or(Ok(()))
            .map_err(machine("the keeper of a server is gone"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.pipe = None;
        // It ends by itself now; there is nobody to tell if not.
        drop(self.shell.wait());
    }
}
