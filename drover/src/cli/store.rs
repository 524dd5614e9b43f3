//! `drover store …`: the store itself, without a Drover server's help.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use control::clock;
use control::store::{CopyError, CopyStep, OpenError, Store};
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
    /// Copy a store that nobody uses into an empty one, of another kind if you like, and compare the two. Nothing of
    /// the first is changed: its schema must be this build's. Interrupted, it goes on where it was when it is run again
    Copy {
        /// URL of the store that is there. Everybody on this machine sees what stands on a command line: a URL with a
        /// password goes into the variable
        #[arg(
            long,
            env = "DROVER_COPY_FROM",
            hide_env_values = true,
            value_name = "URL"
        )]
        from: String,
        /// URL of the new one
        #[arg(
            long,
            env = "DROVER_COPY_TO",
            hide_env_values = true,
            value_name = "URL"
        )]
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
    let store = store.map_err(|error| Fault::new(chain(&error)).advise(advice(&error)))?;
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
    let rows = rows.await.map_err(not_copied)?;
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

fn not_copied(error: CopyError) -> Fault {
    Fault::new(chain(&error)).advise(advice_on_copy(&error))
}

/// What to do about a copy that came to nothing.
fn advice_on_copy(error: &CopyError) -> String {
    let told = match error {
        CopyError::Open(error) => return advice(error),
        CopyError::NotEmpty { place } => return make_room(place),
        CopyError::NoStore { .. } | CopyError::NeverUsed { .. } => {
            "mend --from; where the file of sqlite: is say --data-dir, and data_dir in the server's configuration (--config)"
        }
        CopyError::OlderSchema { .. } => {
            "save it, then run `drover store migrate` with the configuration of its server; there is no way back from \
             that but what was saved"
        }
        CopyError::OntoItself => "name another store with --to",
        CopyError::Live { .. } => {
            "`systemctl stop drover` on every machine with a server that has a store; agent servers alone may stay"
        }
        CopyError::InUse { .. } => {
            "ask the database who they are: SELECT * FROM pg_stat_activity, or SHOW PROCESSLIST"
        }
        CopyError::Differs { .. } => {
            "see that nobody writes to either of the two, and name a new target, which is made or is empty"
        }
        CopyError::Store(_) => {
            "`drover store check` on each of the two says whether it can be reached and is whole"
        }
    };
    told.to_owned()
}

/// What to do about a target that holds something: a file, or a database by its URL.
fn make_room(place: &str) -> String {
    if place.contains("://") {
        return "if it is this very copy, which is through, set `store` to it; otherwise name an empty \
                database"
            .to_owned();
    }
    format!(
        "if it is this very copy, which is through, set `store` to it; an old store is moved away: \
         `mv {place} {place}.before`, and {place}-wal to {place}.before-wal where there is one"
    )
}

/// What to do about a store that cannot be opened: here, and in what `drover doctor` says.
pub(super) fn advice(error: &OpenError) -> String {
    match error {
        OpenError::UnsupportedUrl(_) | OpenError::BadUrl { .. } => {
            "set store = \"sqlite:\" in the configuration, or a URL as docs/STORES.md has them"
                .to_owned()
        }
        OpenError::Unreachable { .. } => {
            "start the database server, or mend the URL: its host, port, user, password and database"
                .to_owned()
        }
        OpenError::Tls { .. } => {
            "switch TLS on at the server, or mend the URL: its host and sslrootcert, or ssl-ca (docs/STORES.md)"
                .to_owned()
        }
        OpenError::OldServer { needed, .. } => format!("upgrade it to {needed} or later"),
        OpenError::ReadOnly { .. } => "name the primary server in `store`".to_owned(),
        OpenError::ForeignReplica { .. } => {
            "mend store_read_urls: one URL for each replica, written as `store` is".to_owned()
        }
        OpenError::NotDurable {
            setting, wanted, ..
        } => format!("set {setting} = {wanted} on the server"),
        OpenError::HalfCopied { .. } => {
            "run `drover store copy` with the same --from and --to again: it goes on".to_owned()
        }
        OpenError::Corrupt { path, .. } => format!(
            "keep a copy of {}, and restore a backup (docs/OPERATIONS.md, Backup)",
            path.display()
        ),
        OpenError::NewerSchema { .. } => {
            "install the newer drover again, or restore a backup made with \
                                          this version"
                .to_owned()
        }
        OpenError::ForeignSchema { .. } => {
            "begin with a new data directory, or restore a backup".to_owned()
        }
        OpenError::Locked { path } => format!("end what holds it: `fuser -v {}`", path.display()),
        OpenError::NotWritable { path, .. } | OpenError::Sql { path, .. } => about(path),
    }
}

/// What to do about a store that says no to what is asked of it: a file, or a database by its URL.
fn about(store: &Path) -> String {
    if store.to_string_lossy().contains("://") {
        return "let the user in `store` do everything in its database (GRANT ALL; of PostgreSQL, own it), and look \
                into the database server's log (docs/STORES.md)"
            .to_owned();
    }
    format!(
        "run this as the owner of the data directory, and look at the file: `ls -l {}`",
        store.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_on_a_database_is_about_the_database() {
        let database = about(Path::new("mysql://drover@db/drover"));
        assert!(database.contains("GRANT") && !database.contains("ls -l"));
        assert!(about(Path::new("/d/drover.db")).contains("ls -l /d/drover.db"));
    }

    #[test]
    fn room_is_made_for_a_file_and_another_database_named() {
        let file = make_room("/d/drover.db");
        assert!(
            file.contains("`mv /d/drover.db /d/drover.db.before`"),
            "{file}"
        );
        let database = make_room("postgres://drover@db/drover");
        assert!(
            database.contains("an empty database") && !database.contains("mv "),
            "{database}"
        );
    }

    #[test]
    fn a_copy_that_came_to_nothing_is_told_in_two_lines() {
        let locked = OpenError::Locked {
            path: "/d/drover.lock".into(),
        };
        let fault = not_copied(CopyError::Open(locked));
        assert!(fault.what.contains("is locked"), "{fault}");
        let advice = fault.advice.unwrap();
        assert!(advice.contains("fuser -v /d/drover.lock"), "{advice}");
    }
}
