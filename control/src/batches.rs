//! Batches: one action on every process that fits a filter, at a pace, through restarts.
//!
//! ```text
//!   POST /v1/batches ─▶ row ─▶ runner: find a step ─▶ act on each ─▶ note cursor and counts ─┐
//!                                 ▲                                                          │
//!                                 └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A crash between acting and noting repeats one step. Every action is harmless when repeated, and
//! what it has changed no longer matches: it is in another state, or ended after the batch was made. The
//! exception is a replay of what is in backoff, which may be in backoff again: there the history of the
//! process, written together with the order, says that this batch has started it over already.

mod acting;
mod matching;
mod rules;
mod runner;

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub(crate) use self::matching::matching;
pub(crate) use self::rules::{eligible, id_bound, is_confirmed};
use crate::dispatch::Engine;
use crate::store::Store;

/// What the API needs of batches. Clones share it.
#[derive(Clone)]
pub(crate) struct Batches {
    changed: Arc<Notify>,
}

impl Batches {
    /// A batch was made or cancelled.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }
}

/// Starts with those that the last run of the server has left; the future runs until `stop`.
pub(crate) fn start(
    store: Store,
    engine: Engine,
    stop: CancellationToken,
) -> (Batches, BoxFuture<'static, ()>) {
    let changed = Arc::new(Notify::new());
    let batches = Batches {
        changed: Arc::clone(&changed),
    };
    (batches, runner::run(store, engine, changed, stop).boxed())
}
