//! What a batch does to the processes of one step.

use std::time::Duration;

use futures_util::future::join_all;
use protocol::ids::ProcessId;

use crate::api::model::batches::BatchAction;
use crate::clock;
use crate::dispatch::{Engine, EngineError, Order, Ordered};
use crate::store::batches::BatchRow;
use crate::store::pauses::{PAUSES_MAX, Pause, PauseAdded, PauseKey, PauseScope};
use crate::store::processes::Actor;
use crate::store::{Store, StoreError};

/// After the process server had no room.
const RECOVER: Duration = Duration::from_millis(500);
/// Times that one process is tried.
const TRIES: u32 = 10;

/// What became of one process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Acted {
    Done,
    /// It is not there any more.
    Gone,
    /// For this reason.
    Failed(String),
}

/// Does what `batch` is there for to each of `processes`.
///
/// # Errors
/// The server is stopping, or a pause could not be stored: the step is to be repeated.
pub(super) async fn act(
    store: &Store,
    engine: &Engine,
    batch: &BatchRow,
    processes: Vec<ProcessId>,
) -> Result<Vec<Acted>, EngineError> {
    let order = match batch.action {
        BatchAction::Pause => return pause(engine, batch, &processes).await,
        BatchAction::Resume => return resume(engine, batch, &processes).await,
        BatchAction::Cancel => Order::Cancel,
        BatchAction::Retry | BatchAction::Redrive => Order::Retry,
        BatchAction::Replay => return replay(store, engine, batch, processes).await,
    };
    let orders = processes.into_iter().map(|process| (process, order));
    give(engine, batch, orders).await
}

/// Each goes on at the step that was asked for, or at the one at hand.
///
/// One whose history names this batch is left alone. A crash came between that order and its being noted, and
/// a process that is in backoff again matches as before: nothing else tells the two backoffs apart.
async fn replay(
    store: &Store,
    engine: &Engine,
    batch: &BatchRow,
    mut processes: Vec<ProcessId>,
) -> Result<Vec<Acted>, EngineError> {
    let before = store.ordered_by(&processes, actor(batch)).await?;
    processes.retain(|process| !before.contains(process));
    let acted = match batch.step {
        Some(step) => {
            let orders = processes.into_iter();
            let orders = orders.map(|process| (process, Order::Replay(step)));
            give(engine, batch, orders).await?
        }
        None => {
            let records = store.processes_by_ids(processes).await?.into_iter();
            let orders = records.map(|record| (record.id, Order::Replay(record.step.index())));
            give(engine, batch, orders).await?
        }
    };
    let before = before.iter().map(|_| Acted::Done);
    Ok(before.chain(acted).collect())
}

async fn give(
    engine: &Engine,
    batch: &BatchRow,
    orders: impl Iterator<Item = (ProcessId, Order)>,
) -> Result<Vec<Acted>, EngineError> {
    let actor = actor(batch);
    let acting = orders.map(|(process, order)| one(engine, process, order, &actor));
    join_all(acting).await.into_iter().collect()
}

/// One process, again where the process server had no room for it.
async fn one(
    engine: &Engine,
    process: ProcessId,
    order: Order,
    actor: &Actor,
) -> Result<Acted, EngineError> {
    let mut why = String::new();
    for _ in 0..TRIES {
        match engine.order(process, order, Some(actor.clone())).await {
            Ok(Ordered::State(_)) => return Ok(Acted::Done),
            Ok(Ordered::NotFound) => return Ok(Acted::Gone),
            Ok(Ordered::Refused(why)) => {
                return Ok(Acted::Failed(format!("{process}: {why}")));
            }
            // Nobody is there to do it, so nothing is wrong with this one.
            Err(error @ (EngineError::Stopped | EngineError::Store(StoreError::Stopped))) => {
                return Err(error);
            }
            Err(error) => {
                tracing::debug!(%error, %process, "a batch tries again");
                why = format!("{process}: {error}");
                tokio::time::sleep(RECOVER).await;
            }
        }
    }
    tracing::warn!(%process, why, "a batch could not deal with a process");
    Ok(Acted::Failed(why))
}

async fn pause(
    engine: &Engine,
    batch: &BatchRow,
    processes: &[ProcessId],
) -> Result<Vec<Acted>, EngineError> {
    let at = clock::now();
    let pauses = processes.iter().map(|process| Pause {
        key: key(*process),
        by: batch.by.clone(),
        reason: reason(batch),
        at,
    });
    let added = engine.pause_all(pauses.collect()).await?;
    let acted = added.into_iter().map(|added| match added {
        PauseAdded::New(_) | PauseAdded::Already(_) => Acted::Done,
        PauseAdded::Full => Acted::Failed(format!(
            "there are {PAUSES_MAX} pauses; pause the agent, the group, the tenant or the kind instead"
        )),
    });
    Ok(acted.collect())
}

async fn resume(
    engine: &Engine,
    batch: &BatchRow,
    processes: &[ProcessId],
) -> Result<Vec<Acted>, EngineError> {
    let keys = processes.iter().map(|process| key(*process)).collect();
    let by = batch.by.clone();
    let removed = engine
        .resume_all(keys, clock::now(), by, reason(batch))
        .await?;
    let acted = removed.into_iter().map(|there| match there {
        true => Acted::Done,
        false => Acted::Gone,
    });
    Ok(acted.collect())
}

fn key(process: ProcessId) -> PauseKey {
    PauseKey::of_id(PauseScope::Process, process.0)
}

/// Who orders, for the history of each process. No other batch has the same words.
fn actor(batch: &BatchRow) -> Actor {
    Actor {
        by: batch.by.clone(),
        reason: Some(reason(batch)),
    }
}

/// For the history of each process: which batch, and what was said about it.
fn reason(batch: &BatchRow) -> String {
    match batch.reason.as_str() {
        "" => format!("batch {}", batch.id),
        said => format!("batch {}: {said}", batch.id),
    }
}
