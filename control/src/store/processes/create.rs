//! Makes processes: idempotency keys, what they make needless, resources, and the rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use protocol::flow::Line;
use protocol::ids::{Fence, ProcessId};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use uuid::{Builder, Uuid};

use super::apply::{self, event};
use super::rows::hex;
use super::{
    Actor, Applied, BLOCKED_PER_RESOURCE_MAX, Creation, Happened, IDEMPOTENCY_LIFE, IdempotencyKey,
    NewProcess, Record,
};
use crate::clock::UnixMs;
use crate::process::{Input, PLAN_VERSION, Plan, PlanOperation, Shape, State, StepId};
use crate::store::queries::{self, ProcessRecord};
use crate::store::sql;
use crate::store::{Connection, StoreError, id_bytes, lines, to_sql};

/// Every row of new processes; $6 is when keys end, $7 is now.
pub(super) const INSERT: &str = "
    INSERT INTO process (id, kind, target_id, class, resource, state, due_at, ready_at,
        deadline_at, attempt, counted_fence, max_attempts, busy_count, fence, progress_next,
        progress_rows, progress_bytes, progress_dropped, created_at, tenant, life, schema_version,
        steps, \"undo\")
    SELECT j.id, j.kind, j.target_id, j.class, j.resource, j.state, j.due_at, j.ready_at,
        j.deadline_at, 0, 0, j.max_attempts, 0, 0, 0, 0, 0, 0, $7, j.tenant, j.life,
        j.schema_version, j.steps, j.undo
    FROM LIST($1: id hex, kind text, target_id hex, class int, resource text, state text,
        due_at int, ready_at int, deadline_at int, max_attempts int, tenant text, life int,
        schema_version int, steps int, undo int) AS j;

    INSERT INTO process_payload (process_id, input)
        SELECT j.id, j.input FROM LIST($2: id hex, input text) AS j;
    INSERT INTO process_timer (due_at, process_id)
        SELECT j.due_at, j.id FROM LIST($9: due_at int, id hex) AS j;
    INSERT INTO process_ready (target_id, line, ready_at, process_id, deadline_at, tenant, kind)
        SELECT j.target_id, j.line, j.ready_at, j.id, j.deadline_at, j.tenant, j.kind
        FROM LIST($10: target_id hex, line text, ready_at int, id hex, deadline_at int,
            tenant text, kind text) AS j;
    INSERT INTO process_plan (process_id, step, name, operation, input, timeout, class, resources)
        SELECT j.id, j.step, j.name, j.operation, j.input, j.timeout, j.class, j.resources
        FROM LIST($8: id hex, step int, name text, operation text, input text, timeout int,
            class text, resources text) AS j;
    INSERT INTO process_resource (resource, process_id)
        SELECT j.resource, j.id FROM LIST($3: resource text, id hex) AS j;
    INSERT INTO process_blocked (resource, process_id)
        SELECT j.resource, j.id FROM LIST($4: resource text, id hex) AS j;
    INSERT INTO idempotency (scope, idem_key, fingerprint, process_id, expires_at)
        SELECT j.scope, j.name, j.fingerprint, j.id, $6
        FROM LIST($5: scope text, name text, fingerprint hex, id hex) AS j
        WHERE true ON CONFLICT (scope, idem_key) DO UPDATE SET
            fingerprint = excluded.fingerprint, process_id = excluded.process_id,
            expires_at = excluded.expires_at";

pub(super) const KNOWN_KEYS: &str = "
    SELECT i.scope, i.idem_key, i.fingerprint, i.process_id
    FROM LIST($1: scope text, name text) AS j
    CROSS JOIN idempotency AS i ON i.scope = j.scope AND i.idem_key = j.name
    WHERE i.expires_at > $2";

pub(super) const HELD: &str = "
    SELECT j.name,
        (SELECT count(*) FROM process_blocked AS b WHERE b.resource = j.name) AS waiting,
        EXISTS (SELECT 1 FROM process_resource AS r WHERE r.resource = j.name) AS held
    FROM EACH($1: name text) AS j";

/// Those that have not started of a kind, on a resource; next to each, who makes it needless.
pub(crate) const NEEDLESS: &str = "
    SELECT p.id, j.maker FROM LIST($1: resource text, kind text, maker text) AS j
    CROSS JOIN process_blocked AS b ON b.resource = j.resource
    CROSS JOIN process AS p ON p.id = b.process_id
    WHERE p.kind = j.kind AND p.started_at IS NULL
    UNION
    SELECT p.id, j.maker FROM LIST($1: resource text, kind text, maker text) AS j
    CROSS JOIN process_resource AS r ON r.resource = j.resource
    CROSS JOIN process AS p ON p.id = r.process_id
    WHERE p.kind = j.kind AND p.started_at IS NULL AND p.finished_at IS NULL";

/// Resources that somebody holds or waits for, and how many wait.
type Held = BTreeMap<String, u32>;

/// Scope and key, and what they were used for.
type Keys = HashMap<(String, String), (Vec<u8>, ProcessId)>;

/// The arrays of [`INSERT`].
#[derive(Default)]
struct Rows {
    processes: Vec<Value>,
    inputs: Vec<Value>,
    timers: Vec<Value>,
    ready: Vec<Value>,
    holders: Vec<Value>,
    blocked: Vec<Value>,
    keys: Vec<Value>,
    plans: Vec<Value>,
}

/// A process that is about to be made.
struct Slot {
    /// Its place in the batch.
    at: usize,
    id: ProcessId,
    create: NewProcess,
}

pub(super) async fn create(
    db: &mut Connection,
    (at, worker): (UnixMs, Option<Uuid>),
    creates: Vec<NewProcess>,
    rng: &mut StdRng,
    events: &mut Vec<Value>,
    applied: &mut Applied,
) -> Result<(), StoreError> {
    let mut keys = known_keys(db, at, &creates).await?;
    let mut creations = Vec::with_capacity(creates.len());
    applied.lines = vec![None; creates.len()];
    let mut slots = Vec::with_capacity(creates.len());
    for (index, create) in creates.into_iter().enumerate() {
        if let Some(earlier) = create.idempotency.as_ref().and_then(|key| seen(&keys, key)) {
            creations.push(Some(earlier));
            continue;
        }
        let id = new_id(at, index, rng);
        if let Some(key) = &create.idempotency {
            let name = (key.scope.clone(), key.key.clone());
            keys.insert(name, (key.fingerprint.to_vec(), id));
        }
        creations.push(None);
        slots.push(Slot {
            at: index,
            id,
            create,
        });
    }
    let mut refused = BTreeMap::new();
    for group in independent(slots) {
        let needless = needless(db, &group).await?;
        apply::run(db, (at, worker), needless, None, rng, events, applied).await?;
        let mut held = held_resources(db, &group).await?;
        let mut rows = Rows::default();
        for slot in group {
            let creation = match too_many(&slot, &held) {
                Some(waiting) => {
                    refused.insert(slot.id, waiting);
                    Creation::ResourceFull { waiting }
                }
                None => {
                    let actor = slot.create.actor.clone();
                    let (record, line) = rows.add(at, slot.id, slot.create, &mut held);
                    if let Some(place) = applied.lines.get_mut(slot.at) {
                        *place = line;
                    }
                    events.push(event(at, &created(&record, actor.as_ref())));
                    Creation::Created(Box::new(record))
                }
            };
            if let Some(place) = creations.get_mut(slot.at) {
                *place = Some(creation);
            }
        }
        rows.insert(db, at).await?;
    }
    let creations = creations.into_iter().flatten();
    // A repetition of one that was refused is refused as well.
    let mut creations: Vec<Creation> = creations
        .map(|creation| match creation {
            Creation::Trimmed { process } => match refused.get(&process) {
                Some(waiting) => Creation::ResourceFull { waiting: *waiting },
                None => creation,
            },
            other => other,
        })
        .collect();
    fill_existing(db, &mut creations).await?;
    applied.creations = creations;
    Ok(())
}

/// How many wait for its resource, if those are too many for one more.
fn too_many(slot: &Slot, held: &Held) -> Option<u32> {
    let waiting = held.get(slot.create.resource.as_ref()?)?;
    (*waiting >= BLOCKED_PER_RESOURCE_MAX).then_some(*waiting)
}

/// In groups in which none can make another one needless: usually one.
fn independent(slots: Vec<Slot>) -> Vec<Vec<Slot>> {
    let mut groups: Vec<Vec<Slot>> = Vec::new();
    let mut named: BTreeSet<String> = BTreeSet::new();
    for slot in slots {
        let resource = slot.create.resource.clone();
        let meets = !slot.create.supersedes.is_empty()
            && resource.as_ref().is_some_and(|name| named.contains(name));
        if meets {
            named.clear();
        }
        named.extend(resource);
        match groups.last_mut() {
            Some(group) if !meets => group.push(slot),
            _ => groups.push(vec![slot]),
        }
    }
    groups
}

/// What these make needless.
async fn needless(db: &mut Connection, group: &[Slot]) -> Result<Vec<Happened>, StoreError> {
    let mut asked = Vec::new();
    for Slot { id, create, .. } in group {
        if let Some(resource) = &create.resource {
            let kinds = create.supersedes.iter();
            asked.extend(kinds.map(|kind| json!([resource, kind, hex(*id)])));
        }
    }
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sql::query(NEEDLESS)
        .bind(Value::Array(asked).to_string())
        .fetch_all(&mut *db)
        .await?;
    rows.iter()
        .map(|row| {
            let id = ProcessId::from_bytes(id_bytes(row.try_get(0)?)?);
            let by: &str = row.try_get(1)?;
            let by = Uuid::try_parse(by)
                .map_err(|error| StoreError::BadRow(format!("an id: {error}")))?;
            Ok(Happened::new(id, Input::Supersede(ProcessId(by))))
        })
        .collect()
}

/// What an earlier use of the key means for this one. The process is filled in later.
fn seen(keys: &Keys, key: &IdempotencyKey) -> Option<Creation> {
    let (fingerprint, process) = keys.get(&(key.scope.clone(), key.key.clone()))?;
    let process = *process;
    Some(if fingerprint[..] == key.fingerprint {
        Creation::Trimmed { process }
    } else {
        Creation::KeyConflict { process }
    })
}

/// `Trimmed` so far only means "made earlier": those that are still there become `Existing`.
async fn fill_existing(db: &mut Connection, creations: &mut [Creation]) -> Result<(), StoreError> {
    let ids: BTreeSet<ProcessId> = creations
        .iter()
        .filter_map(|creation| match creation {
            Creation::Trimmed { process } => Some(*process),
            _ => None,
        })
        .collect();
    if ids.is_empty() {
        return Ok(());
    }
    let found: BTreeMap<ProcessId, ProcessRecord> = queries::by_ids(db, ids)
        .await?
        .into_iter()
        .map(|record| (record.id, record))
        .collect();
    for creation in creations {
        if let Creation::Trimmed { process } = creation
            && let Some(record) = found.get(process)
        {
            *creation = Creation::Existing(Box::new(record.clone()));
        }
    }
    Ok(())
}

impl Rows {
    fn add(
        &mut self,
        at: UnixMs,
        id: ProcessId,
        create: NewProcess,
        held: &mut Held,
    ) -> (ProcessRecord, Option<Arc<Line>>) {
        let later = create.run_at.filter(|run_at| *run_at > at);
        let mut state = match later {
            Some(_) => State::Scheduled,
            None => State::Ready,
        };
        // One for later gets in line for its resource when its time has come.
        if let Some(resource) = create.resource.as_ref().filter(|_| later.is_none()) {
            if let Some(waiting) = held.get_mut(resource) {
                *waiting += 1;
                self.blocked.push(json!([resource, hex(id)]));
                state = State::Blocked;
            } else {
                held.insert(resource.clone(), 0);
                self.holders.push(json!([resource, hex(id)]));
            }
        }
        let due_at = match state {
            State::Scheduled => later.map_or(create.deadline_at, |at| at.min(create.deadline_at)),
            _ => create.deadline_at,
        };
        let ready_at = (state == State::Ready).then_some(at);
        if let Some(key) = &create.idempotency {
            self.add_key(id, key);
        }
        let shape = create.plan.as_ref().map_or(Shape::ONE, Plan::shape);
        let version = create.plan.as_ref().map_or(0, |_| PLAN_VERSION);
        if let Some(plan) = &create.plan {
            self.add_plan(id, plan);
        }
        let life = later.unwrap_or(at).until(create.deadline_at);
        let line = ready_at.map(|_| Arc::new(create.line()));
        let target = create.agent.0.simple().to_string();
        self.timers.push(json!([due_at.to_sql(), hex(id)]));
        if let Some(line) = &line {
            let deadline = create.deadline_at.to_sql();
            let (line, at) = (lines::to_sql(line), at.to_sql());
            let (tenant, kind) = (&create.tenant, &create.kind);
            let place = json!([target, line, at, hex(id), deadline, tenant, kind]);
            self.ready.push(place);
        }
        self.processes.push(json!([
            hex(id),
            create.kind,
            target,
            create.class.to_sql(),
            create.resource,
            state.as_str(),
            due_at.to_sql(),
            ready_at.map(UnixMs::to_sql),
            create.deadline_at.to_sql(),
            create.max_attempts,
            create.tenant,
            to_sql(u64::try_from(life.as_millis()).unwrap_or(u64::MAX)),
            version,
            shape.steps(),
            shape.undo_bits(),
        ]));
        self.inputs.push(json!([hex(id), create.input]));
        (made(at, id, create, (state, due_at, shape)), line)
    }

    fn add_key(&mut self, id: ProcessId, key: &IdempotencyKey) {
        let fingerprint = bytes_hex(&key.fingerprint);
        self.keys
            .push(json!([key.scope, key.key, fingerprint, hex(id)]));
    }

    fn add_plan(&mut self, id: ProcessId, plan: &Plan) {
        let mut add = |number: StepId, name: &str, work: &PlanOperation, more: (Value, Value)| {
            let timeout = u64::try_from(work.timeout.as_millis()).unwrap_or(u64::MAX);
            self.plans.push(json!([
                hex(id),
                number.row(),
                name,
                work.operation,
                work.input,
                timeout.min(1 << 53),
                more.0,
                more.1,
            ]));
        };
        for (index, step) in plan.steps.iter().enumerate() {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            let resources = json!(json!(step.resources).to_string());
            let more = (json!(step.class), resources.clone());
            add(StepId::forward(index, 0), &step.name, &step.work, more);
            if let Some(undo) = &step.undo {
                let more = (json!(step.class), resources);
                add(StepId::undo(index, 0), &step.name, undo, more);
            }
        }
    }

    async fn insert(self, db: &mut Connection, at: UnixMs) -> Result<(), StoreError> {
        let text = |array: Vec<Value>| Value::Array(array).to_string();
        sql::query(INSERT)
            .bind(text(self.processes))
            .bind(text(self.inputs))
            .bind(text(self.holders))
            .bind(text(self.blocked))
            .bind(text(self.keys))
            .bind(at.plus(IDEMPOTENCY_LIFE).to_sql())
            .bind(at.to_sql())
            .bind(text(self.plans))
            .bind(text(self.timers))
            .bind(text(self.ready))
            .execute(&mut *db)
            .await?;
        Ok(())
    }
}

/// A new process as the API shows it.
fn made(
    at: UnixMs,
    id: ProcessId,
    create: NewProcess,
    (state, due_at, shape): (State, UnixMs, Shape),
) -> ProcessRecord {
    ProcessRecord {
        id,
        kind: create.kind,
        tenant: create.tenant,
        agent: create.agent,
        class: create.class,
        resource: create.resource,
        state,
        step: StepId::default(),
        steps: shape.steps(),
        planned: create.plan.is_some(),
        fate: None,
        hold: None,
        needs_attention: false,
        paused: None,
        attempts: 0,
        max_attempts: create.max_attempts,
        fence: Fence(0),
        created_at: at,
        started_at: None,
        finished_at: None,
        deadline_at: create.deadline_at,
        due_at: Some(due_at),
        life: at.until(create.deadline_at),
        progress_dropped: 0,
        outcome: None,
    }
}

async fn known_keys(
    db: &mut Connection,
    at: UnixMs,
    creates: &[NewProcess],
) -> Result<Keys, StoreError> {
    let asked: Vec<Value> = creates
        .iter()
        .filter_map(|create| create.idempotency.as_ref())
        .map(|key| json!([key.scope, key.key]))
        .collect();
    if asked.is_empty() {
        return Ok(Keys::new());
    }
    let rows = sql::query(KNOWN_KEYS)
        .bind(Value::Array(asked).to_string())
        .bind(at.to_sql())
        .fetch_all(&mut *db)
        .await?;
    rows.iter()
        .map(|row| {
            let process = ProcessId::from_bytes(id_bytes(row.try_get(3)?)?);
            Ok((
                (row.try_get(0)?, row.try_get(1)?),
                (row.try_get(2)?, process),
            ))
        })
        .collect()
}

/// Of the resources that new processes name, those that somebody holds or waits for.
async fn held_resources(db: &mut Connection, group: &[Slot]) -> Result<Held, StoreError> {
    let named: BTreeSet<&str> = group
        .iter()
        .filter_map(|slot| slot.create.resource.as_deref())
        .collect();
    if named.is_empty() {
        return Ok(Held::new());
    }
    let rows = sql::query(HELD)
        .bind(json!(named).to_string())
        .fetch_all(&mut *db)
        .await?;
    let mut resources = Held::new();
    for row in &rows {
        let (waiting, held): (u32, bool) = (row.try_get(1)?, row.try_get(2)?);
        if held || waiting > 0 {
            resources.insert(row.try_get(0)?, waiting);
        }
    }
    Ok(resources)
}

/// A version 7 id (RFC 9562 §5.7, method 1): milliseconds, then the place in the batch, then chance.
fn new_id(at: UnixMs, index: usize, rng: &mut impl Rng) -> ProcessId {
    let mut random: [u8; 10] = rng.random();
    let [high, low] = u16::try_from(index % 0x1000).unwrap_or(0).to_be_bytes();
    (random[0], random[1]) = (high, low);
    ProcessId(Builder::from_unix_timestamp_millis(at.0, &random).into_uuid())
}

fn created(record: &ProcessRecord, actor: Option<&Actor>) -> Record {
    let mut data = json!({ "kind": record.kind, "state": record.state.as_str() });
    if let Some(Actor { by, reason }) = actor {
        data["actor"] = json!(by);
        if let Some(reason) = reason {
            data["reason"] = json!(reason);
        }
    }
    Record {
        kind: "process.created",
        process: Some(record.id),
        agent: Some(record.agent),
        data,
    }
}

fn bytes_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
