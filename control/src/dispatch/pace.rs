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

/// What is known of all ends, those of other process servers among them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    pace: Pace,
    /// When others were last heard of: how many had ended in all.
    total: Option<u64>,
    /// Those of this server since.
    own: u64,
}

impl Ends {
    /// One more has ended by this server's own word.
    pub(super) fn one(&mut self, now: Instant) {
        self.own += 1;
        self.pace.more(1, now);
    }

    /// So many have ended in all, whoever has heard of it.
    pub(super) fn heard(&mut self, total: u64, now: Instant) {
        let before = self.total.replace(total).unwrap_or(total);
        let own = std::mem::take(&mut self.own);
        let others = total.saturating_sub(before).saturating_sub(own);
        self.pace.more(others, now);
    }

    /// How fast they end.
    pub(super) fn pace(&self) -> Pace {
        self.pace
    }
}

impl Pace {
    /// So many more have ended lately.
    pub(super) fn more(&mut self, ended: u64, now: Instant) {
        if ended == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let ended = ended as f64;
        self.weight = self.weight_at(now) + ended;
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
            pace.more(1, now);
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
            pace.more(1, start + Duration::from_millis(n * 100));
        }
        let found = pace.per_second(start + Duration::from_secs(2));
        assert!((7.0..13.0).contains(&found), "{found}");
    }

    #[test]
    fn what_others_have_heard_of_counts_once() {
        let start = crate::clock::monotonic();
        let mut ends = Ends::default();
        let mut total = 1000;
        let mut now = start;
        for second in 0..300 {
            now = start + Duration::from_secs(second);
            // One of its own, and three of others that it hears of every other second.
            ends.one(now);
            total += 4;
            if second % 2 == 0 {
                ends.heard(total, now);
            }
        }
        let found = ends.pace().per_second(now);
        assert!((3.6..4.4).contains(&found), "{found}");
    }
}
