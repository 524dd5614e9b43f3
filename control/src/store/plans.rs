//! What the API reads about steps, and about who stands in whose way.

use std::time::Duration;

use protocol::ids::ProcessId;
use serde_json::{Value, json};

use super::{Store, StoreError, from_sql, id_bytes};
use crate::api::model::processes::ProcessOutcome;
use crate::clock::UnixMs;
use crate::process::{Plan, PlanOperation, PlanStep, STEPS_MAX, State, StepId};
use crate::store::sql;

/// A step of a plan, or what undoes it, with how it ended.
#[derive(Clone, PartialEq, Debug)]
pub struct PlanRow {
    /// Which; without a run.
    pub step: StepId,
    /// For people.
    pub name: String,
    /// The driver.
    pub operation: String,
    /// The driver's input: JSON text.
    pub input: String,
    /// It has so long.
    pub timeout: Duration,
    /// What it weighs on the agent.
    pub class: Option<String>,
    /// Shared things that it uses.
    pub resources: Vec<String>,
    /// Attempts that its last end took; 0: it has not ended.
    pub attempts: u32,
    /// When it ended.
    pub finished_at: Option<UnixMs>,
    /// How it ended.
    pub outcome: Option<ProcessOutcome>,
}

/// Who holds a resource, and who waits for it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ResourceLine {
    /// Its holder.
    pub holder: Option<(ProcessId, String, State)>,
    /// How many wait, of those before the one that was asked about if one was.
    pub waiting: u32,
}

/// Rows of a plan: every step may have one that undoes it.
const ROWS_MAX: u32 = 64;

impl Store {
    /// The steps of a process in order, those that undo last; none: it has no plan.
    ///
    /// # Errors
    /// The store failed.
    pub async fn plan_rows(&self, process: ProcessId) -> Result<Vec<PlanRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT step, name, operation, input, timeout, class, resources, attempts, finished_at,
                    outcome
             FROM process_plan WHERE process_id = $1 ORDER BY step LIMIT $2",
        )
        .bind(process.to_bytes().to_vec())
        .bind(ROWS_MAX)
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read).collect()
    }

    /// The plan of a process as it was made; `None`: it has none.
    ///
    /// # Errors
    /// The store failed.
    pub async fn plan(&self, process: ProcessId) -> Result<Option<Plan>, StoreError> {
        let rows = self.plan_rows(process).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut steps: Vec<PlanStep> = Vec::with_capacity(STEPS_MAX);
        for row in rows {
            let work = PlanOperation {
                operation: row.operation,
                input: row.input,
                timeout: row.timeout,
            };
            if !row.step.undoes() {
                steps.push(PlanStep {
                    name: row.name,
                    work,
                    class: row.class,
                    resources: row.resources,
                    undo: None,
                });
            } else if let Some(step) = steps.get_mut(usize::from(row.step.index())) {
                step.undo = Some(work);
            }
        }
        Ok(Some(Plan { steps }))
    }

    /// Who holds a resource, and how many wait for it; `before`: that are before this one.
    ///
    /// # Errors
    /// The store failed.
    pub async fn resource_line(
        &self,
        resource: &str,
        before: Option<ProcessId>,
    ) -> Result<ResourceLine, StoreError> {
        let mut reader = self.reader().await?;
        let holder = sql::query(
            "SELECT p.id, p.kind, p.state FROM process_resource AS r
             JOIN process AS p ON p.id = r.process_id WHERE r.resource = $1",
        )
        .bind(resource)
        .fetch_optional(&mut reader)
        .await?;
        let holder = holder.map(|row| {
            let state: &str = row.try_get(2)?;
            let state = state
                .parse()
                .map_err(|error| StoreError::BadRow(format!("{error}")))?;
            let id = ProcessId::from_bytes(id_bytes(row.try_get(0)?)?);
            Ok::<_, StoreError>((id, row.try_get(1)?, state))
        });
        let waiting = sql::query_scalar(
            "SELECT count(*) FROM process_blocked WHERE resource = $1
             AND ($2 IS NULL OR process_id < $2)",
        )
        .bind(resource)
        .bind(before.map(|id| id.to_bytes().to_vec()))
        .fetch_one(&mut reader)
        .await?;
        Ok(ResourceLine {
            holder: holder.transpose()?,
            waiting,
        })
    }

    /// Processes that a new one on this resource would make needless, if it supersedes these kinds.
    ///
    /// # Errors
    /// The store failed.
    pub async fn would_supersede(
        &self,
        resource: &str,
        kinds: &[String],
    ) -> Result<Vec<ProcessId>, StoreError> {
        let asked: Vec<Value> = kinds
            .iter()
            .map(|kind| json!([resource, kind, ""]))
            .collect();
        let mut reader = self.reader().await?;
        let rows = sql::query(super::processes::NEEDLESS)
            .bind(Value::Array(asked).to_string())
            .fetch_all(&mut reader)
            .await?;
        rows.iter()
            .map(|row| Ok(ProcessId::from_bytes(id_bytes(row.try_get(0)?)?)))
            .collect()
    }
}

fn read(row: &sql::Row) -> Result<PlanRow, StoreError> {
    let finished_at: Option<i64> = row.try_get("finished_at")?;
    let outcome: Option<&str> = row.try_get("outcome")?;
    let bad = |what: &str, error| StoreError::BadRow(format!("{what} of a step: {error}"));
    Ok(PlanRow {
        step: StepId(row.try_get("step")?),
        name: row.try_get("name")?,
        operation: row.try_get("operation")?,
        input: row.try_get("input")?,
        timeout: Duration::from_millis(from_sql(row.try_get("timeout")?)),
        class: row.try_get("class")?,
        resources: serde_json::from_str(row.try_get("resources")?)
            .map_err(|error| bad("the resources", error))?,
        attempts: row.try_get("attempts")?,
        finished_at: finished_at.map(UnixMs::from_sql),
        outcome: outcome
            .map(serde_json::from_str)
            .transpose()
            .map_err(|error| bad("the outcome", error))?,
    })
}
