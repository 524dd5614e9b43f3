//! What the process server measures about itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;

use super::census::Census;
use crate::telemetry::{Times, count_histogram};

/// A copy of the process server's figures. Counters run since the start.
#[derive(Clone, Debug)]
pub struct EngineStats {
    /// Processes made.
    pub created: u64,
    /// Claims made.
    pub claimed: u64,
    /// Processes that ended, by state: succeeded, failed, cancelled.
    pub succeeded: u64,
    /// See `succeeded`.
    pub failed: u64,
    /// See `succeeded`.
    pub cancelled: u64,
    /// Replies that were lost and asked for.
    pub unknown: u64,
    /// Processes that came back without having been started.
    pub returned: u64,
    /// Retries that waited because their budget was empty.
    pub deferred: u64,
    /// Permits that were given back unused.
    pub permits_returned: u64,
    /// Words about claims that are over.
    pub stale: u64,
    /// Requests that found the gateway's queue full and were sent later.
    pub link_full: u64,
    /// What gateways refused, by kind.
    pub security: BTreeMap<&'static str, u64>,
    /// Enrolments that were turned away because too many waited.
    pub enrolments_busy: u64,
    /// Who is there and what there is to do, counted as it changes.
    pub census: Census,
    /// Process servers on the store that are alive, this one among them; 0: not known yet.
    pub servers: u64,
    /// Agents that have a session.
    pub connected: u64,
    /// Processes ready, in the store.
    pub ready: u64,
    /// Operations claimed or running.
    pub active: u64,
    /// Requests that wait for room in the gateway's queue.
    pub outbox: u64,
    /// Batches that the store failed to write; they are repeated until it does.
    pub failed_batches: u64,
    /// Words about processes that could not be written at all and were dropped.
    pub unwritable: u64,
    /// Why the last batch failed, until one succeeds.
    pub store_error: Option<String>,
    /// Inputs of one batch.
    pub batch_size: Histogram<u64>,
    /// From handing a batch to the store to its commit.
    pub batch: Times,
    /// From a process becoming ready to its claim (to within a millisecond). One that came back without
    /// a wait is not measured again: its place is that of its creation.
    pub queue: Times,
    /// From a process's creation to its claim (to within a millisecond).
    pub start: Times,
    /// From a process's creation to its end (to within a millisecond).
    pub total: Times,
}

impl EngineStats {
    pub(super) fn new() -> Self {
        Self {
            created: 0,
            claimed: 0,
            succeeded: 0,
            failed: 0,
            cancelled: 0,
            unknown: 0,
            returned: 0,
            deferred: 0,
            permits_returned: 0,
            stale: 0,
            link_full: 0,
            security: BTreeMap::new(),
            enrolments_busy: 0,
            census: Census::default(),
            servers: 0,
            connected: 0,
            ready: 0,
            active: 0,
            outbox: 0,
            failed_batches: 0,
            unwritable: 0,
            store_error: None,
            batch_size: count_histogram(1 << 20),
            batch: Times::new(),
            queue: Times::new(),
            start: Times::new(),
            total: Times::new(),
        }
    }
}

impl EngineStats {
    /// Adds what another process server on the same store and gateway has done. What all of them see alike
    /// (sessions, what waits, who is alive) stays as it is.
    pub(super) fn add(&mut self, other: &Self) {
        for (own, more) in [
            (&mut self.created, other.created),
            (&mut self.claimed, other.claimed),
            (&mut self.succeeded, other.succeeded),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.unknown, other.unknown),
            (&mut self.returned, other.returned),
            (&mut self.deferred, other.deferred),
            (&mut self.permits_returned, other.permits_returned),
            (&mut self.stale, other.stale),
            (&mut self.link_full, other.link_full),
            (&mut self.enrolments_busy, other.enrolments_busy),
            (&mut self.active, other.active),
            (&mut self.outbox, other.outbox),
            (&mut self.failed_batches, other.failed_batches),
            (&mut self.unwritable, other.unwritable),
        ] {
            *own += more;
        }
        for (kind, count) in &other.security {
            *self.security.entry(kind).or_default() += count;
        }
        if self.store_error.is_none() {
            self.store_error.clone_from(&other.store_error);
        }
        for value in other.batch_size.iter_recorded() {
            let count = value.count_since_last_iteration();
            self.batch_size
                .saturating_record_n(value.value_iterated_to(), count);
        }
        self.batch.merge(&other.batch);
        self.queue.merge(&other.queue);
        self.start.merge(&other.start);
        self.total.merge(&other.total);
    }
}

impl EngineStats {
    /// Its process server is gone: what it had at hand is nobody's, or others' now.
    pub(super) fn end(&mut self) {
        self.active = 0;
        self.outbox = 0;
        self.store_error = None;
    }
}

/// The figures as they were at the last tick, for whoever shows them.
pub(super) struct Telemetry(Mutex<EngineStats>);

impl Telemetry {
    pub(super) fn new() -> Self {
        Self(Mutex::new(EngineStats::new()))
    }

    pub(super) fn snapshot(&self) -> EngineStats {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn publish(&self, stats: &EngineStats) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(stats);
    }
}
