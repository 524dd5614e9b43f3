//! What one agent's journal says: a pure fold over [`Record`]s, and the rules for known operations.
//!
//! ```text
//!              Accepted            Finished           Forgotten
//!   (unseen) ───────────▶ open ───────────▶ finished ──────────▶ (unseen)
//!      │                    ▲                   │ Accepted again: only after a transient
//!      │ Tombstone          │ Accepted with     │ failure, and only with a higher fence
//!      ▼                    │ a higher fence    ▼
//!   tombstone ──────────────┘                 open
//! ```
//!
//! It decides nothing about capacity, drivers or deadlines: that is the session's part.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::ids::{Epoch, Fence, OperationId};
use protocol::operation::{Command, Outcome, OutcomeStatus};

use super::record::Record;

/// Tombstones that one agent keeps; beyond, the oldest goes. A tombstone only has to outlive the
/// frames that were in flight when it was made.
const TOMBSTONES_MAX: usize = 256;

/// The state of one agent's journal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    epoch: Epoch,
    session_count: u64,
    entries: BTreeMap<OperationId, Entry>,
    tombstones: usize,
    next_order: u64,
}

/// What is known about one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The highest fence seen.
    pub fence: Fence,
    /// How far it is.
    pub body: Body,
}

/// How far an operation is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Accepted, not ended.
    Open(Arc<Command>),
    /// Ended.
    Finished(Arc<Outcome>),
    /// Never seen, and to be refused.
    Tombstone {
        /// Because it was cancelled.
        cancelled: bool,
        /// Its age: lower is older.
        order: u64,
    },
}

/// What the journal says to a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not seen before, or worth running again: the caller may accept it.
    New,
    /// A higher fence has been seen.
    Stale(Fence),
    /// A tombstone says that it was cancelled.
    Cancelled,
    /// It is open: the command joins the run. `raise`: its fence is higher than the one known.
    Open {
        /// Whether a [`Record::Raised`] is due.
        raise: bool,
    },
    /// It has ended: answer from the journal.
    Finished {
        /// How it ended.
        outcome: Arc<Outcome>,
        /// Whether a [`Record::Raised`] is due.
        raise: bool,
    },
}

/// Takes back one applied record.
#[derive(Debug)]
pub struct Undo {
    epoch: Epoch,
    session_count: u64,
    entries: Vec<(OperationId, Option<Entry>)>,
}

impl State {
    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Sessions begun.
    pub fn session_count(&self) -> u64 {
        self.session_count
    }

    /// What is known about an operation.
    pub fn entry(&self, operation: OperationId) -> Option<&Entry> {
        self.entries.get(&operation)
    }

    /// Everything known, in order of operation id.
    pub fn entries(&self) -> impl Iterator<Item = (OperationId, &Entry)> {
        self.entries
            .iter()
            .map(|(operation, entry)| (*operation, entry))
    }

    /// Operations accepted and not forgotten; at most `limits::JOURNAL_OPEN_MAX` by the session's
    /// care.
    pub fn open_count(&self) -> usize {
        self.entries.len() - self.tombstones
    }

    /// What to answer to a command, as far as the journal knows.
    pub fn judge(&self, operation: OperationId, fence: Fence) -> Verdict {
        let Some(entry) = self.entries.get(&operation) else {
            return Verdict::New;
        };
        let raise = fence > entry.fence;
        match &entry.body {
            Body::Tombstone { cancelled, .. } if !raise => match cancelled {
                true => Verdict::Cancelled,
                false => Verdict::Stale(entry.fence),
            },
            Body::Tombstone { .. } => Verdict::New,
            _ if fence < entry.fence => Verdict::Stale(entry.fence),
            Body::Open(_) => Verdict::Open { raise },
            // Failed without an effect, and claimed anew: the attempt that the failure asked for.
            Body::Finished(outcome)
                if raise && outcome.status == OutcomeStatus::FailedTransient =>
            {
                Verdict::New
            }
            Body::Finished(outcome) => Verdict::Finished {
                outcome: Arc::clone(outcome),
                raise,
            },
        }
    }

    /// Folds one record in. The returned [`Undo`] takes it back, newest first.
    pub fn apply(&mut self, record: &Record) -> Undo {
        let mut undo = Undo {
            epoch: self.epoch,
            session_count: self.session_count,
            entries: Vec::new(),
        };
        match record {
            Record::SessionCount(count) => self.session_count = self.session_count.max(*count),
            Record::Epoch(epoch) => self.epoch = self.epoch.max(*epoch),
            Record::Accepted(command) => {
                let body = Body::Open(Arc::clone(command));
                self.put(&mut undo, command.operation, command.fence, body);
            }
            Record::Raised { operation, fence } => {
                if let Some(Entry { body, .. }) = self.entries.get(operation) {
                    let body = body.clone();
                    self.put(&mut undo, *operation, *fence, body);
                }
            }
            Record::Finished {
                operation,
                fence,
                outcome,
            } => {
                let body = Body::Finished(Arc::clone(outcome));
                self.put(&mut undo, *operation, *fence, body);
            }
            Record::Tombstone {
                operation,
                fence,
                cancelled,
            } => {
                let body = Body::Tombstone {
                    cancelled: *cancelled,
                    order: self.next_order,
                };
                self.next_order += 1;
                self.put(&mut undo, *operation, *fence, body);
                self.evict_a_tombstone(&mut undo);
            }
            Record::Forgotten(operation) => self.remove(&mut undo, *operation),
        }
        undo
    }

    /// Takes a record back. Undo in the opposite order of [`State::apply`].
    pub fn undo(&mut self, undo: Undo) {
        self.epoch = undo.epoch;
        self.session_count = undo.session_count;
        for (operation, entry) in undo.entries.into_iter().rev() {
            self.replace(operation, entry);
        }
    }

    /// The shortest list of records that leads to this state.
    pub fn snapshot(&self) -> impl Iterator<Item = Record> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        // Tombstones keep their age.
        entries.sort_by_key(|(_, entry)| match entry.body {
            Body::Tombstone { order, .. } => Some(order),
            _ => None,
        });
        let numbers = [
            (self.session_count > 0).then_some(Record::SessionCount(self.session_count)),
            (self.epoch > Epoch(0)).then_some(Record::Epoch(self.epoch)),
        ];
        let entries = entries.into_iter().flat_map(|(operation, entry)| {
            let (operation, fence) = (*operation, entry.fence);
            let (first, raised) = match &entry.body {
                Body::Open(command) => (
                    Record::Accepted(Arc::clone(command)),
                    (command.fence < fence).then_some(Record::Raised { operation, fence }),
                ),
                Body::Finished(outcome) => {
                    let outcome = Arc::clone(outcome);
                    let record = Record::Finished {
                        operation,
                        fence,
                        outcome,
                    };
                    (record, None)
                }
                Body::Tombstone { cancelled, .. } => {
                    let cancelled = *cancelled;
                    let record = Record::Tombstone {
                        operation,
                        fence,
                        cancelled,
                    };
                    (record, None)
                }
            };
            std::iter::once(first).chain(raised)
        });
        numbers.into_iter().flatten().chain(entries)
    }

    /// About how many bytes a snapshot of this state takes.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.entries.values().map(entry_bytes).sum::<u64>() + 64
    }

    /// Inserts or replaces; a fence never goes down.
    fn put(&mut self, undo: &mut Undo, operation: OperationId, fence: Fence, body: Body) {
        let known = self
            .entries
            .get(&operation)
            .map_or(Fence(0), |entry| entry.fence);
        let fence = fence.max(known);
        let previous = self.replace(operation, Some(Entry { fence, body }));
        undo.entries.push((operation, previous));
    }

    fn remove(&mut self, undo: &mut Undo, operation: OperationId) {
        let previous = self.replace(operation, None);
        undo.entries.push((operation, previous));
    }

    fn replace(&mut self, operation: OperationId, entry: Option<Entry>) -> Option<Entry> {
        self.tombstones += usize::from(entry.as_ref().is_some_and(Entry::is_tombstone));
        let previous = match entry {
            Some(entry) => self.entries.insert(operation, entry),
            None => self.entries.remove(&operation),
        };
        self.tombstones -= usize::from(previous.as_ref().is_some_and(Entry::is_tombstone));
        previous
    }

    fn evict_a_tombstone(&mut self, undo: &mut Undo) {
        if self.tombstones <= TOMBSTONES_MAX {
            return;
        }
        let tombstones = self
            .entries
            .iter()
            .filter_map(|(operation, entry)| match entry.body {
                Body::Tombstone { order, .. } => Some((order, *operation)),
                _ => None,
            });
        if let Some((_, oldest)) = tombstones.min() {
            self.remove(undo, oldest);
        }
    }
}

impl Entry {
    fn is_tombstone(&self) -> bool {
        matches!(self.body, Body::Tombstone { .. })
    }
}

fn entry_bytes(entry: &Entry) -> u64 {
    let payload = match &entry.body {
        Body::Open(command) => command.input.len() + command.kind.len(),
        Body::Finished(outcome) => outcome.output.len() + outcome.message.len(),
        Body::Tombstone { .. } => 0,
    };
    payload as u64 + 96
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;
    use protocol::ids::ProcessId;
    use uuid::Uuid;

    use super::super::record::tests::any_record;
    use super::*;

    fn operation(n: u128) -> OperationId {
        OperationId::new(ProcessId(Uuid::from_u128(n)), 0)
    }

    fn accepted(n: u128, fence: u64) -> Record {
        Record::Accepted(Arc::new(Command {
            operation: operation(n),
            fence: Fence(fence),
            kind: "exec".into(),
            input: Bytes::new(),
            deadline_ms: 0,
        }))
    }

    fn finished(n: u128, fence: u64, status: OutcomeStatus) -> Record {
        Record::Finished {
            operation: operation(n),
            fence: Fence(fence),
            outcome: Arc::new(Outcome {
                status,
                exit_code: None,
                message: String::new(),
                output: Bytes::new(),
                service_time: Duration::ZERO,
            }),
        }
    }

    fn state(records: &[Record]) -> State {
        let mut state = State::default();
        for record in records {
            state.apply(record);
        }
        state
    }

    #[test]
    fn an_open_operation_takes_the_same_and_higher_fences_and_refuses_lower_ones() {
        let state = state(&[accepted(1, 5)]);
        let judge = |fence| state.judge(operation(1), Fence(fence));
        assert_eq!(judge(4), Verdict::Stale(Fence(5)));
        assert_eq!(judge(5), Verdict::Open { raise: false });
        assert_eq!(judge(6), Verdict::Open { raise: true });
        assert_eq!(state.judge(operation(2), Fence(1)), Verdict::New);
    }

    #[test]
    fn a_success_is_never_run_again_and_a_transient_failure_only_under_a_higher_fence() {
        let done = state(&[accepted(1, 1), finished(1, 1, OutcomeStatus::Succeeded)]);
        assert!(matches!(
            done.judge(operation(1), Fence(9)),
            Verdict::Finished { raise: true, .. }
        ));
        let failed = state(&[
            accepted(1, 1),
            finished(1, 1, OutcomeStatus::FailedTransient),
        ]);
        assert!(matches!(
            failed.judge(operation(1), Fence(1)),
            Verdict::Finished { .. }
        ));
        assert_eq!(failed.judge(operation(1), Fence(2)), Verdict::New);
    }

    #[test]
    fn a_tombstone_refuses_what_is_late_and_lets_newer_claims_pass() {
        let tombstone = |cancelled| Record::Tombstone {
            operation: operation(1),
            fence: Fence(3),
            cancelled,
        };
        let asked = state(&[tombstone(false)]);
        assert_eq!(
            asked.judge(operation(1), Fence(3)),
            Verdict::Stale(Fence(3))
        );
        assert_eq!(asked.judge(operation(1), Fence(4)), Verdict::New);
        assert_eq!(asked.open_count(), 0);
        let cancelled = state(&[tombstone(true)]);
        assert_eq!(cancelled.judge(operation(1), Fence(3)), Verdict::Cancelled);
        assert_eq!(cancelled.judge(operation(1), Fence(4)), Verdict::New);
    }

    #[test]
    fn tombstones_are_bounded_and_the_oldest_goes_first() {
        let tombstone = |n| Record::Tombstone {
            operation: operation(n),
            fence: Fence(1),
            cancelled: true,
        };
        // The first has the highest id, so that age and order of ids differ.
        let mut state = state(&[tombstone(u128::MAX)]);
        for n in 0..TOMBSTONES_MAX as u128 {
            state.apply(&tombstone(n));
        }
        assert_eq!(state.tombstones, TOMBSTONES_MAX);
        assert_eq!(state.judge(operation(u128::MAX), Fence(1)), Verdict::New);
        assert_eq!(state.judge(operation(0), Fence(1)), Verdict::Cancelled);
    }

    proptest! {
        #[test]
        fn a_snapshot_leads_to_the_same_answers(records in prop::collection::vec(any_record(), 0..60)) {
            let original = state(&records);
            let snapshot: Vec<_> = original.snapshot().collect();
            let copy = state(&snapshot);
            prop_assert_eq!(copy.epoch(), original.epoch());
            prop_assert_eq!(copy.session_count(), original.session_count());
            prop_assert_eq!(copy.open_count(), original.open_count());
            for n in 0..6 {
                for fence in 0..8 {
                    let (id, fence) = (operation(n), Fence(fence));
                    prop_assert_eq!(copy.judge(id, fence), original.judge(id, fence));
                }
            }
        }

        #[test]
        fn undo_takes_everything_back(
            before in prop::collection::vec(any_record(), 0..30),
            after in prop::collection::vec(any_record(), 0..30),
        ) {
            let original = state(&before);
            let mut changed = original.clone();
            let undos: Vec<_> = after.iter().map(|record| changed.apply(record)).collect();
            for undo in undos.into_iter().rev() {
                changed.undo(undo);
            }
            // The order counter may run ahead; it only has to grow.
            changed.next_order = original.next_order;
            prop_assert_eq!(changed, original);
        }

        #[test]
        fn epochs_counts_and_fences_never_go_down(records in prop::collection::vec(any_record(), 0..60)) {
            let mut state = State::default();
            for record in &records {
                let before = state.clone();
                state.apply(record);
                prop_assert!(state.epoch() >= before.epoch());
                prop_assert!(state.session_count() >= before.session_count());
                for (id, entry) in before.entries() {
                    if let Some(now) = state.entry(id) {
                        prop_assert!(now.fence >= entry.fence);
                    }
                }
            }
        }
    }
}
