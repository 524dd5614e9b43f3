//! Batches: one action on every process that fits a filter.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;
use super::processes::{OutcomeStatus, Process, ProcessState};

/// Starts a batch, or with `dry_run` shows what it would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBatch {
    /// Which processes, of those that there are now and that the action can do something to.
    pub filter: BatchFilter,
    /// What is done to each.
    pub action: BatchAction,
    /// For `replay`: the step from which each goes on, from 0. Absent: the one at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u16>,
    /// At most so many, the oldest first: 1–1,000,000. Default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// So many a second, 1–1000. Default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_second: Option<u32>,
    /// Why, for people and for the history of each process: at most 256 bytes. `pause` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Write nothing; answer how many match, and the first 20. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// How many you expect to match, as a dry run has said: needed unless `dry_run`, and right to
    /// within 10 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
}

/// Which processes. Everything that is given must hold; `{}`: all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchFilter {
    /// Only in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ProcessState>,
    /// Only for this agent: its id, or its hostname where only one agent has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Only of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Only for agents of this group: its id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Only made before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_before: Option<Timestamp>,
    /// Only made at or after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_after: Option<Timestamp>,
    /// Only ended before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_before: Option<Timestamp>,
    /// Only ended at or after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_after: Option<Timestamp>,
    /// Only those that, or whose last attempt, ended like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomeStatus>,
    /// Only those at which people must look, or only the others. `redrive` leaves them out unless
    /// this is true: what became of them is not known, so doing them again may do them twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_attention: Option<bool>,
}

/// What a batch does to each process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BatchAction {
    /// As `POST /v1/processes/{id}/cancel`: what is not over.
    Cancel,
    /// As `POST /v1/processes/{id}/retry`: what had failed or was cancelled when the batch was made.
    Retry,
    /// As `retry`, but dead letters only: what had failed, and people need not look at.
    Redrive,
    /// As `POST /v1/processes/{id}/replay`: what is over, or in backoff. Needs `filter.state`.
    Replay,
    /// Keeps each from being started, as `POST /v1/pauses` with its id: what is not over.
    Pause,
    /// Ends the pauses of single processes; those of agents, groups, tenants and kinds stay.
    Resume,
}

/// What a batch would do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BatchPreview {
    /// How many match now; the figure for `confirm`.
    pub matched: u64,
    /// The first of them, at most 20.
    pub sample: Vec<Process>,
}

/// A batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Batch {
    /// Its id; sorts by creation time.
    pub id: Uuid,
    /// What it does.
    pub action: BatchAction,
    /// For `replay`: the step from which each goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u16>,
    /// To which processes.
    pub filter: BatchFilter,
    /// How far it is.
    pub state: BatchState,
    /// How many matched when it was made.
    pub matched: u64,
    /// Processes that it has dealt with. At most `matched` when nothing else was made meanwhile:
    /// those that ended by themselves before their turn are left out.
    pub done: u64,
    /// Processes that could not be dealt with: `trouble` says why.
    pub failed: u64,
    /// Why the last of those that could not be dealt with was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// At most so many.
    pub max: u32,
    /// So many a second.
    pub rate_per_second: u32,
    /// Why, for people.
    pub reason: String,
    /// The API token that made it.
    pub by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// How far a batch is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BatchState {
    /// It works.
    Running,
    /// It is through.
    Finished,
    /// Somebody has stopped it; what it had done until then stays done.
    Cancelled,
}
