//! Rules × servers × γ × seeds: a table, JSON, and a dated folder.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use gateway::flow::fair::Class;
use serde::Serialize;

use super::report;
use super::rules::RuleName;
use super::scenario::{Change, Scenario, Tenant};
use super::score::Score;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which rules.
    pub rules: Vec<RuleName>,
    /// How many process servers.
    pub servers: Vec<usize>,
    /// Thrash factors.
    pub gammas: Vec<f64>,
    /// Seeds a cell; figures are their means.
    pub seeds: u32,
    /// The first seed.
    pub seed: u64,
    /// Write the rows to this file.
    pub json: Option<PathBuf>,
    /// Write a dated folder under this one.
    pub results: Option<PathBuf>,
}

/// One cell of the matrix: the mean over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The rule's name.
    pub rule: &'static str,
    /// Process servers.
    pub servers: usize,
    /// Thrash factor.
    pub gamma: f64,
    /// Work done in time over the work that could have been done.
    pub goodput_ratio: f64,
    /// Attempts in vain over successes.
    pub waste: f64,
    /// Jain's index of four tenants that hold 70, 10, 10 and 10 % of the backlog: the worst window of
    /// 60 service times.
    pub jain: f64,
    /// Operations in flight beyond the limit they were granted under; nothing for rules that grant
    /// nothing.
    pub over_issue: Option<u32>,
}

/// All that the report is made of.
pub struct Found {
    /// The matrix.
    pub rows: Vec<Row>,
    /// Drover over a change of the capacity: 8, 4, 8, 16 slots.
    pub step: Score,
    /// Fairness over time: rule, and the index of each window.
    pub jain: Vec<(&'static str, Vec<f64>)>,
    /// Waits by class: rule, class, median and 99th percentile in seconds.
    pub waits: Vec<(&'static str, Class, f64, f64)>,
}

/// When the capacity changes in [`Found::step`], and to how many slots.
pub(super) const STEPS: [(f64, f64); 3] = [(200.0, 4.0), (400.0, 8.0), (600.0, 16.0)];

/// Four tenants, one of which holds most of the backlog.
fn tenants() -> Vec<Tenant> {
    let tenant = |share| Tenant { share, weight: 1 };
    vec![tenant(0.7), tenant(0.1), tenant(0.1), tenant(0.1)]
}

/// Runs all cells, prints the table, writes what was asked for.
///
/// # Errors
/// When a file cannot be written.
pub fn run(options: &Options) -> anyhow::Result<Found> {
    let rows = matrix(options);
    report::print(&rows);
    let found = Found {
        rows,
        step: step(options.seed),
        jain: fairness(options),
        waits: waits(options),
    };
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&found.rows)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(results) = &options.results {
        let folder = report::write(&found, options, results)?;
        println!("written: {}", folder.display());
    }
    Ok(found)
}

fn matrix(options: &Options) -> Vec<Row> {
    let mut cells = Vec::new();
    for rule in &options.rules {
        for gamma in &options.gammas {
            for servers in &options.servers {
                cells.push((*rule, *gamma, *servers));
            }
        }
    }
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(vec![None; cells.len()]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(place) = take(&next, cells.len()) {
                    let (rule, gamma, servers) = cells[place];
                    let row = cell(options, rule, gamma, servers);
                    if let Ok(mut rows) = rows.lock() {
                        rows[place] = Some(row);
                    }
                }
            });
        }
    });
    let rows = rows.into_inner().unwrap_or_default();
    rows.into_iter().flatten().collect()
}

fn take(next: &AtomicUsize, count: usize) -> Option<usize> {
    let place = next.fetch_add(1, Ordering::Relaxed);
    (place < count).then_some(place)
}

fn cell(options: &Options, rule: RuleName, gamma: f64, servers: usize) -> Row {
    let weights = [1; 4];
    let (mut goodput, mut waste, mut fair, mut over) = (0.0, 0.0, 0.0, 0);
    for seed in 0..options.seeds {
        let scenario = Scenario {
            seed: options.seed.wrapping_add(u64::from(seed)),
            gamma,
            servers,
            tenants: tenants(),
            ..Scenario::default()
        };
        let score = rule.run(&scenario);
        goodput += score.goodput();
        waste += score.waste();
        let indices = score.jain(&weights, 60.0 * scenario.mean_work());
        fair += indices.into_iter().fold(1.0, f64::min);
        over = over.max(score.over_issue);
    }
    let seeds = f64::from(options.seeds.max(1));
    Row {
        rule: rule.name(),
        servers,
        gamma,
        goodput_ratio: goodput / seeds,
        waste: waste / seeds,
        jain: fair / seeds,
        over_issue: (rule == RuleName::Drover).then_some(over),
    }
}

fn step(seed: u64) -> Score {
    RuleName::Drover.run(&Scenario {
        seed,
        servers: 8,
        changes: STEPS.map(|(at, slots)| (at, Change::Slots(slots))).to_vec(),
        warm_up: 100.0,
        measured: 700.0,
        ..Scenario::default()
    })
}

fn fairness(options: &Options) -> Vec<(&'static str, Vec<f64>)> {
    let scenario = Scenario {
        seed: options.seed,
        servers: 8,
        tenants: tenants(),
        ..Scenario::default()
    };
    let window = 60.0 * scenario.mean_work();
    let of = |rule: &RuleName| (rule.name(), rule.run(&scenario).jain(&[1; 4], window));
    options.rules.iter().map(of).collect()
}

fn waits(options: &Options) -> Vec<(&'static str, Class, f64, f64)> {
    let classes = [
        (Class::Interactive, 0.02),
        (Class::Normal, 0.48),
        (Class::Background, 0.5),
    ];
    let scenario = Scenario {
        seed: options.seed,
        servers: 8,
        outstanding: 1000,
        classes: classes.to_vec(),
        ..Scenario::default()
    };
    let mut waits = Vec::new();
    for rule in &options.rules {
        let score = rule.run(&scenario);
        for (class, _) in classes {
            let of = |quantile| score.wait(class, quantile).unwrap_or(f64::NAN);
            waits.push((rule.name(), class, of(0.5), of(0.99)));
        }
    }
    waits
}
