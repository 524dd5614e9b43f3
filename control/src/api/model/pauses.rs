//! Pauses: what is not to be started.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;

/// What a pause names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
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

/// Pauses something. What runs goes on; what is ready is not started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePause {
    /// What `key` names.
    pub scope: PauseScope,
    /// Which one: an id; of agents and groups also the name; the tenant; the kind.
    pub key: String,
    /// Why, for everybody whose work waits: 1–256 bytes.
    pub reason: String,
}

/// A pause.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Pause {
    /// What `key` names.
    pub scope: PauseScope,
    /// Which one.
    pub key: String,
    /// Who did it: an API token's name.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
    /// Where it is made: what may be meant, and has another effect than it seems.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
