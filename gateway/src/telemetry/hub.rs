//! The reader's side of the figures: sums over everything that recorders have handed over.
#![expect(
    clippy::disallowed_types,
    reason = "the lock is among readers, who are never shards: those only push into their queues"
)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use protocol::ids::ShardId;

use super::recorder::{Queue, Recorder, queue};
use super::{Figures, Measure, Measurement, Telemetry};

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
        self.fresh().clone()
    }

    /// The times of one kind of all shards together, as [`read`](Self::read) would tell them.
    pub(crate) fn measurement(&self, measure: Measure) -> Measurement {
        let mut total = Measurement::default();
        for (_, figures) in &self.fresh().shards {
            total.merge(figures.measurement(measure));
        }
        total
    }

    /// The sums with everything that waits added.
    fn fresh(&self) -> MutexGuard<'_, Telemetry> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, (_, figures)) in self.queues.iter().zip(&mut sums.shards) {
            while let Some(interval) = queue.pop() {
                interval.add_to(figures);
            }
        }
        sums
    }
}
