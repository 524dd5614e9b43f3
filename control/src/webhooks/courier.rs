//! The deliverer's task: reads pages of the log, sends, and writes results in groups, as
//! [`Plan`] says.
//!
//! It shares nothing with the process server but the store: reads are of bounded pages on the
//! readers' connections, and a write is one job of the writer's group for everything that has ended
//! since the last one.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::events::Message;
use super::plan::{Attempt, Plan, Tried};
use super::sign;
use super::stats::Stats;
use super::verdict::{Ended, Timing};
use crate::clock;
use crate::store::webhooks::WebhookWrite;
use crate::store::{Store, StoreError};

/// Events on one page.
const PAGE: u32 = 500;
/// Between two turns at least: what comes in quick succession is read and written together.
const PACE: Duration = Duration::from_millis(20);
/// After the store failed.
const RECOVER: Duration = Duration::from_secs(1);
/// At the end, attempts under way get so long.
const FAREWELL: Duration = Duration::from_secs(3);

/// Tells the deliverer that webhooks have been changed.
#[derive(Default)]
pub(crate) struct Changes {
    count: AtomicU64,
    wake: Notify,
}

impl Changes {
    /// There was a change, and it is durable.
    pub(crate) fn tell(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.wake.notify_one();
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

/// What became of an attempt.
enum Made {
    /// It was made.
    Tried(Tried),
    /// Its row is no longer there.
    Gone,
    /// Its row could not be read: it waits there.
    Unread,
}

/// The deliverer.
pub(crate) struct Courier {
    store: Store,
    client: Arc<Client>,
    changes: Arc<Changes>,
    stats: Arc<Stats>,
    timing: Timing,
    plan: Plan,
    flights: JoinSet<(Attempt, Made)>,
    /// The webhooks in the plan are those of the store after so many changes.
    seen: u64,
    /// They are not: a webhook was disabled, or a row could not be read.
    stale: bool,
}

impl Courier {
    pub(crate) fn new(
        store: Store,
        client: Arc<Client>,
        changes: Arc<Changes>,
        stats: Arc<Stats>,
        timing: Timing,
    ) -> Self {
        Self {
            store,
            client,
            changes,
            stats,
            timing,
            plan: Plan::new(timing),
            flights: JoinSet::new(),
            seen: 0,
            stale: true,
        }
    }

    /// Delivers until `stop`; then waits shortly for what is under way and writes down what came of
    /// it. What is cut off is repeated by the next start. `recorded` changes whenever there may be
    /// new events.
    pub(crate) async fn run(mut self, mut recorded: watch::Receiver<u64>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = match self.turn().await {
                Ok(()) => PACE,
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::warn!(%error, "webhooks wait: the store failed");
                    RECOVER
                }
            };
            self.breathe(pause, &stop).await;
            self.rest(&mut recorded, &stop).await;
        }
        let ending = async {
            while let Some(ended) = self.flights.join_next().await {
                self.ended(ended);
            }
        };
        drop(tokio::time::timeout(FAREWELL, ending).await);
        if let Err(error) = self.write(true).await {
            tracing::warn!(%error, "the last results of webhooks were not stored; they are repeated");
        }
    }

    /// Everything that can be done now.
    async fn turn(&mut self) -> Result<(), StoreError> {
        while let Some(ended) = self.flights.try_join_next() {
            self.ended(ended);
        }
        self.write(false).await?;
        let changes = self.changes.count();
        if self.stale || changes != self.seen {
            let all = self.store.known_webhooks().await?;
            self.plan.handle_webhooks(all, clock::now());
            self.seen = changes;
            self.stale = false;
        }
        if !self.plan.is_empty() {
            for place in self.plan.poll_read() {
                let page = self.store.webhook_events(place, PAGE).await?;
                let more = page.len() >= usize::try_from(PAGE).unwrap_or(usize::MAX);
                self.plan.handle_page(place, &page, more);
            }
            self.launch();
        }
        self.stats.now(self.plan.figures());
        Ok(())
    }

    /// Sends what can be sent; nothing while webhooks are other than the plan knows them.
    fn launch(&mut self) {
        if self.changes.count() != self.seen {
            return;
        }
        while let Some(attempt) = self.plan.poll_attempt(clock::now()) {
            let (client, store) = (Arc::clone(&self.client), self.store.clone());
            self.flights.spawn(make(client, store, attempt));
        }
    }

    /// Between two turns: reads and writes gather, while what ends makes room for what waits.
    async fn breathe(&mut self, pause: Duration, stop: &CancellationToken) {
        let mut over = pin!(tokio::time::sleep(pause));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut over => return,
                Some(ended) = self.flights.join_next() => {
                    self.ended(ended);
                    self.launch();
                }
            }
        }
    }

    /// Waits until there may be something to do.
    async fn rest(&mut self, recorded: &mut watch::Receiver<u64>, stop: &CancellationToken) {
        // What came due meanwhile is sent now: below only what comes later is waited for.
        let now = clock::now();
        self.launch();
        let due = self.plan.next_due(now).map(|due| now.until(due));
        let look = due.map_or(self.timing.sweep, |due| due.min(self.timing.sweep));
        if self.plan.wants_turn() || self.changes.count() != self.seen {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.changes.wake.notified() => {}
            Some(ended) = self.flights.join_next() => self.ended(ended),
            Ok(()) = recorded.changed(), if !self.plan.is_empty() => {
                self.plan.handle_recorded(None);
            }
            () = tokio::time::sleep(look) => self.sweep().await,
        }
    }

    /// Some events come without a hint; and how far behind everybody is should be known.
    async fn sweep(&mut self) {
        if self.plan.is_empty() {
            return;
        }
        match self.store.event_span().await {
            Ok(span) => self.plan.handle_recorded(Some(span.last)),
            Err(error) => tracing::warn!(%error, "webhooks cannot see the log"),
        }
    }

    fn ended(&mut self, ended: Result<(Attempt, Made), tokio::task::JoinError>) {
        // Panics are caught within; only the end of the runtime cuts a task off.
        let Ok((attempt, made)) = ended else { return };
        let tried = match made {
            Made::Tried(tried) => {
                self.stats.attempted(tried.ended.took);
                Some(tried)
            }
            Made::Gone => None,
            Made::Unread => {
                self.stale = true;
                None
            }
        };
        let chance = rand::random();
        self.plan
            .handle_ended(&attempt, tried, clock::now(), chance);
    }

    /// Writes what there is to write; afterwards the plan knows what came of it.
    async fn write(&mut self, all: bool) -> Result<(), StoreError> {
        let now = clock::now();
        let writes = self.plan.poll_write(now, all);
        if writes.is_empty() {
            return Ok(());
        }
        let written = self.store.settle_webhooks(writes.clone(), now).await;
        if written.is_ok() {
            self.count(&writes);
        }
        self.plan.handle_written(writes, written.is_ok(), now);
        written
    }

    fn count(&mut self, writes: &[WebhookWrite]) {
        for write in writes {
            for row in &write.deliveries {
                self.stats.settled(row.state);
            }
            self.stats.missed(write.missed);
            if write.missed > 0 {
                tracing::warn!(
                    webhook = %write.webhook,
                    events = write.missed,
                    "events were trimmed before this webhook had read them: raise \
                     `retention.events`, or repair its receiver sooner"
                );
            }
            if let Some(why) = &write.disable {
                tracing::warn!(webhook = %write.webhook, why, "a webhook was disabled");
                self.stats.disabled();
                self.stale = true;
            }
        }
    }
}

/// Makes one attempt.
async fn make(client: Arc<Client>, store: Store, attempt: Attempt) -> (Attempt, Made) {
    let webhook = attempt.receiver.webhook;
    let (message, attempts, first_at) = match &attempt.message {
        Some(message) => (message.clone(), 0, clock::now()),
        None => match store.webhook_delivery(webhook, attempt.seq).await {
            Ok(Some(row)) => {
                let message = Message {
                    name: row.name,
                    body: row.body,
                };
                (message, row.attempts, row.first_at)
            }
            Ok(None) => return (attempt, Made::Gone),
            Err(error) => {
                tracing::warn!(%error, %webhook, "a delivery could not be read; it waits");
                tokio::time::sleep(RECOVER).await;
                return (attempt, Made::Unread);
            }
        },
    };
    let id = sign::message_id(webhook, attempt.seq);
    let sending = client.send(&attempt.receiver, &id, message.body.clone());
    let ended = AssertUnwindSafe(sending).catch_unwind().await;
    let ended = ended.unwrap_or_else(|_| {
        tracing::error!(%webhook, "an attempt to deliver panicked; please report this");
        Ended {
            result: Err("the server met an error of its own".to_owned()),
            retry_after: None,
            took: Duration::ZERO,
        }
    });
    let tried = Tried {
        message,
        attempts: attempts.saturating_add(1),
        first_at,
        ended,
    };
    (attempt, Made::Tried(tried))
}
