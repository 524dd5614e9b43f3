//! `drover store …`: the store itself, without a Drover server's help.

use std::path::PathBuf;

use clap::Subcommand;
use control::clock;
use control::store::{CopyStep, Store};
use serde::Serialize;

use super::top::format;
use super::{Global, doctor, print};
use crate::config::{self, Config};
use crate::fault::{Exit, Fault, chain};
use crate::serve::ServeArguments;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Look for what is wrong, and change nothing; also beside a running server. Exit code 1 when there is damage, or a
    /// database that cannot be the store
    Check {
        /// Look at every index and reference too: several times as long. Of SQLite: a database is not read through
        #[arg(long)]
        deep: bool,
        /// Configuration file [default: ./drover.toml where it exists]
        #[arg(long, env = "DROVER_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Bring the schema up to this build's, as its first start would. SQLite: while no server runs. A database: also while
    /// servers of the build before run, as ahead of a rolling upgrade, since steps only add; save it first
    Migrate {
        /// Configuration file [default: ./drover.toml where it exists]
        #[arg(long, env = "DROVER_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Copy a store that nobody uses into an empty one, of another kind if you like, and compare the two.
    /// Interrupted, it goes on where it was when it is run again
    Copy {
        /// URL of the store that is there
        #[arg(long, value_name = "URL")]
        from: String,
        /// URL of the new one
        #[arg(long, value_name = "URL")]
        to: String,
        /// Configuration file, for the data directory [default: ./drover.toml where it exists]
        #[arg(long, env = "DROVER_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

pub(super) async fn run(global: &Global, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::Check { deep, config } => check(global, deep, config).await,
        Command::Migrate { config } => migrate(global, config).await,
        Command::Copy { from, to, config } => copy(global, &from, &to, config).await,
    }
}

fn load(global: &Global, config: Option<PathBuf>) -> Result<Config, Fault> {
    let sources = ServeArguments::of_file(config).sources(global);
    Ok(config::load(sources)?.config)
}

async fn check(global: &Global, deep: bool, config: Option<PathBuf>) -> Result<Exit, Fault> {
    let config = load(global, config)?;
    if let Some(looked) = control::store::inspect_server(&config.store)
        .await
        .transpose()
    {
        let mut checks = doctor::store::server_checks(&looked, doctor::depth(deep));
        checks.extend(doctor::replicas::checks(&config).await);
        return doctor::tell(global, &checks);
    }
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

async fn migrate(global: &Global, config: Option<PathBuf>) -> Result<Exit, Fault> {
    let config = load(global, config)?;
    let store = Store::open(&config.store, &config.data_dir).await;
    let store = store.map_err(|error| Fault::new(chain(&error)))?;
    let schema = store.schema();
    store.close().await;
    let done = Migrated { schema };
    print::value(global.output, &done, |done| {
        format!("the schema is version {}, this build's\n", done.schema)
    })?;
    Ok(Exit::Success)
}

/// What `drover store migrate` has done.
#[derive(Serialize, Debug)]
struct Migrated {
    /// The schema's version now.
    schema: i64,
}

/// What `drover store copy` has done.
#[derive(Serialize, Debug)]
struct Copied {
    /// Rows of all tables, the same on both sides.
    rows: u64,
    /// Seconds that it took.
    seconds: u64,
}

async fn copy(
    global: &Global,
    from: &str,
    to: &str,
    config: Option<PathBuf>,
) -> Result<Exit, Fault> {
    let config = load(global, config)?;
    let began = clock::monotonic();
    let rows = control::store::copy(from, to, &config.data_dir, |step| match step {
        CopyStep::Copied { table, rows } if rows > 0 => {
            eprintln!("{table}: {} copied", format::count(rows));
        }
        CopyStep::Verified { table, rows } if rows > 0 => {
            eprintln!("{table}: {} the same on both sides", format::count(rows));
        }
        CopyStep::Copied { .. } | CopyStep::Verified { .. } => {}
    });
    let rows = rows.await.map_err(|error| Fault::new(chain(&error)))?;
    let done = Copied {
        rows,
        seconds: began.elapsed().as_secs(),
    };
    print::value(global.output, &done, |done| {
        let (rows, seconds) = (format::count(done.rows), done.seconds);
        format!("{rows} rows copied and compared in {seconds} s; set `store` to the new URL\n")
    })?;
    Ok(Exit::Success)
}
