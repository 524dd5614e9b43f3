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
    /// A declared kind (`GET /v1/kinds`), or a driver: `[a-z0-9_.-]{1,64}`. An agent that has told its
    /// drivers must have all that are needed, also to undo.
    #[schema(example = "exec")]
    pub kind: String,
    /// The kind's input, or the driver's: any JSON, at most 96 KiB. Default `{}`.
    #[serde(default = "empty_object")]
    #[schema(value_type = Value)]
    pub input: serde_json::Value,
    /// Whose it is: 1–64 characters of a-z, 0-9, `_`, `.` and `-`. Default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// It is not started before this, within 30 days; one that has passed is at once. Until then it is
    /// `scheduled`: it holds no resource, supersedes nothing and is not superseded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// It is over this long after its creation, or after `run_at`, finished or not: 1 s – 30 days. Not
    /// together with `deadline_at`. Default: its kind's, or 900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
    /// It is over then, finished or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at: Option<Timestamp>,
    /// Attempts at each step when it fails in a way that may pass: 1–100. Default: its kind's, or 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Who goes first on a busy agent. Default: its kind's, or `normal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// What it works on, such as `volume/17`: 1–128 characters without control characters. At most
    /// one process per resource runs at a time. Not where the kind says it.
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
    /// Its kind, or the driver.
    pub kind: String,
    /// Whose it is.
    #[serde(default)]
    pub tenant: String,
    /// The agent that does the work.
    pub agent: Uuid,
    /// How far it is.
    pub state: ProcessState,
    /// The step at hand, from 0, or the one at which it ended.
    #[serde(default)]
    pub step: u16,
    /// How many steps it has.
    #[serde(default = "one")]
    pub step_count: u16,
    /// What was done is being undone; once it has ended: could not be undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undoing: bool,
    /// People must look: its end is not known, or what was done could not be undone.
    #[serde(default)]
    pub needs_attention: bool,
    /// Attempts started at the step at hand.
    pub attempts: u32,
    /// Attempts at each step at most.
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
    /// Its input, as it was given.
    #[schema(value_type = Value)]
    pub input: serde_json::Value,
    /// Its steps, if its kind is a declared one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<ProcessStep>,
    /// Progress reports over the limit of what is kept.
    pub progress_dropped: u64,
}

fn one() -> u16 {
    1
}

/// A step of a process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessStep {
    /// Its number, from 0.
    pub step: u16,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// The driver.
    pub operation: String,
    /// The driver's input.
    #[schema(value_type = Value)]
    pub input: serde_json::Value,
    /// It has so long, in seconds.
    pub timeout_seconds: u64,
    /// What it weighs on the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Shared things that it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// The driver that undoes it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_by: Option<String>,
    /// Attempts that its last end took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// When it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// How it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ProcessOutcome>,
}

/// How far a step is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Its turn has not come.
    Waiting,
    /// It is at hand.
    Current,
    /// It was done.
    Done,
    /// It failed.
    Failed,
    /// Its agent stopped it, because somebody wanted it cancelled.
    Cancelled,
    /// It is being undone, or could not be.
    Undoing,
    /// It was done and is undone.
    Undone,
}

/// How far a process is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// Not to be started yet.
    Scheduled,
    /// Waiting for its turn on its agent.
    Ready,
    /// It would be ready; somebody has paused it, or its agent, group, tenant or kind.
    Paused,
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
    /// `agent` (it has no session), `capacity` (its places are taken), `limit` (one that operators have
    /// set), `time` (its own), `resource` (another process works on it), `backoff`, `budget` (too many
    /// attempts of its kind fail there), `pause` or `answer`.
    #[schema(example = "agent")]
    pub scope: String,
    /// Which one: the agent's id, the limit (`group eu-1`), the resource, the time, the pause.
    pub key: String,
    /// In words.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// How many may be at work at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// How many of these are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use: Option<u32>,
    /// Its place in line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// When it may start, in seconds from now: from the pace of the last minute, or the time waited
    /// for. Left out where no honest estimate can be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// The process that holds the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<Uuid>,
}

/// How a process is to be cancelled.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelProcess {
    /// Default `graceful`.
    #[serde(default)]
    pub mode: CancelMode,
    /// Why, for its history: at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a process is to be cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CancelMode {
    /// What runs is stopped, what was done is undone; over when that has happened.
    #[default]
    Graceful,
    /// Over now, without the agent's word and without undoing anything: people must look.
    Force,
}

/// Lets an ended process go on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryProcess {
    /// Why, for its history: at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Makes a process like another one, at once: there is nothing to say about it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneProcess {}

/// Lets a process go on from a step.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayProcess {
    /// The step's number, from 0, or its name. Default: the one at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepName>,
    /// Why, for its history: at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Names a step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum StepName {
    /// From 0.
    Number(u16),
    /// As the kind names it.
    Name(String),
}

/// One line of a process's history.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HistoryEntry {
    /// Its number in the record of events.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// `process.created`, `process.state`, `process.finished`, `pause.added` or `pause.removed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Who: an API token's name, or `system`.
    pub actor: String,
    /// The state before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The state after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The step at hand after it, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Attempts at that step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// Claims so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    /// Why, in the actor's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What happened, in the server's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a process would be, and what it would meet; nothing was written.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// `ready`, `scheduled`, `blocked` or `paused`.
    pub state: String,
    /// The agent that would do the work.
    pub agent: Uuid,
    /// Its kind.
    pub kind: String,
    /// Whose it would be.
    pub tenant: String,
    /// What it would work on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// When it would be over.
    pub deadline_at: Timestamp,
    /// Attempts at each step.
    pub max_attempts: u32,
    /// Who goes first.
    pub class: Class,
    /// What would be done.
    pub steps: Vec<ProcessStep>,
    /// What each step needs a permit of, each once.
    pub permits: Vec<PermitNeeded>,
    /// What it would meet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_on: Option<WaitingOn>,
    /// Waiting processes that it would make needless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supersedes: Vec<Uuid>,
    /// How long it would wait for its start, in seconds, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_wait_s: Option<u64>,
}

/// A permit that a process needs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
pub struct PermitNeeded {
    /// What a limit of it would count: `agent`, `work`, `resource`, `tenant`, `group` or `global`.
    pub scope: String,
    /// Which one.
    pub key: String,
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
