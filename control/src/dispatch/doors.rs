//! The ways in to the process servers of this program: one for each that is alive.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use uuid::Uuid;

use super::handle::{Command, EngineError};
use super::telemetry::{EngineStats, Telemetry};

/// One process server's.
#[derive(Clone)]
pub(super) struct Door {
    /// Whose.
    pub(super) worker: Uuid,
    /// The run of the gateway that it takes groups for.
    pub(super) owner: Uuid,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) telemetry: Arc<Telemetry>,
}

/// All that are open, the oldest first: it leads those that share a gateway, so it is the first to be asked.
#[derive(Default)]
pub(super) struct Doors(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    open: Vec<Door>,
    /// What those had done that are gone: counters only rise.
    gone: Option<Box<EngineStats>>,
}

impl Doors {
    /// A process server is there.
    pub(super) fn open(&self, door: Door) {
        self.write().open.push(door);
    }

    /// A process server is gone. Its figures are kept as they were at its last tick.
    pub(super) fn close(&self, worker: Uuid) {
        let mut inner = self.write();
        let Some(at) = inner.open.iter().position(|door| door.worker == worker) else {
            return;
        };
        let mut stats = inner.open.remove(at).telemetry.snapshot();
        stats.end();
        let gone = inner
            .gone
            .get_or_insert_with(|| Box::new(EngineStats::new()));
        gone.add(&stats);
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Door> {
        self.read().open.clone()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.read().open.is_empty()
    }

    /// The run of the gateway that groups are to be taken for: that of the youngest, since a gateway elsewhere
    /// may have been started anew.
    pub(super) fn owner(&self) -> Option<Uuid> {
        self.read().open.last().map(|door| door.owner)
    }

    /// Hands a command to the first that takes it.
    ///
    /// # Errors
    /// [`EngineError::Busy`] where one has no room, [`EngineError::Stopped`] where none is there. Nobody has
    /// the command.
    pub(super) fn submit(&self, mut command: Command) -> Result<(), EngineError> {
        let mut error = EngineError::Stopped;
        for door in &self.read().open {
            command = match door.commands.try_send(command) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(command)) => {
                    error = EngineError::Busy;
                    command
                }
                // It has just ended.
                Err(TrySendError::Closed(command)) => command,
            };
        }
        Err(error)
    }

    /// Hands a command to each.
    ///
    /// # Errors
    /// As [`Doors::submit`]: [`EngineError::Busy`] where one that lives has no room, though others may have
    /// taken it. So it must be one that may be repeated.
    pub(super) fn submit_to_all(
        &self,
        mut command: impl FnMut() -> Command,
    ) -> Result<(), EngineError> {
        let (mut told, mut busy) = (false, false);
        for door in &self.read().open {
            match door.commands.try_send(command()) {
                Ok(()) => told = true,
                Err(TrySendError::Full(_)) => busy = true,
                // It has just ended.
                Err(TrySendError::Closed(_)) => {}
            }
        }
        match (busy, told) {
            (true, _) => Err(EngineError::Busy),
            (false, true) => Ok(()),
            (false, false) => Err(EngineError::Stopped),
        }
    }

    /// The figures of all together, and of those that are gone.
    pub(super) fn stats(&self) -> EngineStats {
        let inner = self.read();
        let mut open = inner.open.iter().map(|door| door.telemetry.snapshot());
        let mut stats = open.next().unwrap_or_else(EngineStats::new);
        for other in open {
            stats.add(&other);
        }
        if let Some(gone) = &inner.gone {
            stats.add(gone);
        }
        stats
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::AgentId;

    use super::*;

    fn door(worker: u128, room: usize) -> (Door, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(room);
        let door = Door {
            worker: Uuid::from_u128(worker),
            owner: Uuid::from_u128(100 + worker),
            commands,
            telemetry: Arc::new(Telemetry::new()),
        };
        (door, queue)
    }

    fn command() -> Command {
        Command::Revoke(AgentId(Uuid::from_u128(9)))
    }

    #[test]
    fn the_oldest_that_has_room_is_asked_and_one_that_has_ended_is_passed_over() {
        let doors = Doors::default();
        assert!(matches!(doors.submit(command()), Err(EngineError::Stopped)));
        let (first, mut first_queue) = door(1, 1);
        let (second, mut second_queue) = door(2, 2);
        doors.open(first);
        doors.open(second);
        for _ in 0..3 {
            doors.submit(command()).unwrap();
        }
        assert!(matches!(doors.submit(command()), Err(EngineError::Busy)));
        assert!(first_queue.try_recv().is_ok());
        assert!(second_queue.try_recv().is_ok() && second_queue.try_recv().is_ok());
        drop(first_queue);
        doors.submit(command()).unwrap();
        assert!(second_queue.try_recv().is_ok());
        drop(second_queue);
        assert!(matches!(doors.submit(command()), Err(EngineError::Stopped)));
    }

    #[test]
    fn groups_are_taken_for_the_gateway_of_the_youngest() {
        let doors = Doors::default();
        assert_eq!(doors.owner(), None);
        let ((first, _one), (second, _two)) = (door(1, 1), door(2, 1));
        doors.open(first);
        doors.open(second);
        assert_eq!(doors.owner(), Some(Uuid::from_u128(102)));
        doors.close(Uuid::from_u128(2));
        assert_eq!(doors.owner(), Some(Uuid::from_u128(101)));
    }

    #[test]
    fn what_all_must_know_is_said_to_each_and_one_without_room_is_not_passed_over() {
        let doors = Doors::default();
        let tell = || doors.submit_to_all(command);
        assert!(matches!(tell(), Err(EngineError::Stopped)));
        let (first, mut first_queue) = door(1, 1);
        let (second, mut second_queue) = door(2, 2);
        doors.open(first);
        doors.open(second);
        tell().unwrap();
        assert!(
            matches!(tell(), Err(EngineError::Busy)),
            "the first has no room"
        );
        assert!(first_queue.try_recv().is_ok() && first_queue.try_recv().is_err());
        assert!(second_queue.try_recv().is_ok() && second_queue.try_recv().is_ok());
        tell().unwrap();
        assert!(first_queue.try_recv().is_ok() && second_queue.try_recv().is_ok());
        drop(first_queue);
        tell().unwrap();
        drop(second_queue);
        assert!(matches!(tell(), Err(EngineError::Stopped)));
    }

    #[test]
    fn what_one_had_done_is_counted_when_it_is_gone_and_what_it_had_at_hand_is_not() {
        let doors = Doors::default();
        for worker in [1, 2] {
            let (door, _) = door(worker, 1);
            let stats = EngineStats {
                claimed: 5,
                active: 3,
                connected: 7,
                store_error: Some("full".to_owned()),
                ..EngineStats::new()
            };
            door.telemetry.publish(&stats);
            doors.open(door);
        }
        let figures = |doors: &Doors| {
            let stats = doors.stats();
            (
                stats.claimed,
                stats.active,
                stats.connected,
                stats.store_error,
            )
        };
        let full = Some("full".to_owned());
        assert_eq!(figures(&doors), (10, 6, 7, full.clone()));
        for _ in 0..2 {
            doors.close(Uuid::from_u128(1));
            assert_eq!(figures(&doors), (10, 3, 7, full.clone()));
        }
        doors.close(Uuid::from_u128(2));
        assert_eq!(figures(&doors), (10, 0, 0, None));
        assert!(doors.is_empty());
    }
}
