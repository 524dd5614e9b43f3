//! A lock that is held, and how its holder is told that it may be no longer.

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Whether a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// As far as the service has said lately.
    Held,
    /// The service has not been reached lately: somebody else may have it soon.
    Doubtful,
    /// Somebody else may have it. It does not come back.
    Lost,
}

/// A lock that was taken. It is given back when this is dropped, or with [`Held::release`], which waits for that.
#[derive(Debug)]
pub struct Held {
    state: watch::Receiver<Hold>,
    release: DropGuard,
}

impl Held {
    /// A lock that was taken just now, and the side that looks after it.
    pub(super) fn new() -> (Self, Keeper) {
        let (states, state) = watch::channel(Hold::Held);
        let released = CancellationToken::new();
        let held = Self {
            state,
            release: released.clone().drop_guard(),
        };
        (held, Keeper { states, released })
    }

    /// Whether it is held.
    pub fn state(&self) -> Hold {
        *self.state.borrow()
    }

    /// Waits until that changes; never returns once it is lost and that was seen.
    pub async fn changed(&mut self) -> Hold {
        match self.state.changed().await {
            Ok(()) => *self.state.borrow_and_update(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until it is lost.
    pub async fn lost(&mut self) {
        // Whoever looks after it says so before it ends; if it ended without, nobody renews it.
        drop(self.state.wait_for(|state| *state == Hold::Lost).await);
    }

    /// Gives it back, and waits until that is done, or the service is found to be away: it ends with its lease then.
    pub async fn release(self) {
        let Self { mut state, release } = self;
        drop(release);
        while state.changed().await.is_ok() {}
    }
}

/// The side that looks after a lock that is held: a task of the service's.
pub(super) struct Keeper {
    states: watch::Sender<Hold>,
    released: CancellationToken,
}

impl Keeper {
    /// What is so now; the holder hears of it if it is new.
    pub(super) fn tell(&self, state: Hold) {
        self.states.send_if_modified(|known| {
            let new = *known != state;
            *known = state;
            new
        });
    }

    /// Waits until the holder gives it back.
    pub(super) async fn released(&self) {
        self.released.cancelled().await;
    }
}
