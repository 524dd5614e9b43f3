//! Watching what happens: rows are the truth, a wake-up is only a hint.
//!
//! ```text
//!   batch committed ── watch::Sender ──▶ subscription ── rows after its cursor ──▶ SSE
//!                         (hint)            └─ looks every 5 s even without a hint
//! ```

use std::time::Duration;

use protocol::ids::{AgentId, ProcessId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::store::log::EventRow;
use crate::store::{Store, StoreError};

/// Rows that one look takes at most.
const ROWS: u32 = 512;
/// One subscription looks this often at most.
const PACE: Duration = Duration::from_millis(25);
/// One subscription looks this often at least.
const SWEEP: Duration = Duration::from_secs(5);

/// What a watcher wants to see. Everything that is given must hold.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EventFilter {
    /// Only about this process.
    pub process: Option<ProcessId>,
    /// Only about this agent.
    pub agent: Option<AgentId>,
}

/// Why a watcher cannot go on from where it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// Events after the watcher's last one have been trimmed (HTTP 410).
    #[error(
        "events up to {} have been trimmed; list what you watch and subscribe again from now on",
        oldest.saturating_sub(1)
    )]
    Gone {
        /// The oldest event that is still there.
        oldest: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server is stopping.
    #[error("the server is stopping; subscribe again when it is back")]
    Stopped,
}

/// Where watchers subscribe. Clones share it.
#[derive(Clone)]
pub struct Events {
    store: Store,
    recorded: watch::Receiver<u64>,
}

/// One watcher's place in the record.
pub struct Subscription {
    store: Store,
    recorded: watch::Receiver<u64>,
    filter: EventFilter,
    cursor: u64,
    not_before: Instant,
}

impl Events {
    /// Watches the store's record; `recorded` changes when there may be more.
    pub fn new(store: Store, recorded: watch::Receiver<u64>) -> Self {
        Self { store, recorded }
    }

    /// Watches what comes after event `after`; `None`: what happens from now on.
    ///
    /// # Errors
    /// [`WatchError::Gone`]: not everything after `after` is still there.
    pub async fn subscribe(
        &self,
        after: Option<u64>,
        filter: EventFilter,
    ) -> Result<Subscription, WatchError> {
        let recorded = self.recorded.clone();
        let span = self.store.event_span().await?;
        // A number from the future (another store's) would never see anything.
        let cursor = after.unwrap_or(span.last).min(span.last);
        if cursor.saturating_add(1) < span.first {
            return Err(WatchError::Gone { oldest: span.first });
        }
        Ok(Subscription {
            store: self.store.clone(),
            recorded,
            filter,
            cursor,
            not_before: Instant::now(),
        })
    }
}

impl Subscription {
    /// Waits for the next events, oldest first, at least one.
    ///
    /// Dropping the future loses nothing: the next call sees the same events.
    ///
    /// # Errors
    /// The watcher fell behind what is kept, the store failed, or the server is stopping.
    pub async fn next(&mut self) -> Result<Vec<EventRow>, WatchError> {
        loop {
            sleep_until(self.not_before).await;
            self.recorded.borrow_and_update();
            self.not_before = Instant::now() + PACE;
            let rows = self.look().await?;
            if !rows.is_empty() {
                return Ok(rows);
            }
            // A hint, or the sweep; both lead to another look.
            if let Ok(Err(_)) = timeout(SWEEP, self.recorded.changed()).await {
                return Err(WatchError::Stopped);
            }
        }
    }

    async fn look(&mut self) -> Result<Vec<EventRow>, WatchError> {
        loop {
            let rows = self
                .store
                .events_after(self.cursor, self.filter.process, ROWS)
                .await?;
            let Some(last) = rows.last().map(|row| row.seq) else {
                return Ok(rows);
            };
            let gap = rows.first().is_some_and(|row| row.seq > self.cursor + 1);
            if gap && self.filter.process.is_none() {
                // Numbers have no gaps: those between have been trimmed.
                let oldest = rows.first().map_or(last, |row| row.seq);
                return Err(WatchError::Gone { oldest });
            }
            self.cursor = last;
            let wanted = |row: &EventRow| self.filter.agent.is_none_or(|id| row.agent == Some(id));
            let rows: Vec<EventRow> = rows.into_iter().filter(wanted).collect();
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
    }
}
