//! What a simulation is judged by.

use gateway::flow::fair::Class;

use super::events::{Nanos, seconds};
use super::scenario::Scenario;

/// Counts and series. Counters begin after the warm-up, series at the beginning.
#[derive(Debug, Default)]
pub struct Score {
    warm_up: f64,
    timeout: f64,
    /// Seconds of work of operations that succeeded in time, by second.
    pub good: Vec<f64>,
    /// Seconds of work that could have been done, by second.
    pub capacity: Vec<f64>,
    /// The same work by tenant, by second.
    pub by_tenant: Vec<Vec<f64>>,
    /// Of a host, at each second: its limit, what runs, its slots.
    pub limits: Vec<[f64; 3]>,
    /// Operations that succeeded in time.
    pub successes: u64,
    /// Operations that succeeded too late.
    pub late: u64,
    /// Attempts that reached a host and ended otherwise.
    pub refused: u64,
    /// Attempts that nobody waited for any more.
    pub timed_out: u64,
    /// Attempts that were fenced off at a host.
    pub fenced: u64,
    /// Attempts that failed in passing.
    pub failed: u64,
    /// Attempts that were made after one that failed.
    pub retries: u64,
    /// Operations in flight beyond the limit under which the last of them was granted, at worst.
    pub over_issue: u32,
    /// Operations that ran more than once.
    pub repeated: u64,
    /// Seconds from ready to started, by class.
    pub waits: [Vec<f32>; 4],
    /// The longest time in which a class that waited was given nothing, by class.
    pub starved: [f64; 4],
    last_start: [f64; 4],
}

impl Score {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            warm_up: scenario.warm_up,
            timeout: scenario.timeout,
            by_tenant: vec![Vec::new(); scenario.tenants.len()],
            last_start: [scenario.warm_up; 4],
            ..Self::default()
        }
    }

    fn counts(&self, now: Nanos) -> bool {
        seconds(now) >= self.warm_up
    }

    /// An operation succeeded; `took` seconds after its attempt was sent.
    pub(super) fn succeed(&mut self, now: Nanos, tenant: usize, work: f64, took: f64) {
        let in_time = took <= self.timeout;
        if self.counts(now) {
            match in_time {
                true => self.successes += 1,
                false => self.late += 1,
            }
        }
        if in_time {
            add(&mut self.good, now, work);
            if let Some(tenant) = self.by_tenant.get_mut(tenant) {
                add(tenant, now, work);
            }
        }
    }

    pub(super) fn refuse(&mut self, now: Nanos) {
        self.refused += u64::from(self.counts(now));
    }

    pub(super) fn time_out(&mut self, now: Nanos) {
        self.timed_out += u64::from(self.counts(now));
    }

    pub(super) fn fence(&mut self, now: Nanos) {
        self.fenced += u64::from(self.counts(now));
    }

    pub(super) fn fail(&mut self, now: Nanos) {
        self.failed += u64::from(self.counts(now));
    }

    pub(super) fn retry(&mut self, now: Nanos) {
        self.retries += u64::from(self.counts(now));
    }

    /// An operation that had been ready since then starts on its host.
    #[expect(clippy::cast_possible_truncation, reason = "seconds, to seven digits")]
    pub(super) fn start(&mut self, now: Nanos, class: Class, ready: Nanos) {
        if !self.counts(now) {
            return;
        }
        let class = place(class);
        self.waits[class].push(seconds(now - ready) as f32);
        let gap = seconds(now) - self.last_start[class];
        self.starved[class] = self.starved[class].max(gap);
        self.last_start[class] = seconds(now);
    }

    /// A second has passed.
    pub(super) fn sample(&mut self, now: Nanos, capacity: f64, host: [f64; 3]) {
        add(&mut self.capacity, now.saturating_sub(1), capacity);
        self.limits.push(host);
    }

    /// Attempts that were in vain, over successes.
    #[expect(clippy::cast_precision_loss, reason = "counts of a simulation")]
    pub fn waste(&self) -> f64 {
        let wasted = self.refused + self.timed_out + self.fenced;
        wasted as f64 / (self.successes.max(1)) as f64
    }

    /// Work done in time over work that could have been done, between two seconds.
    pub fn ratio(&self, from: f64, to: f64) -> f64 {
        let capacity = sum(&self.capacity, from, to);
        match capacity > 0.0 {
            true => sum(&self.good, from, to) / capacity,
            false => 0.0,
        }
    }

    /// The same over all that counts.
    pub fn goodput(&self) -> f64 {
        self.ratio(self.warm_up, f64::INFINITY)
    }

    /// The same over so many seconds after the warm-up: in real time the last second may not be whole.
    pub fn goodput_within(&self, seconds: f64) -> f64 {
        self.ratio(self.warm_up, self.warm_up + seconds.floor())
    }

    /// Jain's index of what tenants got over their weights, in each window of so many seconds after
    /// the warm-up; a window begins every tenth of one.
    pub fn jain(&self, weights: &[u32], window: f64) -> Vec<f64> {
        let mut indices = Vec::new();
        let mut from = self.warm_up;
        #[expect(clippy::cast_precision_loss, reason = "seconds of a simulation")]
        let end = self.capacity.len() as f64;
        while from + window <= end {
            let got = self.by_tenant.iter().zip(weights);
            let got = got.map(|(tenant, weight)| {
                sum(tenant, from, from + window) / f64::from((*weight).max(1))
            });
            indices.push(jain(&got.collect::<Vec<_>>()));
            from += window / 10.0;
        }
        indices
    }

    /// Seconds after `change` until work is done at this part of the capacity: over the next 20 s, and
    /// over all the time from then until the second `until`.
    pub fn settled(&self, change: f64, until: f64, part: f64) -> Option<f64> {
        let mut from = change;
        while from + 20.0 <= until {
            if self.ratio(from, from + 20.0) >= part && self.ratio(from, until) >= part {
                return Some(from - change);
            }
            from += 1.0;
        }
        None
    }

    /// The quantile of the wait of a class, in seconds.
    pub fn wait(&self, class: Class, quantile: f64) -> Option<f64> {
        let mut waits = self.waits[place(class)].clone();
        waits.sort_by(f32::total_cmp);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index"
        )]
        let at = (waits.len() as f64 * quantile) as usize;
        let at = at.min(waits.len().checked_sub(1)?);
        waits.get(at).map(|wait| f64::from(*wait))
    }
}

/// Jain's fairness index: 1 where all got the same, 1/n where one got all.
pub fn jain(got: &[f64]) -> f64 {
    let sum: f64 = got.iter().sum();
    let squares: f64 = got.iter().map(|x| x * x).sum();
    #[expect(clippy::cast_precision_loss, reason = "a handful of tenants")]
    let count = got.len() as f64;
    match squares > 0.0 {
        true => sum * sum / (count * squares),
        false => 1.0,
    }
}

/// The place of a class in a table.
pub(super) fn place(class: Class) -> usize {
    let place = Class::ALL.iter().position(|known| *known == class);
    place.unwrap_or(0)
}

/// Adds to a series by second.
fn add(series: &mut Vec<f64>, now: Nanos, value: f64) {
    let second = usize::try_from(now / 1_000_000_000).unwrap_or(usize::MAX);
    if series.len() <= second {
        series.resize(second + 1, 0.0);
    }
    series[second] += value;
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a simulation; saturates"
)]
fn sum(series: &[f64], from: f64, to: f64) -> f64 {
    let to = (to as usize).min(series.len());
    let from = (from as usize).min(to);
    series[from..to].iter().fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_is_one_for_equals_and_a_part_for_one_alone() {
        assert!((jain(&[3.0, 3.0, 3.0, 3.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[5.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
        assert!((jain(&[0.7, 0.1, 0.1, 0.1]) - 0.4808).abs() < 1e-3);
    }

    #[test]
    fn what_comes_too_late_or_before_the_warm_up_does_not_count() {
        let scenario = Scenario {
            warm_up: 10.0,
            ..Scenario::default()
        };
        let mut score = Score::new(&scenario);
        let at = |second: u64| second * 1_000_000_000;
        for second in 1..=20 {
            score.sample(at(second), 10.0, [0.0; 3]);
        }
        score.succeed(at(5), 0, 9.0, 2.0);
        score.succeed(at(12), 0, 5.0, 2.0);
        score.succeed(at(13), 0, 5.0, 46.0);
        score.refuse(at(5));
        score.refuse(at(15));
        assert_eq!((score.successes, score.late, score.refused), (1, 1, 1));
        assert!((score.goodput() - 0.05).abs() < 1e-12);
        assert!((score.waste() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn settled_is_when_the_next_seconds_and_all_the_rest_are_good_enough() {
        let mut score = Score::new(&Scenario::default());
        for second in 0..200_u64 {
            score.sample((second + 1) * 1_000_000_000, 10.0, [0.0; 3]);
            // Good at once, then for long not, then for good.
            let work = if (45..145).contains(&second) {
                5.0
            } else {
                9.5
            };
            score.succeed(second * 1_000_000_000, 0, work, 1.0);
        }
        // The first 25 s would do, but not what follows them.
        assert_eq!(score.settled(20.0, 200.0, 0.9), Some(123.0));
        assert_eq!(score.settled(20.0, 200.0, 0.99), None);
        assert_eq!(score.settled(150.0, 200.0, 0.9), Some(0.0));
    }
}
