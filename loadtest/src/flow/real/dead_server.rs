//! Two single questions: what a process server leaves that dies (T8), and what stuck processes cost the
//! others (T9).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::bed::{Bed, Plan, Reading};
use super::load::KIND;
use super::{Hosts, Options};
use crate::api::{Item, NewProcess};
use crate::clock;
use crate::workload::submit;

/// Process servers in both.
const SERVERS: usize = 4;
/// From the server's start to the death of one of them: the fleet is up and at work by then.
const DIES_AFTER: Duration = Duration::from_secs(45);
/// What the server says then.
const LAST_WORDS: &str = "a process server dies now";
/// How long the rate of claims is measured.
const RATE_OVER: Duration = Duration::from_secs(20);
/// Before that, until the load is even.
const RATE_AFTER: Duration = Duration::from_secs(10);
/// Agents that are stuck with them: one takes 20,000 at most.
const PER_STUCK_AGENT: usize = 15_000;

/// What followed the death of one of several process servers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeadServer {
    /// Process servers.
    pub servers: usize,
    /// Claims that the others had to ask for.
    pub taken_over: u64,
    /// From the death until the last process that waited at that moment was started, seconds.
    pub resumed_s: f64,
    /// Of those: never ended, or without effect.
    pub lost: u64,
    /// Effects beyond the first.
    pub duplicate_effects: u64,
}

/// What stuck processes cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stuck {
    /// Processes that wait at agents that have no room.
    pub stuck: usize,
    /// Operations a second of the other agents without them.
    pub rate_without: f64,
    /// And with them.
    pub rate_with: f64,
}

/// Lets one of four process servers die under load, takes the load away at that moment, and sees how long
/// it takes until all that waited was started.
pub(super) async fn dead_server(options: &Options) -> anyhow::Result<DeadServer> {
    println!("one of {SERVERS} process servers dies …");
    let folder = options.work_dir.join("dead-server");
    let scenario = options.fleet.scenario(0.05, SERVERS, options.seed);
    let setting = format!("faults.process_server_dies_after={}s", DIES_AFTER.as_secs());
    let mut bed = Bed::prepare(&Plan {
        server: &options.server,
        folder: &folder,
        servers: SERVERS,
        settings: vec![setting],
        hosts: options.fleet,
        scenario,
        agents_apart: 0,
    })
    .await?;
    bed.load();
    let died = last_words(&folder.join("server.log")).await?;
    let unknown_before = bed.api.metric("drover_replies_lost_total").await?;
    bed.stop_load().await;
    ensure!(bed.settle().await, "not all processes ended");
    let started = bed.mill.last_start().context("nothing was started")?;
    let unknown = bed.api.metric("drover_replies_lost_total").await?;
    let totals = bed.ledger.totals();
    let found = DeadServer {
        servers: SERVERS,
        taken_over: difference(unknown_before, unknown),
        resumed_s: started.saturating_duration_since(died).as_secs_f64(),
        lost: totals.lost,
        duplicate_effects: totals.duplicate_effects,
    };
    bed.finish().await?;
    Ok(found)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count"
)]
fn difference(before: Option<f64>, after: Option<f64>) -> u64 {
    (after.unwrap_or(0.0) - before.unwrap_or(0.0)).max(0.0) as u64
}

/// Waits until the server's log has them.
async fn last_words(log: &Path) -> anyhow::Result<Instant> {
    let since = clock::now();
    loop {
        let text = std::fs::read(log).unwrap_or_default();
        if String::from_utf8_lossy(&text).contains(LAST_WORDS) {
            return Ok(clock::now());
        }
        ensure!(
            clock::now().duration_since(since) < DIES_AFTER * 2,
            "no process server died; see {}",
            log.display()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Measures how many operations a second go through when only the server limits them, then makes processes
/// that are stuck, and measures again.
pub(super) async fn stuck(options: &Options) -> anyhow::Result<Stuck> {
    println!("{} stuck processes …", options.stuck);
    let folder = options.work_dir.join("stuck");
    let stuck_agents = options.stuck.div_ceil(PER_STUCK_AGENT);
    // Hosts that are never the limit, and some more that are to be stuck.
    let hosts = Hosts {
        agents: options.fleet.agents + stuck_agents,
        slots: 16,
        capacity: 16,
        mean: Duration::from_millis(5),
        outstanding: 8,
    };
    let mut bed = Bed::prepare(&Plan {
        server: &options.server,
        folder: &folder,
        servers: SERVERS,
        settings: vec!["gateway.adaptive_limits=false".to_owned()],
        hosts,
        scenario: hosts.scenario(0.05, SERVERS, options.seed),
        agents_apart: 0,
    })
    .await?;
    bed.load_first(options.fleet.agents);
    let rate_without = rate(&bed).await?;
    block(&bed, options.fleet.agents, options.stuck).await?;
    let rate_with = rate(&bed).await?;
    // What is stuck stays so; the server is stopped with it.
    bed.finish().await?;
    Ok(Stuck {
        stuck: options.stuck,
        rate_without,
        rate_with,
    })
}

async fn rate(bed: &Bed) -> anyhow::Result<f64> {
    tokio::time::sleep(RATE_AFTER).await;
    let (before, since): (Reading, Instant) = (bed.read().await?, clock::now());
    tokio::time::sleep(RATE_OVER).await;
    let after = bed.read().await?;
    let took = clock::now().duration_since(since).as_secs_f64();
    Ok((after.succeeded - before.succeeded) / took)
}

/// Fills the agents from `first` on with operations without end, and their queues with `count` processes.
async fn block(bed: &Bed, first: usize, count: usize) -> anyhow::Result<()> {
    let agents = bed.fleet.ids();
    let agents = agents.get(first..).unwrap_or_default();
    let items: Vec<Item> = (0..count)
        .map(|n| Item {
            idempotency_key: Uuid::now_v7().to_string(),
            process: NewProcess {
                agent: agents[n % agents.len()].to_string(),
                kind: KIND,
                input: json!({ "tenant": 0, "endless": true }),
                deadline_seconds: 24 * 3600,
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
