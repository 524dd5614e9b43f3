//! The store: the only truth of a deployment, in SQL.
//!
//! ```text
//!   write(job) ─▶ writer (one connection, group commit, fsync before the answer)
//!   reader()   ─▶ pool of read-only connections, each on a consistent snapshot
//! ```
//!
//! SQLite is the embedded backend (`sqlite.rs`); PostgreSQL and MariaDB are servers that several processes share
//! (`remote.rs`, docs/STORES.md). Statements are written once, in the language of `sql.rs`; callers elsewhere see
//! values, never SQL. Nothing here decides: the rules of a process are in `process.rs`.

mod agent_servers;
pub mod agents;
pub mod api_tokens;
mod audit;
pub mod batches;
mod budgets;
mod coordination;
mod copy;
pub mod dead_letters;
mod deployment;
pub mod groups;
mod inspect;
pub mod limits;
pub(crate) mod lines;
pub mod log;
mod neighbours;
pub mod pauses;
mod pen;
pub mod plans;
pub(crate) mod position;
pub mod processes;
pub mod queries;
pub(crate) mod recovery;
mod remote;
pub(crate) mod replicas;
mod server_clock;
pub mod sql;
mod sqlite;
mod stored;
pub(crate) mod tally;
mod telemetry;
#[cfg(test)]
pub(crate) mod tests;
mod timers;
pub mod tokens;
pub mod webhooks;
pub(crate) mod workers;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub use copy::{CopyError, CopyStep, copy};
pub use inspect::{Depth, Inspection, inspect};
pub use neighbours::Neighbours;
pub use remote::{ServerInspection, Weakness, inspect_server, shown};
pub use replicas::{Compared, ReplicaInspection, ReplicasConfig, inspect_replicas};
pub use sql::Connection;
pub use telemetry::StoreStats;

use crate::clock::UnixMs;

/// Why a read or a write did not happen. Cheap to copy to everyone in a failed commit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Too many writes are waiting, or too many readers of the embedded backend.
    #[error("too many are waiting for the store; try again in a second")]
    Busy,
    /// The server is stopping.
    #[error("the store is closed: the server is stopping")]
    Stopped,
    /// The store's server does not answer; nothing was written. It is tried again by itself.
    #[error("the store's server does not answer; nothing was written: try again in a few seconds")]
    Unreachable,
    /// The store's server went away while it committed, and did not come back in time to be asked.
    #[error(
        "the store's server went away while it committed: look whether it was written before you repeat it"
    )]
    Doubtful,
    /// The backend said no: disk full, I/O error, a broken constraint.
    #[error("the store failed: {0}")]
    Sql(Arc<sqlx::Error>),
    /// A defect of ours; the job was rolled back.
    #[error("a write met an internal error and was rolled back; please report this")]
    JobPanicked,
    /// A row does not mean anything: written by hand, or a damaged file.
    #[error("the store holds a row that cannot be read: {0}")]
    BadRow(String),
}

/// A number as SQL keeps it: what does not fit becomes the largest that does.
pub(crate) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number from SQL; what is negative becomes 0.
pub(crate) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The 16 bytes of an id column.
pub(crate) fn id_bytes(column: &[u8]) -> Result<[u8; 16], StoreError> {
    column
        .try_into()
        .map_err(|_| StoreError::BadRow(format!("an id of {} bytes", column.len())))
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolClosed => Self::Stopped,
            // The embedded backend's alone: of a server it says that this does not answer.
            sqlx::Error::PoolTimedOut => Self::Busy,
            error if sql::is_gone(&error) => Self::Unreachable,
            error => Self::Sql(Arc::new(error)),
        }
    }
}

/// Why a store could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another kind of store than this build has.
    #[error(
        "store `{0}` is not supported; this build knows `sqlite:`, `sqlite:PATH`, `postgres://…` and `mysql://…`"
    )]
    UnsupportedUrl(String),
    /// The URL of a server cannot be read.
    #[error(
        "store `{url}`: {detail}; a URL is postgres://USER:PASSWORD@HOST/DATABASE or mysql://…"
    )]
    BadUrl {
        /// The URL, without its password.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The server does not answer, or not to this user.
    #[error(
        "cannot reach the store at {url}: {source}; check that it runs, and the user and password"
    )]
    Unreachable {
        /// The URL, without its password.
        url: String,
        /// What was answered, if anything.
        source: sqlx::Error,
    },
    /// The server speaks no TLS although the URL asks for it, or not as whom the URL names.
    #[error(
        "no TLS with the store at {url}: {source}; the server must speak it, with a certificate for the host in the URL, of a public authority or of one in the file that sslrootcert names (for MySQL and MariaDB ssl-ca)"
    )]
    Tls {
        /// The URL, without its password.
        url: String,
        /// What was answered.
        source: sqlx::Error,
    },
    /// The server is too old.
    #[error("the store at {url} is on {found}; Drover needs {needed} or later")]
    OldServer {
        /// The URL, without its password.
        url: String,
        /// What it is.
        found: String,
        /// What it must be at least.
        needed: &'static str,
    },
    /// A copy into it was interrupted.
    #[error(
        "{url} holds half a copy; run `drover store copy` to it again, which goes on and ends it"
    )]
    HalfCopied {
        /// The URL, without its password.
        url: String,
    },
    /// The server takes no writes: it is a replica.
    #[error("the store at {url} takes no writes; name the primary server in `store`")]
    ReadOnly {
        /// The URL, without its password.
        url: String,
    },
    /// A replica that cannot be one of this store.
    #[error(
        "{url} cannot be a replica of the store: replicas are of a store on PostgreSQL or MariaDB, and on the same kind of server"
    )]
    ForeignReplica {
        /// The replica's URL, without its password.
        url: String,
    },
    /// The server may lose what it has confirmed, or would not take what Drover writes.
    #[error(
        "the store at {url} has {setting} = {found}, and work that was accepted could be lost; set it to {wanted}, or write ?durability=unsafe into the URL for tests"
    )]
    NotDurable {
        /// The URL, without its password.
        url: String,
        /// Which setting.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// The folder or the lock file cannot be made or written.
    #[error("cannot write to {path}: {source}; check that the folder exists and who owns it")]
    NotWritable {
        /// What was to be written.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// A second server on the same data.
    #[error(
        "{path} is locked: another drover server uses this data; stop it or choose another data directory"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The file is not a store, or is damaged.
    #[error("{path} is damaged or not a Drover store ({detail}); restore it from a backup")]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// A later version of Drover has used it.
    #[error(
        "{path} has schema version {found}, this build knows up to {known}; use the newer drover that wrote it"
    )]
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// What the store says.
        found: i64,
        /// What this build knows.
        known: i64,
    },
    /// A schema that no released version has written.
    #[error(
        "{path} has a schema version {version} that differs from this build's; it was written by an unreleased build: start with a new data directory"
    )]
    ForeignSchema {
        /// The store's file.
        path: PathBuf,
        /// The step that differs.
        version: i64,
    },
    /// Anything else.
    #[error("cannot open {path}: {source}")]
    Sql {
        /// The store's file.
        path: PathBuf,
        /// The backend's words.
        source: sqlx::Error,
    },
}

fn half_copied(url: &str) -> OpenError {
    OpenError::HalfCopied { url: shown(url) }
}

fn failed_to_open(url: &str, source: sqlx::Error) -> OpenError {
    OpenError::Sql {
        path: PathBuf::from(shown(url)),
        source,
    }
}

/// The store of a deployment. Clones share it.
#[derive(Clone)]
pub struct Store {
    writer: writer::Writer,
    readers: sql::Readers,
    telemetry: Arc<telemetry::Telemetry>,
    replicas: Option<Arc<replicas::Replicas>>,
    shared: Arc<Shared>,
}

/// What lives as long as the store is in use.
struct Shared {
    /// This opening of the store.
    instance: Uuid,
    /// Other processes may write to it as well.
    is_open_to_others: bool,
    /// Jobs that were written, heartbeats aside.
    writes: AtomicU64,
    /// Of these: changes to what operators set.
    orders: AtomicU64,
    /// What several process servers have in common.
    tally: tally::Tally,
    timers: timers::Timers,
    budgets: budgets::RetryBudgets,
    /// How far this machine's clock is from the database's.
    server_clock: Arc<server_clock::ServerClock>,
    writer_task: Mutex<Option<JoinHandle<pen::Pen>>>,
    /// Held exclusively by this process; the operating system lets go of it even after SIGKILL.
    lock: Mutex<Option<std::fs::File>>,
}

impl Store {
    /// Opens the store that `url` names, makes it if it is not there, and brings its schema up to
    /// this build's.
    ///
    /// `sqlite:` is `drover.db` in `data_dir`; `sqlite:PATH` is a file, relative to `data_dir`;
    /// `postgres://…` and `mysql://…` are databases on a server, which several servers of a deployment share.
    ///
    /// # Errors
    /// [`OpenError`] says what is in the way. Nothing has been changed then.
    pub async fn open(url: &str, data_dir: &Path) -> Result<Self, OpenError> {
        let instance = Uuid::new_v4();
        let (mut pen, readers, server_clock, lock) = match remote::is_remote(url) {
            true => {
                let opened = remote::open(url, instance).await?;
                (opened.pen, opened.readers, opened.clock, None)
            }
            false => {
                let opened = sqlite::open(url, data_dir).await?;
                let pen = pen::Pen::embedded(opened.writer);
                (pen, opened.readers, Arc::default(), Some(opened.lock))
            }
        };
        let marked = copy::is_unfinished(pen.connection().map_err(|_| half_copied(url))?).await;
        if marked.map_err(|source| failed_to_open(url, source))? {
            return Err(half_copied(url));
        }
        let telemetry = Arc::new(telemetry::Telemetry::new());
        let (writer, task) = writer::Writer::start(pen, Arc::clone(&telemetry));
        Ok(Self {
            writer,
            readers,
            telemetry,
            replicas: None,
            shared: Arc::new(Shared {
                instance,
                is_open_to_others: lock.is_none(),
                writes: AtomicU64::new(0),
                orders: AtomicU64::new(0),
                tally: tally::Tally::default(),
                timers: timers::Timers::default(),
                budgets: budgets::RetryBudgets::default(),
                server_clock,
                writer_task: Mutex::new(Some(task)),
                lock: Mutex::new(lock),
            }),
        })
    }

    /// Runs `job` within the next commit and returns when that is durable. The job must not begin
    /// or end transactions itself; if it fails, its own writes are rolled back and no others.
    ///
    /// ```ignore
    /// store.write(move |db| Box::pin(async move {
    ///     sql::query("UPDATE …").bind(id).execute(db).await?;
    ///     Ok::<_, StoreError>(())
    /// })).await?;
    /// ```
    ///
    /// # Errors
    /// The job's own; or [`StoreError::Busy`] when too many wait (nothing was written), or what
    /// kept the commit from succeeding (nothing was written).
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        let written = self.writer.write(job).await;
        self.wrote();
        written
    }

    /// After a commit: whoever reads after it has seen the number grow reads what was written.
    fn wrote(&self) {
        self.shared.writes.fetch_add(1, Ordering::Release);
    }

    /// How much was written, heartbeats aside: while it does not grow, nothing has changed.
    pub(crate) fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Acquire)
    }

    /// As [`Store::write`], for a job that changes what operators set: pauses or limits.
    pub(crate) async fn write_order<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        let told = self.is_open_to_others();
        let written = self
            .writer
            .write(move |db| {
                Box::pin(async move {
                    let done = job(&mut *db).await?;
                    if told {
                        pen::count_order(db).await.map_err(StoreError::from)?;
                    }
                    Ok(done)
                })
            })
            .await;
        self.ordered();
        self.wrote();
        written
    }

    /// Pauses or limits have changed: whoever reads after it has seen the number grow reads what is so now.
    fn ordered(&self) {
        self.shared.orders.fetch_add(1, Ordering::Release);
    }

    /// How often operators have set something: while it does not grow, pauses and limits are the same.
    fn orders(&self) -> u64 {
        self.shared.orders.load(Ordering::Acquire)
    }

    fn tally(&self) -> &tally::Tally {
        &self.shared.tally
    }

    /// The earliest timer, as far as process servers have set any, and when an earlier one is set.
    pub(crate) fn timers(&self) -> watch::Receiver<Option<UnixMs>> {
        self.shared.timers.watch()
    }

    /// Takes what a commit has done, in the order of commits; `swept`: it has looked at timers.
    fn committed(&self, by: Option<Uuid>, applied: &processes::Applied, swept: bool) {
        self.shared.tally.take(by, applied);
        self.shared.timers.take(applied, swept);
        self.shared.budgets.take(applied);
    }

    /// A read-only connection.
    ///
    /// # Errors
    /// None came free in time, or the store is closed.
    pub(crate) async fn reader(&self) -> Result<sql::Reader, StoreError> {
        self.telemetry.reads();
        // What it takes to connect to three kinds of servers is large.
        Ok(Box::pin(self.readers.acquire()).await?)
    }

    /// Whether other processes may write to it as well: what this one remembers of its own commits is not all.
    pub fn is_open_to_others(&self) -> bool {
        self.shared.is_open_to_others
    }

    /// This opening of the store: differs from every other one.
    fn instance(&self) -> Uuid {
        self.shared.instance
    }

    /// The version of its schema: this build's.
    pub fn schema(&self) -> i64 {
        sqlite::known_schema()
    }

    /// The store's figures.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            clock_offset_ms: self.clock_offset(),
            ..self.telemetry.snapshot()
        }
    }

    /// Waits for the writes that were handed in, writes the log back into the main file and closes
    /// it. Other clones get [`StoreError::Stopped`] afterwards.
    pub async fn close(self) {
        let Self {
            writer,
            readers,
            shared,
            ..
        } = self;
        readers.close().await;
        writer.close();
        drop(writer);
        let task = shared
            .writer_task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            match task.await {
                Ok(pen) => pen.close().await,
                Err(error) => tracing::error!(%error, "the store's writer ended badly"),
            }
        }
        let lock = shared
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(lock);
    }
}
