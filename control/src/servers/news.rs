//! What processes of servers tell each other: that something was written.
//!
//! ```text
//!   batch ─▶ written ── at most every 50 ms ──▶ events ──▶ other processes
//!   events ─▶ at most every 500 ms ─▶ nudges: each process server looks at the store
//!                                   └ recorded: event streams and webhooks look at it
//! ```
//!
//! What is told carries nothing: the store says what has changed. Whoever hears nothing looks with its next beat.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::coordination::{Events, Name, Subscription};

/// What was written within this is told once.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// A look at the store costs something, and every process has it: no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The topic.
const TOPIC: &str = "written";

/// Begins to tell of `written` and to hear the others: what changes when they tell. Ends with the guard.
pub(super) fn start(
    events: Option<Arc<dyn Events>>,
    written: watch::Receiver<u64>,
    recorded: Arc<watch::Sender<u64>>,
) -> (watch::Receiver<u64>, DropGuard) {
    let (nudge, nudges) = watch::channel(0);
    let end = CancellationToken::new();
    if let (Some(events), Some(topic)) = (events, Name::new(TOPIC)) {
        let heard = events.subscribe(&topic);
        let telling = tell(events, topic, written);
        tokio::spawn(end.clone().run_until_cancelled_owned(telling));
        let hearing = hear(heard, nudge, recorded);
        tokio::spawn(end.clone().run_until_cancelled_owned(hearing));
    }
    (nudges, end.drop_guard())
}

async fn tell(events: Arc<dyn Events>, topic: Name, mut written: watch::Receiver<u64>) {
    while written.changed().await.is_ok() {
        events.publish(&topic, &[]);
        sleep(TELL_EVERY).await;
    }
}

async fn hear(
    mut heard: Subscription,
    nudge: watch::Sender<u64>,
    recorded: Arc<watch::Sender<u64>>,
) -> ! {
    loop {
        heard.next().await;
        // One look sees all that was told before it.
        while heard.next().now_or_never().is_some() {}
        nudge.send_modify(|nudges| *nudges += 1);
        recorded.send_modify(|batches| *batches += 1);
        sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::coordination::LocalBus;

    #[tokio::test]
    async fn many_writes_of_one_process_are_few_looks_of_the_others_and_none_of_its_own() {
        let bus = LocalBus::default();
        let process = || {
            let (written, watched) = watch::channel(0_u64);
            let recorded = Arc::new(watch::channel(0_u64).0);
            let (nudges, guard) = start(Some(bus.events()), watched, Arc::clone(&recorded));
            (written, recorded, nudges, guard)
        };
        let (ann, bob) = (process(), process());
        let began = clock::monotonic();
        for _ in 0..1_000 {
            ann.0.send_modify(|batches| *batches += 1);
            sleep(Duration::from_millis(1)).await;
        }
        sleep(LOOK_EVERY * 2).await;
        let looks = *bob.2.borrow();
        let most = (clock::monotonic() - began).as_millis() / LOOK_EVERY.as_millis() + 1;
        assert!(
            looks >= 2 && u128::from(looks) <= most,
            "{looks} looks, at most {most}"
        );
        assert_eq!(*bob.1.borrow(), looks, "event streams hear of it, too");
        assert_eq!((*ann.2.borrow(), *ann.1.borrow()), (0, 0));
        // One that nobody follows is seen all the same.
        ann.0.send_modify(|batches| *batches += 1);
        sleep(LOOK_EVERY).await;
        assert_eq!(*bob.2.borrow(), looks + 1);
    }
}
