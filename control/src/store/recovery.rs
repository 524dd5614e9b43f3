//! What a starting process server reads: everything that is not over, and nothing else.

use std::sync::Arc;

use protocol::ids::{AgentId, Fence, ProcessId};
use serde_json::Value;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Store, StoreError, from_sql, id_bytes};
use crate::clock::UnixMs;
use crate::process::pause::Pauses;
use crate::process::{Class, State, StepId};

/// A process that its agent may know something about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    pub(crate) process: ProcessId,
    pub(crate) agent: AgentId,
    pub(crate) fence: Fence,
    pub(crate) step: StepId,
    pub(crate) state: State,
    pub(crate) deadline_at: UnixMs,
}

/// Processes that are ready for an agent, of one tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReadyCount {
    pub(crate) agent: AgentId,
    pub(crate) tenant: Arc<str>,
    pub(crate) ready: u32,
}

const READY_OF: &str = "
    SELECT class, ready_at, process_id FROM process_ready WHERE target_id = $1
    ORDER BY class, ready_at, process_id LIMIT $2";

/// As [`READY_OF`]; $3, $4, $5: JSON arrays of the tenants, kinds and processes that are paused.
const READY_OF_NOT_PAUSED: &str = "
    SELECT class, ready_at, process_id FROM process_ready WHERE target_id = $1
      AND tenant NOT IN (SELECT value FROM json_each($3))
      AND kind NOT IN (SELECT value FROM json_each($4))
      AND process_id NOT IN (SELECT unhex(value) FROM json_each($5))
    ORDER BY class, ready_at, process_id LIMIT $2";

/// A ready process: class, then age.
pub(crate) type Place = (Class, UnixMs, ProcessId);

impl Store {
    /// Every process that an agent may know something about and this process server had claimed.
    pub(crate) async fn leases(&self, worker: Uuid) -> Result<Vec<Lease>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT p.id, p.target_id, p.fence, p.step, p.state, p.deadline_at
             FROM process_lease AS l CROSS JOIN process AS p ON p.id = l.process_id
             WHERE l.worker_id = $1",
        )
        .bind(worker.into_bytes().to_vec())
        .fetch_all(&mut *reader)
        .await?;
        rows.iter()
            .map(|row| {
                let state: &str = row.try_get("state")?;
                Ok(Lease {
                    process: ProcessId::from_bytes(id_bytes(row.try_get("id")?)?),
                    agent: AgentId::from_bytes(id_bytes(row.try_get("target_id")?)?),
                    fence: Fence(from_sql(row.try_get("fence")?)),
                    step: StepId(row.try_get("step")?),
                    state: state
                        .parse()
                        .map_err(|error| StoreError::BadRow(format!("{error}")))?,
                    deadline_at: UnixMs::from_sql(row.try_get("deadline_at")?),
                })
            })
            .collect()
    }

    /// How many processes wait, by state. Reads the waiting ones only.
    pub(crate) async fn waiting_by_state(&self) -> Result<Vec<(State, u64)>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT p.state, count(*)
             FROM process_timer AS t CROSS JOIN process AS p ON p.id = t.process_id
             GROUP BY p.state",
        )
        .fetch_all(&mut *reader)
        .await?;
        rows.iter()
            .map(|row| {
                let state: &str = row.try_get(0)?;
                let state = state
                    .parse()
                    .map_err(|error| StoreError::BadRow(format!("{error}")))?;
                Ok((state, from_sql(row.try_get(1)?)))
            })
            .collect()
    }

    /// How many processes are ready for each agent, of each tenant.
    pub(crate) async fn ready_counts(&self) -> Result<Vec<ReadyCount>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT target_id, tenant, count(*) FROM process_ready GROUP BY target_id, tenant",
        )
        .fetch_all(&mut *reader)
        .await?;
        rows.iter()
            .map(|row| {
                let tenant: &str = row.try_get(1)?;
                Ok(ReadyCount {
                    agent: AgentId::from_bytes(id_bytes(row.try_get(0)?)?),
                    tenant: Arc::from(tenant),
                    ready: row.try_get(2)?,
                })
            })
            .collect()
    }

    /// The first `limit` ready processes of each of these agents, without those that a pause holds.
    pub(crate) async fn ready_of(
        &self,
        agents: &[AgentId],
        limit: u32,
        pauses: &Pauses,
    ) -> Result<Vec<(AgentId, Place)>, StoreError> {
        let mut reader = self.reader().await?;
        let array = |names: Vec<Value>| Value::Array(names).to_string();
        let names = |set: &std::collections::BTreeSet<String>| {
            array(set.iter().map(|name| Value::from(name.as_str())).collect())
        };
        let (tenants, kinds) = (names(pauses.tenants()), names(pauses.kinds()));
        let processes = pauses.processes().iter();
        let processes = array(
            processes
                .map(|id| Value::from(id.0.simple().to_string()))
                .collect(),
        );
        let none = pauses.tenants().is_empty()
            && pauses.kinds().is_empty()
            && pauses.processes().is_empty();
        let sql = if none { READY_OF } else { READY_OF_NOT_PAUSED };
        let mut places = Vec::new();
        for agent in agents {
            let mut query = sqlx::query(sql).bind(agent.to_bytes().to_vec()).bind(limit);
            if !none {
                query = query.bind(&tenants).bind(&kinds).bind(&processes);
            }
            let rows = query.fetch_all(&mut *reader).await?;
            for row in &rows {
                let class = Class::from_sql(row.try_get(0)?);
                let ready_at = UnixMs::from_sql(row.try_get(1)?);
                let process = ProcessId::from_bytes(id_bytes(row.try_get(2)?)?);
                places.push((*agent, (class, ready_at, process)));
            }
        }
        Ok(places)
    }

    /// Resources that somebody waits for and nobody holds: their holder ended just before a stop.
    pub(crate) async fn free_resources(&self) -> Result<Vec<String>, StoreError> {
        let mut reader = self.reader().await?;
        let resources = sqlx::query_scalar(
            "SELECT DISTINCT b.resource FROM process_blocked AS b
             LEFT JOIN process_resource AS r ON r.resource = b.resource
             WHERE r.resource IS NULL",
        )
        .fetch_all(&mut *reader)
        .await?;
        Ok(resources)
    }

    /// Revoked agents whose processes have not all ended: the server stopped in between.
    pub(crate) async fn revoked_with_work(&self) -> Result<Vec<AgentId>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT a.id FROM agent AS a WHERE a.revoked_at IS NOT NULL AND EXISTS
                (SELECT 1 FROM process AS p WHERE p.target_id = a.id AND p.finished_at IS NULL)",
        )
        .fetch_all(&mut *reader)
        .await?;
        rows.iter()
            .map(|row| Ok(AgentId::from_bytes(id_bytes(row.try_get(0)?)?)))
            .collect()
    }

    /// The earliest timer.
    pub(crate) async fn earliest_timer(&self) -> Result<Option<UnixMs>, StoreError> {
        let mut reader = self.reader().await?;
        let due: Option<i64> =
            sqlx::query_scalar("SELECT due_at FROM process_timer ORDER BY due_at LIMIT 1")
                .fetch_optional(&mut *reader)
                .await?;
        Ok(due.map(UnixMs::from_sql))
    }
}
