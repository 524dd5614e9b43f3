//! How fast something ends lately: an exponentially decaying count of completions.

use std::time::{Duration, Instant};

/// What ended longer ago than this counts little.
const MEMORY: Duration = Duration::from_secs(60);
/// The shortest and the longest that anybody is told to wait.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Completions of one agent or tenant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Completions, each worth e^(-age / [`MEMORY`]).
    weight: f64,
    /// The first one, and the last.
    since: Option<(Instant, Instant)>,
}

impl Pace {
    /// One more has ended.
    pub(super) fn one(&mut self, now: Instant) {
        self.weight = self.weight_at(now) + 1.0;
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now));
    }

    /// Completions a second, as far as they are known.
    pub(super) fn per_second(&self, now: Instant) -> f64 {
        let Some((first, _)) = self.since else {
            return 0.0;
        };
        // Until the memory is full, only the time since the first one can be judged.
        let age = now.saturating_duration_since(first).as_secs_f64().max(1.0);
        let memory = MEMORY.as_secs_f64();
        self.weight_at(now) / (memory * (1.0 - (-age / memory).exp()))
    }

    /// How long `depth` of them take, within 1 s to 10 min: what is not known is long.
    pub(super) fn wait_for(&self, depth: u64, now: Instant) -> Duration {
        self.eta(depth, now)
            .map_or(WAIT_MAX, |wait| wait.clamp(WAIT_MIN, WAIT_MAX))
    }

    /// How long `depth` of them take, if anything ended lately.
    pub(super) fn eta(&self, depth: u64, now: Instant) -> Option<Duration> {
        let pace = self.per_second(now);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = depth as f64 / pace;
        (pace > 1e-4).then(|| Duration::from_secs_f64(seconds.min(1e7)))
    }

    fn weight_at(&self, now: Instant) -> f64 {
        let Some((_, last)) = self.since else {
            return 0.0;
        };
        let age = now.saturating_duration_since(last).as_secs_f64();
        self.weight * (-age / MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_pace_is_found_and_a_queue_is_told_how_long_it_takes() {
        let start = crate::clock::monotonic();
        let mut pace = Pace::default();
        assert_eq!(pace.wait_for(5, start), WAIT_MAX, "nothing is known yet");
        let mut now = start;
        for _ in 0..1200 {
            now += Duration::from_millis(250);
            pace.one(now);
        }
        let found = pace.per_second(now);
        assert!((3.8..4.2).contains(&found), "{found}");
        assert!((9..11).contains(&pace.wait_for(40, now).as_secs()));
        assert_eq!(pace.wait_for(1, now), WAIT_MIN);
        assert_eq!(pace.wait_for(100_000, now), WAIT_MAX);
        // An agent that has stopped working is slow.
        let later = now + Duration::from_secs(600);
        assert!(pace.per_second(later) < 0.01);
    }

    #[test]
    fn a_short_life_is_not_taken_for_a_slow_pace() {
        let start = crate::clock::monotonic();
        let mut pace = Pace::default();
        for n in 1..=20 {
            pace.one(start + Duration::from_millis(n * 100));
        }
        let found = pace.per_second(start + Duration::from_secs(2));
        assert!((7.0..13.0).contains(&found), "{found}");
    }
}
