//! The child: a group's owner, which uses what its parent lent.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Incarnation, LEASE, Lease, PERIOD, Report, Term};

/// Reports whose sending time is remembered; a lease that answers an older one is too late anyway.
const REPORTS_MAX: usize = 16;

/// What one group's owner may use of a limit that spans groups.
#[derive(Debug)]
pub struct Child {
    incarnation: Incarnation,
    term: Term,
    lease: u64,
    credit: u32,
    until: Option<Instant>,
    in_use: u32,
    wants: u32,
    /// Number and sending time of the last reports.
    sent: VecDeque<(u64, Instant)>,
    number: u64,
    report_at: Instant,
    /// Somebody was refused since the last report.
    short: bool,
}

impl Child {
    /// A new owner of a group, which counted what runs (`in_use`) from the inventories of its
    /// agents. Until then it has nothing to report: make it after the count.
    pub fn new(now: Instant, incarnation: Incarnation, in_use: u32) -> Self {
        Self {
            incarnation,
            term: Term::default(),
            lease: 0,
            credit: 0,
            until: None,
            in_use,
            wants: 0,
            sent: VecDeque::new(),
            number: 0,
            report_at: now,
            short: false,
        }
    }

    /// What it may use now: nothing once the lease has ended.
    pub fn credit(&self, now: Instant) -> u32 {
        match self.until {
            Some(until) if now < until => self.credit,
            _ => 0,
        }
    }

    /// Permits in use.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Takes a permit, if the credit lasts.
    #[must_use]
    pub fn acquire(&mut self, now: Instant) -> bool {
        let has_room = self.in_use < self.credit(now);
        if has_room {
            self.in_use += 1;
        } else if !self.short {
            // Ask at once, but not once for each refusal.
            self.short = true;
            self.report_at = self.report_at.min(now + PERIOD / 10);
        }
        has_room
    }

    /// Gives a permit back.
    pub fn release(&mut self) {
        debug_assert!(self.in_use > 0, "a permit is given back twice");
        self.in_use = self.in_use.saturating_sub(1);
    }

    /// How many permits it could use besides those in use.
    pub fn set_wants(&mut self, wants: u32) {
        self.wants = wants;
    }

    /// The parent lent something. Late and repeated leases change nothing.
    pub fn handle_lease(&mut self, now: Instant, lease: &Lease) {
        let is_newer = (lease.term, lease.lease) > (self.term, self.lease);
        if lease.incarnation != self.incarnation || !is_newer {
            return;
        }
        let answered = self
            .sent
            .iter()
            .find(|(number, _)| *number == lease.answers);
        let Some(&(_, sent)) = answered else { return };
        self.term = lease.term;
        self.lease = lease.lease;
        self.credit = match lease.only_prolongs {
            true => lease.credit.min(self.credit(now)),
            false => lease.credit,
        };
        self.until = Some(sent + LEASE);
    }

    /// When [`poll_report`](Self::poll_report) has something.
    pub fn poll_timeout(&self) -> Instant {
        self.report_at
    }

    /// The next report, if it is time.
    pub fn poll_report(&mut self, now: Instant) -> Option<Report> {
        if now < self.report_at {
            return None;
        }
        self.report_at = now + PERIOD;
        self.short = false;
        self.number += 1;
        self.sent.push_back((self.number, now));
        if self.sent.len() > REPORTS_MAX {
            self.sent.pop_front();
        }
        Some(Report {
            incarnation: self.incarnation,
            number: self.number,
            term: self.term,
            lease: self.lease,
            holds: self.credit(now),
            in_use: self.in_use,
            wants: self.wants,
        })
    }
}
