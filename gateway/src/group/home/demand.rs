//! From demand to grants: whose turn it is, and whether every limit has room.
//!
//! What servers state is kept per member ([`Statements`]) so that a grant can name the server's own
//! number of the line, and so that demand outlives the grants of an earlier epoch. The order is that of
//! [`Queues`](crate::flow::fair::Queues). A line whose turn it is takes permits of all limits or none; one
//! that finds a limit used up is passed over and woken when there is room.

use std::time::{Duration, Instant};

use protocol::flow::{Demand, Limit};
use protocol::ids::{GrantId, ServerId};
use protocol::link::{Event, Target};

use super::super::permits::{Ledger, Purpose};
use super::limits::{self, Limits};
use super::{Expiry, Home, LineId};
use crate::flow::fair::{self, Cost, Fit, Room};
use crate::flow::ledger::{Denied, Key, Vector};

/// Idle controllers are looked for this often.
const REST_EVERY: Duration = Duration::from_secs(60);

/// What the servers state for one agent. Eight bytes where nobody states anything.
#[derive(Default)]
#[expect(
    clippy::box_collection,
    reason = "most agents are idle, and a vector alone would be three words for each"
)]
pub(super) struct Statements(Option<Box<Vec<Statement>>>);

#[derive(Clone, Copy)]
pub(super) struct Statement {
    pub(super) server: ServerId,
    /// The server's number of the line.
    pub(super) number: u32,
    pub(super) line: LineId,
    /// Not dispatched yet, those for which permits have been granted included.
    ready: u32,
    weight: u32,
    deadline: Instant,
}

impl Statement {
    /// Those for which no permit has been granted.
    pub(super) fn waiting(&self, ledger: &Ledger) -> u32 {
        self.ready.saturating_sub(ledger.granted_to(self.line))
    }

    fn demand(&self, ledger: &Ledger) -> fair::Demand {
        fair::Demand {
            count: self.waiting(ledger),
            deadline: Some(self.deadline),
            weight: self.weight,
        }
    }
}

#[expect(clippy::box_collection, reason = "it is handed on as it is kept")]
impl Statements {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn all(&self) -> &[Statement] {
        self.0.as_ref().map_or(&[][..], |all| all)
    }

    fn all_mut(&mut self) -> &mut [Statement] {
        self.0.as_mut().map_or(&mut [][..], |all| all)
    }

    fn take(&mut self) -> Box<Vec<Statement>> {
        self.0.take().unwrap_or_default()
    }

    fn put(&mut self, all: Box<Vec<Statement>>) {
        self.0 = (!all.is_empty()).then_some(all);
    }

    fn number(&self, server: u32, line: LineId) -> Option<u32> {
        let mut all = self.all().iter();
        let of = all.find(|stated| stated.server.0 == server && stated.line == line)?;
        Some(of.number)
    }
}

/// Permits that go to one server for one line.
struct Given {
    server: u32,
    line: LineId,
    cost: Cost,
    permits: u32,
}

impl Home {
    /// A server states all that it has ready for an agent.
    pub(super) fn demand(
        &mut self,
        now: Instant,
        target: Target,
        server: ServerId,
        lines: &[Demand],
    ) {
        let Some(index) = self.member(target) else {
            return;
        };
        let mut all = self.members[index as usize].statements.take();
        for stated in all.iter_mut().filter(|stated| stated.server == server) {
            stated.ready = 0;
        }
        for demand in lines {
            self.state(now, index, server, demand, &mut all);
        }
        // What is kept waits for something, so these were not stated again.
        if all.iter().any(|stated| stated.ready == 0) {
            self.forget_unstated(now, index, server, &mut all);
        }
        self.members[index as usize].statements.put(all);
        self.top_up(now, index);
    }

    /// One line of it; nothing where no demand is left, or too many lines are known.
    fn state(
        &mut self,
        now: Instant,
        index: u32,
        server: ServerId,
        demand: &Demand,
        all: &mut Vec<Statement>,
    ) {
        let line = self.lines.enter(&demand.line);
        let Some(flow) = self.lines.flow(line) else {
            return;
        };
        let member = &mut self.members[index as usize];
        let stated = Statement {
            server,
            number: demand.number,
            line,
            ready: demand.ready,
            weight: demand.weight,
            deadline: self.began + Duration::from_millis(demand.deadline_ms),
        };
        let waits = stated.demand(&member.ledger);
        let taken = member.queues.handle_demand(now, server.0, &flow, &waits);
        self.counts.overflowed += u64::from(taken.is_err());
        let is_it = |known: &&mut Statement| known.server == server && known.line == line;
        match all.iter_mut().find(is_it) {
            // It has its use of the line already.
            Some(known) => {
                *known = stated;
                self.lines.leave(line, 1);
            }
            None if taken.is_ok() && demand.ready > 0 => all.push(stated),
            None => self.lines.leave(line, 1),
        }
    }

    /// A server did not state these lines any more.
    fn forget_unstated(
        &mut self,
        now: Instant,
        index: u32,
        server: ServerId,
        all: &mut Vec<Statement>,
    ) {
        let queues = &mut self.members[index as usize].queues;
        for gone in all.iter().filter(|stated| stated.ready == 0) {
            if let Some(flow) = self.lines.flow(gone.line) {
                let none = fair::Demand::of(0);
                let taken = queues.handle_demand(now, server.0, &flow, &none);
                debug_assert!(taken.is_ok(), "a demand can always be taken back");
            }
            let waits = |stated: &Statement| stated.line == gone.line && stated.ready > 0;
            if !all.iter().any(waits) {
                self.shared.withdraw((index, gone.line));
            }
            self.lines.leave(gone.line, 1);
        }
        all.retain(|stated| stated.ready > 0);
    }

    /// Grants what is free and wanted, and offers a permit where nobody waits. Called after everything
    /// that can free a permit or raise the demand, so that nothing ever waits while there is room.
    pub(super) fn top_up(&mut self, now: Instant, index: u32) {
        self.sweep_front();
        let member = &mut self.members[index as usize];
        let group = &self.groups[member.group as usize];
        if self.draining || !group.owned {
            return;
        }
        let capacity = member.ledger.capacity();
        let bounds = self
            .limits
            .bounds(member.agent, capacity, self.config.adaptive);
        member.ledger.set_limit(member.controller.limit(&bounds));
        let epoch = group.epoch;
        self.withdraw_outgrown(index);
        if !self.members[index as usize].statements.is_empty() {
            self.give(now, index);
        }
        let member = &self.members[index as usize];
        let waits = |stated: &Statement| stated.waiting(&member.ledger) > 0;
        let nobody_waits = !member.statements.all().iter().any(waits);
        let offers = self.config.offers && self.limits.allow_offers();
        if offers && nobody_waits && member.ledger.is_offerable() {
            let (target, grant) = (self.target(index), self.next_grant());
            self.members[index as usize].ledger.offer(grant);
            self.counts.offered += 1;
            self.event(Event::Offered {
                target,
                grant,
                epoch,
            });
        }
    }

    /// Grants the free places, in the order of turns.
    fn give(&mut self, now: Instant, index: u32) {
        self.end_credits(now);
        let mut given: Option<Given> = None;
        let mut without_room: Vec<Key> = Vec::new();
        let member = &self.members[index as usize];
        let (mut free, mut reserve) = (member.ledger.free(), member.ledger.reserve());
        while free > 0 || reserve > 0 {
            let room = Room { free, reserve };
            let Some(next) = self.next_turn(now, index, room, &mut without_room) else {
                break;
            };
            match free {
                0 => reserve = 0,
                _ => free -= 1,
            }
            let line = LineId(next.flow.resources);
            match &mut given {
                Some(last) if last.line == line && last.server == next.server => last.permits += 1,
                _ => {
                    let before = given.replace(Given {
                        server: next.server,
                        line,
                        cost: next.cost,
                        permits: 1,
                    });
                    self.grant(now, index, before);
                }
            }
        }
        self.grant(now, index, given);
        for key in without_room {
            self.want_credit(now, key);
        }
    }

    /// Who gets the next permit: it has taken a place of every other limit. Limits without room are noted.
    fn next_turn(
        &mut self,
        now: Instant,
        index: u32,
        room: Room,
        without_room: &mut Vec<Key>,
    ) -> Option<fair::Grant> {
        let member = &mut self.members[index as usize];
        let group = (member.group, self.groups[member.group as usize].id);
        let (shared, lines, limits) = (&mut self.shared, &self.lines, &self.limits);
        let fits = |flow: &fair::Flow, _server: u32| {
            let line = LineId(flow.resources);
            let Some(of) = lines.get(line) else {
                return Fit::Park;
            };
            for (key, limit) in limits.of(Some(index), group, of) {
                if shared.limit(key) != Some(limit) {
                    shared.set_limit(key, Some(limit));
                }
            }
            let vector = limits::vector(limits.of(Some(index), group, of));
            if vector.keys().is_empty() {
                return Fit::Take;
            }
            match shared.acquire((index, line), of.class as u64, &vector) {
                Ok(()) => Fit::Take,
                Err(Denied::Parked(key) | Denied::Full(key)) => {
                    without_room.push(key);
                    Fit::Park
                }
            }
        };
        member.queues.next(now, room, fits)
    }

    fn grant(&mut self, now: Instant, index: u32, given: Option<Given>) {
        let Some(given) = given else { return };
        let (target, grant) = (self.target(index), self.next_grant());
        let member = &mut self.members[index as usize];
        let epoch = self.groups[member.group as usize].epoch;
        let purpose = Purpose {
            line: given.line,
            cost: given.cost,
        };
        self.lines.hold(given.line, given.permits);
        member.ledger.grant(grant, given.permits, purpose);
        let number = member.statements.number(given.server, given.line);
        self.counts.granted += u64::from(given.permits);
        self.event(Event::Granted {
            target,
            server: ServerId(given.server),
            line: number.unwrap_or(u32::MAX),
            grant,
            epoch,
            permits: given.permits,
            ttl: self.config.grant_ttl,
        });
        self.remember_expiry(Expiry {
            at: now + self.config.grant_ttl,
            grant,
            member: index,
        });
    }

    /// Takes unused permits back: how many there were. What was not needed is not granted again until a
    /// server says so.
    pub(super) fn take_back_permits(&mut self, index: u32, grant: GrantId, unused: u32) -> u32 {
        let ledger = &mut self.members[index as usize].ledger;
        let (taken, purpose) = ledger.take_back(grant, unused);
        if let Some(purpose) = purpose {
            self.lower(index, purpose.line, taken);
            self.free(index, taken, purpose);
        }
        taken
    }

    /// Permits that were not used hold nothing any more.
    pub(super) fn free(&mut self, index: u32, permits: u32, purpose: Purpose) {
        for _ in 0..permits {
            self.give_back(index, purpose, Duration::ZERO);
        }
    }

    /// So many permits of a line are used, or were not needed: so many fewer are ready, whoever stated
    /// them. What waits for nothing more is forgotten.
    pub(super) fn lower(&mut self, index: u32, line: LineId, permits: u32) {
        let statements = &mut self.members[index as usize].statements;
        let mut done = false;
        for stated in statements.all_mut() {
            if stated.line == line {
                stated.ready = stated.ready.saturating_sub(permits);
                done |= stated.ready == 0;
            }
        }
        if done {
            let mut all = statements.take();
            let before = all.len();
            all.retain(|stated| stated.ready > 0);
            let gone = super::index_u32(before - all.len());
            let stated = all.iter().any(|stated| stated.line == line);
            statements.put(all);
            if !stated {
                self.shared.withdraw((index, line));
            }
            self.lines.leave(line, gone);
        }
    }

    /// What a permit of a line takes besides the agent's own, at a member or at an agent without a
    /// session.
    pub(super) fn keys(&self, member: Option<u32>, group: u32, line: LineId) -> Vector {
        let of_group = (group, self.groups[group as usize].id);
        match self.lines.get(line) {
            Some(line) => limits::vector(self.limits.of(member, of_group, line)),
            None => Vector::default(),
        }
    }

    /// One permit is over after so long on the agent.
    pub(super) fn give_back(&mut self, index: u32, purpose: Purpose, service: Duration) {
        let member = &mut self.members[index as usize];
        let group = member.group;
        if let Some(flow) = self.lines.flow(purpose.line) {
            member.queues.handle_end(&flow, purpose.cost, service);
        }
        let keys = self.keys(Some(index), group, purpose.line);
        self.shared.release(&keys);
        self.lines.leave(purpose.line, 1);
    }

    /// The grants of a member are void, but the demand is still there.
    pub(super) fn revoke_grants(&mut self, now: Instant, index: u32) {
        let revoked = self.members[index as usize].ledger.revoke();
        for (permits, purpose) in revoked {
            let member = &mut self.members[index as usize];
            if let Some(flow) = self.lines.flow(purpose.line) {
                let all = member.statements.all().iter();
                for stated in all.filter(|stated| stated.line == purpose.line) {
                    let demand = stated.demand(&member.ledger);
                    let taken = member
                        .queues
                        .handle_demand(now, stated.server.0, &flow, &demand);
                    debug_assert!(taken.is_ok(), "there was room for it before");
                }
            }
            self.free(index, permits, purpose);
        }
    }

    /// Nobody waits for a member any more, and it has no grants.
    pub(super) fn forget_demand(&mut self, index: u32) {
        let member = &mut self.members[index as usize];
        member.queues = fair::Queues::new();
        let revoked = member.ledger.revoke();
        for stated in *member.statements.take() {
            self.shared.withdraw((index, stated.line));
            self.lines.leave(stated.line, 1);
        }
        for (permits, purpose) in revoked {
            self.free(index, permits, purpose);
        }
    }

    /// Replaces the limits that operators set, and counts everything anew under them.
    pub(super) fn set_limits(&mut self, now: Instant, limits: Vec<Limit>) {
        let mut old = std::mem::replace(&mut self.limits, Limits::new(limits));
        self.shared = crate::flow::ledger::Ledger::default();
        let members = self.all_members();
        for index in &members {
            let member = &self.members[*index as usize];
            let charged = member.ledger.charges().filter_map(|charge| charge.purpose);
            let granted = member.ledger.unused();
            let held = charged.map(|purpose| (1, purpose)).chain(granted);
            for (permits, purpose) in held {
                let keys = self.keys(Some(*index), member.group, purpose.line);
                (0..permits).for_each(|_| self.shared.charge(&keys));
            }
        }
        self.charge_away();
        self.keep_children(now, old.spanning_names());
        for index in members {
            if !self.limits.allow_offers() {
                self.withdraw_offer(index);
            }
            self.unpark(index);
            self.top_up(now, index);
        }
    }

    /// Every line of a member may be tried again.
    fn unpark(&mut self, index: u32) {
        let member = &mut self.members[index as usize];
        for stated in member.statements.all() {
            if let Some(flow) = self.lines.flow(stated.line) {
                member.queues.handle_wake(&flow);
            }
        }
    }

    /// Lets those take a permit for whom a limit has room again.
    pub(super) fn serve_woken(&mut self, now: Instant) {
        while let Some((index, line)) = self.shared.poll_wake() {
            if let Some(member) = self.members.get_mut(index as usize) {
                if let Some(flow) = self.lines.flow(line) {
                    member.queues.handle_wake(&flow);
                }
                self.top_up(now, index);
            }
            // Whoever cannot use the room leaves it to the next.
            self.shared.decline((index, line));
        }
    }

    /// Tells controllers that are idle so; they let go of what they learnt.
    pub(super) fn rest(&mut self, now: Instant) {
        if self.rest_at.is_none_or(|at| at > now) {
            return;
        }
        let mut busy = false;
        for (_, member) in &mut self.members {
            if member.controller.poll_timeout().is_some_and(|at| at <= now) {
                let capacity = member.ledger.capacity();
                let bounds = self
                    .limits
                    .bounds(member.agent, capacity, self.config.adaptive);
                member.controller.handle_timeout(now, &bounds);
            }
            busy |= member.controller.poll_timeout().is_some();
        }
        self.rest_at = busy.then_some(now + REST_EVERY);
    }

    /// A controller has something to let go of, some day.
    pub(super) fn wake_rest(&mut self, now: Instant) {
        self.rest_at.get_or_insert(now + REST_EVERY);
    }
}
