//! What the hub remembers: whose operation, whose question, whose offer, which sessions.

use std::collections::{BTreeMap, btree_map};

use protocol::ids::{AgentId, GrantId, OperationId, ServerId, SessionId};
use protocol::link::{SessionUp, Target};
use rustc_hash::FxHashMap;

use super::{QUESTIONS_MAX, ROUTES_MAX};

/// Which server an operation's words go to.
#[derive(Default)]
pub(super) struct Routes(FxHashMap<OperationId, (ServerId, AgentId)>);

impl Routes {
    pub(super) fn learn(&mut self, operation: OperationId, server: ServerId, agent: AgentId) {
        if self.0.len() < ROUTES_MAX || self.0.contains_key(&operation) {
            self.0.insert(operation, (server, agent));
        }
    }

    pub(super) fn server(&self, operation: OperationId) -> Option<ServerId> {
        self.0.get(&operation).map(|(server, _)| *server)
    }

    /// The operation is over; whose it was.
    pub(super) fn forget(&mut self, operation: OperationId) -> Option<ServerId> {
        self.0.remove(&operation).map(|(server, _)| server)
    }

    pub(super) fn forget_server(&mut self, server: ServerId) {
        self.0.retain(|_, (of, _)| *of != server);
    }

    pub(super) fn forget_agent(&mut self, agent: AgentId) {
        self.0.retain(|_, (_, of)| *of != agent);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Who asked what: servers number their questions independently of each other.
#[derive(Default)]
pub(super) struct Questions {
    asked: BTreeMap<u64, (ServerId, u64)>,
    next: u64,
}

impl Questions {
    /// The ticket under which the gateway is asked.
    pub(super) fn ask(&mut self, server: ServerId, ticket: u64) -> u64 {
        if self.asked.len() >= QUESTIONS_MAX {
            self.asked.pop_first();
        }
        let own = self.next;
        self.next += 1;
        self.asked.insert(own, (server, ticket));
        own
    }

    /// Who asked, and under which ticket.
    pub(super) fn answered(&mut self, ticket: u64) -> Option<(ServerId, u64)> {
        self.asked.remove(&ticket)
    }

    pub(super) fn forget_server(&mut self, server: ServerId) {
        self.asked.retain(|_, (of, _)| *of != server);
    }
}

/// Permits that were offered: at most one an agent.
#[derive(Default)]
pub(super) struct Offers(FxHashMap<AgentId, (Target, GrantId, ServerId)>);

impl Offers {
    pub(super) fn offered(&mut self, target: Target, grant: GrantId, server: ServerId) {
        self.0.insert(target.agent, (target, grant, server));
    }

    /// The permit is used, returned or withdrawn; who had it, if it was an offer.
    pub(super) fn used(&mut self, agent: AgentId, grant: GrantId) -> Option<ServerId> {
        match self.0.get(&agent) {
            Some((_, offered, server)) if *offered == grant => {
                let server = *server;
                self.0.remove(&agent);
                Some(server)
            }
            _ => None,
        }
    }

    pub(super) fn forget(&mut self, agent: AgentId) {
        self.0.remove(&agent);
    }

    /// All that a server had.
    pub(super) fn take_of(&mut self, server: ServerId) -> Vec<(Target, GrantId)> {
        let of = self.0.extract_if(|_, (_, _, holder)| *holder == server);
        of.map(|(_, (target, grant, _))| (target, grant)).collect()
    }
}

/// Agents, each with its target.
#[derive(Default)]
pub(super) struct Targets(BTreeMap<AgentId, Target>);

impl Targets {
    pub(super) fn note(&mut self, target: Target, some: bool) {
        match some {
            true => self.0.insert(target.agent, target),
            false => self.0.remove(&target.agent),
        };
    }

    pub(super) fn forget(&mut self, agent: AgentId) {
        self.0.remove(&agent);
    }
}

impl IntoIterator for Targets {
    type Item = Target;
    type IntoIter = btree_map::IntoValues<AgentId, Target>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_values()
    }
}

/// The facts of every session that is up, for servers that come later; without inventories, which are
/// as old as the session.
#[derive(Default)]
pub(super) struct Sessions(BTreeMap<AgentId, SessionUp>);

impl Sessions {
    pub(super) fn begin(&mut self, up: &SessionUp) {
        let facts = SessionUp {
            open: Vec::new(),
            kinds: up.kinds.clone(),
            hostname: up.hostname.clone(),
            software: up.software.clone(),
            labels: up.labels.clone(),
            ..*up
        };
        self.0.insert(up.target.agent, facts);
    }

    /// The session is over; whether it was the agent's present one.
    pub(super) fn down(&mut self, agent: AgentId, session: SessionId) -> bool {
        let present = self.0.get(&agent).is_some_and(|up| up.session == session);
        if present {
            self.0.remove(&agent);
        }
        present
    }

    pub(super) fn up(&self, agent: AgentId) -> Option<SessionUp> {
        self.0.get(&agent).cloned()
    }

    pub(super) fn agents(&self) -> impl Iterator<Item = AgentId> {
        self.0.keys().copied()
    }
}
