//! Limits: how much may be at work at once, what operators have set of it, and what is so now.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;

/// What a limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LimitScope {
    /// Operations on one agent. This limit follows what the agent can take.
    Agent,
    /// Operations of one sort of work (a step's class, such as `build`) on any one agent.
    Work,
    /// Operations that use a shared resource.
    Resource,
    /// A tenant's operations.
    Tenant,
    /// Operations on all agents of a group.
    Group,
    /// All operations; its key is `all`.
    Global,
}

/// Sets a limit, in the place of all that was set of it. What is left out is left to the deployment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLimit {
    /// Agents only: the adaptive limit is never lower. 1 to 1,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// The limit; of an agent: the adaptive limit is never higher. 0 to 1,000,000; 0: nothing new of it is
    /// started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Agents only: the limit is this, and nothing is learnt. 0 to 1,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<u32>,
    /// Tenants only: their share of an agent where several tenants wait for it. 1 to 1000; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Why, for everybody whose work waits: 1–256 bytes.
    pub reason: String,
}

/// A limit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// What it counts.
    pub scope: LimitScope,
    /// Which one: the id of an agent or a group, a name, `all`.
    pub key: String,
    /// For people: the hostname, the group's name, the key.
    pub name: String,
    /// As set; null: not set.
    pub min: Option<u32>,
    /// As set; null: not set.
    pub max: Option<u32>,
    /// As set; null: not set.
    pub pin: Option<u32>,
    /// As set; null: not set.
    pub weight: Option<u32>,
    /// Who set it: an API token's name; null: nothing is set.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub at: Option<Timestamp>,
    /// What may be set and still is not what somebody expects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What is so now; null: it is not known.
    pub live: Option<LiveLimit>,
    /// Why that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_live: Option<String>,
}

/// A limit at this moment, as the gateway counts it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LiveLimit {
    /// What it is; of a sort of work: on each agent.
    pub limit: u32,
    /// How much of it is in use; of a sort of work: on all agents together.
    pub in_use: u32,
    /// Of an agent: what it takes at once by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Of an agent: operations that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// Of an agent: permits that were granted and not used yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<u32>,
    /// Of an agent: processes that wait, as far as its gateway was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
    /// Of the others: lines of processes that are parked on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked_lines: Option<u32>,
    /// Of an agent: the last change of its limit; null: nothing has been learnt, or it was long ago.
    pub decision: Option<LimitDecision>,
    /// Of an agent: what waits, line by line.
    #[serde(default)]
    pub lines: Vec<WaitingLine>,
}

/// Why an adaptive limit was changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LimitDecision {
    /// `doubled`, `found`, `no_demand`, `calm`, `followed`, `jumped`, `not_ours`, `busy` or `timed_out`.
    pub why: String,
    /// The same in words.
    pub text: String,
    /// The limit before.
    pub from: f64,
    /// And after; how much of it counts is the nearest whole number within the bounds.
    pub to: f64,
    /// How long ago, in milliseconds.
    pub age_ms: u64,
    /// Mean time of an operation, as a multiple of what its kind usually takes; 0: not measured.
    pub slowdown: f64,
    /// What that would be without delay that the limit causes.
    pub baseline: f64,
    /// Operations that ended a second; 0: not measured.
    pub rate: f64,
}

/// Processes that wait for the same permits at one agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct WaitingLine {
    /// How urgent.
    pub class: LineClass,
    /// Whose.
    pub tenant: String,
    /// What kind.
    pub kind: String,
    /// What sort of work; empty: none.
    pub work: String,
    /// What they use that others use as well.
    #[serde(default)]
    pub resources: Vec<String>,
    /// How many, as far as the gateway was told.
    pub waiting: u32,
    /// The limit that has no room for them; null: they wait for the agent, or for their turn there.
    pub parked: Option<ParkedOn>,
}

/// How urgent a line is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LineClass {
    /// What makes room for others.
    System,
    /// Somebody is waiting for it.
    Interactive,
    /// The usual.
    Normal,
    /// Whenever there is room.
    Background,
}

/// A limit that has no room.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ParkedOn {
    /// What it counts.
    pub scope: LimitScope,
    /// Which one.
    pub key: String,
    /// What it is.
    pub limit: u32,
    /// How much of it is in use.
    pub in_use: u32,
    /// Lines that are served before this one.
    pub before: u32,
}
