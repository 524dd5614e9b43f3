//! `drover-loadtest failover`.

use std::path::PathBuf;

use clap::Args;
use loadtest::failover::{Failover, LockService};

use crate::{ResultsArguments, ServerArguments, WorkDir};

#[derive(Args)]
pub(crate) struct FailoverArguments {
    /// With these lock services, one after the other
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "sql,zookeeper,redis"
    )]
    locks: Vec<LockService>,
    /// Agents
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    agents: u32,
    /// Processes a second while something is done
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// How often an agent server is killed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=1000))]
    kills: u32,
    /// No agent server is drained
    #[arg(long)]
    no_drain: bool,
    /// How often an agent server stands still for twice the lease, 24 s
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=1000))]
    pauses: u32,
    /// Groups do not follow 1, 2, 3, 2 agent servers
    #[arg(long)]
    no_resize: bool,
    /// Write what was found as JSON to this file, anew after each lock service
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsArguments,
    #[command(flatten)]
    server: ServerArguments,
}

/// Whether all targets were met.
pub(crate) async fn run(arguments: FailoverArguments) -> anyhow::Result<bool> {
    let work = WorkDir::new(arguments.server.work_dir.clone())?;
    let failover = Failover {
        locks: arguments.locks,
        agents: usize::try_from(arguments.agents)?,
        rate: f64::from(arguments.rate),
        kills: arguments.kills,
        drain: !arguments.no_drain,
        pauses: arguments.pauses,
        resize: !arguments.no_resize,
        server: arguments.server.own("failover", &work)?,
        work_dir: work.path.clone(),
        json: arguments.json,
        results: arguments.results.folder(),
    };
    Ok(failover.run().await?.passed)
}
