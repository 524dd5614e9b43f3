//! Events about who may come in: written in the very transaction that decides it, so that the
//! record and the decision cannot differ.

use protocol::ids::AgentId;
use serde_json::Value;

use super::{Connection, Store, StoreError};
use crate::clock::UnixMs;
use crate::store::sql;

/// Adds an event within a transaction.
pub(super) async fn record(
    db: &mut Connection,
    at: UnixMs,
    kind: &'static str,
    agent: Option<AgentId>,
    data: &Value,
) -> Result<(), StoreError> {
    sql::query("INSERT INTO process_event (at, type, agent_id, data) VALUES ($1, $2, $3, $4)")
        .bind(at.to_sql())
        .bind(kind)
        .bind(agent.map(|agent| agent.to_bytes().to_vec()))
        .bind(data.to_string())
        .execute(&mut *db)
        .await?;
    Ok(())
}

impl Store {
    /// Proves that a write reaches the disk: changes nothing, commits all the same.
    ///
    /// # Errors
    /// The store does not take writes.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.write(|db| {
            Box::pin(async move {
                sql::query("UPDATE worker_duty SET until = until WHERE name = 'sweep'")
                    .execute(&mut *db)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Adds an event of its own. The caller bounds how often.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn record_event(
        &self,
        at: UnixMs,
        kind: &'static str,
        agent: Option<AgentId>,
        data: Value,
    ) -> Result<(), StoreError> {
        self.write(move |db| Box::pin(async move { record(db, at, kind, agent, &data).await }))
            .await
    }
}
