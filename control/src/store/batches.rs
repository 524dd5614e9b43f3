//! Batches: their rows, and the processes that they come to.
//!
//! Ids of processes sort by time, so a batch is a walk over a range of ids that was fixed when it
//! was made. The walk goes in steps of bounded reading, whatever the filter: each begins where the
//! one before ended, and the place is stored with what was done.

mod matching;
#[cfg(test)]
pub(in crate::store) mod tests;

use std::collections::BTreeSet;

use protocol::ids::ProcessId;
use serde_json::json;
use uuid::Uuid;

use super::processes::Actor;
use super::queries::{self, ProcessRecord};
use super::{Connection, Store, StoreError, audit, from_sql, id_bytes, to_sql};
use crate::api::model::batches::{BatchAction, BatchFilter, BatchState};
use crate::clock::UnixMs;
use crate::store::sql;

/// Batches that may run at once.
pub const RUNNING_MAX: u32 = 16;
/// Batches that are kept; the oldest that have ended go first.
pub const KEPT_MAX: u32 = 1000;

/// A batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchRow {
    /// Which.
    pub id: Uuid,
    /// What it does.
    pub action: BatchAction,
    /// Where a replay goes on, from 0; `None`: at the step at hand.
    pub step: Option<u16>,
    /// To which processes, as the API shows it.
    pub filter: BatchFilter,
    /// How far it is.
    pub state: BatchState,
    /// Processes up to this id are behind it.
    pub cursor: ProcessId,
    /// The last id that it looks at.
    pub last: ProcessId,
    /// Processes at most.
    pub max: u32,
    /// Processes a second.
    pub rate: u32,
    /// Processes that matched when it was made.
    pub matched: u64,
    /// Processes that it has dealt with.
    pub done: u64,
    /// Processes that it could not deal with.
    pub failed: u64,
    /// Why the last of these was not dealt with.
    pub trouble: Option<String>,
    /// Why, for people.
    pub reason: String,
    /// Who made it.
    pub by: String,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it ended.
    pub finished_at: Option<UnixMs>,
}

/// A batch to be made. The caller has checked what its fields may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewBatch {
    /// What it does.
    pub action: BatchAction,
    /// Where a replay goes on, from 0; `None`: at the step at hand.
    pub step: Option<u16>,
    /// To which processes; names are resolved to ids.
    pub filter: BatchFilter,
    /// Where it walks.
    pub range: Range,
    /// Processes at most.
    pub max: u32,
    /// Processes a second.
    pub rate: u32,
    /// Processes that match now.
    pub matched: u64,
    /// Why, for people.
    pub reason: String,
    /// Who makes it.
    pub by: String,
}

/// Why a batch was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateBatchError {
    /// There are [`RUNNING_MAX`] that run.
    #[error("{RUNNING_MAX} batches are running already; wait for one of them, or cancel one")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Processes with ids over `after` up to `last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Behind this one.
    pub after: ProcessId,
    /// Up to this one.
    pub last: ProcessId,
}

pub use matching::Matching;

/// One step of a walk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Processes that match, oldest first.
    pub processes: Vec<ProcessId>,
    /// Where the next step begins; `None`: the range is through.
    pub next: Option<ProcessId>,
}

/// What a batch has done since the last time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Processes up to this id are behind it.
    pub cursor: ProcessId,
    /// Dealt with.
    pub done: u64,
    /// Not dealt with.
    pub failed: u64,
    /// Why the last of these was not.
    pub trouble: Option<String>,
    /// It is through.
    pub finished: bool,
}

const SELECT: &str = "
    SELECT id, action, step, filter, state, \"cursor\", last, max, rate, matched, done, failed,
           trouble, reason, \"by\", created_at, finished_at
    FROM batch";

impl Store {
    /// The newest process that there is.
    ///
    /// # Errors
    /// The store failed.
    pub async fn newest_process(&self) -> Result<Option<ProcessId>, StoreError> {
        let mut reader = self.reader().await?;
        let id: Option<Vec<u8>> =
            sql::query_scalar("SELECT id FROM process ORDER BY id DESC LIMIT 1")
                .fetch_optional(&mut reader)
                .await?;
        id.map(|id| Ok(ProcessId::from_bytes(id_bytes(&id)?)))
            .transpose()
    }

    /// One step of a walk over `range`: at most `limit` processes, and a bounded number of rows
    /// read.
    ///
    /// # Errors
    /// The store failed.
    pub async fn find_processes(
        &self,
        range: Range,
        matching: &Matching,
        limit: u32,
    ) -> Result<Found, StoreError> {
        let mut reader = self.reader().await?;
        matching::find(&mut reader, range, matching, limit).await
    }

    /// The named processes, by id; those that are not there are left out.
    ///
    /// # Errors
    /// The store failed.
    pub async fn processes_by_ids(
        &self,
        ids: Vec<ProcessId>,
    ) -> Result<Vec<ProcessRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let mut found = queries::by_ids(&mut reader, ids).await?;
        found.sort_by_key(|record| record.id);
        Ok(found)
    }

    /// Those of these processes whose history has an order of this actor with these very words.
    ///
    /// # Errors
    /// The store failed.
    pub async fn ordered_by(
        &self,
        processes: &[ProcessId],
        actor: Actor,
    ) -> Result<BTreeSet<ProcessId>, StoreError> {
        let ids = processes.iter().map(|id| id.0.simple().to_string());
        let ids: serde_json::Value = ids.collect();
        let mut reader = self.reader().await?;
        let rows: Vec<Vec<u8>> = sql::query_scalar(
            "SELECT e.process_id FROM EACH($1: id hex) AS j
             CROSS JOIN process_event AS e ON e.process_id = j.id
             WHERE e.type <> 'process.progress' AND json_text(e.data, 'actor') = $2
               AND json_text(e.data, 'reason') IS NOT DISTINCT FROM $3",
        )
        .bind(ids.to_string())
        .bind(actor.by)
        .bind(actor.reason)
        .fetch_all(&mut reader)
        .await?;
        let ids = rows.iter().map(|id| id_bytes(id));
        ids.map(|id| Ok(ProcessId::from_bytes(id?))).collect()
    }

    /// Makes a batch, and says so in the log.
    ///
    /// # Errors
    /// Too many run already, or the store failed.
    pub async fn create_batch(
        &self,
        new: NewBatch,
        now: UnixMs,
    ) -> Result<BatchRow, CreateBatchError> {
        self.write(move |db| Box::pin(create(db, new, now))).await
    }

    /// Batches, newest first, before `before`, at most `limit`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn batches_before(
        &self,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<BatchRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!("{SELECT} WHERE id < $1 ORDER BY id DESC LIMIT $2"))
            .bind(before.unwrap_or(Uuid::max()).into_bytes().to_vec())
            .bind(limit)
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// Batches that run, oldest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn running_batches(&self) -> Result<Vec<BatchRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!("{SELECT} WHERE finished_at IS NULL ORDER BY id"))
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// One batch.
    ///
    /// # Errors
    /// The store failed.
    pub async fn batch(&self, id: Uuid) -> Result<Option<BatchRow>, StoreError> {
        let mut reader = self.reader().await?;
        one(&mut reader, id).await
    }

    /// Notes what a batch has done; answers with the batch as it is then. One that was cancelled
    /// meanwhile stays so.
    ///
    /// # Errors
    /// The store failed; nothing was noted.
    pub async fn note_batch(
        &self,
        id: Uuid,
        progress: Progress,
        now: UnixMs,
    ) -> Result<Option<BatchRow>, StoreError> {
        self.write(move |db| Box::pin(note(db, id, progress, now)))
            .await
    }

    /// Stops a batch, and says so in the log; one that has ended stays as it is. `None`: there is no
    /// such.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn cancel_batch(
        &self,
        id: Uuid,
        now: UnixMs,
    ) -> Result<Option<BatchRow>, StoreError> {
        self.write(move |db| Box::pin(end(db, id, BatchState::Cancelled, now)))
            .await
    }
}

async fn create(
    db: &mut Connection,
    new: NewBatch,
    now: UnixMs,
) -> Result<BatchRow, CreateBatchError> {
    let id = Uuid::now_v7();
    let running: u32 = sql::query_scalar("SELECT count(*) FROM batch WHERE finished_at IS NULL")
        .fetch_one(db)
        .await
        .map_err(StoreError::from)?;
    if running >= RUNNING_MAX {
        return Err(CreateBatchError::TooMany);
    }
    sql::query(
        "INSERT INTO batch (id, action, filter, state, \"cursor\", last, max, rate, matched, done,
             failed, reason, \"by\", created_at, step)
         VALUES ($1, $2, $3, 'running', $4, $5, $6, $7, $8, 0, 0, $9, $10, $11, $12)",
    )
    .bind(id.into_bytes().to_vec())
    .bind(word(&new.action))
    .bind(json!(new.filter).to_string())
    .bind(new.range.after.to_bytes().to_vec())
    .bind(new.range.last.to_bytes().to_vec())
    .bind(new.max)
    .bind(new.rate)
    .bind(to_sql(new.matched))
    .bind(&new.reason)
    .bind(&new.by)
    .bind(now.to_sql())
    .bind(new.step)
    .execute(&mut *db)
    .await
    .map_err(StoreError::from)?;
    trim(db).await?;
    let data = json!({
        "batch": id,
        "action": new.action,
        "matched": new.matched,
        "by": new.by,
        "reason": new.reason,
    });
    audit::record(db, now, "batch.started", None, &data).await?;
    let made = one(db, id).await?;
    made.ok_or_else(|| StoreError::BadRow("a new batch is not there".to_owned()).into())
}

async fn trim(db: &mut Connection) -> Result<(), StoreError> {
    let last: Option<Vec<u8>> =
        sql::query_scalar("SELECT id FROM batch ORDER BY id DESC LIMIT 1 OFFSET $1")
            .bind(KEPT_MAX)
            .fetch_optional(db)
            .await?;
    if let Some(last) = last {
        sql::query("DELETE FROM batch WHERE finished_at IS NOT NULL AND id <= $1")
            .bind(last)
            .execute(db)
            .await?;
    }
    Ok(())
}

async fn note(
    db: &mut Connection,
    id: Uuid,
    progress: Progress,
    now: UnixMs,
) -> Result<Option<BatchRow>, StoreError> {
    // What was done counts, also when somebody stopped the batch in the meantime.
    sql::query(
        "UPDATE batch SET \"cursor\" = GREATEST(\"cursor\", $2), done = done + $3, failed = failed + $4,
             trouble = coalesce($5, trouble)
         WHERE id = $1",
    )
    .bind(id.into_bytes().to_vec())
    .bind(progress.cursor.to_bytes().to_vec())
    .bind(to_sql(progress.done))
    .bind(to_sql(progress.failed))
    .bind(&progress.trouble)
    .execute(&mut *db)
    .await?;
    if progress.finished {
        return end(db, id, BatchState::Finished, now).await;
    }
    one(db, id).await
}

async fn end(
    db: &mut Connection,
    id: Uuid,
    state: BatchState,
    now: UnixMs,
) -> Result<Option<BatchRow>, StoreError> {
    let ended = sql::query(
        "UPDATE batch SET state = $2, finished_at = $3 WHERE id = $1 AND finished_at IS NULL",
    )
    .bind(id.into_bytes().to_vec())
    .bind(word(&state))
    .bind(now.to_sql())
    .execute(&mut *db)
    .await?;
    let row = one(db, id).await?;
    if let Some(row) = &row
        && ended.rows_affected() == 1
    {
        let data = json!({
            "batch": id,
            "action": row.action,
            "state": state,
            "matched": row.matched,
            "done": row.done,
            "failed": row.failed,
            "trouble": row.trouble,
            "by": row.by,
            "reason": row.reason,
        });
        audit::record(db, now, "batch.finished", None, &data).await?;
    }
    Ok(row)
}

async fn one(db: &mut Connection, id: Uuid) -> Result<Option<BatchRow>, StoreError> {
    let row = sql::query(format!("{SELECT} WHERE id = $1"))
        .bind(id.into_bytes().to_vec())
        .fetch_optional(&mut *db)
        .await?;
    row.as_ref().map(read).transpose()
}

/// An enum of the API as its JSON has it.
fn word<T: serde::Serialize>(value: &T) -> String {
    match json!(value) {
        serde_json::Value::String(word) => word,
        other => other.to_string(),
    }
}

fn read(row: &sql::Row) -> Result<BatchRow, StoreError> {
    let bad = |error: serde_json::Error| StoreError::BadRow(format!("a batch: {error}"));
    let action: String = row.try_get("action")?;
    let state: String = row.try_get("state")?;
    let process = |column: &str| -> Result<ProcessId, StoreError> {
        Ok(ProcessId::from_bytes(id_bytes(row.try_get(column)?)?))
    };
    let finished: Option<i64> = row.try_get("finished_at")?;
    Ok(BatchRow {
        id: Uuid::from_bytes(id_bytes(row.try_get("id")?)?),
        action: serde_json::from_value(json!(action)).map_err(bad)?,
        step: row.try_get("step")?,
        filter: serde_json::from_str(row.try_get("filter")?).map_err(bad)?,
        state: serde_json::from_value(json!(state)).map_err(bad)?,
        cursor: process("cursor")?,
        last: process("last")?,
        max: row.try_get("max")?,
        rate: row.try_get("rate")?,
        matched: from_sql(row.try_get("matched")?),
        done: from_sql(row.try_get("done")?),
        failed: from_sql(row.try_get("failed")?),
        trouble: row.try_get("trouble")?,
        reason: row.try_get("reason")?,
        by: row.try_get("by")?,
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
        finished_at: finished.map(UnixMs::from_sql),
    })
}
