//! Agent servers that are told to stop, and wait until others have their groups.
//!
//! They say so whenever they ask for their lease. From the first time on they are given nothing, as if somebody had
//! drained them, and give theirs away at whatever pace is needed. The mark in the store tells people, and ends with the
//! run.

use std::time::{Duration, Instant};

use protocol::ids::GatewayId;
use protocol::link::Leave;

use super::balance::{Field, Pace};
use super::{Gateways, Placed};
use crate::clock;
use crate::store::{Store, StoreError};

/// All groups are given away in so much of the time that is left, nearly: their agents need the rest.
const SHARE: u64 = 3;

/// One that leaves.
pub(super) struct Leaving {
    /// It waits until then.
    until: Instant,
    /// The store knows.
    marked: bool,
    /// Whether it may, by what was known last.
    may: Leave,
}

impl Gateways {
    /// An agent server says that it stops, after so much time at most.
    pub fn leaves(&self, run: GatewayId, within: Duration) {
        let mut inner = self.lock();
        let until = clock::monotonic() + within;
        if let Some(leaving) = inner.leaving.get_mut(&run) {
            leaving.until = until;
            return;
        }
        tracing::info!(%run, ?within, "an agent server is told to stop; its groups go to others before it does");
        let leaving = Leaving {
            until,
            marked: false,
            may: Leave::NotYet,
        };
        inner.leaving.insert(run, leaving);
    }

    /// Whether an agent server may stop.
    pub fn may_leave(&self, run: GatewayId) -> Leave {
        let inner = self.lock();
        let leaving = inner.leaving.get(&run);
        leaving.map_or(Leave::NotYet, |leaving| leaving.may)
    }

    /// Those that leave.
    pub(super) fn told_to_stop(&self) -> Vec<GatewayId> {
        self.lock().leaving.keys().copied().collect()
    }

    /// Says in the store which do.
    ///
    /// # Errors
    /// The store failed; it is said at the next look.
    pub(super) async fn mark(&self, store: &Store) -> Result<(), StoreError> {
        let new: Vec<GatewayId> = {
            let inner = self.lock();
            let new = inner.leaving.iter().filter(|(_, leaving)| !leaving.marked);
            new.map(|(run, _)| *run).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        store.drain_runs(new.clone()).await?;
        let mut inner = self.lock();
        for run in new {
            if let Some(leaving) = inner.leaving.get_mut(&run) {
                leaving.marked = true;
            }
        }
        Ok(())
    }

    /// As many groups of those that leave as have to go now for all to be gone in time; at least what `pace` has.
    pub(super) fn hurry(&self, pace: Pace, groups: &[Placed], now: Instant) -> Pace {
        let inner = self.lock();
        let needed = inner.leaving.iter().map(|(run, leaving)| {
            let owned = groups.iter().filter(|one| one.owner == Some(*run)).count() as u64;
            let left = leaving.until.saturating_duration_since(now).as_secs();
            (owned * SHARE).div_ceil(left.max(1))
        });
        let needed = usize::try_from(needed.sum::<u64>()).unwrap_or(usize::MAX);
        Pace {
            hurried: match pace.hurried {
                0 => 0,
                least => needed.max(least),
            },
            ..pace
        }
    }

    /// Judges which of them may stop, where groups are so.
    pub(super) fn judge(&self, field: &Field, groups: &[Placed]) {
        let mut inner = self.lock();
        let stay = |run: &GatewayId| !field.leaving.contains(run);
        let alone = !field.alive.iter().any(stay);
        for (run, leaving) in &mut inner.leaving {
            let owns = groups.iter().any(|placed| placed.owner == Some(*run));
            leaving.may = match (owns, alone) {
                (false, _) => Leave::Empty,
                (true, true) => Leave::Alone,
                (true, false) => Leave::NotYet,
            };
        }
    }
}
