//! The ledger of one agent: how many operations it may still be given.
//!
//! ```text
//!   limit ┌──────────────┬──────────────┬────────────┐
//!         │ charged      │ granted,     │ free       │   a grant takes from free
//!         │ (operations) │ not used yet │            │   a dispatch turns granted into charged
//!         └──────────────┴──────────────┴────────────┘   an end turns charged into free
//! ```
//!
//! The *limit* is what the controller of the agent allows, and never more than the *capacity*, which
//! the agent announced and enforces itself.
//!
//! *Invariant*: a grant is given only while `charged + granted ≤ limit` holds afterwards; one more for
//! what makes room for others, within the capacity. When the limit shrinks, nothing is taken away: the
//! ledger drains until there is room again.
//!
//! *An offer* is one permit that is given before anybody asks, while there is room and no demand; it
//! keeps its place. Whoever states a demand takes up an offer first, so that the place is never idle
//! while somebody waits. It is withdrawn only when the limit shrinks below it, so that `charged +
//! granted + offered ≤ limit` holds for as long as there is an offer.
//!
//! *Charged* is a set of operations, not a count: an operation that is sent again under a higher
//! fence, or that is found in an inventory, takes one permit however often it is named, and ending
//! it twice frees one permit.
//!
//! Every permit has a [`Purpose`]: whoever takes one out of the ledger, by whatever way, is told it, so
//! that what it holds elsewhere is given back exactly once.
//!
//! The ledger does not know time, sessions or the wire, and lives only as long as a session: the
//! next one's inventory starts a new ledger.

use std::num::NonZeroU64;

use protocol::ids::{Fence, GrantId, OperationId};
use protocol::limits::{CAPACITY_MAX, JOURNAL_OPEN_MAX};
use protocol::operation::{OpenOperation, Phase};

use super::home::LineId;
use crate::flow::fair::Cost;

/// Permits of one agent. An agent without work costs 24 bytes here.
#[derive(Default)]
pub(super) struct Ledger {
    work: Option<Box<Work>>,
    capacity: u32,
    limit: u32,
    /// Inline, as every idle agent has one.
    offered: Option<Offer>,
}

/// A grant's number and one, so that there being none takes no room.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Offer(NonZeroU64);

impl Offer {
    fn new(id: GrantId) -> Self {
        Self(NonZeroU64::MIN.saturating_add(id.0))
    }

    fn id(self) -> GrantId {
        GrantId(self.0.get() - 1)
    }
}

/// What a permit was given for: the line that it came from, and what that line was charged.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Purpose {
    /// Which line.
    pub line: LineId,
    /// Seconds of service that it was thought to take.
    pub cost: Cost,
}

#[derive(Default)]
struct Work {
    /// At most `CAPACITY_MAX`: each holds at least one unused permit.
    grants: Vec<Grant>,
    /// Sorted by operation; at most `JOURNAL_OPEN_MAX` from an inventory and `CAPACITY_MAX` from
    /// dispatches.
    charged: Vec<Charge>,
}

struct Grant {
    id: GrantId,
    unused: u32,
    purpose: Purpose,
}

/// An operation that takes a permit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    operation: OperationId,
    fence: Fence,
    /// The control plane was told that it is uncertain; only a report settles it now.
    uncertain: bool,
    /// What durations are compared with: a number of its line's kind (of its driver, on an offer), where
    /// the dispatch was seen here.
    pub kind: Option<u32>,
    /// Nothing where it came by an offer or an inventory.
    pub purpose: Option<Purpose>,
}

impl Charge {
    /// Which operation.
    pub(super) fn operation(&self) -> OperationId {
        self.operation
    }
}

/// An operation was sent on a permit.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Sent {
    /// What the permit had been given for; nothing where it was offered.
    pub used: Option<Purpose>,
    /// What a permit had been given for that the operation held before: it is free again.
    pub freed: Option<Purpose>,
}

/// The grant is unknown or used up, or the operation was already sent under a higher fence; then the
/// permit, which is free again, was given for `freed`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct NotCovered {
    /// What the permit was given for.
    pub freed: Option<Purpose>,
}

impl Ledger {
    /// A ledger that starts with what an agent's journal holds. Finished operations take no permit;
    /// lines over `JOURNAL_OPEN_MAX` are not looked at.
    pub(super) fn new(capacity: u32, inventory: &[OpenOperation]) -> Self {
        let mut charged: Vec<Charge> = inventory
            .iter()
            .take(JOURNAL_OPEN_MAX)
            .filter(|open| open.phase != Phase::Finished)
            .map(|open| Charge {
                operation: open.operation,
                fence: open.fence,
                uncertain: false,
                kind: None,
                purpose: None,
            })
            .collect();
        // Of two lines about one operation the higher fence counts.
        charged.sort_unstable_by(|a, b| (a.operation, b.fence).cmp(&(b.operation, a.fence)));
        charged.dedup_by_key(|charge| charge.operation);
        charged.shrink_to_fit();
        let mut ledger = Self {
            limit: CAPACITY_MAX,
            ..Self::default()
        };
        ledger.set_capacity(capacity);
        if !charged.is_empty() {
            ledger.work().charged = charged;
        }
        ledger
    }

    pub(super) fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity.min(CAPACITY_MAX);
    }

    /// What the agent takes at once, by its own word.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// What it is given at once; never more than the capacity.
    pub(super) fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// What it is given at once.
    pub(super) fn limit(&self) -> u32 {
        self.limit.min(self.capacity)
    }

    /// Operations that take a permit.
    pub(super) fn charged(&self) -> u32 {
        let count = self.work.as_ref().map_or(0, |work| work.charged.len());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Permits granted and not used yet.
    pub(super) fn granted(&self) -> u32 {
        self.grants().iter().map(|grant| grant.unused).sum()
    }

    /// Of those: for one line.
    pub(super) fn granted_to(&self, line: LineId) -> u32 {
        let grants = self.grants().iter();
        let of_line = grants.filter(|grant| grant.purpose.line == line);
        of_line.map(|grant| grant.unused).sum()
    }

    /// Room that neither operations nor grants nor the offer take.
    pub(super) fn free(&self) -> u32 {
        self.limit().saturating_sub(self.taken())
    }

    /// Room beyond the limit, for what makes room for others.
    pub(super) fn reserve(&self) -> u32 {
        self.capacity.saturating_sub(self.taken()).min(1)
    }

    fn taken(&self) -> u32 {
        let offered = u32::from(self.offered.is_some());
        self.charged() + self.granted() + offered
    }

    /// Whether a permit can be offered now, as long as nobody waits: there is room, and none is offered.
    pub(super) fn is_offerable(&self) -> bool {
        self.offered.is_none() && self.free() > 0
    }

    /// Offers one permit; only while it [`is_offerable`](Self::is_offerable).
    pub(super) fn offer(&mut self, id: GrantId) {
        debug_assert!(self.is_offerable());
        self.offered = Some(Offer::new(id));
    }

    /// Takes the offer back.
    pub(super) fn withdraw_offer(&mut self) -> Option<GrantId> {
        self.offered.take().map(Offer::id)
    }

    /// Takes the offer back if the limit has shrunk below it.
    pub(super) fn outgrown_offer(&mut self) -> Option<GrantId> {
        let outgrown = self.taken() > self.limit();
        self.offered.take_if(|_| outgrown).map(Offer::id)
    }

    /// Gives `permits` (more than 0) under a new id; the caller has seen that there is room.
    pub(super) fn grant(&mut self, id: GrantId, permits: u32, purpose: Purpose) {
        debug_assert!(permits > 0 && permits <= self.capacity.saturating_sub(self.taken()));
        self.work().grants.push(Grant {
            id,
            unused: permits,
            purpose,
        });
    }

    /// Whether a grant still holds an unused permit.
    pub(super) fn holds(&self, id: GrantId) -> bool {
        self.grants().iter().any(|grant| grant.id == id)
    }

    /// The line of a grant that still holds an unused permit.
    pub(super) fn line_of(&self, id: GrantId) -> Option<LineId> {
        let grant = self.grants().iter().find(|grant| grant.id == id)?;
        Some(grant.purpose.line)
    }

    /// Takes back up to `permits` unused ones of a grant: how many there were, and what for. Of an offer
    /// it is one, for nothing.
    pub(super) fn take_back(&mut self, id: GrantId, permits: u32) -> (u32, Option<Purpose>) {
        if permits > 0 && self.use_offer(id) {
            return (1, None);
        }
        let work = self.work.as_mut();
        let taken = work.and_then(|work| work.use_up(id, permits));
        self.tidy();
        taken.map_or((0, None), |(taken, purpose)| (taken, Some(purpose)))
    }

    /// Whether `id` was the offer, which is used up now. It was never part of the demand.
    fn use_offer(&mut self, id: GrantId) -> bool {
        self.offered
            .take_if(|offer| *offer == Offer::new(id))
            .is_some()
    }

    /// Takes back every unused permit that was granted: how many, and what for.
    pub(super) fn revoke(&mut self) -> Vec<(u32, Purpose)> {
        let revoked = match &mut self.work {
            Some(work) => work
                .grants
                .drain(..)
                .map(|grant| (grant.unused, grant.purpose))
                .collect(),
            None => Vec::new(),
        };
        self.tidy();
        revoked
    }

    /// Turns one permit of a grant into a charge.
    ///
    /// # Errors
    /// [`NotCovered`]: nothing is charged.
    pub(super) fn dispatch(
        &mut self,
        id: GrantId,
        operation: OperationId,
        fence: Fence,
        kind: u32,
    ) -> Result<Sent, NotCovered> {
        let mut purpose = None;
        if !self.use_offer(id) {
            let used = self.work.as_mut().and_then(|work| work.use_up(id, 1));
            let (_, used) = used.ok_or(NotCovered { freed: None })?;
            purpose = Some(used);
        }
        let covered = self.work().charge(Charge {
            operation,
            fence,
            uncertain: false,
            kind: Some(kind),
            purpose,
        });
        self.tidy();
        covered.map(|freed| Sent {
            used: purpose,
            freed,
        })
    }

    /// Whether this very dispatch is charged, and the control plane waits for its end.
    pub(super) fn expects(&self, operation: OperationId, fence: Fence) -> bool {
        let charge = self.work.as_ref().and_then(|work| work.find(operation));
        charge.is_some_and(|charge| charge.fence == fence && !charge.uncertain)
    }

    /// The agent knows the end of an operation, or never saw it, up to `fence`: its permit is free.
    /// A later dispatch, under a higher fence, stays charged. Answers with what was charged.
    pub(super) fn settle(&mut self, operation: OperationId, fence: Fence) -> Option<Charge> {
        let work = self.work.as_mut()?;
        let index = work.position(operation).ok()?;
        if work.charged[index].fence > fence {
            return None;
        }
        let charge = work.charged.remove(index);
        self.tidy();
        Some(charge)
    }

    /// Says of a charged operation, of which nothing is known, what it was granted for. Whether it did.
    pub(super) fn recall(
        &mut self,
        operation: OperationId,
        kind: Option<u32>,
        of: Purpose,
    ) -> bool {
        let Some(work) = &mut self.work else {
            return false;
        };
        let Ok(index) = work.position(operation) else {
            return false;
        };
        let charge = &mut work.charged[index];
        if charge.purpose.is_some() {
            return false;
        }
        charge.kind = kind;
        charge.purpose = Some(of);
        true
    }

    /// Marks an operation as uncertain, or as known to live.
    pub(super) fn set_uncertain(&mut self, operation: OperationId, fence: Fence, uncertain: bool) {
        if let Some(work) = &mut self.work
            && let Ok(index) = work.position(operation)
            && work.charged[index].fence == fence
        {
            work.charged[index].uncertain = uncertain;
        }
    }

    /// The operations whose end the control plane still waits for.
    pub(super) fn expected(&self) -> impl Iterator<Item = (OperationId, Fence)> + '_ {
        self.charges()
            .filter(|charge| !charge.uncertain)
            .map(|charge| (charge.operation, charge.fence))
    }

    /// Every operation that takes a permit.
    pub(super) fn charges(&self) -> impl Iterator<Item = &Charge> + '_ {
        self.work.iter().flat_map(|work| work.charged.iter())
    }

    /// Permits that were granted and not used: how many, and what for.
    pub(super) fn unused(&self) -> impl Iterator<Item = (u32, Purpose)> + '_ {
        let grants = self.grants().iter();
        grants.map(|grant| (grant.unused, grant.purpose))
    }

    fn grants(&self) -> &[Grant] {
        self.work.as_ref().map_or(&[][..], |work| &work.grants)
    }

    fn work(&mut self) -> &mut Work {
        self.work.get_or_insert_default()
    }

    /// An agent without work holds no memory for it.
    fn tidy(&mut self) {
        self.work
            .take_if(|work| work.grants.is_empty() && work.charged.is_empty());
    }
}

impl Work {
    fn position(&self, operation: OperationId) -> Result<usize, usize> {
        self.charged
            .binary_search_by_key(&operation, |charge| charge.operation)
    }

    fn find(&self, operation: OperationId) -> Option<&Charge> {
        let index = self.position(operation).ok()?;
        self.charged.get(index)
    }

    /// Takes up to `permits` out of a grant: how many it held, and what for.
    fn use_up(&mut self, id: GrantId, permits: u32) -> Option<(u32, Purpose)> {
        let index = self.grants.iter().position(|grant| grant.id == id)?;
        let grant = &mut self.grants[index];
        let (used, purpose) = (grant.unused.min(permits), grant.purpose);
        grant.unused -= used;
        if grant.unused == 0 {
            self.grants.swap_remove(index);
        }
        Some((used, purpose))
    }

    fn charge(&mut self, new: Charge) -> Result<Option<Purpose>, NotCovered> {
        match self.position(new.operation) {
            Ok(index) if new.fence < self.charged[index].fence => {
                Err(NotCovered { freed: new.purpose })
            }
            Ok(index) => {
                let old = std::mem::replace(&mut self.charged[index], new);
                Ok(old.purpose)
            }
            Err(index) => {
                self.charged.insert(index, new);
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::ProcessId;

    use super::*;

    fn operation(number: u128) -> OperationId {
        OperationId::new(ProcessId::from_bytes(number.to_be_bytes()), 0)
    }

    fn open(number: u128, fence: u64, phase: Phase) -> OpenOperation {
        OpenOperation {
            operation: operation(number),
            fence: Fence(fence),
            phase,
        }
    }

    fn purpose(line: u32) -> Purpose {
        Purpose {
            line: LineId(line),
            cost: Cost::default(),
        }
    }

    fn send(
        ledger: &mut Ledger,
        grant: u64,
        number: u128,
        fence: u64,
    ) -> Result<Option<Purpose>, NotCovered> {
        let sent = ledger.dispatch(GrantId(grant), operation(number), Fence(fence), 0);
        sent.map(|sent| sent.freed)
    }

    #[test]
    fn the_limit_is_what_is_free_and_never_more_than_the_capacity() {
        let mut ledger = Ledger::new(4, &[]);
        assert_eq!((ledger.limit(), ledger.free()), (4, 4));
        ledger.set_limit(2);
        assert_eq!((ledger.free(), ledger.reserve()), (2, 1));
        ledger.set_limit(9);
        ledger.grant(GrantId(1), 4, purpose(1));
        assert_eq!((ledger.free(), ledger.reserve()), (0, 0));
    }

    #[test]
    fn a_permit_remembers_what_it_was_given_for() {
        let mut ledger = Ledger::new(8, &[]);
        ledger.grant(GrantId(1), 3, purpose(5));
        ledger.grant(GrantId(2), 1, purpose(6));
        assert_eq!(ledger.granted_to(LineId(5)), 3);
        assert_eq!(ledger.line_of(GrantId(1)), Some(LineId(5)));
        assert_eq!(ledger.take_back(GrantId(1), 2), (2, Some(purpose(5))));
        assert_eq!(send(&mut ledger, 1, 1, 1), Ok(None));
        assert_eq!(ledger.line_of(GrantId(1)), None);
        assert_eq!(ledger.take_back(GrantId(1), 2), (0, None));
        let ended = ledger.settle(operation(1), Fence(1)).unwrap();
        assert_eq!(ended.purpose, Some(purpose(5)));
        assert_eq!(ledger.revoke(), [(1, purpose(6))]);
        assert!(ledger.work.is_none(), "an agent without work holds memory");
    }

    #[test]
    fn finished_operations_in_an_inventory_take_no_permit() {
        let inventory = [
            open(1, 1, Phase::Running),
            open(2, 1, Phase::Finished),
            open(3, 1, Phase::Accepted),
            open(1, 2, Phase::Running),
        ];
        let mut ledger = Ledger::new(4, &inventory);
        assert_eq!((ledger.charged(), ledger.free()), (2, 2));
        assert!(ledger.expects(operation(1), Fence(2)));
        assert!(ledger.recall(operation(3), None, purpose(7)));
        assert!(!ledger.recall(operation(3), None, purpose(8)), "known");
        assert!(!ledger.recall(operation(2), None, purpose(7)), "not open");
        let ended = ledger.settle(operation(3), Fence(1)).unwrap();
        assert_eq!(ended.purpose, Some(purpose(7)));
    }

    #[test]
    fn one_operation_takes_one_permit_however_often_it_is_sent() {
        let mut ledger = Ledger::new(3, &[open(1, 1, Phase::Running)]);
        ledger.grant(GrantId(1), 1, purpose(1));
        assert_eq!(send(&mut ledger, 1, 1, 2), Ok(None), "it held nothing");
        ledger.grant(GrantId(2), 1, purpose(2));
        let freed = send(&mut ledger, 2, 1, 3);
        assert_eq!(freed, Ok(Some(purpose(1))), "the permit that it held");
        assert_eq!(ledger.charged(), 1);
        assert!(ledger.settle(operation(1), Fence(2)).is_none());
        assert_eq!(ledger.charged(), 1, "the end of an older dispatch");
        assert!(ledger.settle(operation(1), Fence(3)).is_some());
        assert!(ledger.settle(operation(1), Fence(3)).is_none());
        assert_eq!(ledger.charged(), 0);
    }

    #[test]
    fn a_dispatch_under_a_lower_fence_is_not_covered_and_gives_its_permit_back() {
        let mut ledger = Ledger::new(2, &[open(1, 5, Phase::Running)]);
        ledger.grant(GrantId(1), 1, purpose(1));
        let freed = Some(purpose(1));
        assert_eq!(send(&mut ledger, 1, 1, 4), Err(NotCovered { freed }));
        assert_eq!((ledger.granted(), ledger.charged()), (0, 1));
        let freed = None;
        assert_eq!(send(&mut ledger, 1, 1, 6), Err(NotCovered { freed }));
    }

    #[test]
    fn a_shrinking_limit_drains_and_cancels_nothing() {
        let mut ledger = Ledger::new(4, &[]);
        ledger.grant(GrantId(1), 4, purpose(1));
        ledger.set_limit(1);
        for number in 0..4 {
            assert_eq!(send(&mut ledger, 1, number, 1), Ok(None));
        }
        for number in 0..3 {
            ledger.settle(operation(number), Fence(1));
            assert_eq!(ledger.free(), 0);
        }
        ledger.settle(operation(3), Fence(1));
        assert_eq!(ledger.free(), 1);
    }

    #[test]
    fn a_capacity_beyond_the_limit_is_cut() {
        let ledger = Ledger::new(u32::MAX, &[]);
        assert_eq!(ledger.free(), CAPACITY_MAX);
    }
}
