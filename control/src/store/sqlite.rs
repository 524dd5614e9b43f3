//! Opening and closing the embedded backend: lock, pragmas, checks, schema.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::OpenError;
use super::sql::{Connection, Dialect, Readers, Session, Texts};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Read-only connections: the API's lists and the watchers. Each costs a thread and 2 MiB of cache.
const READERS: u32 = 4;
/// How long to wait for another program (a backup, a shell) that holds the file.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows that the backend's thread runs ahead of a reader: fewer thread switches.
const ROW_BUFFER: usize = 1024;
/// Prepared statements kept per connection.
const STATEMENTS: usize = 256;

/// Stores up to this size are checked whole at every start (about 0.2 s).
const CHECKED_BYTES_MAX: u64 = 64 << 20;

/// Only the owner reads and writes.
const PRIVATE: u32 = 0o600;

/// An opened file.
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) readers: Readers,
    pub(super) lock: File,
}

/// Opens `url`; see [`super::Store::open`].
pub(super) async fn open(url: &str, data_dir: &Path) -> Result<Opened, OpenError> {
    let path = file_of(url, data_dir)?;
    let lock = lock(&path)?;
    // After the lock: nobody in this process has the file open, and closing it would let go of
    // SQLite's own locks on it.
    keep_private(&path)?;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // After a burst the log gives its space back.
        .pragma("journal_size_limit", "67108864")
        .row_buffer_size(ROW_BUFFER)
        .statement_cache_capacity(STATEMENTS)
        .thread_name(|id| format!("store-{id}"))
        .disable_statement_logging();
    let fail = |source| describe(&path, source);
    let mut writer = options.connect().await.map_err(fail)?;
    check(&mut writer, &path).await?;
    MIGRATIONS
        .run_direct(None, &mut writer, false)
        .await
        .map_err(|error| describe_migration(&path, error))?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options.create_if_missing(false).read_only(true))
        .await
        .map_err(fail)?;
    let texts = Texts::new(Dialect::Sqlite);
    Ok(Opened {
        writer: Connection::new(Session::Sqlite(writer), Arc::clone(&texts)),
        readers: Readers::Sqlite(readers, texts),
        lock,
    })
}

/// Opens the file that is there, and has it, to read it alone: nothing is made but the lock beside it, and neither a row
/// nor its schema can be changed.
pub(super) async fn open_as_it_is(
    url: &str,
    data_dir: &Path,
) -> Result<(Connection, File), OpenError> {
    let path = file_of(url, data_dir)?;
    let lock = lock(&path)?;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .busy_timeout(BUSY_TIMEOUT)
        // Not `read_only`: whoever opens it so leaves a log and its index behind.
        .pragma("query_only", "ON")
        .row_buffer_size(ROW_BUFFER)
        .statement_cache_capacity(STATEMENTS)
        .disable_statement_logging();
    let opened = options.connect().await;
    let opened = opened.map_err(|source| describe(&path, source))?;
    let texts = Texts::new(Dialect::Sqlite);
    Ok((Connection::new(Session::Sqlite(opened), texts), lock))
}

/// Folds the write-ahead log into the main file and closes it.
pub(super) async fn close(mut connection: SqliteConnection) {
    let folded = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut connection)
        .await
        .map(drop);
    if let Err(error) = folded.and(connection.close().await) {
        // Harmless: the log is read at the next start.
        tracing::warn!(%error, "the store's log was not folded into its file");
    }
}

/// The file that `url` names.
pub(super) fn file_of(url: &str, data_dir: &Path) -> Result<PathBuf, OpenError> {
    let name = url
        .strip_prefix("sqlite:")
        .ok_or_else(|| OpenError::UnsupportedUrl(url.to_owned()))?;
    let name = name.strip_prefix("//").unwrap_or(name);
    match name {
        ":memory:" => Err(OpenError::UnsupportedUrl(url.to_owned())),
        "" => Ok(data_dir.join("drover.db")),
        path => Ok(data_dir.join(path)),
    }
}

/// Makes the store's file if it is not there, and all its files readable by their owner only: they
/// hold what agents run and what comes of it. SQLite gives its log and index the mode of the file.
fn keep_private(store: &Path) -> Result<(), OpenError> {
    let refused = |path: &Path, source| OpenError::NotWritable {
        path: path.to_owned(),
        source,
    };
    private_file(store).map_err(|source| refused(store, source))?;
    for suffix in ["-wal", "-shm"] {
        // Left by a crash, or put there with a backup.
        let mut path = store.as_os_str().to_owned();
        path.push(suffix);
        let path = PathBuf::from(path);
        if path.exists() {
            private_file(&path).map_err(|source| refused(&path, source))?;
        }
    }
    Ok(())
}

/// Opens a file, or makes it, and lets nobody but its owner read it, whatever the umask.
fn private_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(PRIVATE)
        .open(path)?;
    if file.metadata()?.permissions().mode() & 0o7777 != PRIVATE {
        file.set_permissions(Permissions::from_mode(PRIVATE))?;
    }
    Ok(file)
}

/// Takes the exclusive lock beside the store's file.
fn lock(store: &Path) -> Result<File, OpenError> {
    let path = store.with_extension("lock");
    let refused = |source| OpenError::NotWritable {
        path: path.clone(),
        source,
    };
    let file = private_file(&path).map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path }),
        Err(TryLockError::Error(source)) => Err(refused(source)),
    }
}

/// The promises that everything above rests on, asked back from SQLite, and a look at the pages.
async fn check(writer: &mut SqliteConnection, path: &Path) -> Result<(), OpenError> {
    let fail = |source| describe(path, source);
    let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
    // Reading every page of a large store would delay every start; there, damage shows on use.
    let found: String = if bytes <= CHECKED_BYTES_MAX {
        sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&mut *writer)
            .await
            .map_err(fail)?
    } else {
        "ok".to_owned()
    };
    if found != "ok" {
        return Err(OpenError::Corrupt {
            path: path.to_owned(),
            detail: found,
        });
    }
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut *writer)
        .await
        .map_err(fail)?;
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(&mut *writer)
        .await
        .map_err(fail)?;
    if journal != "wal" || synchronous < 2 {
        return Err(OpenError::Sql {
            path: path.to_owned(),
            source: sqlx::Error::Configuration(
                format!("durability is off (journal {journal}, synchronous {synchronous})").into(),
            ),
        });
    }
    Ok(())
}

pub(super) fn describe(path: &Path, source: sqlx::Error) -> OpenError {
    let code = source
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .and_then(|code| code.parse::<u32>().ok())
        // Extended result codes keep the primary one in the low byte.
        .map(|code| code & 0xff);
    let path = path.to_owned();
    match code {
        // SQLITE_CORRUPT, SQLITE_NOTADB
        Some(11 | 26) => OpenError::Corrupt {
            path,
            detail: source.to_string(),
        },
        // SQLITE_BUSY, SQLITE_LOCKED
        Some(5 | 6) => OpenError::Locked { path },
        // SQLITE_READONLY
        Some(8) => OpenError::NotWritable {
            path,
            source: io::Error::other(source),
        },
        _ => OpenError::Sql { path, source },
    }
}

/// The last step of the schema that this build knows.
pub(super) fn known_schema() -> i64 {
    let versions = MIGRATIONS.iter().map(|step| step.version);
    versions.max().unwrap_or(0)
}

/// Whether a step of a store's schema is one of this build's, as an opening would ask.
pub(super) fn check_step(
    path: &Path,
    version: i64,
    done: bool,
    checksum: &[u8],
) -> Result<(), OpenError> {
    let error = match MIGRATIONS.iter().find(|step| step.version == version) {
        None => MigrateError::VersionMissing(version),
        Some(_) if !done => MigrateError::Dirty(version),
        Some(step) if *step.checksum != *checksum => MigrateError::VersionMismatch(version),
        Some(_) => return Ok(()),
    };
    Err(describe_migration(path, error))
}

fn describe_migration(path: &Path, error: MigrateError) -> OpenError {
    let path_owned = path.to_owned();
    match error {
        MigrateError::VersionMissing(found) => OpenError::NewerSchema {
            path: path_owned,
            found,
            known: known_schema(),
        },
        MigrateError::VersionMismatch(version) | MigrateError::Dirty(version) => {
            OpenError::ForeignSchema {
                path: path_owned,
                version,
            }
        }
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => {
            describe(path, source)
        }
        other => OpenError::Sql {
            path: path_owned,
            source: other.into(),
        },
    }
}
