//! What the API measures about itself.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use hdrhistogram::Histogram;

use crate::telemetry::latency_histogram;

/// The quantiles that `/metrics` shows.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Counters since the start.
pub(super) struct Telemetry {
    /// By hundreds of the status: 1xx, 2xx, …
    by_status: [AtomicU64; 5],
    answer_us: Mutex<Histogram<u64>>,
}

impl Telemetry {
    pub(super) fn new() -> Self {
        Self {
            by_status: Default::default(),
            answer_us: Mutex::new(latency_histogram()),
        }
    }

    /// A request was answered; the first byte of the answer took so long.
    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.by_status[class].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.answer_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .saturating_record(micros);
    }

    /// Adds the API's figures in the Prometheus text format.
    pub(super) fn write(&self, out: &mut String) {
        out.push_str("# HELP drover_api_requests_total Requests answered, by class of status.\n");
        out.push_str("# TYPE drover_api_requests_total counter\n");
        for (class, count) in (1..).zip(&self.by_status) {
            let count = count.load(Ordering::Relaxed);
            line(
                out,
                format_args!("drover_api_requests_total{{status=\"{class}xx\"}} {count}"),
            );
        }
        let histogram = self
            .answer_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        summary(
            out,
            "drover_api_answer_seconds",
            "From a request's head to the head of its answer.",
            &histogram,
        );
    }
}

/// A histogram of microseconds as a Prometheus summary in seconds.
pub(super) fn summary(out: &mut String, name: &str, help: &str, histogram: &Histogram<u64>) {
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} summary"));
    for quantile in QUANTILES {
        let seconds = Duration::from_micros(histogram.value_at_quantile(quantile)).as_secs_f64();
        line(
            out,
            format_args!("{name}{{quantile=\"{quantile}\"}} {seconds}"),
        );
    }
    let count = histogram.len();
    line(out, format_args!("{name}_count {count}"));
}

/// One line of text. Writing to a string cannot fail.
pub(super) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    if out.write_fmt(text).is_ok() {
        out.push('\n');
    }
}
