//! Copies a store into another one, of whatever backend.
//!
//! ```text
//!   from, which nobody uses ─▶ table by table, by key, a page at a time ─▶ to, which nobody uses
//!   then both are read once more: rows and their checksums must be the same
//! ```
//!
//! Nothing of the source changes, its schema neither: it must be this build's. While the copy is not through, the
//! target holds a mark and is no store: opening it says so. A copy that was interrupted goes on behind the last row that
//! the target has of each table.

mod tables;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use self::tables::{TABLES, Table};
use super::server_clock::database_time;
use super::sql::{self, Connection, Dialect, Row, Session, Texts, Value};
use super::workers::BEAT_EXPIRY;
use super::{Depth, OpenError, StoreError, inspect, remote, sqlite, to_sql};
use crate::clock;

/// Rows that are read at once.
const PAGE: u32 = 500;
/// Bytes that are written at once: far below what a server takes.
const WRITE_BYTES: usize = 2 << 20;
/// So long after its client has closed it a connection may still be counted.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Connections of ours to this database, but for the one that asks.
const OTHERS_ON_POSTGRES: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
     AND application_name = 'drover' AND pid <> pg_backend_pid()";
/// The same; whose they are is not told there.
const OTHERS_ON_MYSQL: &str =
    "SELECT count(*) FROM information_schema.processlist WHERE db = database()
     AND id <> connection_id()";
/// The duty that marks a target that is not whole.
pub(super) const MARK: &str = "copy";

/// Why a store was not copied. The source is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the two cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Both are the same URL.
    #[error("the store to copy into is the one that is copied; name an empty one")]
    OntoItself,
    /// The source is not there, or nothing of a store is in it.
    #[error("there is no store at {place}; name the one that is to be copied")]
    NoStore {
        /// Its file, or its URL without the password.
        place: String,
    },
    /// The source has the tables of a store, and no deployment.
    #[error(
        "the store at {place} is empty: no server has ever started on it; name the one that is to be copied"
    )]
    NeverUsed {
        /// Its file, or its URL without the password.
        place: String,
    },
    /// The source would have to be changed first.
    #[error(
        "{place} has schema version {found}, this build's is {known}, and a copy changes nothing of its source; bring it up first, or copy with the drover that ran it"
    )]
    OlderSchema {
        /// Its file, or its URL without the password.
        place: String,
        /// What the source has.
        found: i64,
        /// What this build has.
        known: i64,
    },
    /// Servers use it.
    #[error(
        "{servers} process servers use {url}; stop all servers on it, wait 10 s, and copy again"
    )]
    Live {
        /// Which store.
        url: String,
        /// How many.
        servers: u64,
    },
    /// Somebody has it open: an API server has no heartbeat, nor has one whose process servers are dead.
    #[error(
        "{connections} connections to {url} are open: stop all servers on it, and close whatever else has it open, then copy again"
    )]
    InUse {
        /// Which store.
        url: String,
        /// How many, beside the copy's own.
        connections: u64,
    },
    /// The target holds something else.
    #[error(
        "{place} holds a store already; copy into an empty database, or a file that is not there"
    )]
    NotEmpty {
        /// The target: its file, or its URL without the password.
        place: String,
    },
    /// The target is not what the source is.
    #[error(
        "{table} of the copy has {found} rows that differ from the {expected} of the source; empty the target and copy again"
    )]
    Differs {
        /// Which table.
        table: &'static str,
        /// Rows of the source.
        expected: u64,
        /// Rows of the target.
        found: u64,
    },
    /// One of the two failed; run it again, and it goes on.
    #[error("the copy was interrupted: {0}; run the same command again, and it goes on")]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CopyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// How far a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyStep {
    /// So many rows of this table are in the target.
    Copied {
        /// Which table.
        table: &'static str,
        /// Rows, of this run.
        rows: u64,
    },
    /// This table was read on both sides and is the same.
    Verified {
        /// Which table.
        table: &'static str,
        /// Rows.
        rows: u64,
    },
}

/// Copies the store that `from` names into the one that `to` names (see [`super::Store::open`] for both), and
/// verifies that it is the same. `told` hears of every step. Answers how many rows there are.
///
/// # Errors
/// [`CopyError`]. The target is no store until a copy is through; where the source is refused it is not even made.
pub async fn copy(
    from: &str,
    to: &str,
    data_dir: &Path,
    told: impl FnMut(CopyStep),
) -> Result<u64, CopyError> {
    if from == to {
        return Err(CopyError::OntoItself);
    }
    let mut source = Side::source(from, data_dir).await?;
    let copied = match Side::target(to, data_dir).await {
        Err(error) => Err(error),
        Ok(mut target) => {
            let copied = copy_all(&mut source, &mut target, told).await;
            // Whatever came of it: a log that is left would be taken for that of the next file of its name.
            target.close().await;
            copied
        }
    };
    source.close().await;
    copied
}

async fn copy_all(
    source: &mut Side,
    target: &mut Side,
    mut told: impl FnMut(CopyStep),
) -> Result<u64, CopyError> {
    target.mark().await?;
    for table in TABLES {
        let rows = copy_table(source, target, table).await?;
        told(CopyStep::Copied {
            table: table.name,
            rows,
        });
    }
    let mut all = 0;
    for table in TABLES {
        let rows = verify(source, target, table).await?;
        all += rows;
        told(CopyStep::Verified {
            table: table.name,
            rows,
        });
    }
    target.finish().await?;
    Ok(all)
}

/// Whether a copy into this store is not through.
pub(super) async fn is_unfinished(db: &mut Connection) -> Result<bool, sqlx::Error> {
    let marks: u32 = sql::query_scalar("SELECT count(*) FROM worker_duty WHERE name = $1")
        .bind(MARK)
        .fetch_one(db)
        .await?;
    Ok(marks > 0)
}

/// Where a store is, for people.
fn place_of(url: &str, data_dir: &Path) -> Result<String, OpenError> {
    Ok(match remote::is_remote(url) {
        true => remote::shown(url),
        false => sqlite::file_of(url, data_dir)?.display().to_string(),
    })
}

/// Refuses what is no store of this build's schema, and makes and changes nothing.
async fn look(url: &str, data_dir: &Path) -> Result<(), CopyError> {
    let place = place_of(url, data_dir)?;
    let (found, known) = match Box::pin(remote::inspect_server(url)).await? {
        Some(server) => (server.schema, server.known_schema),
        None => match Box::pin(inspect(url, data_dir, Depth::Quick)).await? {
            None => (0, 0),
            Some(file) => match (file.path, file.damage.into_iter().next()) {
                (path, Some(detail)) => return Err(OpenError::Corrupt { path, detail }.into()),
                (_, None) => (file.schema, file.known_schema),
            },
        },
    };
    match found {
        0 => Err(CopyError::NoStore { place }),
        // A newer one was refused by the look itself.
        _ if found < known => Err(CopyError::OlderSchema {
            place,
            found,
            known,
        }),
        _ => Ok(()),
    }
}

/// One of the two stores.
struct Side {
    db: Connection,
    /// For people.
    place: String,
    dialect: Dialect,
    /// Of the embedded store: nobody else opens it meanwhile.
    _lock: Option<File>,
}

impl Side {
    /// What is to be copied: a deployment's store that nobody uses. It stays as it is.
    async fn source(url: &str, data_dir: &Path) -> Result<Self, CopyError> {
        look(url, data_dir).await?;
        let mut side = Self::open(url, data_dir, true).await?;
        // The first start makes some, and they cannot be removed.
        let groups: i64 = sql::query_scalar("SELECT count(*) FROM agent_group")
            .fetch_one(&mut side.db)
            .await?;
        if groups > 0 {
            return Ok(side);
        }
        let place = side.place.clone();
        side.close().await;
        Err(CopyError::NeverUsed { place })
    }

    /// Where it is to go: made if it is not there, and brought up to this build's schema. Nobody uses it.
    async fn target(url: &str, data_dir: &Path) -> Result<Self, CopyError> {
        Self::open(url, data_dir, false).await
    }

    async fn open(url: &str, data_dir: &Path, as_it_is: bool) -> Result<Self, CopyError> {
        let (db, dialect, lock) = if remote::is_remote(url) {
            // Of a source there is nothing to bring up: its schema was looked at.
            let (session, dialect) = remote::open_alone(url).await?;
            let db = Connection::new(session, Texts::new(dialect));
            (db, dialect, None)
        } else if as_it_is {
            let (db, lock) = sqlite::open_as_it_is(url, data_dir).await?;
            (db, Dialect::Sqlite, Some(lock))
        } else {
            let opened = sqlite::open(url, data_dir).await?;
            opened.readers.close().await;
            (opened.writer, Dialect::Sqlite, Some(opened.lock))
        };
        let mut side = Self {
            db,
            place: place_of(url, data_dir)?,
            dialect,
            _lock: lock,
        };
        side.refuse_live().await?;
        Ok(side)
    }

    async fn refuse_live(&mut self) -> Result<(), CopyError> {
        // Of a file, the lock has said so.
        if self.dialect == Dialect::Sqlite {
            return Ok(());
        }
        let now = database_time(&mut self.db).await?;
        let servers: i64 = sql::query_scalar("SELECT count(*) FROM worker WHERE beat_at > $1")
            .bind(now.minus(BEAT_EXPIRY).to_sql())
            .fetch_one(&mut self.db)
            .await?;
        if servers > 0 {
            return Err(CopyError::Live {
                url: self.place.clone(),
                servers: super::from_sql(servers),
            });
        }
        self.refuse_open().await
    }

    /// Every process that may write has a connection for that all the time.
    async fn refuse_open(&mut self) -> Result<(), CopyError> {
        let began = clock::monotonic();
        loop {
            let connections: i64 = sql::query_scalar(match self.dialect {
                Dialect::Postgres => OTHERS_ON_POSTGRES,
                _ => OTHERS_ON_MYSQL,
            })
            .fetch_one(&mut self.db)
            .await?;
            if connections == 0 {
                return Ok(());
            }
            // A server takes a moment to end one that was closed.
            if began.elapsed() > CLOSED_WITHIN {
                return Err(CopyError::InUse {
                    url: self.place.clone(),
                    connections: super::from_sql(connections),
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Marks an empty target; of one that is marked already the copy goes on.
    async fn mark(&mut self) -> Result<(), CopyError> {
        if !is_unfinished(&mut self.db).await? {
            for table in TABLES.iter().filter(|table| table.name != "worker_duty") {
                if last_key(&mut self.db, table).await?.is_some() {
                    return Err(CopyError::NotEmpty {
                        place: self.place.clone(),
                    });
                }
            }
            sql::query("INSERT INTO worker_duty (name, epoch, until) VALUES ($1, 0, 0)")
                .bind(MARK)
                .execute(&mut self.db)
                .await?;
        }
        // What the schema has made by itself.
        sql::query("DELETE FROM worker_duty WHERE name <> $1")
            .bind(MARK)
            .execute(&mut self.db)
            .await?;
        Ok(())
    }

    /// From now on it is a store.
    async fn finish(&mut self) -> Result<(), CopyError> {
        if self.dialect == Dialect::Postgres {
            sql::query(
                "SELECT setval(pg_get_serial_sequence('process_event', 'seq'),
                    coalesce((SELECT max(seq) FROM process_event), 0) + 1, false)",
            )
            .fetch_all(&mut self.db)
            .await?;
        }
        sql::query("DELETE FROM worker_duty WHERE name = $1")
            .bind(MARK)
            .execute(&mut self.db)
            .await?;
        Ok(())
    }

    async fn close(self) {
        match self.db.into_session() {
            Session::Sqlite(db) => sqlite::close(db).await,
            session => session.close().await,
        }
    }
}

/// A value of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Cell {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Cell {
    fn read(row: &Row, at: usize, kind: &str) -> Result<Self, sqlx::Error> {
        Ok(match kind {
            "int" => row
                .try_get::<Option<i64>>(at)?
                .map_or(Self::Null, Self::Int),
            "hex" => row
                .try_get::<Option<Vec<u8>>>(at)?
                .map_or(Self::Null, Self::Bytes),
            _ => row
                .try_get::<Option<String>>(at)?
                .map_or(Self::Null, Self::Text),
        })
    }

    fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Int(value) => json!(value),
            Self::Text(text) => json!(text),
            Self::Bytes(bytes) => json!(hex(bytes)),
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            // Keys are never null.
            Self::Null => Value::from(None::<i64>),
            Self::Int(value) => Value::from(*value),
            Self::Text(text) => Value::from(text),
            Self::Bytes(bytes) => Value::from(bytes),
        }
    }

    /// Adds itself to a checksum; `into`: as the target has it.
    fn add_to(&self, sum: &mut Sha256, into: Dialect) {
        let (tag, bytes) = match self {
            Self::Null => (0_u8, Vec::new()),
            Self::Int(value) => (1, value.to_be_bytes().to_vec()),
            // PostgreSQL has no text with the character 0.
            Self::Text(text) if into == Dialect::Postgres => {
                (2, text.replace('\0', "\u{fffd}").into_bytes())
            }
            Self::Text(text) => (2, text.clone().into_bytes()),
            Self::Bytes(bytes) => (3, bytes.clone()),
        };
        sum.update([tag]);
        sum.update(to_sql(bytes.len() as u64).to_be_bytes());
        sum.update(&bytes);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One page of a table, behind `key`.
async fn page(
    db: &mut Connection,
    table: &Table,
    key: Option<&[Cell]>,
    limit: u32,
) -> Result<Vec<Vec<Cell>>, sqlx::Error> {
    let mut query = sql::query(table.page(key.is_some()));
    match key {
        Some(key) => {
            for cell in key {
                query = query.bind(cell.value());
            }
        }
        None => {
            for _ in 0..table.keys {
                query = query.bind(None::<i64>);
            }
        }
    }
    let rows = query.bind(limit).fetch_all(db).await?;
    let rows = rows.iter().map(|row| {
        let cells = table.columns().enumerate();
        cells
            .map(|(at, (_, kind))| Cell::read(row, at, kind))
            .collect()
    });
    rows.collect()
}

/// The last key that a table has.
async fn last_key(db: &mut Connection, table: &Table) -> Result<Option<Vec<Cell>>, sqlx::Error> {
    let key = table.names(table.keys);
    let down = key.replace(',', " DESC,");
    let last = format!(
        "SELECT {key} FROM {} ORDER BY {down} DESC LIMIT 1",
        table.name
    );
    let row = sql::query(last).fetch_optional(db).await?;
    let key = row.map(|row| {
        let columns = table.columns().take(table.keys).enumerate();
        columns
            .map(|(at, (_, kind))| Cell::read(&row, at, kind))
            .collect()
    });
    key.transpose()
}

async fn copy_table(source: &mut Side, target: &mut Side, table: &Table) -> Result<u64, CopyError> {
    let mut key = match table.name {
        // The mark would be taken for its last row.
        "worker_duty" => None,
        _ => last_key(&mut target.db, table).await?,
    };
    let insert = table.insert();
    let mut copied = 0;
    loop {
        let rows = page(&mut source.db, table, key.as_deref(), PAGE).await?;
        let Some(last) = rows.last() else {
            return Ok(copied);
        };
        key = last.get(..table.keys).map(<[Cell]>::to_vec);
        copied += rows.len() as u64;
        let (mut list, mut bytes) = (Vec::new(), 0);
        for row in rows {
            let row = Json::Array(row.iter().map(Cell::to_json).collect()).to_string();
            bytes += row.len();
            list.push(row);
            if bytes >= WRITE_BYTES {
                write(&mut target.db, &insert, &mut list).await?;
                bytes = 0;
            }
        }
        write(&mut target.db, &insert, &mut list).await?;
    }
}

/// Writes rows, and empties their list.
async fn write(
    db: &mut Connection,
    insert: &str,
    rows: &mut Vec<String>,
) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let list = format!("[{}]", rows.join(","));
    rows.clear();
    sql::query(insert).bind(list).execute(db).await?;
    Ok(())
}

/// Reads a table on both sides; how many rows it has.
async fn verify(source: &mut Side, target: &mut Side, table: &Table) -> Result<u64, CopyError> {
    let into = target.dialect;
    let (expected, sum) = checksum(&mut source.db, table, into).await?;
    let (found, copy) = checksum(&mut target.db, table, into).await?;
    if (expected, sum) == (found, copy) {
        return Ok(expected);
    }
    Err(CopyError::Differs {
        table: table.name,
        expected,
        found,
    })
}

async fn checksum(
    db: &mut Connection,
    table: &Table,
    into: Dialect,
) -> Result<(u64, [u8; 32]), sqlx::Error> {
    let (mut sum, mut rows, mut key) = (Sha256::new(), 0, None::<Vec<Cell>>);
    loop {
        let found = page(db, table, key.as_deref(), PAGE).await?;
        let Some(last) = found.last() else {
            return Ok((rows, sum.finalize().into()));
        };
        key = last.get(..table.keys).map(<[Cell]>::to_vec);
        rows += found.len() as u64;
        for cell in found.iter().flatten() {
            cell.add_to(&mut sum, into);
        }
    }
}

#[cfg(test)]
pub(in crate::store) mod tests;
