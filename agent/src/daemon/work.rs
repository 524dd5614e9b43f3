//! The tasks in which drivers run.

use std::collections::HashMap;
use std::sync::Arc;

use protocol::ids::{AgentId, OperationId};
use protocol::operation::{Command, Outcome, OutcomeStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};

use crate::clock;
use crate::driver::{
    Drivers, InFlight, Job, Lost, ProgressSink, Recovered, StopReason, StopSignal, bare_outcome,
};

/// What a driver's task came to.
pub(super) enum Done {
    Ended(OperationId, Outcome),
    Recovered(OperationId, Recovered),
}

/// Driver tasks of one agent. Dropping it drops them.
pub(super) struct Work {
    agent: AgentId,
    drivers: Arc<Drivers>,
    progress: mpsc::Sender<Box<InFlight>>,
    tasks: JoinSet<Done>,
    running: HashMap<Id, Running>,
}

struct Running {
    operation: OperationId,
    stop: Option<watch::Sender<Option<StopReason>>>,
}

impl Work {
    pub(super) fn new(
        agent: AgentId,
        drivers: Arc<Drivers>,
        progress: mpsc::Sender<Box<InFlight>>,
    ) -> Self {
        Self {
            agent,
            drivers,
            progress,
            tasks: JoinSet::new(),
            running: HashMap::new(),
        }
    }

    /// Runs an operation.
    pub(super) fn start(&mut self, command: &Command) {
        let (sender, stop) = StopSignal::new();
        let operation = command.operation;
        let driver = self.drivers.get(&command.kind).cloned();
        let job = Job {
            agent: self.agent,
            operation,
            fence: command.fence,
            input: command.input.clone(),
            progress: ProgressSink::new(operation, self.progress.clone()),
            stop,
        };
        let task = self.tasks.spawn(async move {
            let outcome = match driver {
                Some(driver) => {
                    let began = clock::now();
                    let mut outcome = driver.run(job).await;
                    outcome.service_time = clock::now().duration_since(began);
                    outcome
                }
                None => no_driver(),
            };
            Done::Ended(operation, outcome)
        });
        let stop = Some(sender);
        self.running.insert(task.id(), Running { operation, stop });
    }

    /// Asks a driver what became of an operation.
    pub(super) fn recover(&mut self, command: &Command) {
        let operation = command.operation;
        let driver = self.drivers.get(&command.kind).cloned();
        let lost = Lost {
            agent: self.agent,
            operation,
            input: command.input.clone(),
        };
        let task = self.tasks.spawn(async move {
            let recovered = match driver {
                Some(driver) => driver.recover(lost).await,
                None => Recovered::Finished(no_driver()),
            };
            Done::Recovered(operation, recovered)
        });
        let stop = None;
        self.running.insert(task.id(), Running { operation, stop });
    }

    /// Tells an operation's driver to stop.
    pub(super) fn stop(&self, operation: OperationId, reason: StopReason) {
        let running = self
            .running
            .values()
            .find(|running| running.operation == operation);
        if let Some(stop) = running.and_then(|running| running.stop.as_ref()) {
            stop.send_replace(Some(reason));
        }
    }

    /// The next task that is done; forever without tasks.
    pub(super) async fn next(&mut self) -> Done {
        loop {
            let Some(joined) = self.tasks.join_next_with_id().await else {
                return std::future::pending().await;
            };
            let (id, done) = match joined {
                Ok((id, done)) => (id, Ok(done)),
                Err(error) => (error.id(), Err(error)),
            };
            let running = self.running.remove(&id);
            match (done, running) {
                (Ok(done), _) => return done,
                (Err(error), Some(Running { operation, .. })) => {
                    tracing::error!(agent = %self.agent, %operation, %error, "a driver panicked");
                    let message = "the driver failed while it ran; see the agent's log";
                    let outcome = bare_outcome(OutcomeStatus::Interrupted, message);
                    return Done::Ended(operation, outcome);
                }
                (Err(_), None) => {}
            }
        }
    }
}

/// A driver that was there when the operation was accepted, and is not any more.
fn no_driver() -> Outcome {
    let message = "the agent was restarted without the driver of this operation";
    bare_outcome(OutcomeStatus::Interrupted, message)
}
