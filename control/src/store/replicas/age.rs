//! How old what a replica shows may be.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When the primary was how far, for as long as it matters.
pub(super) struct Ages {
    keep: Duration,
    /// Numbers that rise, each with the last moment at which the primary was no further.
    seen: Mutex<VecDeque<(u64, Instant)>>,
}

impl Ages {
    /// Remembers what is at most so old.
    pub(super) fn new(keep: Duration) -> Self {
        Self {
            keep,
            seen: Mutex::default(),
        }
    }

    /// The primary, asked at `at`, was so far.
    pub(super) fn note(&self, number: u64, at: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.back_mut() {
            Some((last, moment)) if *last == number => *moment = at,
            _ => seen.push_back((number, at)),
        }
        while seen
            .front()
            .is_some_and(|(_, moment)| at.saturating_duration_since(*moment) > self.keep)
        {
            seen.pop_front();
        }
    }

    /// How old what a replica lacks may be, that has come so far; `None`: older than what is remembered.
    pub(super) fn of(&self, number: u64, now: Instant) -> Option<Duration> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, whole) = seen.iter().rev().find(|(at, _)| *at <= number)?;
        Some(now.saturating_duration_since(*whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_as_old_as_the_last_moment_at_which_it_had_everything() {
        let start = crate::clock::monotonic();
        let at = |seconds| start + Duration::from_secs(seconds);
        let ages = Ages::new(Duration::from_secs(5));
        assert_eq!(ages.of(9, at(0)), None, "nothing is known yet");
        for (number, second) in [(7, 0), (7, 1), (9, 2), (12, 3)] {
            ages.note(number, at(second));
        }
        for (number, age) in [
            (6, None),
            (7, Some(2)),
            (8, Some(2)),
            (9, Some(1)),
            (12, Some(0)),
            (50, Some(0)),
        ] {
            let age = age.map(Duration::from_secs);
            assert_eq!(ages.of(number, at(3)), age, "{number}");
        }
        // While the primary does not answer, what is known of it grows old.
        assert_eq!(ages.of(12, at(60)), Some(Duration::from_secs(57)));
        // And one that lacks what was so too long ago is older than anything that is remembered.
        ages.note(13, at(7));
        assert_eq!(ages.of(8, at(7)), None);
        assert_eq!(ages.of(9, at(7)), Some(Duration::from_secs(5)));
    }
}
