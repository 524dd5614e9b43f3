//! Keeps leases alive, gives groups away, and tells gateways what has changed hands.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::{Epoch, GatewayId, GroupId};

use super::watch::Watch;
use super::{Answer, Gateways, Pace, Placed};
use crate::clock;
use crate::coordination::Locks;
use crate::dispatch::Engine;
use crate::store::{Store, StoreError};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So long it leaves between two looks, each of which is a write and some reads, however many agent servers ask for
/// their lease. Their time for an answer is some seconds.
const LOOKS_APART: Duration = Duration::from_millis(250);
/// The same while a lock service says that somebody is gone.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(250);
/// Groups of living owners change hands this often …
pub(super) const MOVES_EVERY: Duration = Duration::from_secs(1);
/// … so many at once: the agents of each go over 250 a second.
const MOVES_AT_ONCE: usize = 2;
/// Whoever comes or goes is given this long to stay so, before groups of living owners move.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// What gateways were told of a group.
type Told = BTreeMap<GroupId, (Option<GatewayId>, Epoch)>;

/// What it remembers between two looks.
struct Keeper {
    store: Store,
    engine: Engine,
    gateways: Arc<Gateways>,
    told: Told,
    /// Those that are reached have leases.
    renewed: bool,
    watch: Option<Watch>,
    /// Who was reached at the last look, and since when it has been so.
    reached: Vec<GatewayId>,
    since: Instant,
    reaches: u64,
    /// When groups of living owners could change hands last.
    moved: Option<Instant>,
}

/// Looks after the groups of several agent servers, for ever. `locks`: a lock service that may say sooner than the store
/// that one is gone.
pub(crate) async fn keep(
    store: Store,
    engine: Engine,
    gateways: Arc<Gateways>,
    locks: Option<Arc<dyn Locks>>,
) {
    let mut keeper = Keeper::new(store, engine, Arc::clone(&gateways), locks.map(Watch::new));
    loop {
        if let Err(error) = keeper.look(clock::monotonic()).await {
            tracing::warn!(%error, "the groups of agent servers could not be looked after; it is tried again");
        }
        let pause = match keeper.suspects().is_empty() {
            true => LOOK_EVERY,
            false => LOOK_CLOSELY_EVERY,
        };
        tokio::select! {
            () = due(&gateways, LOOKS_APART, pause) => {}
            () = changed(&mut keeper.watch) => {}
        }
    }
}

/// Hears who owns which group, for ever: for one that gives none away.
#[expect(
    clippy::infinite_loop,
    reason = "its task is of the same type as the other one's"
)]
pub(crate) async fn watch(store: Store, gateways: Arc<Gateways>) {
    loop {
        if let Err(error) = gateways.learn(&store).await {
            tracing::warn!(%error, "who owns which group was not read; it is tried again");
        }
        due(&gateways, LOOKS_APART, LOOK_EVERY).await;
    }
}

/// Waits until it is time for another look, which is after `pause`; after `apart` if there is something to look after,
/// and at once if an agent server is gone.
async fn due(gateways: &Gateways, apart: Duration, pause: Duration) {
    let changed = async {
        tokio::time::sleep(apart).await;
        gateways.changed.notified().await;
    };
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = changed => {}
        () = gateways.gone.notified() => {}
    }
}

/// Waits until somebody else is suspected, or no longer.
async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

impl Keeper {
    fn new(store: Store, engine: Engine, gateways: Arc<Gateways>, watch: Option<Watch>) -> Self {
        Self {
            store,
            engine,
            gateways,
            told: Told::new(),
            renewed: false,
            watch,
            reached: Vec::new(),
            since: clock::monotonic(),
            reaches: 0,
            moved: None,
        }
    }

    /// Those of whom the lock service says that they are gone.
    fn suspects(&self) -> BTreeSet<GatewayId> {
        let watch = self.watch.as_ref();
        watch.map(Watch::suspects).unwrap_or_default()
    }

    async fn look(&mut self, now: Instant) -> Result<(), StoreError> {
        let began = clock::monotonic();
        self.gateways.doubt(self.suspects());
        self.see_who_is_reached(now);
        let ended = self.gateways.take_ended();
        if !ended.is_empty()
            && let Err(error) = self.store.forget_agent_servers(ended.clone()).await
        {
            self.gateways.keep_ended(ended);
            return Err(error);
        }
        self.renew().await?;
        self.gateways.mark(&self.store).await?;
        let pace = self.pace(now);
        self.give_up(now, began).await?;
        let since = now + began.elapsed();
        let placed = self.gateways.place(&self.store, pace, since).await?;
        self.tell(placed);
        Ok(())
    }

    /// How many groups of living owners may change hands now: looks come more often than moves, as whenever an agent
    /// server asks for its lease.
    fn pace(&mut self, now: Instant) -> Pace {
        let passed = |since: Instant| now.saturating_duration_since(since);
        if self.moved.is_some_and(|moved| passed(moved) < MOVES_EVERY) {
            return Pace::default();
        }
        self.moved = Some(now);
        let settled = passed(self.since) >= SETTLED_AFTER;
        Pace {
            asked: MOVES_AT_ONCE,
            all: if settled { MOVES_AT_ONCE } else { 0 },
            // Whoever is about to stop does not wait until others have settled; how many there are is not known here.
            hurried: MOVES_AT_ONCE,
        }
    }

    fn see_who_is_reached(&mut self, now: Instant) {
        let reaches = self.gateways.reaches();
        let reached = self.gateways.reached().into_iter();
        let runs: Vec<_> = reached.map(|server| server.run).collect();
        if runs != self.reached {
            tracing::info!(
                agent_servers = runs.len(),
                "other agent servers are reached than before"
            );
            (self.reached, self.since, self.renewed) = (runs, now, false);
        }
        if reaches != self.reaches {
            // Whoever is there anew knows of no group yet, or of what was so when it went away.
            (self.reaches, self.renewed) = (reaches, false);
            self.told.clear();
        }
    }

    /// Gives those a lease that are reached anew, and prolongs the leases of those that ask: as long as one asks it is
    /// alive, and one that does not is not made so by another one's question.
    async fn renew(&mut self) -> Result<(), StoreError> {
        let asked = self.gateways.take_asked();
        let mut renewed = self.gateways.reached();
        if self.renewed {
            renewed.retain(|server| asked.iter().any(|(run, _)| *run == server.run));
        }
        let runs: Vec<_> = renewed.iter().map(|server| server.run).collect();
        let written = self.store.renew_agent_servers(renewed, clock::now()).await;
        self.renewed |= written.is_ok();
        let (answered, waiting) = asked
            .into_iter()
            .partition(|(run, _)| written.is_ok() && runs.contains(run));
        self.gateways.keep_asked(waiting);
        let answered: Vec<(GatewayId, Answer)> = answered;
        answered.into_iter().for_each(|(_, answer)| answer());
        written
    }

    /// Ends the leases of those that are gone by everything that is known of them. `began`: what the clock said when the
    /// look began, which is `now`.
    async fn give_up(&mut self, now: Instant, began: Instant) -> Result<(), StoreError> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        let mut servers = self.store.agent_servers(clock::now()).await?;
        // Also of those whose lease nobody could prolong.
        let living = self.gateways.living(&servers, now + began.elapsed());
        servers.retain(|one| living.contains(&one.server.run));
        let over = watch.given_up(&servers, &self.reached, now);
        if over.is_empty() {
            return Ok(());
        }
        for run in self.store.end_leases(over).await? {
            tracing::warn!(
                %run,
                "an agent server is given up: its lock is free, nobody reaches it, and nobody has prolonged its lease"
            );
            self.gateways.give_up(run);
        }
        Ok(())
    }

    /// Tells all gateways, through every process server; what could not be said is said at the next look.
    fn tell(&mut self, placed: Vec<Placed>) {
        let mut moved = 0;
        for Placed { group, owner, .. } in placed {
            let (id, now) = (group.id, (owner, group.epoch));
            let before = self.told.get(&id);
            if before == Some(&now) {
                continue;
            }
            moved += usize::from(before.is_some());
            if self.engine.reassign(&group).is_ok() {
                self.told.insert(id, now);
            }
        }
        if moved > 0 {
            tracing::info!(groups = moved, "groups have other owners than before");
        }
    }
}
