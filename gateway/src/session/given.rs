//! Which operations an agent may speak about: those that its inventory named, that it was sent, or
//! that it was asked about. Words about any other are foreign and close the session.
//!
//! An operation that is over stays allowed for a while: an agent may report it unasked and then
//! once more because a query crossed that report.

use std::collections::VecDeque;

use protocol::ids::OperationId;
use protocol::limits::{COMMAND_STREAMS_MAX, JOURNAL_OPEN_MAX, OPERATIONS_PER_FRAME_MAX};

/// Operations that an agent holds, by what the gateway knows.
const CURRENT_MAX: usize = JOURNAL_OPEN_MAX + OPERATIONS_PER_FRAME_MAX;
/// Operations that are over, remembered at least so many.
const RECENT: usize = 4 * COMMAND_STREAMS_MAX;

/// See the module. No heap memory while empty.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Sorted.
    current: Vec<OperationId>,
    recent: VecDeque<OperationId>,
}

impl Given {
    /// The agent may speak about this operation from now on.
    pub(crate) fn insert(&mut self, operation: OperationId) {
        if let Err(place) = self.current.binary_search(&operation) {
            if self.current.len() >= CURRENT_MAX {
                // An agent holds no more than its journal; what is beyond that is long over.
                let oldest = self.current.remove(0);
                self.remember(oldest, RECENT);
                return self.insert(operation);
            }
            self.current.insert(place, operation);
        }
    }

    /// These operations are over.
    pub(crate) fn retire(&mut self, operations: &[OperationId]) {
        let keep = operations.len().max(RECENT);
        for operation in operations {
            if let Ok(place) = self.current.binary_search(operation) {
                self.current.remove(place);
                self.remember(*operation, keep);
            }
        }
        if self.current.is_empty() {
            self.current = Vec::new();
        }
    }

    /// Whether the agent may speak about the operation.
    pub(crate) fn contains(&self, operation: OperationId) -> bool {
        self.current.binary_search(&operation).is_ok() || self.recent.contains(&operation)
    }

    fn remember(&mut self, operation: OperationId, keep: usize) {
        while self.recent.len() >= keep {
            self.recent.pop_front();
        }
        self.recent.push_back(operation);
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::ProcessId;

    use super::*;

    fn operation(n: u128) -> OperationId {
        OperationId::new(ProcessId::from_bytes(n.to_be_bytes()), 0)
    }

    #[test]
    fn an_operation_may_be_spoken_of_from_giving_until_some_time_after_its_end() {
        let mut given = Given::default();
        assert!(!given.contains(operation(1)));
        given.insert(operation(1));
        given.insert(operation(1));
        assert!(given.contains(operation(1)));
        given.retire(&[operation(1)]);
        assert!(
            given.contains(operation(1)),
            "a report may have crossed the end"
        );
        for n in 2..=1 + u128::try_from(RECENT).unwrap() {
            given.insert(operation(n));
            given.retire(&[operation(n)]);
        }
        assert!(!given.contains(operation(1)), "but not for ever");
    }

    #[test]
    fn a_whole_batch_that_ended_at_once_is_remembered() {
        let mut given = Given::default();
        let batch: Vec<_> = (0..1024).map(operation).collect();
        batch.iter().for_each(|operation| given.insert(*operation));
        given.retire(&batch);
        assert!(batch.iter().all(|operation| given.contains(*operation)));
    }

    #[test]
    fn it_never_holds_more_than_its_limits() {
        let mut given = Given::default();
        (0..10_000).for_each(|n| given.insert(operation(n)));
        assert_eq!(given.current.len(), CURRENT_MAX);
        assert!(given.recent.len() <= RECENT);
        assert!(given.contains(operation(9_999)));
    }

    #[test]
    fn retiring_what_was_never_given_gives_nothing() {
        let mut given = Given::default();
        given.retire(&[operation(7)]);
        assert!(!given.contains(operation(7)));
    }
}
