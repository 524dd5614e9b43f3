//! Agent servers on machines of their own.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;

/// An agent server on a machine of its own, as process servers reach it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AgentServer {
    /// `host:port` of its link, as `link.connect` names it.
    pub link: String,
    /// This run of its gateway.
    pub run: Uuid,
    /// `host:port` where agents reach it.
    pub addresses: Vec<String>,
    /// Its shards.
    pub shards: u16,
    /// Agents that it is given at most, while another one has room.
    pub capacity: u32,
    /// Somebody has reached it lately: its lease has not run out.
    pub alive: bool,
    /// It gives its groups to the others.
    pub draining: bool,
    /// Groups that it owns.
    pub groups: u64,
    /// Agents in them that may come in.
    pub agents: u64,
    /// When somebody has reached it last.
    pub renewed_at: Timestamp,
}
