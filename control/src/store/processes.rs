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
pub(crate) mod rows;
mod stand_in;
#[cfg(test)]
pub(in crate::store) mod tests;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use protocol::flow::Line;
use protocol::ids::{AgentId, Fence, GrantId, OperationId, ProcessId};
use protocol::operation::Progress;
use serde_json::Value;
use uuid::Uuid;

pub(crate) use create::NEEDLESS;

use super::budgets::RetryBudgets;
use super::pauses::PauseTable;
use super::pen;
use super::queries::ProcessRecord;
use super::{Connection, Store, StoreError};
use crate::clock::UnixMs;
use crate::process::{Class, Input, Plan, State, StepId, StepNeeds, Tell, line};

/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Processes that wait for one resource at most.
pub const BLOCKED_PER_RESOURCE_MAX: u32 = 1000;
/// The tenant of a process whose creator names none.
pub const TENANT_DEFAULT: &str = "default";

/// A process to be made. The caller has checked what its fields may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewProcess {
    /// The agent that does the work.
    pub agent: AgentId,
    /// A declared kind, or the name of a driver.
    pub kind: String,
    /// Its input: JSON text.
    pub input: String,
    /// What its kind makes of the input; `None`: its kind is a driver, which gets the input as it is.
    pub plan: Option<Plan>,
    /// Whose it is.
    pub tenant: String,
    /// Who goes first on a busy agent.
    pub class: Class,
    /// What it works on.
    pub resource: Option<String>,
    /// Not to be started before this; `None`: at once.
    pub run_at: Option<UnixMs>,
    /// It is over then.
    pub deadline_at: UnixMs,
    /// Attempts at each step at most, at least 1.
    pub max_attempts: u32,
    /// Kinds whose waiting processes on the same resource it makes needless.
    pub supersedes: Vec<String>,
    /// Who wants it.
    pub actor: Option<Actor>,
    /// Makes repeating the request harmless.
    pub idempotency: Option<IdempotencyKey>,
}

impl NewProcess {
    /// A process whose kind is a driver, with nothing but what it needs: of the default tenant and
    /// class, three attempts.
    pub fn of_driver(agent: AgentId, kind: &str, input: &str, deadline_at: UnixMs) -> Self {
        Self {
            agent,
            kind: kind.to_owned(),
            input: input.to_owned(),
            plan: None,
            tenant: TENANT_DEFAULT.to_owned(),
            class: Class::Normal,
            resource: None,
            run_at: None,
            deadline_at,
            max_attempts: 3,
            supersedes: Vec::new(),
            actor: None,
            idempotency: None,
        }
    }

    /// The line of its first step.
    pub(crate) fn line(&self) -> Line {
        let first = self.plan.as_ref().and_then(|plan| plan.steps.first());
        let needs = first.map(StepNeeds::of);
        let step = StepId::default();
        line(&self.kind, &self.tenant, self.class, step, needs.as_ref())
    }
}

/// Who ordered something, and why: for the history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Actor {
    /// An API token's name.
    pub by: String,
    /// In their words.
    pub reason: Option<String>,
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
        /// How long these take at the agent's present pace.
        retry_after: Duration,
    },
    /// Too many processes wait for that resource.
    ResourceFull {
        /// How many.
        waiting: u32,
    },
    /// Too many processes of that tenant wait.
    TenantFull {
        /// How many.
        waiting: u64,
        /// How long these take at the tenant's present pace.
        retry_after: Duration,
    },
}

/// Everything that is to be written at once.
#[derive(Clone, Default, Debug)]
pub(crate) struct Batch {
    /// When it happened.
    pub(crate) at: UnixMs,
    /// Seeds the jitter.
    pub(crate) seed: u64,
    /// The process server that claims.
    pub(crate) worker: Option<Uuid>,
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
    /// Of an agent's word: the step in its operation's id.
    pub(crate) step: Option<StepId>,
    /// Who ordered it.
    pub(crate) actor: Option<Arc<Actor>>,
    pub(crate) input: Input,
    /// What to keep if the rules say so.
    pub(crate) progress: Option<Progress>,
    /// Of a claim: the grant that it is made on.
    pub(crate) grant: GrantId,
    /// Of a claim: the line that the permit is for. If the process is not ready in it any more, the next one
    /// that is takes its place.
    pub(crate) line: Option<Arc<Line>>,
    /// The process in whose place this one is claimed.
    pub(crate) instead_of: Option<ProcessId>,
}

impl Happened {
    pub(crate) fn new(process: ProcessId, input: Input) -> Self {
        Self {
            process,
            from: None,
            step: None,
            actor: None,
            input,
            progress: None,
            grant: GrantId(0),
            line: None,
            instead_of: None,
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
    /// For each of these: its line, if it was made and is ready.
    pub(crate) lines: Vec<Option<Arc<Line>>>,
    /// One per input, in order; after them those of the timers, of resources, and of what was
    /// superseded.
    pub(crate) steps: Vec<Effect>,
    /// Resources whose holder has ended.
    pub(crate) freed: Vec<String>,
    /// Revoked agents that have more processes than fitted into the batch.
    pub(crate) abandoned_more: Vec<AgentId>,
    /// The earliest timer left, if the batch looked.
    pub(crate) next_due: Option<UnixMs>,
    /// Processes whose pauses have ended with them.
    pub(crate) unpaused: Vec<ProcessId>,
    /// All pauses after that, where there are such.
    pub(crate) pauses: Option<PauseTable>,
}

/// What one input has done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Effect {
    pub(crate) process: ProcessId,
    /// The agent that said so.
    pub(crate) from: Option<AgentId>,
    /// What `tell` is about: the operation that was at hand before this input.
    pub(crate) operation: OperationId,
    /// What the process is now; `None`: the store does not know it.
    pub(crate) now: Option<Now>,
    /// The state before this input.
    pub(crate) before: Option<State>,
    /// Its place among its like before this input, if it was ready.
    pub(crate) place_before: Option<UnixMs>,
    /// Its kind, tenant and line, if it is known.
    pub(crate) names: Option<Names>,
    /// Its time to be tried again has come, and its retry budget is empty: it waits on.
    pub(crate) deferred: bool,
    /// The input was about the past and changed nothing.
    pub(crate) stale: bool,
    /// The order was refused, for this reason.
    pub(crate) refused: Option<String>,
    /// What its agent must be told.
    pub(crate) tell: Option<Tell>,
    /// Of a claim that succeeded: what to send.
    pub(crate) work: Option<Work>,
    /// Of a claim: the process that was to be claimed, if another took its place.
    pub(crate) instead_of: Option<ProcessId>,
}

/// What counters and queues of a process go by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Names {
    pub(crate) kind: Arc<str>,
    pub(crate) tenant: Arc<str>,
    /// The line of the step at hand before this input.
    pub(crate) line_before: Arc<Line>,
    /// The line of the step at hand.
    pub(crate) line: Arc<Line>,
}

/// A process after an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Now {
    pub(crate) target: AgentId,
    pub(crate) state: State,
    pub(crate) class: Class,
    pub(crate) fence: Fence,
    pub(crate) step: StepId,
    pub(crate) ready_at: Option<UnixMs>,
    pub(crate) due_at: Option<UnixMs>,
    pub(crate) deadline_at: UnixMs,
    pub(crate) created_at: UnixMs,
}

/// What a claimed process asks its agent to do at the step at hand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Work {
    /// The driver.
    pub(crate) kind: String,
    pub(crate) input: String,
    pub(crate) deadline_at: UnixMs,
    pub(crate) grant: GrantId,
}

/// Applies a batch within a write that does more. Nothing in it may be tried again: no budget is asked.
pub(crate) async fn apply_within(db: &mut Connection, batch: Batch) -> Result<Applied, StoreError> {
    apply::apply(db, batch, &RetryBudgets::default()).await
}

impl Store {
    /// Applies a batch; returns after its commit.
    pub(crate) async fn apply(&self, batch: Batch) -> Result<Applied, StoreError> {
        let (worker, swept, store) = (batch.worker, batch.sweep > 0, self.clone());
        let budgets = self.shared.budgets.clone();
        let told = self.is_open_to_others();
        let applied = self
            .writer
            .write_and(
                move |db| {
                    Box::pin(async move {
                        let applied = apply::apply(&mut *db, batch, &budgets).await?;
                        if told && !applied.unpaused.is_empty() {
                            pen::count_order(db).await?;
                        }
                        Ok::<_, StoreError>(applied)
                    })
                },
                move |applied| store.committed(worker, applied, swept),
            )
            .await;
        self.wrote();
        match applied {
            Ok(applied) if !applied.unpaused.is_empty() => Ok(self.with_pauses(applied).await),
            other => other,
        }
    }

    /// With the pauses that are left, read after the commit: what is said of the batch is newer than any table
    /// that was read before.
    async fn with_pauses(&self, applied: Applied) -> Applied {
        self.ordered();
        let pauses = match self.pauses().await {
            Ok(pauses) => Some(pauses),
            Err(error) => {
                tracing::warn!(%error, "pauses that have ended are kept until they are read again");
                None
            }
        };
        Applied { pauses, ..applied }
    }
}
