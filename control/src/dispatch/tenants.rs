//! What waits of each tenant, and how fast it goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pace::Ends;
use crate::store::tally::TenantCount;

/// Tenants whose pace is kept although nothing of them waits; beyond that, they are forgotten.
const IDLE_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Tenant {
    ready: u64,
    ends: Ends,
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

    /// So many are ready and have ended of each, whichever process server has done that; of others none.
    pub(super) fn correct(&mut self, counts: &BTreeMap<Arc<str>, TenantCount>, now: Instant) {
        for known in self.0.values_mut() {
            known.ready = 0;
        }
        for (tenant, count) in counts {
            let known = self.entry(tenant);
            known.ready = count.ready;
            known.ends.heard(count.ended, now);
        }
    }

    /// An operation of one has ended.
    pub(super) fn completed(&mut self, tenant: &str, now: Instant) {
        self.entry(tenant).ends.one(now);
    }

    /// How many are ready.
    pub(super) fn ready(&self, tenant: &str) -> u64 {
        self.0.get(tenant).map_or(0, |known| known.ready)
    }

    /// How long so many take at the tenant's present pace.
    pub(super) fn wait_for(&self, tenant: &str, depth: u64, now: Instant) -> Duration {
        let ends = self.0.get(tenant).map(|known| known.ends);
        ends.unwrap_or_default().pace().wait_for(depth, now)
    }

    /// What time passes between two ends of its operations lately, where that is known.
    pub(super) fn each(&self, tenant: &str, now: Instant) -> Option<Duration> {
        self.0.get(tenant)?.ends.pace().eta(1, now)
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
        let count = |ready| TenantCount { ready, ended: 0 };
        let counts = BTreeMap::from([("acme".into(), count(2)), ("new".into(), count(1))]);
        tenants.correct(&counts, now);
        let ready = ["acme", "gone", "new"].map(|tenant| tenants.ready(tenant));
        assert_eq!(ready, [2, 0, 1]);
        for n in 0..2 * IDLE_MAX {
            tenants.completed(&format!("t{n}"), now);
        }
        assert!(tenants.0.len() <= IDLE_MAX + 1);
        assert_eq!(tenants.ready("acme"), 2, "who waits is not forgotten");
    }
}
