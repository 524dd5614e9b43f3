//! The task that runs batches: a step of each in turn, when its time has come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use protocol::ids::{AgentId, GroupId, ProcessId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::rules::{eligible, pace};
use crate::api::model::batches::{BatchAction, BatchFilter, BatchState};
use crate::api::model::processes::ProcessState;
use crate::clock;
use crate::dispatch::{Cancellation, Engine, EngineError};
use crate::process::State;
use crate::store::batches::{BatchRow, Matching, Progress, Range};
use crate::store::{Store, StoreError};

/// How often there is a look, when nobody says that something has changed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After the store or the process server had no room.
const RECOVER: Duration = Duration::from_millis(500);
/// Times that one process is tried.
const TRIES: u32 = 10;

/// What is to be acted on could not be: the server is stopping.
struct Stopped;

/// What became of one process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Acted {
    Done,
    /// It is not there any more.
    Gone,
    Failed,
}

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
            Err(EngineError::Stopped | EngineError::Store(StoreError::Stopped)) => return,
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
        if due.get(&row.id).is_some_and(|at| *at > now) {
            continue;
        }
        let (size, every) = pace(row.rate);
        if step(store, engine, &row, size).await? {
            due.insert(row.id, now + every);
        } else {
            due.remove(&row.id);
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
    let matching = matching(row.action, &row.filter);
    let found = store.find_processes(range, &matching, size).await?;
    let acting = found
        .processes
        .iter()
        .map(|id| act(engine, row.action, *id));
    let acted: Result<Vec<Acted>, Stopped> = join_all(acting).await.into_iter().collect();
    let Ok(acted) = acted else {
        // The next start repeats this step.
        return Err(EngineError::Stopped);
    };
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
    let count = |what| {
        let count = acted.iter().filter(|acted| **acted == what).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    };
    let progress = Progress {
        cursor,
        done: count(Acted::Done),
        failed: count(Acted::Failed),
        finished,
    };
    let row = store.note_batch(row.id, progress, clock::now()).await?;
    Ok(row.is_some_and(|row| row.state == BatchState::Running))
}

/// Acts on one process, again where the process server had no room for it.
async fn act(engine: &Engine, action: BatchAction, process: ProcessId) -> Result<Acted, Stopped> {
    for _ in 0..TRIES {
        let result = match action {
            BatchAction::Cancel => engine.cancel(process).await,
        };
        match result {
            Ok(Cancellation::State(_)) => return Ok(Acted::Done),
            Ok(Cancellation::NotFound) => return Ok(Acted::Gone),
            Err(EngineError::Stopped | EngineError::Store(StoreError::Stopped)) => {
                return Err(Stopped);
            }
            Err(error) => {
                tracing::debug!(%error, %process, "a batch tries again");
                tokio::time::sleep(RECOVER).await;
            }
        }
    }
    tracing::warn!(%process, "a batch could not deal with a process");
    Ok(Acted::Failed)
}

/// Which processes a batch is about. The filter's names were resolved when it was made.
pub(crate) fn matching(action: BatchAction, filter: &BatchFilter) -> Matching {
    let eligible = eligible(action);
    let states = match filter.state {
        None => eligible,
        Some(state) => eligible.into_iter().filter(|can| is(*can, state)).collect(),
    };
    let id = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Uuid>().ok());
    Matching {
        states,
        agent: id(&filter.agent).map(AgentId),
        kind: filter.kind.clone(),
        group: id(&filter.group).map(GroupId),
    }
}

/// Whether the store's state is the API's.
fn is(state: State, named: ProcessState) -> bool {
    serde_json::to_value(named).is_ok_and(|name| name == state.as_str())
}
