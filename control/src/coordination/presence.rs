//! Who is there: each server holds a lock while it lives, and watches those of the others.
//!
//! ```text
//!   own lock    acquire ─▶ held ─▶ lost ─▶ acquire …
//!   a peer's    held: waits ─▶ vacant: suspected ─▶ looks each second ─▶ held again: not suspected
//! ```
//!
//! A suspicion decides nothing. It may be false: a service that failed over has forgotten locks, a peer may be cut off
//! from the service alone. Whoever suspects a peer looks at the store, where a peer that beats is alive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::{Locks, Name};

/// A lock that is not found vacant within this is held.
const GLANCE: Duration = Duration::from_millis(500);
/// Whether a peer that is suspected is back is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two tries at a service that is away: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// Who is there, as a lock service tells it to one of them. Its lock is given back when this is dropped.
pub struct Presence {
    peers: watch::Sender<BTreeSet<Uuid>>,
    suspects: watch::Receiver<BTreeSet<Uuid>>,
    _end: DropGuard,
}

impl Presence {
    /// Begins to hold the lock of `own`, among others of this kind: `process-server`. A kind is made as a [`Name`] is,
    /// of at most 60 characters; of another nobody is seen.
    pub fn start(locks: Arc<dyn Locks>, kind: &str, own: Uuid) -> Self {
        let end = CancellationToken::new();
        if let Some(name) = name(kind, own) {
            let holding = hold(Arc::clone(&locks), name);
            tokio::spawn(end.clone().run_until_cancelled_owned(holding));
        }
        Self::of(locks, kind, First::EvenIfNeverSeen, end)
    }

    /// Begins to watch those of a kind, of which one is not itself. They need not hold locks: only who was seen to hold
    /// one is suspected when it is vacant.
    pub fn watch(locks: Arc<dyn Locks>, kind: &str) -> Self {
        Self::of(locks, kind, First::OnceSeen, CancellationToken::new())
    }

    fn of(locks: Arc<dyn Locks>, kind: &str, first: First, end: CancellationToken) -> Self {
        let (peers, watched) = watch::channel(BTreeSet::new());
        let (suspecting, suspects) = watch::channel(BTreeSet::new());
        let kind = kind.to_owned();
        let named = move |peer| name(&kind, peer);
        let watching = watch_all(locks, named, first, watched, Arc::new(suspecting));
        tokio::spawn(end.clone().run_until_cancelled_owned(watching));
        Self {
            peers,
            suspects,
            _end: end.drop_guard(),
        }
    }

    /// Who else is there, as the store tells it: these are watched.
    pub fn set_peers(&self, peers: BTreeSet<Uuid>) {
        self.peers.send_if_modified(|known| {
            let new = *known != peers;
            *known = peers;
            new
        });
    }

    /// Those of whom the service says that they are gone.
    pub fn suspects(&self) -> BTreeSet<Uuid> {
        self.suspects.borrow().clone()
    }

    /// Waits until that changes.
    pub async fn changed(&mut self) {
        if self.suspects.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// When somebody is suspected whose lock is vacant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// Also when nobody has seen it held: it was gone before.
    EvenIfNeverSeen,
    /// Only once it has been held.
    OnceSeen,
}

fn name(kind: &str, server: Uuid) -> Option<Name> {
    Name::new(&format!("{kind}.{server}"))
}

/// Holds a lock, again and again. The log has a line for each change, not for each try.
async fn hold(locks: Arc<dyn Locks>, name: Name) -> ! {
    let mut pause = PAUSE.0;
    let mut told = false;
    loop {
        match locks.acquire(&name).await {
            Ok(mut held) => {
                if std::mem::take(&mut told) {
                    tracing::info!(%name, "the lock service says again that this server is there");
                }
                pause = PAUSE.0;
                held.lost().await;
                tracing::warn!(%name, "the lock that says that this server is there is lost; the others go by its heartbeats");
                told = true;
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%name, %error, "no lock says that this server is there; the others go by its heartbeats");
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// Watches the locks of all peers.
async fn watch_all(
    locks: Arc<dyn Locks>,
    name: impl Fn(Uuid) -> Option<Name>,
    first: First,
    mut peers: watch::Receiver<BTreeSet<Uuid>>,
    suspects: Arc<watch::Sender<BTreeSet<Uuid>>>,
) {
    let mut watched: BTreeMap<Uuid, DropGuard> = BTreeMap::new();
    loop {
        let now = peers.borrow_and_update().clone();
        watched.retain(|peer, _| now.contains(peer));
        suspects.send_if_modified(|known| {
            let before = known.len();
            known.retain(|peer| now.contains(peer));
            known.len() != before
        });
        for peer in now {
            if let Some(name) = name(peer).filter(|_| !watched.contains_key(&peer)) {
                let end = CancellationToken::new();
                let suspects = Arc::clone(&suspects);
                let watching = watch_one(Arc::clone(&locks), (name, peer), first, suspects);
                tokio::spawn(end.clone().run_until_cancelled_owned(watching));
                watched.insert(peer, end.drop_guard());
            }
        }
        if peers.changed().await.is_err() {
            return;
        }
    }
}

/// Watches the lock of a peer.
async fn watch_one(
    locks: Arc<dyn Locks>,
    (name, peer): (Name, Uuid),
    first: First,
    suspects: Arc<watch::Sender<BTreeSet<Uuid>>>,
) -> ! {
    let mut pause = PAUSE.0;
    let mut seen_held = first == First::EvenIfNeverSeen;
    loop {
        let mut vacant = locks.vacant(&name);
        let seen = match timeout(GLANCE, &mut vacant).await {
            Ok(seen) => seen,
            Err(_) => {
                seen_held = true;
                suspect(&suspects, peer, false);
                vacant.await
            }
        };
        match seen {
            Ok(()) => {
                pause = PAUSE.0;
                suspect(&suspects, peer, seen_held);
                sleep(LOOK_EVERY).await;
            }
            Err(error) => {
                // A service that is away says nothing about anybody.
                tracing::debug!(%name, %error, "the lock of another server is not watched");
                suspect(&suspects, peer, false);
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

fn suspect(suspects: &watch::Sender<BTreeSet<Uuid>>, peer: Uuid, is: bool) {
    suspects.send_if_modified(|suspects| match is {
        true => suspects.insert(peer),
        false => suspects.remove(&peer),
    });
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::super::{CoordinationError, Held, LocalBus};
    use super::*;

    const KIND: &str = "server";

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// Waits until exactly these are suspected.
    async fn suspects(presence: &mut Presence, wanted: &[u128]) {
        let wanted: BTreeSet<Uuid> = wanted.iter().map(|number| id(*number)).collect();
        let seen = async {
            while presence.suspects() != wanted {
                presence.changed().await;
            }
        };
        let seen = timeout(Duration::from_secs(20), seen).await;
        assert!(seen.is_ok(), "{:?}, not {wanted:?}", presence.suspects());
    }

    #[tokio::test]
    async fn whoever_is_gone_is_suspected_and_whoever_comes_back_is_not() {
        let bus = LocalBus::default();
        let mut ann = Presence::start(bus.locks(), KIND, id(1));
        let bob = Presence::start(bus.locks(), KIND, id(2));
        let cid = Presence::start(bus.locks(), KIND, id(3));
        ann.set_peers([id(2), id(3)].into());
        sleep(GLANCE * 2).await;
        suspects(&mut ann, &[]).await;
        drop(bob);
        suspects(&mut ann, &[2]).await;
        let bob = Presence::start(bus.locks(), KIND, id(2));
        suspects(&mut ann, &[]).await;
        drop((bob, cid));
        suspects(&mut ann, &[2, 3]).await;
        ann.set_peers([id(3)].into());
        suspects(&mut ann, &[3]).await;
        ann.set_peers(BTreeSet::new());
        suspects(&mut ann, &[]).await;
    }

    #[tokio::test]
    async fn whoever_only_watches_suspects_those_that_it_has_seen() {
        let bus = LocalBus::default();
        let mut watch = Presence::watch(bus.locks(), KIND);
        watch.set_peers([id(1), id(2)].into());
        let ann = Presence::start(bus.locks(), KIND, id(1));
        let changed = timeout(LOOK_EVERY + GLANCE * 2, watch.changed()).await;
        assert!(changed.is_err(), "{:?}", watch.suspects());
        drop(ann);
        suspects(&mut watch, &[1]).await;
    }

    /// Is away.
    struct Away;

    impl Locks for Away {
        fn try_acquire<'a>(
            &'a self,
            _: &'a Name,
        ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>> {
            async { Err(away()) }.boxed()
        }

        fn vacant<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
            async { Err(away()) }.boxed()
        }

        fn lease(&self) -> Duration {
            Duration::from_secs(3)
        }

        fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
            async { Err(away()) }.boxed()
        }
    }

    fn away() -> CoordinationError {
        CoordinationError::Service {
            service: "test",
            place: "nowhere".to_owned(),
            detail: "away".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_service_that_is_away_makes_nobody_suspected() {
        let mut ann = Presence::start(Arc::new(Away), KIND, id(1));
        ann.set_peers([id(2)].into());
        let changed = timeout(Duration::from_secs(2), ann.changed()).await;
        assert!(changed.is_err(), "{:?}", ann.suspects());
    }
}
