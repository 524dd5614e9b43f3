//! `drover-loadtest scenario` and `grow`: a whole deployment whose every part dies, whose services stop, or which one
//! process becomes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use loadtest::scenario::{Drill, Grow, How, Outage, Service, Setup, Site};

use crate::{ResultsArguments, ServerArguments, WorkDir, duration, write_json};

#[derive(Args)]
pub(crate) struct ScenarioArguments {
    /// The deployment: which processes, on which services
    #[arg(long, value_enum, default_value = "single")]
    site: Site,
    /// Hypervisors to simulate
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// Instead of all deaths: this service is gone for a while
    #[arg(long, value_enum)]
    outage: Option<Service>,
    /// With --outage: for so long
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = duration)]
    time: Duration,
    /// With --outage: how it goes
    #[arg(long, value_enum, default_value_t, requires = "outage")]
    how: How,
    /// With --outage: everything is watched so long before
    #[arg(long, default_value = "30s", value_parser = duration)]
    calm: Duration,
    /// With --outage: processes a second
    #[arg(long, default_value_t = 50.0, requires = "outage")]
    rate: f64,
    /// Processes to make, evenly spread over the time
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    processes: u64,
    /// Service time of each operation, in milliseconds
    #[arg(long, default_value_t = 1000)]
    service_ms: u64,
    /// Somebody dies this often
    #[arg(long, default_value = "5s", value_parser = duration)]
    every: Duration,
    /// The second of each kind of process stays dead for so long
    #[arg(long, default_value = "20s", value_parser = duration)]
    stays_dead: Duration,
    /// One process stands still for so long
    #[arg(long, default_value = "25s", value_parser = duration)]
    standstill: Duration,
    /// Agents that die, percent
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=100))]
    agents_die: u32,
    #[command(flatten)]
    more: MoreArguments,
}

#[derive(Args)]
pub(crate) struct GrowArguments {
    /// What one process becomes; any but single
    #[arg(long, value_enum, default_value = "distributed")]
    to: Site,
    /// Hypervisors to simulate
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// Processes a second
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Service time of each operation, in milliseconds
    #[arg(long, default_value_t = 2000)]
    service_ms: u64,
    #[command(flatten)]
    more: MoreArguments,
}

/// What both have.
#[derive(Args)]
struct MoreArguments {
    /// Seed of the workload's choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write what was found as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsArguments,
    #[command(flatten)]
    server: ServerArguments,
}

impl MoreArguments {
    fn work(&self) -> anyhow::Result<WorkDir> {
        WorkDir::new(self.server.work_dir.clone())
    }

    fn setup(
        &self,
        work: &WorkDir,
        site: Site,
        agents: u32,
        service_ms: u64,
    ) -> anyhow::Result<Setup> {
        Ok(Setup {
            site,
            agents: usize::try_from(agents)?,
            service_ms,
            seed: self.seed,
            server: self.server.own("a scenario", work)?,
            work_dir: work.path.clone(),
            results: self.results.folder(),
        })
    }
}

/// Whether everything held.
pub(crate) async fn grow(arguments: GrowArguments) -> anyhow::Result<bool> {
    let (more, agents) = (arguments.more, arguments.agents);
    let work = more.work()?;
    let grow = Grow {
        setup: more.setup(&work, arguments.to, agents, arguments.service_ms)?,
        rate: arguments.rate.max(1.0),
    };
    let found = grow.run().await?;
    write_json(more.json, &found)?;
    Ok(found.passed)
}

/// Whether everything held.
pub(crate) async fn run(arguments: ScenarioArguments) -> anyhow::Result<bool> {
    let work = arguments.more.work()?;
    let (site, agents) = (arguments.site, arguments.agents);
    let setup = arguments
        .more
        .setup(&work, site, agents, arguments.service_ms)?;
    match arguments.outage {
        Some(service) => outage(arguments, setup, service).await,
        None => drill(arguments, setup).await,
    }
}

async fn drill(arguments: ScenarioArguments, setup: Setup) -> anyhow::Result<bool> {
    let drill = Drill {
        setup,
        processes: arguments.processes,
        every: some_time("--every", arguments.every)?,
        stays_dead: arguments.stays_dead,
        standstill: some_time("--standstill", arguments.standstill)?,
        agents_die_percent: usize::try_from(arguments.agents_die)?,
    };
    let found = drill.run().await?;
    write_json(arguments.more.json, &found)?;
    Ok(found.passed)
}

async fn outage(
    arguments: ScenarioArguments,
    setup: Setup,
    service: Service,
) -> anyhow::Result<bool> {
    let outage = Outage {
        setup,
        service,
        how: arguments.how,
        time: some_time("--for", arguments.time)?,
        calm: some_time("--calm", arguments.calm)?,
        rate: arguments.rate.max(1.0),
    };
    let found = outage.run().await?;
    write_json(arguments.more.json, &found)?;
    Ok(found.passed)
}

fn some_time(flag: &str, time: Duration) -> anyhow::Result<Duration> {
    ensure!(!time.is_zero(), "{flag} is 0; give it some time such as 5s");
    Ok(time)
}
