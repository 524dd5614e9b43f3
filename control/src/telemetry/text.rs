//! Figures as Prometheus text, exposition format 0.0.4.
//!
//! A histogram keeps more buckets than are shown here; a time counts for a bound when it is at most
//! 1 % above it, which is the histogram's own precision.

use std::fmt::Display;

use super::Times;
use super::metrics::{Family, Kind, Value};

/// The media type.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds of the buckets: in microseconds, and as the `le` label has them, in seconds. A histogram
/// shows those that it can tell apart.
pub(super) const BOUNDS: [(u64, &str); 24] = [
    (10, "0.00001"),
    (25, "0.000025"),
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
    (60_000_000, "60"),
    (120_000_000, "120"),
    (300_000_000, "300"),
    (600_000_000, "600"),
];

/// The page.
pub(crate) fn render(families: &[Family]) -> String {
    let mut page = Page::default();
    for family in families {
        page.family(family);
    }
    page.0
}

/// How many are at most as long as each bound, in order.
pub(super) fn cumulative(times: &Times) -> impl Iterator<Item = (u64, &'static str, u64)> {
    let histogram = times.histogram();
    let mut recorded = histogram.iter_recorded().peekable();
    let mut count = 0;
    let shown = BOUNDS.into_iter();
    let shown = shown.take_while(|(bound_us, _)| *bound_us <= histogram.high());
    shown.map(move |(bound_us, le)| {
        while let Some(value) = recorded
            .next_if(|value| histogram.lowest_equivalent(value.value_iterated_to()) <= bound_us)
        {
            count += value.count_since_last_iteration();
        }
        (bound_us, le, count)
    })
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, family: &Family) {
        let Family { name, help, .. } = family;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.0
            .push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for sample in &family.samples {
            match &sample.value {
                Value::Number(value) => self.sample(name, "", &sample.labels, None, value),
                Value::Times(times) => self.times(name, &sample.labels, times),
            }
        }
    }

    fn times(&mut self, name: &str, labels: &[(&str, String)], times: &Times) {
        for (_, le, count) in cumulative(times) {
            self.sample(name, "_bucket", labels, Some(le), count);
        }
        let count = times.histogram().len();
        self.sample(name, "_bucket", labels, Some("+Inf"), count);
        let sum_us = times.sum_us();
        let sum = format!("{}.{:06}", sum_us / 1_000_000, sum_us % 1_000_000);
        self.sample(name, "_sum", labels, None, sum);
        self.sample(name, "_count", labels, None, count);
    }

    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[(&str, String)],
        le: Option<&str>,
        value: impl Display,
    ) {
        let labels = labels.iter().map(|(label, text)| (*label, text.as_str()));
        let labels: Vec<String> = labels
            .chain(le.map(|le| ("le", le)))
            .map(|(label, text)| format!("{label}=\"{}\"", escape(text)))
            .collect();
        self.0.push_str(name);
        self.0.push_str(suffix);
        if !labels.is_empty() {
            self.0.push_str(&format!("{{{}}}", labels.join(",")));
        }
        self.0.push_str(&format!(" {value}\n"));
    }
}

/// A label's value: backslash, double quote and line feed are escaped.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn times(all_us: &[u64]) -> Times {
        let mut times = Times::new();
        for micros in all_us {
            times.record(Duration::from_micros(*micros));
        }
        times
    }

    #[test]
    fn a_histogram_is_cumulative_and_its_sum_exact() {
        let all = times(&[5, 10, 11, 400_000, 7_200_000_000]);
        let page = render(&[Family::times("x_seconds", "How long", all)]);
        for line in [
            "# HELP x_seconds How long",
            "# TYPE x_seconds histogram",
            "x_seconds_bucket{le=\"0.00001\"} 2",
            "x_seconds_bucket{le=\"0.000025\"} 3",
            "x_seconds_bucket{le=\"0.25\"} 3",
            "x_seconds_bucket{le=\"0.5\"} 4",
            "x_seconds_bucket{le=\"300\"} 4",
            "x_seconds_bucket{le=\"+Inf\"} 5",
            "x_seconds_sum 7200.400026",
            "x_seconds_count 5",
        ] {
            assert!(page.lines().any(|text| text == line), "{line}\n{page}");
        }
        assert!(page.ends_with('\n'));
    }

    #[test]
    fn a_histogram_shows_the_bounds_that_it_can_tell_apart() {
        let short = hdrhistogram::Histogram::new_with_bounds(1, 60_000_000, 2).unwrap();
        let page = render(&[Family::times("x", "", Times::of(&short, 0))]);
        assert!(page.contains("x_bucket{le=\"60\"} 0"), "{page}");
        assert!(!page.contains("le=\"120\""), "{page}");
    }

    #[test]
    fn labels_are_written_in_order_and_escaped() {
        let family = Family::new(Kind::Gauge, "x", "a\\b\nc")
            .with(
                vec![("a", "a\\b\"c\nd".to_owned()), ("b", "1".to_owned())],
                Value::Number(2),
            )
            .with(Vec::new(), Value::Number(3));
        assert_eq!(
            render(&[family]),
            "# HELP x a\\\\b\\nc\n# TYPE x gauge\nx{a=\"a\\\\b\\\"c\\nd\",b=\"1\"} 2\nx 3\n"
        );
    }

    #[test]
    fn the_bounds_are_the_same_in_both_units() {
        for (bound_us, le) in BOUNDS {
            let seconds: f64 = le.parse().unwrap();
            assert!((seconds * 1e6 - bound_us as f64).abs() < 1e-6, "{le}");
        }
    }
}
