//! Rows of `process` to values and back.

use std::sync::Arc;
use std::time::Duration;

use protocol::ids::{AgentId, Fence, ProcessId};
use serde_json::{Value, json};

use crate::clock::UnixMs;
use crate::process::{Class, Fate, Hold, Process, ProgressCount, Shape, StepId};
use crate::store::sql;
use crate::store::{StoreError, from_sql, id_bytes, stored, to_sql};

/// Reads the rows with these ids.
pub(super) const LOAD: &str = "
    SELECT p.id, p.kind, p.tenant, p.target_id, p.class, p.resource, p.state, p.due_at, p.ready_at,
           p.deadline_at, p.life, p.attempt, p.counted_fence, p.max_attempts, p.busy_count, p.fence,
           p.progress_next, p.progress_rows, p.progress_bytes, p.progress_dropped, p.created_at,
           p.started_at, p.finished_at, p.schema_version, p.steps, p.\"undo\", p.step, p.fate, p.hold,
           p.needs_attention, p.unsettled
    FROM EACH($1: id hex) AS j CROSS JOIN process AS p ON p.id = j.id";

/// A process as `LOAD` gives it, and whether it has a plan.
pub(super) fn read(row: &sql::Row) -> Result<(Process, bool), StoreError> {
    let state: &str = row.try_get("state")?;
    let kind: &str = row.try_get("kind")?;
    let tenant: &str = row.try_get("tenant")?;
    let fate: Option<&str> = row.try_get("fate")?;
    let hold: Option<&str> = row.try_get("hold")?;
    let process = Process {
        id: ProcessId::from_bytes(id_bytes(row.try_get("id")?)?),
        kind: Arc::from(kind),
        tenant: Arc::from(tenant),
        target: AgentId::from_bytes(id_bytes(row.try_get("target_id")?)?),
        class: Class::from_sql(row.try_get("class")?),
        resource: row.try_get("resource")?,
        state: state
            .parse()
            .map_err(|error| StoreError::BadRow(format!("{error}")))?,
        due_at: moment(row, "due_at")?,
        ready_at: moment(row, "ready_at")?,
        deadline_at: UnixMs::from_sql(row.try_get("deadline_at")?),
        life: Duration::from_millis(from_sql(row.try_get("life")?)),
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
        shape: Shape::new(row.try_get("steps")?, row.try_get("undo")?),
        step: StepId(row.try_get("step")?),
        fate: fate.map(read_fate).transpose()?,
        hold: hold.map(read_hold),
        needs_attention: row.try_get("needs_attention")?,
        unsettled: row.try_get("unsettled")?,
    };
    Ok((process, row.try_get::<i64>("schema_version")? > 0))
}

pub(super) fn moment(row: &sql::Row, column: &str) -> Result<Option<UnixMs>, StoreError> {
    let value: Option<i64> = row.try_get(column)?;
    Ok(value.map(UnixMs::from_sql))
}

pub(crate) fn read_fate(text: &str) -> Result<Fate, StoreError> {
    let bad = |what: &str| StoreError::BadRow(format!("a fate without {what}"));
    let value: Value = serde_json::from_str(text).map_err(|_| bad("JSON"))?;
    let end = value["end"].as_str().ok_or_else(|| bad("an end"))?;
    Ok(Fate {
        end: end
            .parse()
            .map_err(|error| StoreError::BadRow(format!("{error}")))?,
        status: stored::read_status(&value["status"]).ok_or_else(|| bad("a status"))?,
        exit_code: value["exit_code"]
            .as_i64()
            .and_then(|code| i32::try_from(code).ok()),
        message: value["message"].as_str().unwrap_or_default().to_owned(),
        below: value["below"]
            .as_u64()
            .and_then(|below| u16::try_from(below).ok())
            .ok_or_else(|| bad("its steps"))?,
    })
}

fn write_fate(fate: &Fate) -> String {
    let mut value = json!({
        "end": fate.end.as_str(),
        "status": stored::status(fate.status),
        "message": fate.message,
        "below": fate.below,
    });
    if let Some(code) = fate.exit_code {
        value["exit_code"] = json!(code);
    }
    value.to_string()
}

/// `retry`, `budget`, or why it came back.
pub(crate) fn read_hold(text: &str) -> Hold {
    match text.split_once(": ") {
        None if text == "retry" => Hold::Retry,
        None if text == "budget" => Hold::Budget,
        Some(("returned", why)) => Hold::Returned(why.to_owned()),
        _ => Hold::Returned(text.to_owned()),
    }
}

fn write_hold(hold: &Hold) -> String {
    match hold {
        Hold::Retry => "retry".to_owned(),
        Hold::Budget => "budget".to_owned(),
        Hold::Returned(why) => format!("returned: {why}"),
    }
}

/// What may change, for `WRITE`; `fence` is the one that was read.
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
        process.deadline_at.to_sql(),
        process.step.0,
        process.fate.as_ref().map(write_fate),
        process.hold.as_ref().map(write_hold),
        u8::from(process.needs_attention),
        u8::from(process.unsettled),
    ])
}

/// An id as the JSON of a statement carries it.
pub(super) fn hex(id: ProcessId) -> String {
    id.0.simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::State;
    use protocol::operation::OutcomeStatus;

    #[test]
    fn what_a_row_keeps_as_text_is_read_back() {
        for hold in [
            Hold::Retry,
            Hold::Budget,
            Hold::Returned("busy: try again: later".to_owned()),
        ] {
            assert_eq!(read_hold(&write_hold(&hold)), hold);
        }
        for exit_code in [None, Some(-9)] {
            let fate = Fate {
                end: State::Cancelled,
                status: OutcomeStatus::FailedTransient,
                exit_code,
                message: "a \"quoted\" \u{0} message".to_owned(),
                below: 32,
            };
            assert_eq!(read_fate(&write_fate(&fate)).unwrap(), fate);
        }
        assert!(read_fate("{}").is_err() && read_fate("x").is_err());
    }
}
