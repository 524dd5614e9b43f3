//! Forgets that wait for company. An agent is in no hurry to forget, and a datagram of its own would
//! cost as much as a command: so they leave with the next thing that is said to the agent, and at
//! the latest just before its session would be pinged, in the ping's place.

use std::time::{Duration, Instant};

use protocol::ids::OperationId;
use protocol::limits::{COMMAND_STREAMS_MAX, KEEP_ALIVE};

use crate::group::SessionCommand;

/// How long one may wait. The agent's answer to it puts the next ping off.
const WAIT: Duration = Duration::from_millis(8_000);
const _: () = assert!(WAIT.as_millis() < KEEP_ALIVE.as_millis());
/// So many leave at once: an agent's journal is not to fill up with them.
const COUNT_MAX: usize = COMMAND_STREAMS_MAX;

/// See the module. No heap memory while empty.
#[derive(Debug, Default)]
pub(super) struct Held(Option<Box<Waiting>>);

#[derive(Debug)]
struct Waiting {
    until: Instant,
    operations: Vec<OperationId>,
}

impl Held {
    /// Keeps forgets; whether it is time to say all of them.
    #[must_use]
    pub(super) fn add(&mut self, now: Instant, operations: Vec<OperationId>) -> bool {
        match &mut self.0 {
            Some(waiting) => waiting.operations.extend(operations),
            None => {
                self.0 = Some(Box::new(Waiting {
                    until: now + WAIT,
                    operations,
                }));
            }
        }
        self.0
            .as_ref()
            .is_some_and(|waiting| waiting.operations.len() >= COUNT_MAX)
    }

    /// An operation that is sent again is not forgotten: streams have no order between them, and
    /// the forget could overtake the new command and its end.
    pub(super) fn take_out(&mut self, command: &SessionCommand) {
        if let (SessionCommand::Dispatch { command, .. }, Some(waiting)) = (command, &mut self.0) {
            waiting
                .operations
                .retain(|operation| *operation != command.operation);
            if waiting.operations.is_empty() {
                self.0 = None;
            }
        }
    }

    /// All of them.
    pub(super) fn take(&mut self) -> Option<Vec<OperationId>> {
        self.0.take().map(|waiting| waiting.operations)
    }

    /// When they must leave.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.as_ref().map(|waiting| waiting.until)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::ids::{Epoch, Fence, ProcessId};
    use protocol::operation::Command;

    use super::*;
    use crate::runtime::clock;

    fn operation(n: u128) -> OperationId {
        OperationId::new(ProcessId::from_bytes(n.to_be_bytes()), 0)
    }

    #[test]
    fn forgets_gather_until_their_time_or_until_they_are_many() {
        let now = clock::now();
        let mut held = Held::default();
        assert!(!held.add(now, vec![operation(1)]));
        assert!(!held.add(now + WAIT / 2, vec![operation(2)]));
        assert_eq!(held.poll_timeout(), Some(now + WAIT));
        let many = (3..3 + COUNT_MAX as u128).map(operation).collect();
        assert!(held.add(now, many));
        assert_eq!(held.take().map(|all| all.len()), Some(2 + COUNT_MAX));
        assert_eq!((held.take(), held.poll_timeout()), (None, None));
    }

    #[test]
    fn an_operation_that_is_sent_again_is_not_forgotten() {
        let mut held = Held::default();
        assert!(!held.add(clock::now(), vec![operation(1), operation(2)]));
        let again = |n| SessionCommand::Dispatch {
            epoch: Epoch(1),
            command: Box::new(Command {
                operation: operation(n),
                fence: Fence(2),
                kind: "exec".to_owned(),
                input: Bytes::new(),
                deadline_ms: 1,
            }),
        };
        held.take_out(&again(1));
        held.take_out(&again(3));
        assert_eq!(held.take(), Some(vec![operation(2)]));
    }
}
