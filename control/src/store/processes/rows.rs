//! Rows of `process` to values and back.

use protocol::ids::{AgentId, Fence, ProcessId};
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::clock::UnixMs;
use crate::process::{Class, Process, ProgressCount};
use crate::store::{StoreError, from_sql, id_bytes, to_sql};

/// Reads the rows whose ids are in $1 (a JSON array of hex).
pub(super) const LOAD: &str = "
    SELECT p.id, p.target_id, p.class, p.resource, p.state, p.due_at, p.ready_at, p.deadline_at,
           p.attempt, p.counted_fence, p.max_attempts, p.busy_count, p.fence, p.progress_next,
           p.progress_rows, p.progress_bytes, p.progress_dropped, p.created_at, p.started_at,
           p.finished_at
    FROM json_each($1) AS j CROSS JOIN process AS p ON p.id = unhex(j.value)";

/// A process as `LOAD` gives it.
pub(super) fn read(row: &SqliteRow) -> Result<Process, StoreError> {
    let state: &str = row.try_get("state")?;
    Ok(Process {
        id: ProcessId::from_bytes(id_bytes(row.try_get("id")?)?),
        target: AgentId::from_bytes(id_bytes(row.try_get("target_id")?)?),
        class: Class::from_sql(row.try_get("class")?),
        resource: row.try_get("resource")?,
        state: state
            .parse()
            .map_err(|error| StoreError::BadRow(format!("{error}")))?,
        due_at: moment(row, "due_at")?,
        ready_at: moment(row, "ready_at")?,
        deadline_at: UnixMs::from_sql(row.try_get("deadline_at")?),
        attempt: row.try_get("attempt")?,
        counted_fence: Fence(from_sql(row.try_get("counted_fence")?)),
        max_attempts: row.try_get("max_attempts")?,
        busy_count: row.try_get("busy_count")?,
        fence: Fence(from_sql(row.try_get("fence")?)),
        progress: ProgressCount {
            next: row.try_get("progress_next")?,
            rows: row.try_get("progress_rows")?,
            bytes: from_sql(row.try_get("progress_bytes")?),
            dropped: from_sql(row.try_get("progress_dropped")?),
        },
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
        started_at: moment(row, "started_at")?,
        finished_at: moment(row, "finished_at")?,
    })
}

pub(super) fn moment(row: &SqliteRow, column: &str) -> Result<Option<UnixMs>, StoreError> {
    let value: Option<i64> = row.try_get(column)?;
    Ok(value.map(UnixMs::from_sql))
}

/// What may change, for `UPDATE_PROCESSES`; `fence` is the one that was read.
pub(super) fn update(process: &Process, fence: Fence) -> Value {
    json!([
        hex(process.id),
        process.state.as_str(),
        process.due_at.map(UnixMs::to_sql),
        process.ready_at.map(UnixMs::to_sql),
        process.attempt,
        to_sql(process.counted_fence.0),
        process.busy_count,
        to_sql(process.fence.0),
        process.progress.next,
        process.progress.rows,
        to_sql(process.progress.bytes),
        to_sql(process.progress.dropped),
        process.started_at.map(UnixMs::to_sql),
        process.finished_at.map(UnixMs::to_sql),
        to_sql(fence.0),
    ])
}

/// An id as the JSON of a statement carries it.
pub(super) fn hex(id: ProcessId) -> String {
    id.0.simple().to_string()
}
