//! `drover store …`: the store's file, without a server's help.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Global, doctor};
use crate::config;
use crate::fault::{Exit, Fault};
use crate::serve::ServeArguments;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Look for damage, and change nothing; also beside a running server. Exit code 1 when there is some
    Check {
        /// Look at every index and reference too: several times as long
        #[arg(long)]
        deep: bool,
        /// Configuration file [default: ./drover.toml where it exists]
        #[arg(long, env = "DROVER_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

pub(super) async fn run(global: &Global, command: Command) -> Result<Exit, Fault> {
    let Command::Check { deep, config } = command;
    let sources = ServeArguments::of_file(config).sources(global);
    let config = config::load(sources)?.config;
    let depth = doctor::depth(deep);
    let looked = control::store::inspect(&config.store, &config.data_dir, depth).await;
    if let Ok(None) = looked {
        let place = config.data_dir.display();
        return Err(Fault::usage(format_args!(
            "there is no store: {} in {place}",
            config.store
        ))
        .advise(
            "name its directory with --data-dir, or the server's configuration with --config",
        ));
    }
    doctor::tell(global, &doctor::store::checks(&looked, depth))
}
