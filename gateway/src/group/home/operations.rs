//! Permits and operations: what happens between a demand and the end of an operation.
//!
//! The table of words from sessions. *Expected* means: this very dispatch (operation and fence) is
//! charged and its end has not been told. Everything else is late or repeated knowledge.
//!
//! | word           | expected, from the member's session | otherwise                          |
//! |----------------|-------------------------------------|------------------------------------|
//! | `Accepted`     | `Accepted`                          | `Report(Accepted)`                 |
//! | `Progress`     | `Progress`                          | `Progress`                         |
//! | `Finished`     | `Finished`, permit free             | `Report(Finished)`, permit free    |
//! | `Refused`      | `Refused`, permit free              | nothing: a report will settle it   |
//! | `NotDelivered` | `NotDelivered`, permit free         | nothing: it was told as uncertain  |
//! | `Uncertain`    | `Uncertain`, stays charged          | nothing: it was told               |
//! | `Report`       | `Report`; permit free if it was never seen or has finished, for this fence or a lower one |

use std::time::Instant;

use protocol::ids::{AgentId, Epoch, Fence, GrantId, OperationId};
use protocol::limits::OPERATIONS_PER_FRAME_MAX;
use protocol::link::{Event, NotDelivered, Target};
use protocol::operation::{Command, OperationState};
use slab::Slab;

use super::super::permits::Ledger;
use super::super::{HomeOutput, Location, OperationEvent, SessionCommand};
use super::{Expiry, Home, Member};

impl Home {
    /// Takes what a session says about operations. Words of a session whose agent is not a member
    /// are dropped: the agent's journal keeps what is worth repeating.
    pub(crate) fn handle_operation(
        &mut self,
        now: Instant,
        location: Location,
        agent: AgentId,
        event: OperationEvent,
    ) {
        let Some(index) = self.member_names.get(&agent).copied() else {
            return;
        };
        let current = self.members[index as usize].location == location;
        if let OperationEvent::Capacity(capacity) = event {
            if current {
                self.members[index as usize].ledger.set_capacity(capacity);
                self.top_up(now, index);
            }
            return;
        }
        self.pass_on(index, current, event);
        self.top_up(now, index);
    }

    fn pass_on(&mut self, index: u32, current: bool, event: OperationEvent) {
        let target = self.target(index);
        let ledger = &mut self.members[index as usize].ledger;
        let expected = current
            && event
                .dispatch()
                .is_some_and(|(operation, fence)| ledger.expects(operation, fence));
        let told = match event {
            OperationEvent::Report {
                operation,
                fence,
                state,
            } => Some(reported(ledger, target, operation, fence, state, current)),
            OperationEvent::Progress {
                operation,
                fence,
                progress,
            } => Some(Event::Progress {
                target,
                operation,
                fence,
                progress,
            }),
            event if expected => first_hand(ledger, target, event),
            event => second_hand(ledger, target, event),
        };
        self.outputs.extend(told.map(HomeOutput::Event));
    }

    pub(super) fn demand(&mut self, now: Instant, target: Target, ready: u32) {
        if let Some(index) = self.member(target) {
            self.members[index as usize].ledger.set_demand(ready);
            self.top_up(now, index);
        }
    }

    pub(super) fn take_back(&mut self, now: Instant, target: Target, grant: GrantId, unused: u32) {
        if let Some(index) = self.member(target) {
            self.members[index as usize].ledger.take_back(grant, unused);
            self.top_up(now, index);
        }
    }

    /// Answers with exactly one of a dispatch to the session and `NotDelivered`.
    pub(super) fn dispatch(
        &mut self,
        now: Instant,
        target: Target,
        grant: GrantId,
        epoch: Epoch,
        command: Box<Command>,
    ) {
        let (operation, fence) = (command.operation, command.fence);
        match self.cover(target, grant, epoch, &command) {
            Ok(index) => {
                let location = self.members[index as usize].location;
                self.tell(location, SessionCommand::Dispatch { epoch, command });
            }
            Err(reason) => {
                self.counts.turned_away += 1;
                self.counts.refused += u64::from(reason == NotDelivered::NoGrant);
                self.event(not_delivered(target, operation, fence, reason));
            }
        }
        if let Some(index) = self.member(target) {
            self.top_up(now, index);
        }
    }

    /// Checks a dispatch and charges it.
    fn cover(
        &mut self,
        target: Target,
        grant: GrantId,
        epoch: Epoch,
        command: &Command,
    ) -> Result<u32, NotDelivered> {
        if self.draining {
            return Err(NotDelivered::Draining);
        }
        let group = self
            .owned_group(target.group)
            .ok_or(NotDelivered::NotOwner)?;
        if self.groups[group as usize].epoch != epoch {
            return Err(NotDelivered::StaleEpoch);
        }
        let index = self.member(target).ok_or(NotDelivered::NoSession)?;
        self.members[index as usize]
            .ledger
            .dispatch(grant, command.operation, command.fence)
            .map_err(|_| NotDelivered::NoGrant)?;
        Ok(index)
    }

    pub(super) fn cancel(&mut self, target: Target, operation: OperationId, fence: Fence) {
        if let Some(index) = self.member(target) {
            let member = &self.members[index as usize];
            let epoch = self.groups[member.group as usize].epoch;
            let cancel = SessionCommand::Cancel {
                operation,
                fence,
                epoch,
            };
            self.tell(member.location, cancel);
        }
    }

    /// Sends a list to the session, no more per message than fits into a frame.
    pub(super) fn tell_in_pieces<T>(
        &mut self,
        target: Target,
        mut items: Vec<T>,
        command: fn(Vec<T>) -> SessionCommand,
    ) {
        let Some(index) = self.member(target) else {
            return;
        };
        let location = self.members[index as usize].location;
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(OPERATIONS_PER_FRAME_MAX));
            self.tell(location, command(items));
            items = rest;
        }
    }

    /// Grants what is free and wanted, and offers a permit where nobody waits. Called after everything
    /// that can free a permit or raise the demand, so that nothing ever waits while there is room.
    pub(super) fn top_up(&mut self, now: Instant, index: u32) {
        self.sweep_front();
        let member = &self.members[index as usize];
        let group = &self.groups[member.group as usize];
        if self.draining || !group.owned {
            return;
        }
        let (target, epoch) = (self.target(index), group.epoch);
        self.withdraw_outgrown(index);
        let permits = self.members[index as usize].ledger.grantable();
        if permits > 0 {
            self.grant(now, index, epoch, permits);
        }
        if self.config.offers && self.members[index as usize].ledger.is_offerable() {
            let grant = self.next_grant();
            self.members[index as usize].ledger.offer(grant);
            self.counts.offered += 1;
            self.event(Event::Offered {
                target,
                grant,
                epoch,
            });
        }
    }

    fn grant(&mut self, now: Instant, index: u32, epoch: Epoch, permits: u32) {
        let (target, grant) = (self.target(index), self.next_grant());
        self.members[index as usize].ledger.grant(grant, permits);
        self.counts.granted += u64::from(permits);
        self.event(Event::Granted {
            target,
            grant,
            epoch,
            permits,
            ttl: self.config.grant_ttl,
        });
        self.remember_expiry(Expiry {
            at: now + self.config.grant_ttl,
            grant,
            member: index,
        });
    }

    /// Unique in the run of a gateway: every shard counts in its own residue class.
    fn next_grant(&mut self) -> GrantId {
        let grant = GrantId((self.grants_made << 16) | u64::from(self.shard.0));
        self.grants_made += 1;
        grant
    }

    /// Takes back the offer to a member.
    pub(super) fn withdraw_offer(&mut self, index: u32) {
        let withdrawn = self.members[index as usize].ledger.withdraw_offer();
        self.tell_withdrawn(index, withdrawn);
    }

    fn withdraw_outgrown(&mut self, index: u32) {
        let withdrawn = self.members[index as usize].ledger.outgrown_offer();
        self.tell_withdrawn(index, withdrawn);
    }

    fn tell_withdrawn(&mut self, index: u32, withdrawn: Option<GrantId>) {
        if let Some(grant) = withdrawn {
            self.counts.withdrawn += 1;
            let target = self.target(index);
            self.event(Event::Withdrawn { target, grant });
        }
    }

    /// The member that a target names, if it is in that group.
    fn member(&self, target: Target) -> Option<u32> {
        let index = *self.member_names.get(&target.agent)?;
        let group = self.members[index as usize].group;
        (self.groups[group as usize].id == target.group).then_some(index)
    }

    /// Grants that were used up need no end: drops those at the front, so that the next timeout is
    /// that of a live one.
    pub(super) fn sweep_front(&mut self) {
        let members = &self.members;
        while self
            .expiries
            .pop_front_if(|expiry| !is_live(members, expiry))
            .is_some()
        {}
    }

    fn remember_expiry(&mut self, expiry: Expiry) {
        if self.expiries.len() >= self.expiries_max {
            let members = &self.members;
            self.expiries.retain(|expiry| is_live(members, expiry));
            self.expiries_max = (2 * self.expiries.len()).max(64);
        }
        self.expiries.push_back(expiry);
    }
}

fn is_live(members: &Slab<Member>, expiry: &Expiry) -> bool {
    let member = members.get(expiry.member as usize);
    member.is_some_and(|member| member.ledger.holds(expiry.grant))
}

/// The words of the middle column of the table.
fn first_hand(ledger: &mut Ledger, target: Target, event: OperationEvent) -> Option<Event> {
    let told = match event {
        OperationEvent::Accepted { operation, fence } => Event::Accepted {
            target,
            operation,
            fence,
        },
        OperationEvent::Uncertain { operation, fence } => {
            ledger.set_uncertain(operation, fence, true);
            Event::Uncertain {
                target,
                operation,
                fence,
            }
        }
        OperationEvent::Finished {
            operation,
            fence,
            outcome,
        } => {
            ledger.settle(operation, fence);
            Event::Finished {
                target,
                operation,
                fence,
                outcome,
            }
        }
        OperationEvent::Refused {
            operation,
            fence,
            refusal,
        } => {
            ledger.settle(operation, fence);
            Event::Refused {
                target,
                operation,
                fence,
                refusal,
            }
        }
        OperationEvent::NotDelivered {
            operation,
            fence,
            reason,
        } => {
            ledger.settle(operation, fence);
            not_delivered(target, operation, fence, reason)
        }
        OperationEvent::Progress { .. }
        | OperationEvent::Report { .. }
        | OperationEvent::Capacity(_) => return None,
    };
    Some(told)
}

/// The words of the last column of the table.
fn second_hand(ledger: &mut Ledger, target: Target, event: OperationEvent) -> Option<Event> {
    match event {
        OperationEvent::Accepted { operation, fence } => {
            Some(report(target, operation, fence, OperationState::Accepted))
        }
        OperationEvent::Finished {
            operation,
            fence,
            outcome,
        } => {
            ledger.settle(operation, fence);
            let state = OperationState::Finished(outcome);
            Some(report(target, operation, fence, state))
        }
        _ => None,
    }
}

fn reported(
    ledger: &mut Ledger,
    target: Target,
    operation: OperationId,
    fence: Fence,
    state: OperationState,
    current: bool,
) -> Event {
    match state {
        OperationState::NeverSeen | OperationState::Finished(_) => ledger.settle(operation, fence),
        // It lives: should the session be lost, it becomes uncertain anew. A report never charges:
        // the end of the operation comes on another stream and may overtake it, and the permit
        // would be lost.
        OperationState::Accepted | OperationState::Running if current => {
            ledger.set_uncertain(operation, fence, false);
        }
        OperationState::Accepted | OperationState::Running => {}
    }
    report(target, operation, fence, state)
}

fn report(target: Target, operation: OperationId, fence: Fence, state: OperationState) -> Event {
    Event::Report {
        target,
        operation,
        fence,
        state,
    }
}

fn not_delivered(
    target: Target,
    operation: OperationId,
    fence: Fence,
    reason: NotDelivered,
) -> Event {
    Event::NotDelivered {
        target,
        operation,
        fence,
        reason,
    }
}
