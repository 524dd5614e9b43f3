//! `drover agent …`: the hypervisor's side. Joins, runs, and says what its machine allows.

mod file;

use std::path::{Path, PathBuf};

use agent::JoinOptions;
use agent::config::Flags;
use clap::{Args, Subcommand};
use protocol::enrol::JoinToken;
use tokio_util::sync::CancellationToken;

use super::{Output, print};
use crate::config::{LogFormat, LogSettings, value};
use crate::fault::{Exit, Fault, chain};
use crate::log;
use crate::signal::Signals;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Join a deployment with a one-time token: makes this machine's key and gets its certificate
    Join(JoinArguments),
    /// Run the agent until SIGTERM
    Run(RunArguments),
    /// Allow a program to `exec` on this machine
    Allow {
        /// What processes call it
        name: String,
        /// Its absolute path
        path: String,
        #[command(flatten)]
        state: StateDir,
    },
}

/// Where the agent keeps its key, its journal and agent.toml.
#[derive(Args, Debug)]
pub(crate) struct StateDir {
    /// Where the agent keeps its key, its journal and agent.toml
    #[arg(
        long,
        env = "DROVER_AGENT_DIR",
        default_value = "./drover-agent",
        value_name = "DIR"
    )]
    state_dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct JoinArguments {
    /// HOST:PORT of the agent server; several are tried in order
    #[arg(
        long, env = "DROVER_SERVER", required = true, value_delimiter = ',',
        value_parser = value::address, value_name = "HOST:PORT"
    )]
    server: Vec<String>,
    /// The token from `drover tokens create`; - reads it from standard input
    #[arg(long, env = "DROVER_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// The name that people see [default: this machine's]
    #[arg(long)]
    hostname: Option<String>,
    /// A program that `exec` may run on this machine; repeat for more
    #[arg(long, value_parser = file::parse_program, value_name = "NAME=PATH")]
    allow: Vec<(String, PathBuf)>,
    /// Replace the identity that this machine has: after `drover agents rekey`
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    /// HOST:PORT of the agent server instead of the ones in agent.toml
    #[arg(
        long, env = "DROVER_SERVER", value_delimiter = ',',
        value_parser = value::address, value_name = "HOST:PORT"
    )]
    server: Vec<String>,
    /// The name that people see, instead of the one in agent.toml
    #[arg(long)]
    hostname: Option<String>,
    /// Operations at once (1 to 16), instead of the number in agent.toml
    #[arg(long, value_name = "N")]
    capacity: Option<u32>,
    /// Offer the driver `simulated`, for load tests and tours
    #[arg(long)]
    simulated: bool,
    /// What is logged: a level, or a filter such as info,agent=debug
    #[arg(long, default_value = "info", value_parser = parse_filter, value_name = "FILTER")]
    log: String,
    /// How log lines look: human or json
    #[arg(long, default_value = "human", value_parser = LogFormat::parse, value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(flatten)]
    state: StateDir,
}

pub(super) async fn run(output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::Join(arguments) => join(output, arguments).await,
        Command::Run(arguments) => serve(arguments).await,
        Command::Allow { name, path, state } => allow(output, &state.state_dir, name, &path),
    }
}

async fn join(output: Output, arguments: JoinArguments) -> Result<Exit, Fault> {
    let token = read_token(&arguments.token)?;
    let state_dir = arguments.state.state_dir;
    // A server that does not answer is waited for.
    if !output.is_json() {
        eprintln!("drover: joining through {}", arguments.server.join(", "));
    }
    let id = agent::join(JoinOptions {
        token,
        servers: arguments.server.clone(),
        state_dir: state_dir.clone(),
        hostname: arguments.hostname.clone(),
        force: arguments.force,
    })
    .await
    .map_err(|error| Fault::new(chain(&error)))?;
    file::allow(
        &state_dir,
        &arguments.server,
        arguments.hostname.as_deref(),
        &arguments.allow,
    )?;

    let joined = serde_json::json!({ "agent": id, "state_dir": state_dir });
    print::value(output, &joined, |_| {
        let programs: Vec<&str> = arguments
            .allow
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let mut text = format!("joined as agent {id}\n");
        if !programs.is_empty() {
            text.push_str(&format!("exec may run: {}\n", programs.join(", ")));
        }
        text.push_str(&format!(
            "\nRun it:  drover agent run{}\n",
            state_flag(&state_dir)
        ));
        text
    })
}

async fn serve(arguments: RunArguments) -> Result<Exit, Fault> {
    let flags = Flags {
        servers: arguments.server,
        capacity: arguments.capacity,
        hostname: arguments.hostname,
        simulated: arguments.simulated,
        ..Flags::default()
    };
    let config = file::load_with(&arguments.state.state_dir, flags)?;
    log::start(&LogSettings {
        filter: arguments.log,
        format: arguments.log_format,
    });
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut signals = Signals::new()?;
    tokio::spawn(async move {
        let (name, _) = signals.next().await;
        tracing::info!(signal = name, "stopping; a second signal stops at once");
        stop.cancel();
        let (_, code) = signals.next().await;
        std::process::exit(i32::from(code));
    });
    agent::run(config, shutdown)
        .await
        .map_err(|error| Fault::new(chain(&error)))?;
    Ok(Exit::Success)
}

fn allow(output: Output, state_dir: &Path, name: String, path: &str) -> Result<Exit, Fault> {
    let path = file::check_program(&name, path).map_err(Fault::usage)?;
    if !state_dir.is_dir() {
        return Err(
            Fault::new(format_args!("{} is not there", state_dir.display())).advise(
                "join first with `drover agent join`, or name the directory with --state-dir",
            ),
        );
    }
    file::allow(state_dir, &[], None, &[(name.clone(), path.clone())])?;
    let result = serde_json::json!({ "name": name, "path": path });
    print::value(output, &result, |_| {
        format!(
            "exec may run `{name}` ({}) once the agent is started again\n",
            path.display()
        )
    })
}

fn read_token(text: &str) -> Result<JoinToken, Fault> {
    let text = if text == "-" {
        std::io::read_to_string(std::io::stdin())
            .map_err(|error| Fault::usage(format_args!("cannot read standard input: {error}")))?
    } else {
        text.to_owned()
    };
    text.parse().map_err(|error| {
        Fault::usage(error).advise("make one with `drover tokens create` and copy it whole")
    })
}

fn parse_filter(text: &str) -> Result<String, String> {
    log::check(text).map(|()| text.to_owned())
}

fn state_flag(state_dir: &Path) -> String {
    if state_dir == Path::new("./drover-agent") {
        String::new()
    } else {
        format!(" --state-dir {}", state_dir.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_were_cut_are_refused_before_anything_is_sent() {
        for text in ["", "drover1", "drover1.abc", "Bearer x"] {
            let fault = read_token(text).unwrap_err();
            assert_eq!(fault.exit, Exit::Usage, "{text}");
            assert!(fault.advice.unwrap().contains("drover tokens create"));
        }
    }
}
