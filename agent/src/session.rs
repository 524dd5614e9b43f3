//! The agent's side of its sessions: a state machine without I/O, clock or randomness.
//!
//! ```text
//!    frames, stream ends ─▶ ┌─────────┐ ─▶ poll_output: messages, starts, stops, closes
//!    outcomes, progress  ─▶ │ Session │ ─▶ poll_persist: records to make durable
//!    durable / not       ─▶ │         │ ─▶ poll_report: results still owed, one at a time
//!    time                ─▶ └─────────┘ ─▶ poll_timeout
//! ```
//!
//! One value lives as long as the agent and spans its connections (*links*: two of them while it
//! moves to another gateway): running operations and owed results survive the loss of a link. What
//! the rest of the world may rely on is only said after the journal has it: an answer that depends on
//! a record waits in the record's batch ([`durable`]).
//!
//! It does not dial, does not know streams beyond their number, and does not run drivers.

mod command;
mod durable;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::agent::{AgentMessage, GatewayMessage, Hello, Welcome};
use protocol::close::{CANCEL_STREAM, CloseCode};
use protocol::ids::{AgentId, Epoch, Fence, OperationId};
use protocol::limits;
use protocol::operation::{
    Command, OpenOperation, OperationState, Outcome, OutcomeStatus, Phase, Progress, Refusal,
};
use protocol::version::{self, VersionRange};

use crate::driver::{Drivers, Recovered, StopReason, bare_outcome};
use crate::journal::{Body, Record, State};
use durable::{Batch, Effect};

/// A connection of one agent; counts up, so that the higher is the newer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Link(pub u32);

/// A command stream: its connection and QUIC stream id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lane {
    /// The connection.
    pub link: Link,
    /// The QUIC stream id.
    pub stream: u64,
}

/// What an agent says about itself, the same in every session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Operations at once, at most `limits::CAPACITY_MAX`.
    pub capacity: u32,
    /// For people: the host's name.
    pub hostname: String,
    /// For people: the software's version.
    pub software: String,
    /// For people and selection.
    pub labels: Vec<(String, String)>,
}

/// What the state machine wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send on the control stream of a link.
    Control {
        /// The link.
        link: Link,
        /// What.
        message: Box<AgentMessage>,
    },
    /// Send on a command stream.
    Reply {
        /// The stream.
        lane: Lane,
        /// What.
        message: Box<AgentMessage>,
        /// End the stream after it.
        last: bool,
    },
    /// Reset a command stream: another one took its place.
    Abandon(Lane),
    /// Run this operation.
    Start(Arc<Command>),
    /// Find out what became of this operation, which an earlier process of this agent ran.
    Recover(Arc<Command>),
    /// Stop a running operation.
    Stop {
        /// Which.
        operation: OperationId,
        /// Why.
        reason: StopReason,
    },
    /// The operation is forgotten here.
    Forgotten(OperationId),
    /// The gateway has accepted the session.
    Up {
        /// The link.
        link: Link,
        /// The gateway's words.
        welcome: Box<Welcome>,
    },
    /// The gateway sends the agent elsewhere. The link is over.
    Redirect {
        /// The link.
        link: Link,
        /// Where to.
        addresses: Vec<String>,
        /// Not before this.
        retry_after: Duration,
    },
    /// The gateway is draining: open a link elsewhere after `delay`.
    GoAway {
        /// The link that will end.
        link: Link,
        /// Where to; empty: where one was.
        addresses: Vec<String>,
        /// Wait so long first.
        delay: Duration,
        /// The link ends then.
        deadline: Duration,
    },
    /// Close a link.
    Close {
        /// The link.
        link: Link,
        /// Why.
        code: CloseCode,
    },
    /// For observers; nothing is to be done.
    Notice(Notice),
}

/// What observers may want to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// An operation is durably accepted.
    Accepted(OperationId, Fence),
    /// An operation has been refused.
    Refused(OperationId, Fence, Refusal),
    /// An operation's outcome is durable.
    Finished(OperationId, Fence, Arc<Outcome>),
}

#[derive(Debug)]
struct LinkState {
    link: Link,
    welcomed: bool,
}

#[derive(Debug)]
struct LaneState {
    lane: Lane,
    operation: OperationId,
    fence: Fence,
    /// The last message has been handed over.
    told: bool,
}

/// An operation that is open in the journal.
#[derive(Debug)]
struct Run {
    command: Arc<Command>,
    deadline: Instant,
    step: Step,
    lane: Option<Lane>,
    sequence: u32,
    stop: Option<StopReason>,
    /// Accepted is durable and not said yet: it waits until then for what follows.
    unsaid: Option<Instant>,
}

#[derive(Debug)]
enum Step {
    /// Its acceptance is being made durable.
    Preparing,
    /// Its driver is being asked what became of it.
    Recovering,
    /// Its driver runs.
    Working,
    /// It ended; that is being made durable.
    Ended(Arc<Outcome>),
}

/// The agent's side of its sessions. See the module's page.
pub struct Session {
    agent: AgentId,
    profile: Arc<Profile>,
    drivers: Arc<Drivers>,
    journal: State,
    /// The highest epoch seen, also where it could not be made durable.
    epoch: Epoch,
    /// Sessions begun, also where it could not be made durable.
    session_count: u64,
    stopping: bool,
    links: Vec<LinkState>,
    lanes: Vec<LaneState>,
    runs: Vec<Run>,
    open: Batch,
    in_flight: Option<Batch>,
    retry_at: Option<Instant>,
    /// When the latest batch became durable.
    durable_at: Instant,
    outputs: VecDeque<Output>,
    reports: VecDeque<OperationId>,
}

impl Session {
    /// An agent that begins with what its journal says. Every operation that was open is given to
    /// [`Output::Recover`]. `now_ms` is the wall clock: deadlines are absolute.
    pub fn new(
        now: Instant,
        now_ms: u64,
        agent: AgentId,
        profile: Arc<Profile>,
        drivers: Arc<Drivers>,
        journal: State,
    ) -> Self {
        let open = journal
            .entries()
            .filter_map(|(_, entry)| match &entry.body {
                Body::Open(command) => Some(Run {
                    command: Arc::clone(command),
                    deadline: deadline_of(now, now_ms, command),
                    step: Step::Recovering,
                    lane: None,
                    sequence: 0,
                    stop: None,
                    unsaid: None,
                }),
                _ => None,
            });
        let runs: Vec<_> = open.collect();
        let recover = |run: &Run| Output::Recover(Arc::clone(&run.command));
        Self {
            agent,
            profile,
            drivers,
            epoch: journal.epoch(),
            session_count: journal.session_count(),
            stopping: false,
            links: Vec::new(),
            lanes: Vec::new(),
            outputs: runs.iter().map(recover).collect(),
            runs,
            open: Batch::default(),
            in_flight: None,
            retry_at: None,
            durable_at: now,
            reports: VecDeque::new(),
            journal,
        }
    }

    /// Whether nothing is running and nothing waits to be made durable or sent.
    pub fn is_quiet(&self) -> bool {
        self.runs.is_empty()
            && self.in_flight.is_none()
            && self.open.is_empty()
            && self.outputs.is_empty()
            && self.lanes.is_empty()
    }

    /// Whether this link's session has been welcomed.
    pub fn is_up(&self, link: Link) -> bool {
        self.links
            .iter()
            .any(|state| state.link == link && state.welcomed)
    }

    /// A connection stands. Its Hello follows when the session count is durable.
    pub fn handle_connected(&mut self, link: Link) {
        self.links.push(LinkState {
            link,
            welcomed: false,
        });
        self.session_count = self.session_count.max(self.journal.session_count()) + 1;
        self.record(Record::SessionCount(self.session_count));
        self.defer(Effect::Hello(link));
    }

    /// A connection is gone. Operations go on; what they owe goes over the next one.
    pub fn handle_disconnected(&mut self, link: Link) {
        self.links.retain(|state| state.link != link);
        self.lanes.retain(|state| state.lane.link != link);
        for run in &mut self.runs {
            run.lane = run.lane.filter(|lane| lane.link != link);
        }
        if self.current().is_none() {
            self.reports.clear();
        }
    }

    /// A message on a link's control stream.
    pub fn handle_control(&mut self, link: Link, message: GatewayMessage) {
        let Some(at) = self.links.iter().position(|state| state.link == link) else {
            return;
        };
        match (self.links[at].welcomed, message) {
            (false, GatewayMessage::Welcome(welcome)) => self.welcomed(at, welcome),
            (
                false,
                GatewayMessage::Redirect {
                    addresses,
                    retry_after,
                },
            ) => {
                self.outputs.push_back(Output::Redirect {
                    link,
                    addresses,
                    retry_after,
                });
            }
            (true, GatewayMessage::Query { operations }) => {
                for (operation, fence) in operations {
                    self.query(link, operation, fence);
                }
            }
            (
                true,
                GatewayMessage::Cancel {
                    operation,
                    fence,
                    epoch,
                },
            ) => {
                self.cancel(link, operation, fence, epoch);
            }
            (true, GatewayMessage::Forget { operations }) => {
                for operation in operations {
                    self.forget(operation);
                }
            }
            (
                true,
                GatewayMessage::GoAway {
                    addresses,
                    delay,
                    deadline,
                },
            ) => {
                self.outputs.push_back(Output::GoAway {
                    link,
                    addresses,
                    delay,
                    deadline,
                });
            }
            (true, GatewayMessage::NewEpoch { epoch }) => self.note_epoch(epoch),
            (false, _) | (true, _) => self.outputs.push_back(Output::Close {
                link,
                code: CloseCode::UnexpectedFrame,
            }),
        }
    }

    fn welcomed(&mut self, at: usize, welcome: Box<Welcome>) {
        let link = self.links[at].link;
        let only = VersionRange {
            oldest: welcome.version,
            newest: welcome.version,
        };
        if version::SUPPORTED.negotiate(only).is_err() {
            let code = CloseCode::VersionMismatch;
            self.outputs.push_back(Output::Close { link, code });
            return;
        }
        self.links[at].welcomed = true;
        self.note_epoch(welcome.epoch);
        // What the gateway may have missed: everything that ended and was not forgotten.
        let finished = self.journal.entries().filter_map(|(operation, entry)| {
            matches!(entry.body, Body::Finished(_)).then_some(operation)
        });
        self.reports = finished.collect();
        if self.stopping {
            self.say_paused();
        }
        self.outputs.push_back(Output::Up { link, welcome });
    }

    /// The gateway reset its side of a command stream.
    pub fn handle_reset(&mut self, lane: Lane, code: u64) {
        let Some(state) = self.lanes.iter().find(|state| state.lane == lane) else {
            return;
        };
        if code == CANCEL_STREAM {
            let operation = state.operation;
            if let Some(at) = self.run_at(operation)
                && self.runs[at].lane == Some(lane)
            {
                self.stop(at, StopReason::Cancelled);
            }
        } else {
            self.handle_lane_closed(lane, false);
        }
    }

    /// A command stream is over. `delivered`: the gateway has acknowledged its last message.
    pub fn handle_lane_closed(&mut self, lane: Lane, delivered: bool) {
        let Some(at) = self.lanes.iter().position(|state| state.lane == lane) else {
            return;
        };
        let state = self.lanes.swap_remove(at);
        for run in &mut self.runs {
            run.lane = run.lane.filter(|of_run| *of_run != lane);
        }
        // The result was said into a stream that nobody read to its end.
        if state.told && !delivered && self.current().is_some() {
            self.reports.push_back(state.operation);
        }
    }

    /// A driver reports progress. Returns where it goes; `None`: nobody listens.
    pub fn handle_progress(
        &mut self,
        operation: OperationId,
        mut progress: Progress,
    ) -> Option<(Lane, AgentMessage)> {
        let at = self.run_at(operation)?;
        self.say_unsaid(at);
        let run = &mut self.runs[at];
        progress.sequence = run.sequence;
        run.sequence = run.sequence.saturating_add(1);
        let lane = run.lane?;
        let fence = self.lanes.iter().find(|state| state.lane == lane)?.fence;
        clip(&mut progress.message, limits::MESSAGE_BYTES_MAX);
        progress.output.truncate(limits::OUTPUT_BYTES_MAX);
        let message = AgentMessage::Progress {
            operation,
            fence,
            progress,
        };
        Some((lane, message))
    }

    /// A driver has ended.
    pub fn handle_outcome(&mut self, operation: OperationId, mut outcome: Outcome) {
        clip(&mut outcome.message, limits::MESSAGE_BYTES_MAX);
        let excess = outcome
            .output
            .len()
            .saturating_sub(limits::OUTPUT_BYTES_MAX);
        outcome.output = outcome.output.slice(excess..);
        if let Some(at) = self.run_at(operation) {
            self.end(at, outcome);
        }
    }

    /// A driver has found out about an operation of an earlier process.
    pub fn handle_recovered(&mut self, operation: OperationId, recovered: Recovered) {
        let Some(at) = self.run_at(operation) else {
            return;
        };
        match (recovered, self.runs[at].stop) {
            (Recovered::Finished(outcome), _) => self.end(at, outcome),
            (Recovered::Interrupted { message }, _) => {
                self.end(at, bare_outcome(OutcomeStatus::Interrupted, message));
            }
            (Recovered::Restart, Some(reason)) => self.end(at, stopped_before_start(reason)),
            (Recovered::Restart, None) => {
                let run = &mut self.runs[at];
                run.step = Step::Working;
                self.outputs
                    .push_back(Output::Start(Arc::clone(&run.command)));
            }
        }
    }

    /// The agent is to stop: no new operations; the running ones may end.
    pub fn handle_stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.say_paused();
        }
    }

    fn say_paused(&mut self) {
        if let Some(link) = self.current() {
            let message = Box::new(AgentMessage::Status { capacity: 0 });
            self.outputs.push_back(Output::Control { link, message });
        }
    }

    /// When [`Session::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let running = self.runs.iter();
        let deadlines = running
            .filter(|run| run.stop.is_none() && !matches!(run.step, Step::Ended(_)))
            .map(|run| run.deadline);
        let unsaid = self.runs.iter().filter_map(|run| run.unsaid);
        deadlines.chain(unsaid).chain(self.retry_at).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for at in 0..self.runs.len() {
            let run = &self.runs[at];
            if run.unsaid.is_some_and(|at| at <= now) {
                self.say_unsaid(at);
            }
            let run = &self.runs[at];
            if run.stop.is_none() && run.deadline <= now {
                self.stop(at, StopReason::Deadline);
            }
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.persist_again();
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next result that the gateway is still owed, as a message for the control stream of
    /// [`Session::current`]. Poll it only while there is room: results are large and may be many.
    pub fn poll_report(&mut self) -> Option<AgentMessage> {
        self.current()?;
        loop {
            let operation = self.reports.pop_front()?;
            // Forgotten meanwhile, or running again.
            if let Some(
                message @ AgentMessage::Report {
                    state: OperationState::Finished(_),
                    ..
                },
            ) = self.report(operation)
            {
                return Some(message);
            }
        }
    }

    /// The newest link whose session is up.
    pub fn current(&self) -> Option<Link> {
        let up = self.links.iter().filter(|state| state.welcomed);
        up.map(|state| state.link).max()
    }

    fn run_at(&self, operation: OperationId) -> Option<usize> {
        self.runs
            .iter()
            .position(|run| run.command.operation == operation)
    }

    fn hello(&self) -> Hello {
        let open = self.journal.entries().filter_map(|(operation, entry)| {
            let phase = match entry.body {
                Body::Open(_) => Phase::Running,
                Body::Finished(_) => Phase::Finished,
                Body::Tombstone { .. } => return None,
            };
            Some(OpenOperation {
                operation,
                fence: entry.fence,
                phase,
            })
        });
        Hello {
            versions: version::SUPPORTED,
            agent: self.agent,
            session_count: self.session_count,
            capacity: if self.stopping {
                0
            } else {
                self.profile.capacity
            },
            epoch_seen: self.epoch,
            kinds: self.drivers.kinds().map(str::to_owned).collect(),
            open: open.take(limits::OPERATIONS_PER_FRAME_MAX).collect(),
            hostname: self.profile.hostname.clone(),
            software: self.profile.software.clone(),
            labels: self.profile.labels.clone(),
        }
    }
}

/// The monotonic time of a command's absolute deadline.
fn deadline_of(now: Instant, now_ms: u64, command: &Command) -> Instant {
    // A deadline further away than a year is as good as none.
    const FAR: u64 = 365 * 24 * 3600 * 1000;
    let left = command.deadline_ms.saturating_sub(now_ms).min(FAR);
    now + Duration::from_millis(left)
}

fn stopped_before_start(reason: StopReason) -> Outcome {
    bare_outcome(reason.status(), "it was stopped before it started")
}

/// Shortens a text to at most `max` bytes, at a character's boundary.
pub(crate) fn clip(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
}

#[cfg(test)]
mod tests;
