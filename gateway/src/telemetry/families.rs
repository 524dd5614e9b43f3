//! The figures by their names outside, each with its labels: for whoever writes them down.
//!
//! Every sample carries its shard: sums and percentiles over shards are the reader's business
//! (`sum by (le) (rate(…_bucket[1m]))`).

use super::{Counter, Figures, Level, Measure, Measurement, Metric, SECURITY_EVENTS, Telemetry};
use crate::runtime::{DatapathKind, DatapathStats};

const PREFIX: &str = "drover_gateway_";

/// Figures of one name.
#[derive(Clone, Debug)]
pub struct Family<'a> {
    /// The whole name: `drover_gateway_…`, of a counter with `_total`.
    pub name: String,
    /// What it means.
    pub help: &'static str,
    /// What kind of figure it is.
    pub kind: Kind,
    /// One for each shard, and for each value of the family's own label.
    pub samples: Vec<Sample<'a>>,
}

/// What kind of figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Level,
    /// Times.
    Times,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Sample<'a> {
    /// Names and values; the shard first.
    pub labels: Vec<(&'static str, String)>,
    /// The figure itself.
    pub value: Value<'a>,
}

/// A figure's value.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Of a counter or a level.
    Number(u64),
    /// Of times.
    Times(&'a Measurement),
}

/// Everything that is known, name by name.
pub fn families(telemetry: &Telemetry) -> Vec<Family<'_>> {
    let mut list = List {
        telemetry,
        families: Vec::new(),
    };
    for counter in Counter::ALL {
        list.count(&counter.metric(), |figures| figures.counter(*counter));
    }
    for kind in SECURITY_EVENTS {
        let metric = Metric {
            family: "security_events",
            help: "Things refused that people should know of, by kind",
            label: Some(("kind", kind.name())),
        };
        list.count(&metric, |figures| figures.security(kind));
    }
    for level in Level::ALL {
        let metric = level.metric();
        let name = format!("{PREFIX}{}", metric.family);
        list.add(name, Kind::Level, &metric, |figures| {
            Value::Number(figures.level(*level))
        });
    }
    for (metric, read) in &DATAPATH {
        list.count(metric, |figures| read(figures.datapath()));
    }
    for measure in Measure::ALL {
        let metric = measure.metric();
        let name = format!("{PREFIX}{}", metric.family);
        list.add(name, Kind::Times, &metric, |figures| {
            Value::Times(figures.measurement(*measure))
        });
    }
    list.families.push(datapath_info(telemetry));
    list.families
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

struct List<'a> {
    telemetry: &'a Telemetry,
    families: Vec<Family<'a>>,
}

impl<'a> List<'a> {
    fn count(&mut self, metric: &Metric, read: impl Fn(&Figures) -> u64) {
        let name = format!("{PREFIX}{}_total", metric.family);
        self.add(name, Kind::Counter, metric, |figures| {
            Value::Number(read(figures))
        });
    }

    /// One sample for every shard, in a family of its own or the one that was begun last.
    fn add(
        &mut self,
        name: String,
        kind: Kind,
        metric: &Metric,
        read: impl Fn(&'a Figures) -> Value<'a>,
    ) {
        let samples = self.telemetry.shards.iter().map(|(shard, figures)| {
            let own = metric.label.map(|(label, value)| (label, value.to_owned()));
            let labels = [Some(("shard", shard.to_string())), own];
            Sample {
                labels: labels.into_iter().flatten().collect(),
                value: read(figures),
            }
        });
        match self.families.last_mut() {
            Some(last) if last.name == name => last.samples.extend(samples),
            Some(_) | None => self.families.push(Family {
                name,
                help: metric.help,
                kind,
                samples: samples.collect(),
            }),
        }
    }
}

fn datapath_info(telemetry: &Telemetry) -> Family<'_> {
    let samples = telemetry.shards.iter().map(|(shard, figures)| {
        let stats = figures.datapath();
        let kind = match stats.kind {
            DatapathKind::Auto => "unknown",
            DatapathKind::Uring => "uring",
            DatapathKind::Poll => "poll",
        };
        Sample {
            labels: vec![
                ("shard", shard.to_string()),
                ("kind", kind.to_owned()),
                ("fallback", stats.fallback.to_string()),
            ],
            value: Value::Number(1),
        }
    });
    Family {
        name: format!("{PREFIX}datapath_info"),
        help: "How datagrams move; the value is always 1",
        kind: Kind::Level,
        samples: samples.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use protocol::link::SecurityEvent;

    use super::super::Hub;
    use super::*;
    use crate::runtime::clock;

    fn telemetry() -> Telemetry {
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
            recorder.measure(Measure::Handshake, Duration::from_micros(70_000_000));
            recorder.publish(now);
        }
        hub.read()
    }

    /// `name{label="value",…} value`, of times the sum.
    fn lines(telemetry: &Telemetry) -> Vec<String> {
        let families = families(telemetry);
        let samples = families.iter().flat_map(|family| {
            family.samples.iter().map(|sample| {
                let labels = sample.labels.iter();
                let labels: Vec<_> = labels
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                let value = match sample.value {
                    Value::Number(value) => value,
                    Value::Times(times) => times.sum_us(),
                };
                format!("{}{{{}}} {value}", family.name, labels.join(","))
            })
        });
        samples.collect()
    }

    #[test]
    fn figures_come_with_their_shard_and_label() {
        let lines = lines(&telemetry());
        for line in [
            "drover_gateway_handshakes_total{shard=1,event=timed_out} 1",
            "drover_gateway_retries_sent_total{shard=0} 0",
            "drover_gateway_security_events_total{shard=0,kind=revoked_agent} 1",
            "drover_gateway_sessions{shard=0} 12",
            "drover_gateway_datagram_bytes_total{shard=1,direction=in} 1200",
            "drover_gateway_datapath_info{shard=0,kind=poll,fallback=true} 1",
            "drover_gateway_handshake_seconds{shard=1} 70000000",
        ] {
            assert!(lines.iter().any(|text| text == line), "{line}\n{lines:#?}");
        }
    }

    #[test]
    fn every_family_comes_once_and_no_sample_twice() {
        let telemetry = telemetry();
        let families = families(&telemetry);
        let names: BTreeSet<&str> = families.iter().map(|family| family.name.as_str()).collect();
        assert_eq!(names.len(), families.len());
        for family in &families {
            let samples: BTreeSet<_> = family.samples.iter().map(|sample| &sample.labels).collect();
            assert_eq!(samples.len(), family.samples.len(), "{}", family.name);
            let counts = family.name.ends_with("_total");
            assert_eq!(counts, family.kind == Kind::Counter, "{}", family.name);
        }
    }
}
