//! `drover top`: the deployment at a glance, live in a terminal, or once as text.
//!
//! ```text
//!   watch.rs ─ overviews ─────▶ ┐
//!   limits.rs ─ limits ───────▶ ┤
//!   live.rs ── keys, size, tick ├─▶ state.rs ─ State ─▶ view.rs ─▶ a frame
//!                               ┘
//!   once.rs ── one overview ───────────────────────────────────▶ text, or the document itself
//! ```

mod figures;
pub(super) mod format;
mod limits;
mod live;
mod once;
#[cfg(test)]
mod sample;
mod state;
mod view;
mod watch;

use std::io::IsTerminal as _;

use clap::Args;
use control::api::model::overview::Overview;

use super::Output;
use super::client::Client;
use crate::fault::{Exit, Fault};

#[derive(Args, Debug)]
pub(crate) struct TopArguments {
    /// Print the figures once and leave; so too with `--output json`, and when standard output is no
    /// terminal
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(
    client: Client,
    output: Output,
    arguments: &TopArguments,
) -> Result<Exit, Fault> {
    if arguments.once || output.is_json() {
        return once::run(&client, output).await;
    }
    if !std::io::stdout().is_terminal() {
        let exit = once::run(&client, output).await?;
        eprintln!(
            "standard output is no terminal, so this was printed once; --once says that it is meant"
        );
        return Ok(exit);
    }
    Box::pin(live::run(client)).await
}

/// An overview from the server's document.
fn read(text: &str) -> Result<Overview, Fault> {
    serde_json::from_str(text).map_err(|error| {
        Fault::new(format_args!("the server's figures cannot be read: {error}"))
            .advise("is the server of the same version as this program?")
    })
}
