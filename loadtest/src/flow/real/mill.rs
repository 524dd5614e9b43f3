//! Hosts with a fixed service rate, in real time: the simulator's [`Plant`] behind the agents' driver.
//!
//! What runs on a host runs on, whether its agent lives or not; a new life of the agent finds it here. Every
//! end of an operation is its effect, which the ledger counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agent::driver::{Driver, Job, Lost, Recovered, StopReason, bare_outcome};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use protocol::ids::{AgentId, OperationId};
use protocol::operation::{Outcome, OutcomeStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};

use super::super::events::{Events, Nanos, nanos, seconds};
use super::super::plant::Plant;
use super::super::random::Random;
use super::super::scenario::Scenario;
use super::super::score::Score;
use crate::clock;
use crate::ledger::Ledger;

/// Seconds of work that no test waits for.
const ENDLESS: f64 = 1e9;

/// What the driver accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// On whose account: a number in the scenario's list.
    pub(super) tenant: usize,
    /// It never ends.
    #[serde(default)]
    pub(super) endless: bool,
}

/// An operation has ended on its host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ended {
    pub(super) host: usize,
    pub(super) tenant: usize,
}

/// All hosts. Clones share them.
#[derive(Clone)]
pub(super) struct Mill {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something may be due earlier than before.
    changed: Notify,
    ledger: Arc<Ledger>,
    began: Instant,
    mean: f64,
    variation: f64,
    seed: u64,
}

struct State {
    plant: Plant,
    due: Events<(usize, u32)>,
    hosts: HashMap<AgentId, usize>,
    running: HashMap<u64, Running>,
    tokens: HashMap<OperationId, u64>,
    next_token: u64,
    ended: mpsc::Sender<Ended>,
    score: Option<Score>,
    /// Since the mill began, in seconds: the last second that was sampled.
    sampled: f64,
    last_start: Option<Instant>,
}

struct Running {
    operation: OperationId,
    host: usize,
    tenant: usize,
    work: f64,
    since: Nanos,
    over: watch::Sender<bool>,
}

impl Mill {
    /// Hosts for `agents`, in their order. Ends are told to `ended`, as long as it has room.
    pub(super) fn new(
        scenario: &Scenario,
        agents: &[AgentId],
        ledger: Arc<Ledger>,
        ended: mpsc::Sender<Ended>,
    ) -> Self {
        let hosts = agents.iter().copied().zip(0..).collect();
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    plant: Plant::new(scenario),
                    due: Events::new(),
                    hosts,
                    running: HashMap::new(),
                    tokens: HashMap::new(),
                    next_token: 0,
                    ended,
                    score: None,
                    sampled: 0.0,
                    last_start: None,
                }),
                changed: Notify::new(),
                ledger,
                began: clock::now(),
                mean: scenario.mean_work(),
                variation: scenario.variation,
                seed: scenario.seed,
            }),
        }
    }

    /// Lets time pass, for ever.
    pub(super) async fn run(self) {
        loop {
            let next = self.turn();
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.shared.changed.notified() => {}
            }
        }
    }

    /// What is due now; when the next thing is.
    fn turn(&self) -> Instant {
        let mut state = self.lock();
        // Read with the lock held: a host's time never goes back.
        let now = self.now();
        while let Some((at, (host, generation))) = state.due.pop(now) {
            // At its own time, not when we came to it: a late turn costs a host nothing.
            for token in state.plant.handle_due(at, host, generation) {
                state.end(at, token, &self.shared.ledger);
            }
            state.note_due();
        }
        state.sample(seconds(now));
        let next = state.due.first().unwrap_or(Nanos::MAX);
        // A sample each second.
        let next = next.min(nanos(seconds(now).floor() + 1.0));
        self.shared.began + std::time::Duration::from_nanos(next)
    }

    /// From now on ends, refusals and what hosts could do are counted.
    pub(super) fn begin_score(&self, scenario: &Scenario) {
        let second = seconds(self.now()).floor();
        let mut state = self.lock();
        state.sampled = second;
        let warm_up = second + scenario.warm_up;
        let mut score = Score::new(&Scenario {
            warm_up,
            ..scenario.clone()
        });
        // Seconds before the beginning do not count.
        score.capacity = vec![0.0; nanos_to_index(second)];
        state.score = Some(score);
    }

    /// What was counted.
    pub(super) fn take_score(&self) -> Option<Score> {
        self.turn();
        self.lock().score.take()
    }

    /// A command that an agent refused: it came although the agent had no room.
    pub(super) fn refused(&self) {
        let now = self.now();
        if let Some(score) = &mut self.lock().score {
            score.refuse(now);
        }
    }

    /// When the last operation was started.
    pub(super) fn last_start(&self) -> Option<Instant> {
        self.lock().last_start
    }

    /// Starts an operation; nothing where its host takes no more.
    fn start(
        &self,
        agent: AgentId,
        operation: OperationId,
        input: Input,
    ) -> Option<watch::Receiver<bool>> {
        let mut state = self.lock();
        let now = self.now();
        if let Some(running) = state.running_of(operation) {
            return Some(running);
        }
        let host = *state.hosts.get(&agent)?;
        let work = match input.endless {
            true => ENDLESS,
            false => self.work_of(operation),
        };
        let token = state.next_token;
        state.next_token += 1;
        if state.plant.start(now, host, token, work).is_err() {
            if let Some(score) = &mut state.score {
                score.refuse(now);
            }
            state.note_due();
            self.shared.changed.notify_one();
            return None;
        }
        let (over, heard) = watch::channel(false);
        let running = Running {
            operation,
            host,
            tenant: input.tenant,
            work,
            since: now,
            over,
        };
        state.running.insert(token, running);
        state.tokens.insert(operation, token);
        state.last_start = Some(clock::now());
        state.note_due();
        self.shared.changed.notify_one();
        Some(heard)
    }

    /// How much work an operation is: the same whenever it is asked.
    fn work_of(&self, operation: OperationId) -> f64 {
        let mut seed = self.shared.seed ^ u64::from(operation.step);
        for byte in operation.process.to_bytes() {
            seed = seed.rotate_left(8) ^ u64::from(byte);
        }
        // Ids of one millisecond differ in few bits.
        let mut random = Random::new(Random::new(seed).next());
        random.log_normal(self.shared.mean, self.shared.variation)
    }

    fn now(&self) -> Nanos {
        let since = clock::now().duration_since(self.shared.began);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = &self.shared.state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a run"
)]
fn nanos_to_index(second: f64) -> usize {
    second.max(0.0) as usize
}

impl State {
    fn note_due(&mut self) {
        while let Some((host, at, generation)) = self.plant.poll_due() {
            self.due.push(at, (host, generation));
        }
    }

    fn running_of(&self, operation: OperationId) -> Option<watch::Receiver<bool>> {
        let token = self.tokens.get(&operation)?;
        Some(self.running.get(token)?.over.subscribe())
    }

    fn end(&mut self, now: Nanos, token: u64, ledger: &Ledger) {
        let Some(running) = self.running.remove(&token) else {
            return;
        };
        self.tokens.remove(&running.operation);
        let first = ledger.effect(running.operation) == 1;
        if first && let Some(score) = &mut self.score {
            let took = seconds(now - running.since);
            score.succeed(now, running.tenant, running.work, took);
        }
        // Nobody has to be there to hear it.
        running.over.send_replace(true);
        let ended = Ended {
            host: running.host,
            tenant: running.tenant,
        };
        if first && self.ended.try_send(ended).is_err() {
            tracing::debug!("nobody follows an end with another beginning");
        }
    }

    fn sample(&mut self, now: f64) {
        let (capacity, slots) = (self.plant.capacity(), self.plant.slots());
        while self.sampled + 1.0 <= now {
            self.sampled += 1.0;
            #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
            let running = self.plant.running(0) as f64;
            if let Some(score) = &mut self.score {
                score.sample(nanos(self.sampled), capacity, [f64::NAN, running, slots]);
            }
        }
    }
}

impl Driver for Mill {
    fn validate(&self, input: &[u8]) -> Result<(), String> {
        serde_json::from_slice::<Input>(input)
            .map(|_| ())
            .map_err(|error| format!("{error}; the mill takes for example {{\"tenant\": 0}}"))
    }

    fn run(&self, job: Job) -> BoxFuture<'static, Outcome> {
        grind(self.clone(), job).boxed()
    }

    fn recover(&self, lost: Lost) -> BoxFuture<'static, Recovered> {
        let running = self.lock().running_of(lost.operation);
        let done = self.shared.ledger.has_effect(lost.operation);
        async move {
            if let Some(running) = running {
                wait(running).await;
            } else if !done {
                return Recovered::Restart;
            }
            Recovered::Finished(succeeded())
        }
        .boxed()
    }
}

async fn grind(mill: Mill, mut job: Job) -> Outcome {
    let input: Input = match serde_json::from_slice(&job.input) {
        Ok(input) => input,
        Err(error) => return bare_outcome(OutcomeStatus::FailedPermanent, error.to_string()),
    };
    let Some(running) = mill.start(job.agent, job.operation, input) else {
        return bare_outcome(OutcomeStatus::FailedTransient, "the host takes no more");
    };
    tokio::select! {
        () = wait(running) => succeeded(),
        reason = job.stop.requested() => {
            if reason == StopReason::Deadline {
                let now = mill.now();
                if let Some(score) = &mut mill.lock().score {
                    score.time_out(now);
                }
            }
            bare_outcome(reason.status(), "nobody waits for it any more; it runs on")
        }
    }
}

async fn wait(mut running: watch::Receiver<bool>) {
    // The mill lives as long as anybody who waits for it; without it nothing ends.
    if running.wait_for(|over| *over).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn succeeded() -> Outcome {
    bare_outcome(OutcomeStatus::Succeeded, "")
}

#[cfg(test)]
mod tests {
    use protocol::ids::ProcessId;
    use uuid::Uuid;

    use super::*;

    const AGENT: AgentId = AgentId(Uuid::from_u128(7));

    fn mill(refuse_at: usize) -> (Mill, Arc<Ledger>, mpsc::Receiver<Ended>) {
        let scenario = Scenario {
            hosts: 1,
            slots: 2.0,
            refuse_at,
            variation: 0.0,
            kinds: vec![super::super::super::scenario::Kind {
                mean: 0.01,
                share: 1.0,
            }],
            ..Scenario::default()
        };
        let ledger = Arc::new(Ledger::default());
        let (ended, ends) = mpsc::channel(8);
        let mill = Mill::new(&scenario, &[AGENT], Arc::clone(&ledger), ended);
        (mill, ledger, ends)
    }

    fn operation(n: u128) -> OperationId {
        OperationId::new(ProcessId(Uuid::from_u128(n)), 0)
    }

    fn input(tenant: usize) -> Input {
        Input {
            tenant,
            endless: false,
        }
    }

    fn lost(n: u128) -> Lost {
        Lost {
            agent: AGENT,
            operation: operation(n),
            input: Vec::new().into(),
        }
    }

    #[tokio::test]
    async fn what_a_dead_agent_had_started_runs_on_and_is_found_and_never_begun_twice() {
        let (mill, ledger, mut ends) = mill(8);
        let first = mill.start(AGENT, operation(1), input(3)).unwrap();
        drop(first);
        let again = mill.start(AGENT, operation(1), input(3));
        assert!(again.is_some());
        assert_eq!(mill.lock().running.len(), 1, "the same one");
        assert_eq!(mill.recover(lost(2)).await, Recovered::Restart);
        let running = tokio::spawn(mill.clone().run());
        let found = mill.recover(lost(1)).await;
        assert_eq!(found, Recovered::Finished(succeeded()));
        assert_eq!(ends.recv().await, Some(Ended { host: 0, tenant: 3 }));
        assert_eq!(mill.recover(lost(1)).await, found, "from its effect");
        assert_eq!(ledger.effect(operation(1)), 2, "there was one before");
        running.abort();
    }

    #[tokio::test]
    async fn a_full_host_refuses() {
        let (mill, _, _ends) = mill(1);
        assert!(mill.start(AGENT, operation(1), input(0)).is_some());
        assert!(mill.start(AGENT, operation(2), input(0)).is_none());
    }

    #[test]
    fn an_operation_is_as_much_work_whenever_it_is_asked_and_others_are_other_work() {
        let (ended, _ends) = mpsc::channel(1);
        let scenario = Scenario::default();
        let mill = Mill::new(&scenario, &[AGENT], Arc::default(), ended);
        let works: Vec<f64> = (0..4000).map(|n| mill.work_of(operation(n))).collect();
        assert_eq!(works[7], mill.work_of(operation(7)));
        let mean = works.iter().sum::<f64>() / 4000.0;
        assert!((mean / scenario.mean_work() - 1.0).abs() < 0.05, "{mean}");
    }
}
