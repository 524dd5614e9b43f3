//! Leases that have run out while nobody could prolong them.
//!
//! ```text
//!   looks at the store   ─┬─┬─┬─┬─┬ · · away · · ┬─┬─┬─┬─┬─┬─┬─┬─┬─┬─
//!   who is alive          by the leases          │ all that are     │ by the leases
//!                                                │ registered       │
//!                                                ◀────── GRACE ─────▶
//! ```
//!
//! A lease that is over says that nobody has reached that agent server for so long, or that nobody could write it
//! down: the store was away, or the only one who reaches it was being started. When the store is back, whoever looks
//! first would take away what is well. So it waits as long as a lease lasts, in which whoever reaches that agent
//! server says so. It does not wait for one that has ended in order, which is registered no longer, nor for one that
//! this process has given up by everything that is known of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use protocol::ids::GatewayId;
use protocol::limits::LINK_RENEW;

use super::{LEASE, Registered};

/// In a gap of so long between two looks a lease may have run out that was prolonged in time before it. Without one
/// there is a look every second.
pub(super) const GAP: Duration = Duration::from_secs(6);
/// So long after a gap all that are registered count as alive.
pub(super) const GRACE: Duration = LEASE;

// A second for whoever prolongs it late.
const _: () = assert!(GAP.as_millis() + LINK_RENEW.as_millis() + 1000 <= LEASE.as_millis());

/// What this process has seen of the store.
#[derive(Default)]
pub(super) struct Grace {
    /// When it was looked at last.
    looked: Option<Instant>,
    /// The end of the grace that was begun last.
    until: Option<Instant>,
    /// These were given up, and nobody has prolonged their leases since.
    given_up: BTreeSet<GatewayId>,
}

impl Grace {
    /// Those of `servers`, as the store has just told them, that are to keep their groups. `now`: when it had told them.
    pub(super) fn living(&mut self, servers: &[Registered], now: Instant) -> Vec<GatewayId> {
        let passed = |before| now.saturating_duration_since(before);
        // A process that begins does not know for how long nobody was there.
        if self.looked.is_none_or(|before| passed(before) >= GAP) {
            self.until = Some(now + GRACE);
        }
        self.looked = self.looked.max(Some(now));
        let over = |run: &GatewayId| {
            let mut servers = servers.iter();
            servers.any(|one| !one.alive && one.server.run == *run)
        };
        self.given_up.retain(over);
        let spared = self.until.is_some_and(|until| now < until);
        let spared = |run: &GatewayId| spared && !self.given_up.contains(run);
        let living = servers
            .iter()
            .filter(|one| one.alive || spared(&one.server.run));
        living.map(|one| one.server.run).collect()
    }

    /// The lease of this one was ended, since it is gone.
    pub(super) fn give_up(&mut self, run: GatewayId) {
        self.given_up.insert(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{self, UnixMs};
    use crate::gateways::AgentServer;

    fn registered(run: u8, alive: bool) -> Registered {
        Registered {
            server: AgentServer {
                run: GatewayId::from_bytes([run; 16]),
                link: format!("{run}.example:7444"),
                addresses: Vec::new(),
                shards: 1,
                capacity: 1,
            },
            alive,
            draining: false,
            renewed_at: UnixMs(1),
        }
    }

    /// One process's, with the time of its first look.
    struct Looks(Grace, Instant);

    impl Looks {
        fn new() -> Self {
            Self(Grace::default(), clock::monotonic())
        }

        /// The first bytes of those that live, at so many seconds.
        fn at(&mut self, seconds: u64, servers: &[Registered]) -> Vec<u8> {
            let now = self.1 + Duration::from_secs(seconds);
            let living = self.0.living(servers, now).into_iter();
            living.map(|run| run.to_bytes()[0]).collect()
        }
    }

    #[test]
    fn whoever_looks_each_second_goes_by_the_leases() {
        let mut looks = Looks::new();
        for second in 0..30 {
            looks.at(second, &[registered(1, true), registered(2, true)]);
        }
        let one_is_over = [registered(1, true), registered(2, false)];
        assert_eq!(looks.at(30, &one_is_over), [1]);
        // However slow the store is, as long as no lease can run out in between.
        assert_eq!(looks.at(35, &one_is_over), [1]);
    }

    #[test]
    fn whoever_begins_and_whoever_could_not_look_for_a_while_waits_as_long_as_a_lease_lasts() {
        let mut looks = Looks::new();
        let one_is_over = [registered(1, true), registered(2, false)];
        for began in [0, 100] {
            for second in 0..12 {
                assert_eq!(looks.at(began + second, &one_is_over), [1, 2], "{second}");
            }
            assert_eq!(looks.at(began + 12, &one_is_over), [1]);
        }
    }

    #[test]
    fn one_that_has_gone_for_certain_is_not_waited_for() {
        let mut looks = Looks::new();
        let one_is_over = [registered(1, true), registered(2, false)];
        assert_eq!(looks.at(0, &one_is_over), [1, 2]);
        looks.0.give_up(GatewayId::from_bytes([2; 16]));
        assert_eq!(looks.at(1, &one_is_over), [1]);
        // It is well after all, and another gap comes.
        let both = [registered(1, true), registered(2, true)];
        assert_eq!(looks.at(2, &both), [1, 2]);
        assert_eq!(looks.at(60, &one_is_over), [1, 2]);
        // Whoever has ended in order is registered no longer.
        assert_eq!(looks.at(61, &one_is_over[..1]), [1]);
    }
}
