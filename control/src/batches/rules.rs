//! What a batch may touch, how fast it goes, and when its figure counts as confirmed.

use std::time::Duration;

use protocol::ids::ProcessId;
use uuid::{Builder, Uuid};

use crate::api::model::batches::BatchAction;
use crate::clock::UnixMs;
use crate::process::State;

/// A batch that works does so about this many times a second.
const STEPS_PER_SECOND: u32 = 10;
/// Processes in one step at most: the rest of the room that a process server has for orders is for people.
const STEP_MAX: u32 = 400;

/// The states that an action can do something to.
pub(crate) fn eligible(action: BatchAction) -> Vec<State> {
    let can = |state: &State| match action {
        BatchAction::Cancel | BatchAction::Pause => {
            !state.is_terminal() && *state != State::Cancelling
        }
        BatchAction::Retry => matches!(state, State::Failed | State::Cancelled),
        BatchAction::Redrive => *state == State::Failed,
        BatchAction::Replay => state.is_terminal() || *state == State::Backoff,
        BatchAction::Resume => !state.is_terminal(),
    };
    State::ALL.iter().copied().filter(can).collect()
}

/// Whether the action lets a process go on: an agent is needed that may connect, and what ended
/// after the batch was made is not its business. So a process that fails again is not started over
/// again and again, not even when a crash repeats a step.
pub(crate) fn goes_on(action: BatchAction) -> bool {
    match action {
        BatchAction::Retry | BatchAction::Redrive | BatchAction::Replay => true,
        BatchAction::Cancel | BatchAction::Pause | BatchAction::Resume => false,
    }
}

/// Processes in one step, and the time from one step to the next.
pub(crate) fn pace(rate: u32) -> (u32, Duration) {
    let rate = rate.max(1);
    let size = (rate / STEPS_PER_SECOND).max(1);
    (size, Duration::from_secs(1) * size / rate)
}

/// Processes in a step that comes `late`: those of one step, and what was missed, as far as one step may go. So steps
/// that take longer than their time, at a busy server, hardly lower the rate.
pub(crate) fn step_size(rate: u32, late: Duration) -> u32 {
    let rate = rate.max(1);
    let (size, _) = pace(rate);
    let missed = u128::from(rate) * late.as_millis() / 1000;
    let missed = u32::try_from(missed).unwrap_or(u32::MAX);
    size.saturating_add(missed).min(STEP_MAX).min(rate)
}

/// Whether somebody who expects `confirm` processes knows what they do when `matched` match: right
/// to within 10 %.
pub(crate) fn is_confirmed(matched: u64, confirm: u64) -> bool {
    matched.abs_diff(confirm) <= matched / 10
}

/// Lies between the ids of processes that were made before `at` and those made then or later.
pub(crate) fn id_bound(at: UnixMs) -> ProcessId {
    // An id has its version behind the milliseconds, so none equals this.
    let id = Builder::from_unix_timestamp_millis(at.0, &[0; 10]).into_uuid();
    let milliseconds = id.as_u128() >> 80 << 80;
    ProcessId(Uuid::from_u128(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancel_is_for_what_has_not_ended_and_was_not_cancelled_already() {
        let states = eligible(BatchAction::Cancel);
        assert!(states.contains(&State::Running) && states.contains(&State::Unknown));
        for state in [
            State::Succeeded,
            State::Failed,
            State::Cancelled,
            State::Cancelling,
        ] {
            assert!(!states.contains(&state), "{state}");
        }
        assert_eq!(states.len(), State::ALL.len() - 4);
    }

    #[test]
    fn each_action_is_for_the_states_that_its_order_takes() {
        for (action, good, bad) in [
            (BatchAction::Retry, State::Cancelled, State::Succeeded),
            (BatchAction::Redrive, State::Failed, State::Cancelled),
            (BatchAction::Replay, State::Succeeded, State::Running),
            (BatchAction::Replay, State::Backoff, State::Unknown),
            (BatchAction::Pause, State::Running, State::Failed),
            (BatchAction::Resume, State::Cancelling, State::Succeeded),
        ] {
            let states = eligible(action);
            assert!(states.contains(&good), "{action:?} {good}");
            assert!(!states.contains(&bad), "{action:?} {bad}");
            // What goes on could have ended before, and nothing else could.
            assert_eq!(
                goes_on(action),
                states.contains(&State::Failed),
                "{action:?}"
            );
        }
    }

    #[test]
    fn the_pace_is_the_rate() {
        for rate in [1, 2, 9, 10, 50, 99, 1000] {
            let (size, every) = pace(rate);
            let per_second = f64::from(size) / every.as_secs_f64();
            assert!(
                (per_second - f64::from(rate)).abs() < 0.01,
                "{rate}: {per_second}"
            );
            assert!(every <= Duration::from_secs(1) && every >= Duration::from_millis(50));
        }
        assert_eq!(pace(0).1, Duration::from_secs(1));
    }

    #[test]
    fn a_late_step_makes_up_for_what_was_missed_within_bounds() {
        let late = Duration::from_millis;
        assert_eq!(step_size(1000, late(0)), 100);
        assert_eq!(step_size(1000, late(200)), 300);
        assert_eq!(step_size(1000, late(3_600_000)), STEP_MAX);
        assert_eq!(step_size(50, late(100)), 10);
        assert_eq!(step_size(1, late(10_000)), 1);
        assert_eq!(step_size(0, Duration::MAX), 1);
    }

    #[test]
    fn a_figure_is_confirmed_to_within_a_tenth() {
        for (matched, confirm, good) in [
            (100, 100, true),
            (100, 90, true),
            (100, 110, true),
            (100, 89, false),
            (100, 111, false),
            (3, 3, true),
            (3, 4, false),
            (0, 0, true),
            (0, 1, false),
            (u64::MAX, 0, false),
        ] {
            assert_eq!(is_confirmed(matched, confirm), good, "{matched} {confirm}");
        }
    }

    #[test]
    fn a_bound_lies_before_every_id_of_its_millisecond() {
        let bound = id_bound(UnixMs(1_795_512_600_125));
        let id =
            |at, fill| ProcessId(Builder::from_unix_timestamp_millis(at, &[fill; 10]).into_uuid());
        assert!(id(1_795_512_600_124, 0xff) < bound);
        assert!(id(1_795_512_600_125, 0) > bound);
    }
}
