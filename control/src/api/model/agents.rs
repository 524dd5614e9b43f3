//! Agents and agent groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;
use super::limits::LiveLimit;

/// A hypervisor's agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// Its identity, as in its certificate.
    pub id: Uuid,
    /// The host's name as the agent tells it; not unique by force.
    pub hostname: String,
    /// Its group.
    pub group: GroupRef,
    /// Whether it has a session.
    pub state: AgentState,
    /// Since when it has been in this state, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Operations that it runs at once; 0 while it is not connected or paused.
    pub capacity: u32,
    /// Operations claimed for it or running on it now.
    pub in_use: u32,
    /// Its drivers.
    pub kinds: Vec<String>,
    /// Labels as the agent announces them.
    pub labels: BTreeMap<String, String>,
    /// The agent's software version.
    pub software: String,
    /// When it was last heard of (session up or down).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<Timestamp>,
    /// When it enrolled.
    pub created_at: Timestamp,
    /// SHA-256 of its pinned keys, in hex; empty once revoked.
    pub keys: Vec<String>,
    /// Its session, while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<AgentSession>,
    /// Processes that are ready for it.
    #[serde(default)]
    pub ready: u32,
    /// What it is given now, and why no more: only where one agent is shown, and while it has a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveLimit>,
}

/// An agent's session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AgentSession {
    /// The session's number at its gateway.
    pub id: u64,
    /// The shard that holds the connection.
    pub shard: u16,
    /// Whether that is its group's home shard.
    pub at_home: bool,
    /// The address it comes from.
    pub remote: String,
}

/// A group, named in another object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupRef {
    /// The group.
    pub id: Uuid,
    /// Its name.
    pub name: String,
}

/// Whether an agent has a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// It has a session.
    Connected,
    /// It may connect and has no session. Says nothing about the host.
    Disconnected,
    /// It may not connect any more.
    Revoked,
}

/// An agent group: what one agent server owns at a time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// The group.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its slot (0–255), which names the home shard.
    pub slot: u8,
    /// Made by the system, for agents that enrol without a group.
    pub automatic: bool,
    /// Raised with every new owner.
    pub epoch: u64,
    /// Agents in it, revoked ones not counted.
    pub agents: u64,
    /// Agents of it that have a session.
    pub connected: u64,
    /// The link of the agent server that owns it, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_server: Option<String>,
    /// The link of the agent server that it is pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// The link of the agent server that it was assigned to, as long as balancing leaves it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned: Option<String>,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_until: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Pins a group to an agent server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinGroup {
    /// The link of one that `GET /v1/agent-servers` lists.
    #[schema(example = "a.example:7444")]
    pub agent_server: String,
}

/// Moves a group to an agent server, once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignGroup {
    /// The link of one that `GET /v1/agent-servers` lists.
    #[schema(example = "a.example:7444")]
    pub agent_server: String,
}

/// Makes loads even.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebalanceGroups {
    /// Only says what would move.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a rebalance does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rebalance {
    /// Nothing was moved.
    pub dry_run: bool,
    /// The groups that move, by name.
    pub moves: Vec<GroupMove>,
}

/// A group for another agent server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupMove {
    /// The group.
    pub group: GroupRef,
    /// Agents in it that may come in.
    pub agents: u64,
    /// The link of the agent server that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The link of the one that will.
    pub to: String,
}

/// Makes a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// 1–128 characters of `a-z 0-9 - _ .`, unique.
    #[schema(example = "rack-7")]
    pub name: String,
}
