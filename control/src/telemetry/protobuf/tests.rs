use std::time::Duration;

use proptest::prelude::*;

use super::super::text;
use super::*;

#[path = "../../../tests/api/client_model.rs"]
mod client_model;

use client_model::{MetricFamily, read};

fn times(all_us: &[u64]) -> Times {
    let mut times = Times::new();
    for micros in all_us {
        times.record(Duration::from_micros(*micros));
    }
    times
}

fn labels(of: &client_model::Metric) -> Vec<(&str, &str)> {
    let labels = of.label.iter();
    labels
        .map(|pair| {
            (
                pair.name.as_deref().unwrap(),
                pair.value.as_deref().unwrap(),
            )
        })
        .collect()
}

#[test]
fn counters_and_gauges_come_with_labels_and_values() {
    let families = [
        Family::new(Kind::Counter, "a_total", "All of them")
            .with(vec![("x", "1".to_owned())], Value::Number(7))
            .with(vec![("x", "ü\"\n".to_owned())], Value::Number(1 << 40)),
        Family::number(Kind::Gauge, "b", "", 300),
        Family::new(Kind::Counter, "none_total", "Nothing yet"),
    ];
    let read = read(&render(&families));
    assert_eq!(read.len(), 3);
    let [counter, gauge, none] = read.try_into().unwrap();
    assert_eq!(
        (counter.name.as_deref(), counter.kind),
        (Some("a_total"), Some(0))
    );
    assert_eq!(counter.help.as_deref(), Some("All of them"));
    assert_eq!(labels(&counter.metric[1]), [("x", "ü\"\n")]);
    let value = |of: &client_model::Metric| of.counter.clone().unwrap().value;
    assert_eq!(value(&counter.metric[0]), Some(7.0));
    assert_eq!(value(&counter.metric[1]), Some(1_099_511_627_776.0));
    assert_eq!((gauge.kind, none.kind), (Some(1), Some(0)));
    assert_eq!(gauge.metric[0].gauge.clone().unwrap().value, Some(300.0));
    assert!(gauge.metric[0].label.is_empty() && none.metric.is_empty());
}

#[test]
fn an_empty_histogram_is_a_native_one_of_nothing() {
    let family = read(&render(&[Family::times("x", "", Times::new())])).remove(0);
    let histogram = family.metric[0].histogram.clone().unwrap();
    assert_eq!(
        (histogram.sample_count, histogram.sample_sum),
        (Some(0), Some(0.0))
    );
    assert_eq!(histogram.positive_span.len(), 1);
    assert!(histogram.native().is_empty());
}

#[test]
fn a_time_on_a_bound_is_in_the_bucket_below_it() {
    for (micros, expected) in [
        (1_000_000, 0),
        (1_000_001, 1),
        (500_000, -8),
        (250_000, -16),
    ] {
        assert_eq!(place(micros), expected, "{micros}");
    }
    assert_eq!(place(0), place(1));
    assert!(place(u64::MAX) > place(600_000_000));
}

/// A sample of the text page.
fn sample(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("{name} in {page}"));
    line.trim().parse().unwrap()
}

proptest! {
    /// Both formats say the same: counts, sums, the classic buckets, and the native ones where a
    /// bound is both's (a quarter, a half and a whole second).
    #[test]
    fn both_formats_say_the_same(all_us in prop::collection::vec(
        prop_oneof![0u64..2_000, 200_000u64..1_100_000, 0u64..700_000_000], 0..200,
    )) {
        let all = times(&all_us);
        let families = [Family::times("x", "", all)];
        let text = text::render(&families);
        let family: MetricFamily = read(&render(&families)).remove(0);
        prop_assert_eq!(family.kind, Some(4));
        let histogram = family.metric[0].histogram.clone().unwrap();
        let count = histogram.sample_count.unwrap();
        prop_assert_eq!(count, all_us.len() as u64);
        prop_assert_eq!(sample(&text, "x_count "), count as f64);
        prop_assert!((sample(&text, "x_sum ") - histogram.sample_sum.unwrap()).abs() < 1e-6);
        for bucket in &histogram.bucket {
            let line = format!("x_bucket{{le=\"{}\"}} ", bucket.upper_bound.unwrap());
            prop_assert_eq!(sample(&text, &line), bucket.cumulative_count.unwrap() as f64);
        }
        prop_assert_eq!(histogram.bucket.len(), text::BOUNDS.len());
        let native = histogram.native();
        prop_assert_eq!(native.last().map_or(0, |(_, sum)| *sum), count);
        for bound in [0.25, 0.5, 1.0] {
            let below = native.iter().take_while(|(upper, _)| *upper <= bound * 1.000_001);
            let below = below.last().map_or(0, |(_, sum)| *sum);
            prop_assert_eq!(sample(&text, &format!("x_bucket{{le=\"{bound}\"}} ")), below as f64);
        }
        // Every time lies within its bucket, to the precision of the histogram.
        let mut sorted: Vec<f64> = all_us.iter().map(|us| (*us).max(1) as f64 / 1e6).collect();
        sorted.sort_by(f64::total_cmp);
        let mut from = 0;
        for (upper, sum) in native {
            let to = usize::try_from(sum).unwrap();
            for value in &sorted[from..to] {
                prop_assert!(*value <= upper * 1.01, "{value} {upper}");
                prop_assert!(*value > upper / 2_f64.powf(0.125) * 0.99, "{value} {upper}");
            }
            from = to;
        }
    }
}
