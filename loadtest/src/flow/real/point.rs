//! One point: a thrash factor and a number of process servers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::Options;
use super::bed::{Bed, Plan, Reading};
use crate::clock;
use crate::flow::matrix;
use crate::flow::scenario::Scenario;
use crate::flow::score::Score;

/// After the fleet has come up, before the server counts as idle.
pub(super) const CALM: Duration = Duration::from_secs(10);

/// What was measured at a point.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What the simulator's rows have.
    #[serde(flatten)]
    pub row: matrix::Row,
    /// Measured on the real server.
    pub real: bool,
    /// Hosts.
    pub agents: usize,
    /// Slots of each.
    pub slots: u32,
    /// Mean time of an operation at full speed, seconds.
    pub mean_s: f64,
    /// Operations that succeeded while it counted.
    pub operations: u64,
    /// The same a second.
    pub rate: f64,
    /// Commits of the store for each operation.
    pub transactions_per_operation: f64,
    /// Reads of the store for each operation.
    pub reads_per_operation: f64,
    /// Permits given back for each operation: two servers had gone for the same process.
    pub permits_returned_per_operation: f64,
    /// Commits and reads a second of each process server while nothing happened.
    pub idle_queries_per_second: f64,
    /// Accepted processes that never ended, or succeeded without an effect.
    pub lost: u64,
    /// Effects beyond the first of an operation.
    pub duplicate_effects: u64,
    /// Processes that failed.
    pub failed: u64,
    /// Operations that the server believed to be active when none was.
    pub leaked: u64,
    /// CPU of the server for each operation, milliseconds.
    pub server_cpu_ms_per_operation: f64,
    /// CPU of fleet and load for each operation, milliseconds.
    pub fleet_cpu_ms_per_operation: f64,
    /// How much of all cores both used.
    pub cores_busy: f64,
}

impl Row {
    /// Nothing lost, doubled, issued twice or leaked.
    pub fn is_sound(&self) -> bool {
        self.lost == 0
            && self.duplicate_effects == 0
            && self.failed == 0
            && self.leaked == 0
            && self.row.over_issue == Some(0)
    }
}

/// Measures it on a server and a fleet of its own.
pub(super) async fn measure(options: &Options, gamma: f64, servers: usize) -> anyhow::Result<Row> {
    let scenario = Scenario {
        warm_up: options.warm_up.as_secs_f64(),
        measured: options.measured.as_secs_f64(),
        ..options.fleet.scenario(gamma, servers, options.seed)
    };
    let folder = options.work_dir.join(format!("{gamma}-{servers}"));
    let mut bed = Bed::prepare(&Plan {
        server: &options.server,
        site: options.site,
        folder: &folder,
        servers,
        settings: Vec::new(),
        hosts: options.fleet,
        scenario: scenario.clone(),
        agents_apart: 0,
    })
    .await?;
    tokio::time::sleep(CALM).await;
    let calm = bed.read().await?;
    tokio::time::sleep(options.idle).await;
    let still = bed.read().await?;
    bed.load();
    bed.mill.begin_score(&scenario);
    tokio::time::sleep(options.warm_up).await;
    let before = bed.read().await?;
    let since = clock::now();
    tokio::time::sleep(options.measured).await;
    let score = bed.mill.take_score().unwrap_or_default();
    let took = clock::now().duration_since(since).as_secs_f64();
    let after = bed.read().await?;
    bed.stop_load().await;
    bed.settle().await;
    let totals = bed.ledger.totals();
    let idle = idle_queries([calm, still], options.idle, servers);
    let per = Per::of([before, after], took);
    let row = Row {
        row: matrix_row(options, &scenario, &score, &bed),
        real: true,
        agents: options.fleet.agents,
        slots: options.fleet.slots,
        mean_s: options.fleet.mean.as_secs_f64(),
        operations: score.successes,
        rate: rate(score.successes, took),
        transactions_per_operation: per.commits,
        reads_per_operation: per.reads,
        permits_returned_per_operation: per.returned,
        idle_queries_per_second: idle,
        lost: totals.lost,
        duplicate_effects: totals.duplicate_effects,
        failed: totals.failed + bed.not_taken.load(Ordering::Relaxed),
        leaked: bed.active().await.unwrap_or(u64::MAX),
        server_cpu_ms_per_operation: per.server_cpu_ms,
        fleet_cpu_ms_per_operation: per.fleet_cpu_ms,
        cores_busy: per.cores_busy,
    };
    bed.finish().await?;
    Ok(row)
}

fn matrix_row(options: &Options, scenario: &Scenario, score: &Score, bed: &Bed) -> matrix::Row {
    let weights: Vec<u32> = scenario
        .tenants
        .iter()
        .map(|tenant| tenant.weight)
        .collect();
    let window = (60.0 * scenario.mean_work()).min(options.measured.as_secs_f64());
    let indices = score.jain(&weights, window.floor());
    let refused = bed.refusals.load(Ordering::Relaxed);
    matrix::Row {
        rule: "drover",
        servers: scenario.servers,
        gamma: scenario.gamma,
        goodput_ratio: score.goodput_within(scenario.measured),
        waste: score.waste(),
        jain: indices.into_iter().fold(1.0, f64::min),
        over_issue: Some(u32::try_from(refused).unwrap_or(u32::MAX)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts well below 2^53")]
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(f64::MIN_POSITIVE)
}

#[expect(clippy::cast_precision_loss, reason = "a few servers")]
fn idle_queries([calm, still]: [Reading; 2], idle: Duration, servers: usize) -> f64 {
    let queries = (still.commits + still.reads) - (calm.commits + calm.reads);
    queries / idle.as_secs_f64().max(f64::MIN_POSITIVE) / servers.max(1) as f64
}

/// Figures for each operation.
struct Per {
    commits: f64,
    reads: f64,
    returned: f64,
    server_cpu_ms: f64,
    fleet_cpu_ms: f64,
    cores_busy: f64,
}

impl Per {
    #[expect(clippy::cast_precision_loss, reason = "a handful of cores")]
    fn of([before, after]: [Reading; 2], seconds: f64) -> Self {
        let operations = (after.succeeded - before.succeeded).max(1.0);
        let of = |figure: fn(&Reading) -> f64| figure(&after) - figure(&before);
        let server = of(|reading| reading.server.cpu_seconds);
        let fleet = of(|reading| reading.fleet.cpu_seconds);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Self {
            commits: of(|reading| reading.commits) / operations,
            reads: of(|reading| reading.reads) / operations,
            returned: of(|reading| reading.returned) / operations,
            server_cpu_ms: 1e3 * server / operations,
            fleet_cpu_ms: 1e3 * fleet / operations,
            cores_busy: (server + fleet) / seconds / cores,
        }
    }
}
