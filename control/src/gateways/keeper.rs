//! Keeps leases alive, gives groups away, and tells gateways what has changed hands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::{Epoch, GatewayId, GroupId};

use super::{Answer, Gateways, Placed, RENEW};
use crate::clock;
use crate::dispatch::Engine;
use crate::store::{Store, StoreError};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Groups of living owners that change hands at one look: their agents go over within ten seconds.
const MOVES_A_LOOK: usize = 2;
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
    renewed: Option<Instant>,
    /// Who was reached at the last look, and since when it has been so.
    reached: Vec<GatewayId>,
    since: Instant,
    reaches: u64,
}

/// Looks after the groups of several agent servers, for ever.
pub(crate) async fn keep(store: Store, engine: Engine, gateways: Arc<Gateways>) {
    let mut keeper = Keeper {
        store,
        engine,
        gateways: Arc::clone(&gateways),
        told: Told::new(),
        renewed: None,
        reached: Vec::new(),
        since: clock::monotonic(),
        reaches: 0,
    };
    loop {
        if let Err(error) = keeper.look(clock::monotonic()).await {
            tracing::warn!(%error, "the groups of agent servers could not be looked after; it is tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = gateways.changed.notified() => {}
        }
    }
}

/// Hears who owns which group, for ever: for one that gives none away.
pub(crate) async fn watch(store: Store, gateways: Arc<Gateways>) {
    loop {
        if let Err(error) = gateways.learn(&store).await {
            tracing::warn!(%error, "who owns which group was not read; it is tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = gateways.changed.notified() => {}
        }
    }
}

impl Keeper {
    async fn look(&mut self, now: Instant) -> Result<(), StoreError> {
        let reaches = self.gateways.reaches();
        let reached: Vec<_> = self.gateways.reached();
        let runs: Vec<_> = reached.iter().map(|server| server.run).collect();
        if runs != self.reached {
            tracing::info!(
                agent_servers = runs.len(),
                "other agent servers are reached than before"
            );
            (self.reached, self.since, self.renewed) = (runs, now, None);
        }
        if reaches != self.reaches {
            // Whoever is there anew knows of no group yet, or of what was so when it went away.
            (self.reaches, self.renewed) = (reaches, None);
            self.told.clear();
        }
        let ended = self.gateways.take_ended();
        if !ended.is_empty() {
            self.store.forget_agent_servers(ended).await?;
        }
        let passed = |since: Instant| now.saturating_duration_since(since);
        let asked = self.gateways.take_asked();
        let due = self.renewed.is_none_or(|renewed| passed(renewed) >= RENEW);
        if due || !asked.is_empty() {
            self.store
                .renew_agent_servers(reached, clock::now())
                .await?;
            self.renewed = Some(now);
            let (reached, others) = asked
                .into_iter()
                .partition(|(run, _)| self.reached.contains(run));
            self.gateways.keep_asked(others);
            let reached: Vec<(GatewayId, Answer)> = reached;
            reached.into_iter().for_each(|(_, answer)| answer());
        }
        let moves = match passed(self.since) >= SETTLED_AFTER {
            true => MOVES_A_LOOK,
            false => 0,
        };
        let placed = self.gateways.place(&self.store, moves).await?;
        self.tell(placed);
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
