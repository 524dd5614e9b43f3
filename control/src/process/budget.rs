//! The retry budget: retries of one kind of process on one agent are at most a tenth of its
//! successes, and ten in a burst (Google SRE Book, "Handling Overload"; the figures are
//! THROTTLING's).
//!
//! ```text
//!   success  + 0.1, at most 10        retry  − 1; with less than 1 left it waits
//!   6 s of time  + 0.1
//! ```
//!
//! A full bucket is not kept: memory holds those agents and kinds only that have failed lately. There is one
//! set of buckets for all process servers on a store (`store/budgets.rs`), so that more servers do not try again
//! more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::ids::AgentId;

use crate::clock::UnixMs;

/// What a bucket holds at most, and at first: retries.
pub const CAP: u32 = 10;
/// Successes that pay for one retry.
pub const SUCCESSES_PER_RETRY: u32 = 10;
/// A bucket gets a success's worth by itself so often: otherwise what only fails could never show that it has
/// recovered.
pub const DRIP_EVERY: Duration = Duration::from_secs(6);
/// A retry that finds its bucket empty waits so long, and up to as long again ([`deferral`]).
const DEFER: Duration = Duration::from_secs(10);
/// Buckets that are kept at most; beyond that, retries of new ones are let through.
pub const BUCKETS_MAX: usize = 65_536;

/// A full bucket, in successes.
const FULL: u32 = CAP * SUCCESSES_PER_RETRY;

/// How long a retry that finds its bucket empty waits; `chance` is from 0 to 1.
pub fn deferral(chance: f64) -> Duration {
    DEFER + DEFER.mul_f64(chance.clamp(0.0, 1.0))
}

/// The buckets.
#[derive(Debug, Default)]
pub struct Budgets {
    /// In successes: integers, so that ten tenths are one.
    buckets: BTreeMap<(AgentId, Arc<str>), u32>,
    /// Up to when they have got what time gives.
    dripped_at: Option<UnixMs>,
}

impl Budgets {
    /// One of this kind has succeeded.
    pub fn succeeded(&mut self, agent: AgentId, kind: &Arc<str>) {
        if self.buckets.is_empty() {
            return;
        }
        let key = (agent, Arc::clone(kind));
        if let Some(left) = self.buckets.get_mut(&key) {
            *left += 1;
            if *left >= FULL {
                self.buckets.remove(&key);
            }
        }
    }

    /// Whether one of this kind may be tried again now; that takes one retry out of its bucket.
    pub fn try_retry(&mut self, now: UnixMs, agent: AgentId, kind: &Arc<str>) -> bool {
        self.drip(now);
        let key = (agent, Arc::clone(kind));
        if !self.buckets.contains_key(&key) && self.buckets.len() >= BUCKETS_MAX {
            return true;
        }
        let left = self.buckets.entry(key).or_insert(FULL);
        let enough = *left >= SUCCESSES_PER_RETRY;
        if enough {
            *left -= SUCCESSES_PER_RETRY;
        }
        enough
    }

    /// Gives what the time since the last look has brought.
    fn drip(&mut self, now: UnixMs) {
        let before = *self.dripped_at.get_or_insert(now);
        let drips = before.until(now).as_millis() / DRIP_EVERY.as_millis();
        // More than fills every bucket is as good as that.
        let drips = u32::try_from(drips).unwrap_or(FULL).min(FULL);
        if drips == 0 {
            // A clock that was set back must not stop it.
            self.dripped_at = Some(before.min(now));
            return;
        }
        self.dripped_at = Some(match drips {
            FULL => now,
            _ => before.plus(DRIP_EVERY * drips),
        });
        self.buckets.retain(|_, left| {
            *left = left.saturating_add(drips);
            *left < FULL
        });
    }

    /// Buckets that are not full.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether all are full.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const AGENT: AgentId = AgentId(Uuid::from_u128(1));
    const NOW: UnixMs = UnixMs(1_000_000);

    #[test]
    fn ten_retries_are_free_and_then_ten_successes_pay_for_one() {
        let mut budgets = Budgets::default();
        let kind: Arc<str> = "exec".into();
        let burst = (0..20)
            .filter(|_| budgets.try_retry(NOW, AGENT, &kind))
            .count();
        assert_eq!(burst, 10);
        for _ in 0..9 {
            budgets.succeeded(AGENT, &kind);
        }
        assert!(!budgets.try_retry(NOW, AGENT, &kind));
        budgets.succeeded(AGENT, &kind);
        assert!(budgets.try_retry(NOW, AGENT, &kind));
        assert!(!budgets.try_retry(NOW, AGENT, &kind));
    }

    #[test]
    fn agents_and_kinds_have_buckets_of_their_own_and_full_ones_are_dropped() {
        let mut budgets = Budgets::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for _ in 0..10 {
            assert!(budgets.try_retry(NOW, AGENT, &a));
        }
        assert!(!budgets.try_retry(NOW, AGENT, &a));
        assert!(budgets.try_retry(NOW, AGENT, &b));
        assert!(budgets.try_retry(NOW, AgentId(Uuid::from_u128(2)), &a));
        assert_eq!(budgets.len(), 3);
        let soon = NOW.plus(Duration::from_secs(59));
        assert!(!budgets.try_retry(soon, AGENT, &a));
        let later = NOW.plus(Duration::from_secs(60));
        assert!(
            budgets.try_retry(later, AGENT, &a),
            "it may try again after a while"
        );
        assert!(!budgets.try_retry(later, AGENT, &a), "once");
        assert_eq!(budgets.len(), 1, "only the empty one is left");
    }

    #[test]
    fn a_clock_that_jumps_fills_no_more_than_it_may_and_stops_nothing() {
        let mut budgets = Budgets::default();
        let kind: Arc<str> = "exec".into();
        let burst = |budgets: &mut Budgets, at| {
            (0..20)
                .filter(|_| budgets.try_retry(at, AGENT, &kind))
                .count()
        };
        assert_eq!(burst(&mut budgets, NOW), 10);
        assert_eq!(burst(&mut budgets, UnixMs(u64::MAX)), 10, "it is full");
        assert_eq!(burst(&mut budgets, NOW), 0);
        assert_eq!(burst(&mut budgets, NOW.plus(Duration::from_secs(61))), 1);
    }

    proptest! {
        #[test]
        fn retries_never_exceed_the_burst_and_a_tenth_of_the_successes(
            steps in prop::collection::vec(any::<bool>(), 0..500),
        ) {
            let mut budgets = Budgets::default();
            let kind: Arc<str> = "k".into();
            let (mut successes, mut retries) = (0, 0);
            for success in steps {
                if success {
                    budgets.succeeded(AGENT, &kind);
                    successes += 1;
                } else if budgets.try_retry(NOW, AGENT, &kind) {
                    retries += 1;
                }
                prop_assert!(retries <= CAP + successes / SUCCESSES_PER_RETRY);
            }
        }
    }
}
