//! The shard's side of the figures.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;
use protocol::link::SecurityEvent;

use super::metrics::security_index;
use super::{Counter, Figures, Level, Measure, SECURITY_EVENTS, add, histogram};
use crate::group::PermitCounts;
use crate::runtime::DatapathStats;

/// A recorder hands over what it has about this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// Intervals of one shard that wait for a reader.
const INTERVALS_MAX: usize = 4;

/// The way from one shard to the readers.
pub(super) type Queue = Arc<ArrayQueue<Box<Interval>>>;

/// The figures of one shard, as they happen.
pub(crate) struct Recorder {
    interval: Box<Interval>,
    /// The latest; copied into every interval.
    levels: [u64; Level::ALL.len()],
    datapath: DatapathStats,
    queue: Queue,
    due: Instant,
}

/// What happened on a shard since it last handed over.
#[derive(Debug)]
pub(super) struct Interval {
    counters: [u64; Counter::ALL.len()],
    security: [u64; SECURITY_EVENTS.len()],
    levels: [u64; Level::ALL.len()],
    datapath: DatapathStats,
    measurements: [Times; Measure::ALL.len()],
}

#[derive(Debug)]
struct Times {
    histogram: Histogram<u32>,
    sum_us: u64,
}

/// An empty way, as long as it can get.
pub(super) fn queue() -> Queue {
    Arc::new(ArrayQueue::new(INTERVALS_MAX))
}

impl Recorder {
    /// A recorder that hands over into a queue, for the first time an interval from `now`.
    pub(super) fn new(queue: Queue, now: Instant) -> Self {
        Self {
            interval: Box::default(),
            levels: [0; Level::ALL.len()],
            datapath: DatapathStats::default(),
            queue,
            due: now + INTERVAL,
        }
    }

    /// Counts one.
    pub(crate) fn count(&mut self, counter: Counter) {
        self.count_many(counter, 1);
    }

    /// Counts several.
    pub(crate) fn count_many(&mut self, counter: Counter, times: u64) {
        self.interval.counters[counter as usize] += times;
    }

    /// Counts a refusal.
    pub(crate) fn security(&mut self, kind: SecurityEvent) {
        self.interval.security[security_index(kind)] += 1;
    }

    /// Counts what a home did with permits and dispatches.
    pub(crate) fn permits(&mut self, counts: PermitCounts) {
        self.count_many(Counter::PermitsGranted, counts.granted);
        self.count_many(Counter::PermitsOffered, counts.offered);
        self.count_many(Counter::PermitsWithdrawn, counts.withdrawn);
        self.count_many(Counter::PermitsExpired, counts.expired);
        self.count_many(Counter::PermitsRefused, counts.refused);
        self.count_many(Counter::PermitsOverflowed, counts.overflowed);
        self.count_many(Counter::CommandsNotDelivered, counts.turned_away);
    }

    /// Adds a time to its histogram. Shorter than a microsecond counts as one.
    pub(crate) fn measure(&mut self, measure: Measure, time: Duration) {
        let times = &mut self.interval.measurements[measure as usize];
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        times.histogram.saturating_record(time_us.max(1));
        times.sum_us = times.sum_us.saturating_add(time_us);
    }

    /// Measures a command from its dispatch to its end, and splits that where the agent's word allows:
    /// one that it had finished before (its result was only told again) took it longer than that, and
    /// one that it never began has no time.
    pub(crate) fn answered(&mut self, total: Duration, service_time: Duration) {
        self.measure(Measure::DispatchToFinished, total);
        if let Some(wire) = total.checked_sub(service_time)
            && !service_time.is_zero()
        {
            self.measure(Measure::Wire, wire);
            self.measure(Measure::Agent, service_time);
        }
    }

    /// Says how much there is of something now.
    pub(crate) fn level(&mut self, level: Level, amount: usize) {
        self.levels[level as usize] = u64::try_from(amount).unwrap_or(u64::MAX);
    }

    /// Takes over the datapath's own counters.
    pub(crate) fn datapath(&mut self, stats: DatapathStats) {
        self.datapath = stats;
    }

    /// When [`publish`](Self::publish) is wanted.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Hands over what has gathered. Levels and the datapath's counters should be fresh.
    pub(crate) fn publish(&mut self, now: Instant) {
        self.due = now + INTERVAL;
        self.interval.levels = self.levels;
        self.interval.datapath = self.datapath;
        let full = mem::take(&mut self.interval);
        // While nobody reads, the oldest interval comes back and goes on gathering.
        if let Some(oldest) = self.queue.force_push(full) {
            self.interval = oldest;
        }
    }
}

impl Default for Interval {
    fn default() -> Self {
        Self {
            counters: [0; Counter::ALL.len()],
            security: [0; SECURITY_EVENTS.len()],
            levels: [0; Level::ALL.len()],
            datapath: DatapathStats::default(),
            measurements: std::array::from_fn(|_| Times {
                histogram: histogram(),
                sum_us: 0,
            }),
        }
    }
}

impl Interval {
    /// Adds what happened to the sums since the start.
    pub(super) fn add_to(&self, figures: &mut Figures) {
        add(&mut figures.counters, &self.counters);
        add(&mut figures.security, &self.security);
        figures.levels = self.levels;
        figures.datapath = self.datapath;
        for (sum, times) in figures.measurements.iter_mut().zip(&self.measurements) {
            sum.sum_us = sum.sum_us.saturating_add(times.sum_us);
            for value in times.histogram.iter_recorded() {
                let count = value.count_since_last_iteration();
                sum.histogram
                    .saturating_record_n(value.value_iterated_to(), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Hub;
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn intervals_add_up_and_levels_are_the_latest() {
        let now = clock::now();
        let (hub, mut recorders) = Hub::new(2, now);
        for (sessions, recorder) in (10..).zip(&mut recorders) {
            for round in 1..=3 {
                recorder.count(Counter::FramesIn);
                recorder.security(SecurityEvent::KeyNotPinned);
                recorder.measure(Measure::Turn, Duration::from_micros(round));
                recorder.level(Level::Sessions, sessions);
                recorder.publish(now);
            }
        }
        hub.read();
        let total = hub.read().total();
        assert_eq!(total.counter(Counter::FramesIn), 6);
        assert_eq!(total.security(SecurityEvent::KeyNotPinned), 6);
        assert_eq!(total.security(SecurityEvent::NoCertificate), 0);
        assert_eq!(total.level(Level::Sessions), 21);
        assert_eq!(hub.measurement(Measure::Turn).sum_us(), 12);
        let turns = total.measurement(Measure::Turn);
        assert_eq!((turns.histogram().len(), turns.sum_us()), (6, 12));
        assert_eq!(turns.histogram().max(), 3);
    }

    #[test]
    fn nothing_is_lost_while_nobody_reads_and_memory_is_bounded() {
        let now = clock::now();
        let (hub, mut recorders) = Hub::new(1, now);
        let recorder = &mut recorders[0];
        for round in 1..=100 {
            recorder.count(Counter::FramesOut);
            recorder.measure(Measure::Mailbox, Duration::from_millis(round));
            recorder.level(Level::HalfOpen, 7);
            recorder.publish(now);
        }
        assert_eq!(recorder.queue.len(), INTERVALS_MAX);
        hub.read();
        recorder.publish(now);
        let figures = hub.read().total();
        assert_eq!(figures.counter(Counter::FramesOut), 100);
        assert_eq!(figures.level(Level::HalfOpen), 7);
        let times = figures.measurement(Measure::Mailbox);
        assert_eq!((times.histogram().len(), times.sum_us()), (100, 5_050_000));
        let median = times.histogram().value_at_quantile(0.5);
        assert!((49_500..=50_500).contains(&median), "{median}");
    }

    #[test]
    fn times_off_the_scale_are_counted_at_its_ends() {
        let now = clock::now();
        let (hub, mut recorders) = Hub::new(1, now);
        recorders[0].measure(Measure::Handshake, Duration::ZERO);
        recorders[0].measure(Measure::Handshake, Duration::from_secs(3_600));
        recorders[0].publish(now);
        let figures = hub.read().total();
        let times = figures.measurement(Measure::Handshake);
        assert_eq!(times.histogram().len(), 2);
        assert_eq!(times.histogram().min(), 1);
        assert!(times.histogram().max() >= 60_000_000);
        assert_eq!(times.sum_us(), 3_600_000_000);
    }

    #[test]
    fn a_command_is_split_only_where_the_agents_word_can_be_true() {
        let now = clock::now();
        let (hub, mut recorders) = Hub::new(1, now);
        let ms = Duration::from_millis;
        // One that ran, a result told again, one that never began, and a lie.
        for (total, service_time) in [(5, 3), (2, 900), (7, 0), (1, u64::MAX)] {
            recorders[0].answered(ms(total), ms(service_time));
        }
        recorders[0].publish(now);
        let sum = |measure| {
            let times = hub.measurement(measure);
            (times.histogram().len(), times.sum_us())
        };
        assert_eq!(sum(Measure::DispatchToFinished), (4, 15_000));
        assert_eq!(sum(Measure::Wire), (1, 2_000));
        assert_eq!(sum(Measure::Agent), (1, 3_000));
    }

    #[test]
    fn an_interval_fits_into_64_kib() {
        let interval = Interval::default();
        let tables = interval.measurements.iter();
        let bytes: usize = tables
            .map(|times| times.histogram.distinct_values() * size_of::<u32>())
            .sum();
        assert!(bytes + size_of::<Interval>() <= 64 << 10, "{bytes}");
    }
}
