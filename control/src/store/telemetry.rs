//! What the store measures about itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::telemetry::latency_histogram;

/// Counters since the start. Written by the writer, read by whoever shows them.
pub(super) struct Telemetry {
    commits: AtomicU64,
    failed_commits: AtomicU64,
    jobs: AtomicU64,
    commit_us: Mutex<Histogram<u64>>,
}

/// A copy of the store's figures.
#[derive(Clone, Debug)]
pub struct StoreStats {
    /// Commits that succeeded.
    pub commits: u64,
    /// Commits that failed and were rolled back.
    pub failed_commits: u64,
    /// Jobs in all commits.
    pub jobs: u64,
    /// From BEGIN to the end of COMMIT, in microseconds.
    pub commit_us: Histogram<u64>,
}

impl Telemetry {
    pub(super) fn new() -> Self {
        Self {
            commits: AtomicU64::new(0),
            failed_commits: AtomicU64::new(0),
            jobs: AtomicU64::new(0),
            commit_us: Mutex::new(latency_histogram()),
        }
    }

    pub(super) fn committed(&self, jobs: usize, took: Duration, ok: bool) {
        let counter = if ok {
            &self.commits
        } else {
            &self.failed_commits
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let jobs = u64::try_from(jobs).unwrap_or(u64::MAX);
        self.jobs.fetch_add(jobs, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut histogram = self
            .commit_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(micros);
    }

    pub(super) fn snapshot(&self) -> StoreStats {
        let histogram = self
            .commit_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        StoreStats {
            commits: self.commits.load(Ordering::Relaxed),
            failed_commits: self.failed_commits.load(Ordering::Relaxed),
            jobs: self.jobs.load(Ordering::Relaxed),
            commit_us: histogram.clone(),
        }
    }
}
