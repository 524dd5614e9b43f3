//! The figures as Prometheus text, exposition format 0.0.4.
//!
//! Every sample carries its shard: sums and percentiles over shards are the reader's business
//! (`sum by (le) (rate(…_bucket[1m]))`). Histograms keep more buckets than are shown here; a time
//! counts for a bound when it is at most 1 % above it, which is the histogram's own precision.

use std::fmt::Display;

use protocol::ids::ShardId;

use super::{Counter, Figures, Level, Measure, Measurement, Metric, SECURITY_EVENTS, Telemetry};
use crate::runtime::{DatapathKind, DatapathStats};

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PREFIX: &str = "drover_gateway_";

/// Bounds of the buckets: in microseconds, and as the `le` label has them, in seconds.
const BOUNDS: [(u64, &str); 21] = [
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
];

/// The page for `/metrics`.
pub fn render(telemetry: &Telemetry) -> String {
    let mut page = Page::default();
    for counter in Counter::ALL {
        let metric = counter.metric();
        let name = format!("{PREFIX}{}_total", metric.family);
        page.figure(telemetry, &metric, &name, "counter", |figures| {
            figures.counter(*counter)
        });
    }
    for kind in SECURITY_EVENTS {
        let metric = Metric {
            family: "security_events",
            help: "Things refused that people should know of, by kind",
            label: Some(("kind", kind.name())),
        };
        let name = format!("{PREFIX}security_events_total");
        page.figure(telemetry, &metric, &name, "counter", |figures| {
            figures.security(kind)
        });
    }
    for level in Level::ALL {
        let metric = level.metric();
        let name = format!("{PREFIX}{}", metric.family);
        page.figure(telemetry, &metric, &name, "gauge", |figures| {
            figures.level(*level)
        });
    }
    page.datapath(telemetry);
    for measure in Measure::ALL {
        let metric = measure.metric();
        let name = format!("{PREFIX}{}", metric.family);
        page.header(&name, metric.help, "histogram");
        for (shard, figures) in &telemetry.shards {
            page.histogram(&name, *shard, figures.measurement(*measure));
        }
    }
    page.text
}

type Read = fn(&DatapathStats) -> u64;

const DATAPATH: [(Metric, Read); 9] = [
    row("datagrams", "Datagrams by direction", "in", |s| {
        s.datagrams_in
    }),
    row("datagrams", "Datagrams by direction", "out", |s| {
        s.datagrams_out
    }),
    row("datagram_bytes", "Payload bytes by direction", "in", |s| {
        s.bytes_in
    }),
    row("datagram_bytes", "Payload bytes by direction", "out", |s| {
        s.bytes_out
    }),
    row("datagrams_dropped", DROPPED, "in", |s| s.dropped_in),
    row("datagrams_dropped", DROPPED, "in_kernel", |s| {
        s.kernel_dropped_in
    }),
    row("datagrams_dropped", DROPPED, "out", |s| s.dropped_out),
    plain(
        "receive_stalls",
        "Times that the receive buffers ran out",
        |s| s.receive_stalls,
    ),
    plain(
        "gso_fallbacks",
        "Trains of datagrams sent one by one because segmentation offload failed",
        |s| s.gso_fallbacks,
    ),
];

const DROPPED: &str = "Datagrams dropped by this gateway or its socket, by direction";

const fn row(
    family: &'static str,
    help: &'static str,
    direction: &'static str,
    read: Read,
) -> (Metric, Read) {
    let label = Some(("direction", direction));
    (
        Metric {
            family,
            help,
            label,
        },
        read,
    )
}

const fn plain(family: &'static str, help: &'static str, read: Read) -> (Metric, Read) {
    let label = None;
    (
        Metric {
            family,
            help,
            label,
        },
        read,
    )
}

#[derive(Default)]
struct Page {
    text: String,
    family: String,
}

impl Page {
    /// One sample for every shard; the family's header before the first of the family.
    fn figure(
        &mut self,
        telemetry: &Telemetry,
        metric: &Metric,
        name: &str,
        kind: &str,
        read: impl Fn(&Figures) -> u64,
    ) {
        self.header(name, metric.help, kind);
        for (shard, figures) in &telemetry.shards {
            let shard = shard.to_string();
            let labels = [Some(("shard", shard.as_str())), metric.label];
            self.sample(name, labels.into_iter().flatten(), read(figures));
        }
    }

    fn datapath(&mut self, telemetry: &Telemetry) {
        for (metric, read) in &DATAPATH {
            let name = format!("{PREFIX}{}_total", metric.family);
            self.figure(telemetry, metric, &name, "counter", |figures| {
                read(figures.datapath())
            });
        }
        let name = format!("{PREFIX}datapath_info");
        self.header(&name, "How datagrams move; the value is always 1", "gauge");
        for (shard, figures) in &telemetry.shards {
            let stats = figures.datapath();
            let kind = match stats.kind {
                DatapathKind::Auto => "unknown",
                DatapathKind::Uring => "uring",
                DatapathKind::Poll => "poll",
            };
            let (shard, fallback) = (shard.to_string(), stats.fallback.to_string());
            let labels = [("shard", &*shard), ("kind", kind), ("fallback", &*fallback)];
            self.sample(&name, labels.into_iter(), 1);
        }
    }

    fn histogram(&mut self, name: &str, shard: ShardId, measurement: &Measurement) {
        let shard = shard.to_string();
        let bucket = format!("{name}_bucket");
        let histogram = measurement.histogram();
        let mut recorded = histogram.iter_recorded().peekable();
        let mut count = 0;
        for (bound_us, le) in BOUNDS {
            while let Some(value) = recorded
                .next_if(|value| histogram.lowest_equivalent(value.value_iterated_to()) <= bound_us)
            {
                count += value.count_since_last_iteration();
            }
            let labels = [("shard", &*shard), ("le", le)];
            self.sample(&bucket, labels.into_iter(), count);
        }
        let labels = [("shard", &*shard), ("le", "+Inf")];
        self.sample(&bucket, labels.into_iter(), histogram.len());
        let sum_us = measurement.sum_us();
        let sum = format!("{}.{:06}", sum_us / 1_000_000, sum_us % 1_000_000);
        let labels = [("shard", &*shard)];
        self.sample(&format!("{name}_sum"), labels.into_iter(), sum);
        self.sample(
            &format!("{name}_count"),
            labels.into_iter(),
            histogram.len(),
        );
    }

    fn header(&mut self, name: &str, help: &str, kind: &str) {
        if self.family != name {
            name.clone_into(&mut self.family);
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            self.text
                .push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        }
    }

    fn sample<'a>(
        &mut self,
        name: &str,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        value: impl Display,
    ) {
        self.text.push_str(name);
        for (place, (label, text)) in labels.enumerate() {
            self.text.push(if place == 0 { '{' } else { ',' });
            self.text.push_str(&format!("{label}=\"{}\"", escape(text)));
        }
        self.text.push_str(&format!("}} {value}\n"));
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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use protocol::link::SecurityEvent;

    use super::super::Hub;
    use super::*;
    use crate::runtime::clock;

    fn page() -> String {
        let now = clock::now();
        let (hub, mut recorders) = Hub::new(2, now);
        for recorder in &mut recorders {
            recorder.count(Counter::HandshakesTimedOut);
            recorder.security(SecurityEvent::RevokedAgent);
            recorder.level(Level::Sessions, 12);
            recorder.datapath(DatapathStats {
                kind: DatapathKind::Poll,
                fallback: true,
                bytes_in: 1_200,
                ..DatapathStats::default()
            });
            for micros in [5, 10, 11, 400_000, 70_000_000] {
                recorder.measure(Measure::Handshake, Duration::from_micros(micros));
            }
            recorder.publish(now);
        }
        render(&hub.read())
    }

    #[test]
    fn figures_come_with_their_shard_and_label() {
        let page = page();
        for line in [
            "drover_gateway_handshakes_total{shard=\"1\",event=\"timed_out\"} 1",
            "drover_gateway_retries_sent_total{shard=\"0\"} 0",
            "drover_gateway_security_events_total{shard=\"0\",kind=\"revoked_agent\"} 1",
            "drover_gateway_sessions{shard=\"0\"} 12",
            "drover_gateway_datagram_bytes_total{shard=\"1\",direction=\"in\"} 1200",
            "drover_gateway_datapath_info{shard=\"0\",kind=\"poll\",fallback=\"true\"} 1",
            "# TYPE drover_gateway_handshakes_total counter",
            "# TYPE drover_gateway_handshake_seconds histogram",
        ] {
            assert!(page.lines().any(|text| text == line), "{line}\n{page}");
        }
    }

    #[test]
    fn a_histogram_is_cumulative_and_its_sum_exact() {
        let page = page();
        let name = "drover_gateway_handshake_seconds";
        for (line, value) in [
            ("_bucket{shard=\"0\",le=\"0.00001\"}", "2"),
            ("_bucket{shard=\"0\",le=\"0.000025\"}", "3"),
            ("_bucket{shard=\"0\",le=\"0.25\"}", "3"),
            ("_bucket{shard=\"0\",le=\"0.5\"}", "4"),
            ("_bucket{shard=\"0\",le=\"+Inf\"}", "5"),
            ("_sum{shard=\"0\"}", "70.400026"),
            ("_count{shard=\"0\"}", "5"),
        ] {
            let line = format!("{name}{line} {value}");
            assert!(page.lines().any(|text| text == line), "{line}\n{page}");
        }
    }

    #[test]
    fn every_family_has_one_header_and_no_sample_comes_twice() {
        let page = page();
        let mut samples = BTreeSet::new();
        let mut families = BTreeSet::new();
        for line in page.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                assert!(families.insert(family), "two headers for {family}");
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                assert!(samples.insert(sample), "{sample} twice");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(page.ends_with('\n'));
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escape("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
        let mut page = Page::default();
        page.sample("x", [("a", "1\"")].into_iter(), 2);
        assert_eq!(page.text, "x{a=\"1\\\"\"} 2\n");
    }

    #[test]
    fn the_bounds_are_the_same_in_both_units() {
        for (bound_us, le) in BOUNDS {
            let seconds: f64 = le.parse().unwrap();
            assert!((seconds * 1e6 - bound_us as f64).abs() < 1e-6, "{le}");
        }
    }
}
