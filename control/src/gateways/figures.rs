//! What `/metrics` of the control side says of several agent servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::balance::Field;
use super::{Gateways, Placed};
use crate::telemetry::metrics::{Family, Kind, MetricsSource, Value};

/// Counted and measured by whoever looks after the groups in this process.
#[derive(Default)]
pub(super) struct Figures {
    agents: AtomicU64,
    capacity: AtomicU64,
    /// There are more agents than there is capacity, and that was said.
    full: AtomicBool,
    given: AtomicU64,
    given_up: AtomicU64,
}

impl Figures {
    /// What there is to do, and what can be done. The log has a line when that is too much.
    pub(super) fn loaded(&self, field: &Field, groups: &[Placed]) {
        let agents = groups.iter().map(|placed| placed.agents).sum();
        let servers = field.servers.values();
        let capacity = servers.map(|taker| u64::from(taker.capacity)).sum();
        self.agents.store(agents, Ordering::Relaxed);
        self.capacity.store(capacity, Ordering::Relaxed);
        // Where none may be given groups it is not for want of room.
        let full = agents > capacity && capacity > 0;
        if full && !self.full.swap(full, Ordering::Relaxed) {
            tracing::warn!(
                agents,
                capacity,
                "there are more agents than agent servers should have; add one, or raise link.agents_per_server"
            );
        }
        self.full.store(full, Ordering::Relaxed);
    }

    /// So many groups have other owners by what this process has written.
    pub(super) fn given(&self, groups: u64) {
        self.given.fetch_add(groups, Ordering::Relaxed);
    }

    /// An agent server was taken for dead before its lease was over.
    pub(super) fn given_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    fn families(&self) -> [Family; 4] {
        let number = |count: &AtomicU64| Value::Number(count.load(Ordering::Relaxed));
        let family =
            |kind, name, help, count| Family::new(kind, name, help).with(Vec::new(), number(count));
        [
            family(
                Kind::Gauge,
                "drover_agent_servers_agents",
                "Agents in all groups that may come in, of the whole deployment.",
                &self.agents,
            ),
            family(
                Kind::Gauge,
                "drover_agent_servers_capacity",
                "Agents that agent servers which may be given groups should have at most, of the whole deployment.",
                &self.capacity,
            ),
            family(
                Kind::Counter,
                "drover_groups_given_total",
                "Groups that this process has given to another agent server.",
                &self.given,
            ),
            family(
                Kind::Counter,
                "drover_agent_servers_given_up_total",
                "Agent servers whose groups this process gave away before the lease was over.",
                &self.given_up,
            ),
        ]
    }
}

/// The figures for `/metrics`.
pub(crate) fn metrics(gateways: &Arc<Gateways>) -> MetricsSource {
    let gateways = Arc::clone(gateways);
    Arc::new(move |families: &mut Vec<Family>| families.extend(gateways.figures.families()))
}
