//! Lock and event services: one suite for all locks, one for all events, on real servers; and what happens when a
//! service or a holder stands still, dies or comes back.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "coordination/events.rs"]
mod events;
#[path = "coordination/faults.rs"]
mod faults;
#[path = "coordination/locks.rs"]
mod locks;
#[path = "coordination/parties.rs"]
mod parties;

use std::time::Duration;

use control::coordination::Name;

/// Nothing here takes so long, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Whatever would happen at once has happened by then.
pub(crate) const MOMENT: Duration = Duration::from_millis(300);

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Waits for it, but not for ever.
#[track_caller]
pub(crate) fn soon<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let done = tokio::time::timeout(PATIENCE, future).await;
        done.unwrap_or_else(|_| panic!("{place}: {what}: not in {} s", PATIENCE.as_secs()))
    }
}

/// Whether it does not happen at once.
pub(crate) async fn not_yet(future: impl Future) -> bool {
    tokio::time::timeout(MOMENT, future).await.is_err()
}
