//! `drover-loadtest`: a fleet of simulated hypervisors, and attacks, against a Drover server.

mod failover_cli;
mod flow_cli;
mod scenario_cli;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use loadtest::hammer::Hammer;
use loadtest::hold::Hold;
use loadtest::server::{ServerSpec, Target};
use loadtest::siege::Siege;
use tracing_subscriber::EnvFilter;

/// Simulates a fleet of hypervisors against a Drover server and checks every effect.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hold N sessions, run processes over them, break things, account for every effect
    Hold(HoldArguments),
    /// Flood the gateway's door with first flights while honest newcomers connect
    Siege(SiegeArguments),
    /// Flood the API's public listener at many times its limit, and see what its UI takes meanwhile
    Api(ApiArguments),
    /// Compare rules of flow in a simulator, or see what they reach on the real server: which servers may
    /// send how much to which host
    Flow(Box<flow_cli::FlowArguments>),
    /// Let every part of a deployment die, of one process or of many on real services, and account for everything
    Scenario(Box<scenario_cli::ScenarioArguments>),
    /// Kill, drain and stop agent servers of several, let some come and go, and see what becomes of their groups
    Failover(failover_cli::FailoverArguments),
    /// Make many processes on a database of one on SQLite, with its agents and the work in hand
    Grow(Box<scenario_cli::GrowArguments>),
    /// Write the table of all runs into the README of a folder of results
    Index {
        /// The folder
        #[arg(long, value_name = "DIR", default_value = "bench-results")]
        results: PathBuf,
    },
    /// Do the same job on Drover and on other servers in turn, and print ratios
    #[cfg(feature = "peers")]
    Compare(CompareArguments),
    /// Draw the report of a comparison again: report.html and plots
    #[cfg(feature = "peers")]
    Report {
        /// The `comparison.json` that compare wrote
        file: PathBuf,
        /// Write into this folder [default: the file's]
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
    /// One process of a peer; takes orders as JSON lines
    #[cfg(feature = "peers")]
    #[command(hide = true)]
    Peer(PeerArguments),
    /// What crypto or kernel cost without a server
    #[cfg(feature = "peers")]
    #[command(hide = true)]
    Floor {
        /// Which floor
        floor: loadtest::peers::floors::Floor,
        /// Where the certificates and keys are
        #[arg(long)]
        dir: PathBuf,
    },
}

#[cfg(feature = "peers")]
#[derive(Args)]
struct CompareArguments {
    /// Which peers, in the order of the first round [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    peers: Vec<String>,
    /// Which measures [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES")]
    measures: Vec<loadtest::compare::Measure>,
    /// Rounds; the order of the peers moves on by one in each
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Sessions in the end
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    sessions: u32,
    /// New sessions a second at most
    #[arg(long, default_value_t = 1000.0)]
    connect_rate: f64,
    /// Commands a second where CPU is measured
    #[arg(long, default_value_t = 2000.0)]
    command_rate: f64,
    /// How long that load lasts, in seconds; half as long at smaller sizes of the fleet
    #[arg(long, default_value_t = 8.0)]
    load_seconds: f64,
    /// Commands a second where round-trips are measured
    #[arg(long, default_value_t = 1000.0)]
    round_trip_rate: f64,
    /// How long that load lasts, in seconds
    #[arg(long, default_value_t = 10.0)]
    round_trip_seconds: f64,
    /// How long the idle fleet is watched, in seconds
    #[arg(long, default_value_t = 20.0)]
    idle_seconds: f64,
    /// Program and arguments that become the server process of library peers, such as `valgrind …`
    #[arg(long, value_name = "COMMAND", value_delimiter = ' ')]
    server_wrapper: Vec<String>,
    /// perf record every server under load into this folder
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
    /// Write the whole comparison as JSON to this file, anew after every turn
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsArguments,
    /// The folder's name after the date
    #[arg(long, default_value = "compare")]
    name: String,
}

#[cfg(feature = "peers")]
#[derive(Args)]
struct PeerArguments {
    /// Which peer
    name: String,
    /// Which process of it
    part: loadtest::peers::Part,
    /// Where the certificates and keys are
    #[arg(long)]
    dir: PathBuf,
    /// Listen or connect here
    #[arg(long, default_value = "127.0.0.1:0")]
    address: std::net::SocketAddr,
}

#[derive(Args)]
struct ServerArguments {
    /// The `drover` binary to start [default: next to this one]
    #[arg(long, value_name = "FILE", conflicts_with = "api")]
    server: Option<PathBuf>,
    /// One more argument for the started `drover serve`; repeat for more
    #[arg(long = "serve-arg", value_name = "ARG", allow_hyphen_values = true)]
    serve_args: Vec<String>,
    /// Use the running server with this API instead of starting one
    #[arg(long, value_name = "URL", requires_all = ["agent_address", "token"])]
    api: Option<String>,
    /// host:port for agents of the running server
    #[arg(long, value_name = "HOST:PORT")]
    agent_address: Option<String>,
    /// Admin token of the running server
    #[arg(long, env = "DROVER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Process id of the running server, to read its memory and CPU
    #[arg(long)]
    server_pid: Option<u32>,
    /// Keep journals, the server's data and its log here [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

#[derive(Args)]
struct HoldArguments {
    /// Hypervisors to simulate
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// How long the workload runs (such as 90s, 10m)
    #[arg(long, default_value = "1m", value_parser = duration)]
    duration: Duration,
    /// Watch the idle fleet this long before the workload
    #[arg(long, default_value = "0s", value_parser = duration)]
    idle: Duration,
    /// Processes a second; 0 for none
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Service time of each operation, in milliseconds
    #[arg(long, default_value_t = 5)]
    service_ms: u64,
    /// SIGKILL the server this long after the workload began, start it again 5 s later
    #[arg(long, value_name = "AT", value_parser = duration)]
    kill_server: Option<Duration>,
    /// Kill this many agents half-way, start them again from their journals 5 s later
    #[arg(long, value_name = "K", default_value_t = 0)]
    kill_agents: usize,
    /// Agents do not steer themselves to their home shard, as a client that knows nothing of it
    #[arg(long)]
    no_steering_hint: bool,
    /// New sessions a second while the fleet comes up
    #[arg(long, default_value_t = 500.0)]
    connect_rate: f64,
    /// Write the summary as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsArguments,
    /// The folder's name after the date
    #[arg(long, default_value = "hold")]
    name: String,
    /// Seed of the workload's choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Args)]
struct SiegeArguments {
    /// First flights a second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How long
    #[arg(long, default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// Source addresses to send from
    #[arg(long, default_value_t = 1000)]
    sources: usize,
    /// Honest agents that join the session in turn during the storm, evenly spread
    #[arg(long, default_value_t = 100)]
    newcomers: usize,
    /// Write the summary as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Args)]
struct ApiArguments {
    /// Requests a second that the public listener takes
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// It is asked so many times as often
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    times: u32,
    /// Connections of the flood
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Requests a second to the UI
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    ui_rate: u32,
    /// How long the UI is watched quiet, and then under the flood, in each round
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Write the summary as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsArguments,
    /// The `drover` binary to start [default: next to this one]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// One more argument for the started `drover serve`; repeat for more
    #[arg(long = "serve-arg", value_name = "ARG", allow_hyphen_values = true)]
    serve_args: Vec<String>,
}

/// Where the results go.
#[derive(Args)]
struct ResultsArguments {
    /// Write a dated folder under this one
    #[arg(
        long,
        visible_alias = "out",
        value_name = "DIR",
        default_value = "bench-results"
    )]
    results: PathBuf,
    /// Write no folder
    #[arg(long)]
    no_results: bool,
}

/// `90s`, `10m`, `1h`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit of time; use ms, s, m or h")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a duration such as 10m"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("drover-loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<bool> {
    // Peers bring runtimes of their own.
    let runtime = tokio::runtime::Runtime::new;
    match command {
        Command::Hold(arguments) => runtime()?.block_on(hold(arguments)),
        Command::Siege(arguments) => runtime()?.block_on(siege(arguments)),
        Command::Api(arguments) => runtime()?.block_on(hammer(arguments)),
        Command::Flow(arguments) => flow_cli::run(*arguments),
        Command::Scenario(arguments) => runtime()?.block_on(scenario_cli::run(*arguments)),
        Command::Failover(arguments) => runtime()?.block_on(failover_cli::run(arguments)),
        Command::Grow(arguments) => runtime()?.block_on(scenario_cli::grow(*arguments)),
        Command::Index { results } => {
            let runs = loadtest::index::write(&results)?;
            println!("{runs} runs are in {}", results.join("README.md").display());
            Ok(true)
        }
        #[cfg(feature = "peers")]
        Command::Compare(arguments) => compare(arguments),
        #[cfg(feature = "peers")]
        Command::Report { file, out } => {
            let folder = out.or_else(|| Some(file.parent()?.to_owned()));
            let folder = folder.unwrap_or_default();
            let comparison = loadtest::compare::report::read(&file)?;
            loadtest::compare::report::write(&comparison, &folder)?;
            println!("written: {}", folder.join("report.html").display());
            Ok(true)
        }
        #[cfg(feature = "peers")]
        Command::Peer(PeerArguments {
            name,
            part,
            dir,
            address,
        }) => loadtest::peers::play(&name, part, &dir, address).map(|()| true),
        #[cfg(feature = "peers")]
        Command::Floor { floor, dir } => {
            loadtest::peers::floors::measure(floor, &dir).map(|()| true)
        }
    }
}

async fn hold(arguments: HoldArguments) -> anyhow::Result<bool> {
    let work = WorkDir::new(arguments.server.work_dir.clone())?;
    let hold = Hold {
        agents: arguments.agents.max(1),
        duration: arguments.duration,
        idle: arguments.idle,
        rate: arguments.rate,
        service_ms: arguments.service_ms,
        kill_server: arguments.kill_server,
        kill_agents: arguments.kill_agents,
        steering_hint: !arguments.no_steering_hint,
        connect_rate: arguments.connect_rate.max(1.0),
        server: arguments.server.target(&work)?,
        results: arguments.results.folder(),
        name: arguments.name,
        work_dir: work.path.clone(),
        seed: arguments.seed,
    };
    let summary = hold.run().await?;
    write_json(arguments.json, &summary)?;
    Ok(summary.passed)
}

async fn siege(arguments: SiegeArguments) -> anyhow::Result<bool> {
    let work = WorkDir::new(arguments.server.work_dir.clone())?;
    let siege = Siege {
        rate: arguments.rate,
        duration: arguments.duration,
        sources: arguments.sources,
        newcomers: arguments.newcomers,
        server: arguments.server.target(&work)?,
        work_dir: work.path.clone(),
        results: arguments.results.folder(),
    };
    let summary = siege.run().await?;
    write_json(arguments.json, &summary)?;
    Ok(summary.passed)
}

async fn hammer(arguments: ApiArguments) -> anyhow::Result<bool> {
    let work = WorkDir::new(None)?;
    let hammer = Hammer {
        limit: arguments.limit,
        times: arguments.times,
        connections: arguments.connections,
        ui_rate: arguments.ui_rate,
        duration: arguments.duration,
        rounds: arguments.rounds,
        server: ServerSpec {
            binary: binary(arguments.server)?,
            data_dir: work.path.join("server"),
            arguments: arguments.serve_args,
            log: work.path.join("server.log"),
        },
        results: arguments.results.folder(),
    };
    let summary = hammer.run().await?;
    println!("{}", serde_json::to_string_pretty(&summary)?);
    write_json(arguments.json, &summary)?;
    Ok(summary.passed)
}

/// The server that was named, or the one beside this program.
fn binary(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        return Ok(named);
    }
    let folder = std::env::current_exe()?.parent().map(PathBuf::from);
    folder
        .map(|folder| folder.join("drover"))
        .context("this program has no folder")
}

#[cfg(feature = "peers")]
fn compare(arguments: CompareArguments) -> anyhow::Result<bool> {
    let all = loadtest::peers::PEERS.iter();
    let all = || all.map(|peer| peer.name.to_owned()).collect();
    let options = loadtest::compare::Options {
        peers: match arguments.peers.is_empty() {
            true => all(),
            false => arguments.peers,
        },
        measures: arguments.measures,
        rounds: arguments.rounds,
        sessions: usize::try_from(arguments.sessions)?,
        connect_rate: arguments.connect_rate.max(1.0),
        command_rate: arguments.command_rate.max(1.0),
        load_seconds: arguments.load_seconds.max(1.0),
        round_trip_rate: arguments.round_trip_rate.max(1.0),
        round_trip_seconds: arguments.round_trip_seconds.max(1.0),
        idle_seconds: arguments.idle_seconds.max(1.0),
        server_wrapper: arguments.server_wrapper,
        profile: arguments.profile,
        json: arguments.json,
        results: arguments.results.folder(),
        name: arguments.name,
    };
    let comparison = loadtest::compare::run(&options)?;
    let turns = options.peers.len() * usize::try_from(options.rounds)?;
    Ok(comparison.runs.len() == turns)
}

fn write_json(path: Option<PathBuf>, summary: &impl serde::Serialize) -> anyhow::Result<()> {
    if let Some(path) = path {
        std::fs::write(&path, serde_json::to_vec_pretty(summary)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Where journals, data and logs go; a temporary one goes away with the run.
struct WorkDir {
    path: PathBuf,
    temporary: bool,
}

impl WorkDir {
    fn new(named: Option<PathBuf>) -> anyhow::Result<Self> {
        let temporary = named.is_none();
        let path = named.unwrap_or_else(|| {
            std::env::temp_dir().join(format!("drover-loadtest-{}", std::process::id()))
        });
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, temporary })
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the work directory");
        }
    }
}

impl ResultsArguments {
    /// Where a dated folder is to be.
    fn folder(&self) -> Option<PathBuf> {
        (!self.no_results).then(|| self.results.clone())
    }
}

impl ServerArguments {
    /// How to start a server, for what breaks or measures its own: one that runs already cannot be used.
    fn own(&self, command: &str, work: &WorkDir) -> anyhow::Result<ServerSpec> {
        match self.target(work)? {
            Target::Start(spec) => Ok(spec),
            Target::Apart(_) | Target::Running { .. } => bail!(
                "{command} starts servers of its own: leave out --api, and name the binary with --server"
            ),
        }
    }

    fn target(&self, work: &WorkDir) -> anyhow::Result<Target> {
        if let (Some(api), Some(agents), Some(token)) =
            (&self.api, &self.agent_address, &self.token)
        {
            return Ok(Target::Running {
                api: api.clone(),
                agents: agents.clone(),
                token: token.clone(),
                pid: self.server_pid,
            });
        }
        Ok(Target::Start(ServerSpec {
            binary: binary(self.server.clone())?,
            data_dir: work.path.join("server"),
            arguments: self.serve_args.clone(),
            log: work.path.join("server.log"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("10 parsecs").is_err());
        assert!(duration("m").is_err());
    }
}
