//! A terminal for programs that draw: its keys, what was drawn on it, and its settings.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// Columns and rows.
const SIZE: Winsize = Winsize {
    ws_col: 80,
    ws_row: 24,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// A pseudo-terminal.
pub(crate) struct Terminal {
    keys: File,
    side: OwnedFd,
    drawn: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// A new one of 80 by 24.
    pub(crate) fn open() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let side = open(name, flags, Mode::empty()).expect("its other side opens");
        tcsetwinsize(&side, SIZE).expect("it has a size");
        let keys = File::from(ours);
        let mut screen = keys.try_clone().expect("a second handle");
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&drawn);
        // It ends when the other side is closed.
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(size @ 1..) = screen.read(&mut piece) {
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                to.extend_from_slice(&piece[..size]);
            }
        });
        Self { keys, side, drawn }
    }

    /// Starts a program as a shell would: the terminal is its input, its output and its own.
    pub(crate) fn start(&self, command: &Command) -> Child {
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program());
        session.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let side = || self.side.try_clone().expect("another handle");
        let session = session.stdin(side()).stdout(side()).stderr(side());
        session.spawn().expect("setsid of util-linux runs")
    }

    /// Presses keys.
    pub(crate) fn press(&self, keys: &str) {
        (&self.keys)
            .write_all(keys.as_bytes())
            .expect("it takes keys");
    }

    /// All that was drawn until now.
    pub(crate) fn drawn(&self) -> String {
        let drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&drawn).into_owned()
    }

    /// Whether a shell could go on here: lines and echo are on.
    pub(crate) fn is_as_before(&self) -> bool {
        let modes = tcgetattr(&self.side).expect("it has settings").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}
