//! Replicas: copies of a store that a database server keeps for reading.
//!
//! ```text
//!   primary ◀── every 0.5 s: how far? ──┐   when the primary was no further than a replica is now,
//!   replica ◀── every 0.5 s: how far? ──┴─▶ the replica was whole: since then it may lack something: its age
//!
//!   a read ─▶ replicas in turn: answers? young enough? as far as the client has seen? ─▶ this one
//!                 none, but one that is not that far ─▶ it is waited for, briefly
//!                 none ─▶ the primary
//! ```
//!
//! Ages are measured with this process's own clock alone, from before the primary is asked: a replica is never older
//! than it is taken for. Only the API reads here, and only what people and programs are shown: what a process server
//! decides by, keys of idempotency and tokens are asked of the primary.

mod age;
mod inspect;
mod probe;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::age::Ages;
pub use self::inspect::{Compared, ReplicaInspection, inspect_replicas};
use super::position::Position;
use super::remote::{self, Address};
use super::sql::{Readers, Texts};
use super::{OpenError, Store, StoreError, failed_to_open};
use crate::clock;

/// So long a replica is waited for that is not as far as a client has seen.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Replicas, and how they are used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicasConfig {
    /// URLs as [`Store::open`] takes them, of the store's own kind; each names one server. None: nothing is read
    /// from replicas.
    pub urls: Vec<String>,
    /// Nobody is shown what was so longer ago than this.
    pub max_age: Duration,
}

impl Default for ReplicasConfig {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            max_age: Duration::from_secs(5),
        }
    }
}

/// The replicas of a store. They are looked at until this is dropped.
pub(crate) struct Replicas {
    store: u64,
    all: Vec<Arc<Replica>>,
    ages: Arc<Ages>,
    max_age: Duration,
    next: AtomicUsize,
    figures: Figures,
    looking: Vec<AbortHandle>,
}

/// One of them.
struct Replica {
    address: Address,
    texts: Arc<Texts>,
    /// `None`: it cannot be read from.
    up: Mutex<Option<Up>>,
    /// The highest number that it has shown.
    seen: watch::Sender<u64>,
    /// Reads that wait until it is further.
    waiting: AtomicUsize,
    /// Rung when one begins to wait, or when a read has failed there.
    look_now: Notify,
    reads: AtomicU64,
}

/// What there is while a replica can be read from.
#[derive(Clone)]
struct Up {
    readers: Readers,
    /// Cancelled when it no longer can.
    lost: CancellationToken,
}

/// A replica to read from.
pub(crate) struct Taken {
    /// The store, reading there.
    pub(crate) store: Store,
    /// Whether it is still there.
    pub(crate) hold: Hold,
}

/// What a reader keeps of a replica while it reads there.
#[derive(Clone)]
pub(crate) struct Hold {
    lost: CancellationToken,
    replica: Arc<Replica>,
}

impl Hold {
    /// Returns when the replica does not answer any more: whoever waits for it waits in vain.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// A read has failed there: it is looked at now, not at its next turn.
    pub(crate) fn failed(&self) {
        self.replica.look_now.notify_one();
    }
}

/// Why a read went to the primary although there are replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fallback {
    /// No replica answers.
    Down,
    /// Those that answer are too far behind.
    Old,
    /// None came in time as far as the client has seen.
    Behind,
    /// A replica was read from, and failed.
    Failed,
}

impl Fallback {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Down, Self::Old, Self::Behind, Self::Failed];

    /// As labels have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Old => "old",
            Self::Behind => "behind",
            Self::Failed => "failed",
        }
    }
}

/// What was read where.
#[derive(Default)]
struct Figures {
    primary: AtomicU64,
    fallbacks: [AtomicU64; Fallback::ALL.len()],
}

/// Figures of one replica.
pub(crate) struct ReplicaStats {
    /// Its URL, without the password.
    pub(crate) url: String,
    /// It can be read from, if it is young enough.
    pub(crate) up: bool,
    /// What it may lack is no older than this; `None`: older than anything that is remembered.
    pub(crate) age: Option<Duration>,
    /// Requests that read from it.
    pub(crate) reads: u64,
}

/// Figures of all reads that a replica might have answered.
pub(crate) struct ReplicasStats {
    /// Of each replica.
    pub(crate) replicas: Vec<ReplicaStats>,
    /// Requests that were answered from the primary, those that fell back among them.
    pub(crate) primary: u64,
    /// Why requests fell back, and how often.
    pub(crate) fallbacks: [(&'static str, u64); Fallback::ALL.len()],
}

impl Replicas {
    /// Begins to look at the replicas at these addresses, of the store whose readers these are.
    fn start(addresses: Vec<Address>, max_age: Duration, store: u64, primary: &Readers) -> Self {
        let replicas = addresses.into_iter().map(|address| {
            Arc::new(Replica {
                address,
                texts: Arc::clone(primary.texts()),
                up: Mutex::default(),
                seen: watch::Sender::new(0),
                waiting: AtomicUsize::new(0),
                look_now: Notify::new(),
                reads: AtomicU64::new(0),
            })
        });
        let all: Vec<_> = replicas.collect();
        let ages = Arc::new(Ages::new(max_age));
        let look = probe::watch_primary(primary.clone(), Arc::clone(&ages));
        let mut looking = vec![tokio::spawn(look).abort_handle()];
        looking.extend(all.iter().map(|replica| {
            let look = probe::watch_replica(Arc::clone(replica), store);
            tokio::spawn(look).abort_handle()
        }));
        Self {
            store,
            all,
            ages,
            max_age,
            next: AtomicUsize::new(0),
            figures: Figures::default(),
            looking,
        }
    }

    /// Whether a position is one of this store.
    pub(crate) fn knows(&self, position: Position) -> bool {
        position.store == self.store
    }

    /// A replica for one request that reads from `store`: in turn, of those that are young enough and have what the
    /// client has seen. One that lacks only that is waited for, at most [`WAIT_MAX`].
    ///
    /// # Errors
    /// Why the primary is to answer; it is counted.
    pub(crate) async fn take(
        &self,
        store: &Store,
        wanted: Option<Position>,
    ) -> Result<Taken, Fallback> {
        let taken = self.choose(wanted.map_or(0, |position| position.number));
        match taken.await {
            Ok((replica, up)) => {
                replica.reads.fetch_add(1, Ordering::Relaxed);
                Ok(Taken {
                    store: store.reading(up.readers),
                    hold: Hold {
                        lost: up.lost,
                        replica,
                    },
                })
            }
            Err(why) => {
                self.fell_back(why);
                Err(why)
            }
        }
    }

    async fn choose(&self, number: u64) -> Result<(Arc<Replica>, Up), Fallback> {
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.all.len().max(1);
        let (before, after) = self.all.split_at(first);
        let up = after.iter().chain(before).filter_map(|replica| {
            let up = replica.up().clone()?;
            Some((replica, up))
        });
        let up: Vec<_> = up.collect();
        if up.is_empty() {
            return Err(Fallback::Down);
        }
        let now = clock::monotonic();
        let is_young = |replica: &Replica| {
            let age = self.ages.of(*replica.seen.borrow(), now);
            age.is_some_and(|age| age <= self.max_age)
        };
        let young = up.into_iter().filter(|(replica, _)| is_young(replica));
        let mut young: Vec<_> = young.collect();
        let is_far_enough = |replica: &Replica| *replica.seen.borrow() >= number;
        if young.is_empty() {
            return Err(Fallback::Old);
        }
        if let Some(at) = young.iter().position(|(replica, _)| is_far_enough(replica)) {
            let (replica, up) = young.swap_remove(at);
            return Ok((Arc::clone(replica), up));
        }
        let waits = young.into_iter().map(|(replica, up)| {
            Box::pin(async move {
                replica.reaches(number).await;
                (Arc::clone(replica), up)
            })
        });
        match tokio::time::timeout(WAIT_MAX, select_all(waits)).await {
            Ok((reached, ..)) => Ok(reached),
            Err(_) => Err(Fallback::Behind),
        }
    }

    /// A request that could have read from a replica is answered from the primary, and not because of the replicas.
    pub(crate) fn asked_primary(&self) {
        self.figures.primary.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is answered from the primary for this reason.
    pub(crate) fn fell_back(&self, why: Fallback) {
        self.asked_primary();
        self.figures.fallbacks[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The figures as they are now.
    pub(crate) fn stats(&self) -> ReplicasStats {
        let now = clock::monotonic();
        let replicas = self.all.iter().map(|replica| ReplicaStats {
            url: replica.address.shown.clone(),
            up: replica.up().is_some(),
            age: self.ages.of(*replica.seen.borrow(), now),
            reads: replica.reads.load(Ordering::Relaxed),
        });
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let fallbacks = &self.figures.fallbacks;
        ReplicasStats {
            replicas: replicas.collect(),
            primary: count(&self.figures.primary),
            fallbacks: Fallback::ALL.map(|why| (why.name(), count(&fallbacks[why as usize]))),
        }
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.looking.iter().for_each(AbortHandle::abort);
    }
}

impl Replica {
    fn up(&self) -> MutexGuard<'_, Option<Up>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is so far.
    async fn reaches(&self, number: u64) {
        let _waiting = Waiting::begin(self);
        let mut seen = self.seen.subscribe();
        if seen.wait_for(|seen| *seen >= number).await.is_err() {
            // Nobody looks at it any more.
            std::future::pending::<()>().await;
        }
    }
}

/// A read that waits for a replica, which is therefore looked at more often.
struct Waiting<'a>(&'a Replica);

impl<'a> Waiting<'a> {
    fn begin(replica: &'a Replica) -> Self {
        replica.waiting.fetch_add(1, Ordering::Relaxed);
        replica.look_now.notify_one();
        Self(replica)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a replica of the store at `url` is.
///
/// # Errors
/// Its URL cannot be read, or is of another kind than the store; or the store is one that has no replicas.
fn address(url: &str, replica: &str) -> Result<Address, OpenError> {
    match remote::kind_of(url) {
        Some(kind) if remote::kind_of(replica) == Some(kind) => Address::read(replica),
        _ => Err(OpenError::ForeignReplica {
            url: remote::shown(replica),
        }),
    }
}

impl Store {
    /// As [`Store::open`], with replicas that the API reads from as far as they are young enough. They are looked at
    /// from now on; one that cannot be reached is tried again by itself.
    ///
    /// # Errors
    /// As [`Store::open`]; or a replica's URL cannot be one of this store.
    pub async fn open_with_replicas(
        url: &str,
        data_dir: &Path,
        config: &ReplicasConfig,
    ) -> Result<Self, OpenError> {
        let addresses = config.urls.iter().map(|replica| address(url, replica));
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        let mut store = Self::open(url, data_dir).await?;
        if !addresses.is_empty() {
            let position = read_position(&store.readers).await;
            let id = position.map_err(|error| failed_to_open(url, error))?.store;
            let replicas = Replicas::start(addresses, config.max_age, id, &store.readers);
            store.replicas = Some(Arc::new(replicas));
        }
        Ok(store)
    }

    /// Its replicas, where it has any.
    pub(crate) fn replicas(&self) -> Option<&Arc<Replicas>> {
        self.replicas.as_ref()
    }

    /// How far it is now: behind everything that was committed before this was asked.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn position(&self) -> Result<Position, StoreError> {
        Ok(read_position(&self.readers).await?)
    }

    /// The same store, which reads from these.
    fn reading(&self, readers: Readers) -> Self {
        Self {
            readers,
            replicas: None,
            ..self.clone()
        }
    }
}

/// How far a server is, as its readers see it.
async fn read_position(readers: &Readers) -> Result<Position, sqlx::Error> {
    let mut reader = Box::pin(readers.acquire()).await?;
    Position::read(&mut reader).await
}
