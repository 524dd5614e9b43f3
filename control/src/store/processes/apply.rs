//! Applies a batch: reads the rows, runs the rules over them in order, writes what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use protocol::flow::Line;
use protocol::ids::{AgentId, GrantId, OperationId, ProcessId};
use protocol::operation::Progress;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use uuid::Uuid;

use super::rows::{self, hex};
use super::stand_in;
use super::writes::Writes;
use super::{Actor, Applied, Batch, Effect, Happened, Names, Now, Record, Work, create};
use crate::clock::UnixMs;
use crate::process::budget::deferral;
use crate::process::pause::PauseScope;
use crate::process::{Hold, Input, Process, State, Step, StepId, StepNeeds};
use crate::store::budgets::RetryBudgets;
use crate::store::lines;
use crate::store::sql;
use crate::store::{Connection, StoreError, from_sql, id_bytes, stored};

pub(super) const WRITE_EVENTS: &str = "
    INSERT INTO process_event (at, type, process_id, agent_id, data)
    SELECT j.at, j.type, j.process_id, j.agent_id, j.data
    FROM LIST($1: at int, type text, process_id hex, agent_id hex, data text) AS j";

pub(super) const DUE: &str = "SELECT process_id FROM process_timer WHERE due_at <= $1
     ORDER BY due_at, process_id LIMIT $2";

/// Unfinished processes of an agent.
pub(super) const OF_AGENT: &str =
    "SELECT id FROM process WHERE target_id = $1 AND finished_at IS NULL LIMIT $2";

/// Processes of one revoked agent that one batch ends.
const ABANDONED_STEP: usize = 1000;

pub(super) const NEXT_DUE: &str = "SELECT due_at FROM process_timer ORDER BY due_at LIMIT 1";

/// Who has waited longest for a resource that nobody holds.
pub(super) const NEXT_HOLDER: &str = "
    SELECT process_id FROM process_blocked WHERE resource = $1
      AND NOT EXISTS (SELECT 1 FROM process_resource AS r WHERE r.resource = $1)
    ORDER BY process_id LIMIT 1";

pub(super) const TAKE_RESOURCE: &str =
    "INSERT INTO process_resource (resource, process_id) VALUES ($1, $2)";

/// 32799 is 0x801f: a step's number without its run.
pub(super) const WORK: &str = "
    SELECT p.id, coalesce(s.operation, p.kind) AS operation, p.deadline_at, s.timeout,
           coalesce(s.input, d.input) AS input
    FROM EACH($1: id hex) AS j
    CROSS JOIN process AS p ON p.id = j.id
    JOIN process_payload AS d ON d.process_id = p.id
    LEFT JOIN process_plan AS s ON s.process_id = p.id AND s.step = p.step & 32799";

pub(super) async fn apply(
    db: &mut Connection,
    batch: Batch,
    budgets: &RetryBudgets,
) -> Result<Applied, StoreError> {
    let Batch {
        at,
        seed,
        worker,
        creates,
        mut inputs,
        resources,
        abandoned,
        sweep,
        records,
    } = batch;
    if sweep > 0 {
        inputs.extend(due(db, at, sweep).await?);
    }
    for resource in &resources {
        inputs.extend(take_resource(db, resource).await?);
    }
    let mut applied = Applied::default();
    for agent in abandoned {
        let found = abandon(db, agent).await?;
        if found.len() >= ABANDONED_STEP {
            applied.abandoned_more.push(agent);
        }
        inputs.extend(found);
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut events: Vec<Value> = records.iter().map(|record| event(at, record)).collect();
    let moment = (at, worker);
    let retries = Some(budgets);
    run(
        db,
        moment,
        inputs,
        retries,
        &mut rng,
        &mut events,
        &mut applied,
    )
    .await?;
    if !creates.is_empty() {
        create::create(db, moment, creates, &mut rng, &mut events, &mut applied).await?;
    }
    events.extend(applied.unpaused.iter().map(|id| event(at, &unpaused(*id))));
    if !events.is_empty() {
        sql::query(WRITE_EVENTS)
            .bind(Value::Array(events).to_string())
            .execute(&mut *db)
            .await?;
    }
    if sweep > 0 {
        let next: Option<i64> = sql::query_scalar(NEXT_DUE).fetch_optional(&mut *db).await?;
        applied.next_due = next.map(UnixMs::from_sql);
    }
    Ok(applied)
}

/// Runs the rules over inputs, in order, and writes what follows. `worker` is who claims; `budgets` pay for
/// retries, where any may be among them.
pub(super) async fn run(
    db: &mut Connection,
    (at, worker): (UnixMs, Option<Uuid>),
    mut inputs: Vec<Happened>,
    budgets: Option<&RetryBudgets>,
    rng: &mut StdRng,
    events: &mut Vec<Value>,
    applied: &mut Applied,
) -> Result<(), StoreError> {
    if inputs.is_empty() {
        return Ok(());
    }
    let ids = inputs.iter().map(|happened| happened.process).collect();
    let mut rules = Rules::default();
    rules.load(db, ids).await?;
    let claimable = |process, line: &Line| rules.claimable(process, line);
    let stand_ins = stand_in::find(db, &mut inputs, claimable).await?;
    rules.load(db, stand_ins).await?;
    let first = applied.steps.len();
    for happened in inputs {
        let step = rules.step((at, budgets), happened, rng.random(), events);
        applied.steps.push(step);
    }
    rules.write(db, (at, worker), first, applied).await
}

async fn due(db: &mut Connection, at: UnixMs, limit: u32) -> Result<Vec<Happened>, StoreError> {
    let rows = sql::query(DUE)
        .bind(at.to_sql())
        .bind(limit)
        .fetch_all(&mut *db)
        .await?;
    rows.iter()
        .map(|row| {
            let id = ProcessId::from_bytes(id_bytes(row.try_get(0)?)?);
            Ok(Happened::new(id, Input::Due))
        })
        .collect()
}

/// What is to happen to a revoked agent's processes.
async fn abandon(db: &mut Connection, agent: AgentId) -> Result<Vec<Happened>, StoreError> {
    let rows = sql::query(OF_AGENT)
        .bind(agent.to_bytes().to_vec())
        .bind(i64::try_from(ABANDONED_STEP).unwrap_or(i64::MAX))
        .fetch_all(&mut *db)
        .await?;
    rows.iter()
        .map(|row| {
            let id = ProcessId::from_bytes(id_bytes(row.try_get(0)?)?);
            Ok(Happened::new(id, Input::Abandoned))
        })
        .collect()
}

/// Gives a free resource to the oldest process that waits for it.
async fn take_resource(
    db: &mut Connection,
    resource: &str,
) -> Result<Option<Happened>, StoreError> {
    let next: Option<Vec<u8>> = sql::query_scalar(NEXT_HOLDER)
        .bind(resource)
        .fetch_optional(&mut *db)
        .await?;
    let Some(next) = next else {
        return Ok(None);
    };
    let id = ProcessId::from_bytes(id_bytes(&next)?);
    sql::query(TAKE_RESOURCE)
        .bind(resource)
        .bind(next)
        .execute(&mut *db)
        .await?;
    Ok(Some(Happened::new(id, Input::Unblocked)))
}

/// A row, as it was read and as it is now.
pub(super) struct Row {
    pub(super) read: Process,
    pub(super) now: Process,
    /// It has a plan: how steps end is stored with it.
    pub(super) planned: bool,
    /// What its steps need, by their row in the plan.
    needs: BTreeMap<u16, StepNeeds>,
    /// The line of a step.
    line: Option<(StepId, Arc<Line>)>,
    /// Of the last claim in this batch.
    pub(super) grant: GrantId,
    pub(super) outcome: Option<String>,
    /// Steps that ended, by their row in the plan: attempts and outcome.
    pub(super) ended: BTreeMap<u16, (u32, String)>,
    /// Steps from this index on begin anew.
    pub(super) renewed_from: Option<u16>,
    /// It has ended in this batch, though it may have been started over since.
    pub(super) was_over: bool,
}

impl Row {
    fn new((read, planned): (Process, bool)) -> Self {
        Self {
            now: read.clone(),
            read,
            planned,
            needs: BTreeMap::new(),
            line: None,
            grant: GrantId(0),
            outcome: None,
            ended: BTreeMap::new(),
            renewed_from: None,
            was_over: false,
        }
    }

    pub(super) fn is_changed(&self) -> bool {
        self.now != self.read || self.outcome.is_some() || !self.ended.is_empty()
    }

    /// The line of the step at hand.
    fn line_now(&mut self) -> Arc<Line> {
        match &self.line {
            Some((step, line)) if *step == self.now.step => Arc::clone(line),
            _ => {
                let line = Arc::new(self.line_of(&self.now));
                self.line = Some((self.now.step, Arc::clone(&line)));
                line
            }
        }
    }

    /// The line of its step in this state of it.
    pub(super) fn line_of(&self, process: &Process) -> Line {
        process.line(self.needs.get(&process.step.row()))
    }

    /// Keeps what a step of the rules wants stored with the plan. `before` is the process then.
    fn keep(&mut self, before: &Process, step: &Step) {
        if !self.planned {
            return;
        }
        if let Some(outcome) = &step.step_ended {
            let uncounted = before.counted_fence != before.fence && before.state.is_active();
            let attempts = before.attempt.saturating_add(u32::from(uncounted));
            let outcome = stored::outcome(outcome);
            self.ended.insert(before.step.row(), (attempts, outcome));
        }
        if let Some(from) = step.renewed_from {
            self.ended.retain(|row, _| StepId(*row).index() < from);
            let earlier = self.renewed_from.unwrap_or(from);
            self.renewed_from = Some(earlier.min(from));
        }
    }
}

/// The rows of a batch while the rules run over them.
#[derive(Default)]
struct Rules {
    rows: BTreeMap<ProcessId, Row>,
}

impl Rules {
    async fn load(
        &mut self,
        db: &mut Connection,
        ids: BTreeSet<ProcessId>,
    ) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids: Value = ids.into_iter().map(hex).collect();
        let found = sql::query(rows::LOAD)
            .bind(ids.to_string())
            .fetch_all(&mut *db)
            .await?;
        let mut rows = BTreeMap::new();
        for row in &found {
            let row = Row::new(rows::read(row)?);
            rows.insert(row.read.id, row);
        }
        load_needs(db, &mut rows).await?;
        self.rows.extend(rows);
        Ok(())
    }

    /// Whether a process can be claimed on a permit of this line; its agent, if not. Of one that is gone
    /// nothing is known, and nothing done.
    fn claimable(&self, process: ProcessId, line: &Line) -> Result<(), AgentId> {
        match self.rows.get(&process) {
            Some(row) if row.read.state != State::Ready || row.line_of(&row.read) != *line => {
                Err(row.read.target)
            }
            _ => Ok(()),
        }
    }

    fn step(
        &mut self,
        (at, budgets): (UnixMs, Option<&RetryBudgets>),
        happened: Happened,
        chance: f64,
        events: &mut Vec<Value>,
    ) -> Effect {
        let id = happened.process;
        let Some(row) = self.rows.get_mut(&id) else {
            return other(&happened, Process::handle_other_operation(&happened.input));
        };
        if happened.from.is_some_and(|from| from != row.now.target) {
            tracing::warn!(process = %id, agent = ?happened.from, "an agent spoke for another");
            return Effect {
                tell: None,
                ..other(&happened, Step::default())
            };
        }
        if happened.step.is_some_and(|step| step != row.now.step) {
            return Effect {
                now: Some(Now::of(&row.now)),
                before: Some(row.now.state),
                place_before: row.now.ready_at,
                ..other(&happened, Process::handle_other_operation(&happened.input))
            };
        }
        let before = row.now.clone();
        let line_before = row.line_now();
        let claim = happened.input == Input::Claim;
        // Somebody wants it now: the budget of retries is not asked.
        let ordered = matches!(happened.input, Input::Replay(_));
        let mut step = row.now.handle(at, happened.input, chance);
        let waited_to_retry = matches!(before.hold, Some(Hold::Retry | Hold::Budget));
        let retries = waited_to_retry && !ordered && row.now.state == State::Ready;
        let deferred =
            retries && budgets.is_some_and(|all| !all.try_retry(at, row.now.target, &row.now.kind));
        if deferred {
            let until = at.plus(deferral(chance));
            step = row.now.handle(at, Input::Defer(until), chance);
            step.remark = before.hold != row.now.hold;
        }
        if claim && row.now.state == State::Leased && !step.stale {
            row.grant = happened.grant;
        }
        row.keep(&before, &step);
        row.was_over |= row.now.state.is_terminal() && !before.state.is_terminal();
        if let Some(outcome) = &step.outcome {
            row.outcome = Some(stored::outcome(outcome));
        }
        if let Some(progress) = happened.progress.filter(|_| step.keep_progress) {
            let index = row.planned.then(|| before.step.index());
            events.push(event(at, &progressed(&row.now, index, &progress)));
        }
        if before.state != row.now.state || step.remark || step.renewed_from.is_some() {
            let actor = happened.actor.as_deref();
            events.push(event(at, &changed(&row.now, &before, &step, actor)));
        }
        Effect {
            process: id,
            from: happened.from,
            operation: OperationId::new(id, before.step.0),
            now: Some(Now::of(&row.now)),
            before: Some(before.state),
            place_before: before.ready_at,
            names: Some(Names {
                kind: Arc::clone(&row.now.kind),
                tenant: Arc::clone(&row.now.tenant),
                line_before,
                line: row.line_now(),
            }),
            deferred,
            stale: step.stale,
            refused: step.refused,
            tell: step.tell,
            work: None,
            instead_of: happened.instead_of,
        }
    }

    /// Writes what changed and fetches what claimed processes need. `first` is the first of this
    /// run's effects.
    async fn write(
        self,
        db: &mut Connection,
        (at, worker): (UnixMs, Option<Uuid>),
        first: usize,
        applied: &mut Applied,
    ) -> Result<(), StoreError> {
        let mut writes = Writes::new(at, worker);
        for row in self.rows.into_values() {
            if row.is_changed() {
                writes.add(row, &mut applied.freed);
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        let claimed = std::mem::take(&mut writes.claimed);
        applied.unpaused.extend(writes.execute(db).await?);
        if !claimed.is_empty() {
            let steps = applied.steps.get_mut(first..).unwrap_or_default();
            attach_work(db, at, &claimed, steps).await?;
        }
        Ok(())
    }
}

/// Reads what the steps of processes with a plan need.
async fn load_needs(
    db: &mut Connection,
    rows: &mut BTreeMap<ProcessId, Row>,
) -> Result<(), StoreError> {
    let planned = rows.values().filter(|row| row.planned);
    let planned: Vec<Value> = planned.map(|row| Value::from(hex(row.read.id))).collect();
    if planned.is_empty() {
        return Ok(());
    }
    let found = sql::query(lines::NEEDS)
        .bind(Value::Array(planned).to_string())
        .fetch_all(&mut *db)
        .await?;
    for row in &found {
        let id = ProcessId::from_bytes(id_bytes(row.try_get("process_id")?)?);
        let step: u16 = row.try_get("step")?;
        if let (Some(of), Some(needs)) = (rows.get_mut(&id), lines::read_needs(row)?) {
            of.needs.insert(step, needs);
        }
    }
    Ok(())
}

/// A word about a process that the store does not know (any more), or about another operation of it
/// than the one at hand.
fn other(happened: &Happened, step: Step) -> Effect {
    let operation = happened.step.unwrap_or_default();
    Effect {
        process: happened.process,
        from: happened.from,
        operation: OperationId::new(happened.process, operation.0),
        now: None,
        before: None,
        place_before: None,
        names: None,
        deferred: false,
        stale: true,
        refused: step.refused,
        tell: step.tell,
        work: None,
        instead_of: happened.instead_of,
    }
}

/// Gives each successful claim what its agent is to be sent.
async fn attach_work(
    db: &mut Connection,
    at: UnixMs,
    claimed: &BTreeMap<ProcessId, GrantId>,
    steps: &mut [Effect],
) -> Result<(), StoreError> {
    let ids: Value = claimed.keys().copied().map(hex).collect();
    let found = sql::query(WORK)
        .bind(ids.to_string())
        .fetch_all(&mut *db)
        .await?;
    let mut works = BTreeMap::new();
    for row in &found {
        let id = ProcessId::from_bytes(id_bytes(row.try_get("id")?)?);
        let deadline_at = UnixMs::from_sql(row.try_get("deadline_at")?);
        let timeout: Option<i64> = row.try_get("timeout")?;
        let timeout = timeout.map(|ms| at.plus(Duration::from_millis(from_sql(ms))));
        let work = Work {
            kind: row.try_get("operation")?,
            input: row.try_get("input")?,
            deadline_at: timeout.map_or(deadline_at, |end| end.min(deadline_at)),
            grant: claimed.get(&id).copied().unwrap_or_default(),
        };
        works.insert(id, work);
    }
    // Only the last claim of a process counts; an earlier one of the same batch is over.
    for step in steps.iter_mut().rev() {
        if step.before == Some(State::Ready)
            && step.now.is_some_and(|now| now.state == State::Leased)
        {
            step.work = works.remove(&step.process);
        }
    }
    Ok(())
}

impl Now {
    pub(super) fn of(process: &Process) -> Self {
        Self {
            target: process.target,
            state: process.state,
            class: process.class,
            fence: process.fence,
            step: process.step,
            ready_at: process.ready_at,
            due_at: process.due_at,
            deadline_at: process.deadline_at,
            created_at: process.created_at,
        }
    }
}

/// The record of what its agent has told of its work; `index`: in which step, where it has a plan.
fn progressed(process: &Process, index: Option<u16>, progress: &Progress) -> Record {
    let mut data = stored::progress(progress);
    if let Some(index) = index {
        data["step"] = json!(index);
    }
    Record {
        kind: "process.progress",
        process: Some(process.id),
        agent: Some(process.target),
        data,
    }
}

/// The record of a pause that has ended with its process.
fn unpaused(process: ProcessId) -> Record {
    Record {
        kind: "pause.removed",
        process: Some(process),
        agent: None,
        data: json!({
            "scope": PauseScope::Process.as_str(),
            "key": process.to_string(),
            "actor": "system",
            "reason": "the process is over",
        }),
    }
}

/// The record of a change of state, or of a remark.
fn changed(process: &Process, before: &Process, step: &Step, actor: Option<&Actor>) -> Record {
    let mut data = json!({
        "from": before.state.as_str(),
        "to": process.state.as_str(),
        "fence": process.fence.0,
        "attempt": process.attempt,
    });
    if process.shape.steps() > 1 {
        data["step"] = json!(process.step.index());
        if process.step.undoes() {
            data["undoing"] = json!(true);
        }
    }
    if let Some(Actor { by, reason }) = actor {
        data["actor"] = json!(by);
        if let Some(reason) = reason {
            data["reason"] = json!(reason);
        }
    }
    if let Some(note) = &step.note {
        data["note"] = json!(note);
    }
    if let Some(outcome) = step
        .outcome
        .as_ref()
        .filter(|_| process.state.is_terminal())
    {
        data["status"] = json!(stored::status(outcome.status));
        data["exit_code"] = json!(outcome.exit_code);
    }
    let ends = process.state.is_terminal() && !before.state.is_terminal();
    Record {
        kind: if ends {
            "process.finished"
        } else {
            "process.state"
        },
        process: Some(process.id),
        agent: Some(process.target),
        data,
    }
}

/// A row for [`WRITE_EVENTS`].
pub(super) fn event(at: UnixMs, record: &Record) -> Value {
    json!([
        at.to_sql(),
        record.kind,
        record.process.map(hex),
        record.agent.map(|agent| agent.0.simple().to_string()),
        record.data.to_string(),
    ])
}
