//! The home shard of groups: members, where their sessions are, and the way of every operation.
//!
//! ```text
//!   AssignGroup ──▶ group ◀─ member ◀── session up (newest wins) … session down
//!   Demand ──▶ lines of the member ──▶ Granted ──▶ Dispatch ──▶ session ──▶ Accepted … Finished
//!                 │ whose turn (`flow::fair`)                              │ how long it took
//!                 ▼                                                        ▼
//!              room in the agent's ledger, and in all other limits ◀── the agent's limit (`flow::controller`)
//! ```
//!
//! What the control plane sees of one agent is strictly in turns: `SessionUp`, then words about
//! operations, then `SessionDown` and an `Uncertain` for every operation that has not ended, then
//! perhaps the next `SessionUp`. A session that is replaced is down, here, at the moment when it
//! is replaced; what it still says afterwards counts only where it is certain knowledge of the
//! agent, and goes up as a `Report`.
//!
//! Nothing is kept about an agent without a session: the control plane states its demand again
//! after `SessionUp`, and repeats a `Cancel` or `Query` that met no session. The next inventory
//! tells what the agent is still busy with.
//!
//! An agent costs about 150 bytes here, and one with work some hundred more, or a thousand as long as its
//! limit is learnt.
//!
//! It does not decide who may connect (`Directory`), does not hold connections, and does not close
//! them: it tells the session's shard to.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::close::CloseCode;
use protocol::ids::{AgentId, Epoch, GrantId, GroupId, ShardId, Slot};
use protocol::limits::{GROUPS_MAX, SESSIONS_MAX};
use protocol::link::{DownReason, Event, Request, SessionUp, Target};
use rustc_hash::FxHashMap;
use slab::Slab;

use self::away::Away;
use self::demand::Statements;
use self::lending::Lending;
use self::limits::Limits;
pub(super) use self::lines::LineId;
use self::lines::Lines;
use super::permits::Ledger;
use super::{HomeOutput, Location, SessionCommand};
use crate::flow::controller::Controller;
use crate::flow::fair::Queues;
use crate::flow::ledger;

mod away;
mod demand;
#[cfg(test)]
mod fleet;
mod lending;
#[cfg(test)]
mod lent;
mod limits;
mod lines;
mod operations;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod told;

/// What a home shard must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HomeConfig {
    /// The life of a grant.
    pub grant_ttl: Duration,
    /// Whether agents with room are offered a permit before anybody asks.
    pub offers: bool,
    /// Whether an agent's limit follows what it can take; if not, it is the agent's capacity.
    pub adaptive: bool,
    /// When a group is released, its members leave one after the other, so long after each other: commands for one wait
    /// from then on until it is there.
    pub release_pace: Duration,
    /// … but none later than this.
    pub release_spread: Duration,
    /// When a group is released, its sessions are closed after this.
    pub release_deadline: Duration,
    /// Sessions that this shard can be home to.
    pub members_max: usize,
    /// Higher than that of any home of this shard before: when the gateway began.
    pub incarnation: u64,
}

impl Default for HomeConfig {
    fn default() -> Self {
        Self {
            grant_ttl: protocol::limits::GRANT_TTL,
            offers: true,
            adaptive: true,
            // Two groups a second move: together as many as a shard has handshakes for.
            release_pace: Duration::from_millis(4),
            release_spread: Duration::from_secs(10),
            release_deadline: Duration::from_secs(60),
            members_max: SESSIONS_MAX,
            incarnation: 1,
        }
    }
}

/// What a home shard did with permits and dispatches, since it was last asked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct PermitCounts {
    /// Permits granted.
    pub granted: u64,
    /// Permits offered before anybody asked.
    pub offered: u64,
    /// Offers taken back because their place went, or their epoch.
    pub withdrawn: u64,
    /// Permits that nobody used within the life of their grant.
    pub expired: u64,
    /// Dispatches without a valid permit.
    pub refused: u64,
    /// Demands that were not taken up because an agent had too many lines already.
    pub overflowed: u64,
    /// Dispatches that were not delivered because of what the home knows, those without a valid
    /// permit included; what sessions turned away is not here.
    pub turned_away: u64,
}

/// The groups whose home is one shard, with their members and permits.
pub(crate) struct Home {
    shard: ShardId,
    shards: u16,
    config: HomeConfig,
    draining: bool,
    /// At most `GROUPS_MAX`; released ones go when their last member does.
    groups: Slab<Group>,
    group_names: FxHashMap<GroupId, u32>,
    /// At most `config.members_max`. Ids come from our own certificates, so nobody can choose them
    /// to collide.
    members: Slab<Member>,
    member_names: FxHashMap<AgentId, u32>,
    /// Grants in the order of their end, which is that of their beginning. Used-up ones are swept
    /// out when there are more than `expiries_max`.
    expiries: VecDeque<Expiry>,
    expiries_max: usize,
    grants_made: u64,
    /// Lines that are in use.
    lines: Lines,
    limits: Limits,
    /// Permits of limits besides the agents' own. Who asks is a line of a member.
    shared: ledger::Ledger<(u32, LineId)>,
    /// What this home was lent of limits that span homes.
    lending: Lending,
    /// The last limit of agents without a session that have worked; at most one an agent that is
    /// admitted, about 24 bytes.
    known_limits: FxHashMap<AgentId, u32>,
    /// What operations hold whose agents have no session.
    away: BTreeMap<AgentId, Away>,
    /// When idle controllers are told that they are.
    rest_at: Option<Instant>,
    /// What deadlines, which come as milliseconds since the Unix epoch, are counted from: they are only
    /// compared with each other.
    began: Instant,
    outputs: VecDeque<HomeOutput>,
    counts: PermitCounts,
}

struct Group {
    id: GroupId,
    slot: Slot,
    epoch: Epoch,
    owned: bool,
    members: u32,
}

/// An agent with a session. Kept small: there are as many as agents.
struct Member {
    agent: AgentId,
    location: Location,
    session_count: u64,
    ledger: Ledger,
    controller: Controller,
    queues: Queues,
    statements: Statements,
    group: u32,
}

const _: () = assert!(size_of::<Member>() <= 96);

struct Expiry {
    at: Instant,
    grant: GrantId,
    member: u32,
}

/// Memory that the output queue may keep when it is empty, in entries.
const OUTPUTS_KEPT: usize = 1024;

impl Home {
    /// The home of the groups whose slot leads to `shard` of `shards`.
    pub(crate) fn new(now: Instant, shard: ShardId, shards: u16, config: HomeConfig) -> Self {
        Self {
            shard,
            shards,
            config,
            draining: false,
            groups: Slab::new(),
            group_names: FxHashMap::default(),
            members: Slab::new(),
            member_names: FxHashMap::default(),
            expiries: VecDeque::new(),
            expiries_max: 64,
            grants_made: 0,
            lines: Lines::default(),
            limits: Limits::default(),
            shared: ledger::Ledger::default(),
            lending: Lending::new(config.incarnation),
            known_limits: FxHashMap::default(),
            away: BTreeMap::new(),
            rest_at: None,
            began: now,
            outputs: VecDeque::new(),
            counts: PermitCounts::default(),
        }
    }

    /// Takes a request that was routed to this shard or to every shard. Those that are none of a
    /// home's business (`EnrolReply`) do nothing.
    pub(crate) fn handle_request(&mut self, now: Instant, request: Request) {
        match request {
            Request::AssignGroup { group, slot, epoch } => {
                self.assign(now, group, slot, epoch);
            }
            Request::ReleaseGroup {
                group,
                epoch,
                addresses,
            } => self.release(group, epoch, &addresses),
            Request::AdmitAgent { target, .. } => self.move_member(target),
            Request::RevokeAgent { agent } => self.revoke_agent(agent),
            Request::SetLimits { limits } => self.set_limits(now, limits),
            Request::Charge { target, operations } => self.charge(now, target, &operations),
            Request::Lend { leases, .. } => self.take_leases(now, &leases),
            Request::AskUse { keys } => self.report_on(now, &keys),
            Request::AskFlow { target, ticket } => self.tell_flow(now, target, ticket),
            Request::AskLimit { key, ticket } => self.tell_limit(&key, ticket),
            Request::Demand {
                target,
                server,
                lines,
            } => self.demand(now, target, server, &lines),
            Request::ReturnPermits {
                target,
                grant,
                unused,
            } => self.take_back(now, target, grant, unused),
            Request::Dispatch {
                target,
                grant,
                epoch,
                command,
            } => self.dispatch(now, target, grant, epoch, command),
            Request::Cancel {
                target,
                operation,
                fence,
            } => self.cancel(target, operation, fence),
            Request::Query { target, operations } => {
                self.tell_in_pieces(target, operations, SessionCommand::Query);
            }
            Request::Forget { target, operations } => {
                self.tell_in_pieces(target, operations, SessionCommand::Forget);
            }
            Request::Drain { .. } => self.drain(),
            Request::EnrolReply { .. } => {}
        }
        self.serve_woken(now);
    }

    /// Takes a session whose agent was admitted and has said Hello. Of two sessions of one agent
    /// the higher `session_count` wins, and of equal ones the later; the loser is closed.
    pub(crate) fn handle_session_up(
        &mut self,
        now: Instant,
        location: Location,
        up: Box<SessionUp>,
        session_count: u64,
    ) {
        let Some(group) = self.owned_group(up.target.group) else {
            // Released between the handshake and now: it finds the way when it comes again.
            self.tell(location, SessionCommand::Close(CloseCode::Redirected));
            return;
        };
        let agent = up.target.agent;
        if let Some(old) = self.member_names.get(&agent).copied() {
            let old_member = &self.members[old as usize];
            if session_count < old_member.session_count {
                self.tell(location, SessionCommand::Close(CloseCode::Superseded));
                return;
            }
            let old_location = old_member.location;
            self.tell(old_location, SessionCommand::Close(CloseCode::Superseded));
            self.remove_member(old, DownReason::ClosedHere(CloseCode::Superseded));
            self.serve_woken(now);
        }
        if self.members.len() >= self.config.members_max {
            self.tell(location, SessionCommand::Close(CloseCode::Overloaded));
            return;
        }
        let known = self.known_limits.remove(&agent);
        let index = index_u32(self.members.insert(Member {
            agent,
            location,
            session_count,
            ledger: Ledger::new(up.capacity, &up.open),
            controller: known.map_or(Controller::new(), Controller::warm),
            queues: Queues::new(),
            statements: Statements::default(),
            group,
        }));
        self.member_names.insert(agent, index);
        self.groups[group as usize].members += 1;
        self.come_back(index);
        self.event(Event::SessionUp(up));
        self.top_up(now, index);
        self.serve_woken(now);
    }

    /// Takes the end of a session. Its shard has already said, by `handle_operation`, which
    /// operations were certainly not delivered; every other one becomes uncertain here.
    pub(crate) fn handle_session_down(
        &mut self,
        now: Instant,
        location: Location,
        agent: AgentId,
        reason: DownReason,
    ) {
        if let Some(index) = self.member_names.get(&agent).copied()
            && self.members[index as usize].location == location
        {
            self.remove_member(index, reason);
            self.serve_woken(now);
        }
    }

    /// Takes back the permits of grants that are over.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(expiry) = self.expiries.pop_front_if(|expiry| expiry.at <= now) {
            if !self.members.contains(expiry.member as usize) {
                continue;
            }
            let expired = self.take_back_permits(expiry.member, expiry.grant, u32::MAX);
            self.counts.expired += u64::from(expired);
            if expired > 0 {
                self.top_up(now, expiry.member);
            }
        }
        self.sweep_front();
        self.rest(now);
        self.end_credits(now);
        self.serve_woken(now);
        self.report_use(now);
    }

    /// When `handle_timeout` is wanted.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.expiries.front().map(|expiry| expiry.at);
        let lending = self.lending.poll_timeout();
        expiry.into_iter().chain(self.rest_at).chain(lending).min()
    }

    /// The next thing to do, in order; call until `None` after every `handle_*`.
    pub(crate) fn poll_output(&mut self) -> Option<HomeOutput> {
        let output = self.outputs.pop_front();
        if output.is_none() && self.outputs.capacity() > OUTPUTS_KEPT {
            self.outputs.shrink_to(OUTPUTS_KEPT);
        }
        output
    }

    /// What happened since the last call.
    pub(crate) fn take_counts(&mut self) -> PermitCounts {
        std::mem::take(&mut self.counts)
    }

    fn assign(&mut self, now: Instant, id: GroupId, slot: Slot, epoch: Epoch) {
        self.lending.begin();
        let at_home = slot.home(self.shards) == self.shard;
        let Some(index) = self.group_names.get(&id).copied() else {
            if at_home {
                self.add_group(id, slot, epoch, true);
            }
            return;
        };
        let group = &mut self.groups[index as usize];
        if epoch <= group.epoch {
            return;
        }
        if !at_home {
            self.release(id, epoch, &[]);
            return;
        }
        group.slot = slot;
        group.epoch = epoch;
        group.owned = true;
        for member in self.members_of(index) {
            // Grants of the earlier epoch could only lead to refused dispatches. The demand is
            // still there, so its permits are granted anew.
            self.revoke_grants(now, member);
            self.withdraw_offer(member);
            let location = self.members[member as usize].location;
            self.tell(location, SessionCommand::NewEpoch(epoch));
            self.top_up(now, member);
        }
    }

    fn add_group(&mut self, id: GroupId, slot: Slot, epoch: Epoch, owned: bool) -> Option<u32> {
        if self.groups.len() >= GROUPS_MAX {
            return None;
        }
        let group = Group {
            id,
            slot,
            epoch,
            owned,
            members: 0,
        };
        let index = index_u32(self.groups.insert(group));
        self.group_names.insert(id, index);
        Some(index)
    }

    fn release(&mut self, id: GroupId, epoch: Epoch, addresses: &[String]) {
        let Some(index) = self.group_names.get(&id).copied() else {
            return;
        };
        let group = &mut self.groups[index as usize];
        if epoch < group.epoch || !group.owned {
            return;
        }
        group.epoch = epoch;
        group.owned = false;
        let (count, config) = (group.members, &self.config);
        let pace = config
            .release_pace
            .min(config.release_spread / count.max(1));
        for (place, member) in (0..).zip(self.members_of(index)) {
            self.withdraw(member);
            let go_away = SessionCommand::GoAway {
                addresses: addresses.to_vec(),
                delay: pace * place,
                deadline: self.config.release_deadline,
            };
            let location = self.members[member as usize].location;
            self.tell(location, go_away);
        }
        self.drop_group_if_empty(index);
    }

    /// An agent that was put into another group finds its new home when it connects again.
    fn move_member(&mut self, target: Target) {
        let Some(index) = self.member_names.get(&target.agent).copied() else {
            return;
        };
        let member = &self.members[index as usize];
        if self.groups[member.group as usize].id == target.group {
            return;
        }
        let location = member.location;
        self.withdraw(index);
        let go_away = SessionCommand::GoAway {
            addresses: Vec::new(),
            delay: Duration::ZERO,
            deadline: self.config.release_deadline,
        };
        self.tell(location, go_away);
    }

    fn revoke_agent(&mut self, agent: AgentId) {
        self.known_limits.remove(&agent);
        self.drop_away(agent);
        if let Some(index) = self.member_names.get(&agent).copied() {
            let location = self.members[index as usize].location;
            self.withdraw(index);
            self.tell(location, SessionCommand::Close(CloseCode::Revoked));
        }
    }

    /// No new work from now on. The shards that hold the sessions tell them to go.
    fn drain(&mut self) {
        self.draining = true;
        for index in self.all_members() {
            self.withdraw(index);
        }
    }

    /// Takes back the offer and the grants of a member and forgets its demand; it gets no new ones.
    fn withdraw(&mut self, index: u32) {
        self.withdraw_offer(index);
        self.forget_demand(index);
        self.members[index as usize].ledger.set_capacity(0);
    }

    fn remove_member(&mut self, index: u32, reason: DownReason) {
        let target = self.target(index);
        self.forget_demand(index);
        self.keep_away(index);
        let member = self.members.remove(index as usize);
        self.member_names.remove(&member.agent);
        if let Some(limit) = member.controller.known_limit() {
            self.known_limits.insert(member.agent, limit);
        }
        self.event(Event::SessionDown {
            target,
            session: member.location.session,
            reason,
        });
        for (operation, fence) in member.ledger.expected() {
            self.event(Event::Uncertain {
                target,
                operation,
                fence,
            });
        }
        self.groups[member.group as usize].members -= 1;
        self.drop_group_if_empty(member.group);
        self.sweep_front();
    }

    /// A released group is known only as long as it has members.
    fn drop_group_if_empty(&mut self, index: u32) {
        let group = &self.groups[index as usize];
        if !group.owned && group.members == 0 {
            self.group_names.remove(&group.id);
            self.drop_away_of_group(index);
            self.groups.remove(index as usize);
        }
    }

    fn owned_group(&self, id: GroupId) -> Option<u32> {
        let index = *self.group_names.get(&id)?;
        self.groups[index as usize].owned.then_some(index)
    }

    fn target(&self, index: u32) -> Target {
        let member = &self.members[index as usize];
        let group = &self.groups[member.group as usize];
        Target {
            agent: member.agent,
            group: group.id,
            slot: group.slot,
        }
    }

    fn members_of(&self, group: u32) -> Vec<u32> {
        let members = self.members.iter();
        let of_group = members.filter(|(_, member)| member.group == group);
        of_group.map(|(index, _)| index_u32(index)).collect()
    }

    fn all_members(&self) -> Vec<u32> {
        let members = self.members.iter();
        members.map(|(index, _)| index_u32(index)).collect()
    }

    fn tell(&mut self, location: Location, command: SessionCommand) {
        self.outputs
            .push_back(HomeOutput::ToSession(location, command));
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(HomeOutput::Event(event));
    }
}

/// Tables here have limits far below `u32::MAX`, which marks an index that no table has.
fn index_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
