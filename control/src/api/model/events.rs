//! What happened: the records of `GET /v1/events` and of a process's history.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;

/// One thing that happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// Counts up without gaps being promised; the `id` of the SSE event.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// What: `process.created`, `process.finished`, `agent.connected`, … The `event` of the SSE
    /// event.
    #[serde(rename = "type")]
    #[schema(example = "process.finished")]
    pub kind: String,
    /// The process that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Uuid>,
    /// The agent that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Uuid>,
    /// What else is known. Output of a program is a payload: `{"channel":"stdout","sequence":3,
    /// "output":{"encoding":"utf8","data":"…"}}`.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}
