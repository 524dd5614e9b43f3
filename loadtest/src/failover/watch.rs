//! Who owns which group by the store, and whether an agent takes a command under an epoch that is over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::ids::{AgentId, Epoch, GroupId, OperationId};
use protocol::operation::Refusal;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, GroupState};
use crate::clock;
use crate::fleet::CommandWatch;

/// The store is looked at so often; what happens within that is not told apart.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Default)]
pub(super) struct Watch {
    groups: HashMap<AgentId, GroupId>,
    seen: Mutex<Seen>,
    stale: AtomicU64,
    refused: AtomicU64,
}

#[derive(Default)]
struct Seen {
    /// The highest epoch of each group that the store was seen to have.
    epochs: HashMap<GroupId, Epoch>,
    /// When one of them has risen last.
    moved: Option<Instant>,
    /// Since when an agent server has had none, by its link.
    empty_since: HashMap<String, Instant>,
    owners: Vec<Option<String>>,
}

impl Watch {
    /// Of these agents, each of a group.
    pub(super) fn new(groups: HashMap<AgentId, GroupId>) -> Arc<Self> {
        Arc::new(Self {
            groups,
            ..Self::default()
        })
    }

    /// Looks at the store until `stop`.
    pub(super) async fn run(
        self: Arc<Self>,
        api: Api,
        links: Vec<String>,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            match api.groups().await {
                Ok(groups) => self.looked(&groups, &links, clock::now()),
                Err(error) => tracing::debug!(%error, "the groups were not read"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn looked(&self, groups: &[GroupState], links: &[String], now: Instant) {
        let mut seen = self.seen();
        let seen = &mut *seen;
        for group in groups {
            let known = seen.epochs.entry(GroupId(group.id)).or_default();
            if *known < Epoch(group.epoch) {
                *known = Epoch(group.epoch);
                seen.moved = Some(now);
            }
        }
        seen.owners = groups.iter().map(|one| one.agent_server.clone()).collect();
        for link in links {
            let has_some = seen.owners.iter().any(|owner| owner.as_ref() == Some(link));
            if has_some {
                seen.empty_since.remove(link);
            } else {
                seen.empty_since.entry(link.clone()).or_insert(now);
            }
        }
    }

    /// How long after `since` an agent server had no group any more; infinite while it has some.
    pub(super) fn owned_elsewhere_s(&self, link: &str, since: Instant) -> f64 {
        let seen = self.seen();
        let empty = seen.empty_since.get(link);
        empty.map_or(f64::INFINITY, |at| {
            at.saturating_duration_since(since).as_secs_f64()
        })
    }

    /// For how long no group has changed hands, as far as was seen.
    pub(super) fn still_for(&self, now: Instant) -> Duration {
        let moved = self.seen().moved;
        moved.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// Operations that were taken under a stale epoch so far.
    pub(super) fn stale_count(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }

    /// Commands that agents refused because of their epoch so far.
    pub(super) fn refused_count(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommandWatch for Watch {
    fn accepted(&self, agent: AgentId, operation: OperationId, epoch: Epoch) {
        let Some(group) = self.groups.get(&agent) else {
            return;
        };
        let known = self.seen().epochs.get(group).copied().unwrap_or_default();
        if epoch < known {
            self.stale.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%agent, %operation, %epoch, %known, "taken under a stale epoch");
        }
    }

    fn refused(&self, why: &Refusal) {
        if matches!(why, Refusal::StaleEpoch { .. }) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::ProcessId;
    use uuid::Uuid;

    use super::*;

    fn state(epoch: u64, owner: &str) -> GroupState {
        GroupState {
            id: Uuid::from_u128(1),
            epoch,
            agents: 1,
            connected: 1,
            agent_server: Some(owner.to_owned()),
        }
    }

    #[test]
    fn an_epoch_is_stale_once_the_store_was_seen_to_have_a_higher_one() {
        let agent = AgentId::from_bytes([1; 16]);
        let watch = Watch::new(HashMap::from([(agent, GroupId(Uuid::from_u128(1)))]));
        let links = ["a".to_owned(), "b".to_owned()];
        let operation = OperationId::new(ProcessId(Uuid::nil()), 0);
        let began = clock::now();
        watch.looked(&[state(3, "a")], &links, began);
        watch.accepted(agent, operation, Epoch(3));
        watch.accepted(agent, operation, Epoch(4));
        assert_eq!(watch.stale_count(), 0);
        assert_eq!(watch.owned_elsewhere_s("a", began), f64::INFINITY);
        watch.looked(&[state(4, "b")], &links, began + Duration::from_secs(3));
        watch.looked(&[state(4, "b")], &links, began + Duration::from_secs(5));
        watch.accepted(agent, operation, Epoch(3));
        assert_eq!(watch.stale_count(), 1);
        assert!((watch.owned_elsewhere_s("a", began) - 3.0).abs() < 1e-6);
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(watch.still_for(at(7)), Duration::from_secs(4));
        watch.refused(&Refusal::Stopping);
        watch.refused(&Refusal::StaleEpoch { seen: Epoch(4) });
        assert_eq!(watch.refused_count(), 1);
    }
}
