//! Pauses: who has said that something is not to be started, and why.

use serde_json::json;

use super::{Connection, Store, StoreError, from_sql};
use crate::clock::UnixMs;
pub use crate::process::pause::{PauseKey, PauseScope};
use crate::store::sql;

/// Pauses that one deployment holds at most: they are kept in memory and shown in one list.
pub const PAUSES_MAX: u32 = 10_000;

/// A pause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pause {
    /// What is paused.
    pub key: PauseKey,
    /// Who did it: an API token's name.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
    /// Since when.
    pub at: UnixMs,
}

/// All pauses at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PauseTable {
    /// Grows with every change: of two tables, the one with the larger number is newer.
    pub version: u64,
    /// By scope and key.
    pub pauses: Vec<Pause>,
}

/// What became of a new pause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PauseAdded {
    /// It is paused now.
    New(Pause),
    /// It was paused already; the earlier pause stays as it is.
    Already(Pause),
    /// [`PAUSES_MAX`] are there.
    Full,
}

impl Store {
    /// Every pause.
    ///
    /// # Errors
    /// The store failed.
    pub async fn pauses(&self) -> Result<PauseTable, StoreError> {
        let mut reader = self.reader().await?;
        table(&mut reader).await
    }

    /// The pause with this name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn pause(&self, key: &PauseKey) -> Result<Option<Pause>, StoreError> {
        let mut reader = self.reader().await?;
        one(&mut reader, key).await
    }

    /// Adds a pause, with an event that says so.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn add_pause(&self, pause: Pause) -> Result<PauseAdded, StoreError> {
        self.write_order(move |db| Box::pin(add(db, pause))).await
    }

    /// Adds pauses in one transaction, each with an event that says so; answers in their order.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn add_pauses(&self, pauses: Vec<Pause>) -> Result<Vec<PauseAdded>, StoreError> {
        self.write_order(move |db| {
            Box::pin(async move {
                let mut added = Vec::with_capacity(pauses.len());
                for pause in pauses {
                    added.push(add(db, pause).await?);
                }
                Ok(added)
            })
        })
        .await
    }

    /// Ends a pause, with an event that says so. False: there was none.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn remove_pause(
        &self,
        key: PauseKey,
        at: UnixMs,
        by: String,
        reason: String,
    ) -> Result<bool, StoreError> {
        self.write_order(move |db| {
            Box::pin(async move { remove(db, &key, (at, &by, &reason)).await })
        })
        .await
    }

    /// Ends pauses in one transaction, each with an event that says so. False: there was none.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn remove_pauses(
        &self,
        keys: Vec<PauseKey>,
        at: UnixMs,
        by: String,
        reason: String,
    ) -> Result<Vec<bool>, StoreError> {
        self.write_order(move |db| {
            Box::pin(async move {
                let mut removed = Vec::with_capacity(keys.len());
                for key in keys {
                    removed.push(remove(db, &key, (at, &by, &reason)).await?);
                }
                Ok(removed)
            })
        })
        .await
    }
}

async fn add(db: &mut Connection, pause: Pause) -> Result<PauseAdded, StoreError> {
    if let Some(earlier) = one(db, &pause.key).await? {
        return Ok(PauseAdded::Already(earlier));
    }
    let count: u32 = sql::query_scalar("SELECT count(*) FROM pause")
        .fetch_one(&mut *db)
        .await?;
    if count >= PAUSES_MAX {
        return Ok(PauseAdded::Full);
    }
    sql::query(
        "INSERT INTO pause (scope, \"key\", paused_by, reason, at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(pause.key.scope().as_str())
    .bind(pause.key.sql_key())
    .bind(&pause.by)
    .bind(&pause.reason)
    .bind(pause.at.to_sql())
    .execute(&mut *db)
    .await?;
    let order = (pause.at, pause.by.as_str(), pause.reason.as_str());
    record(db, "pause.added", &pause.key, order).await?;
    Ok(PauseAdded::New(pause))
}

async fn remove(
    db: &mut Connection,
    key: &PauseKey,
    order: (UnixMs, &str, &str),
) -> Result<bool, StoreError> {
    let gone = sql::query("DELETE FROM pause WHERE scope = $1 AND \"key\" = $2")
        .bind(key.scope().as_str())
        .bind(key.sql_key())
        .execute(&mut *db)
        .await?
        .rows_affected();
    if gone > 0 {
        record(db, "pause.removed", key, order).await?;
    }
    Ok(gone > 0)
}

/// Takes one step of forgetting pauses of processes that are over: of one that ended just as it was paused. All
/// others end with their process.
pub(super) async fn trim(db: &mut Connection, limit: u32) -> Result<(), StoreError> {
    let over: Vec<String> = sql::query_scalar(
        "SELECT q.\"key\" FROM pause AS q LEFT JOIN process AS p ON p.id = unhex(q.\"key\")
         WHERE q.scope = 'process' AND (p.id IS NULL OR p.finished_at IS NOT NULL) LIMIT $1",
    )
    .bind(limit)
    .fetch_all(&mut *db)
    .await?;
    if !over.is_empty() {
        sql::query("DELETE FROM pause WHERE scope = 'process' AND \"key\" IN EACH($1: id text)")
            .bind(json!(over).to_string())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn table(db: &mut Connection) -> Result<PauseTable, StoreError> {
    // One statement, one snapshot: the version belongs to these rows.
    let rows = sql::query(
        "SELECT v.seq, q.scope, q.\"key\", q.paused_by, q.reason, q.at
         FROM (SELECT coalesce(max(seq), 0) AS seq FROM process_event) AS v
         LEFT JOIN pause AS q ON true ORDER BY q.scope, q.\"key\"",
    )
    .fetch_all(&mut *db)
    .await?;
    let version = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    let pauses = rows
        .iter()
        .filter(|row| !matches!(row.try_get::<Option<&str>>("scope"), Ok(None)))
        .map(read)
        .collect::<Result<_, _>>()?;
    Ok(PauseTable {
        version: from_sql(version),
        pauses,
    })
}

async fn one(db: &mut Connection, key: &PauseKey) -> Result<Option<Pause>, StoreError> {
    let row = sql::query(
        "SELECT scope, \"key\", paused_by, reason, at FROM pause WHERE scope = $1 AND \"key\" = $2",
    )
    .bind(key.scope().as_str())
    .bind(key.sql_key())
    .fetch_optional(&mut *db)
    .await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &sql::Row) -> Result<Pause, StoreError> {
    let (scope, key): (&str, &str) = (row.try_get("scope")?, row.try_get("key")?);
    let key = PauseKey::from_sql(&format!("{scope}/{key}"))
        .ok_or_else(|| StoreError::BadRow(format!("a pause of {scope} `{key}`")))?;
    Ok(Pause {
        key,
        by: row.try_get("paused_by")?,
        reason: row.try_get("reason")?,
        at: UnixMs::from_sql(row.try_get("at")?),
    })
}

async fn record(
    db: &mut Connection,
    kind: &'static str,
    key: &PauseKey,
    (at, by, reason): (UnixMs, &str, &str),
) -> Result<(), StoreError> {
    let id = |scope| key.id().filter(|_| key.scope() == scope);
    let bytes = |scope| id(scope).map(|id| id.as_bytes().to_vec());
    let data = json!({
        "scope": key.scope().as_str(),
        "key": key.key(),
        "actor": by,
        "reason": reason,
    });
    sql::query(
        "INSERT INTO process_event (at, type, process_id, agent_id, data) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(at.to_sql())
    .bind(kind)
    .bind(bytes(PauseScope::Process))
    .bind(bytes(PauseScope::Agent))
    .bind(data.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}
