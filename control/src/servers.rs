//! The process servers of one control plane: the first, whose front door the API has, and those beside it.
//!
//! They share the store and nothing else, as on separate machines. The program cannot do without the first
//! one; of the others one may end by itself: the rest takes over what it had claimed (`store/workers.rs`).

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::dispatch::{self, Engine, EnrolmentAsked, StartError, Started};
use crate::downlink::End;
use crate::store::Store;

/// What the rest of the control plane needs of them.
pub(crate) struct Front {
    /// The front door of the first, with the figures of all.
    pub(crate) engine: Engine,
    /// Enrolments that the gateway passes on.
    pub(crate) enrolments: mpsc::Receiver<EnrolmentAsked>,
    /// Changes after every batch, of any of them, that may have recorded events.
    pub(crate) recorded: watch::Receiver<u64>,
    /// Ends with the first one.
    pub(crate) first: JoinHandle<()>,
}

/// What ends them.
pub(crate) struct Servers {
    drain: Vec<CancellationToken>,
    stop: Vec<CancellationToken>,
    /// Of those beside the first.
    beside: Vec<JoinHandle<()>>,
    last: Option<AbortHandle>,
}

/// Starts them one after the other.
///
/// # Errors
/// One did not start: those before it are stopped.
pub(crate) async fn start(
    store: &Store,
    first: End,
    others: Vec<End>,
) -> Result<(Front, Servers), StartError> {
    let mut servers = Servers {
        drain: Vec::new(),
        stop: Vec::new(),
        beside: Vec::new(),
        last: None,
    };
    let first = servers.begin(store, first).await?;
    let (mut engines, mut recorded) = (Vec::new(), vec![first.recorded]);
    for end in others {
        let number = end.server;
        let started = servers.begin(store, end).await?;
        engines.push(started.engine);
        recorded.push(started.recorded);
        servers.last = Some(started.task.abort_handle());
        let drain = started.drain;
        servers.beside.push(tokio::spawn(async move {
            let ended = started.task.await;
            if !drain.is_cancelled() {
                tracing::error!(%number, ?ended, "a process server has ended by itself; the others take over");
            }
        }));
    }
    let front = Front {
        engine: first.engine.with_beside(engines.iter()),
        enrolments: first.enrolments,
        recorded: any_of(recorded),
        first: first.task,
    };
    Ok((front, servers))
}

impl Servers {
    async fn begin(&mut self, store: &Store, end: End) -> Result<Started, StartError> {
        let started = dispatch::start(store.clone(), end).await;
        let started = started.inspect_err(|_| self.stop())?;
        self.drain.push(started.drain.clone());
        self.stop.push(started.stop.clone());
        Ok(started)
    }

    /// Stops all at once; nothing that was accepted is lost.
    pub(crate) fn stop(&self) {
        self.stop.iter().for_each(CancellationToken::cancel);
    }

    /// The last of those beside the first.
    pub(crate) fn last(&self) -> Option<AbortHandle> {
        self.last.clone()
    }

    /// Nothing new is claimed; waits until what was heard is durable, `within` at most.
    pub(crate) async fn drain(self, first: JoinHandle<()>, within: Duration) {
        self.drain.iter().for_each(CancellationToken::cancel);
        let mut all = futures_util::future::join_all(self.beside.into_iter().chain([first]));
        if timeout(within, &mut all).await.is_err() {
            tracing::warn!(
                "the process server did not come to rest; its queue is left to the next start"
            );
            self.stop.iter().for_each(CancellationToken::cancel);
            // They end at their next turn.
            drop(all.await);
        }
    }
}

/// Changes whenever one of these does.
fn any_of(mut all: Vec<watch::Receiver<u64>>) -> watch::Receiver<u64> {
    if all.len() == 1
        && let Some(only) = all.pop()
    {
        return only;
    }
    let (bell, heard) = watch::channel(0);
    for mut one in all {
        let bell = bell.clone();
        tokio::spawn(async move {
            while one.changed().await.is_ok() {
                bell.send_modify(|batches| *batches += 1);
            }
        });
    }
    heard
}
