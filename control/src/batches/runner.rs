//! The task that runs batches: a step of each in turn, when its time has come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::ProcessId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::acting::{Acted, act};
use super::matching::matching;
use super::rules::{pace, step_size};
use crate::api::model::batches::BatchState;
use crate::clock;
use crate::dispatch::{Engine, EngineError};
use crate::store::batches::{BatchRow, Progress, Range};
use crate::store::{Store, StoreError};

/// How often there is a look, when nobody says that something has changed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After the store or the process server had no room.
const RECOVER: Duration = Duration::from_millis(500);

/// Runs batches until `stop`.
pub(super) async fn run(
    store: Store,
    engine: Engine,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut due: BTreeMap<Uuid, Instant> = BTreeMap::new();
    while !stop.is_cancelled() {
        let wait = match turn(&store, &engine, &mut due).await {
            Ok(wait) => wait,
            Err(EngineError::Store(StoreError::Stopped)) => return,
            // A process server that has died is followed by another one.
            Err(error) => {
                tracing::warn!(%error, "batches wait");
                RECOVER
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One step of every batch whose time has come; answers when the next one's comes.
async fn turn(
    store: &Store,
    engine: &Engine,
    due: &mut BTreeMap<Uuid, Instant>,
) -> Result<Duration, EngineError> {
    let running = store.running_batches().await?;
    due.retain(|id, _| running.iter().any(|row| row.id == *id));
    for row in running {
        let now = clock::monotonic();
        let at = due.get(&row.id).copied().unwrap_or(now);
        if at > now {
            continue;
        }
        let (_, every) = pace(row.rate);
        let size = step_size(row.rate, now.saturating_duration_since(at));
        match step(store, engine, &row, size).await {
            Ok(true) => drop(due.insert(row.id, now + every)),
            Ok(false) => drop(due.remove(&row.id)),
            Err(error @ (EngineError::Stopped | EngineError::Store(StoreError::Stopped))) => {
                return Err(error);
            }
            // The others do not wait for what may be this one's own trouble.
            Err(error) => {
                tracing::warn!(batch = %row.id, %error, "a batch waits");
                due.insert(row.id, now + RECOVER.max(every));
            }
        }
    }
    let now = clock::monotonic();
    let next = due.values().min();
    Ok(next.map_or(LOOK_EVERY, |at| at.saturating_duration_since(now)))
}

/// One step; `false`: the batch is over.
async fn step(
    store: &Store,
    engine: &Engine,
    row: &BatchRow,
    size: u32,
) -> Result<bool, EngineError> {
    let acted = row.done.saturating_add(row.failed);
    let left = u64::from(row.max).saturating_sub(acted);
    let size = size.min(u32::try_from(left).unwrap_or(u32::MAX));
    if size == 0 {
        return note(store, row, row.cursor, &[], true).await;
    }
    let range = Range {
        after: row.cursor,
        last: row.last,
    };
    let matching = matching(row.action, &row.filter, row.created_at);
    let found = store.find_processes(range, &matching, size).await?;
    // Where this fails, the step is repeated: now, or by the next start.
    let acted = act(store, engine, row, found.processes).await?;
    note(
        store,
        row,
        found.next.unwrap_or(row.last),
        &acted,
        found.next.is_none(),
    )
    .await
}

async fn note(
    store: &Store,
    row: &BatchRow,
    cursor: ProcessId,
    acted: &[Acted],
    finished: bool,
) -> Result<bool, EngineError> {
    let mut progress = Progress {
        cursor,
        done: 0,
        failed: 0,
        trouble: None,
        finished,
    };
    for acted in acted {
        match acted {
            Acted::Done => progress.done += 1,
            Acted::Gone => {}
            Acted::Failed(why) => {
                progress.failed += 1;
                progress.trouble = Some(why.clone());
            }
        }
    }
    let row = store.note_batch(row.id, progress, clock::now()).await?;
    Ok(row.is_some_and(|row| row.state == BatchState::Running))
}
