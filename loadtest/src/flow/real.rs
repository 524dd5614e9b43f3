//! The same questions to the real server: process servers over one SQLite store in one process, real
//! sockets, real TLS, and agents whose hosts have a fixed service rate in real time.
//!
//! ```text
//!   Load (a backlog that stays) ─▶ API ▶ drover serve, process_servers = N ▶ agents ─▶ Mill (Plant in real time)
//!            ▲                                                                             │ ends
//!            └─────────────────────────────────────────────────────────────────────────────┘
//!   points (γ × N), a dead server, stuck processes ─▶ rows and targets ─▶ table, JSON, a dated folder: anew after each
//!   deaths of all sorts, for long (kill) ─▶ what was lost, doubled or leaked ─▶ the same
//! ```
//!
//! The simulator has more rules, more servers and no luck; this has everything that it leaves out. What
//! limits it is the machine: server, fleet and load share its cores, so the rate is chosen such that none of them is the
//! bottleneck, and each row says how busy the cores were.

mod bed;
mod dead_server;
mod kill;
mod load;
mod mill;
mod peak;
mod point;
mod report;
mod site;
mod stuck;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use dead_server::DeadServer;
pub use kill::{Kill, Killed};
pub use peak::Peak;
pub use point::Row;
pub use site::Site;
pub use stuck::Stuck;

use super::scenario::{Kind, Scenario, Tenant};
use crate::server::ServerSpec;

/// About how long it takes until a server and its fleet are up, and later down again.
const SET_UP: Duration = Duration::from_secs(20);

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
    /// Also: what the server does at most with each number of process servers, in so many rounds (T10); 0: not.
    pub peak: u32,
    /// Seed of the operations' work.
    pub seed: u64,
    /// How to start a server; each point has a data directory of its own beneath this one's.
    pub server: ServerSpec,
    /// In how many processes.
    pub site: Site,
    /// Journals go here.
    pub work_dir: PathBuf,
    /// Write all that was found to this file, anew after each row.
    pub json: Option<PathBuf>,
    /// Write a dated folder under this one, anew after each row.
    pub results: Option<PathBuf>,
}

impl Options {
    /// About how long it will take.
    pub fn expected(&self) -> Duration {
        let points = u32::try_from(self.gammas.len() * self.servers.len()).unwrap_or(u32::MAX);
        let measured = point::CALM + self.idle + self.warm_up + self.measured;
        let mut all = (SET_UP + measured + self.fleet.drained_within()) * points;
        if self.dead_server {
            all += dead_server::expected(self.fleet);
        }
        if self.stuck > 0 {
            all += stuck::expected(self.stuck);
        }
        all += peak::expected(self);
        all
    }
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
    /// How long the hosts work on what is outstanding.
    fn drained_within(&self) -> Duration {
        let outstanding = u32::try_from(self.outstanding).unwrap_or(u32::MAX);
        self.mean * outstanding.div_ceil(self.slots.max(1))
    }

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

impl Target {
    /// As a line of a report's table.
    fn line(&self) -> String {
        let met = if self.met { "met" } else { "**missed**" };
        format!(
            "| {}: {} | {} | {met} |",
            self.name, self.target, self.found
        )
    }
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// One for each thrash factor and number of servers.
    pub rows: Vec<Row>,
    /// What followed the death of a process server.
    pub dead_server: Option<DeadServer>,
    /// What stuck processes cost.
    pub stuck: Option<Stuck>,
    /// What the server does at most, by process servers; empty: not measured.
    pub peaks: Vec<Peak>,
    /// The targets, as far as was measured.
    pub targets: Vec<Target>,
}

impl Found {
    /// Nothing was lost, nothing happened twice, no permit was issued twice or leaked.
    pub fn is_sound(&self) -> bool {
        self.rows.iter().all(Row::is_sound)
    }
}

/// Runs all points in turn, prints a line for each, and writes what was asked for as it goes: a run that ends
/// early has lost nothing of what it had measured.
///
/// # Errors
/// When a server or a fleet does not start, or a file cannot be written.
pub async fn run(options: &Options) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let output = report::Output::new(options);
    report::print_head(options);
    for gamma in &options.gammas {
        for servers in &options.servers {
            let row = point::measure(options, *gamma, *servers).await?;
            report::print_row(&row);
            found.rows.push(row);
            output.write(&mut found)?;
        }
    }
    if options.dead_server {
        found.dead_server = Some(dead_server::measure(options).await?);
        output.write(&mut found)?;
    }
    if options.stuck > 0 {
        found.stuck = Some(stuck::measure(options).await?);
        output.write(&mut found)?;
    }
    if options.peak > 0 {
        found.peaks = peak::measure(options).await?;
        output.write(&mut found)?;
    }
    report::print_targets(&found.targets);
    output.print_place();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outstanding_is_worked_on_by_all_slots() {
        let mut hosts = report::tests::hosts();
        assert_eq!(
            hosts.drained_within(),
            Duration::from_secs(5),
            "20 of 1 s by 4"
        );
        hosts.outstanding = 21;
        assert_eq!(
            hosts.drained_within(),
            Duration::from_secs(6),
            "the last alone"
        );
    }

    #[test]
    fn the_expected_time_counts_every_point_and_what_else_was_asked_for() {
        let mut options = report::tests::options(None);
        let rows = options.expected();
        // Two rows: warm-up, what counts, the idle server, calm, the end of what is outstanding, up and down.
        assert_eq!(rows, 2 * Duration::from_secs(60 + 60 + 5 + 10 + 5 + 20));
        options.gammas.push(0.05);
        assert_eq!(options.expected(), rows * 2);
        options.dead_server = true;
        let dead = options.expected() - rows * 2;
        // Two loads: up and down, until the death, the end of each; and until the dead one is missed.
        assert_eq!(dead, Duration::from_secs(2 * (20 + 45) + 5 + 30 + 20));
        options.stuck = 100_000;
        let stuck = options.expected() - rows * 2 - dead;
        assert_eq!(stuck, stuck::expected(100_000));
    }
}
