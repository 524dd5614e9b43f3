//! Drivers do an agent's work: each kind of operation has one.
//!
//! ```text
//!   validate ──▶ (accepted, durable) ──▶ run ──▶ outcome ──▶ (durable) ──▶ forget
//!                      crash while it ran: recover ──▶ finished | restart | interrupted
//! ```
//!
//! A driver knows nothing of sessions, journals or the network. Whatever it does must be findable
//! afterwards: `recover` is asked after a crash, and only what it can tell for certain is believed.

pub mod exec;
pub mod simulated;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use protocol::ids::{AgentId, Fence, OperationId};
use protocol::operation::{Outcome, OutcomeStatus, Progress};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

pub use exec::ExecDriver;
pub use simulated::SimulatedDriver;

/// Pieces of progress of one operation that may be on their way; a driver that writes faster waits.
/// With `OUTPUT_BYTES_MAX` this is what one operation's output can hold in memory.
pub const PROGRESS_IN_FLIGHT_MAX: usize = 4;

/// One kind of work.
pub trait Driver: Send + Sync + 'static {
    /// Checks an input before the operation is accepted. Pure and quick.
    ///
    /// # Errors
    /// What is wrong with it and how to mend it; shown to the person who submitted it.
    fn validate(&self, input: &[u8]) -> Result<(), String>;

    /// Does the work. Dropping the future is a crash of the agent: whatever was started outside of
    /// it must not outlive it, or be found by [`Driver::recover`].
    fn run(&self, job: Job) -> BoxFuture<'static, Outcome>;

    /// Finds out what became of an operation that was running when the agent stopped.
    fn recover(&self, lost: Lost) -> BoxFuture<'static, Recovered>;

    /// The operation will not be asked for again: what was kept to find it can go.
    fn forget(&self, _agent: AgentId, _operation: OperationId) {}
}

/// An operation to run.
pub struct Job {
    /// For which agent: a fleet simulator has many.
    pub agent: AgentId,
    /// Which operation.
    pub operation: OperationId,
    /// The claim under which it was accepted.
    pub fence: Fence,
    /// The driver's input, validated.
    pub input: Bytes,
    /// Takes output and progress.
    pub progress: ProgressSink,
    /// Says when to stop.
    pub stop: StopSignal,
}

/// An operation whose run was lost in a crash.
pub struct Lost {
    /// Of which agent.
    pub agent: AgentId,
    /// Which operation.
    pub operation: OperationId,
    /// The driver's input.
    pub input: Bytes,
}

/// What became of a lost operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recovered {
    /// It ended like this.
    Finished(Outcome),
    /// Its effect is certainly absent, and nothing of it runs: run it again.
    Restart,
    /// It cannot be told. People must look.
    Interrupted {
        /// What is known.
        message: String,
    },
}

/// Why an operation is to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// It was cancelled.
    Cancelled,
    /// Its deadline has come.
    Deadline,
}

impl StopReason {
    /// How an operation that stopped for this reason ended.
    pub fn status(self) -> OutcomeStatus {
        match self {
            Self::Cancelled => OutcomeStatus::Cancelled,
            Self::Deadline => OutcomeStatus::DeadlineExceeded,
        }
    }
}

/// Tells a driver to stop.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Receiver<Option<StopReason>>);

impl StopSignal {
    /// The signal and the sender that raises it.
    pub fn new() -> (watch::Sender<Option<StopReason>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Waits until the operation is to stop; forever if it never is.
    pub async fn requested(&mut self) -> StopReason {
        match self.0.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// A piece of progress on its way; its permit lets the next one follow.
pub struct InFlight {
    /// Which operation.
    pub operation: OperationId,
    /// The piece.
    pub progress: Progress,
    /// Freed when the piece has been written to the network, or dropped because nobody listens.
    pub permit: OwnedSemaphorePermit,
}

/// Where a driver puts output and progress.
pub struct ProgressSink {
    operation: OperationId,
    credit: Arc<Semaphore>,
    out: mpsc::Sender<Box<InFlight>>,
}

impl ProgressSink {
    /// A sink for one operation.
    pub fn new(operation: OperationId, out: mpsc::Sender<Box<InFlight>>) -> Self {
        Self {
            operation,
            credit: Arc::new(Semaphore::new(PROGRESS_IN_FLIGHT_MAX)),
            out,
        }
    }

    /// Sends one piece, and waits while [`PROGRESS_IN_FLIGHT_MAX`] are on their way. The sequence
    /// number is set later. While nobody listens pieces are dropped and nothing waits.
    pub async fn send(&self, progress: Progress) {
        let Ok(permit) = Arc::clone(&self.credit).acquire_owned().await else {
            return;
        };
        let piece = InFlight {
            operation: self.operation,
            progress,
            permit,
        };
        // The receiver only goes when the agent does.
        drop(self.out.send(Box::new(piece)).await);
    }
}

/// An agent's drivers by the name of their kind.
#[derive(Default)]
pub struct Drivers {
    by_kind: BTreeMap<String, Arc<dyn Driver>>,
}

impl Drivers {
    /// No drivers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one (`kind`: `[a-z0-9_.-]{1,64}`), in the place of an earlier one.
    #[must_use]
    pub fn with(mut self, kind: &str, driver: impl Driver) -> Self {
        self.by_kind.insert(kind.to_owned(), Arc::new(driver));
        self
    }

    /// The driver of a kind.
    pub fn get(&self, kind: &str) -> Option<&Arc<dyn Driver>> {
        self.by_kind.get(kind)
    }

    /// Names of all kinds.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.by_kind.keys().map(String::as_str)
    }

    /// Tells every driver that an operation is over.
    pub fn forget(&self, agent: AgentId, operation: OperationId) {
        for driver in self.by_kind.values() {
            driver.forget(agent, operation);
        }
    }
}

/// An outcome without output: for operations that ended before or beside their driver.
pub fn bare_outcome(status: OutcomeStatus, message: impl Into<String>) -> Outcome {
    Outcome {
        status,
        exit_code: None,
        message: message.into(),
        output: Bytes::new(),
        service_time: Duration::ZERO,
    }
}
