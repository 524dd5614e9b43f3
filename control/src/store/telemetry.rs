//! What the store measures about itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::telemetry::Times;

/// Counters since the start. Written by the writer, read by whoever shows them.
pub(super) struct Telemetry {
    commits: AtomicU64,
    failed_commits: AtomicU64,
    jobs: AtomicU64,
    reads: AtomicU64,
    commit: Mutex<Times>,
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
    /// Read-only connections taken, each for one read or a few.
    pub reads: u64,
    /// From BEGIN to the end of COMMIT.
    pub commit: Times,
    /// How much later it is by the database than by this machine, in milliseconds; below zero: earlier.
    pub clock_offset_ms: i64,
}

impl Telemetry {
    pub(super) fn new() -> Self {
        Self {
            commits: AtomicU64::new(0),
            failed_commits: AtomicU64::new(0),
            jobs: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            commit: Mutex::new(Times::new()),
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
        let mut commit = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        commit.record(took);
    }

    pub(super) fn reads(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> StoreStats {
        let commit = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        StoreStats {
            commits: self.commits.load(Ordering::Relaxed),
            failed_commits: self.failed_commits.load(Ordering::Relaxed),
            jobs: self.jobs.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            commit: commit.clone(),
            clock_offset_ms: 0,
        }
    }
}
