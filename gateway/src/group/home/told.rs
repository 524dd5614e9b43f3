//! What a home tells people about an agent: what it is given, what waits, and for what.

use std::time::Instant;

use protocol::flow::{AgentFlow, Decision, LineFlow, Parked, Why};
use protocol::limits::LINES_MAX;
use protocol::link::{Event, Target};

use super::Home;
use super::demand::Statement;
use crate::flow::controller;

impl Home {
    /// Answers a question about an agent.
    pub(super) fn tell_flow(&mut self, now: Instant, target: Target, ticket: u64) {
        let flow = self.member(target).map(|index| self.flow_of(now, index));
        self.event(Event::FlowTold {
            target,
            ticket,
            flow: flow.map(Box::new),
        });
    }

    fn flow_of(&self, now: Instant, index: u32) -> AgentFlow {
        let member = &self.members[index as usize];
        let group = (member.group, self.groups[member.group as usize].id);
        let waits = |stated: &&Statement| stated.waiting(&member.ledger) > 0;
        let waiting = member.statements.all().iter().filter(waits);
        let lines = waiting.map(|stated| LineFlow {
            server: stated.server,
            number: stated.number,
            waiting: stated.waiting(&member.ledger),
            parked: self
                .shared
                .position((index, stated.line))
                .and_then(|(key, before)| {
                    Some(Parked {
                        key: self.limits.name(key, group)?,
                        limit: self.shared.limit(key)?,
                        in_use: self.shared.used(key),
                        before: super::index_u32(before),
                    })
                }),
        });
        AgentFlow {
            capacity: member.ledger.capacity(),
            limit: member.ledger.limit(),
            running: member.ledger.charged(),
            granted: member.ledger.granted(),
            lines: lines.take(LINES_MAX).collect(),
            decision: member
                .controller
                .last_decision()
                .map(|last| told(now, last)),
        }
    }
}

fn told(now: Instant, last: &controller::Decision) -> Decision {
    Decision {
        age: now.saturating_duration_since(last.at),
        why: match last.why {
            controller::Why::Doubled => Why::Doubled,
            controller::Why::Found => Why::Found,
            controller::Why::Calm => Why::Calm,
            controller::Why::Followed => Why::Followed,
            controller::Why::Jumped => Why::Jumped,
            controller::Why::NoDemand => Why::NoDemand,
            controller::Why::NotOurs => Why::NotOurs,
            controller::Why::Busy => Why::Busy,
            controller::Why::TimedOut => Why::TimedOut,
        },
        from: thousandths(last.from),
        to: thousandths(last.to),
        slowdown: thousandths(last.m),
        baseline: thousandths(last.baseline),
        rate: thousandths(last.x),
    }
}

/// What was not measured is 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and makes 0 of what is no number"
)]
fn thousandths(figure: f64) -> u32 {
    (figure * 1000.0).round() as u32
}
