//! Histograms as the control plane keeps them.

use hdrhistogram::Histogram;

/// The longest duration that a latency histogram tells apart: ten minutes, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

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
