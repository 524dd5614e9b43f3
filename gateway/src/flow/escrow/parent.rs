//! The parent: it owns a limit that spans groups and lends it out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::{Incarnation, LEASE, Lease, MARGIN, PERIOD, Report, Term};

/// Leases to one child that it has not answered; the oldest are forgotten as one.
const UNANSWERED_MAX: usize = 16;

/// The parent has no such child: add it first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("child {0} is not known to the limit's owner: add the group first")]
pub struct UnknownChild(pub u32);

/// The owner of a limit that spans groups.
#[derive(Debug)]
pub struct Parent {
    term: Term,
    limit: u32,
    children: BTreeMap<u32, Lent>,
    /// Leases of the parent before may last until then.
    quiet_until: Instant,
    rebalance_at: Instant,
    outputs: VecDeque<(u32, Lease)>,
}

/// What a child may believe in.
#[derive(Debug, Default)]
struct Lent {
    incarnation: Incarnation,
    /// The newest report.
    number: u64,
    /// It answered this parent; until then what it holds is unknown.
    is_known: bool,
    /// What it said: credit held, permits in use, permits wanted.
    holds: u32,
    in_use: u32,
    wants: u32,
    /// Leases that it has not answered: number, credit.
    unanswered: VecDeque<(u64, u32)>,
    /// The last lease written: number, credit, until when the child may obey it.
    lease: u64,
    credit: u32,
    until: Option<Instant>,
    /// A report came since the last lease.
    heard: bool,
}

impl Lent {
    /// The most that it may use.
    fn most(&self) -> u32 {
        let unanswered = self.unanswered.iter().map(|(_, credit)| *credit).max();
        self.holds.max(self.in_use).max(unanswered.unwrap_or(0))
    }

    /// What it could make use of.
    fn demand(&self) -> u32 {
        self.in_use.saturating_add(self.wants)
    }

    fn has_lease(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Parent {
    /// The first owner of a limit, or the next one after a restart: what its children hold is
    /// unknown, so it waits for the leases of the one before and for every child. The term must be
    /// higher than any before.
    pub fn new(
        now: Instant,
        term: Term,
        limit: u32,
        children: impl IntoIterator<Item = u32>,
    ) -> Self {
        let children = children.into_iter().map(|id| (id, Lent::default()));
        Self {
            term,
            limit,
            children: children.collect(),
            quiet_until: now + LEASE + MARGIN,
            rebalance_at: now,
            outputs: VecDeque::new(),
        }
    }

    /// Changes the limit. A lower one is reached as children give back.
    pub fn set_limit(&mut self, now: Instant, limit: u32) {
        self.limit = limit;
        self.rebalance_at = now;
    }

    /// A new group, which nobody has owned before: it holds nothing.
    pub fn add_child(&mut self, child: u32) {
        let new = self.children.entry(child).or_default();
        new.is_known = true;
    }

    /// The most that children may use together.
    pub fn lent(&self) -> u32 {
        let most = self.children.values().map(Lent::most);
        most.fold(0, u32::saturating_add)
    }

    /// Children of which it is unknown what they use: nothing is lent while there is one.
    pub fn unknown(&self) -> impl Iterator<Item = u32> {
        let unknown = self.children.iter().filter(|(_, lent)| !lent.is_known);
        unknown.map(|(child, _)| *child)
    }

    /// A child spoke.
    ///
    /// # Errors
    /// [`UnknownChild`].
    pub fn handle_report(
        &mut self,
        now: Instant,
        child: u32,
        report: &Report,
    ) -> Result<(), UnknownChild> {
        let lent = self.children.get_mut(&child).ok_or(UnknownChild(child))?;
        if report.incarnation > lent.incarnation {
            if lent.is_known && lent.has_lease(now) {
                // Its owner before may still grant: hear the new one after the lease.
                return Ok(());
            }
            *lent = Lent {
                incarnation: report.incarnation,
                lease: lent.lease,
                is_known: lent.is_known,
                ..Lent::default()
            };
        } else if report.incarnation < lent.incarnation || report.number <= lent.number {
            return Ok(());
        }
        let is_short = report.wants > 0 && report.in_use >= report.holds;
        // A report from before this parent's time may be old.
        lent.is_known |= report.term == self.term;
        lent.heard = true;
        lent.number = report.number;
        lent.holds = report.holds;
        lent.in_use = report.in_use;
        lent.wants = report.wants;
        if report.term == self.term {
            lent.unanswered.retain(|(lease, _)| *lease > report.lease);
        }
        if is_short && self.lent() < self.limit {
            self.rebalance_at = self.rebalance_at.min(now);
        }
        Ok(())
    }

    /// A group is gone for good and its work is known to be over, or it has no owner and its work
    /// was counted (`in_use`) under a higher epoch. Its lease must have ended; until then this says
    /// `false` and changes nothing.
    #[must_use]
    pub fn handle_fenced(
        &mut self,
        now: Instant,
        child: u32,
        incarnation: Incarnation,
        in_use: u32,
    ) -> bool {
        let Some(lent) = self.children.get_mut(&child) else {
            return true;
        };
        if lent.has_lease(now) || now < self.quiet_until || incarnation < lent.incarnation {
            return false;
        }
        *lent = Lent {
            incarnation,
            lease: lent.lease,
            is_known: true,
            in_use,
            ..Lent::default()
        };
        true
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Instant {
        self.rebalance_at
    }

    /// Time passed: new leases for all who spoke since the last.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.rebalance_at {
            return;
        }
        self.rebalance_at = now + PERIOD;
        let wished = self.shares();
        let may_lend = now >= self.quiet_until && self.unknown().next().is_none();
        let mut free = self.limit.saturating_sub(self.lent());
        for (child, lent) in &mut self.children {
            if !lent.heard {
                continue;
            }
            let most = lent.most();
            let share = wished.get(child).copied().unwrap_or(0);
            let more = share.saturating_sub(most).min(free);
            let credit = match may_lend {
                true if share > most => most + more,
                true => share,
                // What it holds by an earlier parent's word it may keep, no more.
                false => lent.holds.min(most),
            };
            free -= credit.saturating_sub(most);
            lent.heard = false;
            lent.lease += 1;
            lent.credit = credit;
            lent.until = Some(now + LEASE + MARGIN);
            lent.unanswered.push_back((lent.lease, credit));
            if lent.unanswered.len() > UNANSWERED_MAX
                && let Some((_, oldest)) = lent.unanswered.pop_front()
                && let Some((_, next)) = lent.unanswered.front_mut()
            {
                *next = oldest.max(*next);
            }
            let lease = Lease {
                incarnation: lent.incarnation,
                term: self.term,
                lease: lent.lease,
                answers: lent.number,
                credit,
                only_prolongs: !may_lend,
            };
            self.outputs.push_back((*child, lease));
        }
    }

    /// The next lease to send. At most one a child is made in each call of
    /// [`handle_timeout`](Self::handle_timeout).
    pub fn poll_lease(&mut self) -> Option<(u32, Lease)> {
        self.outputs.pop_front()
    }

    /// Max-min fair shares of the limit by demand; what nobody wants is spread evenly, so that a
    /// child whose demand rises can begin at once. Whoever is silent keeps what it may use.
    fn shares(&self) -> BTreeMap<u32, u32> {
        let silent = self.children.values().filter(|lent| !lent.heard);
        let kept = silent.fold(0, |sum: u32, lent| sum.saturating_add(lent.most()));
        let mut left = self.limit.saturating_sub(kept);
        let heard = self.children.iter().filter(|(_, lent)| lent.heard);
        // Of equals whoever has most comes last: what cannot be divided stays where it is.
        let wish = |(id, lent): (&u32, &Lent)| (lent.demand(), lent.most(), *id);
        let mut wishes: Vec<(u32, u32, u32)> = heard.map(wish).collect();
        wishes.sort_unstable();
        let mut shares = BTreeMap::new();
        let mut waiting = u32::try_from(wishes.len()).unwrap_or(u32::MAX);
        for (demand, _, child) in &wishes {
            let share = (*demand).min(left / waiting);
            left -= share;
            waiting -= 1;
            shares.insert(*child, share);
        }
        // The greatest demand comes last and first: it takes the remainder of every division.
        let mut waiting = u32::try_from(wishes.len()).unwrap_or(u32::MAX);
        for (.., child) in &wishes {
            let extra = left / waiting;
            left -= extra;
            waiting -= 1;
            if let Some(share) = shares.get_mut(child) {
                *share += extra;
            }
        }
        shares
    }
}
