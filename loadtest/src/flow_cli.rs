//! `drover-loadtest flow`: in the simulator, on the real server (`--real`), or with deaths (`--kill`).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use loadtest::flow::real::{self, Hosts, Kill};
use loadtest::server::{ServerSpec, Target};

use crate::{ServerArguments, WorkDir, duration};

/// In the simulator.
const SERVERS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// On the real server.
const REAL_SERVERS: [usize; 4] = [1, 2, 4, 8];
/// As many as one program runs.
const REAL_SERVERS_MAX: usize = 16;

#[derive(Args)]
pub(crate) struct FlowArguments {
    /// Which rules, in the simulator
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "drover,cattle,aimd,gradient,bucket"
    )]
    rules: Vec<loadtest::flow::RuleName>,
    /// How many process servers [default: 1,2,4,8,16,32; with --real 1,2,4,8; with --kill 4]
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = servers)]
    servers: Vec<usize>,
    /// How much a host loses to thrashing when it has twice its work
    #[arg(long, value_delimiter = ',', value_name = "FACTORS", default_value = "0.05,0.25",
        value_parser = gamma)]
    gamma: Vec<f64>,
    /// Seeds a figure is the mean of, in the simulator
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    seeds: u32,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the rows as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a dated folder under this one
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    results: PathBuf,
    /// Write no folder
    #[arg(long)]
    no_results: bool,
    #[command(flatten)]
    real: RealArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Args)]
struct RealArguments {
    /// On a real server with real agents, whose hosts work at a fixed rate in real time
    #[arg(long)]
    real: bool,
    /// On a real server: kill it, or some of its agents, this often
    #[arg(long, value_name = "EVERY", value_parser = duration, conflicts_with = "real")]
    kill: Option<Duration>,
    /// How long with --kill
    #[arg(long, default_value = "30m", value_parser = duration)]
    duration: Duration,
    /// Hosts
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// What each does at once at full speed
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    slots: u32,
    /// What each takes at once at most
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=16))]
    capacity: u32,
    /// Mean time of an operation at full speed
    #[arg(long, default_value = "1s", value_parser = duration)]
    mean: Duration,
    /// Processes outstanding on each host, all the time
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    outstanding: u32,
    /// Before anything counts
    #[arg(long, default_value = "60s", value_parser = duration)]
    warm_up: Duration,
    /// What counts
    #[arg(long, default_value = "60s", value_parser = duration)]
    measured: Duration,
    /// Watch the idle server so long first
    #[arg(long, default_value = "10s", value_parser = duration)]
    idle: Duration,
    /// Also let one of four process servers die, and see when its work resumes
    #[arg(long)]
    dead_server: bool,
    /// Also see what so many stuck processes cost the others; 0: not
    #[arg(long, default_value_t = 0, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    stuck: u32,
}

fn servers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(servers) if (1..=1024).contains(&servers) => Ok(servers),
        _ => Err("a number of servers is from 1 to 1024".to_owned()),
    }
}

fn gamma(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(gamma) if (0.0..=10.0).contains(&gamma) => Ok(gamma),
        _ => Err("a thrash factor is from 0 to 10".to_owned()),
    }
}

/// Whether everything held.
pub(crate) fn run(arguments: FlowArguments) -> anyhow::Result<bool> {
    if arguments.real.kill.is_some() {
        return tokio::runtime::Runtime::new()?.block_on(kill(arguments));
    }
    if arguments.real.real {
        return tokio::runtime::Runtime::new()?.block_on(on_a_server(arguments));
    }
    ensure!(
        !arguments.real.dead_server && arguments.real.stuck == 0,
        "--dead-server and --stuck need --real"
    );
    let found = loadtest::flow::run(&loadtest::flow::Options {
        rules: arguments.rules,
        servers: or(arguments.servers, &SERVERS),
        gammas: arguments.gamma,
        seeds: arguments.seeds,
        seed: arguments.seed,
        json: arguments.json,
        results: (!arguments.no_results).then_some(arguments.results),
    })?;
    // Only a permit that was issued twice is a failure; the rest is for people to judge.
    Ok(found
        .rows
        .iter()
        .all(|row| row.over_issue.unwrap_or(0) == 0))
}

async fn on_a_server(arguments: FlowArguments) -> anyhow::Result<bool> {
    let work = WorkDir::new(arguments.server.work_dir.clone())?;
    let options = real::Options {
        servers: within(or(arguments.servers, &REAL_SERVERS))?,
        gammas: arguments.gamma,
        fleet: arguments.real.hosts()?,
        warm_up: arguments.real.warm_up,
        measured: at_least_a_second("--measured", arguments.real.measured)?,
        idle: at_least_a_second("--idle", arguments.real.idle)?,
        dead_server: arguments.real.dead_server,
        stuck: usize::try_from(arguments.real.stuck)?,
        seed: arguments.seed,
        server: spec(&arguments.server, &work)?,
        work_dir: work.path.clone(),
        json: arguments.json,
        results: (!arguments.no_results).then_some(arguments.results),
    };
    Ok(real::run(&options).await?.is_sound())
}

async fn kill(arguments: FlowArguments) -> anyhow::Result<bool> {
    let work = WorkDir::new(arguments.server.work_dir.clone())?;
    let servers = within(or(arguments.servers, &[4]))?;
    let kill = Kill {
        every: at_least_a_second("--kill", arguments.real.kill.unwrap_or_default())?,
        duration: arguments.real.duration,
        servers: *servers.last().context("no number of servers")?,
        fleet: arguments.real.hosts()?,
        seed: arguments.seed,
        server: spec(&arguments.server, &work)?,
        work_dir: work.path.clone(),
        json: arguments.json,
        results: (!arguments.no_results).then_some(arguments.results),
    };
    Ok(kill.run().await?.passed)
}

impl RealArguments {
    fn hosts(&self) -> anyhow::Result<Hosts> {
        ensure!(
            !self.mean.is_zero(),
            "--mean is 0; an operation takes some time"
        );
        ensure!(
            self.capacity >= self.slots,
            "--capacity {} is less than --slots {}: the slots beyond it are never used",
            self.capacity,
            self.slots
        );
        Ok(Hosts {
            agents: usize::try_from(self.agents)?,
            slots: self.slots,
            capacity: self.capacity,
            mean: self.mean,
            outstanding: usize::try_from(self.outstanding)?,
        })
    }
}

fn or(given: Vec<usize>, default: &[usize]) -> Vec<usize> {
    match given.is_empty() {
        true => default.to_vec(),
        false => given,
    }
}

fn within(servers: Vec<usize>) -> anyhow::Result<Vec<usize>> {
    for count in &servers {
        ensure!(
            *count <= REAL_SERVERS_MAX,
            "one program runs {REAL_SERVERS_MAX} process servers at most, not {count}"
        );
    }
    Ok(servers)
}

fn at_least_a_second(flag: &str, time: Duration) -> anyhow::Result<Duration> {
    ensure!(time >= Duration::from_secs(1), "{flag} is less than 1s");
    Ok(time)
}

/// Each point has a server of its own: one that runs already cannot be used.
fn spec(server: &ServerArguments, work: &WorkDir) -> anyhow::Result<ServerSpec> {
    match server.target(work)? {
        Target::Start(spec) => Ok(spec),
        Target::Running { .. } => {
            bail!(
                "flow starts servers of its own: leave out --api, and name the binary with --server"
            )
        }
    }
}
