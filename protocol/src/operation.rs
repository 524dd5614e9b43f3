//! Commands, what an agent says about them, and how they end. Owned values, already validated.

use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Epoch, Fence, OperationId};

/// One operation, on its way to an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Which operation: the same for every attempt.
    pub operation: OperationId,
    /// The claim under which it is sent; the agent refuses one lower than it has seen for this
    /// operation.
    pub fence: Fence,
    /// The driver that runs it, such as `exec`. Grammar: `[a-z0-9_.-]{1,64}`.
    pub kind: String,
    /// The driver's input: JSON, at most `COMMAND_INPUT_BYTES_MAX`.
    pub input: Bytes,
    /// Absolute: milliseconds since the Unix epoch. The agent does not start it later, and ends it
    /// then.
    pub deadline_ms: u64,
}

/// What an agent knows about an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OperationState {
    /// Never seen. The agent has now journaled a tombstone: this operation with this fence or a
    /// lower one will be refused if it still arrives.
    NeverSeen,
    /// Durably accepted, not started.
    Accepted,
    /// Started, not ended.
    Running,
    /// Ended; the outcome is durable in the agent's journal.
    Finished(Outcome),
}

/// A line of an agent's inventory: an operation that its journal holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenOperation {
    /// Which operation.
    pub operation: OperationId,
    /// The highest fence seen for it.
    pub fence: Fence,
    /// How far it is.
    pub phase: Phase,
}

/// How far an operation is, without its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Durably accepted, not started.
    Accepted,
    /// Started, not ended.
    Running,
    /// Ended; the outcome follows in a report of its own.
    Finished,
}

/// How an operation ended. Durable at the agent before it is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// In one word.
    pub status: OutcomeStatus,
    /// The program's exit status, where there was a program; −n where signal n ended it.
    pub exit_code: Option<i32>,
    /// For people; at most `MESSAGE_BYTES_MAX`.
    pub message: String,
    /// The driver's result: JSON or raw bytes as the driver documents, at most `OUTPUT_BYTES_MAX`.
    pub output: Bytes,
    /// From start to end of the driver's work; without waiting.
    pub service_time: Duration,
}

/// How an operation ended, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OutcomeStatus {
    /// The effect happened, once.
    Succeeded,
    /// It failed and would fail again.
    FailedPermanent,
    /// It failed, without an effect, in a way that may pass: worth another attempt.
    FailedTransient,
    /// Cancelled; whatever had been started was stopped.
    Cancelled,
    /// Its deadline passed; whatever had been started was stopped.
    DeadlineExceeded,
    /// The agent stopped while it ran and its driver cannot find out what became of it. People
    /// must look; it is never repeated by itself.
    Interrupted,
}

/// Output or progress of a running operation. Also proof that it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Counts up from 0 within one operation and fence; repeats and gaps show.
    pub sequence: u32,
    /// 0–100, where the driver knows.
    pub percent: Option<u8>,
    /// For people; at most `MESSAGE_BYTES_MAX`.
    pub message: String,
    /// Which stream `output` came from.
    pub channel: Channel,
    /// A piece of output, at most `OUTPUT_BYTES_MAX`.
    pub output: Bytes,
}

/// Where a piece of output came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Channel {
    /// No stream: a progress report.
    None,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why an agent did not take a command. Nothing was started.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// All its capacity is in use.
    #[error("the agent is at its capacity; try again in {} ms", retry_after.as_millis())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The command came from an owner that has been replaced.
    #[error("the command's epoch is stale: the agent has seen epoch {seen}")]
    StaleEpoch {
        /// The highest epoch seen.
        seen: Epoch,
    },
    /// The command came under a claim that has been replaced.
    #[error("the command's fence is stale: the agent has seen fence {seen} for this operation")]
    StaleFence {
        /// The highest fence seen for the operation.
        seen: Fence,
    },
    /// No driver of that name.
    #[error("the agent has no driver `{kind}`; `drover agents show` lists its drivers")]
    UnknownKind {
        /// The name asked for.
        kind: String,
    },
    /// The driver does not accept the input.
    #[error("the input was refused: {message}")]
    InvalidInput {
        /// What is wrong with it and how to mend it.
        message: String,
    },
    /// The journal holds `JOURNAL_OPEN_MAX` operations.
    #[error("the agent's journal is full; it takes new work when results have been stored")]
    JournalFull,
    /// The journal could not be written (disk full, read-only file system).
    #[error("the agent cannot write its journal: {message}")]
    JournalFailed {
        /// The operating system's words.
        message: String,
    },
    /// It came after its deadline.
    #[error("the deadline had passed when the command arrived")]
    DeadlinePassed,
    /// It was cancelled before it arrived.
    #[error("the operation was cancelled before it arrived")]
    Cancelled,
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}
