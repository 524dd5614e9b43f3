//! Which agents may connect, with which keys, and which groups this gateway owns: a copy on every
//! shard.

use protocol::identity::KeyHash;
use protocol::ids::{AgentId, Epoch};
use protocol::link::{Request, Target};

/// What the directory says about an agent at the door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission<'a> {
    /// Let it in.
    Admit {
        /// The agent and its group.
        target: Target,
        /// The group's epoch.
        epoch: Epoch,
    },
    /// The agent is not known here, or not by this key.
    NotPinned,
    /// The agent was revoked.
    Revoked,
    /// Another gateway owns the agent's group: `host:port` of it; empty while nobody is known to.
    Redirect(&'a [String]),
}

/// The directory has reached a limit and did not take the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DirectoryFull {
    /// Too many agents.
    #[error(
        "this gateway knows {} agents, its limit; move groups to another gateway",
        protocol::limits::AGENTS_MAX
    )]
    Agents,
    /// Too many groups.
    #[error(
        "this gateway knows {} groups, its limit; move groups to another gateway",
        protocol::limits::GROUPS_MAX
    )]
    Groups,
}

/// Agents and groups, as every shard knows them.
#[derive(Default)]
pub(crate) struct Directory {}

impl Directory {
    pub(crate) fn handle_request(&mut self, _request: &Request) -> Result<(), DirectoryFull> {
        Ok(())
    }

    pub(crate) fn admit(&self, _agent: AgentId, _key: &KeyHash) -> Admission<'_> {
        Admission::NotPinned
    }
}
