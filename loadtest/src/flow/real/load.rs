//! A backlog that stays as long as it is: each operation that ends is followed by another of the same tenant
//! on the same host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::ids::AgentId;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::mill::{Ended, Input};
use crate::api::{Api, Item, NewProcess, OnAccount};
use crate::clock;
use crate::ledger::Ledger;
use crate::workload::submit;

/// The driver's name.
pub(super) const KIND: &str = "mill";
/// Processes in one request.
const BATCH_MAX: usize = 500;
/// Requests on their way at once.
const REQUESTS_MAX: usize = 8;
/// What ends within this goes into one request.
const GATHER: Duration = Duration::from_millis(20);
/// A process is over after this long.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Who wants what.
pub(super) struct Load {
    pub(super) api: Api,
    pub(super) ledger: Arc<Ledger>,
    pub(super) agents: Arc<[AgentId]>,
    /// The first so many of them.
    pub(super) loaded: usize,
    /// Outstanding on each host, by tenant.
    pub(super) outstanding: Vec<usize>,
    /// Processes that the API refused for good.
    pub(super) refused: Arc<AtomicU64>,
}

/// So many for each tenant, by its share of `outstanding`, at least one each.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small counts"
)]
pub(super) fn by_share(outstanding: usize, shares: &[f64]) -> Vec<usize> {
    let of = |share: &f64| ((outstanding as f64 * share).round() as usize).max(1);
    shares.iter().map(of).collect()
}

impl Load {
    /// All that is outstanding at once.
    fn total(&self) -> usize {
        self.loaded * self.outstanding.iter().sum::<usize>()
    }

    /// Keeps the backlog as long as it is until `stop`, then waits for the API's last answers.
    pub(super) async fn run(self, mut ends: mpsc::Receiver<Ended>, stop: CancellationToken) {
        let load = Arc::new(self);
        let gate = Arc::new(Semaphore::new(REQUESTS_MAX));
        let mut requests = JoinSet::new();
        let mut wanted = load.first();
        let mut ticks = tokio::time::interval(GATHER);
        loop {
            while !wanted.is_empty() {
                let rest = wanted.split_off(wanted.len().min(BATCH_MAX));
                let batch = std::mem::replace(&mut wanted, rest);
                let Ok(permit) = Arc::clone(&gate).acquire_owned().await else {
                    return;
                };
                let load = Arc::clone(&load);
                requests.spawn(async move {
                    load.ask(&batch).await;
                    drop(permit);
                });
            }
            while requests.try_join_next().is_some() {}
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            while let Ok(ended) = ends.try_recv() {
                wanted.push(ended);
            }
        }
        while requests.join_next().await.is_some() {}
    }

    /// The whole backlog, tenant by tenant over all hosts.
    fn first(&self) -> Vec<Ended> {
        let mut first = Vec::with_capacity(self.total());
        let most = self.outstanding.iter().copied().max().unwrap_or(0);
        for round in 0..most {
            for host in 0..self.loaded {
                let tenants = self.outstanding.iter().enumerate();
                let more = tenants.filter(|(_, count)| **count > round);
                first.extend(more.map(|(tenant, _)| Ended { host, tenant }));
            }
        }
        first
    }

    async fn ask(&self, batch: &[Ended]) {
        let now = clock::now();
        self.ledger.attempting(batch.len() as u64);
        let items = batch.iter().map(|wanted| (self.item(*wanted), now));
        let refused = submit(&self.api, &self.ledger, items.collect()).await;
        if let Some(why) = refused.first() {
            tracing::warn!(why, "a process was refused");
            self.refused
                .fetch_add(refused.len() as u64, Ordering::Relaxed);
        }
    }

    fn item(&self, wanted: Ended) -> Item<OnAccount> {
        let process = NewProcess {
            agent: self.agents[wanted.host].to_string(),
            kind: KIND,
            input: json!(Input {
                tenant: wanted.tenant,
                endless: false,
            }),
            deadline_seconds: DEADLINE.as_secs(),
        };
        Item {
            idempotency_key: Uuid::now_v7().to_string(),
            process: OnAccount {
                process,
                tenant: format!("t{}", wanted.tenant),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backlog_is_shared_as_told_and_everybody_has_something() {
        assert_eq!(by_share(20, &[0.7, 0.1, 0.1, 0.1]), [14, 2, 2, 2]);
        assert_eq!(by_share(2, &[0.9, 0.1]), [2, 1]);
        let load = Load {
            api: Api::new("http://127.0.0.1:1", "t").unwrap(),
            ledger: Arc::default(),
            agents: [AgentId(Uuid::from_u128(1)), AgentId(Uuid::from_u128(2))].into(),
            loaded: 2,
            outstanding: vec![3, 1],
            refused: Arc::default(),
        };
        let first = load.first();
        assert_eq!((first.len(), load.total()), (8, 8));
        let of = |host, tenant| {
            let wanted = Ended { host, tenant };
            first.iter().filter(|one| **one == wanted).count()
        };
        assert_eq!((of(0, 0), of(1, 1)), (3, 1));
    }
}
