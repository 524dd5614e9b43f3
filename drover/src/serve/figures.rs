//! What the gateway measures, as the control plane shows it.

use std::sync::Arc;

use control::clock::UnixMs;
use control::telemetry::metrics::{Family, Kind, MetricsSource, Sample, Value};
use control::telemetry::{GatewayFigures, GatewaySource, Name, Reading, Times, TimesSource};
use gateway::telemetry::{Counter, Figures, Level, Measure, Telemetry, families};
use gateway::{DatapathKind, Handle};

use crate::profile::Profile;

/// The gateway's histograms by the names that people know.
const MEASURES: [(Name, Measure); 6] = [
    (Name::Handshake, Measure::Handshake),
    (Name::CommandWire, Measure::Wire),
    (Name::CommandAgent, Measure::Agent),
    (Name::CommandTotal, Measure::DispatchToFinished),
    (Name::Mailbox, Measure::Mailbox),
    (Name::ShardTurn, Measure::Turn),
];

/// For `/metrics`: what runs here. Servers of every profile have it, so dashboards find them by it.
pub(super) fn about(profile: Profile) -> MetricsSource {
    let labels = vec![
        ("profile", profile.name().to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    gauge(
        "drover_build_info",
        "1, with the profile and the version of what runs here.",
        labels,
        1,
    )
}

/// For `/metrics`: when the certificate ends that an agent server shows.
pub(super) fn certificate(ends: UnixMs) -> MetricsSource {
    gauge(
        "drover_agent_server_certificate_expiry_timestamp_seconds",
        "When the certificate ends that this agent server shows agents and process servers, in seconds since 1970.",
        Vec::new(),
        ends.0 / 1000,
    )
}

/// A figure that stays what it is.
fn gauge(
    name: &str,
    help: &'static str,
    labels: Vec<(&'static str, String)>,
    value: u64,
) -> MetricsSource {
    let family = Family::new(Kind::Gauge, name, help).with(labels, Value::Number(value));
    Arc::new(move |all: &mut Vec<Family>| all.push(family.clone()))
}

/// For `/v1/histograms`: all shards together.
pub(super) fn times(gateway: Handle) -> TimesSource {
    Arc::new(move |tell| {
        for (name, measure) in MEASURES {
            let measured = gateway.measurement(measure);
            tell(Reading {
                name,
                route: None,
                histogram: measured.histogram(),
                sum_us: measured.sum_us(),
            });
        }
    })
}

/// For `/metrics`: shard by shard.
pub(super) fn metrics(gateway: Handle) -> MetricsSource {
    Arc::new(move |all: &mut Vec<Family>| {
        let telemetry = gateway.telemetry();
        all.extend(families::families(&telemetry).into_iter().map(family));
    })
}

fn family(family: families::Family<'_>) -> Family {
    Family {
        name: family.name,
        help: family.help,
        kind: match family.kind {
            families::Kind::Counter => Kind::Counter,
            families::Kind::Level => Kind::Gauge,
            families::Kind::Times => Kind::Histogram,
        },
        samples: family.samples.into_iter().map(sample).collect(),
    }
}

fn sample(sample: families::Sample<'_>) -> Sample {
    Sample {
        labels: sample.labels,
        value: match sample.value {
            families::Value::Number(value) => Value::Number(value),
            families::Value::Times(measured) => {
                let times = Times::of(measured.histogram(), measured.sum_us());
                Value::Times(Box::new(times))
            }
        },
    }
}

/// For `/v1/overview`: all shards together, but for the handshakes under way.
pub(super) fn overview(gateway: Handle) -> GatewaySource {
    Arc::new(move || gateway_figures(&gateway.telemetry()))
}

fn gateway_figures(telemetry: &Telemetry) -> GatewayFigures {
    let all = telemetry.total();
    let datapath = all.datapath();
    let count = |counters: &[Counter]| counters.iter().map(|one| all.counter(*one)).sum();
    let half_open = |(shard, figures): &(_, Figures)| (*shard, figures.level(Level::HalfOpen));
    GatewayFigures {
        datapath: match datapath.kind {
            DatapathKind::Uring => Some("uring"),
            DatapathKind::Poll => Some("poll"),
            DatapathKind::Auto => None,
        },
        dropped: datapath.dropped_in + datapath.kernel_dropped_in + datapath.dropped_out,
        uplink_full: all.counter(Counter::UplinkFull),
        mailbox_full: all.counter(Counter::MailboxFull),
        half_open: telemetry.shards.iter().map(half_open).collect(),
        admitted: all.counter(Counter::HandshakesStarted),
        retried: all.counter(Counter::RetriesSent),
        turned_away: count(&[Counter::DroppedByBucket, Counter::DroppedByHalfOpen]),
        handshakes_failed: count(&[Counter::HandshakesFailed, Counter::HandshakesTimedOut]),
    }
}
