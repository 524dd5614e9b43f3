//! The signals that end a server or an agent.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::fault::Fault;

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over both signals. Needs a tokio runtime.
    pub(crate) fn new() -> Result<Self, Fault> {
        let take = |kind| {
            signal(kind).map_err(|error| Fault::new(format_args!("cannot handle signals: {error}")))
        };
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one; its name and the exit code of a process that it ends at once.
    pub(crate) async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 128 + 15),
            _ = self.interrupt.recv() => ("SIGINT", 128 + 2),
        }
    }
}
