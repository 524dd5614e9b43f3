//! The ledger of one agent: how many operations it may still be given.
//!
//! ```text
//!   capacity ┌──────────────┬──────────────┬────────────┐
//!            │ charged      │ granted,     │ free       │   a grant takes from free
//!            │ (operations) │ not used yet │            │   a dispatch turns granted into charged
//!            └──────────────┴──────────────┴────────────┘   an end turns charged into free
//! ```
//!
//! *Invariant*: a grant is given only while `charged + granted ≤ capacity` holds afterwards. When
//! the capacity shrinks, nothing is taken away: the ledger drains until there is room again.
//!
//! *An offer* is one permit that is given before anybody asks, while there is room and no demand; it
//! keeps its place. Whoever states a demand takes up an offer first, so that the place is never idle
//! while somebody waits. It is withdrawn only when the capacity shrinks below it, so that `charged +
//! granted + offered ≤ capacity` holds for as long as there is an offer.
//!
//! *Charged* is a set of operations, not a count: an operation that is sent again under a higher
//! fence, or that is found in an inventory, takes one permit however often it is named, and ending
//! it twice frees one permit.
//!
//! *Demand* counts the operations that the control plane has not dispatched yet, those for which it
//! already holds a permit included. So a dispatch lowers it, and so does a permit that comes back
//! unused: what was not needed is not offered again until the control plane says so. A figure that
//! is repeated changes nothing.
//!
//! The ledger does not know time, sessions or the wire, and lives only as long as a session: the
//! next one's inventory starts a new ledger.

use std::num::NonZeroU64;

use protocol::ids::{Fence, GrantId, OperationId};
use protocol::limits::{CAPACITY_MAX, JOURNAL_OPEN_MAX};
use protocol::operation::{OpenOperation, Phase};

/// Permits of one agent. An agent without work costs 24 bytes here.
#[derive(Default)]
pub(super) struct Ledger {
    work: Option<Box<Work>>,
    demand: u32,
    capacity: u32,
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
}

/// An operation that takes a permit.
#[derive(Clone, Copy)]
struct Charge {
    operation: OperationId,
    fence: Fence,
    /// The control plane was told that it is uncertain; only a report settles it now.
    uncertain: bool,
}

/// The grant is unknown or used up, or the operation was already sent under a higher fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NotCovered;

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
            })
            .collect();
        // Of two lines about one operation the higher fence counts.
        charged.sort_unstable_by(|a, b| (a.operation, b.fence).cmp(&(b.operation, a.fence)));
        charged.dedup_by_key(|charge| charge.operation);
        charged.shrink_to_fit();
        let mut ledger = Self::default();
        ledger.set_capacity(capacity);
        if !charged.is_empty() {
            ledger.work().charged = charged;
        }
        ledger
    }

    pub(super) fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity.min(CAPACITY_MAX);
    }

    pub(super) fn set_demand(&mut self, demand: u32) {
        self.demand = demand;
    }

    /// Operations that take a permit.
    pub(super) fn charged(&self) -> u32 {
        let count = self.work.as_ref().map_or(0, |work| work.charged.len());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Permits granted and not used yet.
    pub(super) fn granted(&self) -> u32 {
        let grants = self.work.as_ref().map_or(&[][..], |work| &work.grants);
        grants.iter().map(|grant| grant.unused).sum()
    }

    /// How many permits can be granted now: there is room for them, and somebody waits for them.
    pub(super) fn grantable(&self) -> u32 {
        let waiting = self.demand.saturating_sub(self.granted());
        self.free().min(waiting)
    }

    /// Room that neither operations nor grants nor the offer take.
    fn free(&self) -> u32 {
        self.capacity.saturating_sub(self.taken())
    }

    fn taken(&self) -> u32 {
        let offered = u32::from(self.offered.is_some());
        self.charged() + self.granted() + offered
    }

    /// Whether a permit can be offered now: there is room, nobody waits, and none is offered.
    pub(super) fn is_offerable(&self) -> bool {
        self.offered.is_none() && self.free() > 0 && self.demand <= self.granted()
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

    /// Takes the offer back if the capacity has shrunk below it.
    pub(super) fn outgrown_offer(&mut self) -> Option<GrantId> {
        let outgrown = self.taken() > self.capacity;
        self.offered.take_if(|_| outgrown).map(Offer::id)
    }

    /// Gives `permits` (more than 0, at most [`grantable`](Self::grantable)) under a new id.
    pub(super) fn grant(&mut self, id: GrantId, permits: u32) {
        debug_assert!(permits > 0 && permits <= self.grantable());
        self.work().grants.push(Grant {
            id,
            unused: permits,
        });
    }

    /// Whether a grant still holds an unused permit.
    pub(super) fn holds(&self, id: GrantId) -> bool {
        let grants = self.work.as_ref().map_or(&[][..], |work| &work.grants);
        grants.iter().any(|grant| grant.id == id)
    }

    /// Takes back up to `permits` unused ones of a grant, and says how many there were.
    pub(super) fn take_back(&mut self, id: GrantId, permits: u32) -> u32 {
        if permits > 0 && self.use_offer(id) {
            return 1;
        }
        let taken = self
            .work
            .as_mut()
            .map_or(0, |work| work.use_up(id, permits));
        self.demand = self.demand.saturating_sub(taken);
        self.tidy();
        taken
    }

    /// Whether `id` was the offer, which is used up now. It was never part of the demand.
    fn use_offer(&mut self, id: GrantId) -> bool {
        self.offered
            .take_if(|offer| *offer == Offer::new(id))
            .is_some()
    }

    /// Takes back every unused permit that was granted; the demand stays.
    pub(super) fn revoke(&mut self) {
        if let Some(work) = &mut self.work {
            work.grants.clear();
        }
        self.tidy();
    }

    /// Turns one permit of a grant into a charge.
    ///
    /// # Errors
    /// [`NotCovered`]: nothing is charged. A permit that the grant did hold is free again.
    pub(super) fn dispatch(
        &mut self,
        id: GrantId,
        operation: OperationId,
        fence: Fence,
    ) -> Result<(), NotCovered> {
        if !self.use_offer(id) {
            if self.work.as_mut().map_or(0, |work| work.use_up(id, 1)) == 0 {
                return Err(NotCovered);
            }
            self.demand = self.demand.saturating_sub(1);
        }
        let covered = self.work().charge(operation, fence);
        self.tidy();
        covered
    }

    /// Whether this very dispatch is charged, and the control plane waits for its end.
    pub(super) fn expects(&self, operation: OperationId, fence: Fence) -> bool {
        let charge = self.work.as_ref().and_then(|work| work.find(operation));
        charge.is_some_and(|charge| charge.fence == fence && !charge.uncertain)
    }

    /// The agent knows the end of an operation, or never saw it, up to `fence`: its permit is free.
    /// A later dispatch, under a higher fence, stays charged.
    pub(super) fn settle(&mut self, operation: OperationId, fence: Fence) {
        if let Some(work) = &mut self.work
            && let Ok(index) = work.position(operation)
            && work.charged[index].fence <= fence
        {
            work.charged.remove(index);
        }
        self.tidy();
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
        let charged = self.work.as_ref().map_or(&[][..], |work| &work.charged);
        charged
            .iter()
            .filter(|charge| !charge.uncertain)
            .map(|charge| (charge.operation, charge.fence))
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

    /// Takes up to `permits` out of a grant, and says how many it held.
    fn use_up(&mut self, id: GrantId, permits: u32) -> u32 {
        let Some(index) = self.grants.iter().position(|grant| grant.id == id) else {
            return 0;
        };
        let grant = &mut self.grants[index];
        let used = grant.unused.min(permits);
        grant.unused -= used;
        if grant.unused == 0 {
            self.grants.swap_remove(index);
        }
        used
    }

    fn charge(&mut self, operation: OperationId, fence: Fence) -> Result<(), NotCovered> {
        match self.position(operation) {
            Ok(index) if fence < self.charged[index].fence => return Err(NotCovered),
            Ok(index) => {
                self.charged[index].fence = fence;
                self.charged[index].uncertain = false;
            }
            Err(index) => self.charged.insert(
                index,
                Charge {
                    operation,
                    fence,
                    uncertain: false,
                },
            ),
        }
        Ok(())
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

    #[test]
    fn a_grant_never_exceeds_demand_or_room() {
        let mut ledger = Ledger::new(4, &[]);
        assert_eq!(ledger.grantable(), 0);
        ledger.set_demand(2);
        assert_eq!(ledger.grantable(), 2);
        ledger.set_demand(9);
        assert_eq!(ledger.grantable(), 4);
        ledger.grant(GrantId(1), 4);
        assert_eq!(ledger.grantable(), 0);
    }

    #[test]
    fn repeating_a_demand_changes_nothing() {
        let mut ledger = Ledger::new(8, &[]);
        ledger.set_demand(3);
        ledger.grant(GrantId(1), 3);
        ledger.set_demand(3);
        assert_eq!(ledger.grantable(), 0);
        ledger.dispatch(GrantId(1), operation(1), Fence(1)).unwrap();
        ledger.set_demand(2);
        assert_eq!(ledger.grantable(), 0);
    }

    #[test]
    fn a_permit_that_comes_back_is_not_offered_again_unasked() {
        let mut ledger = Ledger::new(8, &[]);
        ledger.set_demand(3);
        ledger.grant(GrantId(1), 3);
        assert_eq!(ledger.take_back(GrantId(1), 2), 2);
        assert_eq!(ledger.take_back(GrantId(1), 2), 1);
        assert_eq!(ledger.take_back(GrantId(1), 2), 0);
        assert_eq!(ledger.grantable(), 0);
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
        ledger.set_demand(9);
        assert_eq!(ledger.charged(), 2);
        assert_eq!(ledger.grantable(), 2);
        assert!(ledger.expects(operation(1), Fence(2)));
    }

    #[test]
    fn one_operation_takes_one_permit_however_often_it_is_sent() {
        let mut ledger = Ledger::new(2, &[open(1, 1, Phase::Running)]);
        ledger.set_demand(1);
        ledger.grant(GrantId(1), 1);
        ledger.dispatch(GrantId(1), operation(1), Fence(2)).unwrap();
        assert_eq!(ledger.charged(), 1);
        ledger.settle(operation(1), Fence(1));
        assert_eq!(
            ledger.charged(),
            1,
            "the end of an older dispatch frees nothing"
        );
        ledger.settle(operation(1), Fence(2));
        ledger.settle(operation(1), Fence(2));
        assert_eq!(ledger.charged(), 0);
    }

    #[test]
    fn a_dispatch_under_a_lower_fence_is_not_covered_and_gives_its_permit_back() {
        let mut ledger = Ledger::new(2, &[open(1, 5, Phase::Running)]);
        ledger.set_demand(1);
        ledger.grant(GrantId(1), 1);
        let lower = ledger.dispatch(GrantId(1), operation(1), Fence(4));
        assert_eq!(lower, Err(NotCovered));
        assert_eq!((ledger.granted(), ledger.charged()), (0, 1));
    }

    #[test]
    fn a_shrinking_capacity_drains_and_cancels_nothing() {
        let mut ledger = Ledger::new(4, &[]);
        ledger.set_demand(4);
        ledger.grant(GrantId(1), 4);
        ledger.set_capacity(1);
        for number in 0..4 {
            let sent = ledger.dispatch(GrantId(1), operation(number), Fence(1));
            assert_eq!(sent, Ok(()));
        }
        ledger.set_demand(9);
        for number in 0..3 {
            ledger.settle(operation(number), Fence(1));
            assert_eq!(ledger.grantable(), 0);
        }
        ledger.settle(operation(3), Fence(1));
        assert_eq!(ledger.grantable(), 1);
    }

    #[test]
    fn a_capacity_beyond_the_limit_is_cut() {
        let mut ledger = Ledger::new(u32::MAX, &[]);
        ledger.set_demand(u32::MAX);
        assert_eq!(ledger.grantable(), CAPACITY_MAX);
    }
}
