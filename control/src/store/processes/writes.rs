//! The writes of a batch: arrays that one text of statements takes.

use std::collections::BTreeMap;

use protocol::ids::{GrantId, ProcessId};
use serde_json::{Value, json};
use uuid::Uuid;

use super::apply::Row;
use super::rows::{self, hex};
use crate::clock::UnixMs;
use crate::process::{Process, State};
use crate::store::sql;
use crate::store::{Connection, StoreError, lines, to_sql};

/// Every write of the rules, in one go: each switch to the embedded backend's thread costs more than a row.
/// `& 31` is the index of the step that a row of the plan does or undoes.
pub(super) const WRITE: &str = "
    UPDATE process SET
        state = j.state, due_at = j.due_at, ready_at = j.ready_at, attempt = j.attempt,
        counted_fence = j.counted_fence, busy_count = j.busy_count, fence = j.fence,
        progress_next = j.progress_next, progress_rows = j.progress_rows,
        progress_bytes = j.progress_bytes, progress_dropped = j.progress_dropped,
        started_at = j.started_at, finished_at = j.finished_at, deadline_at = j.deadline_at,
        step = j.step, fate = j.fate, hold = j.hold, needs_attention = j.needs_attention,
        unsettled = j.unsettled
    FROM LIST($1: id hex, state text, due_at int, ready_at int, attempt int, counted_fence int,
        busy_count int, fence int, progress_next int, progress_rows int, progress_bytes int,
        progress_dropped int, started_at int, finished_at int, read_fence int, deadline_at int,
        step int, fate text, hold text, needs_attention int, unsettled int) AS j
    WHERE process.id = j.id AND process.fence = j.read_fence;

    DELETE FROM process_timer WHERE (due_at, process_id) IN LIST($2: due_at int, process_id hex);
    INSERT INTO process_timer (due_at, process_id)
        SELECT j.due_at, j.process_id FROM LIST($3: due_at int, process_id hex) AS j
        WHERE true ON CONFLICT (due_at, process_id) DO NOTHING;

    DELETE FROM process_ready WHERE (target_id, line, ready_at, process_id) IN
        LIST($4: target_id hex, line text, ready_at int, process_id hex);
    INSERT INTO process_ready
        (target_id, line, ready_at, process_id, deadline_at, tenant, kind)
        SELECT j.target_id, j.line, j.ready_at, j.process_id, j.deadline_at, j.tenant, j.kind
        FROM LIST($5: target_id hex, line text, ready_at int, process_id hex, deadline_at int,
            tenant text, kind text) AS j
        WHERE true ON CONFLICT (target_id, line, ready_at, process_id) DO NOTHING;

    DELETE FROM process_lease WHERE process_id IN EACH($6: process_id hex);
    INSERT INTO process_lease (process_id, target_id, fence, grant_id, claimed_at, worker_id)
        SELECT j.process_id, j.target_id, j.fence, j.grant_id, j.claimed_at, j.worker_id
        FROM LIST($7: process_id hex, target_id hex, fence int, grant_id int, claimed_at int,
            worker_id hex) AS j
        WHERE true ON CONFLICT (process_id) DO UPDATE SET target_id = excluded.target_id,
            fence = excluded.fence, grant_id = excluded.grant_id,
            claimed_at = excluded.claimed_at, worker_id = excluded.worker_id;

    UPDATE process_payload SET outcome = j.outcome
        FROM LIST($8: process_id hex, outcome text) AS j
        WHERE process_payload.process_id = j.process_id;

    DELETE FROM process_blocked WHERE (resource, process_id) IN
        LIST($9: resource text, process_id hex);
    DELETE FROM process_resource WHERE (resource, process_id) IN
        LIST($10: resource text, process_id hex);
    INSERT INTO process_blocked (resource, process_id)
        SELECT j.resource, j.process_id FROM LIST($11: resource text, process_id hex) AS j
        WHERE true ON CONFLICT (resource, process_id) DO NOTHING;

    UPDATE process_plan SET attempts = 0, finished_at = NULL, outcome = NULL
        FROM LIST($12: process_id hex, first int) AS j
        WHERE process_plan.process_id = j.process_id AND process_plan.step & 31 >= j.first;
    UPDATE process_plan SET attempts = j.attempts, finished_at = j.finished_at,
           outcome = j.outcome
        FROM LIST($13: process_id hex, step int, attempts int, finished_at int, outcome text) AS j
        WHERE process_plan.process_id = j.process_id AND process_plan.step = j.step;

    SELECT q.\"key\" FROM EACH($14: id text) AS j
        CROSS JOIN pause AS q ON q.scope = 'process' AND q.\"key\" = j.id;
    DELETE FROM pause WHERE scope = 'process' AND \"key\" IN EACH($14: id text)";

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
        let mut query = sql::query(WRITE);
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
