//! What agents may know something about, and when they are asked for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::flow::Line;
use protocol::ids::{AgentId, Fence, ProcessId};
use protocol::link::Target;

use super::{Fleet, LineId, Member};
use crate::process::{State, StepId};

/// The first wait before an agent is asked again.
const ASK_FIRST: Duration = Duration::from_secs(5);
/// An agent is asked again after this at the latest.
const ASK_MAX: Duration = Duration::from_secs(60);
/// A claimed process without a word from a connected agent is asked for after this.
const ASK_LEASED: Duration = Duration::from_secs(30);
/// A running process is asked for so long after its deadline.
const ASK_OVERDUE: Duration = Duration::from_secs(30);

/// What an agent may know about a process.
#[derive(Clone, Copy, Debug)]
pub(in crate::dispatch) struct Active {
    pub(in crate::dispatch) fence: Fence,
    pub(in crate::dispatch) step: StepId,
    pub(in crate::dispatch) state: State,
    /// What its operation holds permits of.
    pub(in crate::dispatch) line: LineId,
    /// When to ask the agent, if it has a session then.
    ask_at: Instant,
    ask_wait: Duration,
}

/// A process that its agent may know something about.
#[derive(Clone, Debug)]
pub(in crate::dispatch) struct Known {
    pub(in crate::dispatch) fence: Fence,
    pub(in crate::dispatch) step: StepId,
    pub(in crate::dispatch) state: State,
    pub(in crate::dispatch) line: Arc<Line>,
}

impl Fleet {
    /// An agent may know something about a process from now on.
    pub(in crate::dispatch) fn activate(
        &mut self,
        target: AgentId,
        process: ProcessId,
        known: &Known,
        deadline: Duration,
        now: Instant,
    ) {
        let Some(member) = self.members.get_mut(&target) else {
            return;
        };
        let wait = match known.state {
            State::Running => deadline + ASK_OVERDUE,
            State::Leased => ASK_LEASED,
            _ => ASK_FIRST,
        };
        let active = Active {
            fence: known.fence,
            step: known.step,
            state: known.state,
            line: self.lines.enter(&known.line),
            ask_at: now + wait,
            ask_wait: wait.min(ASK_MAX),
        };
        match member.active.insert(process, active) {
            Some(before) => self.lines.leave(before.line),
            None => self.active += 1,
        }
    }

    /// Its agent has nothing to do with a process any more.
    pub(in crate::dispatch) fn deactivate(&mut self, target: AgentId, process: ProcessId) {
        if let Some(member) = self.members.get_mut(&target)
            && let Some(before) = member.active.remove(&process)
        {
            self.lines.leave(before.line);
            self.active -= 1;
        }
    }

    /// Processes that agents may know something about.
    pub(in crate::dispatch) fn active(&self) -> usize {
        self.active
    }

    /// The next `max` of these, with the fence of each: after the last ones it begins anew.
    pub(in crate::dispatch) fn believed(&mut self, max: usize) -> Vec<(AgentId, ProcessId, Fence)> {
        let from = self.believed_to.map(|(agent, _)| agent);
        let members = match from {
            Some(agent) => self.members.range(agent..),
            None => self.members.range(..),
        };
        let active = members.flat_map(|(agent, member)| {
            let active = member.active.iter();
            active.map(|(process, active)| (*agent, *process, active.fence))
        });
        let next = active.filter(|(agent, process, _)| Some((*agent, *process)) > self.believed_to);
        let next: Vec<_> = next.take(max).collect();
        let last = next.last().filter(|_| next.len() >= max);
        self.believed_to = last.map(|(agent, process, _)| (*agent, *process));
        next
    }

    /// What agents with a session are to be asked about now; each is asked again later, at growing
    /// intervals.
    pub(in crate::dispatch) fn due_questions(
        &mut self,
        now: Instant,
    ) -> Vec<(Target, Vec<(ProcessId, Active)>)> {
        let mut questions = Vec::new();
        for member in self.members.values_mut() {
            if member.session.is_none() {
                continue;
            }
            let mut about = Vec::new();
            for (process, active) in &mut member.active {
                if active.ask_at <= now {
                    about.push((*process, *active));
                    active.ask_wait = (active.ask_wait * 2).min(ASK_MAX);
                    active.ask_at = now + active.ask_wait;
                }
            }
            if !about.is_empty() {
                questions.push((member.target, about));
            }
        }
        questions
    }
}

impl Member {
    /// What its agent may know something about.
    pub(in crate::dispatch) fn active(&self) -> &BTreeMap<ProcessId, Active> {
        &self.active
    }

    /// How much that is.
    pub(super) fn in_use(&self) -> u32 {
        u32::try_from(self.active.len()).unwrap_or(u32::MAX)
    }
}
