//! What the gateway measures, as the control plane shows it.

use std::sync::Arc;

use control::telemetry::metrics::{Family, Kind, MetricsSource, Sample, Value};
use control::telemetry::{Name, Reading, Times, TimesSource};
use gateway::Handle;
use gateway::telemetry::{Measure, families};

/// The gateway's histograms by the names that people know.
const MEASURES: [(Name, Measure); 6] = [
    (Name::Handshake, Measure::Handshake),
    (Name::CommandWire, Measure::Wire),
    (Name::CommandAgent, Measure::Agent),
    (Name::CommandTotal, Measure::DispatchToFinished),
    (Name::Mailbox, Measure::Mailbox),
    (Name::ShardTurn, Measure::Turn),
];

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
