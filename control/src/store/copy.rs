//! Copies a store into another one, of whatever backend.
//!
//! ```text
//!   from, which nobody uses ─▶ table by table, by key, a page at a time ─▶ to, which nobody uses
//!   then both are read once more: rows and their checksums must be the same
//! ```
//!
//! While it is not through, the target holds a mark and is no store: opening it says so. A copy that was
//! interrupted goes on behind the last row that the target has of each table.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::server_clock::database_time;
use super::sql::{self, Connection, Dialect, Row, Session, Texts, Value};
use super::workers::BEAT_EXPIRY;
use super::{OpenError, StoreError, remote, sqlite, to_sql};
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

/// A table, in the order in which rows may refer to each other.
struct Table {
    name: &'static str,
    /// Its key is its first so many columns.
    keys: usize,
    /// Every column as [`sql`]'s lists have them.
    columns: &'static str,
}

/// Everything that a store holds, but for who writes at the moment.
const TABLES: &[Table] = &[
    Table {
        name: "agent_group",
        keys: 1,
        columns: "id hex, name text, slot int, automatic int, admitted int, created_at int",
    },
    Table {
        name: "group_owner",
        keys: 1,
        columns: "group_id hex, epoch int, owner_id hex, lease_until int",
    },
    Table {
        name: "agent",
        keys: 1,
        columns: "id hex, group_id hex, hostname text, software text, kinds text, labels text, created_at int, revoked_at int, last_seen_at int",
    },
    Table {
        name: "agent_key",
        keys: 1,
        columns: "key_hash hex, agent_id hex, pinned_at int",
    },
    Table {
        name: "join_token",
        keys: 1,
        columns: "id hex, secret_hash hex, group_id hex, agent_id hex, created_at int, expires_at int, used_at int, used_by hex, used_from text",
    },
    Table {
        name: "api_token",
        keys: 1,
        columns: "id hex, name text, role text, secret_hash hex, created_at int, expires_at int, last_used_at int",
    },
    Table {
        name: "process",
        keys: 1,
        columns: "id hex, kind text, tenant text, target_id hex, class int, resource text, state text, due_at int, ready_at int, deadline_at int, life int, attempt int, counted_fence int, max_attempts int, busy_count int, fence int, progress_next int, progress_rows int, progress_bytes int, progress_dropped int, created_at int, started_at int, finished_at int, schema_version int, steps int, undo int, step int, fate text, hold text, needs_attention int, unsettled int",
    },
    Table {
        name: "process_payload",
        keys: 1,
        columns: "process_id hex, input text, outcome text",
    },
    Table {
        name: "process_plan",
        keys: 2,
        columns: "process_id hex, step int, name text, operation text, input text, timeout int, class text, resources text, attempts int, finished_at int, outcome text",
    },
    Table {
        name: "process_ready",
        keys: 4,
        columns: "target_id hex, line text, ready_at int, process_id hex, deadline_at int, tenant text, kind text",
    },
    Table {
        name: "process_timer",
        keys: 2,
        columns: "due_at int, process_id hex",
    },
    Table {
        name: "process_lease",
        keys: 1,
        columns: "process_id hex, target_id hex, fence int, grant_id int, claimed_at int, worker_id hex",
    },
    Table {
        name: "process_resource",
        keys: 1,
        columns: "resource text, process_id hex",
    },
    Table {
        name: "process_blocked",
        keys: 2,
        columns: "resource text, process_id hex",
    },
    Table {
        name: "idempotency",
        keys: 2,
        columns: "scope text, idem_key text, fingerprint hex, process_id hex, expires_at int",
    },
    Table {
        name: "process_event",
        keys: 1,
        columns: "seq int, at int, type text, process_id hex, agent_id hex, data text",
    },
    Table {
        name: "pause",
        keys: 2,
        columns: "scope text, key text, paused_by text, reason text, at int",
    },
    Table {
        name: "limit_def",
        keys: 2,
        columns: "scope text, key text, min int, max int, pin int, weight int, set_by text, reason text, at int",
    },
    Table {
        name: "worker",
        keys: 1,
        columns: "id hex, instance hex, epoch int, started_at int, beat_at int",
    },
    Table {
        name: "worker_duty",
        keys: 1,
        columns: "name text, worker_id hex, epoch int, until int",
    },
    Table {
        name: "lock_lease",
        keys: 1,
        columns: "name text, holder hex, until int",
    },
    Table {
        name: "event_ring",
        keys: 1,
        columns: "topic text, rings int",
    },
    Table {
        name: "agent_server",
        keys: 1,
        columns: "run hex, link text, addresses text, shards int, renewed_at int, draining int, capacity int",
    },
    Table {
        name: "group_pin",
        keys: 1,
        columns: "group_id hex, link text, ends_at int",
    },
    Table {
        name: "webhook",
        keys: 1,
        columns: "id hex, url text, events text, agent_id hex, kind text, tenant text, description text, secret hex, old_secret hex, old_until int, disabled_at int, disabled_why text, generation int, cursor int, missed int, failing_since int, created_at int",
    },
    Table {
        name: "webhook_delivery",
        keys: 2,
        columns: "webhook_id hex, seq int, type text, body text, state text, attempts int, status int, took_ms int, error text, first_at int, last_at int, next_at int",
    },
    Table {
        name: "batch",
        keys: 1,
        columns: "id hex, action text, step int, filter text, state text, cursor hex, last hex, max int, rate int, matched int, done int, failed int, trouble text, reason text, by text, created_at int, finished_at int",
    },
];

/// Why a store was not copied. The source is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the two cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
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
    #[error("{url} holds a store already; copy into an empty database")]
    NotEmpty {
        /// The target.
        url: String,
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
/// [`CopyError`]. The target is no store until a copy is through.
pub async fn copy(
    from: &str,
    to: &str,
    data_dir: &Path,
    mut told: impl FnMut(CopyStep),
) -> Result<u64, CopyError> {
    let mut source = Side::open(from, data_dir).await?;
    let mut target = Side::open(to, data_dir).await?;
    source.refuse_live().await?;
    target.refuse_live().await?;
    target.mark().await?;
    for table in TABLES {
        let rows = copy_table(&mut source, &mut target, table).await?;
        told(CopyStep::Copied {
            table: table.name,
            rows,
        });
    }
    let mut all = 0;
    for table in TABLES {
        let rows = verify(&mut source, &mut target, table).await?;
        all += rows;
        told(CopyStep::Verified {
            table: table.name,
            rows,
        });
    }
    target.finish().await?;
    source.close().await;
    target.close().await;
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

/// One of the two stores.
struct Side {
    db: Connection,
    shown: String,
    dialect: Dialect,
    /// Of the embedded store: nobody else opens it meanwhile.
    _lock: Option<File>,
}

impl Side {
    async fn open(url: &str, data_dir: &Path) -> Result<Self, CopyError> {
        let (db, dialect, lock) = if remote::is_remote(url) {
            let (session, dialect) = remote::open_alone(url).await?;
            let db = Connection::new(session, Texts::new(dialect));
            (db, dialect, None)
        } else {
            let opened = sqlite::open(url, data_dir).await?;
            opened.readers.close().await;
            (opened.writer, Dialect::Sqlite, Some(opened.lock))
        };
        Ok(Self {
            db,
            shown: remote::shown(url),
            dialect,
            _lock: lock,
        })
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
                url: self.shown.clone(),
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
                    url: self.shown.clone(),
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
                        url: self.shown.clone(),
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

impl Table {
    /// Names and kinds.
    fn columns(&self) -> impl Iterator<Item = (&'static str, &'static str)> + Clone {
        let columns = self.columns.split(", ");
        columns.filter_map(|column| column.split_once(' '))
    }

    /// Names between commas, as SQL has them.
    fn names(&self, count: usize) -> String {
        let names = self.columns().take(count);
        let names: Vec<String> = names.map(|(name, _)| format!("\"{name}\"")).collect();
        names.join(", ")
    }

    fn all_names(&self) -> String {
        self.names(usize::MAX)
    }

    /// The rows behind a key, by key. Not a comparison of rows: not every backend looks that up by an index.
    fn page(&self, has_key: bool) -> String {
        let (all, key) = (self.all_names(), self.names(self.keys));
        let behind = match has_key {
            true => {
                let keys: Vec<&str> = self
                    .columns()
                    .take(self.keys)
                    .map(|(name, _)| name)
                    .collect();
                let first = keys.first().copied().unwrap_or_default();
                format!(" AND \"{first}\" >= $1 AND NOT ({})", up_to(&keys, 1))
            }
            false => String::new(),
        };
        // The mark of a copy is no row of the store.
        let ours = match self.name {
            "worker_duty" => "name <> 'copy'",
            _ => "1 = 1",
        };
        let limit = self.keys + 1;
        let name = self.name;
        format!("SELECT {all} FROM {name} WHERE {ours}{behind} ORDER BY {key} LIMIT ${limit}")
    }

    fn insert(&self) -> String {
        let (all, key) = (self.all_names(), self.names(self.keys));
        let values: Vec<String> = self
            .columns()
            .map(|(name, _)| format!("j.{name}"))
            .collect();
        format!(
            "INSERT INTO {} ({all}) SELECT {} FROM LIST($1: {}) AS j WHERE true ON CONFLICT ({key}) DO NOTHING",
            self.name,
            values.join(", "),
            self.columns
        )
    }
}

/// Whether a row's key is that of the page's beginning or before it, of those with the same first column.
fn up_to(keys: &[&str], at: usize) -> String {
    match keys {
        [] => "1 = 1".to_owned(),
        [last] => format!("\"{last}\" <= ${at}"),
        [first, rest @ ..] => {
            let rest = up_to(rest, at + 1);
            format!("\"{first}\" < ${at} OR \"{first}\" = ${at} AND ({rest})")
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
