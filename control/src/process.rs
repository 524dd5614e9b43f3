//! The rules of a durable process: a pure state machine.
//!
//! ```text
//!   scheduled ─┐              ┌────────── backoff ◀── failed, may pass · refused · not delivered
//!   blocked ───┼─▶ ready ─▶ leased ─▶ running ─▶ succeeded | failed | cancelled
//!              │     ▲         └──┬──────┘  └──▶ ready: the next step, or one to undo
//!              │     └─ never ─ unknown (the reply was lost: its agent is asked, never guessed)
//!   cancel: a waiting process ends at once, any other becomes `cancelling` until its agent answers
//!   retry, replay: an ended process becomes `ready` again (`blocked`, until its resource is free)
//! ```
//!
//! A process has 1 to 32 steps, one operation each, done in order. If a step fails for good, or the
//! process is cancelled, what earlier steps did is undone in reverse where a step says how
//! ([`Fate`]); only then it is over. What may still be in effect (`interrupted`) is left to people.
//!
//! Every claim raises the fence; words about an older claim are stale and change nothing. What has
//! not been started does not count as an attempt. Time and chance are arguments; reading and
//! writing rows, timers and messages are other people's work ([`crate::store`],
//! [`crate::dispatch`]).

pub mod budget;
mod line;
mod orders;
pub mod pause;
mod plan;
mod rules;
mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use protocol::ids::{AgentId, Fence, ProcessId};
use protocol::link::NotDelivered;
use protocol::operation::{OperationState, Outcome, Refusal};

use crate::clock::UnixMs;
pub use line::{StepNeeds, line};
pub use plan::{PLAN_VERSION, Plan, PlanOperation, PlanStep};
pub use state::{Class, ParseStateError, State};
pub use steps::{Fate, RUN_MAX, STEPS_MAX, Shape, StepId};

/// Progress reports kept of one process; later ones are counted as dropped.
pub const PROGRESS_ROWS_MAX: u32 = 10_000;
/// Output and messages kept of one process's progress, in bytes; later ones are counted as dropped.
pub const PROGRESS_BYTES_MAX: u64 = 1 << 20;
/// The first wait before a retry is a random part of twice this.
pub const RETRY_BASE: Duration = Duration::from_secs(1);
/// No wait before a retry is longer.
pub const RETRY_MAX: Duration = Duration::from_secs(120);
/// The first wait after a process came back without having been started.
pub const RETURN_BASE: Duration = Duration::from_millis(50);
/// No wait after a process came back without having been started is longer, unless its agent asks.
pub const RETURN_MAX: Duration = Duration::from_secs(5);
/// What is undone has this long for it, from the moment that it begins: longer than hosts are away.
pub const UNDO_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// No fence comes near this: a peer that names a higher one does not push ours over the edge.
const FENCE_MAX: u64 = 1 << 62;

/// What the rules know of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Which.
    pub id: ProcessId,
    /// Its kind: a declared one, or the name of a driver.
    pub kind: Arc<str>,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// The agent that does the work.
    pub target: AgentId,
    /// Who goes first on a busy agent.
    pub class: Class,
    /// What it works on; at most one living process holds it.
    pub resource: Option<String>,
    /// How far it is.
    pub state: State,
    /// While it waits: when to look at it again, at the latest its deadline.
    pub due_at: Option<UnixMs>,
    /// While it is ready: its place among its like.
    pub ready_at: Option<UnixMs>,
    /// It is not started later, and its agent ends it then. While it is undone: until when that may
    /// take.
    pub deadline_at: UnixMs,
    /// From its creation to its first deadline: what it gets when it is started over.
    pub life: Duration,
    /// Attempts at the present step that an agent has started.
    pub attempt: u32,
    /// The fence of the last attempt that was counted.
    pub counted_fence: Fence,
    /// Attempts at each step at most.
    pub max_attempts: u32,
    /// Times that it came back without having been started, since the last start.
    pub busy_count: u32,
    /// Raised with every claim.
    pub fence: Fence,
    /// What is kept of its progress.
    pub progress: ProgressCount,
    /// When it was made.
    pub created_at: UnixMs,
    /// When an agent first accepted it.
    pub started_at: Option<UnixMs>,
    /// When it reached a terminal state.
    pub finished_at: Option<UnixMs>,
    /// Its steps.
    pub shape: Shape,
    /// The step at hand.
    pub step: StepId,
    /// While it is undone, and after that has failed: what it ends as, and why.
    pub fate: Option<Fate>,
    /// Why it is in backoff, while it is.
    pub hold: Option<Hold>,
    /// People must look: its end is not known, or could not be undone.
    pub needs_attention: bool,
    /// It ended without its agent's word on the present operation, which may still run.
    pub unsettled: bool,
}

/// Why a process is in backoff.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hold {
    /// The last attempt failed in a way that may pass.
    Retry,
    /// It came back without having been started, for this reason.
    Returned(String),
    /// Too many of its kind fail at its agent: see [`budget`].
    Budget,
}

/// What is kept of a process's progress.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProgressCount {
    /// The lowest sequence not yet seen in this attempt.
    pub next: u32,
    /// Reports kept.
    pub rows: u32,
    /// Bytes kept.
    pub bytes: u64,
    /// Reports over the limit.
    pub dropped: u64,
}

/// Something that happened to a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Its time in `due_at` has come.
    Due,
    /// The resource that it waited for is its own now.
    Unblocked,
    /// A permit is there: claim it.
    Claim,
    /// Its agent has durably accepted it.
    Accepted(Fence),
    /// Its agent reports progress.
    Progress {
        /// Under which claim.
        fence: Fence,
        /// Counts up within one attempt.
        sequence: u32,
        /// Size of what would be kept.
        bytes: u64,
    },
    /// It ended at its agent.
    Finished(Fence, Outcome),
    /// Its agent did not take it.
    Refused(Fence, Refusal),
    /// It certainly did not reach its agent.
    NotDelivered(Fence, NotDelivered),
    /// It may have reached its agent.
    Uncertain(Fence),
    /// Its agent's answer to a question.
    Report(Fence, OperationState),
    /// The server starts: whatever was on its way then is to be asked for.
    Orphaned,
    /// Somebody wants it cancelled: what runs is stopped, what was done is undone.
    Cancel,
    /// Somebody wants it over now, without its agent's word.
    Force,
    /// Somebody wants an ended process to go on from the step where it ended.
    Retry,
    /// Somebody wants it to go on from this step (from 0), now.
    Replay(u16),
    /// A newer process makes it needless, if it has not started.
    Supersede(ProcessId),
    /// The retry budget is empty: not before this.
    Defer(UnixMs),
    /// An operator revoked its agent: nobody will ever answer for it.
    Abandoned,
}

/// What follows from an input, next to the changed process.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Step {
    /// The input spoke of a claim that is over, or made no sense now; nothing was changed.
    pub stale: bool,
    /// An order was refused, for this reason; nothing was changed.
    pub refused: Option<String>,
    /// Keep this progress report.
    pub keep_progress: bool,
    /// How the process, or its last attempt, ended: to be stored.
    pub outcome: Option<Outcome>,
    /// How the operation of the step at hand ended: to be stored with the step.
    pub step_ended: Option<Outcome>,
    /// Steps from this index on begin anew: what is stored of their ends is void.
    pub renewed_from: Option<u16>,
    /// Why, for the history.
    pub note: Option<String>,
    /// Worth a line of the history although the state is the same.
    pub remark: bool,
    /// What its agent must be told once this is durable.
    pub tell: Option<Tell>,
}

/// What an agent must be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tell {
    /// The outcome is durable: forget the operation.
    Forget,
    /// Cancel the operation.
    Cancel(Fence),
    /// Say what you know about the operation.
    Query(Fence),
}

impl Process {
    /// Applies `input` at `now`. `chance` is a fresh random number, 0 ≤ chance < 1, for jitter.
    #[must_use]
    pub fn handle(&mut self, now: UnixMs, input: Input, chance: f64) -> Step {
        rules::handle(self, now, input, chance)
    }

    /// What follows from a word about another operation than the one at hand: nothing, but an
    /// outcome that nobody waits for any more is forgotten.
    #[must_use]
    pub fn handle_other_operation(input: &Input) -> Step {
        let over = matches!(
            input,
            Input::Finished(..) | Input::Report(_, OperationState::Finished(_))
        );
        Step {
            stale: true,
            tell: over.then_some(Tell::Forget),
            ..Step::default()
        }
    }
}

/// Full jitter: a random part of 1 s · 2ⁿ, at most of 120 s, after the n-th failed attempt
/// (AWS Architecture Blog, "Exponential Backoff And Jitter").
pub fn retry_delay(attempt: u32, chance: f64) -> Duration {
    doubled(RETRY_BASE, attempt, RETRY_MAX).mul_f64(chance.clamp(0.0, 1.0))
}

/// The wait after the n-th return without a start: at least half, so that it cannot spin.
fn return_delay(count: u32, chance: f64) -> Duration {
    let bound = doubled(RETURN_BASE, count, RETURN_MAX);
    bound.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

fn doubled(base: Duration, times: u32, max: Duration) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(max)
}
