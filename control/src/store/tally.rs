//! What several process servers on one store have in common, kept up with every commit: how many processes
//! are in which state and in which line, how much each agent has at work and has ended, and what others have changed
//! since one last looked.
//!
//! ```text
//!   commit ─▶ effects ─▶ counts by state, by tenant, by agent and line
//!                        each agent: when its lines changed last, and by whom
//!   beat   ─▶ the counts, and the lines of those agents that others have changed
//!   people ─▶ what an agent has at work, at this moment
//! ```
//!
//! Without it every server would count all that waits with every beat, which costs the more the more is
//! stuck. It begins when a second server is there: one alone knows everything by itself. The embedded store has
//! one process, so that all its writes pass here. A server's store has several: there, each counts its own commits
//! at once, and everything anew with each of its beats.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::flow::Line;
use protocol::ids::AgentId;
use uuid::Uuid;

use super::lines::ReadyCount;
use super::processes::{Applied, Creation};
use crate::process::State;

/// The counts, once they have begun.
#[derive(Default)]
pub(super) struct Tally(Mutex<Option<Counts>>);

/// What a process server has not seen yet.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct News {
    /// How far this goes: what the next look begins from.
    pub(crate) clock: u64,
    /// It is everything: what is not in it has nothing.
    pub(crate) all: bool,
    /// Agents with ready processes, or without any more, that somebody else has changed.
    pub(crate) agents: Vec<AgentId>,
    /// What is ready for these.
    pub(crate) ready: Vec<ReadyCount>,
    /// How many operations of these have ended since it began to count.
    pub(crate) ended: Vec<(AgentId, u64)>,
    /// What there is of each tenant, at all agents.
    pub(crate) tenants: BTreeMap<Arc<str>, TenantCount>,
    /// Processes that are not over, by state.
    pub(crate) states: BTreeMap<State, u64>,
}

/// What there is of a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct TenantCount {
    /// Processes that are ready.
    pub(crate) ready: u64,
    /// Operations that have ended since it began to count.
    pub(crate) ended: u64,
}

/// Tenants that are counted although nothing of them is ready; beyond that, they are forgotten.
const IDLE_MAX: usize = 4096;
/// Agents that are counted before any with nothing is forgotten; few in this crate's own tests, to reach it.
const AGENTS_MIN: usize = if cfg!(test) { 8 } else { 1 << 14 };

#[derive(Default)]
struct Counts {
    /// Grows with every change.
    clock: u64,
    states: BTreeMap<State, u64>,
    tenants: BTreeMap<Arc<str>, TenantCount>,
    agents: BTreeMap<AgentId, Agent>,
    /// The same by when each changed last: what has not changed lately costs a look nothing.
    by_change: BTreeSet<(u64, AgentId)>,
    /// When there are more, some of those with nothing are forgotten.
    agents_max: usize,
    /// When the last one of these changed last: whoever has not looked since then is told everything.
    forgotten: u64,
}

/// What there is of an agent.
#[derive(Default)]
struct Agent {
    lines: BTreeMap<Arc<Line>, u32>,
    /// Operations that it may know something about.
    active: u32,
    /// Operations that have ended.
    ended: u64,
    /// Who changed it last, and when.
    last: (u64, Option<Uuid>),
    /// When anybody else last did.
    others: u64,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Option<Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it counts.
    pub(super) fn has_begun(&self) -> bool {
        self.lock().is_some()
    }

    /// Begins with what the store has, or goes on from there, where other processes write as well: `ready` by
    /// agent and line, `waiting` by state, `claimed` by agent and state. To be called in the order of commits,
    /// as [`Tally::take`].
    pub(super) fn count(
        &self,
        ready: &[ReadyCount],
        waiting: &[(State, u64)],
        claimed: &[(AgentId, State, u32)],
    ) {
        let mut counts = Counts {
            clock: 1,
            ..Counts::default()
        };
        for (state, count) in waiting {
            counts.stay(*state, *count);
        }
        for (agent, state, count) in claimed {
            counts.stay(*state, u64::from(*count));
            counts.changed(None, *agent).active += count;
        }
        for count in ready {
            counts.tenant(&count.line.tenant).ready += u64::from(count.ready);
            let agent = counts.changed(None, count.agent);
            agent.lines.insert(Arc::clone(&count.line), count.ready);
        }
        match &mut *self.lock() {
            Some(before) => before.go_on_from(counts),
            begins => *begins = Some(counts),
        }
    }

    /// Takes what a commit of this process server has done.
    pub(super) fn take(&self, by: Option<Uuid>, applied: &Applied) {
        if let Some(counts) = &mut *self.lock() {
            counts.clock += 1;
            counts.take(by, applied);
        }
    }

    /// Operations that an agent may know something about, whichever process server has claimed them. `None`: it
    /// has not begun.
    pub(super) fn in_use(&self, agent: AgentId) -> Option<u32> {
        let begun = self.lock();
        let known = begun.as_ref()?.agents.get(&agent);
        Some(known.map_or(0, |agent| agent.active))
    }

    /// What has changed since `since`, other than by `by`: everything, since nothing. `None`: it has not begun.
    pub(super) fn news(&self, by: Uuid, since: Option<u64>) -> Option<News> {
        Some(self.lock().as_ref()?.news(by, since))
    }
}

impl Counts {
    /// So many more are in a state.
    fn stay(&mut self, state: State, count: u64) {
        if !state.is_terminal() {
            *self.states.entry(state).or_default() += count;
        }
    }

    /// Is as the store has it now: what differs, others have changed.
    fn go_on_from(&mut self, mut now: Self) {
        self.clock += 1;
        self.states = std::mem::take(&mut now.states);
        self.tenants
            .values_mut()
            .for_each(|tenant| tenant.ready = 0);
        for (tenant, count) in &now.tenants {
            self.tenant(tenant).ready = count.ready;
        }
        let known = self.agents.keys().chain(now.agents.keys());
        let known: BTreeSet<AgentId> = known.copied().collect();
        for id in known {
            let is = now.agents.remove(&id).unwrap_or_default();
            let same = |was: &Agent| (was.active, &was.lines) == (is.active, &is.lines);
            if self.agents.get(&id).is_some_and(same) {
                continue;
            }
            let agent = self.changed(None, id);
            // At least so many; those that began and ended meanwhile are not known.
            agent.ended += u64::from(agent.active.saturating_sub(is.active));
            (agent.active, agent.lines) = (is.active, is.lines);
        }
    }

    fn tenant(&mut self, tenant: &str) -> &mut TenantCount {
        if !self.tenants.contains_key(tenant) && self.tenants.len() >= IDLE_MAX {
            self.tenants.retain(|_, count| count.ready > 0);
        }
        self.tenants.entry(tenant.into()).or_default()
    }

    fn take(&mut self, by: Option<Uuid>, applied: &Applied) {
        for (creation, line) in applied.creations.iter().zip(&applied.lines) {
            if let Creation::Created(record) = creation {
                self.stay(record.state, 1);
                if let Some(line) = line {
                    self.enter(by, record.agent, line);
                }
            }
        }
        for effect in &applied.steps {
            let Some(now) = effect.now else { continue };
            let before = effect.before.unwrap_or(now.state);
            if before != now.state {
                if let Some(count) = self.states.get_mut(&before) {
                    *count = count.saturating_sub(1);
                }
                self.stay(now.state, 1);
            }
            let Some(names) = &effect.names else { continue };
            match (before.is_active(), now.state.is_active()) {
                (false, true) => self.changed(by, now.target).active += 1,
                (true, false) => {
                    self.tenant(&names.tenant).ended += 1;
                    let agent = self.changed(by, now.target);
                    agent.ended += 1;
                    agent.active = agent.active.saturating_sub(1);
                }
                _ => {}
            }
            let (was, is) = (before == State::Ready, now.state == State::Ready);
            if was != is || (is && names.line_before != names.line) {
                if was {
                    self.leave(by, now.target, &names.line_before);
                }
                if is {
                    self.enter(by, now.target, &names.line);
                }
            }
        }
    }

    fn enter(&mut self, by: Option<Uuid>, agent: AgentId, line: &Arc<Line>) {
        self.tenant(&line.tenant).ready += 1;
        let agent = self.changed(by, agent);
        *agent.lines.entry(Arc::clone(line)).or_default() += 1;
    }

    fn leave(&mut self, by: Option<Uuid>, agent: AgentId, line: &Arc<Line>) {
        let tenant = self.tenant(&line.tenant);
        tenant.ready = tenant.ready.saturating_sub(1);
        let agent = self.changed(by, agent);
        if let Some(count) = agent.lines.get_mut(line) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                agent.lines.remove(line);
            }
        }
    }

    fn changed(&mut self, by: Option<Uuid>, id: AgentId) -> &mut Agent {
        if self.agents.len() > self.agents_max.max(AGENTS_MIN) {
            self.forget_idle();
        }
        let agent = self.agents.entry(id).or_default();
        if agent.last.1 != by {
            agent.others = agent.last.0;
        }
        let before = std::mem::replace(&mut agent.last, (self.clock, by));
        if before.0 != self.clock {
            self.by_change.remove(&(before.0, id));
            self.by_change.insert((self.clock, id));
        }
        agent
    }

    /// Forgets agents with nothing, first what has not changed for longest: all servers have seen that but those
    /// that have hung. Some stay, and room for as many as are busy, so that this is not done with every change.
    fn forget_idle(&mut self) {
        let idle = |id| self.agents.get(id).is_none_or(Agent::is_idle);
        let busy = self.agents.keys().filter(|id| !idle(id)).count();
        let more = self.agents.len().saturating_sub(busy + AGENTS_MIN / 2);
        let oldest = self.by_change.iter().filter(|(_, id)| idle(id));
        let oldest: Vec<_> = oldest.take(more).copied().collect();
        for (changed, id) in oldest {
            self.forgotten = changed.max(self.forgotten);
            self.by_change.remove(&(changed, id));
            self.agents.remove(&id);
        }
        self.agents_max = 2 * busy + AGENTS_MIN;
    }

    fn news(&self, by: Uuid, since: Option<u64>) -> News {
        let since = since.filter(|since| *since >= self.forgotten);
        let (mut agents, mut ready, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let nobody = AgentId(Uuid::nil());
        let from = (since.map_or(0, |since| since + 1), nobody);
        for (_, agent) in self.by_change.range(from..) {
            let Some(counts) = self.agents.get(agent) else {
                continue;
            };
            if since.is_some_and(|since| counts.changed_by_others(by) <= since) {
                continue;
            }
            agents.push(*agent);
            ended.push((*agent, counts.ended));
            ready.extend(counts.lines.iter().map(|(line, ready)| ReadyCount {
                agent: *agent,
                line: Arc::clone(line),
                ready: *ready,
            }));
        }
        News {
            clock: self.clock,
            all: since.is_none(),
            agents,
            ready,
            ended,
            tenants: self.tenants.clone(),
            states: self.states.clone(),
        }
    }
}

impl Agent {
    fn is_idle(&self) -> bool {
        self.active == 0 && self.lines.is_empty()
    }

    /// When anybody but `by` changed it last.
    fn changed_by_others(&self, by: Uuid) -> u64 {
        match self.last {
            (_, Some(last)) if last == by => self.others,
            (at, _) => at,
        }
    }
}

#[cfg(test)]
pub(in crate::store) mod tests;
