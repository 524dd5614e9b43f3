//! Drover: a fleet of hypervisors on one line. The one binary.
//!
//! ```text
//!   main ─ parse ─▶ serve.rs   the servers of a profile, until SIGTERM
//!               └─▶ cli/       thin clients of the API, and the agent
//! ```

mod cli;
mod config;
mod data_dir;
mod fault;
mod link;
mod log;
mod profile;
mod serve;
mod signal;

use std::process::ExitCode;

use crate::cli::Command;
use crate::fault::{Exit, Fault};

fn main() -> ExitCode {
    let cli = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let json = cli.global.output.is_json();
    let result = match cli.command {
        Command::Serve(arguments) => serve::run(&cli.global, arguments),
        Command::Completions { shell } => {
            cli::print_completions(shell);
            Ok(Exit::Success)
        }
        command => client_runtime()
            .and_then(|runtime| runtime.block_on(async { cli::run(cli.global, command).await })),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(fault) => {
            fault.report(json);
            fault.exit.into()
        }
    }
}

/// One thread is enough for a client of the API and for an agent.
fn client_runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::new(format_args!("cannot start the runtime: {error}")))
}
