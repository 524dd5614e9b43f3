//! Locks of services that keep a key for so long and must be told again: Redis, SQL. The rule is the same for all.
//!
//! ```text
//!   take ─▶ held ── renewed in time ─▶ held
//!             │ no answer ─▶ doubtful ── answer ─▶ held
//!             │                 └─ the lease is over, on our clock from when we asked ─▶ lost
//!             └─ "it is not yours" ─▶ lost
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use uuid::Uuid;

use super::figures::Figures;
use super::hold::Keeper;
use super::{CoordinationError, Held, Hold, Locks, Name, Subscription};
use crate::clock;

/// A lease is renewed so many times before it would be over.
const RENEWALS: u32 = 3;
/// A renewal without an answer is tried again after this.
const RETRY: Duration = Duration::from_millis(200);
/// A key that is about to expire is looked at a little after that.
const AFTER_EXPIRY: Duration = Duration::from_millis(5);

/// What such a service can do. Each answers within a time of its own, far below the lease.
pub(super) trait Leases: Send + Sync + 'static {
    /// Takes a lock for `holder`, which may have it already; `false`: somebody else has it.
    fn take(
        &self,
        name: &Name,
        holder: Uuid,
    ) -> impl Future<Output = Result<bool, CoordinationError>> + Send;

    /// Keeps it for another lease; `false`: `holder` has it no longer.
    fn renew(
        &self,
        name: &Name,
        holder: Uuid,
    ) -> impl Future<Output = Result<bool, CoordinationError>> + Send;

    /// Gives it back, if `holder` still has it.
    fn give_back(
        &self,
        name: &Name,
        holder: Uuid,
    ) -> impl Future<Output = Result<(), CoordinationError>> + Send;

    /// How long somebody still has it; `None`: nobody has.
    fn remaining(
        &self,
        name: &Name,
    ) -> impl Future<Output = Result<Option<Duration>, CoordinationError>> + Send;

    /// Hears when it may have been given back; `None`: only a look tells.
    fn released(&self, name: &Name) -> Option<Subscription>;

    /// Whoever waits looks so often, whatever it hears.
    fn look_every(&self) -> Duration;

    /// Whether it can be used, and what it is.
    fn check(&self) -> impl Future<Output = Result<String, CoordinationError>> + Send;

    /// How long a lock is kept without a renewal.
    fn lease(&self) -> Duration;

    /// Where it counts what came of each call.
    fn figures(&self) -> &Arc<Figures>;
}

/// The locks of such a service.
pub(super) struct Leased<L>(Arc<L>);

impl<L: Leases> Leased<L> {
    pub(super) fn new(leases: L) -> Self {
        Self(Arc::new(leases))
    }
}

impl<L: Leases> Locks for Leased<L> {
    fn try_acquire<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>> {
        async move {
            // Whoever asked may give up while the lock is taken: it is given back then, and not only with its lease.
            let (tell, told) = oneshot::channel();
            tokio::spawn(take(Arc::clone(&self.0), name.clone(), tell));
            told.await.unwrap_or(Ok(None))
        }
        .boxed()
    }

    fn vacant<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
        async move {
            let mut released = self.0.released(name);
            while let Some(left) = self.0.remaining(name).await? {
                let most = (left + AFTER_EXPIRY).min(self.0.look_every());
                match &mut released {
                    Some(released) => drop(timeout(most, released.next()).await),
                    None => sleep(most).await,
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn lease(&self) -> Duration {
        self.0.lease()
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        self.0.check().boxed()
    }

    fn figures(&self) -> Option<Arc<Figures>> {
        Some(Arc::clone(self.0.figures()))
    }
}

/// Takes a lock if nobody has it, tells, and looks after it until it is lost or given back.
async fn take<L: Leases>(
    leases: Arc<L>,
    name: Name,
    tell: oneshot::Sender<Result<Option<Held>, CoordinationError>>,
) {
    let (holder, asked) = (Uuid::new_v4(), clock::monotonic());
    // Where nobody hears it any more, what is told is dropped: the lock is given back.
    match leases.take(&name, holder).await {
        Ok(true) => {
            let (held, keeper) = Held::new();
            tell.send(Ok(Some(held))).ok();
            keep(leases, name, holder, asked, keeper).await;
        }
        Ok(false) => {
            tell.send(Ok(None)).ok();
        }
        Err(error) => {
            tell.send(Err(error)).ok();
            // It may have been taken all the same.
            give_back(&*leases, &name, holder).await;
        }
    }
}

/// Renews a lease that was asked for at `since`, until it is lost or given back.
async fn keep<L: Leases>(
    leases: Arc<L>,
    name: Name,
    holder: Uuid,
    mut since: Instant,
    keeper: Keeper,
) {
    let lease = leases.lease();
    let mut alarm = since + lease / RENEWALS;
    loop {
        tokio::select! {
            () = keeper.released() => return give_back(&*leases, &name, holder).await,
            () = sleep_until(alarm.into()) => {}
        }
        // A process that stood still finds out here, before it asks.
        let (asked, end) = (clock::monotonic(), since + lease);
        if asked >= end {
            break;
        }
        match timeout_at(end.into(), leases.renew(&name, holder)).await {
            Ok(Ok(true)) => {
                since = asked;
                alarm = asked + lease / RENEWALS;
                keeper.tell(Hold::Held);
            }
            Ok(Ok(false)) => break,
            Ok(Err(error)) => {
                tracing::debug!(%name, %error, "a lock was not renewed");
                keeper.tell(Hold::Doubtful);
                alarm = (clock::monotonic() + RETRY).min(end);
            }
            Err(_) => break,
        }
    }
    keeper.tell(Hold::Lost);
    // If the service still has it in our name, nobody needs it.
    give_back(&*leases, &name, holder).await;
}

/// Gives it back, as long as it can still be there.
async fn give_back<L: Leases>(leases: &L, name: &Name, holder: Uuid) {
    let tries = async {
        while let Err(error) = leases.give_back(name, holder).await {
            tracing::debug!(%name, %error, "a lock was not given back; it ends with its lease");
            sleep(RETRY).await;
        }
    };
    drop(timeout(leases.lease(), tries).await);
}
