//! The reader's side of the figures: sums over everything that recorders have handed over.
#![expect(
    clippy::disallowed_types,
    reason = "the lock is among readers, who are never shards: those only push into their queues"
)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use protocol::ids::ShardId;

use super::recorder::{Queue, Recorder, queue};
use super::{Figures, Telemetry};

/// Where intervals of all shards come together. Clones read the same figures.
#[derive(Clone)]
pub(crate) struct Hub {
    queues: Arc<[Queue]>,
    sums: Arc<Mutex<Telemetry>>,
}

impl Hub {
    /// A hub, and a recorder for each shard.
    pub(crate) fn new(shards: u16, now: Instant) -> (Self, Vec<Recorder>) {
        let queues: Arc<[Queue]> = (0..shards).map(|_| queue()).collect();
        let recorders = queues
            .iter()
            .map(|queue| Recorder::new(Arc::clone(queue), now))
            .collect();
        let shards = (0..shards).map(|shard| (ShardId(shard), Figures::default()));
        let sums = Telemetry {
            shards: shards.collect(),
        };
        let hub = Self {
            queues,
            sums: Arc::new(Mutex::new(sums)),
        };
        (hub, recorders)
    }

    /// The figures since the start, at most about a second old.
    pub(crate) fn read(&self) -> Telemetry {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, (_, figures)) in self.queues.iter().zip(&mut sums.shards) {
            while let Some(interval) = queue.pop() {
                interval.add_to(figures);
            }
        }
        sums.clone()
    }
}
