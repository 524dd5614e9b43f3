//! Looks at a store and changes nothing, also while a server uses it.
//!
//! ```text
//!   a server holds the lock, or a crash left a log ─▶ read beside it, as a reader of the log
//!   neither                                        ─▶ read as a file that nobody writes: SQLite makes
//!                                                     no file of its own then; had it changed at the
//!                                                     end, it is read once more
//! ```

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

use super::{OpenError, copy, from_sql, half_copied, sqlite};
use crate::clock::UnixMs;

/// Kinds of damage that are told at most: the first ones say enough.
const DAMAGE_MAX: u32 = 20;
/// Where a file says how it is written, and what stands there for a write-ahead log.
const FORMAT_AT: usize = 18;
const FORMAT_OF_WAL: [u8; 2] = [2, 2];

/// How closely to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Every page, as at a start: about 3 s a GiB from the page cache.
    Quick,
    /// Also that every index has the rows of its table, and every reference leads to a row: several
    /// times as long.
    Deep,
}

/// A store as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// The store's file.
    pub path: PathBuf,
    /// A server has it open.
    pub in_use: bool,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of its write-ahead log. While a server runs it is at most about 64 MiB once a burst is over;
    /// without a server it is what a crash left, and the next start reads it.
    pub log_bytes: u64,
    /// The last step of the schema that was taken; 0: none.
    pub schema: i64,
    /// The last step that this build knows. A lower [`schema`](Self::schema) is brought up at the next start.
    pub known_schema: i64,
    /// Whether commits go through a write-ahead log, as the server asks for.
    pub has_wal: bool,
    /// What is wrong with it, in SQLite's words; empty: nothing was found.
    pub damage: Vec<String>,
    /// Agents that may come in; 0 where the schema is an older one.
    pub agents: u64,
    /// The latest time that a row has: an event's, or a process server's heartbeat.
    pub newest: Option<UnixMs>,
}

/// Looks at the store that `url` names (see [`super::Store::open`]); `None` where there is none yet.
///
/// The lock of the store is tried, shared with others who look, for some microseconds: a server that
/// starts in just these is refused as by another server. Nothing else of it is felt, but that a running
/// server's log grows until a long look is over.
/// Beside a log without its index (`-shm`), as a copy may leave it, SQLite makes the index anew, as any reader
/// would; the log stays as it is.
///
/// # Errors
/// [`OpenError`]: it cannot be read, is no store, or was written by a build that this one does not follow.
pub async fn inspect(
    url: &str,
    data_dir: &Path,
    depth: Depth,
) -> Result<Option<Inspection>, OpenError> {
    let path = sqlite::file_of(url, data_dir)?;
    let before = Files::of(&path)?;
    if before.bytes + before.log_bytes == 0 {
        return Ok(None);
    }
    let mut looked = look(&path, &before, depth).await;
    if before.are_still() {
        let after = Files::of(&path)?;
        if after != before {
            // Somebody began to write under a reader that takes no locks.
            looked = look(&path, &after, depth).await;
        }
    }
    match looked? {
        Looked::HalfCopied => Err(half_copied(url)),
        Looked::Store(found) => Ok(Some(found)),
    }
}

/// What is in a file.
enum Looked {
    Store(Inspection),
    /// A copy into it is not through.
    HalfCopied,
}

/// The files of a store, from outside.
#[derive(PartialEq, Eq)]
struct Files {
    in_use: bool,
    bytes: u64,
    log_bytes: u64,
    written: Option<SystemTime>,
}

impl Files {
    fn of(store: &Path) -> Result<Self, OpenError> {
        let mut log = store.as_os_str().to_owned();
        log.push("-wal");
        let (bytes, written) = size_of(store)?;
        let (log_bytes, _) = size_of(Path::new(&log))?;
        Ok(Self {
            in_use: is_locked(&store.with_extension("lock"))?,
            bytes,
            log_bytes,
            written,
        })
    }

    /// Nobody writes, and the file alone is the store.
    fn are_still(&self) -> bool {
        !self.in_use && self.log_bytes == 0
    }
}

/// Bytes of a file and when it was written; 0 bytes where there is none.
fn size_of(path: &Path) -> Result<(u64, Option<SystemTime>), OpenError> {
    match std::fs::metadata(path) {
        Ok(file) => Ok((file.len(), file.modified().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((0, None)),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn is_locked(path: &Path) -> Result<bool, OpenError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(unreadable(path, error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(unreadable(path, error)),
    }
}

fn unreadable(path: &Path, error: io::Error) -> OpenError {
    OpenError::Sql {
        path: path.to_owned(),
        source: sqlx::Error::Io(error),
    }
}

async fn look(path: &Path, files: &Files, depth: Depth) -> Result<Looked, OpenError> {
    let fail = |source| sqlite::describe(path, source);
    let still = files.are_still();
    // Before SQLite has the file open: closing it would let go of SQLite's own locks on it.
    let written_for_wal = still.then(|| is_written_for_wal(path)).transpose()?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .immutable(still)
        .busy_timeout(sqlite::BUSY_TIMEOUT)
        .disable_statement_logging();
    let mut db = options.connect().await.map_err(fail)?;
    let has_wal = match written_for_wal {
        Some(written) => written,
        None => {
            let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
                .fetch_one(&mut db)
                .await
                .map_err(fail)?;
            journal == "wal"
        }
    };
    let damage = damage(&mut db, depth).await.map_err(fail)?;
    let known_schema = sqlite::known_schema();
    let schema = schema(&mut db, path).await?;
    let is_known = schema == known_schema;
    let half = is_known && is_unfinished(&mut db).await.map_err(fail)?;
    let (agents, newest) = match is_known && !half {
        true => figures(&mut db).await.map_err(fail)?,
        false => (0, None),
    };
    db.close().await.map_err(fail)?;
    // Damage is the worse news: the copy cannot go on then.
    if half && damage.is_empty() {
        return Ok(Looked::HalfCopied);
    }
    Ok(Looked::Store(Inspection {
        path: path.to_owned(),
        in_use: files.in_use,
        bytes: files.bytes,
        log_bytes: files.log_bytes,
        schema,
        known_schema,
        has_wal,
        damage,
        agents,
        newest,
    }))
}

/// As [`copy::is_unfinished`], of a file that is only read.
async fn is_unfinished(db: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let marks: i64 = sqlx::query_scalar("SELECT count(*) FROM worker_duty WHERE name = $1")
        .bind(copy::MARK)
        .fetch_one(db)
        .await?;
    Ok(marks > 0)
}

/// What the file says of itself; an empty one says nothing against it.
fn is_written_for_wal(path: &Path) -> Result<bool, OpenError> {
    let mut header = [0; FORMAT_AT + FORMAT_OF_WAL.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match read {
        Ok(()) => Ok(header[FORMAT_AT..] == FORMAT_OF_WAL),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
        Err(error) => Err(unreadable(path, error)),
    }
}

async fn damage(db: &mut SqliteConnection, depth: Depth) -> Result<Vec<String>, sqlx::Error> {
    let check = match depth {
        Depth::Quick => format!("PRAGMA quick_check({DAMAGE_MAX})"),
        Depth::Deep => format!("PRAGMA integrity_check({DAMAGE_MAX})"),
    };
    let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(check))
        .fetch_all(&mut *db)
        .await?;
    let mut damage: Vec<String> = found.into_iter().filter(|line| line != "ok").collect();
    if depth == Depth::Deep {
        let lost = sqlx::query(
            "SELECT \"table\", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2",
        )
        .fetch_all(&mut *db)
        .await?;
        for row in lost {
            let (table, parent): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let rows: i64 = row.try_get(2)?;
            damage.push(format!(
                "rows of {table} that refer to nothing in {parent}: {rows}"
            ));
        }
    }
    Ok(damage)
}

/// The last step of the schema that was taken.
async fn schema(db: &mut SqliteConnection, path: &Path) -> Result<i64, OpenError> {
    let fail = |source| sqlite::describe(path, source);
    let begun: bool =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
            .fetch_one(&mut *db)
            .await
            .map_err(fail)?;
    if !begun {
        return Ok(0);
    }
    let steps: Vec<(i64, bool, Vec<u8>)> =
        sqlx::query_as("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version")
            .fetch_all(&mut *db)
            .await
            .map_err(fail)?;
    for (version, done, checksum) in &steps {
        sqlite::check_step(path, *version, *done, checksum)?;
    }
    Ok(steps.last().map_or(0, |(version, _, _)| *version))
}

/// Agents that may come in, and the latest time that a row has.
async fn figures(db: &mut SqliteConnection) -> Result<(u64, Option<UnixMs>), sqlx::Error> {
    let agents: i64 = sqlx::query_scalar("SELECT count(*) FROM agent WHERE revoked_at IS NULL")
        .fetch_one(&mut *db)
        .await?;
    let newest: Option<i64> = sqlx::query_scalar(
        "SELECT max(at) FROM (SELECT at FROM process_event WHERE seq = (SELECT max(seq) FROM process_event)
                              UNION ALL SELECT beat_at FROM worker)",
    )
    .fetch_one(&mut *db)
    .await?;
    Ok((from_sql(agents), newest.map(UnixMs::from_sql)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Store, StoreError, sql};
    use super::*;

    /// A store with one event at `at`.
    async fn store(directory: &Path, at: i64) -> Store {
        let store = Store::open("sqlite:", directory).await.unwrap();
        let added = store.write(move |db| {
            Box::pin(async move {
                sql::query("INSERT INTO process_event (at, type, data) VALUES ($1, 'x', 'null')")
                    .bind(at)
                    .execute(&mut *db)
                    .await?;
                Ok::<_, StoreError>(())
            })
        });
        added.await.unwrap();
        store
    }

    async fn quick(directory: &Path) -> Result<Option<Inspection>, OpenError> {
        inspect("sqlite:", directory, Depth::Quick).await
    }

    /// Does to a closed store what no server would.
    async fn spoil(directory: &Path, sql: &'static str) {
        let options = SqliteConnectOptions::new()
            .filename(directory.join("drover.db"))
            .foreign_keys(false);
        let mut db = options.connect().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
        db.close().await.unwrap();
    }

    /// Every file of a directory with its bytes.
    fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = std::fs::read_dir(directory).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect()
    }

    #[tokio::test]
    async fn where_there_is_no_store_none_is_made() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(quick(directory.path()).await.unwrap(), None);
        assert_eq!(files(directory.path()).len(), 0);
    }

    #[tokio::test]
    async fn a_closed_store_is_told_and_no_byte_of_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), 4711).await.close().await;
        let before = files(directory.path());
        let found = quick(directory.path()).await.unwrap().unwrap();
        assert_eq!(found.damage, Vec::<String>::new());
        assert_eq!(found.schema, found.known_schema);
        assert!(found.has_wal && !found.in_use && found.log_bytes == 0);
        assert_eq!(found.newest, Some(UnixMs(4711)));
        assert_eq!(files(directory.path()), before);
    }

    #[tokio::test]
    async fn a_store_in_use_is_read_beside_its_server_which_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let open = store(directory.path(), 1).await;
        let found = quick(directory.path()).await.unwrap().unwrap();
        assert!(found.in_use && found.has_wal && found.log_bytes > 0);
        assert_eq!(found.newest, Some(UnixMs(1)));
        let again = Store::open("sqlite:", directory.path()).await.err();
        assert!(matches!(again, Some(OpenError::Locked { .. })), "{again:?}");
        open.close().await;
        store(directory.path(), 2).await.close().await;
    }

    #[tokio::test]
    async fn what_a_crash_left_in_the_log_is_read_and_left_there() {
        let (directory, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = store(directory.path(), 4711).await;
        for name in ["drover.db", "drover.db-wal"] {
            std::fs::copy(directory.path().join(name), crashed.path().join(name)).unwrap();
        }
        open.close().await;
        let log = crashed.path().join("drover.db-wal");
        let before = std::fs::read(&log).unwrap();
        let found = quick(crashed.path()).await.unwrap().unwrap();
        assert!(!found.in_use && found.log_bytes > 0);
        assert_eq!(found.newest, Some(UnixMs(4711)));
        assert_eq!(std::fs::read(&log).unwrap(), before);
    }

    #[tokio::test]
    async fn a_damaged_page_is_found() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), 1).await.close().await;
        let file = directory.path().join("drover.db");
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 4096].fill(0xff);
        std::fs::write(&file, bytes).unwrap();
        match quick(directory.path()).await {
            Ok(Some(found)) => assert_ne!(found.damage, Vec::<String>::new()),
            Err(error) => assert!(matches!(error, OpenError::Corrupt { .. }), "{error}"),
            Ok(None) => panic!("there is a store"),
        }
    }

    #[tokio::test]
    async fn a_row_that_refers_to_nothing_is_found_by_the_deep_look_alone() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), 1).await.close().await;
        spoil(
            directory.path(),
            "INSERT INTO group_owner (group_id, epoch, lease_until) VALUES (x'01', 1, 0)",
        )
        .await;
        let found = quick(directory.path()).await.unwrap().unwrap();
        assert_eq!(found.damage, Vec::<String>::new());
        let deep = inspect("sqlite:", directory.path(), Depth::Deep).await;
        let damage = deep.unwrap().unwrap().damage;
        assert_eq!(
            damage,
            ["rows of group_owner that refer to nothing in agent_group: 1"]
        );
    }

    #[tokio::test]
    async fn an_older_schema_is_told_and_a_newer_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), 1).await.close().await;
        let last = "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)";
        spoil(directory.path(), last).await;
        let found = quick(directory.path()).await.unwrap().unwrap();
        assert_eq!(found.schema, found.known_schema - 1);
        spoil(
            directory.path(),
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9000, 'of the future', 1, x'00', 0)",
        )
        .await;
        let newer = quick(directory.path()).await.unwrap_err();
        assert!(matches!(newer, OpenError::NewerSchema { found: 9000, .. }));
    }

    #[tokio::test]
    async fn half_a_copy_is_refused_as_an_opening_would() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), 1).await.close().await;
        spoil(
            directory.path(),
            "INSERT INTO worker_duty (name, epoch, until) VALUES ('copy', 0, 0)",
        )
        .await;
        let refused = quick(directory.path()).await.unwrap_err();
        assert!(matches!(refused, OpenError::HalfCopied { .. }), "{refused}");
    }

    #[tokio::test]
    async fn a_store_without_a_log_is_told_from_one_with() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), 1).await.close().await;
        spoil(directory.path(), "PRAGMA journal_mode = DELETE").await;
        assert!(!quick(directory.path()).await.unwrap().unwrap().has_wal);
    }
}
