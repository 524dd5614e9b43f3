//! `drover-loadtest flow`: in the simulator, on the real server (`--real`), or with deaths (`--kill`).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use loadtest::flow::real::{self, Hosts, Kill};

use crate::{ResultsArguments, ServerArguments, WorkDir, duration};

/// In the simulator.
const SERVERS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// On the real server.
const REAL_SERVERS: [usize; 4] = [1, 2, 4, 8];
/// As many as one program runs.
const REAL_SERVERS_MAX: usize = 16;
/// With `--kill`.
const KILL_SERVERS: usize = 4;
/// With `--real`: the hosts of the simulator's model. Of a hundred outstanding the lightest tenants have ten: the two
/// that their quarter of the slots works on, one whose end is not followed yet, and seven that wait. So all four always
/// want more, as T5 supposes. The model's 250 would say the same, and take four times as long to begin and to end.
const MODEL: Hosts = Hosts {
    agents: 200,
    slots: 8,
    capacity: 16,
    mean: Duration::from_secs(2),
    outstanding: 100,
};
/// As in the model: 65 and 60 service times.
const WARM_UP: Duration = Duration::from_secs(130);
const MEASURED: Duration = Duration::from_secs(120);
/// With `--kill`: hosts that could do a million operations in half an hour more than four times over. Deaths and what
/// follows them take half of that, and more where process servers die too.
const QUICK: Hosts = Hosts {
    agents: 200,
    slots: 4,
    capacity: 16,
    mean: Duration::from_millis(300),
    outstanding: 20,
};

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
    /// Write the rows as JSON to this file; with --real and --kill all that was found, with --real anew after
    /// each row
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsArguments,
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
    /// On a real server: kill it or some of its agents, or let it stand still, this often
    #[arg(long, value_name = "EVERY", value_parser = duration, conflicts_with = "real")]
    kill: Option<Duration>,
    /// With --kill: beside that, one of the process servers dies this often
    #[arg(long, value_name = "EVERY", value_parser = duration, requires = "kill")]
    process_servers_die: Option<Duration>,
    /// How long with --kill
    #[arg(long, default_value = "30m", value_parser = duration)]
    duration: Duration,
    /// In how many processes the server runs, and on which store
    #[arg(long, value_enum, default_value_t)]
    site: real::Site,
    /// Hosts
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// What each does at once at full speed [default: 8; with --kill 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    slots: Option<u32>,
    /// What each takes at once at most
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=16))]
    capacity: u32,
    /// Mean time of an operation at full speed [default: 2s; with --kill 300ms]
    #[arg(long, value_parser = duration)]
    mean: Option<Duration>,
    /// Processes outstanding on each host, all the time [default: 100; with --kill 20]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    outstanding: Option<u32>,
    /// Before anything counts [default: 130s]
    #[arg(long, value_parser = duration, conflicts_with = "kill")]
    warm_up: Option<Duration>,
    /// What counts [default: 120s]
    #[arg(long, value_parser = duration, conflicts_with = "kill")]
    measured: Option<Duration>,
    /// Watch the idle server so long first
    #[arg(long, default_value = "30s", value_parser = duration)]
    idle: Duration,
    /// Also let one of four process servers die, and see when its work resumes
    // A conflict of its own: what `--real` conflicts with waives the requirement.
    #[arg(long, requires = "real", conflicts_with = "kill")]
    dead_server: bool,
    /// Also see what so many stuck processes cost the others; 0: not
    #[arg(long, default_value_t = 0, value_name = "COUNT", requires = "real", conflicts_with = "kill",
        value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    stuck: u32,
    /// Also see what the server does at most with each number of process servers, in so many rounds; 0: not
    #[arg(long, default_value_t = 0, value_name = "ROUNDS", requires = "real", conflicts_with = "kill",
        value_parser = clap::value_parser!(u32).range(..=100))]
    peak: u32,
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
    let found = loadtest::flow::run(&loadtest::flow::Options {
        rules: arguments.rules,
        servers: or(arguments.servers, &SERVERS),
        gammas: arguments.gamma,
        seeds: arguments.seeds,
        seed: arguments.seed,
        json: arguments.json,
        results: arguments.results.folder(),
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
        fleet: arguments.real.hosts(MODEL)?,
        warm_up: arguments.real.warm_up.unwrap_or(WARM_UP),
        measured: at_least_a_second("--measured", arguments.real.measured.unwrap_or(MEASURED))?,
        idle: at_least_a_second("--idle", arguments.real.idle)?,
        dead_server: arguments.real.dead_server,
        stuck: usize::try_from(arguments.real.stuck)?,
        peak: arguments.real.peak,
        seed: arguments.seed,
        server: arguments.server.own("flow", &work)?,
        site: arguments.real.site,
        work_dir: work.path.clone(),
        json: arguments.json,
        results: arguments.results.folder(),
    };
    Ok(real::run(&options).await?.is_sound())
}

async fn kill(arguments: FlowArguments) -> anyhow::Result<bool> {
    let work = WorkDir::new(arguments.server.work_dir.clone())?;
    let servers = one_number(&within(or(arguments.servers, &[KILL_SERVERS]))?)?;
    let kill = Kill {
        every: at_least_a_second("--kill", arguments.real.kill.unwrap_or_default())?,
        process_servers_die: arguments.real.process_servers_die(servers)?,
        duration: arguments.real.duration,
        servers,
        fleet: arguments.real.hosts(QUICK)?,
        seed: arguments.seed,
        server: arguments.server.own("flow", &work)?,
        site: arguments.real.site,
        work_dir: work.path.clone(),
        json: arguments.json,
        results: arguments.results.folder(),
    };
    Ok(kill.run().await?.passed)
}

impl RealArguments {
    /// What was given, and `default` where nothing was.
    fn hosts(&self, default: Hosts) -> anyhow::Result<Hosts> {
        let outstanding = self.outstanding.map(usize::try_from).transpose()?;
        let hosts = Hosts {
            agents: usize::try_from(self.agents)?,
            slots: self.slots.unwrap_or(default.slots),
            capacity: self.capacity,
            mean: self.mean.unwrap_or(default.mean),
            outstanding: outstanding.unwrap_or(default.outstanding),
        };
        ensure!(
            !hosts.mean.is_zero(),
            "--mean is 0; an operation takes some time"
        );
        ensure!(
            hosts.capacity >= hosts.slots,
            "--capacity {} is less than --slots {}: the slots beyond it are never used",
            hosts.capacity,
            hosts.slots
        );
        Ok(hosts)
    }

    fn process_servers_die(&self, servers: usize) -> anyhow::Result<Option<Duration>> {
        let Some(every) = self.process_servers_die else {
            return Ok(None);
        };
        ensure!(
            servers > 1,
            "--process-servers-die needs --servers 2 at least: nobody takes over from the only one"
        );
        at_least_a_second("--process-servers-die", every).map(Some)
    }
}

/// The only one of a list.
fn one_number(servers: &[usize]) -> anyhow::Result<usize> {
    match servers {
        [servers] => Ok(*servers),
        _ => bail!("--kill runs with one number of servers: give --servers one"),
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        flow: FlowArguments,
    }

    fn parsed(line: &str) -> Result<FlowArguments, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.flow)
    }

    #[test]
    fn hosts_are_the_models_on_the_real_server_and_quick_ones_where_somebody_dies() {
        let real = parsed("flow --real").unwrap();
        assert_eq!(real.real.hosts(MODEL).unwrap(), MODEL);
        let kill = parsed("flow --kill 5s").unwrap();
        assert_eq!(kill.real.hosts(QUICK).unwrap(), QUICK);
        // T7 in half an hour, also if deaths take three quarters of what the hosts could do.
        let a_second = f64::from(QUICK.slots) / QUICK.mean.as_secs_f64() * 200.0;
        let half_an_hour = a_second * kill.real.duration.as_secs_f64();
        assert!(half_an_hour / 4.0 > 1e6, "{half_an_hour}");
        let given =
            parsed("flow --kill 5s --slots 2 --mean 1s --outstanding 7 --capacity 3").unwrap();
        let hosts = given.real.hosts(QUICK).unwrap();
        assert_eq!(
            (hosts.slots, hosts.mean, hosts.outstanding, hosts.capacity),
            (2, Duration::from_secs(1), 7, 3)
        );
        assert!(given.real.hosts(QUICK).is_ok());
        let narrow = parsed("flow --real --capacity 7").unwrap();
        assert!(narrow.real.hosts(MODEL).is_err(), "eight slots by default");
    }

    #[test]
    fn process_servers_die_beside_other_deaths_and_where_others_live() {
        let die = |line: &str, servers| parsed(line).unwrap().real.process_servers_die(servers);
        let line = "flow --kill 5s --process-servers-die 7s";
        let seven = Duration::from_secs(7);
        assert_eq!(die(line, 4).unwrap(), Some(seven));
        assert_eq!(die("flow --kill 5s", 1).unwrap(), None);
        assert!(die(line, 1).is_err());
        assert!(die("flow --kill 5s --process-servers-die 10ms", 4).is_err());
        assert!(parsed("flow --process-servers-die 7s").is_err());
    }

    #[test]
    fn what_only_the_real_server_can_be_asked_is_refused_elsewhere() {
        for line in [
            "flow --dead-server",
            "flow --stuck 9",
            "flow --peak 1",
            "flow --kill 5s --dead-server",
            "flow --kill 5s --warm-up 9s",
            "flow --kill 5s --real",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert!(parsed("flow --real --dead-server --stuck 9 --peak 2").is_ok());
        assert!(one_number(&[2, 4]).is_err());
    }
}
