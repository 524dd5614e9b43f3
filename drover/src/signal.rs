//! The signals that end a server or an agent, and the one that makes a server read its certificates.

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

/// SIGHUP.
pub(crate) struct HangUp(Option<Signal>);

impl HangUp {
    /// Takes it over if `wanted`. Where it is not, the system goes on deciding: a closed terminal ends
    /// the server, and `nohup` keeps it.
    pub(crate) fn new(wanted: bool) -> Result<Self, Fault> {
        let signal = wanted.then(|| signal(SignalKind::hangup())).transpose();
        signal
            .map(Self)
            .map_err(|error| Fault::new(format_args!("cannot handle signals: {error}")))
    }

    /// Waits for the next one; for ever where it was not taken over.
    pub(crate) async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}
