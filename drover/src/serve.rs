//! `drover serve`: builds the servers of a profile from the configuration, runs them until a signal
//! or a failure, and stops them in order.
//!
//! ```text
//!   lock data dir ─▶ identity ─▶ store ─▶ gateway ─▶ control ─▶ ready.json, banner
//!                                                                  │ SIGTERM
//!   groups go to others ─▶ API takes nothing new ─▶ nothing new is claimed ─▶ store closed ─▶ sessions closed ─▶ 0
//! ```
//!
//! A profile without agent server leaves out what is the gateway's, and is led to those elsewhere; the profile
//! `agent-server` leaves out the store and control, and waits for process servers. The profile `all` has both, and where
//! `link.connect` names others they serve each other as if each were on a machine of its own.
//!
//! No rule of the servers lives here.

mod agents;
mod arguments;
mod banner;
mod build;
mod faults;
mod figures;
mod neighbours;

use std::time::Duration;

pub(crate) use self::agents::cores;
pub(crate) use self::arguments::ServeArguments;
use self::build::Servers;
pub(crate) use self::build::{api_fault, refusals};
pub(crate) use self::neighbours::judge as judge_neighbours;
use crate::cli::{Global, print};
use crate::config::{self, Config, Loaded};
use crate::data_dir::DataDir;
use crate::fault::{Exit, Fault};
use crate::log;
use crate::signal::{HangUp, Signals};

/// What the drain may take beyond its deadline before the process ends regardless.
const GRACE: Duration = Duration::from_secs(5);

/// Reads the configuration, then runs the server to its end.
pub(crate) fn run(global: &Global, arguments: ServeArguments) -> Result<Exit, Fault> {
    let print_config = arguments.print_config;
    let loaded = config::load(arguments.sources(global))?;
    if print_config {
        print!("{}", loaded.print());
        return Ok(Exit::Success);
    }
    log::start(&loaded.config.log);
    tell(&loaded);
    let config = loaded.config;
    let data = DataDir::open(&config.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .map_err(|error| Fault::new(format_args!("cannot start the runtime: {error}")))?;
    let json = global.output.is_json();
    let result = runtime.block_on(Box::pin(serve(&config, &data, json)));
    data.remove_ready();
    // What still runs has had its time in the drain.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn tell(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(file) = &loaded.file {
        tracing::info!(file = %file.display(), "configuration read");
    }
}

/// Runs the servers from start to end.
async fn serve(config: &Config, data: &DataDir, json: bool) -> Result<Exit, Fault> {
    let mut signals = Signals::new()?;
    let servers = tokio::select! {
        servers = Servers::start(config, data) => servers?,
        (name, code) = signals.next() => {
            tracing::info!(signal = name, "stopped before everything had started");
            std::process::exit(i32::from(code));
        }
    };
    announce(&servers, config, data, json)?;
    let mut hang_up = HangUp::new(servers.speaks_tls())?;
    let ended = loop {
        tokio::select! {
            (name, _) = signals.next() => {
                tracing::info!(signal = name, "stopping in order; a second signal stops at once");
                break Ok(Exit::Success);
            }
            fault = servers.failed() => {
                tracing::error!(%fault, "a part has failed; stopping");
                break Err(fault);
            }
            () = hang_up.next() => {
                tracing::info!(signal = "SIGHUP", "reading the API's certificates again");
                servers.reload_certificates();
            }
        }
    };
    let deadline = config.drain.deadline;
    tokio::select! {
        drained = tokio::time::timeout(deadline + GRACE, servers.drain(deadline)) => match drained {
            Ok(drained) => drained?,
            Err(_) => tracing::warn!(?deadline, "the deadline of the drain passed; what is left is in the store and the agents' journals"),
        },
        (name, code) = signals.next() => {
            tracing::warn!(signal = name, "stopping at once");
            std::process::exit(i32::from(code));
        }
    }
    tracing::info!("stopped");
    ended
}

/// Says where everything is: to people, to programs, and to clients on this machine.
fn announce(servers: &Servers, config: &Config, data: &DataDir, json: bool) -> Result<(), Fault> {
    let ready = servers.ready(config, data);
    data.write_ready(&ready)?;
    let names: Vec<String> = config
        .profile
        .servers()
        .iter()
        .map(ToString::to_string)
        .collect();
    let (api, agents, link) = (
        ready.api.as_deref(),
        ready.agents.as_deref(),
        ready.link.as_deref(),
    );
    tracing::info!(api, agents, link, servers = names.join(", "), "ready");
    let text = if json {
        print::to_json(&ready)?
    } else {
        banner::text(&ready, config)
    };
    print::line(&text)
}
