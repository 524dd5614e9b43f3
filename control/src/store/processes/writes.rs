//! The writes of a batch: arrays that one text of statements takes.

use std::collections::BTreeMap;

use protocol::ids::{GrantId, ProcessId};
use serde_json::{Value, json};
use sqlx::Row as _;
use uuid::Uuid;

use super::apply::Row;
use super::rows::{self, hex};
use crate::clock::UnixMs;
use crate::process::{Process, State};
use crate::store::{Connection, StoreError, lines, to_sql};

/// Every write of the rules, in one go: each switch to the backend's thread costs more than a row.
/// `& 31` is the index of the step that a row of the plan does or undoes. $1 … $14 are JSON arrays. Not `?1 … ?14`: the driver binds those by counting over all statements
/// of a text, and gives NULL to the later ones; `$` parameters it binds by name.
pub(super) const WRITE: &str = "
    UPDATE process SET
        state = j.value ->> 1, due_at = j.value ->> 2, ready_at = j.value ->> 3,
        attempt = j.value ->> 4, counted_fence = j.value ->> 5, busy_count = j.value ->> 6,
        fence = j.value ->> 7, progress_next = j.value ->> 8, progress_rows = j.value ->> 9,
        progress_bytes = j.value ->> 10, progress_dropped = j.value ->> 11,
        started_at = j.value ->> 12, finished_at = j.value ->> 13,
        deadline_at = j.value ->> 15, step = j.value ->> 16, fate = j.value ->> 17,
        hold = j.value ->> 18, needs_attention = j.value ->> 19, unsettled = j.value ->> 20
    FROM json_each($1) AS j
    WHERE process.id = unhex(j.value ->> 0) AND process.fence = j.value ->> 14;

    DELETE FROM process_timer WHERE (due_at, process_id) IN
        (SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($2) AS j);
    INSERT OR IGNORE INTO process_timer (due_at, process_id)
        SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($3) AS j;

    DELETE FROM process_ready WHERE (target_id, line, ready_at, process_id) IN
        (SELECT unhex(j.value ->> 0), j.value ->> 1, j.value ->> 2, unhex(j.value ->> 3)
         FROM json_each($4) AS j);
    INSERT OR IGNORE INTO process_ready
        (target_id, line, ready_at, process_id, deadline_at, tenant, kind)
        SELECT unhex(j.value ->> 0), j.value ->> 1, j.value ->> 2, unhex(j.value ->> 3),
               j.value ->> 4, j.value ->> 5, j.value ->> 6
        FROM json_each($5) AS j;

    DELETE FROM process_lease WHERE process_id IN
        (SELECT unhex(j.value) FROM json_each($6) AS j);
    INSERT OR REPLACE INTO process_lease
        (process_id, target_id, fence, grant_id, claimed_at, worker_id)
        SELECT unhex(j.value ->> 0), unhex(j.value ->> 1), j.value ->> 2, j.value ->> 3,
               j.value ->> 4, unhex(j.value ->> 5)
        FROM json_each($7) AS j;

    UPDATE process_payload SET outcome = j.value ->> 1
        FROM json_each($8) AS j WHERE process_payload.process_id = unhex(j.value ->> 0);

    DELETE FROM process_blocked WHERE (resource, process_id) IN
        (SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($9) AS j);
    DELETE FROM process_resource WHERE (resource, process_id) IN
        (SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($10) AS j);
    INSERT OR IGNORE INTO process_blocked (resource, process_id)
        SELECT j.value ->> 0, unhex(j.value ->> 1) FROM json_each($11) AS j;

    UPDATE process_plan SET attempts = 0, finished_at = NULL, outcome = NULL
        FROM json_each($12) AS j
        WHERE process_plan.process_id = unhex(j.value ->> 0)
          AND process_plan.step & 31 >= j.value ->> 1;
    UPDATE process_plan SET attempts = j.value ->> 2, finished_at = j.value ->> 3,
           outcome = j.value ->> 4
        FROM json_each($13) AS j
        WHERE process_plan.process_id = unhex(j.value ->> 0)
          AND process_plan.step = j.value ->> 1;

    DELETE FROM pause WHERE scope = 'process' AND key IN
        (SELECT j.value FROM json_each($14) AS j)
    RETURNING key";

/// The arrays of [`WRITE`].
pub(super) struct Writes {
    at: UnixMs,
    worker: Option<String>,
    updates: Vec<Value>,
    timers: [Vec<Value>; 2],
    ready: [Vec<Value>; 2],
    leases: [Vec<Value>; 2],
    outcomes: Vec<Value>,
    unblocked: Vec<Value>,
    released: Vec<Value>,
    blocked: Vec<Value>,
    renewed: Vec<Value>,
    ended: Vec<Value>,
    over: Vec<Value>,
    /// What was claimed, and on which grant.
    pub(super) claimed: BTreeMap<ProcessId, GrantId>,
}

impl Writes {
    pub(super) fn new(at: UnixMs, worker: Option<Uuid>) -> Self {
        Self {
            at,
            worker: worker.map(|id| id.simple().to_string()),
            updates: Vec::new(),
            timers: Default::default(),
            ready: Default::default(),
            leases: Default::default(),
            outcomes: Vec::new(),
            unblocked: Vec::new(),
            released: Vec::new(),
            blocked: Vec::new(),
            renewed: Vec::new(),
            ended: Vec::new(),
            over: Vec::new(),
            claimed: BTreeMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    pub(super) fn add(&mut self, row: Row, freed: &mut Vec<String>) {
        let id = hex(row.now.id);
        self.updates.push(rows::update(&row.now, row.read.fence));
        self.timer(&row.read, &row.now, &id);
        self.ready(&row, &id);
        self.lease(&row.read, &row.now, &id, row.grant);
        self.plan(&row, &id);
        if row.was_over {
            self.over.push(json!(id));
        }
        if let Some(outcome) = row.outcome {
            self.outcomes.push(json!([id, outcome]));
        }
        self.resource(&row.read, row.now, &id, freed);
    }

    fn timer(&mut self, read: &Process, now: &Process, id: &str) {
        if read.due_at != now.due_at {
            let row = |due: UnixMs| json!([due.to_sql(), id]);
            self.timers[0].extend(read.due_at.map(row));
            self.timers[1].extend(now.due_at.map(row));
        }
    }

    /// Its place in its line. The step may change, and with it the line, while it is ready.
    fn ready(&mut self, row: &Row, id: &str) {
        let (read, now) = (&row.read, &row.now);
        let of = |process: &Process| (process.ready_at, process.step, process.deadline_at);
        if of(read) == of(now) || (read.ready_at.is_none() && now.ready_at.is_none()) {
            return;
        }
        let target = now.target.0.simple().to_string();
        let place = |process: &Process| {
            let at = process.ready_at?.to_sql();
            let line = lines::to_sql(&row.line_of(process));
            let deadline = process.deadline_at.to_sql();
            let (tenant, kind) = (&*process.tenant, &*process.kind);
            Some(json!([target, line, at, id, deadline, tenant, kind]))
        };
        self.ready[0].extend(place(read));
        self.ready[1].extend(place(now));
    }

    fn lease(&mut self, read: &Process, now: &Process, id: &str, grant: GrantId) {
        if read.state.is_active() && !now.state.is_active() {
            self.leases[0].push(json!(id));
        }
        if now.state.is_active() && (!read.state.is_active() || now.fence != read.fence) {
            let target = now.target.0.simple().to_string();
            let (fence, granted) = (to_sql(now.fence.0), to_sql(grant.0));
            let at = self.at.to_sql();
            let worker = self.worker.as_deref();
            self.leases[1].push(json!([id, target, fence, granted, at, worker]));
        }
        if now.state == State::Leased && now.fence != read.fence {
            self.claimed.insert(now.id, grant);
        }
    }

    fn plan(&mut self, row: &Row, id: &str) {
        if let Some(from) = row.renewed_from {
            self.renewed.push(json!([id, from]));
        }
        for (step, (attempts, outcome)) in &row.ended {
            let at = self.at.to_sql();
            self.ended.push(json!([id, step, attempts, at, outcome]));
        }
    }

    fn resource(&mut self, read: &Process, now: Process, id: &str, freed: &mut Vec<String>) {
        let Some(resource) = now.resource else {
            return;
        };
        let (waited, waits) = (read.state == State::Blocked, now.state == State::Blocked);
        let (was_over, over) = (read.state.is_terminal(), now.state.is_terminal());
        if waited && !waits {
            self.unblocked.push(json!([resource, id]));
        }
        if waits && !waited {
            self.blocked.push(json!([resource, id]));
        }
        // It ends, or gets in line again: whoever waited longest is next, maybe itself.
        if (over && !was_over) || (waits && !waited) {
            self.released.push(json!([resource, id]));
            freed.push(resource);
        }
    }

    /// Writes it all; answers which processes were paused and have ended: their pauses have ended with them.
    pub(super) async fn execute(self, db: &mut Connection) -> Result<Vec<ProcessId>, StoreError> {
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
            self.blocked,
            self.renewed,
            self.ended,
            self.over,
        ];
        let mut query = sqlx::query(WRITE);
        for array in arrays {
            query = query.bind(Value::Array(array).to_string());
        }
        let unpaused = query.fetch_all(&mut *db).await?;
        let ids = unpaused.iter().map(|row| {
            let key: &str = row.try_get(0)?;
            let id = Uuid::try_parse(key);
            id.map(ProcessId)
                .map_err(|_| StoreError::BadRow(format!("a pause of process `{key}`")))
        });
        ids.collect()
    }
}
