//! Dead letters: processes that have failed, kept with their input until somebody does something
//! about them or a week has passed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;
use super::processes::OutcomeStatus;

/// The dead letters by what they have in common.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetters {
    /// How many were looked at: all, or the newest 10,000.
    pub counted: u64,
    /// There are more than were looked at.
    pub more: bool,
    /// The largest group first.
    pub groups: Vec<DeadLetterGroup>,
}

/// Dead letters of one kind that ended alike.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterGroup {
    /// Their kind.
    pub kind: String,
    /// How they ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomeStatus>,
    /// People must look at them: a redrive leaves them out unless it is told not to.
    pub needs_attention: bool,
    /// How many.
    pub count: u64,
    /// On so many agents.
    pub agents: u64,
    /// When the first of them ended.
    pub oldest_at: Timestamp,
    /// When the last of them ended.
    pub newest_at: Timestamp,
    /// The last of them.
    pub newest: Uuid,
    /// What that one said, at most 256 characters.
    pub message: String,
}
