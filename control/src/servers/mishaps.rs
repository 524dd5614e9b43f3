//! What befalls process servers when a test wants to see what follows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::seq::IndexedRandom as _;
use tokio::sync::mpsc;

/// What can befall one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mishap {
    /// It is gone from one moment to the next.
    Crash,
    /// The same, and no other one takes its place.
    CrashForGood,
    /// Nothing of it goes on for so long.
    Hang(Duration),
}

/// Lets things befall process servers, for tests of what follows.
#[derive(Clone)]
pub struct Mishaps(Arc<[Place]>);

struct Place {
    orders: mpsc::Sender<Mishap>,
    lives: Arc<AtomicBool>,
}

/// The process server's side.
pub(super) struct Victim {
    orders: mpsc::Receiver<Mishap>,
    lives: Arc<AtomicBool>,
}

impl Mishaps {
    pub(super) fn of(servers: usize) -> (Self, Vec<Victim>) {
        let pairs = std::iter::repeat_with(|| {
            let (orders, queue) = mpsc::channel(1);
            let lives = Arc::new(AtomicBool::new(false));
            let victim = Victim {
                orders: queue,
                lives: Arc::clone(&lives),
            };
            (Place { orders, lives }, victim)
        });
        let (places, victims): (Vec<_>, Vec<_>) = pairs.take(servers).unzip();
        (Self(places.into()), victims)
    }

    /// The last process server crashes, and no other one takes its place.
    pub fn crash_last_for_good(&self) {
        self.befall(self.0.last(), Mishap::CrashForGood);
    }

    /// One of those that live crashes, whichever it is; another one takes its place.
    pub fn crash_any(&self) {
        let living: Vec<&Place> = self.0.iter().filter(|place| place.lives()).collect();
        let any = living.choose(&mut rand::rng()).copied();
        self.befall(any, Mishap::Crash);
    }

    /// Nothing of the last process server goes on for so long.
    pub fn hang_last(&self, time: Duration) {
        self.befall(self.0.last(), Mishap::Hang(time));
    }

    /// How many of them live.
    #[cfg(test)]
    pub(super) fn living(&self) -> usize {
        self.0.iter().filter(|place| place.lives()).count()
    }

    fn befall(&self, place: Option<&Place>, mishap: Mishap) {
        // One whose mishap is still on its way has enough of them.
        if let Some(place) = place.filter(|place| place.lives())
            && let Err(error) = place.orders.try_send(mishap)
        {
            tracing::warn!(%error, "a process server was spared");
        }
    }
}

impl Place {
    fn lives(&self) -> bool {
        self.lives.load(Ordering::Acquire)
    }
}

impl Victim {
    /// A process server is in this place now, or none.
    pub(super) fn lives(&mut self, lives: bool) {
        self.lives.store(lives, Ordering::Release);
        if !lives {
            // Meant for the one that is gone.
            while self.orders.try_recv().is_ok() {}
        }
    }

    /// What befalls it next; never, where nobody lets anything.
    pub(super) async fn suffers(&mut self) -> Mishap {
        match self.orders.recv().await {
            Some(mishap) => mishap,
            None => std::future::pending().await,
        }
    }
}
