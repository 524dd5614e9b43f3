//! What the API reads of processes. Consistent snapshots; nothing here writes.

use std::time::Duration;

use protocol::ids::{AgentId, Fence, ProcessId};
use serde_json::Value;

use super::pauses::PauseKey;
use super::{Connection, Store, StoreError, from_sql, id_bytes};
use crate::api::model::processes::ProcessOutcome;
use crate::clock::UnixMs;
use crate::process::{Class, Fate, Hold, State, StepId};
use crate::store::processes::{IdempotencyKey, rows};
use crate::store::sql;

/// Processes on one page at most.
pub const PAGE_MAX: u32 = 1000;

/// A process as the store knows it, without its input.
#[derive(Clone, PartialEq, Debug)]
pub struct ProcessRecord {
    /// Which. Sorts by creation time.
    pub id: ProcessId,
    /// A declared kind, or the name of a driver.
    pub kind: String,
    /// Whose it is.
    pub tenant: String,
    /// The agent that does the work.
    pub agent: AgentId,
    /// Who goes first on a busy agent.
    pub class: Class,
    /// What it works on.
    pub resource: Option<String>,
    /// How far it is.
    pub state: State,
    /// The step at hand, or at which it ended.
    pub step: StepId,
    /// How many steps.
    pub steps: u16,
    /// It has a plan: its kind is a declared one.
    pub planned: bool,
    /// While it is undone, and after that has failed: what it ends as, and why.
    pub fate: Option<Fate>,
    /// Why it is in backoff, while it is.
    pub hold: Option<Hold>,
    /// People must look.
    pub needs_attention: bool,
    /// While it is ready: what keeps it from being started.
    pub paused: Option<PauseKey>,
    /// Attempts at the step at hand that an agent has started.
    pub attempts: u32,
    /// Attempts at each step at most.
    pub max_attempts: u32,
    /// Claims so far.
    pub fence: Fence,
    /// When it was made.
    pub created_at: UnixMs,
    /// When an agent first accepted it.
    pub started_at: Option<UnixMs>,
    /// When it reached a terminal state.
    pub finished_at: Option<UnixMs>,
    /// When it is over, finished or not.
    pub deadline_at: UnixMs,
    /// While it waits: when it is looked at again.
    pub due_at: Option<UnixMs>,
    /// From its creation to its first deadline.
    pub life: Duration,
    /// Progress reports that were over the limit and not kept.
    pub progress_dropped: u64,
    /// How it, or its last attempt, ended.
    pub outcome: Option<ProcessOutcome>,
}

/// Which processes a list shows. Everything that is given must hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ProcessFilter {
    /// Only in this state.
    pub state: Option<State>,
    /// Only for this agent.
    pub agent: Option<AgentId>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only on this resource.
    pub resource: Option<String>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only those at which people must look, or only the others.
    pub needs_attention: Option<bool>,
    /// Of those that are ready: only the paused ones, or only the others.
    pub paused: Option<bool>,
}

/// Where a page starts: after this process, in the order of the list.
pub type ProcessCursor = ProcessId;

/// The pauses `q` that keep the process `p` from being started.
macro_rules! pauses_of_process {
    () => {
        "(q.scope = 'process' AND q.\"key\" = lower(hex(p.id))
            OR q.scope = 'agent' AND q.\"key\" = lower(hex(p.target_id))
            OR q.scope = 'tenant' AND q.\"key\" = p.tenant
            OR q.scope = 'kind' AND q.\"key\" = p.kind
            OR q.scope = 'group' AND q.\"key\" =
                (SELECT lower(hex(a.group_id)) FROM agent AS a WHERE a.id = p.target_id))"
    };
}

/// Whether a pause keeps the process `p` from being started, once it is ready.
pub(super) const IS_PAUSED: &str = concat!(
    "EXISTS (SELECT 1 FROM pause AS q WHERE ",
    pauses_of_process!(),
    ")"
);

pub(super) const COLUMNS: &str = concat!(
    "
    p.id, p.kind, p.tenant, p.target_id, p.class, p.resource, p.state, p.attempt, p.max_attempts,
    p.fence, p.created_at, p.started_at, p.finished_at, p.deadline_at, p.due_at, p.progress_dropped,
    p.life, p.schema_version, p.steps, p.step, p.fate, p.hold, p.needs_attention, d.outcome,
    CASE WHEN p.state IN ('scheduled', 'blocked', 'ready', 'backoff') THEN (SELECT q.scope || '/' || q.\"key\" FROM pause AS q
        WHERE ",
    pauses_of_process!(),
    " LIMIT 1) END AS paused"
);

/// A pause keeps it from being started.
const WAITS_PAUSED: &str = concat!(
    " AND p.state IN ('scheduled', 'blocked', 'ready', 'backoff')
      AND EXISTS (SELECT 1 FROM pause AS q WHERE ",
    pauses_of_process!(),
    ")"
);

/// It has been started, or no pause keeps it from that.
const WAITS_UNPAUSED: &str = concat!(
    " AND NOT (p.state IN ('scheduled', 'blocked', 'ready', 'backoff')
      AND EXISTS (SELECT 1 FROM pause AS q WHERE ",
    pauses_of_process!(),
    "))"
);

impl Store {
    /// One process.
    ///
    /// # Errors
    /// The store failed.
    pub async fn process(&self, id: ProcessId) -> Result<Option<ProcessRecord>, StoreError> {
        let mut reader = self.reader().await?;
        Ok(by_ids(&mut reader, [id]).await?.pop())
    }

    /// A page of processes, newest first: at most `limit` (1 to [`PAGE_MAX`]) after `cursor`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn processes(
        &self,
        filter: &ProcessFilter,
        cursor: Option<ProcessCursor>,
        limit: u32,
    ) -> Result<Vec<ProcessRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(list_sql(filter))
            .bind(cursor.map(|id| id.to_bytes().to_vec()))
            .bind(filter.agent.map(|id| id.to_bytes().to_vec()))
            .bind(filter.state.map(State::as_str))
            .bind(filter.kind.as_deref())
            .bind(filter.resource.as_deref())
            .bind(limit.clamp(1, PAGE_MAX))
            .bind(filter.tenant.as_deref())
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// The newest processes that failed, newest first, at most `limit`, of the last `among` that
    /// ended: the look costs no more than that however many are kept.
    ///
    /// # Errors
    /// The store failed.
    pub async fn newest_failures(
        &self,
        limit: u32,
        among: u32,
    ) -> Result<Vec<ProcessRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!(
            "SELECT {COLUMNS} FROM
                (SELECT id, state, finished_at FROM process WHERE finished_at IS NOT NULL
                 ORDER BY finished_at DESC LIMIT $2) AS s
             CROSS JOIN process AS p ON p.id = s.id
             JOIN process_payload AS d ON d.process_id = p.id
             WHERE s.state = $3 ORDER BY s.finished_at DESC LIMIT $1"
        ))
        .bind(limit)
        .bind(among)
        .bind(State::Failed.as_str())
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read).collect()
    }

    /// How many ready processes a pause keeps from being started, of the first `among` that are
    /// ready: the look costs no more than that however many there are.
    ///
    /// # Errors
    /// The store failed.
    pub async fn count_paused(&self, among: u32) -> Result<u64, StoreError> {
        let mut reader = self.reader().await?;
        let count: i64 = sql::query_scalar(format!(
            "SELECT CASE WHEN EXISTS (SELECT 1 FROM pause) THEN
                (SELECT count(*) FROM
                    (SELECT process_id AS id, target_id, tenant, kind FROM process_ready LIMIT $1) AS p
                 WHERE {IS_PAUSED})
             ELSE 0 END"
        ))
        .bind(among)
        .fetch_one(&mut reader)
        .await?;
        Ok(from_sql(count))
    }

    /// Whether a request with this key has made a process: then the same request is a repetition.
    ///
    /// # Errors
    /// The store failed.
    pub async fn knows_key(&self, key: &IdempotencyKey, now: UnixMs) -> Result<bool, StoreError> {
        let mut reader = self.reader().await?;
        let known = sql::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM idempotency
                            WHERE scope = $1 AND idem_key = $2 AND expires_at > $3)",
        )
        .bind(&key.scope)
        .bind(&key.key)
        .bind(now.to_sql())
        .fetch_one(&mut reader)
        .await?;
        Ok(known)
    }

    /// The input of a process: JSON text.
    ///
    /// # Errors
    /// The store failed.
    pub async fn process_input(&self, id: ProcessId) -> Result<Option<String>, StoreError> {
        let mut reader = self.reader().await?;
        let input = sql::query_scalar("SELECT input FROM process_payload WHERE process_id = $1")
            .bind(id.to_bytes().to_vec())
            .fetch_optional(&mut reader)
            .await?;
        Ok(input)
    }
}

/// The list's SQL: one of a few texts, so that each stays prepared. A filter on a state that is not
/// terminal starts from the small table of such processes instead of reading past all others.
fn list_sql(filter: &ProcessFilter) -> String {
    let from = match filter.state {
        Some(state) if state.is_active() => {
            "process_lease AS s JOIN process AS p ON p.id = s.process_id"
        }
        Some(state) if state.is_waiting() => {
            "process_timer AS s JOIN process AS p ON p.id = s.process_id"
        }
        _ => "process AS p",
    };
    let mut sql = format!(
        "SELECT {COLUMNS} FROM {from} JOIN process_payload AS d ON d.process_id = p.id
         WHERE ($1 IS NULL OR p.id < $1)"
    );
    match filter.needs_attention {
        Some(true) => sql.push_str(" AND p.needs_attention = 1"),
        Some(false) => sql.push_str(" AND p.needs_attention = 0"),
        None => {}
    }
    for (given, clause) in [
        (filter.agent.is_some(), " AND p.target_id = $2"),
        (filter.state.is_some(), " AND p.state = $3"),
        (filter.kind.is_some(), " AND p.kind = $4"),
        (filter.resource.is_some(), " AND p.resource = $5"),
        (filter.tenant.is_some(), " AND p.tenant = $7"),
        (filter.paused == Some(true), WAITS_PAUSED),
        (filter.paused == Some(false), WAITS_UNPAUSED),
    ] {
        if given {
            sql.push_str(clause);
        }
    }
    sql.push_str(" ORDER BY p.id DESC LIMIT $6");
    sql
}

/// The named processes, by id; those that are not there are left out.
pub(crate) async fn by_ids(
    db: &mut Connection,
    ids: impl IntoIterator<Item = ProcessId>,
) -> Result<Vec<ProcessRecord>, StoreError> {
    let ids: Value = ids
        .into_iter()
        .map(|id| id.0.simple().to_string())
        .collect();
    let rows = sql::query(format!(
        "SELECT {COLUMNS} FROM EACH($1: id hex) AS j
         CROSS JOIN process AS p ON p.id = j.id
         JOIN process_payload AS d ON d.process_id = p.id"
    ))
    .bind(ids.to_string())
    .fetch_all(&mut *db)
    .await?;
    rows.iter().map(read).collect()
}

/// A row of [`COLUMNS`].
pub(super) fn read(row: &sql::Row) -> Result<ProcessRecord, StoreError> {
    let state: &str = row.try_get("state")?;
    let outcome: Option<&str> = row.try_get("outcome")?;
    let fate: Option<&str> = row.try_get("fate")?;
    let hold: Option<&str> = row.try_get("hold")?;
    let paused: Option<&str> = row.try_get("paused")?;
    let moment = |column: &str| -> Result<Option<UnixMs>, StoreError> {
        let value: Option<i64> = row.try_get(column)?;
        Ok(value.map(UnixMs::from_sql))
    };
    Ok(ProcessRecord {
        id: ProcessId::from_bytes(id_bytes(row.try_get("id")?)?),
        kind: row.try_get("kind")?,
        tenant: row.try_get("tenant")?,
        agent: AgentId::from_bytes(id_bytes(row.try_get("target_id")?)?),
        class: Class::from_sql(row.try_get("class")?),
        resource: row.try_get("resource")?,
        state: state
            .parse()
            .map_err(|error| StoreError::BadRow(format!("{error}")))?,
        step: StepId(row.try_get("step")?),
        steps: row.try_get("steps")?,
        planned: row.try_get::<i64>("schema_version")? > 0,
        fate: fate.map(rows::read_fate).transpose()?,
        hold: hold.map(rows::read_hold),
        needs_attention: row.try_get("needs_attention")?,
        paused: paused.and_then(PauseKey::from_sql),
        attempts: row.try_get("attempt")?,
        max_attempts: row.try_get("max_attempts")?,
        fence: Fence(from_sql(row.try_get("fence")?)),
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
        started_at: moment("started_at")?,
        finished_at: moment("finished_at")?,
        deadline_at: UnixMs::from_sql(row.try_get("deadline_at")?),
        due_at: moment("due_at")?,
        life: Duration::from_millis(from_sql(row.try_get("life")?)),
        progress_dropped: from_sql(row.try_get("progress_dropped")?),
        outcome: outcome
            .map(serde_json::from_str)
            .transpose()
            .map_err(|error| StoreError::BadRow(format!("an outcome: {error}")))?,
    })
}
