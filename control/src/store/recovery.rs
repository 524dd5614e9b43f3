//! What a starting process server reads: everything that is not over, and nothing else.

use std::sync::Arc;

use protocol::flow::Line;
use protocol::ids::{AgentId, Fence, ProcessId};
use uuid::Uuid;

use super::lines::read_needs;
use super::{Connection, Store, StoreError, from_sql, id_bytes};
use crate::clock::UnixMs;
use crate::process::{Class, State, StepId, line};
use crate::store::sql;

/// A process that its agent may know something about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    pub(crate) process: ProcessId,
    pub(crate) agent: AgentId,
    pub(crate) fence: Fence,
    pub(crate) step: StepId,
    pub(crate) state: State,
    pub(crate) deadline_at: UnixMs,
    /// What its operation holds permits of.
    pub(crate) line: Arc<Line>,
}

impl Store {
    /// Every process that an agent may know something about and this process server had claimed.
    pub(crate) async fn leases(&self, worker: Uuid) -> Result<Vec<Lease>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT p.id, p.target_id, p.fence, p.step, p.state, p.deadline_at, p.kind, p.tenant,
                    p.class AS urgency, s.name, s.class, s.resources
             FROM process_lease AS l CROSS JOIN process AS p ON p.id = l.process_id
             LEFT JOIN process_plan AS s ON s.process_id = p.id AND s.step = p.step & 32799
             WHERE l.worker_id = $1",
        )
        .bind(worker.into_bytes().to_vec())
        .fetch_all(&mut reader)
        .await?;
        rows.iter()
            .map(|row| {
                let state: &str = row.try_get("state")?;
                let step = StepId(row.try_get("step")?);
                let (kind, tenant) = (row.try_get("kind")?, row.try_get("tenant")?);
                let class = Class::from_sql(row.try_get("urgency")?);
                let needs = read_needs(row)?;
                Ok(Lease {
                    process: ProcessId::from_bytes(id_bytes(row.try_get("id")?)?),
                    agent: AgentId::from_bytes(id_bytes(row.try_get("target_id")?)?),
                    fence: Fence(from_sql(row.try_get("fence")?)),
                    step,
                    state: state
                        .parse()
                        .map_err(|error| StoreError::BadRow(format!("{error}")))?,
                    deadline_at: UnixMs::from_sql(row.try_get("deadline_at")?),
                    line: Arc::new(line(kind, tenant, class, step, needs.as_ref())),
                })
            })
            .collect()
    }

    /// How many processes wait, by state. Reads the waiting ones only.
    pub(crate) async fn waiting_by_state(&self) -> Result<Vec<(State, u64)>, StoreError> {
        let mut reader = self.reader().await?;
        waiting_by_state(&mut reader).await
    }

    /// Resources that somebody waits for and nobody holds: their holder ended just before a stop.
    pub(crate) async fn free_resources(&self) -> Result<Vec<String>, StoreError> {
        let mut reader = self.reader().await?;
        let resources = sql::query_scalar(
            "SELECT DISTINCT b.resource FROM process_blocked AS b
             LEFT JOIN process_resource AS r ON r.resource = b.resource
             WHERE r.resource IS NULL",
        )
        .fetch_all(&mut reader)
        .await?;
        Ok(resources)
    }

    /// Revoked agents whose processes have not all ended: the server stopped in between.
    pub(crate) async fn revoked_with_work(&self) -> Result<Vec<AgentId>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT a.id FROM agent AS a WHERE a.revoked_at IS NOT NULL AND EXISTS
                (SELECT 1 FROM process AS p WHERE p.target_id = a.id AND p.finished_at IS NULL)",
        )
        .fetch_all(&mut reader)
        .await?;
        rows.iter()
            .map(|row| Ok(AgentId::from_bytes(id_bytes(row.try_get(0)?)?)))
            .collect()
    }

    /// The earliest timer.
    pub(crate) async fn earliest_timer(&self) -> Result<Option<UnixMs>, StoreError> {
        let mut reader = self.reader().await?;
        let due: Option<i64> =
            sql::query_scalar("SELECT due_at FROM process_timer ORDER BY due_at LIMIT 1")
                .fetch_optional(&mut reader)
                .await?;
        Ok(due.map(UnixMs::from_sql))
    }
}

/// See [`Store::waiting_by_state`].
pub(super) async fn waiting_by_state(db: &mut Connection) -> Result<Vec<(State, u64)>, StoreError> {
    let rows = sql::query(
        "SELECT p.state, count(*)
         FROM process_timer AS t CROSS JOIN process AS p ON p.id = t.process_id
         GROUP BY p.state",
    )
    .fetch_all(&mut *db)
    .await?;
    by_state(&rows)
}

/// States and counts.
fn by_state(rows: &[sql::Row]) -> Result<Vec<(State, u64)>, StoreError> {
    rows.iter()
        .map(|row| Ok((state(row, 0)?, from_sql(row.try_get(1)?))))
        .collect()
}

/// The state in a column.
pub(super) fn state(row: &sql::Row, column: usize) -> Result<State, StoreError> {
    let state: &str = row.try_get(column)?;
    state
        .parse()
        .map_err(|error| StoreError::BadRow(format!("{error}")))
}
