//! For how long an agent server may dispatch: ten seconds from its last question that a process server has answered,
//! which has prolonged the lease in the store in between; three where a lock service watches over it, since its groups
//! may be another's sooner then. By this machine's monotonic clock alone: it goes on while the
//! program stands still, so whoever wakes up late knows that it is late.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control::clock;
use control::gateways::{WATCHED_LEASE, WATCHED_RENEW};
use control::telemetry::metrics::{Family, Kind, Value};
use protocol::limits::{LINK_LEASE, LINK_RENEW};

/// Of one agent server. Tickets are the milliseconds of its life.
pub(crate) struct Lease {
    began: Instant,
    /// From a question on.
    length: Duration,
    /// It is asked so often.
    renew_every: Duration,
    /// 0: it never had one.
    until_ms: AtomicU64,
    fenced: AtomicU64,
}

/// An answer to a question that was not asked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unasked;

impl Lease {
    /// `watched`: a lock says that this agent server is there, so that it may be given up early.
    pub(crate) fn new(watched: bool) -> Self {
        let (length, renew_every) = match watched {
            true => (WATCHED_LEASE, WATCHED_RENEW),
            false => (LINK_LEASE, LINK_RENEW),
        };
        Self {
            began: clock::monotonic(),
            length,
            renew_every,
            until_ms: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
        }
    }

    /// How often to ask.
    pub(super) fn renew_every(&self) -> Duration {
        self.renew_every
    }

    /// The ticket of a question that is asked now.
    pub(super) fn ticket(&self) -> u64 {
        self.ticket_at(clock::monotonic())
    }

    fn ticket_at(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.began))
    }

    /// A question was answered.
    pub(super) fn renewed(&self, ticket: u64) -> Result<(), Unasked> {
        self.renewed_at(ticket, clock::monotonic())
    }

    fn renewed_at(&self, ticket: u64, now: Instant) -> Result<(), Unasked> {
        if ticket > self.ticket_at(now) {
            return Err(Unasked);
        }
        let until = ticket + millis(self.length);
        self.until_ms.fetch_max(until, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it may dispatch now.
    pub(crate) fn holds(&self) -> bool {
        self.holds_at(clock::monotonic())
    }

    fn holds_at(&self, now: Instant) -> bool {
        self.ticket_at(now) < self.until_ms.load(Ordering::Relaxed)
    }

    /// A dispatch was refused because it does not hold.
    pub(super) fn fenced(&self) {
        let before = self.fenced.fetch_add(1, Ordering::Relaxed);
        if before.is_power_of_two() || before == 0 {
            tracing::warn!(
                count = before + 1,
                "this agent server's lease has run out, so it sends nothing on: its groups may be another's by now"
            );
        }
    }

    /// The figures for `/metrics`.
    pub(crate) fn families(&self) -> [Family; 2] {
        let number = |value| Value::Number(value);
        let fenced = Family::new(
            Kind::Counter,
            "drover_agent_server_dispatches_fenced_total",
            "Dispatches that were not sent on because the lease had run out.",
        );
        let holds = Family::new(
            Kind::Gauge,
            "drover_agent_server_lease_holds",
            "1 while this agent server may dispatch.",
        );
        [
            fenced.with(Vec::new(), number(self.fenced.load(Ordering::Relaxed))),
            holds.with(Vec::new(), number(u64::from(self.holds()))),
        ]
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_from_the_question_on_and_not_from_the_answer() {
        let lease = Lease::new(false);
        let at = |seconds| lease.began + Duration::from_secs(seconds);
        assert!(!lease.holds_at(at(0)), "nobody has answered yet");
        let asked = lease.ticket_at(at(5));
        assert_eq!(lease.renewed_at(asked, at(9)), Ok(()));
        assert!(lease.holds_at(at(14)));
        assert!(!lease.holds_at(at(15)));
        // Whoever stood still from second 6 to second 40 hears the old answer, and it is too old.
        assert_eq!(lease.renewed_at(lease.ticket_at(at(10)), at(40)), Ok(()));
        assert!(!lease.holds_at(at(40)));
        assert_eq!(
            lease.renewed_at(lease.ticket_at(at(41)), at(40)),
            Err(Unasked)
        );
        assert!(!lease.holds_at(at(40)));
    }

    #[test]
    fn it_is_shorter_where_a_lock_service_may_say_sooner_that_nobody_is_there() {
        let lease = Lease::new(true);
        let at = |ms| lease.began + Duration::from_millis(ms);
        assert_eq!(
            lease.renewed_at(lease.ticket_at(at(1000)), at(1100)),
            Ok(())
        );
        assert!(lease.holds_at(at(3999)));
        assert!(!lease.holds_at(at(4000)));
        // One question without an answer does not end it.
        assert!(2 * lease.renew_every() < lease.length);
    }
}
