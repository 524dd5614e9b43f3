//! What a home may use of a limit that spans homes: credit that the limit's owner lends, on leases.
//!
//! ```text
//!   child ── Report{n, holds, in use, wants} ──▶ owner of the limit    each second, or when it is short
//!   child ◀── Lease{answers n, credit, number} ── owner of the limit   rebalanced each second by demand
//! ```
//!
//! **The sum of what children may use never exceeds the limit**, whatever is lost, late or repeated. The
//! owner's half of the rules is in the control plane (`control/src/lending/parent.rs`); the child's is:
//!
//! - It grants nothing beyond its credit, and reports all that is in use, granted permits included.
//! - A lease runs from the moment at which it *sent* the report that the lease answers, the owner's count
//!   from the moment at which it *wrote* the lease. So the child's ends first, on clocks that run alike,
//!   without being set alike.
//! - A lease for less, and the end of a lease, drain: what is in use counts until it is given back.
//! - A child that has neither used nor wanted any for two reports gives its credit back with the second of
//!   them and is silent, until somebody finds no room or the owner asks.
//! - A later incarnation counts what runs before its first report.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::flow::lending::{Incarnation, Lease, Report, Term};
use protocol::limits::{CREDIT_LEASE, CREDIT_PERIOD};

/// Reports whose sending time is remembered; a lease that answers an older one is too late anyway.
const REPORTS_MAX: usize = 16;
/// Reports follow each other no faster, however often somebody finds no room.
const HASTE: Duration = CREDIT_PERIOD.checked_div(10).unwrap();
/// Reports in a row without use of the credit after which it is given back.
const IDLE_MAX: u32 = 2;

/// What goes on under a limit at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Use {
    /// Permits in use: granted, or running.
    pub in_use: u32,
    /// Permits that could be used besides.
    pub wants: u32,
    /// Somebody waits for a permit, even if it could not use one now.
    pub awaited: bool,
}

impl Use {
    fn is_none(self) -> bool {
        self.in_use == 0 && self.wants == 0 && !self.awaited
    }
}

/// What one home may use of one limit.
#[derive(Debug)]
pub struct Child {
    incarnation: Incarnation,
    term: Term,
    lease: u64,
    credit: u32,
    until: Option<Instant>,
    /// Number and sending time of the last reports.
    sent: VecDeque<(u64, Instant)>,
    /// Nothing while it is silent.
    report_at: Option<Instant>,
    idle: u32,
}

impl Child {
    /// It holds nothing and is silent.
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            term: Term::default(),
            lease: 0,
            credit: 0,
            until: None,
            sent: VecDeque::new(),
            report_at: None,
            idle: 0,
        }
    }

    /// What may be in use now: nothing once the lease has ended.
    pub fn credit(&self, now: Instant) -> u32 {
        match self.until {
            Some(until) if now < until => self.credit,
            _ => 0,
        }
    }

    /// When the credit ends, if there is any.
    pub fn ends_at(&self) -> Option<Instant> {
        self.until
    }

    /// Somebody found no room, something is in use that was not before, or the owner asks: it reports as
    /// soon as it may.
    pub fn hurry(&mut self, now: Instant) {
        let last = self.sent.back().map(|(_, at)| *at + HASTE);
        let at = last.map_or(now, |last| last.max(now));
        self.report_at = Some(self.report_at.map_or(at, |report_at| report_at.min(at)));
    }

    /// The owner lent something. Late and repeated leases change nothing.
    pub fn handle_lease(&mut self, now: Instant, lease: &Lease) {
        let is_newer = (lease.term, lease.number) > (self.term, self.lease);
        if lease.incarnation != self.incarnation || !is_newer {
            return;
        }
        let answered = self
            .sent
            .iter()
            .find(|(number, _)| *number == lease.answers);
        let Some(&(_, sent)) = answered else { return };
        let is_new_owner = lease.term > self.term;
        self.term = lease.term;
        self.lease = lease.number;
        if self.report_at.is_none() {
            // It gave everything back, and takes nothing that it did not ask for. The owner counts what
            // it lent until it hears of that.
            self.hurry(now);
            return;
        }
        self.credit = match lease.only_prolongs {
            true => lease.credit.min(self.credit(now)),
            false => lease.credit,
        };
        self.until = Some(sent + CREDIT_LEASE);
        if is_new_owner {
            // It lends nothing before it knows everyone.
            self.hurry(now);
        }
    }

    /// When [`poll_report`](Self::poll_report) has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.report_at
    }

    /// The next report, if it is time. `number` is higher than that of any report of this incarnation.
    pub fn poll_report(&mut self, now: Instant, number: u64, used: Use) -> Option<Report> {
        if self.report_at.is_none_or(|at| now < at) {
            return None;
        }
        self.idle = match used.is_none() {
            true => self.idle + 1,
            false => 0,
        };
        let rests = used.is_none() && (self.idle >= IDLE_MAX || self.credit(now) == 0);
        if rests {
            self.credit = 0;
            self.until = None;
        }
        self.report_at = (!rests).then(|| now + CREDIT_PERIOD);
        self.sent.push_back((number, now));
        if self.sent.len() > REPORTS_MAX {
            self.sent.pop_front();
        }
        Some(Report {
            incarnation: self.incarnation,
            number,
            term: self.term,
            lease: self.lease,
            holds: self.credit(now),
            in_use: used.in_use,
            wants: used.wants,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: Use = Use {
        in_use: 2,
        wants: 1,
        awaited: true,
    };

    #[expect(clippy::disallowed_methods, reason = "a beginning for made-up clocks")]
    fn epoch() -> Instant {
        Instant::now()
    }

    fn lease(number: u64, answers: u64, credit: u32) -> Lease {
        Lease {
            incarnation: Incarnation(1),
            term: Term(1),
            number,
            answers,
            credit,
            only_prolongs: false,
        }
    }

    /// A child that has reported (number 1) and was lent five (lease 1).
    fn lent(now: Instant) -> Child {
        let mut child = Child::new(Incarnation(1));
        assert_eq!(child.poll_report(now, 9, USED), None, "nobody asked");
        child.hurry(now);
        assert!(child.poll_report(now, 1, USED).is_some());
        child.handle_lease(now, &lease(1, 1, 5));
        child
    }

    #[test]
    fn a_lease_ends_a_while_after_the_report_that_it_answers() {
        let now = epoch();
        let child = lent(now);
        assert_eq!(child.credit(now), 5);
        let end = now + CREDIT_LEASE;
        assert_eq!(child.credit(end - Duration::from_millis(1)), 5);
        assert_eq!((child.credit(end), child.ends_at()), (0, Some(end)));
    }

    #[test]
    fn late_repeated_and_foreign_leases_change_nothing() {
        let now = epoch();
        let mut child = lent(now);
        let foreign = Lease {
            incarnation: Incarnation(2),
            ..lease(9, 1, 8)
        };
        for other in [lease(1, 1, 8), lease(2, 7, 8), foreign] {
            child.handle_lease(now, &other);
            assert_eq!(child.credit(now), 5, "{other:?}");
        }
        let prolongs = Lease {
            only_prolongs: true,
            ..lease(2, 1, 8)
        };
        child.handle_lease(now, &prolongs);
        assert_eq!(child.credit(now), 5, "it raises nothing");
    }

    #[test]
    fn reports_come_each_second_and_sooner_when_somebody_finds_no_room() {
        let now = epoch();
        let mut child = lent(now);
        child.hurry(now);
        child.hurry(now);
        let soon = now + HASTE;
        assert_eq!(child.poll_timeout(), Some(soon));
        let report = child.poll_report(soon, 2, USED).unwrap();
        assert_eq!((report.lease, report.holds, report.in_use), (1, 5, 2));
        assert_eq!(child.poll_timeout(), Some(soon + CREDIT_PERIOD));
    }

    #[test]
    fn what_is_not_used_for_two_reports_is_given_back_and_then_it_is_silent() {
        let now = epoch();
        let mut child = lent(now);
        let (first, second) = (now + CREDIT_PERIOD, now + 2 * CREDIT_PERIOD);
        let report = child.poll_report(first, 2, Use::default()).unwrap();
        assert_eq!(report.holds, 5);
        let report = child.poll_report(second, 3, Use::default()).unwrap();
        assert!(report.rests());
        assert_eq!((child.credit(second), child.poll_timeout()), (0, None));
        // A lease that was on its way: nothing is taken, and the owner is told so.
        child.handle_lease(second, &lease(2, 2, 6));
        let soon = second + HASTE;
        assert_eq!(
            (child.credit(second), child.poll_timeout()),
            (0, Some(soon))
        );
        let report = child.poll_report(soon, 4, Use::default()).unwrap();
        assert!(report.rests() && report.lease == 2);
        assert_eq!(child.poll_timeout(), None);
    }
}
