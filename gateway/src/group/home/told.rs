//! What a home tells people about an agent: what it is given, what waits, and for what.

#[cfg(test)]
mod tests;

use std::time::Instant;

use protocol::flow::{AgentFlow, Decision, LimitKey, LimitUse, LineFlow, Parked, Why};
use protocol::limits::LINES_MAX;
use protocol::link::{Event, Target};

use super::Home;
use super::demand::Statement;
use crate::flow::controller;
use crate::flow::ledger::{Key, Scope};

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

    /// Answers a question about a limit that several agents share, as far as it counts here.
    pub(super) fn tell_limit(&mut self, key: &LimitKey, ticket: u64) {
        let used = self.use_of(key);
        self.event(Event::LimitTold {
            ticket,
            shard: self.shard,
            shards: self.shards,
            used,
        });
    }

    fn use_of(&self, key: &LimitKey) -> LimitUse {
        let keys: Vec<Key> = match key {
            LimitKey::Work(name) => {
                let members = self.members.iter();
                let index = |(index, _)| super::index_u32(index);
                let keys = members.map(index).map(|at| self.limits.work_key(name, at));
                keys.flatten().collect()
            }
            LimitKey::Group(id) => {
                let group = self.group_names.get(id);
                let key = group.and_then(|group| Key::new(Scope::Group, *group));
                key.into_iter().collect()
            }
            LimitKey::Resource(_) | LimitKey::Tenant(_) | LimitKey::Global => {
                self.limits.spanning_key(key).into_iter().collect()
            }
            // It is told with the agent.
            LimitKey::Agent(_) => Vec::new(),
        };
        LimitUse {
            limit: self.limits.set_here(key),
            in_use: keys.iter().map(|key| self.shared.used(*key)).sum(),
            waiting: super::index_u32(keys.iter().map(|key| self.shared.waiting(*key)).sum()),
        }
    }

    fn flow_of(&self, now: Instant, index: u32) -> AgentFlow {
        let member = &self.members[index as usize];
        let group = (member.group, self.groups[member.group as usize].id);
        let waits = |stated: &&Statement| stated.waiting(&member.ledger) > 0;
        let waiting = member.statements.all().iter().filter(waits);
        let lines = waiting.map(|stated| LineFlow {
            server: stated.server,
            number: stated.number,
            line: self.lines.get(stated.line).cloned().unwrap_or_default(),
            waiting: stated.waiting(&member.ledger),
            parked: self
                .shared
                .position((index, stated.line))
                .and_then(|(key, before)| {
                    Some(Parked {
                        key: self.limits.name(key, group)?,
                        limit: self
                            .limits
                            .set_for_all(key)
                            .or_else(|| self.shared.limit(key))?,
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
