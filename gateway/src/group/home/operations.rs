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

use std::time::{Duration, Instant};

use protocol::ids::{AgentId, Epoch, Fence, GrantId, OperationId};
use protocol::limits::OPERATIONS_PER_FRAME_MAX;
use protocol::link::{Event, NotDelivered, Target};
use protocol::operation::{Command, OperationState, Outcome, OutcomeStatus, Refusal};
use slab::Slab;

use super::super::permits::{Charge, Ledger, NotCovered, Sent};
use super::super::{HomeOutput, Location, OperationEvent, SessionCommand};
use super::{Expiry, Home, Member, lines};
use crate::flow::controller::{End, Sample};

/// What takes less is taken to have taken this: durations are compared as multiples.
const SERVICE_MIN: Duration = Duration::from_micros(1);

/// How an operation that took a permit came to be over.
#[derive(Clone, Copy)]
struct Over {
    /// How long it was on the agent.
    service: Duration,
    /// What that says about the agent; nothing where it failed: failing takes its own time.
    end: Option<End>,
}

impl Over {
    const UNSEEN: Self = Self {
        service: Duration::ZERO,
        end: None,
    };

    fn with(outcome: &Outcome) -> Self {
        Self {
            service: outcome.service_time,
            end: match outcome.status {
                OutcomeStatus::Succeeded => Some(End::Ran),
                OutcomeStatus::DeadlineExceeded => Some(End::TimedOut),
                _ => None,
            },
        }
    }
}

/// Whether this word ends what its operation is charged for, and how.
fn is_over(event: &OperationEvent, expected: bool) -> Option<Over> {
    match event {
        OperationEvent::Finished { outcome, .. } => Some(Over::with(outcome)),
        OperationEvent::Refused { refusal, .. } if expected => Some(Over {
            end: matches!(refusal, Refusal::Busy { .. }).then_some(End::Busy),
            ..Over::UNSEEN
        }),
        OperationEvent::NotDelivered { .. } if expected => Some(Over::UNSEEN),
        OperationEvent::Report { state, .. } => match state {
            OperationState::NeverSeen => Some(Over::UNSEEN),
            // It may have ended long ago: that says nothing about now.
            OperationState::Finished(outcome) => Some(Over {
                end: None,
                ..Over::with(outcome)
            }),
            OperationState::Accepted | OperationState::Running => None,
        },
        _ => None,
    }
}

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
        match event {
            OperationEvent::Capacity(_) if !current => return,
            OperationEvent::Capacity(capacity) => {
                self.members[index as usize].ledger.set_capacity(capacity);
            }
            event => self.pass_on(now, index, current, event),
        }
        self.top_up(now, index);
        self.serve_woken(now);
    }

    fn pass_on(&mut self, now: Instant, index: u32, current: bool, event: OperationEvent) {
        let target = self.target(index);
        let ledger = &mut self.members[index as usize].ledger;
        let in_flight = ledger.charged();
        let expected = current
            && event
                .dispatch()
                .is_some_and(|(operation, fence)| ledger.expects(operation, fence));
        let over = is_over(&event, expected);
        let settled = over.and_then(|over| {
            let (operation, fence) = event.dispatch()?;
            Some((ledger.settle(operation, fence)?, over))
        });
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
            event => second_hand(target, event),
        };
        self.outputs.extend(told.map(HomeOutput::Event));
        if let Some((charge, over)) = settled {
            self.learn(now, index, &charge, over, in_flight);
        }
    }

    /// An operation that took a permit is over: its time counts for the order of grants, and for the
    /// agent's limit.
    fn learn(&mut self, now: Instant, index: u32, charge: &Charge, over: Over, in_flight: u32) {
        if let Some(purpose) = charge.purpose {
            self.give_back(index, purpose, over.service);
        }
        let (true, Some(kind), Some(end)) = (self.config.adaptive, charge.kind, over.end) else {
            return;
        };
        let member = &mut self.members[index as usize];
        let capacity = member.ledger.capacity();
        let bounds = self.limits.bounds(member.agent, capacity, true);
        let sample = Sample {
            kind,
            service: over.service.max(SERVICE_MIN),
            end,
            in_flight,
        };
        member.controller.handle_end(now, &bounds, &sample);
        self.wake_rest(now);
    }

    pub(super) fn take_back(&mut self, now: Instant, target: Target, grant: GrantId, unused: u32) {
        if let Some(index) = self.member(target) {
            self.take_back_permits(index, grant, unused);
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
                if reason != NotDelivered::NoGrant {
                    // Nothing was charged, and an offer never ends by itself.
                    self.take_back(now, target, grant, 1);
                }
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
        // An offer is of no line: its kind is the driver.
        let line = self.members[index as usize].ledger.line_of(grant);
        let flow = line.and_then(|line| self.lines.flow(line));
        let kind = flow.map_or_else(|| lines::number(&command.kind), |flow| flow.kind);
        let ledger = &mut self.members[index as usize].ledger;
        let covered = ledger.dispatch(grant, command.operation, command.fence, kind);
        let (used, freed, covered) = match covered {
            Ok(Sent { used, freed }) => (used, freed, Ok(index)),
            Err(NotCovered { freed }) => (freed, freed, Err(NotDelivered::NoGrant)),
        };
        if let Some(purpose) = used {
            self.lower(index, purpose.line, 1);
        }
        if let Some(purpose) = freed {
            self.free(index, 1, purpose);
        }
        covered
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

    /// Unique in the run of a gateway: every shard counts in its own residue class.
    pub(super) fn next_grant(&mut self) -> GrantId {
        let grant = GrantId((self.grants_made << 16) | u64::from(self.shard.0));
        self.grants_made += 1;
        grant
    }

    /// Takes back the offer to a member.
    pub(super) fn withdraw_offer(&mut self, index: u32) {
        let withdrawn = self.members[index as usize].ledger.withdraw_offer();
        self.tell_withdrawn(index, withdrawn);
    }

    pub(super) fn withdraw_outgrown(&mut self, index: u32) {
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
    pub(super) fn member(&self, target: Target) -> Option<u32> {
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

    pub(super) fn remember_expiry(&mut self, expiry: Expiry) {
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
        } => Event::Finished {
            target,
            operation,
            fence,
            outcome,
        },
        OperationEvent::Refused {
            operation,
            fence,
            refusal,
        } => Event::Refused {
            target,
            operation,
            fence,
            refusal,
        },
        OperationEvent::NotDelivered {
            operation,
            fence,
            reason,
        } => not_delivered(target, operation, fence, reason),
        OperationEvent::Progress { .. }
        | OperationEvent::Report { .. }
        | OperationEvent::Capacity(_) => return None,
    };
    Some(told)
}

/// The words of the last column of the table.
fn second_hand(target: Target, event: OperationEvent) -> Option<Event> {
    match event {
        OperationEvent::Accepted { operation, fence } => {
            Some(report(target, operation, fence, OperationState::Accepted))
        }
        OperationEvent::Finished {
            operation,
            fence,
            outcome,
        } => {
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
        // It lives: should the session be lost, it becomes uncertain anew. A report never charges:
        // the end of the operation comes on another stream and may overtake it, and the permit
        // would be lost.
        OperationState::Accepted | OperationState::Running if current => {
            ledger.set_uncertain(operation, fence, false);
        }
        _ => {}
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
