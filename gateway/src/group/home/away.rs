//! Operations of agents without a session: what they share with others stays taken.
//!
//! An agent that is out of reach goes on with what it has started, so its operations still use their
//! storage pool, and still count against their group's limit. They are known until the agent's next
//! inventory says what became of them, or an operator revokes it. A home that begins learns of them from
//! the control plane.

use std::time::Instant;

use protocol::flow::Line;
use protocol::ids::{AgentId, Epoch, OperationId};
use protocol::limits::JOURNAL_OPEN_MAX;
use protocol::link::Target;

use crate::flow::fair::Cost;

use super::super::permits::Purpose;
use super::{Home, LineId};

/// What the operations of one agent hold.
pub(super) struct Away {
    /// The index of its group.
    group: u32,
    held: Vec<Held>,
}

/// What one operation holds; its line is in use by it.
struct Held {
    operation: OperationId,
    kind: Option<u32>,
    purpose: Purpose,
}

impl Home {
    /// What operations were granted for that may be under way: they hold what their lines need.
    pub(super) fn charge(
        &mut self,
        now: Instant,
        target: Target,
        operations: &[(OperationId, Line)],
    ) {
        if target.slot.home(self.shards) != self.shard {
            return;
        }
        for (operation, line) in operations {
            let purpose = Purpose {
                line: self.lines.enter(line),
                // It is not known any more what it was charged in the order of turns.
                cost: Cost::default(),
            };
            let held = match self.member(target) {
                Some(index) => self.recall(index, *operation, purpose),
                None => self.add_away(target, *operation, purpose),
            };
            match held {
                Some((member, group)) => self.count(now, member, group, purpose.line),
                None => self.lines.leave(purpose.line, 1),
            }
        }
    }

    /// An operation of the inventory of a member: what it holds is known now. Whether it was not before.
    fn recall(
        &mut self,
        index: u32,
        operation: OperationId,
        purpose: Purpose,
    ) -> Option<(Option<u32>, u32)> {
        let member = &mut self.members[index as usize];
        let recalled = member.ledger.recall(operation, None, purpose);
        recalled.then_some((Some(index), member.group))
    }

    /// An operation of an agent without a session, if it is not known already.
    fn add_away(
        &mut self,
        target: Target,
        operation: OperationId,
        purpose: Purpose,
    ) -> Option<(Option<u32>, u32)> {
        let group = match self.group_names.get(&target.group) {
            Some(group) => *group,
            // It is assigned afterwards.
            None => self.add_group(target.group, target.slot, Epoch(0), false)?,
        };
        let away = self.away.entry(target.agent).or_insert_with(|| Away {
            group,
            held: Vec::new(),
        });
        let is_known = away.held.iter().any(|held| held.operation == operation);
        if is_known || away.held.len() >= JOURNAL_OPEN_MAX {
            return None;
        }
        away.held.push(Held {
            operation,
            kind: None,
            purpose,
        });
        Some((None, away.group))
    }

    /// Counts a permit that nobody granted here.
    fn count(&mut self, now: Instant, member: Option<u32>, group: u32, line: LineId) {
        let keys = self.keys(member, group, line);
        self.shared.charge(&keys);
        for key in keys.keys() {
            self.want_credit(now, *key);
        }
    }

    /// A member goes: what its operations hold of its own is free, what they share stays taken.
    pub(super) fn keep_away(&mut self, index: u32) {
        let member = &self.members[index as usize];
        let (agent, group) = (member.agent, member.group);
        let held: Vec<Held> = member
            .ledger
            .charges()
            .filter_map(|charge| {
                Some(Held {
                    operation: charge.operation(),
                    kind: charge.kind,
                    purpose: charge.purpose?,
                })
            })
            .collect();
        if held.is_empty() {
            return;
        }
        for held in &held {
            self.move_shared(held.purpose, group, Some(index), None);
        }
        self.away.insert(agent, Away { group, held });
    }

    /// A member is back with its inventory: what it no longer has open is over.
    pub(super) fn come_back(&mut self, index: u32) {
        let member = &self.members[index as usize];
        let (agent, now_in) = (member.agent, member.group);
        let Some(away) = self.away.remove(&agent) else {
            return;
        };
        for held in away.held {
            let ledger = &mut self.members[index as usize].ledger;
            let lives =
                now_in == away.group && ledger.recall(held.operation, held.kind, held.purpose);
            match lives {
                true => self.move_shared(held.purpose, away.group, None, Some(index)),
                false => self.release_away(held.purpose, away.group),
            }
        }
    }

    /// Nobody will ever say what became of an agent's operations.
    pub(super) fn drop_away(&mut self, agent: AgentId) {
        if let Some(away) = self.away.remove(&agent) {
            for held in away.held {
                self.release_away(held.purpose, away.group);
            }
        }
    }

    /// Another gateway owns the group now.
    pub(super) fn drop_away_of_group(&mut self, group: u32) {
        let of_group = self.away.iter().filter(|(_, away)| away.group == group);
        let agents: Vec<AgentId> = of_group.map(|(agent, _)| *agent).collect();
        for agent in agents {
            self.drop_away(agent);
        }
    }

    /// Charges what is away, after the counts were begun anew.
    pub(super) fn charge_away(&mut self) {
        for away in self.away.values() {
            for held in &away.held {
                let keys = self.keys(None, away.group, held.purpose.line);
                self.shared.charge(&keys);
            }
        }
    }

    fn release_away(&mut self, purpose: Purpose, group: u32) {
        let keys = self.keys(None, group, purpose.line);
        self.shared.release(&keys);
        self.lines.leave(purpose.line, 1);
    }

    /// Counts a permit's keys as of another member; `None` is an agent without a session.
    fn move_shared(&mut self, purpose: Purpose, group: u32, from: Option<u32>, to: Option<u32>) {
        let to = self.keys(to, group, purpose.line);
        let from = self.keys(from, group, purpose.line);
        // First the one, so that nobody is woken for room that is not there.
        self.shared.charge(&to);
        self.shared.release(&from);
    }
}
