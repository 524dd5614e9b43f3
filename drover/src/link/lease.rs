//! For how long an agent server may dispatch: ten seconds from its last question that a process server has answered,
//! which has prolonged the lease in the store in between; three where a lock service watches over it, since its groups
//! may be another's sooner then. By this machine's monotonic clock alone: it goes on while the
//! program stands still, so whoever wakes up late knows that it is late.
//!
//! It is asked where a dispatch comes in, and once more where a command leaves for the network: in between it may lie in
//! queues, and the program may stand still. When it has run out it holds anew only [`LAPSE`] after it is prolonged, so
//! that what lay in queues meanwhile has been taken back by then, and does not leave after all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control::clock;
use control::gateways::{WATCHED_LEASE, WATCHED_RENEW};
use control::telemetry::metrics::{Family, Kind, Value};
use gateway::LAPSE;
use protocol::limits::{LINK_LEASE, LINK_RENEW};
use protocol::link::{Event, NotDelivered, Request};

/// A dispatch that is not passed on.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Refused {
    /// What the process server hears.
    pub(super) answer: Event,
    /// What the gateway hears: it does not see the dispatch, and would count its permit as used for ever where that
    /// was an offer.
    pub(super) instead: Request,
}

/// Of one agent server. Tickets are the milliseconds of its life.
pub(crate) struct Lease {
    began: Instant,
    /// From a question on.
    length: Duration,
    /// It is asked so often.
    renew_every: Duration,
    /// 0: it never had one.
    until_ms: AtomicU64,
    /// Since when it holds, at the earliest. Written before `until_ms` is prolonged.
    from_ms: AtomicU64,
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
            from_ms: AtomicU64::new(0),
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
        let (now_ms, until) = (self.ticket_at(now), ticket + millis(self.length));
        let before = self.until_ms.load(Ordering::Relaxed);
        // Whoever never had one has nothing in its queues.
        if before != 0 && before <= now_ms {
            let from = now_ms + millis(LAPSE);
            self.from_ms.fetch_max(from, Ordering::Relaxed);
        }
        self.until_ms.fetch_max(until, Ordering::Release);
        Ok(())
    }

    /// Whether it may dispatch now.
    pub(crate) fn holds(&self) -> bool {
        self.holds_at(clock::monotonic())
    }

    fn holds_at(&self, now: Instant) -> bool {
        let now_ms = self.ticket_at(now);
        // In this order: whoever sees it prolonged sees since when.
        now_ms < self.until_ms.load(Ordering::Acquire)
            && now_ms >= self.from_ms.load(Ordering::Relaxed)
    }

    /// What is to be done instead of passing a request on, and is counted; `None`: it may be passed on.
    pub(super) fn refuses(&self, request: &Request) -> Option<Refused> {
        self.refuses_at(request, clock::monotonic())
    }

    fn refuses_at(&self, request: &Request, now: Instant) -> Option<Refused> {
        let Request::Dispatch {
            target,
            grant,
            command,
            ..
        } = request
        else {
            return None;
        };
        if self.holds_at(now) {
            return None;
        }
        self.fenced();
        Some(Refused {
            answer: Event::NotDelivered {
                target: *target,
                operation: command.operation,
                fence: command.fence,
                reason: NotDelivered::NotOwner,
            },
            instead: Request::ReturnPermits {
                target: *target,
                grant: *grant,
                unused: 1,
            },
        })
    }

    /// A dispatch was not sent on because it does not hold.
    fn fenced(&self) {
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

impl gateway::Lease for Lease {
    fn holds(&self) -> bool {
        self.holds()
    }

    fn fenced(&self) {
        self.fenced();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::ids::{AgentId, Epoch, Fence, GrantId, GroupId, OperationId, ProcessId, Slot};
    use protocol::link::Target;
    use protocol::operation::Command;

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
    fn when_it_has_run_out_it_holds_anew_only_after_queues_have_been_looked_through() {
        let lease = Lease::new(false);
        let at = |ms| lease.began + Duration::from_millis(ms);
        assert_eq!(lease.renewed_at(lease.ticket_at(at(100)), at(200)), Ok(()));
        assert!(lease.holds_at(at(200)), "the first holds at once");
        // Prolonged in time: no pause.
        assert_eq!(
            lease.renewed_at(lease.ticket_at(at(9_000)), at(9_100)),
            Ok(())
        );
        assert!(lease.holds_at(at(9_100)));
        // It stands still for 24 s; the answer to the first question after that comes within 5 ms.
        assert!(!lease.holds_at(at(33_000)));
        assert_eq!(
            lease.renewed_at(lease.ticket_at(at(33_000)), at(33_005)),
            Ok(())
        );
        let anew = 33_005 + millis(LAPSE);
        assert!(!lease.holds_at(at(33_005)));
        assert!(!lease.holds_at(at(anew - 1)));
        // A second answer begins no second pause.
        assert_eq!(
            lease.renewed_at(lease.ticket_at(at(34_000)), at(34_001)),
            Ok(())
        );
        assert!(lease.holds_at(at(anew)));
    }

    #[test]
    fn a_dispatch_that_waited_for_room_is_refused_once_the_lease_has_run_out_and_nothing_else_is() {
        let lease = Lease::new(false);
        let at = |seconds| lease.began + Duration::from_secs(seconds);
        assert_eq!(lease.renewed_at(lease.ticket_at(at(1)), at(1)), Ok(()));
        let target = Target {
            agent: AgentId::from_bytes([1; 16]),
            group: GroupId::from_bytes([2; 16]),
            slot: Slot(0),
        };
        let operation = OperationId::new(ProcessId::from_bytes([3; 16]), 0);
        let dispatch = Request::Dispatch {
            target,
            grant: GrantId(1),
            epoch: Epoch(1),
            command: Box::new(Command {
                operation,
                fence: Fence(4),
                kind: "exec".to_owned(),
                input: Bytes::new(),
                deadline_ms: 1,
            }),
        };
        assert_eq!(lease.refuses_at(&dispatch, at(10)), None);
        let refused = Refused {
            answer: Event::NotDelivered {
                target,
                operation,
                fence: Fence(4),
                reason: NotDelivered::NotOwner,
            },
            instead: Request::ReturnPermits {
                target,
                grant: GrantId(1),
                unused: 1,
            },
        };
        assert_eq!(lease.refuses_at(&dispatch, at(11)), Some(refused));
        assert_eq!(lease.fenced.load(Ordering::Relaxed), 1);
        let ask = Request::AskFlow { target, ticket: 1 };
        assert_eq!(lease.refuses_at(&ask, at(11)), None);
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
