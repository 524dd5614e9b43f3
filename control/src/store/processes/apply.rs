//! Applies a batch: reads the rows, runs the rules over them in order, writes what changed.

use std::collections::{BTreeMap, BTreeSet};

use protocol::ids::{AgentId, GrantId, ProcessId};
use protocol::operation::OperationState;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use sqlx::Row as _;

use super::rows::{self, hex};
use super::{Applied, Batch, Effect, Happened, Now, Record, Work, create};
use crate::clock::UnixMs;
use crate::process::{Input, Process, State, Step, Tell};
use crate::store::{Connection, StoreError, id_bytes, stored, to_sql};

/// Every write of the rules, in one go: each switch to the backend's thread costs more than a row.
/// $1 … $10 are JSON arrays. Not `?1 … ?10`: the driver binds those by counting over all statements
/// of a text, and gives NULL to the later ones; `$` parameters it binds by name.
pub(super) const WRITE: &str = "
    UPDATE process SET
        state = j.value ->> 1, due_at = j.value ->> 2, ready_at = j.value ->> 3,
        attempt = j.value ->> 4, counted_fence = j.value ->> 5, busy_count = j.value ->> 6,
        fence = j.value ->> 7, progress_next = j.value ->> 8, progress_rows = j.value ->> 9,
        progress_bytes = j.value ->> 10, progress_dropped = j.value ->> 11,
        started_at = j.value ->> 12, finished_at = j.value ->> 13
    FROM json_each($1) AS j
    WHERE process.id = unhex(j.value ->> 0) AND process.fence = j.value ->> 14;

    DELETE FROM process_timer WHERE (due_at, process_id) IN
        (SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($2) AS j);
    INSERT OR IGNORE INTO process_timer (due_at, process_id)
        SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($3) AS j;

    DELETE FROM process_ready WHERE (target_id, class, ready_at, process_id) IN
        (SELECT unhex(j.value ->> 0), j.value ->> 1, j.value ->> 2, unhex(j.value ->> 3)
         FROM json_each($4) AS j);
    INSERT OR IGNORE INTO process_ready (target_id, class, ready_at, process_id)
        SELECT unhex(j.value ->> 0), j.value ->> 1, j.value ->> 2, unhex(j.value ->> 3)
        FROM json_each($5) AS j;

    DELETE FROM process_lease WHERE process_id IN
        (SELECT unhex(j.value) FROM json_each($6) AS j);
    INSERT OR REPLACE INTO process_lease (process_id, target_id, fence, grant_id, claimed_at)
        SELECT unhex(j.value ->> 0), unhex(j.value ->> 1), j.value ->> 2, j.value ->> 3,
               j.value ->> 4
        FROM json_each($7) AS j;

    UPDATE process_payload SET outcome = j.value ->> 1
        FROM json_each($8) AS j WHERE process_payload.process_id = unhex(j.value ->> 0);

    DELETE FROM process_blocked WHERE (resource, process_id) IN
        (SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($9) AS j);
    DELETE FROM process_resource WHERE (resource, process_id) IN
        (SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($10) AS j)";

pub(super) const WRITE_EVENTS: &str = "
    INSERT INTO process_event (at, type, process_id, agent_id, data)
    SELECT j.value ->> 0, j.value ->> 1, unhex(j.value ->> 2), unhex(j.value ->> 3), j.value ->> 4
    FROM json_each($1) AS j";

pub(super) const DUE: &str = "SELECT process_id FROM process_timer WHERE due_at <= $1
     ORDER BY due_at, process_id LIMIT $2";

/// Unfinished processes of an agent.
pub(super) const OF_AGENT: &str =
    "SELECT id FROM process WHERE target_id = $1 AND finished_at IS NULL LIMIT $2";

/// Processes of one revoked agent that one batch ends.
const ABANDONED_STEP: usize = 1000;

pub(super) const NEXT_DUE: &str = "SELECT due_at FROM process_timer ORDER BY due_at LIMIT 1";

pub(super) const TAKE_RESOURCE: &str = "
    INSERT INTO process_resource (resource, process_id)
    SELECT resource, process_id FROM process_blocked WHERE resource = $1
    ORDER BY process_id LIMIT 1
    ON CONFLICT (resource) DO NOTHING
    RETURNING process_id";

pub(super) const WORK: &str = "
    SELECT p.id, p.kind, p.deadline_at, d.input
    FROM json_each($1) AS j
    CROSS JOIN process AS p ON p.id = unhex(j.value)
    JOIN process_payload AS d ON d.process_id = p.id";

pub(super) async fn apply(db: &mut Connection, batch: Batch) -> Result<Applied, StoreError> {
    let Batch {
        at,
        seed,
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
    if !inputs.is_empty() {
        let mut rules = Rules::load(db, &inputs).await?;
        for happened in inputs {
            let step = rules.step(at, happened, rng.random(), &mut events);
            applied.steps.push(step);
        }
        rules.write(db, at, &mut applied).await?;
    }
    if !creates.is_empty() {
        applied.creations = create::create(db, at, creates, &mut rng, &mut events).await?;
    }
    if !events.is_empty() {
        sqlx::query(WRITE_EVENTS)
            .bind(Value::Array(events).to_string())
            .execute(&mut *db)
            .await?;
    }
    if sweep > 0 {
        let next: Option<i64> = sqlx::query_scalar(NEXT_DUE)
            .fetch_optional(&mut *db)
            .await?;
        applied.next_due = next.map(UnixMs::from_sql);
    }
    Ok(applied)
}

async fn due(db: &mut Connection, at: UnixMs, limit: u32) -> Result<Vec<Happened>, StoreError> {
    let rows = sqlx::query(DUE)
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
    let rows = sqlx::query(OF_AGENT)
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
    let row = sqlx::query(TAKE_RESOURCE)
        .bind(resource)
        .fetch_optional(&mut *db)
        .await?;
    row.map(|row| {
        let id = ProcessId::from_bytes(id_bytes(row.try_get(0)?)?);
        Ok(Happened::new(id, Input::Unblocked))
    })
    .transpose()
}

/// A row, as it was read and as it is now.
struct Row {
    read: Process,
    now: Process,
    /// Of the last claim in this batch.
    grant: GrantId,
    outcome: Option<String>,
}

/// The rows of a batch while the rules run over them.
struct Rules {
    rows: BTreeMap<ProcessId, Row>,
}

impl Rules {
    async fn load(db: &mut Connection, inputs: &[Happened]) -> Result<Self, StoreError> {
        let ids: BTreeSet<ProcessId> = inputs.iter().map(|happened| happened.process).collect();
        let ids: Value = ids.into_iter().map(hex).collect();
        let found = sqlx::query(rows::LOAD)
            .bind(ids.to_string())
            .fetch_all(&mut *db)
            .await?;
        let mut rows = BTreeMap::new();
        for row in &found {
            let read = rows::read(row)?;
            let row = Row {
                now: read.clone(),
                grant: GrantId(0),
                outcome: None,
                read,
            };
            rows.insert(row.read.id, row);
        }
        Ok(Self { rows })
    }

    fn step(
        &mut self,
        at: UnixMs,
        happened: Happened,
        chance: f64,
        events: &mut Vec<Value>,
    ) -> Effect {
        let id = happened.process;
        let Some(row) = self.rows.get_mut(&id) else {
            return unknown(&happened);
        };
        if happened.from.is_some_and(|from| from != row.now.target) {
            tracing::warn!(process = %id, agent = ?happened.from, "an agent spoke for another");
            return Effect {
                tell: None,
                ..unknown(&happened)
            };
        }
        let before = row.now.state;
        let place_before = row.now.ready_at;
        let claim = happened.input == Input::Claim;
        let step = row.now.handle(at, happened.input, chance);
        if claim && row.now.state == State::Leased && !step.stale {
            row.grant = happened.grant;
        }
        if let Some(outcome) = &step.outcome {
            row.outcome = Some(stored::outcome(outcome));
        }
        if let Some(progress) = happened.progress.filter(|_| step.keep_progress) {
            events.push(event(
                at,
                &Record {
                    kind: "process.progress",
                    process: Some(id),
                    agent: Some(row.now.target),
                    data: stored::progress(&progress),
                },
            ));
        }
        if before != row.now.state {
            events.push(event(at, &changed(&row.now, before, &step)));
        }
        Effect {
            process: id,
            from: happened.from,
            now: Some(Now::of(&row.now)),
            before: Some(before),
            place_before,
            stale: step.stale,
            tell: step.tell,
            work: None,
        }
    }

    /// Writes what changed and fetches what claimed processes need.
    async fn write(
        self,
        db: &mut Connection,
        at: UnixMs,
        applied: &mut Applied,
    ) -> Result<(), StoreError> {
        let mut writes = Writes::default();
        for row in self.rows.into_values() {
            if row.now != row.read || row.outcome.is_some() {
                writes.add(at, row, &mut applied.freed);
            }
        }
        if writes.updates.is_empty() {
            return Ok(());
        }
        let claimed = std::mem::take(&mut writes.claimed);
        writes.execute(db).await?;
        if !claimed.is_empty() {
            attach_work(db, &claimed, &mut applied.steps).await?;
        }
        Ok(())
    }
}

/// A word about a process that the store does not know (any more).
fn unknown(happened: &Happened) -> Effect {
    let over = matches!(
        happened.input,
        Input::Finished(..) | Input::Report(_, OperationState::Finished(_))
    );
    Effect {
        process: happened.process,
        from: happened.from,
        now: None,
        before: None,
        place_before: None,
        stale: true,
        tell: over.then_some(Tell::Forget),
        work: None,
    }
}

/// The arrays of [`WRITE`].
#[derive(Default)]
struct Writes {
    updates: Vec<Value>,
    timers: [Vec<Value>; 2],
    ready: [Vec<Value>; 2],
    leases: [Vec<Value>; 2],
    outcomes: Vec<Value>,
    unblocked: Vec<Value>,
    released: Vec<Value>,
    claimed: BTreeMap<ProcessId, GrantId>,
}

impl Writes {
    fn add(&mut self, at: UnixMs, row: Row, freed: &mut Vec<String>) {
        let Row {
            read,
            now,
            grant,
            outcome,
        } = row;
        let id = hex(now.id);
        self.updates.push(rows::update(&now, read.fence));
        if read.due_at != now.due_at {
            let row = |due: UnixMs| json!([due.to_sql(), id]);
            self.timers[0].extend(read.due_at.map(row));
            self.timers[1].extend(now.due_at.map(row));
        }
        if read.ready_at != now.ready_at {
            let target = now.target.0.simple().to_string();
            let row = |at: UnixMs| json!([target, now.class.to_sql(), at.to_sql(), id]);
            self.ready[0].extend(read.ready_at.map(row));
            self.ready[1].extend(now.ready_at.map(row));
        }
        if read.state.is_active() && !now.state.is_active() {
            self.leases[0].push(json!(id));
        }
        if now.state.is_active() && (!read.state.is_active() || now.fence != read.fence) {
            let target = now.target.0.simple().to_string();
            let (fence, grant) = (to_sql(now.fence.0), to_sql(grant.0));
            self.leases[1].push(json!([id, target, fence, grant, at.to_sql()]));
        }
        if now.state == State::Leased && now.fence != read.fence {
            self.claimed.insert(now.id, grant);
        }
        if let Some(outcome) = outcome {
            self.outcomes.push(json!([id, outcome]));
        }
        if let Some(resource) = now.resource {
            if read.state == State::Blocked && now.state != State::Blocked {
                self.unblocked.push(json!([resource, id]));
            }
            if now.state.is_terminal() && !read.state.is_terminal() {
                self.released.push(json!([resource, id]));
                freed.push(resource);
            }
        }
    }

    async fn execute(self, db: &mut Connection) -> Result<(), StoreError> {
        let [timers_gone, timers_new] = self.timers;
        let [ready_gone, ready_new] = self.ready;
        let [leases_gone, leases_new] = self.leases;
        let arrays = [
            self.updates,
            timers_gone,
            timers_new,
            ready_gone,
            ready_new,
            leases_gone,
            leases_new,
            self.outcomes,
            self.unblocked,
            self.released,
        ];
        let mut query = sqlx::query(WRITE);
        for array in arrays {
            query = query.bind(Value::Array(array).to_string());
        }
        query.execute(&mut *db).await?;
        Ok(())
    }
}

/// Gives each successful claim what its agent is to be sent.
async fn attach_work(
    db: &mut Connection,
    claimed: &BTreeMap<ProcessId, GrantId>,
    steps: &mut [Effect],
) -> Result<(), StoreError> {
    let ids: Value = claimed.keys().copied().map(hex).collect();
    let found = sqlx::query(WORK)
        .bind(ids.to_string())
        .fetch_all(&mut *db)
        .await?;
    let mut works = BTreeMap::new();
    for row in &found {
        let id = ProcessId::from_bytes(id_bytes(row.try_get("id")?)?);
        let work = Work {
            kind: row.try_get("kind")?,
            input: row.try_get("input")?,
            deadline_at: UnixMs::from_sql(row.try_get("deadline_at")?),
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
            ready_at: process.ready_at,
            due_at: process.due_at,
            deadline_at: process.deadline_at,
            created_at: process.created_at,
        }
    }
}

/// The record of a change of state.
fn changed(process: &Process, before: State, step: &Step) -> Record {
    let mut data = json!({
        "from": before.as_str(),
        "to": process.state.as_str(),
        "fence": process.fence.0,
        "attempt": process.attempt,
    });
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
    Record {
        kind: if process.state.is_terminal() {
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
