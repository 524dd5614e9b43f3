//! What waits of each tenant, and how fast it goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pace::Pace;

/// Tenants whose pace is kept although nothing of them waits; beyond that, they are forgotten.
const IDLE_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Tenant {
    ready: u64,
    pace: Pace,
}

/// Every tenant with something ready, and some that had.
#[derive(Debug, Default)]
pub(super) struct Tenants(BTreeMap<Arc<str>, Tenant>);

impl Tenants {
    /// So many more are ready.
    pub(super) fn add(&mut self, tenant: &str, more: u64) {
        self.entry(tenant).ready += more;
    }

    /// One fewer is ready.
    pub(super) fn remove(&mut self, tenant: &str) {
        if let Some(known) = self.0.get_mut(tenant) {
            known.ready = known.ready.saturating_sub(1);
        }
    }

    /// So many are ready of each, and of others none.
    pub(super) fn set_ready(&mut self, counts: &BTreeMap<Arc<str>, u64>) {
        for known in self.0.values_mut() {
            known.ready = 0;
        }
        for (tenant, ready) in counts {
            self.entry(tenant).ready = *ready;
        }
    }

    /// An operation of one has ended.
    pub(super) fn completed(&mut self, tenant: &str, now: Instant) {
        self.entry(tenant).pace.one(now);
    }

    /// How many are ready.
    pub(super) fn ready(&self, tenant: &str) -> u64 {
        self.0.get(tenant).map_or(0, |known| known.ready)
    }

    /// How long so many take at the tenant's present pace.
    pub(super) fn wait_for(&self, tenant: &str, depth: u64, now: Instant) -> Duration {
        let pace = self.0.get(tenant).map(|known| known.pace);
        pace.unwrap_or_default().wait_for(depth, now)
    }

    /// What time passes between two ends of its operations lately, where that is known.
    pub(super) fn each(&self, tenant: &str, now: Instant) -> Option<Duration> {
        self.0.get(tenant)?.pace.eta(1, now)
    }

    fn entry(&mut self, tenant: &str) -> &mut Tenant {
        if !self.0.contains_key(tenant) && self.0.len() >= IDLE_MAX {
            self.0.retain(|_, known| known.ready > 0);
        }
        self.0.entry(tenant.into()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_by_tenant_and_idle_ones_are_forgotten() {
        let now = crate::clock::monotonic();
        let mut tenants = Tenants::default();
        tenants.add("acme", 3);
        tenants.remove("acme");
        tenants.remove("nobody");
        assert_eq!((tenants.ready("acme"), tenants.ready("nobody")), (2, 0));
        tenants.add("gone", 7);
        tenants.set_ready(&BTreeMap::from([("acme".into(), 2), ("new".into(), 1)]));
        let ready = ["acme", "gone", "new"].map(|tenant| tenants.ready(tenant));
        assert_eq!(ready, [2, 0, 1]);
        for n in 0..2 * IDLE_MAX {
            tenants.completed(&format!("t{n}"), now);
        }
        assert!(tenants.0.len() <= IDLE_MAX + 1);
        assert_eq!(tenants.ready("acme"), 2, "who waits is not forgotten");
    }
}
