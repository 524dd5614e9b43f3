//! Durable processes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Payload, Problem, Timestamp};

/// Starts a process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProcess {
    /// The agent that does the work: its id, or its hostname where only one agent has it.
    #[schema(example = "hv-17.cloud.example")]
    pub agent: String,
    /// The driver: `[a-z0-9_.-]{1,64}`.
    #[schema(example = "exec")]
    pub kind: String,
    /// The driver's input: any JSON, at most 96 KiB. Default `{}`.
    #[serde(default = "empty_object")]
    #[schema(value_type = Value)]
    pub input: serde_json::Value,
    /// It is over this long after its creation, finished or not: 1 s – 30 days. Not together with
    /// `deadline_at`. Default 900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
    /// It is over then, finished or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at: Option<Timestamp>,
    /// Attempts in all when it fails in a way that may pass: 1–100. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Who goes first on a busy agent. Default `normal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// What it works on, such as `volume/17`: 1–128 characters without control characters. At most
    /// one process per resource runs at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
}

fn empty_object() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

/// Who goes first on a busy agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Somebody is waiting for it.
    Interactive,
    /// The usual.
    #[default]
    Normal,
    /// Whenever there is room.
    Background,
}

/// A process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Its id; sorts by creation time.
    pub id: Uuid,
    /// The driver.
    pub kind: String,
    /// The agent that does the work.
    pub agent: Uuid,
    /// How far it is.
    pub state: ProcessState,
    /// Attempts started.
    pub attempts: u32,
    /// Attempts at most.
    pub max_attempts: u32,
    /// Who goes first.
    pub class: Class,
    /// What it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When an agent first accepted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it reached a terminal state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// When it is over, finished or not.
    pub deadline_at: Timestamp,
    /// How it ended, or how its last attempt did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ProcessOutcome>,
    /// Why it is not running, while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_on: Option<WaitingOn>,
}

/// A process with what only a look at it alone shows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessDetail {
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// The driver's input.
    #[schema(value_type = Value)]
    pub input: serde_json::Value,
    /// Progress reports over the limit of what is kept.
    pub progress_dropped: u64,
}

/// How far a process is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// Not to be started yet.
    Scheduled,
    /// Waiting for its turn on its agent.
    Ready,
    /// On its way to the agent.
    Leased,
    /// The agent has durably accepted it.
    Running,
    /// Failed in a way that may pass; waiting for the next attempt.
    Backoff,
    /// Waiting for something that another process holds.
    Blocked,
    /// Cancel asked for; waiting for the agent's word.
    Cancelling,
    /// The reply was lost; the agent is being asked.
    Unknown,
    /// Terminal: the effect happened, once.
    Succeeded,
    /// Terminal: it failed.
    Failed,
    /// Terminal: cancelled.
    Cancelled,
}

impl ProcessState {
    /// Whether nothing more will happen.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How a process, or its last attempt, ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessOutcome {
    /// In one word.
    pub status: OutcomeStatus,
    /// The program's exit status, where there was a program; −n where signal n ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// For people.
    pub message: String,
    /// The driver's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Payload>,
}

/// How an operation ended, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    /// The effect happened, once.
    Succeeded,
    /// It failed and would fail again.
    FailedPermanent,
    /// It failed, without an effect, in a way that may pass.
    FailedTransient,
    /// Cancelled; whatever had been started was stopped.
    Cancelled,
    /// Its deadline passed; whatever had been started was stopped.
    DeadlineExceeded,
    /// The agent stopped while it ran and cannot find out what became of it. People must look.
    Interrupted,
}

/// Why a process is not running.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct WaitingOn {
    /// `agent`, `capacity`, `time`, `resource` or `answer`.
    #[schema(example = "agent")]
    pub scope: String,
    /// Which one: the agent's id, the resource, the time.
    pub key: String,
    /// In words, with what to do about it.
    pub detail: String,
}

/// Starts many processes: each stands or falls by itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProcessBatch {
    /// 1–1000 processes.
    pub processes: Vec<BatchItem>,
}

/// One process of a batch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// As the header `Idempotency-Key` for a single process.
    pub idempotency_key: String,
    /// What to start.
    pub process: CreateProcess,
}

/// What became of each item, in the order of the request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessBatch {
    /// One per item.
    pub results: Vec<BatchResult>,
}

/// What became of one item: a process or a problem.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BatchResult {
    /// The status that the same request alone would have got: 201 made, 200 made earlier with the
    /// same key, or a problem's.
    pub status: u16,
    /// The process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
