//! How long things took: histograms, and what is kept of them over time.
//!
//! ```text
//!   store, process server, API ─ Times ─┐
//!   the rest of the program ────────────┴─ Reading, each second ─▶ Histograms ─┬▶ history: an hour
//!                                                                              └▶ log: .hlog files
//! ```
//!
//! Whoever measures keeps one bounded histogram since its start and knows nothing of this. Once a
//! second [`keep`] reads all of them; what came in between goes into the history. So any number
//! of readers see the same, and nothing is taken from whoever measures.
//!
//! What `/metrics` serves are the same histograms and all other figures, as [`metrics`] has them.
//!
//! Percentiles of several intervals, shards or routes come from their counts added up; percentiles
//! are never averaged.

mod gateway;
mod history;
mod keeper;
mod log;
pub mod metrics;
mod name;
pub(crate) mod protobuf;
pub(crate) mod text;

use std::time::Duration;

use hdrhistogram::Histogram;

pub use self::gateway::{GatewayFigures, GatewaySource};
pub(crate) use self::history::{COARSE, Found};
pub(crate) use self::keeper::{Histograms, keep};
pub use self::keeper::{Reading, TimesSource};
pub(crate) use self::log::Log;
pub use self::log::LogConfig;
pub use self::name::Name;

/// The longest duration that a latency histogram tells apart: ten minutes, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

/// Times of one kind since the start, in microseconds: 1 µs to ten minutes to within 1 %; what is
/// longer counts as ten minutes, what is shorter as 1 µs.
#[derive(Clone, Debug)]
pub struct Times {
    histogram: Histogram<u64>,
    sum_us: u64,
}

impl Times {
    pub(crate) fn new() -> Self {
        Self {
            histogram: latency_histogram(),
            sum_us: 0,
        }
    }

    /// Times that others have measured; `histogram` has bounds from 1 µs and two digits.
    pub fn of(histogram: &Histogram<u64>, sum_us: u64) -> Self {
        Self {
            histogram: histogram.clone(),
            sum_us,
        }
    }

    /// Adds a time.
    pub(crate) fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(micros.max(1));
        self.sum_us = self.sum_us.saturating_add(micros);
    }

    /// Adds others.
    pub(crate) fn merge(&mut self, other: &Self) {
        for value in other.histogram.iter_recorded() {
            let count = value.count_since_last_iteration();
            self.histogram
                .saturating_record_n(value.value_iterated_to(), count);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// How many took how long.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// The sum of all times in microseconds: exact, those beyond ten minutes in full.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }
}

/// A bounded histogram for microseconds: two significant digits, 1 µs to ten minutes; what is
/// longer counts as ten minutes.
pub(crate) fn latency_histogram() -> Histogram<u64> {
    bounded(LATENCY_MAX_US)
}

/// A bounded histogram for small counts.
pub(crate) fn count_histogram(max: u64) -> Histogram<u64> {
    bounded(max)
}

#[expect(clippy::expect_used, reason = "the bounds are constants of this crate")]
fn bounded(max: u64) -> Histogram<u64> {
    Histogram::new_with_bounds(1, max.max(2), 2).expect("1 < max and 2 digits are valid bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_off_the_scale_count_at_its_ends_and_in_full_in_the_sum() {
        let mut times = Times::new();
        times.record(Duration::ZERO);
        times.record(Duration::from_secs(3600));
        let mut more = Times::new();
        more.record(Duration::from_micros(5));
        times.merge(&more);
        assert_eq!(times.histogram().len(), 3);
        assert_eq!(times.histogram().min(), 1);
        assert!(times.histogram().max() >= LATENCY_MAX_US);
        assert_eq!(times.sum_us(), 3_600_000_005);
    }
}
