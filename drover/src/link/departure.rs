//! An agent server that is told to stop, and waits until others have its groups.
//!
//! ```text
//!   SIGTERM ─▶ begin ═ Renew{leaves_in} ═▶ process servers: no more groups for it, its own to the others
//!   free ◀═ Renewed{leave}, when it owns none any more, or there is no other ═┘
//! ```

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use control::clock;
use protocol::link::Leave;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whoever leaves asks this often whether it may.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Of one agent server.
pub(crate) struct Departure {
    /// Until when it waits.
    until: OnceLock<Instant>,
    begun: CancellationToken,
    told: watch::Sender<Leave>,
}

impl Departure {
    /// It stays.
    pub(crate) fn new() -> Self {
        Self {
            until: OnceLock::new(),
            begun: CancellationToken::new(),
            told: watch::Sender::new(Leave::NotYet),
        }
    }

    /// It stops, and waits at most so long. Process servers are told by whoever speaks with them.
    pub(crate) fn begin(&self, within: Duration) {
        self.until.get_or_init(|| clock::monotonic() + within);
        self.begun.cancel();
    }

    /// Returns when it has begun to leave.
    pub(super) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// For how much longer it waits, and how often it asks; `None`: it stays.
    pub(super) fn leaves_in(&self) -> Option<(Duration, Duration)> {
        let until = self.until.get()?;
        let left = until.saturating_duration_since(clock::monotonic());
        Some((left, ASK_EVERY))
    }

    /// A process server says whether it may leave.
    pub(super) fn told(&self, leave: Leave) {
        if leave != Leave::NotYet {
            self.told.send_replace(leave);
        }
    }

    /// Waits until somebody says that it may leave, and why.
    pub(crate) async fn may_leave(&self) -> Leave {
        let mut told = self.told.subscribe();
        let leave = told.wait_for(|leave| *leave != Leave::NotYet).await;
        leave.map_or(Leave::NotYet, |leave| *leave)
    }
}
