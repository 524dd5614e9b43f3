//! Signals to a program and everything that came of it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

/// Rounds of looking for marked processes: each kills what the round before had forked meanwhile.
const SWEEPS_MAX: usize = 10;
/// SIGKILL takes effect when the process next runs.
const DEATH_TIMEOUT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The process group that a child leads. Killed on drop, unless disarmed.
#[derive(Debug)]
pub(super) struct Group {
    leader: Pid,
    /// Readable when the leader is dead; does not reap it.
    ended: AsyncFd<OwnedFd>,
    armed: bool,
}

impl Group {
    #[expect(
        deprecated,
        reason = "its replacement is unsafe because a type's descriptor could change under the \
                  reactor; an OwnedFd's cannot"
    )]
    pub(super) fn of(child: &Child) -> io::Result<Self> {
        let id = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        let leader = id.ok_or_else(|| io::Error::other("the program has ended already"))?;
        let ended = pidfd_open(leader, PidfdFlags::empty())?;
        Ok(Self {
            leader,
            ended: AsyncFd::with_interest(ended, Interest::READABLE)?,
            armed: true,
        })
    }

    /// Waits for the leader's death. It stays a zombie until it is reaped, so that its number is
    /// not given to others.
    pub(super) async fn leader_ended(&self) {
        // Fails only while the runtime shuts down; then everything is dropped.
        drop(self.ended.readable().await);
    }

    /// Asks every process of the group to end.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Kills every process of the group.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// The leader has been reaped: the group's number is not ours any more.
    pub(super) fn disarm(mut self) {
        self.armed = false;
    }

    fn signal(&self, signal: Signal) {
        match kill_process_group(self.leader, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                tracing::warn!(group = ?self.leader, ?signal, %error, "a group was not signalled");
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.armed {
            self.kill();
        }
    }
}

/// Kills every process whose environment says `name=value`, whatever group or session it is in,
/// and waits for their death. Returns how many there were.
pub(super) async fn kill_marked(name: &'static str, value: String) -> usize {
    let sweep = tokio::task::spawn_blocking(move || {
        let wanted = format!("{name}={value}");
        let mut killed = BTreeSet::new();
        for _ in 0..SWEEPS_MAX {
            let before = killed.len();
            sweep(wanted.as_bytes(), &mut killed);
            if killed.len() == before {
                break;
            }
        }
        killed.len()
    });
    sweep.await.unwrap_or(0)
}

fn sweep(wanted: &[u8], killed: &mut BTreeSet<i32>) {
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut dying = Vec::new();
    for number in numbers {
        if let Some(handle) = kill_if_marked(number, wanted) {
            killed.insert(number);
            dying.push(handle);
        }
    }
    for handle in dying {
        // One that hangs in the kernel is left to it.
        let mut events = [PollFd::new(&handle, PollFlags::IN)];
        if let Err(error) = poll(&mut events, Some(&DEATH_TIMEOUT)) {
            tracing::warn!(%error, "a killed process was not waited for");
        }
    }
}

fn kill_if_marked(number: i32, wanted: &[u8]) -> Option<OwnedFd> {
    // The handle comes before the look: it cannot turn into another process in between.
    let handle = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
    // Zombies and other users' processes have no readable environment.
    let environment = fs::read(format!("/proc/{number}/environ")).ok()?;
    let marked = environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == wanted);
    (marked && pidfd_send_signal(&handle, Signal::KILL).is_ok()).then_some(handle)
}
