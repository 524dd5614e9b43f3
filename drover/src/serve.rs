//! `drover serve`: builds the servers of a profile from the configuration, runs them until a signal
//! or a failure, and stops them in order.
//!
//! ```text
//!   lock data dir ─▶ identity ─▶ store ─▶ gateway ─▶ control ─▶ ready.json, banner
//!                                                                  │ SIGTERM
//!   API takes nothing new ─▶ nothing new is claimed ─▶ agents get GoAway ─▶ store closed ─▶ 0
//! ```
//!
//! No rule of the servers lives here.

mod arguments;
mod banner;
mod build;

use std::sync::Arc;
use std::time::Duration;

use control::downlink::{Link as _, Wake};
use protocol::link::Request;

pub(crate) use self::arguments::ServeArguments;
use self::build::Servers;
use crate::cli::Global;
use crate::config::{self, Config, Loaded};
use crate::data_dir::DataDir;
use crate::fault::{Exit, Fault};
use crate::link::LocalLink;
use crate::log;
use crate::signal::Signals;

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
