//! Locks and events by the store itself: nothing else to install, and as slow as its polling.
//!
//! Locks are leases, told by the clocks of this machine: where clocks differ, so do leases. Events carry no messages:
//! a counter for each topic grows, and whoever hears it is told that something was published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::figures::Figures;
use super::leases::{Leased, Leases};
use super::topics::{Notice, Subscription, Topics};
use super::{CoordinationError, Events, Locks, Name};
use crate::clock;
use crate::store::workers::{BEAT_EVERY, BEAT_EXPIRY};
use crate::store::{Store, StoreError};

/// What it is.
pub(super) const WORDS: &str = "the store";
/// What is published within this is written once.
const GATHER: Duration = Duration::from_millis(50);

/// Locks by a store.
pub(super) fn locks(store: Store) -> impl Locks + use<> {
    Leased::new(SqlLeases {
        store,
        figures: Arc::default(),
    })
}

/// Events by a store.
pub(super) fn events(store: Store) -> impl Events + use<> {
    let shared = Arc::<Shared>::default();
    let end = CancellationToken::new();
    let writing = write(Arc::clone(&shared), store.clone());
    let reading = read(Arc::clone(&shared), store.clone());
    tokio::spawn(end.clone().run_until_cancelled_owned(writing));
    tokio::spawn(end.clone().run_until_cancelled_owned(reading));
    SqlEvents {
        store,
        shared,
        _end: end.drop_guard(),
    }
}

struct SqlLeases {
    store: Store,
    figures: Arc<Figures>,
}

impl SqlLeases {
    /// The store has answered, or not.
    fn asked<T>(&self, done: Result<T, StoreError>) -> Result<T, CoordinationError> {
        self.figures.asked(&done);
        Ok(done?)
    }
}

impl Leases for SqlLeases {
    async fn take(&self, name: &Name, holder: Uuid) -> Result<bool, CoordinationError> {
        let now = clock::now();
        let until = now.plus(self.lease());
        let taken = self.store.take_lock(name.as_str(), holder, now, until);
        self.asked(taken.await)
    }

    async fn renew(&self, name: &Name, holder: Uuid) -> Result<bool, CoordinationError> {
        let until = clock::now().plus(self.lease());
        let kept = self.store.renew_lock(name.as_str(), holder, until);
        self.asked(kept.await)
    }

    async fn give_back(&self, name: &Name, holder: Uuid) -> Result<(), CoordinationError> {
        self.asked(self.store.give_lock_back(name.as_str(), holder).await)
    }

    async fn remaining(&self, name: &Name) -> Result<Option<Duration>, CoordinationError> {
        let left = self.store.lock_remaining(name.as_str(), clock::now());
        self.asked(left.await)
    }

    fn released(&self, _: &Name) -> Option<Subscription> {
        None
    }

    fn look_every(&self) -> Duration {
        BEAT_EVERY
    }

    /// As the heartbeats of process servers, which it would be no use to be quicker than.
    fn lease(&self) -> Duration {
        BEAT_EXPIRY
    }

    async fn check(&self) -> Result<String, CoordinationError> {
        check(&self.store).await
    }

    fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }
}

async fn check(store: &Store) -> Result<String, CoordinationError> {
    store.rings().await?;
    Ok(WORDS.to_owned())
}

struct SqlEvents {
    store: Store,
    shared: Arc<Shared>,
    _end: DropGuard,
}

#[derive(Default)]
struct Shared {
    topics: Topics,
    /// What was published and is not written yet.
    published: Mutex<BTreeSet<Name>>,
    bell: Notify,
    figures: Arc<Figures>,
}

impl Shared {
    fn published(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events for SqlEvents {
    fn publish(&self, topic: &Name, _: &[u8]) {
        self.shared.published().insert(topic.clone());
        self.shared.bell.notify_one();
    }

    fn subscribe(&self, topic: &Name) -> Subscription {
        self.shared.topics.subscribe(topic)
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        check(&self.store).boxed()
    }

    fn figures(&self) -> Option<Arc<Figures>> {
        Some(Arc::clone(&self.shared.figures))
    }
}

/// Writes what was published; what could not be written stays to be.
async fn write(shared: Arc<Shared>, store: Store) -> ! {
    loop {
        shared.bell.notified().await;
        sleep(GATHER).await;
        let published = std::mem::take(&mut *shared.published());
        for topic in published {
            let rung = store.ring(topic.as_str()).await;
            shared.figures.asked(&rung);
            if rung.is_ok() {
                shared.figures.sent();
            }
            if let Err(error) = rung {
                tracing::debug!(%topic, %error, "an event was not written yet");
                shared.published().insert(topic);
                sleep(BEAT_EVERY).await;
                shared.bell.notify_one();
            }
        }
    }
}

/// Reads what others have published, while anybody hears it.
async fn read(shared: Arc<Shared>, store: Store) -> ! {
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let heard = shared.topics.names();
        if !heard.is_empty() {
            let read = store.rings().await;
            shared.figures.asked(&read);
            match read {
                Ok(rings) => {
                    let rings = BTreeMap::from_iter(rings);
                    let new =
                        |topic: &&Name| rings.get(topic.as_str()) != known.get(topic.as_str());
                    for topic in heard.iter().filter(new) {
                        shared.figures.heard();
                        shared.topics.tell(topic, Notice::Missed);
                    }
                    known = rings;
                }
                Err(error) => tracing::debug!(%error, "events were not read"),
            }
        }
        sleep(BEAT_EVERY).await;
    }
}
