//! What a gateway measures, and how the figures leave its shards.
//!
//! ```text
//!   shard 0: Recorder ── Interval, each second ──▶ bounded queue ─┐
//!   shard 1: Recorder ── Interval, each second ──▶ bounded queue ─┴─▶ Hub::read ──▶ Telemetry
//! ```
//!
//! A [`Recorder`] is plain memory of its shard: counting is one addition, measuring is one
//! addition into a histogram, and nothing is shared or locked. About once a second it hands over
//! what has gathered and begins anew. Whoever reads adds the intervals up; a lock is taken only
//! among readers. When nobody reads, the oldest interval goes back to its recorder and on
//! gathering, so memory is bounded and nothing is lost.
//!
//! There is one histogram for each shard and kind of measurement, never one for each agent.
//! Histograms are merged by adding counts; percentiles are never averaged.
//!
//! Not here: logs, and what the control plane measures.

use hdrhistogram::Histogram;
use protocol::ids::ShardId;
use protocol::link::SecurityEvent;

use crate::runtime::DatapathStats;

pub mod families;
mod hub;
mod metrics;
mod recorder;

pub(crate) use hub::Hub;
pub use metrics::{Counter, Level, Measure, Metric, SECURITY_EVENTS};
pub(crate) use recorder::Recorder;

/// The longest time that a histogram tells apart, in microseconds; longer ones count as this.
pub const HIGHEST_US: u64 = 60_000_000;
/// Significant decimal digits of a histogram: values are off by at most 1 %.
const DIGITS: u8 = 2;

/// A gateway's figures since its start, by shard.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// In the order of the shards.
    pub shards: Vec<(ShardId, Figures)>,
}

impl Telemetry {
    /// The figures of all shards together.
    pub fn total(&self) -> Figures {
        let mut total = Figures::default();
        for (_, figures) in &self.shards {
            total.merge(figures);
        }
        total
    }
}

/// The figures of one shard, or of several together.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    counters: [u64; Counter::ALL.len()],
    security: [u64; SECURITY_EVENTS.len()],
    levels: [u64; Level::ALL.len()],
    datapath: DatapathStats,
    measurements: [Measurement; Measure::ALL.len()],
}

impl Figures {
    /// How often something has happened since the start.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// How often something was refused since the start.
    pub fn security(&self, kind: SecurityEvent) -> u64 {
        self.security[metrics::security_index(kind)]
    }

    /// How much there is of something now.
    pub fn level(&self, level: Level) -> u64 {
        self.levels[level as usize]
    }

    /// The counters of the datapath since the start. Of several shards together: their sums, and
    /// the kind of the first.
    pub fn datapath(&self) -> &DatapathStats {
        &self.datapath
    }

    /// How long something took, since the start.
    pub fn measurement(&self, measure: Measure) -> &Measurement {
        &self.measurements[measure as usize]
    }

    /// Adds another shard's or gateway's figures.
    pub fn merge(&mut self, other: &Self) {
        add(&mut self.counters, &other.counters);
        add(&mut self.security, &other.security);
        add(&mut self.levels, &other.levels);
        merge_datapath(&mut self.datapath, &other.datapath);
        for (mine, theirs) in self.measurements.iter_mut().zip(&other.measurements) {
            mine.merge(theirs);
        }
    }
}

/// Times of one kind, in microseconds.
#[derive(Clone, Debug)]
pub struct Measurement {
    histogram: Histogram<u64>,
    sum_us: u64,
}

impl Measurement {
    /// The times, 1 µs to [`HIGHEST_US`].
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// The sum of all times in microseconds: exact, those beyond [`HIGHEST_US`] in full.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    fn merge(&mut self, other: &Self) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        for value in other.histogram.iter_recorded() {
            let count = value.count_since_last_iteration();
            self.histogram
                .saturating_record_n(value.value_iterated_to(), count);
        }
    }
}

impl Default for Measurement {
    fn default() -> Self {
        Self {
            histogram: histogram(),
            sum_us: 0,
        }
    }
}

fn histogram<C: hdrhistogram::Counter>() -> Histogram<C> {
    #[expect(
        clippy::expect_used,
        reason = "constants; a test makes one of each type"
    )]
    Histogram::new_with_bounds(1, HIGHEST_US, DIGITS)
        .expect("these bounds and digits make a histogram")
}

fn add<const N: usize>(sums: &mut [u64; N], more: &[u64; N]) {
    for (sum, value) in sums.iter_mut().zip(more) {
        *sum = sum.saturating_add(*value);
    }
}

fn merge_datapath(sum: &mut DatapathStats, more: &DatapathStats) {
    let untouched = *sum == DatapathStats::default();
    *sum = DatapathStats {
        kind: if untouched { more.kind } else { sum.kind },
        fallback: sum.fallback | more.fallback,
        datagrams_in: sum.datagrams_in + more.datagrams_in,
        bytes_in: sum.bytes_in + more.bytes_in,
        dropped_in: sum.dropped_in + more.dropped_in,
        kernel_dropped_in: sum.kernel_dropped_in + more.kernel_dropped_in,
        receive_stalls: sum.receive_stalls + more.receive_stalls,
        datagrams_out: sum.datagrams_out + more.datagrams_out,
        bytes_out: sum.bytes_out + more.bytes_out,
        dropped_out: sum.dropped_out + more.dropped_out,
        gso_fallbacks: sum.gso_fallbacks + more.gso_fallbacks,
    };
}
