//! What the store's counts say of agents, whichever process server has changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use protocol::ids::AgentId;

use super::Fleet;
use crate::store::lines::ReadyCount;

impl Fleet {
    /// So many are ready in the store for an agent in a line, at a start.
    pub(in crate::dispatch) fn recover_ready(&mut self, count: &ReadyCount) {
        self.count_ready(count.agent, count.ready);
        self.change(count.agent, |member, within| {
            member.queues.expect(within, &count.line, count.ready);
        });
    }

    /// So many operations of an agent have ended in all, whichever process server has heard of it.
    pub(in crate::dispatch) fn heard_of_ends(&mut self, agent: AgentId, total: u64, now: Instant) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.ends.heard(total, now);
        }
    }

    /// So many are ready in the store for these agents, whoever has made and taken them; `counts` has all
    /// of their lines. Says for which of them there are any. To be called while nothing of this server's own is
    /// on its way to the store.
    pub(in crate::dispatch) fn correct_ready(
        &mut self,
        agents: &BTreeSet<AgentId>,
        counts: Vec<ReadyCount>,
    ) -> Vec<AgentId> {
        let mut by_agent: BTreeMap<AgentId, Vec<ReadyCount>> = BTreeMap::new();
        for count in counts {
            by_agent.entry(count.agent).or_default().push(count);
        }
        let mut some = Vec::new();
        for agent in agents {
            let counts = by_agent.remove(agent).unwrap_or_default();
            if self.correct(*agent, counts) > 0 {
                some.push(*agent);
            }
        }
        some
    }

    /// Agents of which something may be known here.
    pub(in crate::dispatch) fn heard_of(&self) -> impl Iterator<Item = AgentId> {
        self.members.keys().chain(self.unmet.keys()).copied()
    }

    /// See [`Fleet::correct_ready`]: for one agent, with how many there are in all.
    fn correct(&mut self, agent: AgentId, counts: Vec<ReadyCount>) -> u32 {
        let ready = counts.iter().map(|count| count.ready);
        let ready = ready.fold(0, u32::saturating_add);
        if self.get(agent).is_none() {
            // It enrolled at another server, and this one has not heard of that yet.
            match ready {
                0 => self.unmet.remove(&agent),
                _ => self.unmet.insert(agent, counts),
            };
            return 0;
        }
        self.change(agent, |member, within| {
            let stored = counts.iter().map(|count| (&*count.line, count.ready));
            member.queues.drop_gone(&stored.collect());
            for count in &counts {
                member.queues.expect(within, &count.line, count.ready);
            }
        });
        self.set_ready(agent, ready);
        ready
    }

    /// Takes what was said of an agent before it was known.
    pub(super) fn meet(&mut self, agent: AgentId) {
        if let Some(counts) = self.unmet.remove(&agent) {
            self.correct(agent, counts);
        }
    }

    /// Nothing is paused, so where nothing is found others have taken what was counted.
    pub(super) fn ran_dry(&mut self, agent: AgentId) {
        let Some(member) = self.members.get_mut(&agent) else {
            return;
        };
        if member.queues.kept() == 0 && member.queues.is_all() {
            let left = member.queues.claiming().min(member.ready_stored);
            self.set_ready(agent, left);
        }
    }
}
