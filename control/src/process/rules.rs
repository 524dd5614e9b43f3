//! What each input does in each state.

use std::time::Duration;

use protocol::ids::Fence;
use protocol::link::NotDelivered;
use protocol::operation::{OperationState, Outcome, OutcomeStatus, Refusal};

use super::orders::{self, plain};
use super::{
    FENCE_MAX, Hold, Input, PROGRESS_BYTES_MAX, PROGRESS_ROWS_MAX, Process, ProgressCount,
    RETRY_MAX, State, Step, StepId, Tell, retry_delay, return_delay,
};
use crate::clock::UnixMs;

pub(super) fn handle(process: &mut Process, now: UnixMs, input: Input, chance: f64) -> Step {
    match input {
        Input::Due => due(process, now),
        Input::Unblocked => unblocked(process, now),
        Input::Claim => claim(process, now),
        Input::Orphaned => orphaned(process),
        Input::Cancel => orders::cancel(process, now),
        Input::Force => orders::force(process, now),
        Input::Retry => orders::retry(process, now),
        Input::Replay(index) => orders::replay(process, now, index),
        Input::Supersede(by) => orders::supersede(process, now, by),
        Input::Defer(until) => orders::defer(process, until),
        Input::Abandoned => orders::abandoned(process, now),
        Input::Accepted(fence) => match process.current(fence) {
            true => accepted(process, now),
            false => stale(process),
        },
        Input::Progress {
            fence,
            sequence,
            bytes,
        } => match process.current(fence) {
            true => progress(process, now, sequence, bytes),
            false => stale(process),
        },
        Input::Finished(fence, outcome) => match process.current(fence) {
            true => finished(process, now, outcome, chance),
            false => settled(process, outcome),
        },
        Input::Refused(fence, refusal) => match process.current(fence) && !process.started() {
            true => refused(process, now, refusal, chance),
            false => stale(process),
        },
        Input::NotDelivered(fence, reason) => match process.current(fence) && !process.started() {
            true => not_delivered(process, now, reason, chance),
            false => stale(process),
        },
        Input::Uncertain(fence) => match process.current(fence) {
            true => uncertain(process),
            false => stale(process),
        },
        Input::Report(fence, state) => report(process, now, fence, state, chance),
    }
}

impl Process {
    /// Whether words about this claim are about the present.
    fn current(&self, fence: Fence) -> bool {
        self.state.is_active() && fence == self.fence
    }

    /// Whether its agent has accepted the present claim.
    fn started(&self) -> bool {
        self.counted_fence == self.fence
    }

    pub(super) fn become_ready(&mut self, place: UnixMs) {
        self.state = State::Ready;
        self.ready_at = Some(place);
        self.due_at = Some(self.deadline_at);
        self.hold = None;
    }

    /// As good as ready, once its resource is its own: others may hold that, or have waited longer.
    pub(super) fn get_in_line(&mut self) {
        self.state = State::Blocked;
        self.ready_at = None;
    }

    pub(super) fn become_backoff(&mut self, until: UnixMs, hold: Hold) {
        self.state = State::Backoff;
        self.ready_at = None;
        self.due_at = Some(until.min(self.deadline_at));
        self.hold = Some(hold);
    }

    pub(super) fn become_active(&mut self, state: State) {
        self.state = state;
        self.ready_at = None;
        self.due_at = None;
        self.hold = None;
    }

    pub(super) fn end(&mut self, now: UnixMs, state: State, outcome: Outcome) -> Step {
        self.state = state;
        self.ready_at = None;
        self.due_at = None;
        self.hold = None;
        self.finished_at = Some(now);
        self.needs_attention |= outcome.status == OutcomeStatus::Interrupted;
        Step {
            note: Some(outcome.message.clone()),
            outcome: Some(outcome),
            // Without a claim no agent can know it.
            tell: (self.fence > Fence(0)).then_some(Tell::Forget),
            ..Step::default()
        }
    }

    /// Its agent has it: the attempt counts, once per claim.
    fn count_attempt(&mut self, now: UnixMs) {
        if !self.started() {
            self.attempt = self.attempt.saturating_add(1);
            self.counted_fence = self.fence;
            self.busy_count = 0;
        }
        self.started_at.get_or_insert(now);
    }

    /// Back to waiting without having been started: not an attempt.
    fn come_back(&mut self, now: UnixMs, wait: Option<Duration>, why: String) -> Step {
        self.busy_count = self.busy_count.saturating_add(1);
        if self.state == State::Cancelling {
            return self.give_up(now, State::Cancelled, never_started(why));
        }
        match wait {
            Some(wait) => self.become_backoff(now.plus(wait), Hold::Returned(why.clone())),
            None => self.become_ready(self.created_at),
        }
        Step {
            note: Some(why),
            ..Step::default()
        }
    }
}

fn stale(process: &Process) -> Step {
    Step {
        stale: true,
        // It is over and its agent still speaks of it: the word to forget was lost.
        tell: process.state.is_terminal().then_some(Tell::Forget),
        ..Step::default()
    }
}

/// The late word on what was ended by force: now it is known, and may be forgotten.
fn settled(process: &mut Process, outcome: Outcome) -> Step {
    let mut step = stale(process);
    if process.state.is_terminal() && process.unsettled {
        process.unsettled = false;
        step.note = Some(format!(
            "its agent says how it ended after all: {:?}, {}",
            outcome.status, outcome.message
        ));
        step.remark = true;
        step.step_ended = Some(outcome);
    }
    step
}

fn due(process: &mut Process, now: UnixMs) -> Step {
    if !process.state.is_waiting() || process.due_at.is_none_or(|due| due > now) {
        return Step {
            stale: true,
            ..Step::default()
        };
    }
    if now >= process.deadline_at {
        return deadline_passed(process, now);
    }
    let scheduled = process.state == State::Scheduled;
    process.become_ready(now);
    if scheduled && process.resource.is_some() {
        process.get_in_line();
    }
    Step::default()
}

fn deadline_passed(process: &mut Process, now: UnixMs) -> Step {
    let outcome = plain(
        OutcomeStatus::DeadlineExceeded,
        format!(
            "its deadline passed while it was {}, after {} of {} attempts",
            process.state, process.attempt, process.max_attempts
        ),
    );
    process.give_up(now, State::Failed, outcome)
}

fn unblocked(process: &mut Process, now: UnixMs) -> Step {
    if process.state != State::Blocked {
        return stale(process);
    }
    process.become_ready(now);
    Step::default()
}

fn claim(process: &mut Process, now: UnixMs) -> Step {
    if process.state != State::Ready || process.fence.0 >= FENCE_MAX {
        return Step {
            stale: true,
            ..Step::default()
        };
    }
    if now >= process.deadline_at {
        return deadline_passed(process, now);
    }
    process.fence = Fence(process.fence.0 + 1);
    process.progress.next = 0;
    process.become_active(State::Leased);
    Step::default()
}

fn orphaned(process: &mut Process) -> Step {
    match process.state {
        State::Leased | State::Running => {
            process.become_active(State::Unknown);
            Step {
                note: Some("the server restarted; the agent is asked".to_owned()),
                ..Step::default()
            }
        }
        _ => stale(process),
    }
}

fn accepted(process: &mut Process, now: UnixMs) -> Step {
    process.count_attempt(now);
    if process.state != State::Cancelling {
        process.become_active(State::Running);
    }
    Step::default()
}

fn progress(process: &mut Process, now: UnixMs, sequence: u32, bytes: u64) -> Step {
    let mut step = accepted(process, now);
    let ProgressCount {
        next,
        rows,
        bytes: kept,
        dropped,
    } = &mut process.progress;
    if sequence < *next {
        step.stale = true;
        return step;
    }
    *next = sequence.saturating_add(1);
    if *rows >= PROGRESS_ROWS_MAX || kept.saturating_add(bytes) > PROGRESS_BYTES_MAX {
        *dropped = dropped.saturating_add(1);
        return step;
    }
    *rows += 1;
    *kept += bytes;
    step.keep_progress = true;
    step
}

fn finished(process: &mut Process, now: UnixMs, outcome: Outcome, chance: f64) -> Step {
    process.count_attempt(now);
    let ended = outcome.clone();
    let step = match outcome.status {
        OutcomeStatus::Succeeded if process.step.undoes() => process.undone(now),
        OutcomeStatus::Succeeded => succeeded(process, now, outcome),
        OutcomeStatus::FailedTransient => failed_for_now(process, now, outcome, chance),
        OutcomeStatus::Cancelled => process.give_up(now, State::Cancelled, outcome),
        OutcomeStatus::FailedPermanent
        | OutcomeStatus::DeadlineExceeded
        | OutcomeStatus::Interrupted => process.give_up(now, State::Failed, outcome),
    };
    Step {
        step_ended: Some(ended),
        ..step
    }
}

/// A step is done: on to the next one. Somebody who wants it cancelled gets it undone instead,
/// unless it was the last one: then it has its whole effect, and has succeeded.
fn succeeded(process: &mut Process, now: UnixMs, outcome: Outcome) -> Step {
    let index = process.step.index();
    if process.shape.is_last(index) {
        return process.end(now, State::Succeeded, outcome);
    }
    if process.state == State::Cancelling {
        let why = plain(
            OutcomeStatus::Cancelled,
            format!("cancelled during step {}", index + 1),
        );
        return process.give_up_below(now, State::Cancelled, why, index + 1);
    }
    process.turn_to(StepId::forward(index + 1, process.step.run()));
    Step {
        note: Some(format!(
            "step {} of {} is done",
            index + 1,
            process.shape.steps()
        )),
        tell: Some(Tell::Forget),
        ..Step::default()
    }
}

fn failed_for_now(process: &mut Process, now: UnixMs, outcome: Outcome, chance: f64) -> Step {
    // No effect, and nobody wants another attempt.
    if process.state == State::Cancelling {
        return process.give_up(now, State::Cancelled, outcome);
    }
    if process.attempt >= process.max_attempts {
        return process.give_up(now, State::Failed, outcome);
    }
    let until = now.plus(retry_delay(process.attempt, chance));
    process.become_backoff(until, Hold::Retry);
    Step {
        note: Some(outcome.message.clone()),
        outcome: Some(outcome),
        ..Step::default()
    }
}

fn refused(process: &mut Process, now: UnixMs, refusal: Refusal, chance: f64) -> Step {
    let why = refusal.to_string();
    let wait = return_delay(process.busy_count, chance);
    match refusal {
        Refusal::Busy { retry_after } => {
            let wait = wait.max(retry_after.min(RETRY_MAX));
            process.come_back(now, Some(wait), why)
        }
        Refusal::StaleEpoch { .. }
        | Refusal::JournalFull
        | Refusal::JournalFailed { .. }
        | Refusal::Stopping => process.come_back(now, Some(wait), why),
        Refusal::StaleFence { seen } => {
            // The store knew less than the agent (restored from a backup): the next claim is higher.
            process.fence = process.fence.max(seen).min(Fence(FENCE_MAX));
            process.come_back(now, Some(wait), why)
        }
        Refusal::UnknownKind { .. } | Refusal::InvalidInput { .. } => process.give_up(
            now,
            State::Failed,
            plain(OutcomeStatus::FailedPermanent, why),
        ),
        Refusal::DeadlinePassed => process.give_up(
            now,
            State::Failed,
            plain(OutcomeStatus::DeadlineExceeded, why),
        ),
        Refusal::Cancelled => {
            process.give_up(now, State::Cancelled, plain(OutcomeStatus::Cancelled, why))
        }
    }
}

fn not_delivered(process: &mut Process, now: UnixMs, reason: NotDelivered, chance: f64) -> Step {
    let why = reason.to_string();
    match reason {
        // It waits for the next session by itself.
        NotDelivered::NoSession | NotDelivered::Draining => process.come_back(now, None, why),
        NotDelivered::NoGrant
        | NotDelivered::StaleEpoch
        | NotDelivered::NotOwner
        | NotDelivered::Busy => {
            let wait = return_delay(process.busy_count, chance);
            process.come_back(now, Some(wait), why)
        }
        NotDelivered::TooLarge => process.give_up(
            now,
            State::Failed,
            plain(OutcomeStatus::FailedPermanent, why),
        ),
    }
}

fn uncertain(process: &mut Process) -> Step {
    if process.state != State::Cancelling {
        process.become_active(State::Unknown);
    }
    Step {
        note: Some("the session was lost; the agent is asked".to_owned()),
        tell: Some(Tell::Query(process.fence)),
        ..Step::default()
    }
}

fn report(
    process: &mut Process,
    now: UnixMs,
    fence: Fence,
    state: OperationState,
    chance: f64,
) -> Step {
    if !process.state.is_active() {
        return match state {
            OperationState::Finished(outcome) => settled(process, outcome),
            _ => stale(process),
        };
    }
    if fence < process.fence {
        return report_of_older_claim(process, now, state, chance);
    }
    // Higher than ours: the store was restored from a backup. The agent's word is the truth.
    process.fence = fence.min(Fence(FENCE_MAX));
    match state {
        OperationState::Finished(outcome) => finished(process, now, outcome, chance),
        OperationState::Accepted | OperationState::Running => {
            let mut step = accepted(process, now);
            if process.state == State::Cancelling {
                step.tell = Some(Tell::Cancel(process.fence));
            }
            step
        }
        OperationState::NeverSeen => never_seen(process, now),
    }
}

/// Only while its agent is being asked: the present claim has not arrived there.
fn report_of_older_claim(
    process: &mut Process,
    now: UnixMs,
    state: OperationState,
    chance: f64,
) -> Step {
    if !matches!(process.state, State::Unknown | State::Cancelling) {
        return stale(process);
    }
    match state {
        // That attempt was counted when it ended; this claim was never started.
        OperationState::Finished(outcome) if outcome.status == OutcomeStatus::FailedTransient => {
            process.come_back(now, None, "the command did not arrive".to_owned())
        }
        OperationState::Finished(outcome) => finished(process, now, outcome, chance),
        OperationState::Accepted | OperationState::Running | OperationState::NeverSeen => {
            stale(process)
        }
    }
}

fn never_seen(process: &mut Process, now: UnixMs) -> Step {
    if process.started() {
        let outcome = plain(
            OutcomeStatus::Interrupted,
            "the agent accepted it and no longer knows it (journal lost?): \
             look at the host before you start it again"
                .to_owned(),
        );
        return process.give_up(now, State::Failed, outcome);
    }
    process.come_back(now, None, "the command did not arrive".to_owned())
}

fn never_started(why: String) -> Outcome {
    plain(
        OutcomeStatus::Cancelled,
        format!("cancelled before it started: {why}"),
    )
}
