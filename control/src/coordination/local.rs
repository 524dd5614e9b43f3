//! Locks and events within one process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::figures::Figures;
use super::topics::Topics;
use super::{CoordinationError, Events, Held, Locks, Name, Notice, PAYLOAD_MAX, Subscription};

/// What it is.
pub(super) const WORDS: &str = "within this process";

/// What those have in common that share locks and events in a process. Clones share it.
#[derive(Clone, Default)]
pub struct LocalBus(Arc<Bus>);

#[derive(Default)]
struct Bus {
    /// Locks that are held; changes wake whoever waits.
    held: watch::Sender<BTreeSet<Name>>,
    hears: Mutex<Hears>,
}

/// Who hears events, and counts them.
type Hears = BTreeMap<u64, (Weak<Topics>, Arc<Figures>)>;

/// Locks of a bus.
struct LocalLocks(Arc<Bus>, Arc<Figures>);

/// One party's events of a bus.
struct LocalEvents {
    bus: Arc<Bus>,
    number: u64,
    topics: Arc<Topics>,
    figures: Arc<Figures>,
}

impl LocalBus {
    /// Its locks.
    pub fn locks(&self) -> Arc<dyn Locks> {
        Arc::new(LocalLocks(Arc::clone(&self.0), Figures::always_there()))
    }

    /// Its events, for one more party.
    pub fn events(&self) -> Arc<dyn Events> {
        let topics = Arc::new(Topics::default());
        let figures = Figures::always_there();
        let mut hears = self.0.hears();
        hears.retain(|_, (topics, _)| topics.strong_count() > 0);
        let number = hears.keys().next_back().map_or(0, |last| last + 1);
        hears.insert(number, (Arc::downgrade(&topics), Arc::clone(&figures)));
        drop(hears);
        Arc::new(LocalEvents {
            bus: Arc::clone(&self.0),
            number,
            topics,
            figures,
        })
    }
}

impl Bus {
    fn hears(&self) -> MutexGuard<'_, Hears> {
        self.hears.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locks for LocalLocks {
    fn try_acquire<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>> {
        async move {
            let taken = self
                .0
                .held
                .send_if_modified(|held| held.insert(name.clone()));
            if !taken {
                return Ok(None);
            }
            let (held, keeper) = Held::new();
            let (bus, name) = (Arc::clone(&self.0), name.clone());
            tokio::spawn(async move {
                keeper.released().await;
                bus.held.send_if_modified(|held| held.remove(&name));
            });
            Ok(Some(held))
        }
        .boxed()
    }

    fn vacant<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
        async move {
            let mut held = self.0.held.subscribe();
            // The bus lives as long as this does.
            drop(held.wait_for(|held| !held.contains(name)).await);
            Ok(())
        }
        .boxed()
    }

    /// Nobody who is gone holds one.
    fn lease(&self) -> Duration {
        Duration::ZERO
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        async { Ok(WORDS.to_owned()) }.boxed()
    }

    fn figures(&self) -> Option<Arc<Figures>> {
        Some(Arc::clone(&self.1))
    }
}

impl Events for LocalEvents {
    fn publish(&self, topic: &Name, payload: &[u8]) {
        let notice = match payload.len() <= PAYLOAD_MAX {
            true => Notice::Message(payload.into()),
            false => Notice::Missed,
        };
        let others = self.bus.hears();
        let others = others.iter().filter(|(number, _)| **number != self.number);
        let others = others.filter_map(|(_, (topics, figures))| Some((topics.upgrade()?, figures)));
        for (other, figures) in others {
            figures.heard();
            other.tell(topic, notice.clone());
        }
        self.figures.sent();
    }

    fn subscribe(&self, topic: &Name) -> Subscription {
        self.topics.subscribe(topic)
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        async { Ok(WORDS.to_owned()) }.boxed()
    }

    fn figures(&self) -> Option<Arc<Figures>> {
        Some(Arc::clone(&self.figures))
    }
}
