//! Agents as the process server sees them: their sessions, what is ready for them, what they may
//! be doing.
//!
//! The store is the truth about processes; what is here is a bounded copy of the part that is
//! needed at once. Of each agent's ready processes the first [`READY_KEPT`] are kept, in the order
//! in which they are to be claimed; the rest is fetched when these run out.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use protocol::flow::Demand;
use protocol::ids::{AgentId, Epoch, Fence, GrantId, GroupId, ProcessId, ServerId, ShardId};
use protocol::link::{Request, Target};

use super::census::{Census, ShardSessions};
use super::handle::{AgentView, SessionView, WaitingOn};
use super::pace::Pace;
use crate::clock::UnixMs;
use crate::process::pause::Pauses;
use crate::process::{Class, State, StepId};

/// Ready processes kept in memory for one agent; few in this crate's own tests, to reach the limit.
pub(super) const READY_KEPT: usize = if cfg!(test) { 8 } else { 256 };
/// Ready processes kept in memory for all agents.
pub(super) const READY_KEPT_TOTAL: usize = 1 << 18;
/// Demand told for one agent at most: several times what any agent takes at once, so that a long
/// queue needs one word for many processes.
const DEMAND_MAX: u32 = 64;
/// Demand is told anew when the gateway may be left with less than this.
const DEMAND_LOW: u32 = 16;
/// All ready processes of an agent wait in one line.
const ANY_KIND: &str = "any";
/// The first wait before an agent is asked again.
const ASK_FIRST: Duration = Duration::from_secs(5);
/// An agent is asked again after this at the latest.
const ASK_MAX: Duration = Duration::from_secs(60);
/// A claimed process without a word from a connected agent is asked for after this.
const ASK_LEASED: Duration = Duration::from_secs(30);
/// A running process is asked for so long after its deadline.
const ASK_OVERDUE: Duration = Duration::from_secs(30);

/// A place in an agent's queue: class, then age.
pub(super) type Place = (Class, UnixMs, ProcessId);

/// What an agent may know about a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active {
    pub(super) fence: Fence,
    pub(super) step: StepId,
    pub(super) state: State,
    /// When to ask the agent, if it has a session then.
    ask_at: Instant,
    ask_wait: Duration,
}

/// An agent.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) target: Target,
    /// It may connect.
    pub(super) admitted: bool,
    pub(super) session: Option<Box<SessionView>>,
    pub(super) since: Option<UnixMs>,
    ready: BTreeSet<Place>,
    /// Ready in the store, those in memory included.
    ready_stored: u32,
    /// Taken from `ready` for a claim and not dispatched yet.
    claiming: u32,
    /// Of those: on an offer, so that the gateway knows of no demand for them.
    claiming_on_offer: u32,
    /// A permit that the gateway gave before it was asked.
    offer: Option<(GrantId, Epoch)>,
    /// What the gateway believes to be waiting.
    demand_told: u32,
    /// Nothing of it is to be started.
    paused: bool,
    /// The store is being asked for more, and nothing new has come since.
    refilling: bool,
    /// The store had nothing more that may be started.
    dry: bool,
    /// How fast its operations end.
    pace: Pace,
    active: BTreeMap<ProcessId, Active>,
}

/// All agents.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// This process server, to the gateways.
    server: ServerId,
    members: BTreeMap<AgentId, Member>,
    ready_kept: usize,
    ready_stored: u64,
    active: usize,
    connected: BTreeMap<GroupId, u64>,
    /// Of `ready_stored`: for agents without a session.
    ready_without_session: u64,
    by_shard: BTreeMap<ShardId, ShardSessions>,
    sessions_begun: u64,
    sessions_ended: u64,
    pauses: Pauses,
}

impl Fleet {
    /// No agents; `server` is this process server, to the gateways.
    pub(super) fn new(server: ServerId) -> Self {
        Self {
            server,
            ..Self::default()
        }
    }

    pub(super) fn admit(&mut self, target: Target) {
        let paused = self.pauses.holds_agent(&target);
        let member = self.member(target);
        member.admitted = true;
        member.target = target;
        member.paused = paused;
    }

    /// What is not to be started, from now on. Says which agents' queues this may change.
    pub(super) fn set_pauses(&mut self, pauses: Pauses) -> Vec<AgentId> {
        let queues_change = pauses.differs_within_queues(&self.pauses);
        self.pauses = pauses;
        let mut changed = Vec::new();
        for (agent, member) in &mut self.members {
            let paused = self.pauses.holds_agent(&member.target);
            let turned = std::mem::replace(&mut member.paused, paused) != paused;
            if queues_change {
                // What stands here is not known by tenant and kind: it is read anew.
                self.ready_kept -= member.ready.len();
                member.ready.clear();
                member.refilling = false;
                member.dry = false;
            }
            if turned || (queues_change && member.ready_stored > 0) {
                changed.push(*agent);
            }
        }
        changed
    }

    /// What is not to be started.
    pub(super) fn pauses(&self) -> &Pauses {
        &self.pauses
    }

    pub(super) fn revoke(&mut self, agent: AgentId) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.admitted = false;
        }
    }

    pub(super) fn get(&self, agent: AgentId) -> Option<&Member> {
        self.members.get(&agent)
    }

    fn member(&mut self, target: Target) -> &mut Member {
        self.members.entry(target.agent).or_insert_with(|| Member {
            target,
            admitted: false,
            session: None,
            since: None,
            ready: BTreeSet::new(),
            ready_stored: 0,
            claiming: 0,
            claiming_on_offer: 0,
            offer: None,
            demand_told: 0,
            paused: false,
            refilling: false,
            dry: false,
            pace: Pace::default(),
            active: BTreeMap::new(),
        })
    }

    /// A session began; the gateway knows nothing of its agent's demand.
    pub(super) fn connect(&mut self, target: Target, session: SessionView, now: UnixMs) {
        let paused = self.pauses.holds_agent(&target);
        let member = self.member(target);
        member.target = target;
        member.paused = paused;
        member.since = Some(now);
        member.demand_told = 0;
        member.offer = None;
        let (shard, at_home) = (session.shard, session.at_home);
        let ready = u64::from(member.ready_stored);
        match member.session.replace(Box::new(session)) {
            None => {
                *self.connected.entry(target.group).or_default() += 1;
                self.ready_without_session = self.ready_without_session.saturating_sub(ready);
            }
            Some(old) => self.leave(old.shard, old.at_home),
        }
        self.sessions_begun += 1;
        let shard = self.by_shard.entry(shard).or_default();
        shard.sessions += 1;
        shard.at_home += u64::from(at_home);
    }

    /// A session ended. False: it was not this agent's present one.
    pub(super) fn disconnect(
        &mut self,
        target: Target,
        session: protocol::ids::SessionId,
        now: UnixMs,
    ) -> bool {
        let Some(member) = self.members.get_mut(&target.agent) else {
            return false;
        };
        let Some(old) = member.session.take_if(|old| old.session == session) else {
            return false;
        };
        member.since = Some(now);
        self.ready_without_session += u64::from(member.ready_stored);
        member.demand_told = 0;
        member.offer = None;
        if let Some(count) = self.connected.get_mut(&target.group) {
            *count = count.saturating_sub(1);
        }
        self.leave(old.shard, old.at_home);
        true
    }

    /// A shard has a session less.
    fn leave(&mut self, shard: ShardId, at_home: bool) {
        self.sessions_ended += 1;
        if let Some(shard) = self.by_shard.get_mut(&shard) {
            shard.sessions = shard.sessions.saturating_sub(1);
            shard.at_home = shard.at_home.saturating_sub(u64::from(at_home));
        }
    }

    /// Who is there and what there is to do.
    pub(super) fn census(&self, processes: &BTreeMap<State, u64>) -> Census {
        Census {
            processes: processes.clone(),
            ready_without_session: self.ready_without_session,
            by_group: self.connected.clone(),
            by_shard: self.by_shard.clone(),
            sessions_begun: self.sessions_begun,
            sessions_ended: self.sessions_ended,
        }
    }

    pub(super) fn connected(&self) -> &BTreeMap<GroupId, u64> {
        &self.connected
    }

    /// Ready processes in the store, for all agents.
    pub(super) fn ready_stored(&self) -> u64 {
        self.ready_stored
    }

    /// Processes that agents may know something about.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// Ready processes of an agent in the store.
    pub(super) fn waiting_for(&self, agent: AgentId) -> u32 {
        self.get(agent).map_or(0, |member| member.ready_stored)
    }

    /// How long so many take at an agent's present pace.
    pub(super) fn wait_for(&self, agent: AgentId, depth: u64, now: Instant) -> Duration {
        let pace = self.get(agent).map(|member| member.pace);
        pace.unwrap_or_default().wait_for(depth, now)
    }

    /// One more operation of an agent has ended.
    pub(super) fn completed(&mut self, agent: AgentId, now: Instant) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.pace.one(now);
        }
    }

    /// So many more are ready in the store than was known.
    pub(super) fn count_ready(&mut self, agent: AgentId, more: u32) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.ready_stored = member.ready_stored.saturating_add(more);
            self.ready_stored += u64::from(more);
            if member.session.is_none() {
                self.ready_without_session += u64::from(more);
            }
        }
    }

    /// So many are ready in the store, whoever has made and taken them. Says for which agents there
    /// are any.
    pub(super) fn correct_ready(&mut self, counts: &BTreeMap<AgentId, u32>) -> Vec<AgentId> {
        let mut some = Vec::new();
        for (agent, member) in &mut self.members {
            // What is here may be newer than the count; what is not there any more shows when it is tried.
            let here = u32::try_from(member.ready.len()).unwrap_or(u32::MAX);
            let ready = counts.get(agent).copied().unwrap_or(0);
            let ready = ready.max(here.saturating_add(member.claiming));
            let before = std::mem::replace(&mut member.ready_stored, ready);
            self.ready_stored =
                (self.ready_stored + u64::from(ready)).saturating_sub(u64::from(before));
            if member.session.is_none() {
                let left = self.ready_without_session + u64::from(ready);
                self.ready_without_session = left.saturating_sub(u64::from(before));
            }
            if ready > 0 {
                member.dry = false;
                some.push(*agent);
            }
        }
        some
    }

    /// One fewer is ready in the store; it may still stand in the queue.
    pub(super) fn uncount_ready(&mut self, agent: AgentId, place: Option<Place>) {
        if let Some(member) = self.members.get_mut(&agent) {
            let one = u64::from(member.ready_stored > 0);
            self.ready_stored -= one;
            if member.session.is_none() {
                self.ready_without_session = self.ready_without_session.saturating_sub(one);
            }
            member.ready_stored = member.ready_stored.saturating_sub(1);
            let gone = place.is_some_and(|place| member.ready.remove(&place));
            self.ready_kept -= usize::from(gone);
        }
    }

    /// Puts a ready process into its agent's queue, if it is among those to be kept.
    pub(super) fn enqueue(&mut self, agent: AgentId, place: Place) {
        let full = self.ready_kept >= READY_KEPT_TOTAL;
        let Some(member) = self.members.get_mut(&agent) else {
            return;
        };
        member.refilling = false;
        member.dry = false;
        // With more in the store than here, what comes after the last one here is for later.
        let here = member.ready.len() + member.claiming as usize + 1;
        let beyond = member.ready_stored as usize > here;
        let last = member.ready.last().copied();
        if beyond && last.is_none_or(|last| place > last) {
            return;
        }
        if member.ready.len() >= READY_KEPT || full {
            match last {
                Some(last) if place < last => member.ready.remove(&last),
                _ => return,
            };
            self.ready_kept -= 1;
        }
        self.ready_kept += usize::from(member.ready.insert(place));
    }

    /// The store is being asked for an agent's queue.
    pub(super) fn refill_begins(&mut self, agent: AgentId) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.refilling = true;
        }
    }

    /// The store has nothing for an agent that may be started: it is asked again when something new
    /// has come, or after a while.
    pub(super) fn ran_dry(&mut self, agent: AgentId) {
        let all = !self.pauses.differs_within_queues(&Pauses::default());
        let Some(member) = self.members.get_mut(&agent) else {
            return;
        };
        member.dry = std::mem::take(&mut member.refilling);
        if member.dry && all {
            // Nothing is paused there: others have taken what was counted.
            let gone = member.ready_stored.saturating_sub(member.claiming);
            member.ready_stored -= gone;
            self.ready_stored = self.ready_stored.saturating_sub(u64::from(gone));
        }
    }

    /// Adds what the store has ready for an agent, from the first on.
    pub(super) fn refill(&mut self, agent: AgentId, places: impl IntoIterator<Item = Place>) {
        let Some(member) = self.members.get_mut(&agent) else {
            return;
        };
        for place in places {
            if member.ready.len() >= READY_KEPT || self.ready_kept >= READY_KEPT_TOTAL {
                break;
            }
            self.ready_kept += usize::from(member.ready.insert(place));
        }
    }

    /// Whether the queue has run out while the store has more.
    pub(super) fn wants_refill(&self, agent: AgentId) -> bool {
        self.get(agent).is_some_and(|member| {
            member.session.is_some()
                && !member.paused
                && !member.dry
                && member.ready.is_empty()
                && member.ready_stored > member.claiming
        })
    }

    /// Takes up to `permits` from the head of an agent's queue, to be claimed.
    pub(super) fn take(&mut self, agent: AgentId, permits: u32) -> Vec<Place> {
        let Some(member) = self.members.get_mut(&agent).filter(|member| !member.paused) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        while (taken.len() as u64) < u64::from(permits)
            && let Some(place) = member.ready.pop_first()
        {
            self.ready_kept -= 1;
            member.claiming += 1;
            taken.push(place);
        }
        taken
    }

    /// The gateway offers a permit.
    pub(super) fn offered(&mut self, agent: AgentId, grant: GrantId, epoch: Epoch) {
        if let Some(member) = self.members.get_mut(&agent)
            && member.session.is_some()
        {
            member.offer = Some((grant, epoch));
        }
    }

    /// The gateway takes its offer back.
    pub(super) fn withdrawn(&mut self, agent: AgentId, grant: GrantId) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.offer.take_if(|(offered, _)| *offered == grant);
        }
    }

    /// Takes the head of an agent's queue, to be claimed on the permit that was offered for it.
    pub(super) fn take_on_offer(
        &mut self,
        agent: AgentId,
    ) -> Option<(Target, GrantId, Epoch, Place)> {
        let member = self.members.get_mut(&agent)?;
        if member.paused || member.ready.is_empty() {
            return None;
        }
        let (grant, epoch) = member.offer.take()?;
        let place = member.ready.pop_first()?;
        self.ready_kept -= 1;
        member.claiming += 1;
        member.claiming_on_offer += 1;
        Some((member.target, grant, epoch, place))
    }

    /// One of those taken has been dispatched, or its permit was given back. Either way the
    /// gateway lowers the demand that it knows of, unless it was taken on an offer.
    pub(super) fn settle(&mut self, agent: AgentId, on_offer: bool) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.claiming = member.claiming.saturating_sub(1);
            if on_offer {
                member.claiming_on_offer = member.claiming_on_offer.saturating_sub(1);
            } else {
                member.demand_told = member.demand_told.saturating_sub(1);
            }
        }
    }

    /// Permits were given back that nothing had been taken for.
    pub(super) fn gave_back(&mut self, agent: AgentId, permits: u32) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.demand_told = member.demand_told.saturating_sub(permits);
        }
    }

    /// Whatever the gateway was told about an agent's demand may be lost.
    pub(super) fn distrust_demand(&mut self, agent: AgentId) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.demand_told = 0;
            member.dry = false;
        }
    }

    /// What the gateway must be told about an agent's demand now, if anything.
    pub(super) fn demand(&mut self, agent: AgentId) -> Option<Request> {
        let member = self.members.get_mut(&agent)?;
        member.session.as_ref()?;
        let ready = match member.paused {
            true => 0,
            false => u32::try_from(member.ready.len()).unwrap_or(u32::MAX),
        };
        let asked_for = member.claiming.saturating_sub(member.claiming_on_offer);
        let wanted = ready.saturating_add(asked_for).min(DEMAND_MAX);
        let too_low = member.demand_told < wanted.min(DEMAND_LOW);
        if !too_low && member.demand_told <= wanted {
            return None;
        }
        member.demand_told = wanted;
        Some(Request::Demand {
            target: member.target,
            server: self.server,
            lines: vec![Demand::of(ANY_KIND, wanted)],
        })
    }

    /// Agents whose demand is told anew from time to time, in case a word was lost.
    pub(super) fn waiting_agents(&self) -> impl Iterator<Item = AgentId> {
        self.members
            .values()
            .filter(|member| member.session.is_some() && member.ready_stored > 0)
            .map(|member| member.target.agent)
    }

    /// An agent may know something about a process from now on.
    pub(super) fn activate(
        &mut self,
        target: AgentId,
        process: ProcessId,
        (fence, step, state): (Fence, StepId, State),
        deadline: Duration,
        now: Instant,
    ) {
        let Some(member) = self.members.get_mut(&target) else {
            return;
        };
        let wait = match state {
            State::Running => deadline + ASK_OVERDUE,
            State::Leased => ASK_LEASED,
            _ => ASK_FIRST,
        };
        let active = Active {
            fence,
            step,
            state,
            ask_at: now + wait,
            ask_wait: wait.min(ASK_MAX),
        };
        self.active += usize::from(member.active.insert(process, active).is_none());
    }

    /// Its agent has nothing to do with a process any more.
    pub(super) fn deactivate(&mut self, target: AgentId, process: ProcessId) {
        if let Some(member) = self.members.get_mut(&target) {
            self.active -= usize::from(member.active.remove(&process).is_some());
        }
    }

    /// What agents with a session are to be asked about now; each is asked again later, at growing
    /// intervals.
    pub(super) fn due_questions(
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

    pub(super) fn view(&self, agent: AgentId) -> AgentView {
        let member = self.get(agent);
        AgentView {
            agent,
            session: member.and_then(|member| member.session.as_deref().cloned()),
            in_use: member.map_or(0, Member::in_use),
            ready: member.map_or(0, |member| member.ready_stored),
            since: member.and_then(|member| member.since),
        }
    }

    pub(super) fn waiting_on(
        &self,
        process: ProcessId,
        agent: AgentId,
        now: Instant,
    ) -> Option<WaitingOn> {
        let member = self.get(agent)?;
        let Some(session) = &member.session else {
            return Some(WaitingOn::Session { agent });
        };
        let place = member.ready.iter().position(|(_, _, id)| *id == process);
        let position = place.map_or(0, |at| u32::try_from(at + 1).unwrap_or(0));
        // One that is not made yet comes last; one that is not in memory as well, at most.
        let before = match position {
            0 => u64::from(member.ready_stored).max(1),
            position => u64::from(position),
        };
        let free = session.capacity.saturating_sub(member.in_use());
        let eta = match before <= u64::from(free) {
            true => Some(Duration::ZERO),
            false => member.pace.eta(before - u64::from(free), now),
        };
        Some(WaitingOn::Host {
            agent,
            limit: session.capacity,
            in_use: member.in_use(),
            position,
            eta,
        })
    }
}

impl Member {
    /// What its agent may know something about.
    pub(super) fn active(&self) -> &BTreeMap<ProcessId, Active> {
        &self.active
    }

    fn in_use(&self) -> u32 {
        u32::try_from(self.active.len()).unwrap_or(u32::MAX)
    }
}
