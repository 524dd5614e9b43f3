//! The write path of processes: one batch of everything that happened, in one transaction.
//!
//! ```text
//!   Batch { creates, inputs, … } ─▶ read the rows ─▶ the rules of process.rs, in order ─▶ write
//!   Applied { creations, steps, … } ◀──────────────────────────────────── after COMMIT ──┘
//! ```
//!
//! However large the batch is, it takes a handful of statements: rows travel as JSON arrays and
//! are joined by primary key. Nothing here scans.

mod apply;
mod create;
mod rows;
#[cfg(test)]
mod tests;

use protocol::ids::{AgentId, Fence, GrantId, ProcessId};
use protocol::operation::Progress;
use serde_json::Value;

use super::queries::ProcessRecord;
use super::{Store, StoreError};
use crate::clock::UnixMs;
use crate::process::{Class, Input, State, Tell};

/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// A process to be made. The caller has checked what its fields may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewProcess {
    /// The agent that does the work.
    pub agent: AgentId,
    /// The driver.
    pub kind: String,
    /// The driver's input: JSON text.
    pub input: String,
    /// Who goes first on a busy agent.
    pub class: Class,
    /// What it works on.
    pub resource: Option<String>,
    /// Not to be started before this; `None`: at once.
    pub run_at: Option<UnixMs>,
    /// It is over then.
    pub deadline_at: UnixMs,
    /// Attempts at most, at least 1.
    pub max_attempts: u32,
    /// Makes repeating the request harmless.
    pub idempotency: Option<IdempotencyKey>,
}

/// Names a request, so that repeating it is harmless.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IdempotencyKey {
    /// Whose key it is: keys of different scopes never meet.
    pub scope: String,
    /// The key.
    pub key: String,
    /// SHA-256 of what was asked: the same key with another is a conflict.
    pub fingerprint: [u8; 32],
}

/// What became of a [`NewProcess`].
#[derive(Clone, PartialEq, Debug)]
pub enum Creation {
    /// Made, durably.
    Created(Box<ProcessRecord>),
    /// Made earlier by a request with the same key and content; as it is now.
    Existing(Box<ProcessRecord>),
    /// The key was used with other content.
    KeyConflict {
        /// The process that it made.
        process: ProcessId,
    },
    /// The key was used, and the process has been trimmed since.
    Trimmed {
        /// The process that it made.
        process: ProcessId,
    },
    /// Nobody knows that agent.
    UnknownAgent,
    /// Too many processes wait for that agent.
    QueueFull {
        /// How many.
        waiting: u32,
    },
}

/// Everything that is to be written at once.
#[derive(Clone, Default, Debug)]
pub(crate) struct Batch {
    /// When it happened.
    pub(crate) at: UnixMs,
    /// Seeds the jitter.
    pub(crate) seed: u64,
    /// Processes to be made.
    pub(crate) creates: Vec<NewProcess>,
    /// What happened to processes, in order.
    pub(crate) inputs: Vec<Happened>,
    /// Resources whose holder may have ended.
    pub(crate) resources: Vec<String>,
    /// Agents that were revoked: their processes end.
    pub(crate) abandoned: Vec<AgentId>,
    /// Look at so many timers that are due; 0: do not look.
    pub(crate) sweep: u32,
    /// Other things to record.
    pub(crate) records: Vec<Record>,
}

/// Something that happened to a process.
#[derive(Clone, Debug)]
pub(crate) struct Happened {
    pub(crate) process: ProcessId,
    /// The agent that said so; its words count only for its own processes.
    pub(crate) from: Option<AgentId>,
    pub(crate) input: Input,
    /// What to keep if the rules say so.
    pub(crate) progress: Option<Progress>,
    /// Of a claim: the grant that it is made on.
    pub(crate) grant: GrantId,
}

impl Happened {
    pub(crate) fn new(process: ProcessId, input: Input) -> Self {
        Self {
            process,
            from: None,
            input,
            progress: None,
            grant: GrantId(0),
        }
    }
}

/// An event that is not a process's change of state.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: &'static str,
    pub(crate) process: Option<ProcessId>,
    pub(crate) agent: Option<AgentId>,
    pub(crate) data: Value,
}

/// What a batch has done.
#[derive(Clone, Default, Debug)]
pub(crate) struct Applied {
    /// One per create, in order.
    pub(crate) creations: Vec<Creation>,
    /// One per input, in order; after them those of the timers and resources.
    pub(crate) steps: Vec<Effect>,
    /// Resources whose holder has ended.
    pub(crate) freed: Vec<String>,
    /// Revoked agents that have more processes than fitted into the batch.
    pub(crate) abandoned_more: Vec<AgentId>,
    /// The earliest timer left, if the batch looked.
    pub(crate) next_due: Option<UnixMs>,
}

/// What one input has done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Effect {
    pub(crate) process: ProcessId,
    /// The agent that said so.
    pub(crate) from: Option<AgentId>,
    /// What the process is now; `None`: the store does not know it.
    pub(crate) now: Option<Now>,
    /// The state before this input.
    pub(crate) before: Option<State>,
    /// Its place among its like before this input, if it was ready.
    pub(crate) place_before: Option<UnixMs>,
    /// The input was about the past and changed nothing.
    pub(crate) stale: bool,
    /// What its agent must be told.
    pub(crate) tell: Option<Tell>,
    /// Of a claim that succeeded: what to send.
    pub(crate) work: Option<Work>,
}

/// A process after an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Now {
    pub(crate) target: AgentId,
    pub(crate) state: State,
    pub(crate) class: Class,
    pub(crate) fence: Fence,
    pub(crate) ready_at: Option<UnixMs>,
    pub(crate) due_at: Option<UnixMs>,
    pub(crate) deadline_at: UnixMs,
    pub(crate) created_at: UnixMs,
}

/// What a claimed process asks its agent to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Work {
    pub(crate) kind: String,
    pub(crate) input: String,
    pub(crate) deadline_at: UnixMs,
    pub(crate) grant: GrantId,
}

impl Store {
    /// Applies a batch; returns after its commit.
    pub(crate) async fn apply(&self, batch: Batch) -> Result<Applied, StoreError> {
        self.write(move |db| Box::pin(apply::apply(db, batch)))
            .await
    }
}
