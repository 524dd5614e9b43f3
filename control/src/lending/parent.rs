//! The owner of one limit that spans homes: what it lends to whom.
//!
//! **The sum of what children may use never exceeds the limit**, whatever is lost, late or repeated:
//!
//! - The parent counts for each child the *most* that it may believe in: the greatest credit of any
//!   lease that it has not answered, and what it said it holds and uses. It lends only what is left.
//! - A child's lease runs from the moment at which it *sent* the report that the lease answers, the
//!   parent's count from the moment at which it *wrote* the lease. So the child's ends first, on
//!   clocks that run alike, without being set alike.
//! - A child that takes less first drains: what is in use counts until it is given back.
//! - What a silent child holds comes back only when it says so: itself, when it is asked, or its next
//!   incarnation, which counts what runs before it speaks, and is heard after the last lease of the one
//!   before.
//! - A new parent knows who its children are, asks them, and lends nothing until each has answered one of
//!   its own leases (so that no late report is taken for a new one), and the leases of the parent before
//!   have ended. Its first leases only prolong.
//!
//! A parent must not write leases any more when the next one begins: see [`Lender`](super::Lender).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::flow::lending::{Incarnation, Lease, Report, Term};
use protocol::limits::{CREDIT_LEASE, CREDIT_PERIOD};

/// The parent waits this much longer than a lease lasts: clocks of two machines do not run at
/// exactly the same speed.
pub const MARGIN: Duration = Duration::from_millis(250);
/// What cannot be divided goes to somebody else once he has waited this long without any.
const TURN: Duration = Duration::from_secs(5);
/// Leases to one child that it has not answered; the oldest are forgotten as one.
const UNANSWERED_MAX: usize = 16;

/// The owner of a limit that spans homes.
#[derive(Debug)]
pub struct Parent {
    term: Term,
    limit: u32,
    children: BTreeMap<u16, Lent>,
    /// Leases of the parent before may last until then.
    quiet_until: Instant,
    rebalance_at: Instant,
    asked_at: Option<Instant>,
    /// When somebody last held, used or wanted any.
    used_at: Instant,
    outputs: VecDeque<(u16, Lease)>,
}

/// What a child may believe in.
#[derive(Debug, Default)]
struct Lent {
    incarnation: Incarnation,
    /// The newest report.
    number: u64,
    heard_at: Option<Instant>,
    /// It answered this parent; until then what it holds is unknown.
    is_known: bool,
    /// What it said: credit held, permits in use, permits wanted.
    holds: u32,
    in_use: u32,
    wants: u32,
    /// Since when it has wanted some and had none.
    hungry_since: Option<Instant>,
    /// Leases that it has not answered: number, credit.
    unanswered: VecDeque<(u64, u32)>,
    /// The last lease written: number, until when the child may obey it.
    lease: u64,
    until: Option<Instant>,
    /// A report came since the last lease, and a lease is due for it.
    is_due: bool,
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

    fn rests(&self) -> bool {
        self.holds == 0 && self.demand() == 0
    }

    fn has_lease(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// What it holds is not known, or it holds some and says nothing.
    fn is_missed(&self, now: Instant) -> bool {
        let silent = self.heard_at.is_none_or(|at| at + 2 * CREDIT_PERIOD <= now);
        silent && (!self.is_known || self.most() > 0)
    }

    /// Takes a report of the present incarnation.
    fn hear(&mut self, now: Instant, term: Term, report: &Report) {
        // A report from before this parent's time may be old.
        self.is_known |= report.term == term;
        self.heard_at = Some(now);
        self.number = report.number;
        self.holds = report.holds;
        self.in_use = report.in_use;
        self.wants = report.wants;
        if report.term == term {
            self.unanswered.retain(|(lease, _)| *lease > report.lease);
        }
        let is_hungry = report.wants > 0 && report.holds == 0 && report.in_use == 0;
        self.hungry_since = match is_hungry {
            true => self.hungry_since.or(Some(now)),
            false => None,
        };
        // One that rests is left in peace once nothing is open between the two.
        self.is_due = !(report.rests() && self.is_known && self.unanswered.is_empty());
    }

    /// Writes the next lease.
    fn lend(&mut self, now: Instant, term: Term, credit: u32, only_prolongs: bool) -> Lease {
        // Once everyone is known, who wants more need not speak again to be lent it.
        self.is_due = only_prolongs && self.wants > 0;
        self.lease += 1;
        self.until = Some(now + CREDIT_LEASE + MARGIN);
        self.unanswered.push_back((self.lease, credit));
        if self.unanswered.len() > UNANSWERED_MAX
            && let Some((_, oldest)) = self.unanswered.pop_front()
            && let Some((_, next)) = self.unanswered.front_mut()
        {
            *next = oldest.max(*next);
        }
        Lease {
            incarnation: self.incarnation,
            term,
            number: self.lease,
            answers: self.number,
            credit,
            only_prolongs,
        }
    }
}

/// A child that is due for a lease, and what it asks for.
#[derive(Clone, Copy)]
struct Wish {
    child: u16,
    demand: u32,
    most: u32,
    /// It has waited for a turn without having any.
    starves_since: Option<Instant>,
}

impl Parent {
    /// What its children hold is unknown: it lends nothing before `quiet_until`, when the leases of
    /// the parent before have ended, and before every child has answered. The term must be higher than
    /// any before.
    pub fn new(
        now: Instant,
        term: Term,
        limit: u32,
        quiet_until: Instant,
        children: impl IntoIterator<Item = u16>,
    ) -> Self {
        let children = children.into_iter().map(|id| (id, Lent::default()));
        Self {
            term,
            limit,
            children: children.collect(),
            quiet_until,
            rebalance_at: now,
            asked_at: None,
            used_at: now,
            outputs: VecDeque::new(),
        }
    }

    /// Changes the limit. A lower one is reached as children give back.
    pub fn set_limit(&mut self, now: Instant, limit: u32) {
        if limit != self.limit {
            self.limit = limit;
            self.rebalance_at = self.rebalance_at.min(now);
        }
    }

    /// The most that children may use together.
    pub fn lent(&self) -> u32 {
        let most = self.children.values().map(Lent::most);
        most.fold(0, u32::saturating_add)
    }

    /// Children of which it is unknown what they use: nothing is lent while there is one.
    pub fn unknown(&self) -> impl Iterator<Item = u16> {
        let unknown = self.children.iter().filter(|(_, lent)| !lent.is_known);
        unknown.map(|(child, _)| *child)
    }

    /// Whether nobody has held, used or wanted any for so long, and all said so: a new parent, with
    /// a higher term, may take over at any time.
    pub fn has_rested(&self, now: Instant, time: Duration) -> bool {
        self.used_at + time <= now
            && self
                .children
                .values()
                .all(|lent| lent.is_known && lent.unanswered.is_empty() && lent.most() == 0)
    }

    /// A child spoke. One that is new to the parent is unknown to begin with.
    pub fn handle_report(&mut self, now: Instant, child: u16, report: &Report) {
        let lent = self.children.entry(child).or_default();
        if report.incarnation > lent.incarnation {
            if lent.is_known && lent.has_lease(now) {
                // Its incarnation before may still grant: hear the new one after the lease.
                return;
            }
            *lent = Lent {
                incarnation: report.incarnation,
                lease: lent.lease,
                is_known: lent.is_known,
                ..Lent::default()
            };
        } else if report.incarnation < lent.incarnation || report.number <= lent.number {
            return;
        }
        let was_known = lent.is_known;
        lent.hear(now, self.term, report);
        if !report.rests() {
            self.used_at = now;
        }
        let is_short = report.wants > 0 && report.in_use >= report.holds;
        let may_lend = !was_known || (is_short && self.lent() < self.limit);
        if may_lend {
            self.rebalance_at = self.rebalance_at.min(now);
        }
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
        self.rebalance_at = now + CREDIT_PERIOD;
        let wished = self.shares(now);
        let may_lend = now >= self.quiet_until && self.unknown().next().is_none();
        let mut free = self.limit.saturating_sub(self.lent());
        for (child, lent) in self.children.iter_mut().filter(|(_, lent)| lent.is_due) {
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
            let lease = lent.lend(now, self.term, credit, !may_lend);
            self.outputs.push_back((*child, lease));
        }
    }

    /// The next lease to send. At most one a child is made in each call of
    /// [`handle_timeout`](Self::handle_timeout).
    pub fn poll_lease(&mut self) -> Option<(u16, Lease)> {
        self.outputs.pop_front()
    }

    /// Whether children are to be asked to report; at most once in a period.
    pub fn poll_ask(&mut self, now: Instant) -> bool {
        let may_ask = self.asked_at.is_none_or(|at| at + CREDIT_PERIOD <= now);
        let asks = may_ask && self.children.values().any(|lent| lent.is_missed(now));
        if asks {
            self.asked_at = Some(now);
        }
        asks
    }

    /// Max-min fair shares of the limit by demand. Of what cannot be divided each gets one whose turn it
    /// is: first whoever has waited long without any, then whoever has it. What nobody wants is spread
    /// over all children, so that one whose demand rises can begin at once; the share of one that rests
    /// stays here for it. Whoever is silent keeps what it may use.
    fn shares(&self, now: Instant) -> BTreeMap<u16, u32> {
        let silent = self.children.values().filter(|lent| !lent.is_due);
        let kept = silent.fold(0, |sum: u32, lent| sum.saturating_add(lent.most()));
        let mut left = self.limit.saturating_sub(kept);
        let mut wishes = self.wishes(now);
        let mut shares = BTreeMap::new();
        // Who wants less than an equal share leaves the rest to the others.
        wishes.sort_unstable_by_key(|wish| (wish.demand, wish.child));
        let mut wishes = VecDeque::from(wishes);
        while let Some(wish) = wishes.front()
            && wish.demand <= left / count(wishes.len())
        {
            left -= wish.demand;
            shares.insert(wish.child, wish.demand);
            wishes.pop_front();
        }
        if wishes.is_empty() {
            let spare = left / count(self.children.len()).max(1);
            shares.values_mut().for_each(|share| *share += spare);
            return shares;
        }
        let (each, extra) = (left / count(wishes.len()), left % count(wishes.len()));
        let mut wishes = Vec::from(wishes);
        wishes.sort_unstable_by_key(|wish| {
            let starves = (wish.starves_since.is_none(), wish.starves_since);
            (
                starves,
                u32::MAX - wish.most,
                u32::MAX - wish.demand,
                wish.child,
            )
        });
        for (place, wish) in (0..).zip(wishes) {
            shares.insert(wish.child, each + u32::from(place < extra));
        }
        shares
    }

    fn wishes(&self, now: Instant) -> Vec<Wish> {
        let due = self.children.iter();
        let due = due.filter(|(_, lent)| lent.is_due && !lent.rests());
        let wish = |(child, lent): (&u16, &Lent)| Wish {
            child: *child,
            demand: lent.demand(),
            most: lent.most(),
            starves_since: lent.hungry_since.filter(|at| *at + TURN <= now),
        };
        due.map(wish).collect()
    }
}

/// There are far fewer children than this can count.
fn count(children: usize) -> u32 {
    u32::try_from(children).unwrap_or(u32::MAX)
}
