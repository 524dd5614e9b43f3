//! What stuck processes cost the others (T9).
//!
//! ```text
//!   without ─▶ 100,000 wait ─▶ with ─▶ these cancelled ─▶ without ─▶ 100,000 wait ─▶ with ─▶ cancelled ─▶ without
//! ```
//!
//! The store grows all the time, and that alone may slow it. So each rate with them is held against the mean of
//! those before and after it: what grows evenly cancels out.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::bed::{Bed, Plan, Reading};
use super::load::KIND;
use super::{Hosts, Options, SET_UP};
use crate::api::{Item, NewProcess, OnAccount};
use crate::clock;
use crate::workload::submit;

/// Process servers.
const SERVERS: usize = 4;
/// How often it is asked.
const ROUNDS: u32 = 2;
/// How long a rate is measured.
const RATE_OVER: Duration = Duration::from_secs(30);
/// Before that, until the load is even.
const RATE_AFTER: Duration = Duration::from_secs(10);
/// How long [`rate`] takes.
pub(super) const RATE_TAKES: Duration = RATE_AFTER.saturating_add(RATE_OVER);
/// Agents that are stuck with them: one takes 20,000 at most.
const PER_STUCK_AGENT: usize = 15_000;
/// Of hosts that are never the limit; so many operations without end occupy one that is stuck.
const SLOTS: u32 = 16;
/// On whose account stuck processes are.
const TENANT: &str = "stuck";
/// As many a second as the API takes.
const CANCELLED_PER_SECOND: u32 = 1000;
/// About how many the API accepts a second beside the load, one request after the other.
const ACCEPTED_PER_SECOND: u32 = 2000;
/// A batch is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What stuck processes cost.
#[derive(Clone, Debug, Serialize)]
pub struct Stuck {
    /// Processes that wait at agents that have no room.
    pub stuck: usize,
    /// Operations a second of the other agents without them: before the first round, and after each.
    pub rates_without: Vec<f64>,
    /// And with them, in each round.
    pub rates_with: Vec<f64>,
    /// What the others keep of their rate: each rate with them over the mean of those just before and after, and of
    /// these the mean.
    pub kept: f64,
}

impl Hosts {
    /// The server, or the machine, is the limit.
    pub(super) fn never_the_limit(agents: usize) -> Self {
        Self {
            agents,
            slots: SLOTS,
            capacity: SLOTS,
            mean: Duration::from_millis(5),
            outstanding: 8,
        }
    }
}

impl Stuck {
    fn of(stuck: usize, rates_without: Vec<f64>, rates_with: Vec<f64>) -> Self {
        Self {
            stuck,
            kept: kept(&rates_without, &rates_with),
            rates_without,
            rates_with,
        }
    }
}

/// Each rate with stuck processes over the mean of the rates without them just before and just after, and of
/// these ratios the mean. 0 where nothing was measured.
pub(super) fn kept(without: &[f64], with: &[f64]) -> f64 {
    let rounds = without.windows(2).zip(with);
    let ratios = rounds.map(|(around, with)| {
        let mean = f64::midpoint(around[0], around[1]);
        with / mean.max(f64::MIN_POSITIVE)
    });
    let (count, sum) = ratios.fold((0.0, 0.0), |(count, sum), ratio| (count + 1.0, sum + ratio));
    sum / f64::max(count, 1.0)
}

/// About how long [`measure`] takes.
pub(super) fn expected(stuck: usize) -> Duration {
    let stuck = u32::try_from(stuck).unwrap_or(u32::MAX);
    let seconds = |per_second| Duration::from_secs(u64::from(stuck / per_second));
    let round = seconds(ACCEPTED_PER_SECOND) + seconds(CANCELLED_PER_SECOND);
    SET_UP + RATE_TAKES * (2 * ROUNDS + 1) + round * ROUNDS
}

/// Measures how many operations a second go through when only the server limits them: without stuck
/// processes, with them, and without them again, in several rounds.
pub(super) async fn measure(options: &Options) -> anyhow::Result<Stuck> {
    println!("{} stuck processes …", options.stuck);
    let folder = options.work_dir.join("stuck");
    let stuck_agents = options.stuck.div_ceil(PER_STUCK_AGENT);
    // Some more that are to be stuck.
    let hosts = Hosts::never_the_limit(options.fleet.agents + stuck_agents);
    let mut bed = Bed::prepare(&Plan {
        server: &options.server,
        site: options.site,
        folder: &folder,
        servers: SERVERS,
        settings: vec!["gateway.adaptive_limits=false".to_owned()],
        hosts,
        scenario: hosts.scenario(0.05, SERVERS, options.seed),
        agents_apart: 0,
    })
    .await?;
    // Occupied all the time, so that only the queues differ from one rate to the next.
    let first = options.fleet.agents;
    ask_endless(&bed, first, stuck_agents * SLOTS as usize).await?;
    bed.load_first(first);
    let (mut without, mut with) = (vec![rate(&bed).await?], Vec::new());
    for _ in 0..ROUNDS {
        ask_endless(&bed, first, options.stuck).await?;
        with.push(rate(&bed).await?);
        cancel(&bed, options.stuck).await?;
        without.push(rate(&bed).await?);
    }
    // What occupies the hosts stays; the server is stopped with it.
    bed.finish().await?;
    Ok(Stuck::of(options.stuck, without, with))
}

/// Operations that succeed a second.
pub(super) async fn rate(bed: &Bed) -> anyhow::Result<f64> {
    tokio::time::sleep(RATE_AFTER).await;
    let (before, since): (Reading, Instant) = (bed.read().await?, clock::now());
    tokio::time::sleep(RATE_OVER).await;
    let after = bed.read().await?;
    let took = clock::now().duration_since(since).as_secs_f64();
    let rate = (after.succeeded - before.succeeded) / took;
    println!("  {rate:.0} operations a second");
    Ok(rate)
}

/// Asks for `count` operations without end of the agents from `first` on, in turn.
async fn ask_endless(bed: &Bed, first: usize, count: usize) -> anyhow::Result<()> {
    let agents = bed.fleet.ids();
    let agents = agents.get(first..).unwrap_or_default();
    let items: Vec<Item<OnAccount>> = (0..count)
        .map(|n| Item {
            idempotency_key: Uuid::now_v7().to_string(),
            process: OnAccount {
                process: NewProcess {
                    agent: agents[n % agents.len()].to_string(),
                    kind: KIND,
                    input: json!({ "tenant": 0, "endless": true }),
                    deadline_seconds: 24 * 3600,
                },
                tenant: TENANT.to_owned(),
            },
        })
        .collect();
    for batch in items.chunks(500) {
        let batch = batch.iter().map(|item| (item.clone(), clock::now()));
        let refused = submit(&bed.api, &bed.ledger, batch.collect()).await;
        ensure!(refused.is_empty(), "{refused:?}");
    }
    Ok(())
}

/// Cancels the stuck processes, and waits until they are.
async fn cancel(bed: &Bed, count: usize) -> anyhow::Result<()> {
    let batch = bed.api.cancel_ready(TENANT, count, CANCELLED_PER_SECOND);
    let batch = batch.await?;
    let patience = clock::now() + expected(count) * 2;
    loop {
        let now = bed.api.batch(batch).await?;
        if now.state == "finished" && now.failed == 0 && now.done == count {
            return Ok(());
        }
        ensure!(
            now.state == "running" && clock::now() < patience,
            "{count} stuck processes were to be cancelled; the batch says {now:?}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_slows_evenly_by_itself_is_not_put_down_to_stuck_processes() {
        assert_eq!(kept(&[5000.0, 4000.0, 3000.0], &[4500.0, 3500.0]), 1.0);
        let slowed = kept(&[1000.0, 1000.0, 500.0], &[900.0, 600.0]);
        assert!((slowed - 0.85).abs() < 1e-12, "{slowed}");
        assert_eq!(kept(&[1000.0], &[]), 0.0, "nothing was measured");
        let found = Stuck::of(7, vec![100.0, 100.0], vec![90.0]);
        assert_eq!((found.stuck, found.kept), (7, 0.9));
    }

    #[test]
    fn the_expected_time_grows_with_what_is_to_be_made_and_cancelled() {
        let more = expected(200_000) - expected(100_000);
        assert_eq!(more, Duration::from_secs(2 * (50 + 100)));
        assert!(expected(0) >= (RATE_AFTER + RATE_OVER) * 5);
    }
}
