//! The same questions to the real server: process servers over one SQLite store in one process, real
//! sockets, real TLS, and agents whose hosts have a fixed service rate in real time.
//!
//! ```text
//!   Load (a backlog that stays) ─▶ API ▶ drover serve, process_servers = N ▶ agents ─▶ Mill (Plant in real time)
//!            ▲                                                                             │ ends
//!            └─────────────────────────────────────────────────────────────────────────────┘
//!   points (γ × N), a dead server, stuck processes ─▶ rows and targets ─▶ table, JSON, a dated folder
//! ```
//!
//! The simulator has more rules, more servers and no luck; this has everything that it leaves out. What
//! limits it is the machine: server, fleet and load share its cores, so the rate is chosen such that none of them is the
//! bottleneck, and each row says how busy the cores were.

mod bed;
mod kill;
mod load;
mod mill;
mod point;
mod probes;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use kill::{Kill, Killed};
pub use point::Row;
pub use probes::{DeadServer, Stuck};

use super::scenario::{Kind, Scenario, Tenant};
use crate::server::ServerSpec;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many process servers, in turn.
    pub servers: Vec<usize>,
    /// Thrash factors.
    pub gammas: Vec<f64>,
    /// The fleet and its hosts.
    pub fleet: Hosts,
    /// Before anything counts: limits are learnt.
    pub warm_up: Duration,
    /// What counts.
    pub measured: Duration,
    /// Without a load, before: for what an idle server does.
    pub idle: Duration,
    /// Also: what a process server that dies leaves is taken up (T8).
    pub dead_server: bool,
    /// Also: so many processes that are stuck, and what they cost the others (T9); 0: none.
    pub stuck: usize,
    /// Seed of the operations' work.
    pub seed: u64,
    /// How to start a server; each point has a data directory of its own beneath this one's.
    pub server: ServerSpec,
    /// Journals go here.
    pub work_dir: PathBuf,
    /// Write the rows to this file.
    pub json: Option<PathBuf>,
    /// Write a dated folder under this one.
    pub results: Option<PathBuf>,
}

/// Hosts that are alike.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Hosts {
    /// How many.
    pub agents: usize,
    /// What each does at once at full speed.
    pub slots: u32,
    /// What each takes at once at most: 1 to 16.
    pub capacity: u32,
    /// Mean time of an operation at full speed.
    pub mean: Duration,
    /// Processes outstanding on each, all the time.
    pub outstanding: usize,
}

impl Hosts {
    /// As a scenario of the simulator.
    fn scenario(&self, gamma: f64, servers: usize, seed: u64) -> Scenario {
        let tenant = |share| Tenant { share, weight: 1 };
        Scenario {
            seed,
            hosts: self.agents,
            slots: f64::from(self.slots),
            gamma,
            refuse_at: self.capacity as usize,
            kinds: vec![Kind {
                mean: self.mean.as_secs_f64(),
                share: 1.0,
            }],
            servers,
            outstanding: self.agents * self.outstanding,
            tenants: vec![tenant(0.7), tenant(0.1), tenant(0.1), tenant(0.1)],
            ..Scenario::default()
        }
    }
}

/// A target, and what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Its name in the design.
    pub name: &'static str,
    /// What is asked.
    pub target: String,
    /// What was found.
    pub found: String,
    /// Whether it is met.
    pub met: bool,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Found {
    /// One for each thrash factor and number of servers.
    pub rows: Vec<Row>,
    /// What followed the death of a process server.
    pub dead_server: Option<DeadServer>,
    /// What stuck processes cost.
    pub stuck: Option<Stuck>,
    /// The targets.
    pub targets: Vec<Target>,
}

impl Found {
    /// Nothing was lost, nothing happened twice, no permit was issued twice or leaked.
    pub fn is_sound(&self) -> bool {
        self.rows.iter().all(Row::is_sound)
    }
}

/// Runs all points in turn, prints the table, writes what was asked for.
///
/// # Errors
/// When a server or a fleet does not start, or a file cannot be written.
pub async fn run(options: &Options) -> anyhow::Result<Found> {
    let mut found = Found::default();
    report::print_head();
    for gamma in &options.gammas {
        for servers in &options.servers {
            let row = point::measure(options, *gamma, *servers).await?;
            report::print_row(&row);
            found.rows.push(row);
        }
    }
    if options.dead_server {
        found.dead_server = Some(probes::dead_server(options).await?);
    }
    if options.stuck > 0 {
        found.stuck = Some(probes::stuck(options).await?);
    }
    found.targets = report::judge(&found);
    report::print_targets(&found.targets);
    if let Some(path) = &options.json {
        report::write_json(path, &found)?;
    }
    if let Some(results) = &options.results {
        let folder = report::write(&found, options, results)?;
        println!("written: {}", folder.display());
    }
    Ok(found)
}
