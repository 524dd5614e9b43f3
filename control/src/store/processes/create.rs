//! Makes processes: idempotency keys, resources, and the rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use protocol::ids::{Fence, ProcessId};
use rand::Rng;
use serde_json::{Value, json};
use sqlx::Row as _;
use uuid::Builder;

use super::apply::event;
use super::rows::hex;
use super::{Creation, IDEMPOTENCY_LIFE, IdempotencyKey, NewProcess, Record};
use crate::clock::UnixMs;
use crate::process::State;
use crate::store::queries::{self, ProcessRecord};
use crate::store::{Connection, StoreError, id_bytes};

/// Every row of new processes; $1 … $5 are JSON arrays, $6 is when keys end, $7 is now. See
/// [`super::apply::WRITE`] on `$`.
pub(super) const INSERT: &str = "
    INSERT INTO process (id, kind, target_id, class, resource, state, due_at, ready_at,
        deadline_at, attempt, counted_fence, max_attempts, busy_count, fence, progress_next,
        progress_rows, progress_bytes, progress_dropped, created_at)
    SELECT unhex(j.value ->> 0), j.value ->> 1, unhex(j.value ->> 2), j.value ->> 3,
           j.value ->> 4, j.value ->> 5, j.value ->> 6, j.value ->> 7, j.value ->> 8,
           0, 0, j.value ->> 9, 0, 0, 0, 0, 0, 0, $7
    FROM json_each($1) AS j;

    INSERT INTO process_payload (process_id, input)
        SELECT unhex(j.value ->> 0), j.value ->> 1 FROM json_each($2) AS j;
    INSERT INTO process_timer (due_at, process_id)
        SELECT j.value ->> 6, unhex(j.value ->> 0) FROM json_each($1) AS j;
    INSERT INTO process_ready (target_id, class, ready_at, process_id)
        SELECT unhex(j.value ->> 2), j.value ->> 3, j.value ->> 7, unhex(j.value ->> 0)
        FROM json_each($1) AS j WHERE j.value ->> 7 IS NOT NULL;
    INSERT INTO process_resource (resource, process_id)
        SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($3) AS j;
    INSERT INTO process_blocked (resource, process_id)
        SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($4) AS j;
    INSERT OR REPLACE INTO idempotency (scope, idem_key, fingerprint, process_id, expires_at)
        SELECT j.value ->> 0, j.value ->> 1, unhex(j.value ->> 2), unhex(j.value ->> 3), $6
        FROM json_each($5) AS j";

pub(super) const KNOWN_KEYS: &str = "
    SELECT i.scope, i.idem_key, i.fingerprint, i.process_id
    FROM json_each($1) AS j
    CROSS JOIN idempotency AS i ON i.scope = j.value ->> 0 AND i.idem_key = j.value ->> 1
    WHERE i.expires_at > $2";

pub(super) const HELD: &str = "
    SELECT r.resource FROM json_each($1) AS j
    CROSS JOIN process_resource AS r ON r.resource = j.value
    UNION
    SELECT b.resource FROM json_each($1) AS j
    CROSS JOIN process_blocked AS b ON b.resource = j.value";

/// Scope and key, and what they were used for.
type Keys = HashMap<(String, String), (Vec<u8>, ProcessId)>;

/// The arrays of [`INSERT`].
#[derive(Default)]
struct Rows {
    processes: Vec<Value>,
    inputs: Vec<Value>,
    holders: Vec<Value>,
    blocked: Vec<Value>,
    keys: Vec<Value>,
}

pub(super) async fn create(
    db: &mut Connection,
    at: UnixMs,
    creates: Vec<NewProcess>,
    rng: &mut impl Rng,
    events: &mut Vec<Value>,
) -> Result<Vec<Creation>, StoreError> {
    let mut keys = known_keys(db, at, &creates).await?;
    let mut held = held_resources(db, &creates).await?;
    let mut rows = Rows::default();
    let mut creations = Vec::with_capacity(creates.len());
    for (index, create) in creates.into_iter().enumerate() {
        if let Some(earlier) = create.idempotency.as_ref().and_then(|key| seen(&keys, key)) {
            creations.push(earlier);
            continue;
        }
        let id = new_id(at, index, rng);
        if let Some(IdempotencyKey {
            scope,
            key,
            fingerprint,
        }) = &create.idempotency
        {
            keys.insert((scope.clone(), key.clone()), (fingerprint.to_vec(), id));
            rows.keys
                .push(json!([scope, key, bytes_hex(fingerprint), hex(id)]));
        }
        let record = rows.add(at, id, create, &mut held);
        events.push(event(at, &created(&record)));
        creations.push(Creation::Created(Box::new(record)));
    }
    if !rows.processes.is_empty() {
        rows.insert(db, at).await?;
    }
    fill_existing(db, &mut creations).await?;
    Ok(creations)
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
        held: &mut BTreeSet<String>,
    ) -> ProcessRecord {
        let later = create.run_at.filter(|run_at| *run_at > at);
        let mut state = match later {
            Some(_) => State::Scheduled,
            None => State::Ready,
        };
        if let Some(resource) = &create.resource {
            if held.insert(resource.clone()) {
                self.holders.push(json!([resource, hex(id)]));
            } else {
                self.blocked.push(json!([resource, hex(id)]));
                state = State::Blocked;
            }
        }
        let due_at = match state {
            State::Scheduled => later.map_or(create.deadline_at, |at| at.min(create.deadline_at)),
            _ => create.deadline_at,
        };
        let ready_at = (state == State::Ready).then_some(at);
        self.processes.push(json!([
            hex(id),
            create.kind,
            create.agent.0.simple().to_string(),
            create.class.to_sql(),
            create.resource,
            state.as_str(),
            due_at.to_sql(),
            ready_at.map(UnixMs::to_sql),
            create.deadline_at.to_sql(),
            create.max_attempts,
        ]));
        self.inputs.push(json!([hex(id), create.input]));
        ProcessRecord {
            id,
            kind: create.kind,
            agent: create.agent,
            class: create.class,
            resource: create.resource,
            state,
            attempts: 0,
            max_attempts: create.max_attempts,
            fence: Fence(0),
            created_at: at,
            started_at: None,
            finished_at: None,
            deadline_at: create.deadline_at,
            due_at: Some(due_at),
            progress_dropped: 0,
            outcome: None,
        }
    }

    async fn insert(self, db: &mut Connection, at: UnixMs) -> Result<(), StoreError> {
        let text = |array: Vec<Value>| Value::Array(array).to_string();
        sqlx::query(INSERT)
            .bind(text(self.processes))
            .bind(text(self.inputs))
            .bind(text(self.holders))
            .bind(text(self.blocked))
            .bind(text(self.keys))
            .bind(at.plus(IDEMPOTENCY_LIFE).to_sql())
            .bind(at.to_sql())
            .execute(&mut *db)
            .await?;
        Ok(())
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
    let rows = sqlx::query(KNOWN_KEYS)
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
async fn held_resources(
    db: &mut Connection,
    creates: &[NewProcess],
) -> Result<BTreeSet<String>, StoreError> {
    let named: BTreeSet<&str> = creates
        .iter()
        .filter_map(|create| create.resource.as_deref())
        .collect();
    if named.is_empty() {
        return Ok(BTreeSet::new());
    }
    let held: Vec<String> = sqlx::query_scalar(HELD)
        .bind(json!(named).to_string())
        .fetch_all(&mut *db)
        .await?;
    Ok(held.into_iter().collect())
}

/// A version 7 id (RFC 9562 §5.7, method 1): milliseconds, then the place in the batch, then chance.
fn new_id(at: UnixMs, index: usize, rng: &mut impl Rng) -> ProcessId {
    let mut random: [u8; 10] = rng.random();
    let [high, low] = u16::try_from(index % 0x1000).unwrap_or(0).to_be_bytes();
    (random[0], random[1]) = (high, low);
    ProcessId(Builder::from_unix_timestamp_millis(at.0, &random).into_uuid())
}

fn created(record: &ProcessRecord) -> Record {
    Record {
        kind: "process.created",
        process: Some(record.id),
        agent: Some(record.agent),
        data: json!({ "kind": record.kind, "state": record.state.as_str() }),
    }
}

fn bytes_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
