//! Agents as the process server sees them: their sessions, what is ready for them, what they may
//! be doing.
//!
//! The store is the truth about processes; what is here is a bounded copy of the part that is
//! needed at once. Of each agent's lines some are open ([`queues`]), and of their ready processes the
//! first are kept, [`READY_KEPT`] in all; the rest is fetched when these run out. Nothing is kept for an agent
//! at which nothing may be started, and however much those keep that take nothing, every other one has
//! room for [`READY_FLOOR`] and for the first of each line.

mod charges;
mod lines;
mod news;
mod questions;
mod queues;
mod sessions;
#[cfg(test)]
mod tests;
mod views;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::flow::{Demand, Line};
use protocol::ids::{AgentId, Epoch, GrantId, GroupId, ProcessId, ServerId, ShardId};
use protocol::limits::WEIGHT_MAX;
use protocol::link::{Request, Target};

use self::lines::Lines;
use self::queues::{Queues, Within};
use super::census::ShardSessions;
use super::handle::SessionView;
use super::pace::Ends;
use crate::clock::UnixMs;
use crate::process::pause::Pauses;
pub(super) use crate::store::lines::Place;
use crate::store::lines::{Found, ReadyCount, Want};
pub(super) use lines::LineId;
pub(super) use questions::{Active, Known};

/// Ready processes kept in memory for one agent; few in this crate's own tests, to reach the limit.
pub(super) const READY_KEPT: usize = if cfg!(test) { 8 } else { 256 };
/// Ready processes kept in memory for all agents, before each has no more than its floor.
pub(super) const READY_KEPT_TOTAL: usize = if cfg!(test) { 3 * READY_KEPT } else { 1 << 18 };
/// Ready processes that are kept for an agent however many others keep.
pub(super) const READY_FLOOR: usize = if cfg!(test) { 2 } else { 16 };
/// Demand told for one line of an agent at most: several times what any agent takes at once, so that a
/// long line needs one word for many processes.
const DEMAND_MAX: u32 = 64;
/// Demand is told anew when the gateway may be left with less than this.
const DEMAND_LOW: u32 = 16;

/// An agent.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) target: Target,
    /// It may connect.
    pub(super) admitted: bool,
    pub(super) session: Option<Box<SessionView>>,
    since: Option<UnixMs>,
    queues: Queues,
    /// Ready in the store, those in memory included.
    ready_stored: u32,
    /// A permit that the gateway gave before it was asked.
    offer: Option<(GrantId, Epoch)>,
    /// Nothing of it is to be started.
    paused: bool,
    /// How fast its operations end.
    ends: Ends,
    active: BTreeMap<ProcessId, Active>,
}

/// A permit that may be used, and the process to be claimed on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Taken {
    /// Its line.
    pub(super) line: LineId,
    pub(super) place: Place,
    pub(super) deadline: UnixMs,
}

/// All agents.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// This process server, to the gateways.
    server: ServerId,
    members: BTreeMap<AgentId, Member>,
    lines: Lines,
    /// Of tenants; others have 1.
    weights: BTreeMap<String, u32>,
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
    /// What is ready of agents that are not known here yet.
    unmet: BTreeMap<AgentId, Vec<ReadyCount>>,
    /// Up to here it was said what is believed to be claimed.
    believed_to: Option<(AgentId, ProcessId)>,
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
        // A pause of its group may hold it now.
        self.change(target.agent, |_, _| ());
        self.meet(target.agent);
    }

    /// What is not to be started, from now on. Says which agents' queues this may change.
    pub(super) fn set_pauses(&mut self, pauses: Pauses) -> Vec<AgentId> {
        let queues_change = pauses.differs_within_queues(&self.pauses);
        self.pauses = pauses;
        let mut changed = Vec::new();
        for (agent, member) in &mut self.members {
            let paused = self.pauses.holds_agent(&member.target);
            let turned = std::mem::replace(&mut member.paused, paused) != paused;
            if (turned || queues_change) && (member.ready_stored > 0 || member.queues.kept() > 0) {
                // What stands here is not known by kind, and for a paused agent nothing is kept.
                self.ready_kept -= member.queues.kept();
                member.queues.empty();
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

    /// How much tenants count beside each other, from now on; who is not named has 1, and others are
    /// taken to be within 1 to [`WEIGHT_MAX`]. Says which agents' gateways must be told.
    pub(super) fn set_weights(&mut self, weights: BTreeMap<String, u32>) -> Vec<AgentId> {
        if self.weights == weights {
            return Vec::new();
        }
        self.weights = weights;
        let mut changed = Vec::new();
        for (agent, member) in &mut self.members {
            if member.queues.is_told() {
                member.queues.restate();
                changed.push(*agent);
            }
        }
        changed
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
            queues: Queues::default(),
            ready_stored: 0,
            offer: None,
            paused: false,
            ends: Ends::default(),
            active: BTreeMap::new(),
        })
    }

    /// Changes what waits for an agent, within what may be kept in all. Afterwards nothing is kept for one at
    /// which nothing may be started.
    fn change<R>(
        &mut self,
        agent: AgentId,
        change: impl FnOnce(&mut Member, &mut Within<'_>) -> R,
    ) -> Option<R> {
        let member = self.members.get_mut(&agent)?;
        let before = member.queues.kept();
        let mut within = Within {
            lines: &mut self.lines,
            pauses: &self.pauses,
            room: member.room(self.ready_kept),
        };
        let result = change(member, &mut within);
        if !member.takes_work() && member.queues.kept() > 0 {
            member.queues.empty();
        }
        member.queues.tidy(&mut within);
        self.ready_kept = self.ready_kept + member.queues.kept() - before;
        Some(result)
    }

    /// Ready processes in the store, for all agents.
    pub(super) fn ready_stored(&self) -> u64 {
        self.ready_stored
    }

    /// Ready processes of an agent in the store.
    pub(super) fn waiting_for(&self, agent: AgentId) -> u32 {
        self.get(agent).map_or(0, |member| member.ready_stored)
    }

    /// How long so many take at an agent's present pace.
    pub(super) fn wait_for(&self, agent: AgentId, depth: u64, now: Instant) -> Duration {
        let ends = self.get(agent).map(|member| member.ends);
        ends.unwrap_or_default().pace().wait_for(depth, now)
    }

    /// One more operation of an agent has ended.
    pub(super) fn completed(&mut self, agent: AgentId, now: Instant) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.ends.one(now);
        }
    }

    /// So many more are ready in the store than was known.
    pub(super) fn count_ready(&mut self, agent: AgentId, more: u32) {
        self.set_ready(agent, self.waiting_for(agent).saturating_add(more));
    }

    /// So many are ready in the store.
    fn set_ready(&mut self, agent: AgentId, ready: u32) {
        let Some(member) = self.members.get_mut(&agent) else {
            return;
        };
        let before = u64::from(std::mem::replace(&mut member.ready_stored, ready));
        let turned = |all: u64| (all + u64::from(ready)).saturating_sub(before);
        self.ready_stored = turned(self.ready_stored);
        if member.session.is_none() {
            self.ready_without_session = turned(self.ready_without_session);
        }
    }

    /// One fewer is ready in the store; it may still stand in its line.
    pub(super) fn uncount_ready(&mut self, agent: AgentId, stood: Option<(&Line, Place)>) {
        self.set_ready(agent, self.waiting_for(agent).saturating_sub(1));
        if let Some((line, place)) = stood {
            self.change(agent, |member, within| {
                member.queues.remove(within.lines, line, place);
            });
        }
    }

    /// Puts a ready process into its line, if it is among those to be kept.
    pub(super) fn enqueue(
        &mut self,
        agent: AgentId,
        line: &Arc<Line>,
        (place, deadline): (Place, UnixMs),
    ) {
        self.change(agent, |member, within| {
            let entry = (place, deadline);
            member.queues.enqueue(within, line, entry);
        });
    }

    /// Puts a process back that was taken and not claimed.
    pub(super) fn put_back(&mut self, agent: AgentId, taken: &Taken) {
        self.change(agent, |member, within| {
            let entry = (taken.place, taken.deadline);
            member.queues.put(within, taken.line, entry);
        });
    }

    /// Whether something has run out while the store has more.
    pub(super) fn wants_refill(&self, agent: AgentId) -> bool {
        self.get(agent)
            .is_some_and(|member| member.takes_work() && member.queues.wants_refill(&self.pauses))
    }

    /// What the store is to be asked for; it is being asked now.
    pub(super) fn refill_begins(&mut self, agent: AgentId) -> Option<Want> {
        let member = self.members.get_mut(&agent)?;
        let room = member.room(self.ready_kept);
        let (lines, others) = member.queues.refill_begins(&self.pauses, room);
        Some(Want {
            agent,
            lines,
            others,
        })
    }

    /// Takes what the store has ready for an agent, without what is being claimed.
    pub(super) fn refill(&mut self, found: Found) {
        let agent = found.agent;
        self.change(agent, |member, within| {
            member.queues.refill(within, found);
        });
        if !self.pauses.differs_within_queues(&Pauses::default()) {
            self.ran_dry(agent);
        }
    }

    /// Takes up to `permits` from the head of an agent's line, to be claimed.
    pub(super) fn take(&mut self, agent: AgentId, line: LineId, permits: u32) -> Vec<Taken> {
        let taken = self.change(agent, |member, _| match member.paused {
            true => Vec::new(),
            false => member.queues.take(line, permits),
        });
        let taken = taken.unwrap_or_default().into_iter();
        let taken = taken.map(|(place, deadline)| Taken {
            line,
            place,
            deadline,
        });
        taken.collect()
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

    /// Takes what is to be claimed on the permit that was offered for an agent: what needs nothing but
    /// the agent, and only if nothing more urgent waits.
    pub(super) fn take_on_offer(
        &mut self,
        agent: AgentId,
    ) -> Option<(Target, GrantId, Epoch, Taken)> {
        self.change(agent, |member, within| {
            let (grant, epoch) = member.offer.filter(|_| !member.paused)?;
            let (line, (place, deadline)) = member.queues.take_on_offer(within.pauses)?;
            member.offer = None;
            let taken = Taken {
                line,
                place,
                deadline,
            };
            Some((member.target, grant, epoch, taken))
        })?
    }

    /// An offer that stands in the way of what waits for a grant: it keeps its place at the agent, and
    /// nothing that waits may use it. It is to be given back.
    pub(super) fn useless_offer(&mut self, agent: AgentId) -> Option<(Target, GrantId)> {
        let member = self.members.get_mut(&agent)?;
        let (grant, _) = member.offer.take_if(|_| member.queues.waits_for_grant())?;
        Some((member.target, grant))
    }

    /// One of those taken has been dispatched, or its permit was given back.
    pub(super) fn settle(&mut self, agent: AgentId, line: LineId, on_offer: bool) {
        self.change(agent, |member, _| member.queues.settle(line, on_offer));
    }

    /// Permits were given back that nothing had been taken for.
    pub(super) fn gave_back(&mut self, agent: AgentId, line: LineId, permits: u32) {
        self.change(agent, |member, _| {
            member.queues.gave_back(line, permits);
        });
    }

    /// Whatever the gateway was told about an agent's demand may be lost.
    pub(super) fn distrust_demand(&mut self, agent: AgentId) {
        self.change(agent, |member, _| member.queues.forget_told());
    }

    /// As [`Fleet::distrust_demand`], from time to time; lines that are stuck make room for others.
    pub(super) fn look_again(&mut self, agent: AgentId) {
        self.change(agent, |member, within| {
            let here = member.queues.kept() + member.queues.claiming() as usize;
            let missing = member.ready_stored as usize > here;
            member.queues.look_again(within, missing);
            member.queues.forget_told();
            // What was closed may still be known to the gateway.
            member.queues.restate();
        });
    }

    /// What the gateway must be told about an agent's demand now, if anything; `claims`: what is not claimed yet
    /// may be.
    pub(super) fn demand(&mut self, agent: AgentId, claims: bool) -> Option<Request> {
        self.get(agent)?.session.as_ref()?;
        let (target, wanted) = self.change(agent, |member, _| {
            let ready = claims && !member.paused;
            Some((member.target, member.queues.demand(ready)?))
        })??;
        let lines = wanted.into_iter().map(|wanted| Demand {
            number: wanted.id.0,
            ready: wanted.ready,
            deadline_ms: wanted.deadline.0,
            weight: self.weight(&wanted.line.tenant),
            line: Line::clone(&wanted.line),
        });
        Some(Request::Demand {
            target,
            server: self.server,
            lines: lines.collect(),
        })
    }

    fn weight(&self, tenant: &str) -> u32 {
        let weight = self.weights.get(tenant).copied().unwrap_or(1);
        weight.clamp(1, WEIGHT_MAX)
    }

    /// Agents whose demand is told anew from time to time, in case a word was lost.
    pub(super) fn waiting_agents(&self) -> impl Iterator<Item = AgentId> {
        self.members
            .values()
            .filter(|member| member.session.is_some() && member.ready_stored > 0)
            .map(|member| member.target.agent)
    }

    /// Agents whose gateways know of something that waits.
    pub(super) fn stated_agents(&self) -> impl Iterator<Item = AgentId> {
        let members = self.members.values();
        let stated = members.filter(|member| member.session.is_some() && member.queues.is_told());
        stated.map(|member| member.target.agent)
    }

    /// Whether gateways mean this process server by it.
    pub(super) fn is_named(&self, server: ServerId) -> bool {
        self.server == server
    }

    /// A line that is in use.
    pub(super) fn line(&self, line: LineId) -> Option<&Arc<Line>> {
        self.lines.get(line)
    }
}

impl Member {
    /// Whether something may be started at it.
    fn takes_work(&self) -> bool {
        self.session.is_some() && !self.paused
    }

    /// So many more may be kept for it while so many are kept for all.
    fn room(&self, kept_for_all: usize) -> usize {
        let floor = READY_FLOOR.saturating_sub(self.queues.kept());
        READY_KEPT_TOTAL.saturating_sub(kept_for_all).max(floor)
    }
}
