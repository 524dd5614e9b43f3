//! What is not to be started: pauses by process, agent, group, tenant and kind.
//!
//! A pause changes no process. It keeps ready ones from being claimed; what runs goes on, and what
//! waits for something else goes on waiting for it. So a pause of an agent with 100,000 processes is
//! one row, and its end another.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use protocol::ids::{AgentId, GroupId, ProcessId};
use protocol::link::Target;
use uuid::Uuid;

/// What a pause names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PauseScope {
    /// One process.
    Process,
    /// All of an agent.
    Agent,
    /// All of a group's agents.
    Group,
    /// All of a tenant.
    Tenant,
    /// All of a kind.
    Kind,
}

impl PauseScope {
    /// Every scope.
    pub const ALL: [Self; 5] = [
        Self::Process,
        Self::Agent,
        Self::Group,
        Self::Tenant,
        Self::Kind,
    ];

    /// Its name in the store and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Agent => "agent",
            Self::Group => "group",
            Self::Tenant => "tenant",
            Self::Kind => "kind",
        }
    }

    fn is_id(self) -> bool {
        matches!(self, Self::Process | Self::Agent | Self::Group)
    }
}

impl fmt::Display for PauseScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PauseScope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or(())
    }
}

/// Names a pause.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PauseKey {
    scope: PauseScope,
    key: String,
}

impl PauseKey {
    /// Of a process, an agent or a group.
    pub fn of_id(scope: PauseScope, id: Uuid) -> Self {
        Self {
            scope,
            key: id.simple().to_string(),
        }
    }

    /// Of a tenant or a kind.
    pub fn of_name(scope: PauseScope, name: &str) -> Self {
        Self {
            scope,
            key: name.to_owned(),
        }
    }

    /// From `scope/key` as the store keeps it; `None`: nothing that this build writes.
    pub(crate) fn from_sql(text: &str) -> Option<Self> {
        let (scope, key) = text.split_once('/')?;
        let scope: PauseScope = scope.parse().ok()?;
        if scope.is_id() {
            Uuid::try_parse(key).ok()?;
        }
        Some(Self {
            scope,
            key: key.to_owned(),
        })
    }

    /// What it names.
    pub fn scope(&self) -> PauseScope {
        self.scope
    }

    /// As the store keeps it: 32 hex digits, or the name.
    pub(crate) fn sql_key(&self) -> &str {
        &self.key
    }

    /// For people: the id with its hyphens, or the name.
    pub fn key(&self) -> String {
        self.id()
            .map_or_else(|| self.key.clone(), |id| id.to_string())
    }

    /// The id, where it names one.
    pub fn id(&self) -> Option<Uuid> {
        let id = self.scope.is_id().then(|| Uuid::try_parse(&self.key));
        id.and_then(Result::ok)
    }
}

impl fmt::Display for PauseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope, self.key())
    }
}

/// All pauses, to be looked up quickly.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Pauses {
    processes: BTreeSet<ProcessId>,
    agents: BTreeSet<AgentId>,
    groups: BTreeSet<GroupId>,
    tenants: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Pauses {
    /// These pauses.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a PauseKey>) -> Self {
        let mut pauses = Self::default();
        for key in keys {
            let id = key.id().unwrap_or_default();
            match key.scope {
                PauseScope::Process => pauses.processes.insert(ProcessId(id)),
                PauseScope::Agent => pauses.agents.insert(AgentId(id)),
                PauseScope::Group => pauses.groups.insert(GroupId(id)),
                PauseScope::Tenant => pauses.tenants.insert(key.key.clone()),
                PauseScope::Kind => pauses.kinds.insert(key.key.clone()),
            };
        }
        pauses
    }

    /// Whether nothing of this agent is to be started.
    pub fn holds_agent(&self, target: &Target) -> bool {
        self.agents.contains(&target.agent) || self.groups.contains(&target.group)
    }

    /// Whether this process is not to be started, whatever its agent.
    pub fn holds(&self, process: ProcessId, tenant: &str, kind: &str) -> bool {
        self.processes.contains(&process)
            || self.tenants.contains(tenant)
            || self.kinds.contains(kind)
    }

    /// Whether the two differ in what they hold of an agent's queue.
    pub fn differs_within_queues(&self, other: &Self) -> bool {
        (&self.processes, &self.tenants, &self.kinds)
            != (&other.processes, &other.tenants, &other.kinds)
    }

    /// Paused processes.
    pub fn processes(&self) -> &BTreeSet<ProcessId> {
        &self.processes
    }

    /// Paused tenants.
    pub fn tenants(&self) -> &BTreeSet<String> {
        &self.tenants
    }

    /// Paused kinds.
    pub fn kinds(&self) -> &BTreeSet<String> {
        &self.kinds
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.processes.len()
            + self.agents.len()
            + self.groups.len()
            + self.tenants.len()
            + self.kinds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ids::Slot;

    #[test]
    fn a_pause_holds_what_it_names_and_nothing_else() {
        let id = Uuid::from_u128(7);
        let keys = [
            PauseKey::of_id(PauseScope::Process, id),
            PauseKey::of_id(PauseScope::Group, id),
            PauseKey::of_name(PauseScope::Tenant, "acme"),
            PauseKey::of_name(PauseScope::Kind, "vm-start"),
        ];
        let pauses = Pauses::new(&keys);
        assert_eq!(pauses.len(), 4);
        let other = ProcessId(Uuid::from_u128(8));
        assert!(pauses.holds(ProcessId(id), "x", "y"));
        assert!(pauses.holds(other, "acme", "y") && pauses.holds(other, "x", "vm-start"));
        assert!(!pauses.holds(other, "x", "y"));
        let target = |agent, group| Target {
            agent: AgentId(Uuid::from_u128(agent)),
            group: GroupId(Uuid::from_u128(group)),
            slot: Slot(0),
        };
        assert!(pauses.holds_agent(&target(1, 7)));
        // The same number as an agent's is another thing.
        assert!(!pauses.holds_agent(&target(7, 1)));
        for key in &keys {
            let stored = format!("{}/{}", key.scope, key.sql_key());
            assert_eq!(PauseKey::from_sql(&stored).as_ref(), Some(key));
        }
        assert_eq!(PauseKey::from_sql("agent/nonsense"), None);
        assert_eq!(PauseKey::from_sql("planet/earth"), None);
    }
}
