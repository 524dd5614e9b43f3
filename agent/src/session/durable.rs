//! Nothing is said before it is durable.
//!
//! ```text
//!   record, record, effect … ─▶ open batch ──poll_persist──▶ batch in flight ──durable──▶ effects run
//!                                                                  └─ failed ─▶ both batches undone
//! ```
//!
//! One batch is in flight at a time; what comes meanwhile gathers in the next one. Effects keep their
//! order, and an effect that needs no record still waits behind the records before it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::agent::AgentMessage;
use protocol::ids::{Fence, OperationId};
use protocol::operation::{OperationState, Outcome, Refusal};

use super::{Lane, Link, Notice, Output, Session, Step, stopped_before_start};
use crate::journal::{Body, Record, Undo};

/// Results that could not be made durable are tried again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a durable Accepted waits for what the operation says next, so that both leave in one
/// datagram: most operations end at once.
const COMPANY_WAIT: Duration = Duration::from_millis(5);

/// Records on their way to the disk, and what waits for them.
#[derive(Debug, Default)]
pub(super) struct Batch {
    records: Vec<Record>,
    undo: Vec<Undo>,
    effects: Vec<Effect>,
}

/// What is done when everything before it is durable.
#[derive(Debug)]
pub(super) enum Effect {
    /// Introduce the agent on a link.
    Hello(Link),
    /// Tell that an operation is accepted, and start it.
    Accept(OperationId),
    /// Let a further command stream follow a known operation.
    Join(Lane),
    /// Tell how an operation ended.
    End(OperationId),
    /// Tell what is known about an operation.
    Report(Link, OperationId),
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.effects.is_empty()
    }
}

impl Session {
    /// Records to make durable, together and now; answer with [`Session::handle_persisted`].
    pub fn poll_persist(&mut self) -> Option<Vec<Record>> {
        if self.in_flight.is_some() || self.open.records.is_empty() {
            return None;
        }
        let batch = std::mem::take(&mut self.open);
        let records = batch.records.clone();
        self.in_flight = Some(batch);
        Some(records)
    }

    /// The batch of the last [`Session::poll_persist`] is durable, or why not.
    pub fn handle_persisted(&mut self, now: Instant, result: Result<(), String>) {
        let Some(batch) = self.in_flight.take() else {
            return;
        };
        let open = std::mem::take(&mut self.open.effects);
        match result {
            Ok(()) => {
                self.durable_at = now;
                self.open.effects = open;
                for effect in batch.effects {
                    self.perform(effect);
                }
                if self.open.records.is_empty() {
                    for effect in std::mem::take(&mut self.open.effects) {
                        self.perform(effect);
                    }
                }
            }
            Err(message) => {
                // What came later was built on what failed: both go, newest first.
                let later = std::mem::take(&mut self.open);
                for undo in batch.undo.into_iter().chain(later.undo).rev() {
                    self.journal.undo(undo);
                }
                for effect in batch.effects.into_iter().chain(open) {
                    self.give_up(now, effect, &message);
                }
            }
        }
    }

    /// Notes a fact: valid here at once, told to others when durable.
    pub(super) fn record(&mut self, record: Record) {
        self.open.undo.push(self.journal.apply(&record));
        self.open.records.push(record);
    }

    /// Performs an effect when everything noted so far is durable.
    pub(super) fn defer(&mut self, effect: Effect) {
        if self.in_flight.is_none() && self.open.is_empty() {
            self.perform(effect);
        } else {
            self.open.effects.push(effect);
        }
    }

    /// Ends a run.
    pub(super) fn end(&mut self, at: usize, outcome: Outcome) {
        let outcome = Arc::new(outcome);
        self.runs[at].step = Step::Ended(Arc::clone(&outcome));
        self.persist_end(at, outcome);
    }

    fn persist_end(&mut self, at: usize, outcome: Arc<Outcome>) {
        let command = &self.runs[at].command;
        let (operation, fence) = (command.operation, command.fence);
        self.record(Record::Finished {
            operation,
            fence,
            outcome,
        });
        self.defer(Effect::End(operation));
    }

    /// Notes again what could not be made durable.
    pub(super) fn persist_again(&mut self) {
        for at in 0..self.runs.len() {
            let Step::Ended(outcome) = &self.runs[at].step else {
                continue;
            };
            let outcome = Arc::clone(outcome);
            let operation = self.runs[at].command.operation;
            let entry = self.journal.entry(operation);
            if !matches!(entry.map(|entry| &entry.body), Some(Body::Finished(_))) {
                self.persist_end(at, outcome);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Hello(link) => self.say_hello(link),
            Effect::Accept(operation) => self.begin(operation),
            Effect::Join(lane) => self.join(lane),
            Effect::End(operation) => self.tell_end(operation),
            Effect::Report(link, operation) => self.tell_report(link, operation),
        }
    }

    fn give_up(&mut self, now: Instant, effect: Effect, message: &str) {
        let refusal = || Refusal::JournalFailed {
            message: message.to_owned(),
        };
        match effect {
            // The count is only a tie-breaker between sessions; being reachable matters more.
            Effect::Hello(link) => self.say_hello(link),
            Effect::Accept(operation) => {
                if let Some(at) = self.run_at(operation) {
                    let run = self.runs.swap_remove(at);
                    if let Some(lane) = run.lane {
                        self.refuse(lane, refusal());
                    }
                }
            }
            Effect::Join(lane) => self.refuse(lane, refusal()),
            Effect::End(_) => self.retry_at = Some(now + RETRY_AFTER),
            // What is known without the failed record is still true; nothing is said about an
            // operation whose tombstone could not be written.
            Effect::Report(link, operation) => self.tell_report(link, operation),
        }
    }

    fn say_hello(&mut self, link: Link) {
        if self.links.iter().any(|state| state.link == link) {
            let message = Box::new(AgentMessage::Hello(Box::new(self.hello())));
            self.outputs.push_back(Output::Control { link, message });
        }
    }

    /// An acceptance is durable.
    fn begin(&mut self, operation: OperationId) {
        let Some(at) = self.run_at(operation) else {
            return;
        };
        let fence = self.runs[at].command.fence;
        self.outputs
            .push_back(Output::Notice(Notice::Accepted(operation, fence)));
        self.runs[at].unsaid = Some(self.durable_at + COMPANY_WAIT);
        if let Some(reason) = self.runs[at].stop {
            self.end(at, stopped_before_start(reason));
            return;
        }
        self.runs[at].step = Step::Working;
        let command = Arc::clone(&self.runs[at].command);
        self.outputs.push_back(Output::Start(command));
    }

    /// Says Accepted on the stream of a run, if that has waited until now.
    pub(super) fn say_unsaid(&mut self, at: usize) {
        if self.runs[at].unsaid.take().is_some()
            && let Some(lane) = self.runs[at].lane
        {
            self.say_accepted(lane);
        }
    }

    /// A further command stream for a known operation.
    fn join(&mut self, lane: Lane) {
        let Some(state) = self.lanes.iter().find(|state| state.lane == lane) else {
            return;
        };
        let (operation, fence) = (state.operation, state.fence);
        if let Some(at) = self.run_at(operation) {
            self.runs[at].unsaid = None;
            self.say_accepted(lane);
            let before = self.runs[at].lane.replace(lane);
            if let Some(before) = before.filter(|before| *before != lane) {
                let same = |s: &super::LaneState| s.lane == before && s.fence == fence;
                if !self.lanes.iter().any(same) {
                    self.runs[at].sequence = 0;
                }
                self.lanes.retain(|state| state.lane != before);
                self.outputs.push_back(Output::Abandon(before));
            }
        } else if let Some(Body::Finished(outcome)) = self.journal.entry(operation).map(|e| &e.body)
        {
            let outcome = Outcome::clone(outcome);
            self.say_accepted(lane);
            self.say_finished(lane, operation, fence, outcome);
        } else {
            // Forgotten between the judgement and now: the result is safe with the gateway's side.
            self.lanes.retain(|state| state.lane != lane);
            self.outputs.push_back(Output::Abandon(lane));
        }
    }

    /// An outcome is durable.
    fn tell_end(&mut self, operation: OperationId) {
        let Some(at) = self.run_at(operation) else {
            return;
        };
        if !matches!(self.runs[at].step, Step::Ended(_)) {
            return;
        }
        self.say_unsaid(at);
        let run = self.runs.swap_remove(at);
        let Step::Ended(outcome) = run.step else {
            return;
        };
        let known = self.journal.entry(operation).map(|entry| entry.fence);
        let fence = known.unwrap_or(run.command.fence);
        let lane = run
            .lane
            .and_then(|lane| self.lanes.iter().find(|s| s.lane == lane));
        match lane.map(|state| (state.lane, state.fence)) {
            Some((lane, fence)) => {
                self.say_finished(lane, operation, fence, Outcome::clone(&outcome));
            }
            None if self.current().is_some() => self.reports.push_back(operation),
            None => {}
        }
        let notice = Notice::Finished(operation, fence, outcome);
        self.outputs.push_back(Output::Notice(notice));
    }

    fn tell_report(&mut self, link: Link, operation: OperationId) {
        if self.is_up(link)
            && let Some(message) = self.report(operation)
        {
            let message = Box::new(message);
            self.outputs.push_back(Output::Control { link, message });
        }
    }

    /// What is known about an operation.
    pub(super) fn report(&self, operation: OperationId) -> Option<AgentMessage> {
        let entry = self.journal.entry(operation)?;
        let state = match &entry.body {
            Body::Tombstone { .. } => OperationState::NeverSeen,
            Body::Open(_) => OperationState::Running,
            // Not durable yet: it will be reported when it is.
            Body::Finished(_) if self.run_at(operation).is_some() => OperationState::Running,
            Body::Finished(outcome) => OperationState::Finished(Outcome::clone(outcome)),
        };
        Some(AgentMessage::Report {
            operation,
            fence: entry.fence,
            state,
        })
    }

    fn say_accepted(&mut self, lane: Lane) {
        if let Some(state) = self.lanes.iter().find(|state| state.lane == lane) {
            let message = Box::new(AgentMessage::Accepted {
                operation: state.operation,
                fence: state.fence,
            });
            let last = false;
            self.outputs.push_back(Output::Reply {
                lane,
                message,
                last,
            });
        }
    }

    fn say_finished(&mut self, lane: Lane, operation: OperationId, fence: Fence, outcome: Outcome) {
        let message = Box::new(AgentMessage::Finished {
            operation,
            fence,
            outcome,
        });
        self.say_last(lane, message);
    }

    /// Refuses the command of a lane.
    pub(super) fn refuse(&mut self, lane: Lane, refusal: Refusal) {
        let Some(state) = self.lanes.iter().find(|state| state.lane == lane) else {
            return;
        };
        let (operation, fence) = (state.operation, state.fence);
        let notice = Notice::Refused(operation, fence, refusal.clone());
        self.outputs.push_back(Output::Notice(notice));
        let message = Box::new(AgentMessage::Refused {
            operation,
            fence,
            refusal,
        });
        self.say_last(lane, message);
    }

    fn say_last(&mut self, lane: Lane, message: Box<AgentMessage>) {
        if let Some(state) = self.lanes.iter_mut().find(|state| state.lane == lane) {
            state.told = matches!(*message, AgentMessage::Finished { .. });
            let last = true;
            self.outputs.push_back(Output::Reply {
                lane,
                message,
                last,
            });
        }
    }
}
