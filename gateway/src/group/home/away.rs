//! Operations of agents without a session: what they share with others stays taken.
//!
//! An agent that is out of reach goes on with what it has started, so its operations still use their
//! storage pool, and still count against their group's limit. They are known until the agent's next
//! inventory says what became of them, or an operator revokes it.

use protocol::ids::{AgentId, OperationId};

use super::super::permits::Purpose;
use super::Home;

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
