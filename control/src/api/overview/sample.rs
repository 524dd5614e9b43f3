//! Counters and the process's use of the machine, a look apart: what happens per second.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::dispatch::EngineStats;
use crate::store::StoreStats;
use crate::telemetry::GatewayFigures;

/// Rates are over this long.
const WINDOW: Duration = Duration::from_secs(10);
/// Two looks that are further apart say nothing about now.
const TOO_OLD: Duration = Duration::from_secs(30);
/// The kernel counts processor time in hundredths of a second (USER_HZ, proc_pid_stat(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// What is counted.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    counters: Vec<(&'static str, u64)>,
    cpu_ticks: Option<u64>,
}

impl Sample {
    pub(super) fn take(
        stats: &EngineStats,
        store: &StoreStats,
        gateway: Option<&GatewayFigures>,
        usage: &Usage,
    ) -> Self {
        let ended = stats.succeeded + stats.failed + stats.cancelled;
        let mut counters = vec![
            ("connects", stats.census.sessions_begun),
            ("losses", stats.census.sessions_ended),
            ("refusals", stats.security.values().sum()),
            ("commands", stats.claimed),
            ("processes_created", stats.created),
            ("processes_finished", ended),
            ("commits", store.commits),
        ];
        if let Some(gateway) = gateway {
            counters.extend([
                ("admitted", gateway.admitted),
                ("retried", gateway.retried),
                ("turned_away", gateway.turned_away),
                ("handshakes_failed", gateway.handshakes_failed),
            ]);
        }
        Self {
            counters,
            cpu_ticks: usage.cpu_ticks,
        }
    }
}

/// The last looks.
#[derive(Default)]
pub(super) struct Samples(VecDeque<(Instant, Sample)>);

impl Samples {
    /// Adds a look: what happened per second since the oldest one of the window, and cores in use.
    /// Nothing where there was no look lately.
    pub(super) fn add(
        &mut self,
        now: Instant,
        sample: Sample,
    ) -> (BTreeMap<String, f64>, Option<f64>) {
        let age = |at: Instant| now.saturating_duration_since(at);
        if self.0.back().is_some_and(|(at, _)| age(*at) > TOO_OLD) {
            self.0.clear();
        }
        while self.0.len() > 1 && self.0.get(1).is_some_and(|(at, _)| age(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let mut rates = BTreeMap::new();
        let mut cores = None;
        if let Some((at, before)) = self.0.front() {
            let seconds = age(*at).as_secs_f64().max(0.001);
            for ((name, count), (_, earlier)) in sample.counters.iter().zip(&before.counters) {
                let rate = count.saturating_sub(*earlier) as f64 / seconds;
                rates.insert((*name).to_owned(), rate);
            }
            let spent = sample.cpu_ticks.zip(before.cpu_ticks);
            cores = spent
                .map(|(now, then)| now.saturating_sub(then) as f64 / TICKS_PER_SECOND / seconds);
        }
        self.0.push_back((now, sample));
        (rates, cores)
    }
}

/// What the process uses, as the kernel tells; nothing where there is no procfs.
#[derive(Default)]
pub(super) struct Usage {
    pub(super) rss_bytes: Option<u64>,
    cpu_ticks: Option<u64>,
}

impl Usage {
    /// Reads procfs, which does not wait for a disk.
    pub(super) fn now() -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
        Self {
            rss_bytes: read("status").as_deref().and_then(resident),
            cpu_ticks: read("stat").as_deref().and_then(ticks),
        }
    }
}

/// `VmRSS` of proc_pid_status(5), in bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// `utime + stime` of proc_pid_stat(5), counted behind the name, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn sample(connects: u64) -> Sample {
        let counters = vec![("connects", connects)];
        Sample {
            counters,
            cpu_ticks: Some(connects * 2),
        }
    }

    #[test]
    fn a_rate_is_over_the_last_ten_seconds_and_not_over_a_pause() {
        let start = clock::monotonic();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut samples = Samples::default();
        let (rates, cores) = samples.add(at(0), sample(0));
        assert!(rates.is_empty() && cores.is_none());
        for second in 1..=20 {
            let (rates, cores) = samples.add(at(second), sample(second * 50));
            assert!((rates["connects"] - 50.0).abs() < 1e-9, "{rates:?}");
            assert!(cores.is_some_and(|cores| (cores - 1.0).abs() < 1e-9));
        }
        assert!(samples.0.len() <= 12, "{}", samples.0.len());
        let (rates, cores) = samples.add(at(100), sample(9999));
        assert!(rates.is_empty() && cores.is_none());
    }

    #[test]
    fn the_kernels_words_are_read_whatever_the_process_is_called() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("nonsense"), None);
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2 kB\n"), Some(2048));
        assert!(Usage::now().rss_bytes.is_some_and(|bytes| bytes > 1 << 20));
    }
}
