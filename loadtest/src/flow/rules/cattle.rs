//! Rancher's Cattle (commit 82d154a), which Drover succeeds.
//!
//! Up to 35 workers a server and no limit a host (`processblockingexecutorservice`). Every 15 s each
//! server takes all that is due, without order and without claim (`ProcessReplayTask`); a lock at
//! dispatch keeps two from running one process at the same time. After a failure it waits
//! `min(120 s, 2 s + 2^(n−1) · 100 ms)` without jitter (`setNextRunAfter`). A call to an agent times
//! out after 45 s and is sent once more (`eventing.retry=1`), whether the first still runs or not.

use super::super::events::Nanos;
use super::super::random::Random;
use super::senders::Policy;

pub(super) struct Cattle;

impl Policy for Cattle {
    fn may_send(&mut self, _now: Nanos, _server: usize, _host: usize) -> bool {
        true
    }

    fn retry_after(&mut self, failures: u32, _random: &mut Random) -> f64 {
        let doubled = 2_f64.powi(i32::try_from(failures.min(30)).unwrap_or(30) - 1);
        (2.0 + doubled * 0.1).min(120.0)
    }

    fn resends(&self) -> u32 {
        1
    }

    fn replays(&self) -> Option<f64> {
        Some(15.0)
    }
}
