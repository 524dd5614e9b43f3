//! What people and the process server order: cancel, force, retry, replay, supersede, defer; and
//! how a process ends that will not succeed.

use bytes::Bytes;
use std::time::Duration;

use protocol::ids::{Fence, ProcessId};
use protocol::operation::{Outcome, OutcomeStatus};

use super::{FENCE_MAX, Fate, Hold, Process, RUN_MAX, State, Step, StepId, Tell, UNDO_TIME};
use crate::clock::UnixMs;

impl Process {
    /// It will not succeed: what was done before the step at hand is undone, where that is possible;
    /// else it ends as `end` now.
    pub(super) fn give_up(&mut self, now: UnixMs, end: State, outcome: Outcome) -> Step {
        let below = self.step.index();
        self.give_up_below(now, end, outcome, below)
    }

    /// As [`Process::give_up`]; the steps before `below` were done.
    pub(super) fn give_up_below(
        &mut self,
        now: UnixMs,
        end: State,
        outcome: Outcome,
        below: u16,
    ) -> Step {
        if self.step.undoes() {
            return self.undo_failed(now, &outcome);
        }
        match self.shape.last_to_undo(below) {
            // It may still be in effect: undoing what it stands on could do harm.
            Some(_) if outcome.status == OutcomeStatus::Interrupted => {
                self.end_as_left(now, end, outcome, below)
            }
            None if below > 0 => self.end_as_left(now, end, outcome, below),
            None => self.end(now, end, outcome),
            Some(index) => self.begin_undo(now, end, outcome, (index, below)),
        }
    }

    fn begin_undo(
        &mut self,
        now: UnixMs,
        end: State,
        outcome: Outcome,
        (index, below): (u16, u16),
    ) -> Step {
        let note = format!(
            "step {}: {}; undoing step {}",
            self.step.index() + 1,
            outcome.message,
            index + 1
        );
        self.fate = Some(Fate {
            end,
            status: outcome.status,
            exit_code: outcome.exit_code,
            message: outcome.message.clone(),
            below,
        });
        self.deadline_at = self.deadline_at.max(now.plus(UNDO_TIME));
        self.turn_to(StepId::undo(index, self.step.run()));
        Step {
            note: Some(note),
            outcome: Some(outcome),
            tell: self.claimed().then_some(Tell::Forget),
            ..Step::default()
        }
    }

    /// A step has been undone: on to the one before it, or to the end.
    pub(super) fn undone(&mut self, now: UnixMs) -> Step {
        let index = self.step.index();
        if let Some(next) = self.shape.last_to_undo(index) {
            self.turn_to(StepId::undo(next, self.step.run()));
            return Step {
                note: Some(format!(
                    "step {} is undone; undoing step {}",
                    index + 1,
                    next + 1
                )),
                tell: Some(Tell::Forget),
                ..Step::default()
            };
        }
        let fate = self.take_fate();
        let message = format!(
            "{}; undone: steps {}",
            fate.message,
            self.shape.undone(0, fate.below)
        );
        // Nothing of it is left: started over, it begins at its beginning.
        self.step = StepId::forward(0, self.step.run());
        let outcome = Outcome {
            exit_code: fate.exit_code,
            ..plain(fate.status, message)
        };
        self.end(now, fate.end, outcome)
    }

    /// A step could not be undone: people must look. Its place is kept, so that a retry goes on here.
    fn undo_failed(&mut self, now: UnixMs, why: &Outcome) -> Step {
        let index = self.step.index();
        let fate = self.take_fate();
        let undone = self.shape.undone(index + 1, fate.below);
        let undone = match undone.as_str() {
            "" => "nothing".to_owned(),
            steps => format!("steps {steps}"),
        };
        let message = format!(
            "{}; undone: {undone}; step {} could not be undone: {}: look at the host, then retry or cancel \
             with force",
            fate.message,
            index + 1,
            why.message
        );
        let outcome = Outcome {
            exit_code: why.exit_code.or(fate.exit_code),
            ..plain(fate.status, message)
        };
        self.fate = Some(fate);
        let step = self.end(now, State::Failed, outcome);
        self.needs_attention = true;
        step
    }

    /// Ends it and says which steps stay done. Its place is after these: one that succeeded while it was being
    /// cancelled is not done again.
    fn end_as_left(&mut self, now: UnixMs, end: State, outcome: Outcome, below: u16) -> Step {
        self.step = StepId::forward(below, self.step.run());
        let message = match below {
            1 => format!("{}; step 1 was done and is not undone", outcome.message),
            _ => format!(
                "{}; steps 1 to {below} were done and are not undone",
                outcome.message
            ),
        };
        self.end(now, end, Outcome { message, ..outcome })
    }

    fn take_fate(&mut self) -> Fate {
        self.fate.take().unwrap_or(Fate {
            end: State::Failed,
            status: OutcomeStatus::FailedPermanent,
            exit_code: None,
            message: "it failed".to_owned(),
            below: self.shape.steps(),
        })
    }

    /// Another step is at hand: its attempts are counted from none, and it keeps its place in line.
    pub(super) fn turn_to(&mut self, step: StepId) {
        self.step = step;
        self.attempt = 0;
        self.busy_count = 0;
        self.become_ready(self.created_at);
    }

    /// How many steps, from the first on, are done and not undone, as far as is certain. Later ones may be
    /// done as well where undoing has begun, but stand on what is undone.
    ///
    /// ```text
    ///   forward, at step n   n: it got here step by step
    ///   undoing step n       n: undoing goes backwards, and has not passed n
    ///   all undone           0: its place is its beginning again
    ///   succeeded            it is at its last step: it may go on from any
    /// ```
    fn done(&self) -> u16 {
        self.step.index()
    }

    /// An agent may know something about it.
    fn claimed(&self) -> bool {
        self.fence > Fence(0)
    }

    /// Starts over at `index`, in a new run; `undo`: with undoing it.
    fn start_over(&mut self, now: UnixMs, index: u16, undo: bool) -> Step {
        let run = self.step.run();
        let renew = !self.unsettled;
        if renew && run >= RUN_MAX {
            return refused(format!(
                "it was started over {RUN_MAX} times; clone it instead"
            ));
        }
        if self.fence.0 >= FENCE_MAX {
            return refused("its fence has reached its end; clone it instead".to_owned());
        }
        let run = run + u16::from(renew);
        let before = self.state;
        let was_over = before.is_terminal();
        // An operation whose end is not known keeps its id: its agent answers for it.
        let tell = (renew && self.claimed()).then_some(Tell::Forget);
        self.fence = Fence(self.fence.0 + 1);
        self.needs_attention = false;
        self.unsettled = false;
        self.finished_at = None;
        self.deadline_at = match undo {
            true => now.plus(self.life.max(UNDO_TIME)),
            false => now.plus(self.life),
        };
        let step = match undo {
            true => StepId::undo(index, run),
            false => StepId::forward(index, run),
        };
        if !undo {
            self.fate = None;
        }
        self.turn_to(step);
        let holds_none = was_over || before == State::Scheduled;
        if before == State::Blocked || (holds_none && self.resource.is_some()) {
            self.get_in_line();
        }
        Step {
            note: Some(match undo {
                true => format!("undoing step {} is tried again", index + 1),
                false => format!("started over at step {}", index + 1),
            }),
            renewed_from: (!undo).then_some(index),
            tell,
            ..Step::default()
        }
    }
}

pub(super) fn cancel(process: &mut Process, now: UnixMs) -> Step {
    // It is on its way out already.
    if process.fate.is_some() && !process.state.is_terminal() {
        return Step::default();
    }
    if process.state.is_waiting() {
        let outcome = plain(
            OutcomeStatus::Cancelled,
            format!("cancelled while it was {}", process.state),
        );
        return process.give_up(now, State::Cancelled, outcome);
    }
    if process.state.is_active() {
        process.become_active(State::Cancelling);
        return Step {
            tell: Some(Tell::Cancel(process.fence)),
            ..Step::default()
        };
    }
    Step::default()
}

/// Over now. What may have been started is for people to look at; its agent is told, but not waited
/// for.
pub(super) fn force(process: &mut Process, now: UnixMs) -> Step {
    if process.state.is_terminal() {
        return refused(format!("it is over already: {}", process.state));
    }
    let active = process.state.is_active();
    let touched = active || process.step.undoes() || process.step.index() > 0;
    let outcome = match touched {
        true => plain(
            OutcomeStatus::Interrupted,
            format!(
                "ended by force while it was {} in step {} of {}, without its agent's word and without \
                 undoing anything: look at the host",
                process.state,
                process.step.index() + 1,
                process.shape.steps()
            ),
        ),
        false => plain(
            OutcomeStatus::Cancelled,
            format!("cancelled by force while it was {}", process.state),
        ),
    };
    let tell = active.then_some(Tell::Cancel(process.fence));
    let step = process.end(now, State::Cancelled, outcome);
    process.unsettled = active;
    Step { tell, ..step }
}

pub(super) fn retry(process: &mut Process, now: UnixMs) -> Step {
    match process.state {
        State::Failed | State::Cancelled => {}
        State::Succeeded => {
            return refused("it has succeeded; replay or clone it to do it again".to_owned());
        }
        state if state.is_waiting() => {
            return refused(format!("it is {state} and not over; replay ends its wait"));
        }
        state => return refused(format!("it is {state} and not over; cancel it first")),
    }
    let undo = process.step.undoes() && process.fate.is_some();
    process.start_over(now, process.step.index(), undo)
}

pub(super) fn replay(process: &mut Process, now: UnixMs, index: u16) -> Step {
    if process.state.is_active() {
        return refused(format!(
            "its agent may be at work on it ({}); cancel it first",
            process.state
        ));
    }
    let steps = process.shape.steps();
    if index >= steps {
        return refused(format!(
            "it has {steps} {}, counted from 0",
            if steps == 1 { "step" } else { "steps" }
        ));
    }
    let done = process.done();
    if index > done {
        let earlier = if done > 0 { " or an earlier one" } else { "" };
        return refused(format!(
            "the steps before step {index} (counted from 0) are not all done: they were undone, or have not \
             succeeded; replay it from step {done}{earlier}"
        ));
    }
    if process.unsettled && (index != process.step.index() || process.step.undoes()) {
        return refused(
            "it was ended by force, and its agent has not said how that step ended; retry it to find out"
                .to_owned(),
        );
    }
    process.start_over(now, index, false)
}

pub(super) fn supersede(process: &mut Process, now: UnixMs, by: ProcessId) -> Step {
    let untouched = process.state.is_waiting()
        && process.started_at.is_none()
        && process.step.index() == 0
        && !process.step.undoes();
    if !untouched {
        return Step {
            stale: true,
            ..Step::default()
        };
    }
    let outcome = plain(OutcomeStatus::Cancelled, format!("superseded by {by}"));
    process.end(now, State::Cancelled, outcome)
}

pub(super) fn defer(process: &mut Process, until: UnixMs) -> Step {
    if process.state != State::Ready {
        return Step {
            stale: true,
            ..Step::default()
        };
    }
    process.become_backoff(until, Hold::Budget);
    Step {
        note: Some("too many attempts of its kind fail at its agent: it waits".to_owned()),
        ..Step::default()
    }
}

/// The one other end without the agent's word, and an operator's decision: what may have been
/// started is for people to look at.
pub(super) fn abandoned(process: &mut Process, now: UnixMs) -> Step {
    if process.state.is_terminal() {
        return Step {
            stale: true,
            tell: Some(Tell::Forget),
            ..Step::default()
        };
    }
    let active = process.state.is_active();
    let begun = process.step.undoes() || process.step.index() > 0;
    let (status, message) = match (active, begun) {
        (true, _) => (
            OutcomeStatus::Interrupted,
            "its agent was revoked before it said how it ended: look at the host",
        ),
        (false, true) => (
            OutcomeStatus::Interrupted,
            "its agent was revoked when some of its steps were done: look at the host",
        ),
        (false, false) => (OutcomeStatus::FailedPermanent, "its agent was revoked"),
    };
    let step = process.end(now, State::Failed, plain(status, message.to_owned()));
    process.unsettled = active;
    Step { tell: None, ..step }
}

fn refused(why: String) -> Step {
    Step {
        stale: true,
        refused: Some(why),
        ..Step::default()
    }
}

pub(super) fn plain(status: OutcomeStatus, message: String) -> Outcome {
    Outcome {
        status,
        exit_code: None,
        message,
        output: Bytes::new(),
        service_time: Duration::ZERO,
    }
}
