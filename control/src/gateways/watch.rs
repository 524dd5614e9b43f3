//! Agent servers that are taken for dead before their lease is over.
//!
//! ```text
//!   its lock is vacant ─┐
//!   it is not reached ──┼─▶ given up: the lease is ended, if nobody has prolonged it meanwhile
//!   not prolonged 3.5 s ┘
//! ```
//!
//! The lock service alone decides nothing: it may lie, fail over, or be cut off from one that is well. Whoever it says
//! is gone is asked over its link at once ([`Gateways::is_doubted`](super::Gateways::is_doubted)), and keeps everything
//! if it answers this process or any other one, which the store shows. And if all three are wrong, as of one that
//! stands still: it has stopped by its own clock before ([`WATCHED_LEASE`]), and epochs decide as always.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::GatewayId;

use super::{LOCKS, Registered, WATCHED_LEASE};
use crate::clock::UnixMs;
use crate::coordination::{Locks, Presence};

/// A lease that nobody has prolonged for so long, by our own clock, may be ended.
const QUIET: Duration = Duration::from_millis(3500);
// It counts from when we have seen it, which is later than the question from which the agent server counts.
const _: () = assert!(WATCHED_LEASE.as_millis() < QUIET.as_millis());

/// What is known of those that are there.
pub(super) struct Watch {
    presence: Presence,
    renewals: Renewals,
}

/// The leases as the store had them, and since when each has been so.
#[derive(Default)]
struct Renewals(BTreeMap<GatewayId, (UnixMs, Instant)>);

impl Watch {
    pub(super) fn new(locks: Arc<dyn Locks>) -> Self {
        Self {
            presence: Presence::watch(locks, LOCKS),
            renewals: Renewals::default(),
        }
    }

    /// Those of whom the lock service says that they are gone, after it has said that they were there.
    pub(super) fn suspects(&self) -> BTreeSet<GatewayId> {
        let suspects = self.presence.suspects().into_iter();
        suspects.map(GatewayId).collect()
    }

    /// Waits until that changes.
    pub(super) async fn changed(&mut self) {
        self.presence.changed().await;
    }

    /// Those that are to be given up, with their leases as they are. `living`: those that count as alive, as the store has
    /// them now.
    pub(super) fn given_up(
        &mut self,
        living: &[Registered],
        reached: &[GatewayId],
        now: Instant,
    ) -> Vec<(GatewayId, UnixMs)> {
        let leases = living.iter();
        let leases: Vec<_> = leases.map(|one| (one.server.run, one.renewed_at)).collect();
        let runs = leases.iter().map(|(run, _)| run.0);
        self.presence.set_peers(runs.collect());
        let quiet = self.renewals.quiet(&leases, now);
        let suspects = self.suspects();
        let gone = quiet.into_iter();
        gone.filter(|(run, _)| suspects.contains(run) && !reached.contains(run))
            .collect()
    }
}

impl Renewals {
    /// Those whose lease has been the same for long.
    fn quiet(&mut self, leases: &[(GatewayId, UnixMs)], now: Instant) -> Vec<(GatewayId, UnixMs)> {
        let before = std::mem::take(&mut self.0);
        let mut quiet = Vec::new();
        for (run, renewed_at) in leases {
            let same = before.get(run).filter(|(then, _)| then == renewed_at);
            let since = same.map_or(now, |(_, since)| *since);
            self.0.insert(*run, (*renewed_at, since));
            if now.saturating_duration_since(since) >= QUIET {
                quiet.push((*run, *renewed_at));
            }
        }
        quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_lease_is_quiet_from_when_it_was_seen_last_to_change() {
        let mut renewals = Renewals::default();
        let (a, b) = (
            GatewayId::from_bytes([1; 16]),
            GatewayId::from_bytes([2; 16]),
        );
        let began = clock::monotonic();
        let mut at = |ms, leases: &[(GatewayId, u64)]| {
            let leases = leases.iter().map(|(run, at)| (*run, UnixMs(*at)));
            let leases: Vec<_> = leases.collect();
            renewals.quiet(&leases, began + Duration::from_millis(ms))
        };
        // However old it is: clocks of machines differ.
        assert_eq!(at(0, &[(a, 5), (b, 5)]), []);
        assert_eq!(at(2000, &[(a, 6), (b, 5)]), []);
        assert_eq!(at(3499, &[(a, 6), (b, 5)]), []);
        assert_eq!(at(3500, &[(a, 6), (b, 5)]), [(b, UnixMs(5))]);
        assert_eq!(at(5499, &[(a, 6)]), []);
        assert_eq!(
            at(5500, &[(a, 6), (b, 5)]),
            [(a, UnixMs(6))],
            "b is there anew"
        );
    }
}
