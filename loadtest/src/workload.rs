//! The open-loop workload: processes are due at a fixed rate whatever the server does, and each is
//! tried with the same idempotency key until the API has answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::AgentId;
use rand::Rng as _;
use rand::rngs::SmallRng;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{Api, Created, Item, NewProcess};
use crate::clock;
use crate::ledger::Ledger;

/// What is asked of the fleet.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Processes a second, over all agents.
    pub rate: f64,
    /// How long.
    pub duration: Duration,
    /// Service time of each operation, milliseconds.
    pub service_ms: u64,
    /// Each process is over after this long.
    pub deadline: Duration,
}

/// Requests on their way at once.
const REQUESTS_MAX: usize = 16;
/// Processes in one request.
const BATCH_MAX: usize = 500;
const TICK: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_millis(250);

impl Workload {
    /// Runs it to its end; every due process has then been answered by the API. Returns what was
    /// refused for good.
    pub async fn run(
        &self,
        api: Api,
        ledger: Arc<Ledger>,
        agents: Arc<[AgentId]>,
        seed: u64,
    ) -> Vec<String> {
        let mut random = <SmallRng as rand::SeedableRng>::seed_from_u64(seed);
        let gate = Arc::new(Semaphore::new(REQUESTS_MAX));
        let start = clock::now();
        let mut ticks = tokio::time::interval(TICK);
        let mut requests: JoinSet<Vec<String>> = JoinSet::new();
        let mut refused = Vec::new();
        let mut sent = 0_u64;
        while clock::now().duration_since(start) < self.duration || sent < self.due(self.duration) {
            ticks.tick().await;
            let elapsed = clock::now().duration_since(start).min(self.duration);
            while sent < self.due(elapsed) {
                let count = (self.due(elapsed) - sent).min(BATCH_MAX as u64);
                let batch = (sent..sent + count)
                    .map(|n| (self.item(&agents, &mut random), start + self.time_of(n)))
                    .collect();
                sent += count;
                ledger.attempting(count);
                let Ok(permit) = Arc::clone(&gate).acquire_owned().await else {
                    break;
                };
                let (api, ledger) = (api.clone(), Arc::clone(&ledger));
                requests.spawn(async move {
                    let refused = submit(&api, &ledger, batch).await;
                    drop(permit);
                    refused
                });
            }
            while let Some(Ok(done)) = requests.try_join_next() {
                refused.extend(done);
            }
        }
        while let Some(done) = requests.join_next().await {
            refused.extend(done.unwrap_or_default());
        }
        refused
    }

    /// Processes due after `elapsed`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count well below 2^53"
    )]
    fn due(&self, elapsed: Duration) -> u64 {
        (self.rate * elapsed.as_secs_f64()) as u64
    }

    /// When the `n`-th process is due.
    #[expect(clippy::cast_precision_loss, reason = "a count well below 2^53")]
    fn time_of(&self, n: u64) -> Duration {
        Duration::from_secs_f64(n as f64 / self.rate)
    }

    fn item(&self, agents: &[AgentId], random: &mut SmallRng) -> Item {
        let agent = agents[random.random_range(0..agents.len())];
        Item {
            idempotency_key: Uuid::now_v7().to_string(),
            process: NewProcess {
                agent: agent.to_string(),
                kind: "simulated",
                input: json!({ "service_ms": self.service_ms, "distribution": "fixed" }),
                deadline_seconds: self.deadline.as_secs(),
            },
        }
    }
}

/// Tries a batch until every item has an answer.
pub(crate) async fn submit<P: serde::Serialize + Clone + Sync>(
    api: &Api,
    ledger: &Ledger,
    mut batch: Vec<(Item<P>, Instant)>,
) -> Vec<String> {
    let mut refused = Vec::new();
    while !batch.is_empty() {
        let items: Vec<Item<P>> = batch.iter().map(|(item, _)| item.clone()).collect();
        match api.create(&items).await {
            Ok(answers) => {
                let mut later = Vec::new();
                for ((item, intended), answer) in batch.into_iter().zip(answers) {
                    match answer {
                        Created::Accepted(process) => ledger.accepted(process, intended),
                        Created::Later(_) => later.push((item, intended)),
                        Created::Refused(why) => refused.push(why),
                    }
                }
                batch = later;
            }
            Err(error) => {
                tracing::debug!(%error, "a batch failed; trying again with the same keys")
            }
        }
        if !batch.is_empty() {
            tokio::time::sleep(RETRY).await;
        }
    }
    refused
}

/// Follows the event stream and writes every end into the ledger, across lost connections, until
/// `stop`.
pub async fn watch(api: Api, ledger: Arc<Ledger>, stop: CancellationToken) {
    let mut last: Option<String> = None;
    while !stop.is_cancelled() {
        let behind = last.clone();
        let following = api.follow(behind.as_deref(), |event| {
            if let Some((process, end)) = event.ended {
                ledger.ended(process, end, clock::now());
            }
            last = Some(event.id);
        });
        tokio::select! {
            () = stop.cancelled() => return,
            result = following => {
                tracing::debug!(?result, "the event stream ended; following again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
