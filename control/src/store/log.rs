//! The record of what happened: reading it in order, and trimming it.

use protocol::ids::{AgentId, ProcessId};
use serde_json::{Value, json};

use super::{Connection, Store, StoreError, from_sql, id_bytes, to_sql};
use crate::clock::UnixMs;
use crate::store::sql;

/// One thing that happened.
#[derive(Clone, PartialEq, Debug)]
pub struct EventRow {
    /// Its number: counts up, never repeats.
    pub seq: u64,
    /// When.
    pub at: UnixMs,
    /// What: `process.created`, `process.state`, `process.progress`, `process.finished`,
    /// `agent.up`, `agent.down`.
    pub kind: String,
    /// The process that it is about.
    pub process: Option<ProcessId>,
    /// The agent that it is about.
    pub agent: Option<AgentId>,
    /// What else is known.
    pub data: Value,
}

/// The numbers that the record holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EventSpan {
    /// The oldest; 0: nothing has happened yet.
    pub first: u64,
    /// The newest; 0: nothing has happened yet.
    pub last: u64,
}

/// How long records are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Events that are kept at most; the oldest go first.
    pub events: u64,
    /// Ended processes go after this, with their payload and history.
    pub processes: std::time::Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: 4_000_000,
            processes: std::time::Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

/// Rows that one trimming step deletes: it shares the writer with everybody else.
const TRIM_STEP: u32 = 500;

impl Store {
    /// Events after `after`, oldest first, at most `limit`; of one process if it is named.
    ///
    /// # Errors
    /// The store failed.
    pub async fn events_after(
        &self,
        after: u64,
        process: Option<ProcessId>,
        limit: u32,
    ) -> Result<Vec<EventRow>, StoreError> {
        let mut reader = self.reader().await?;
        let sql = match process {
            None => {
                "SELECT seq, at, type, process_id, agent_id, data FROM process_event
                 WHERE seq > $1 ORDER BY seq LIMIT $3"
            }
            Some(_) => {
                "SELECT seq, at, type, process_id, agent_id, data FROM process_event
                 WHERE process_id = $2 AND seq > $1 ORDER BY seq LIMIT $3"
            }
        };
        let rows = sql::query(sql)
            .bind(to_sql(after))
            .bind(process.map(|id| id.to_bytes().to_vec()))
            .bind(limit)
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// What happened to a process after `after`, oldest first, at most `limit`; without its progress.
    ///
    /// # Errors
    /// The store failed.
    pub async fn history(
        &self,
        process: ProcessId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT seq, at, type, process_id, agent_id, data FROM process_event
             WHERE process_id = $1 AND seq > $2 AND type <> 'process.progress'
             ORDER BY seq LIMIT $3",
        )
        .bind(process.to_bytes().to_vec())
        .bind(to_sql(after))
        .bind(limit)
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read).collect()
    }

    /// Which events there are.
    ///
    /// # Errors
    /// The store failed.
    pub async fn event_span(&self) -> Result<EventSpan, StoreError> {
        let mut reader = self.reader().await?;
        span(&mut reader).await
    }

    /// Takes one step of trimming; says whether there is more to do.
    ///
    /// # Errors
    /// The store failed; nothing was trimmed.
    pub async fn trim(&self, retention: Retention, now: UnixMs) -> Result<bool, StoreError> {
        self.write(move |db| Box::pin(trim(db, retention, now)))
            .await
    }
}

/// Two questions, each answered by one end of the key: asked as one, SQLite reads the whole table for it.
pub(super) const SPAN: &str =
    "SELECT (SELECT min(seq) FROM process_event), (SELECT max(seq) FROM process_event)";

async fn span(db: &mut Connection) -> Result<EventSpan, StoreError> {
    let row = sql::query(SPAN).fetch_one(&mut *db).await?;
    let number = |column: usize| -> Result<u64, StoreError> {
        Ok(from_sql(row.try_get::<Option<i64>>(column)?.unwrap_or(0)))
    };
    Ok(EventSpan {
        first: number(0)?,
        last: number(1)?,
    })
}

async fn trim(db: &mut Connection, retention: Retention, now: UnixMs) -> Result<bool, StoreError> {
    let EventSpan { first, last } = span(db).await?;
    // At least the newest stays: its number is what the next one counts from.
    let keep_from = last.saturating_sub(retention.events.max(1) - 1);
    let step_to = keep_from.min(first.saturating_add(TRIM_STEP.into()));
    sql::query("DELETE FROM process_event WHERE seq < $1")
        .bind(to_sql(step_to))
        .execute(&mut *db)
        .await?;
    let mut more = step_to < keep_from;
    more |= trim_keys(db, now).await?;
    more |= trim_processes(db, now.minus(retention.processes)).await?;
    super::pauses::trim(db, TRIM_STEP).await?;
    Ok(more)
}

/// Forgets keys whose time is over; says whether there may be more.
async fn trim_keys(db: &mut Connection, now: UnixMs) -> Result<bool, StoreError> {
    let rows = sql::query(
        "SELECT scope, idem_key FROM idempotency WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2",
    )
    .bind(now.to_sql())
    .bind(TRIM_STEP)
    .fetch_all(&mut *db)
    .await?;
    if rows.is_empty() {
        return Ok(false);
    }
    let keys = rows.iter().map(|row| {
        let (scope, key): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        Ok(json!([scope, key]))
    });
    let keys: Vec<Value> = keys.collect::<Result<_, StoreError>>()?;
    sql::query(
        "DELETE FROM idempotency WHERE (scope, idem_key) IN LIST($1: scope text, idem_key text)",
    )
    .bind(Value::Array(keys).to_string())
    .execute(&mut *db)
    .await?;
    Ok(is_full(&rows))
}

/// Forgets processes that ended at `until` or before; says whether there may be more.
async fn trim_processes(db: &mut Connection, until: UnixMs) -> Result<bool, StoreError> {
    let rows =
        sql::query("SELECT id FROM process WHERE finished_at <= $1 ORDER BY finished_at LIMIT $2")
            .bind(until.to_sql())
            .bind(TRIM_STEP)
            .fetch_all(&mut *db)
            .await?;
    if rows.is_empty() {
        return Ok(false);
    }
    let ids = rows.iter().map(|row| {
        let id = ProcessId::from_bytes(id_bytes(row.try_get(0)?)?);
        Ok(json!(id.0.simple().to_string()))
    });
    let ids: Vec<Value> = ids.collect::<Result<_, StoreError>>()?;
    sql::query("DELETE FROM process WHERE id IN EACH($1: id hex)")
        .bind(Value::Array(ids).to_string())
        .execute(&mut *db)
        .await?;
    Ok(is_full(&rows))
}

fn is_full(rows: &[sql::Row]) -> bool {
    rows.len() >= usize::try_from(TRIM_STEP).unwrap_or(usize::MAX)
}

pub(super) fn read(row: &sql::Row) -> Result<EventRow, StoreError> {
    let id = |column: &str| -> Result<Option<[u8; 16]>, StoreError> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        bytes.map(id_bytes).transpose()
    };
    Ok(EventRow {
        seq: from_sql(row.try_get("seq")?),
        at: UnixMs::from_sql(row.try_get("at")?),
        kind: row.try_get("type")?,
        process: id("process_id")?.map(ProcessId::from_bytes),
        agent: id("agent_id")?.map(AgentId::from_bytes),
        data: serde_json::from_str(row.try_get("data")?)
            .map_err(|error| StoreError::BadRow(format!("an event: {error}")))?,
    })
}
