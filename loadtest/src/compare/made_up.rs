//! Comparisons that never ran, for tests.

use std::collections::BTreeMap;

#[cfg(feature = "peers")]
use base64::{Engine as _, prelude::BASE64_STANDARD};
#[cfg(feature = "peers")]
use hdrhistogram::{
    Histogram,
    serialization::{Serializer as _, V2Serializer},
};

#[cfg(feature = "peers")]
use super::model::HistogramBlob;
use super::model::{
    Comparison, DROVER, FloorRun, Machine, MeasureInfo, PeerInfo, Plan, Run, SCHEMA,
};

/// Peers without measures and runs: Drover and quinn.
pub(crate) fn empty(sessions: usize, rounds: u32) -> Comparison {
    Comparison {
        schema: SCHEMA,
        date: "2026-11-24-000000".to_owned(),
        commit: "0123456789ab".to_owned(),
        command: vec!["drover-loadtest".to_owned(), "compare".to_owned()],
        machine: Machine::default(),
        plan: Plan {
            sessions,
            rounds,
            payload_bytes: 256,
            keep_alive_seconds: 10.0,
            connect_rate: 1000.0,
            command_rate: 2000.0,
            round_trip_rate: 1000.0,
            idle_seconds: 20.0,
        },
        peers: vec![peer(DROVER), peer("quinn")],
        measures: Vec::new(),
        runs: Vec::new(),
        floors: Vec::new(),
        summary: Vec::new(),
        targets: Vec::new(),
    }
}

pub(crate) fn peer(name: &str) -> PeerInfo {
    PeerInfo {
        name: name.to_owned(),
        about: format!("about {name}"),
        broker: false,
    }
}

pub(crate) fn measure(id: &str, part_of: Option<&str>) -> MeasureInfo {
    MeasureInfo {
        id: id.to_owned(),
        label: format!("label of {id}"),
        unit: "µs".to_owned(),
        part_of: part_of.map(str::to_owned),
    }
}

pub(crate) fn run(peer: &str, round: u32, values: &[(&str, f64)]) -> Run {
    let value = |&(id, value): &(&str, f64)| (id.to_owned(), value);
    Run {
        peer: peer.to_owned(),
        round,
        turn: 1,
        took_seconds: 2.0,
        values: values.iter().map(value).collect(),
        histograms: BTreeMap::new(),
        notes: Vec::new(),
    }
}

pub(crate) fn floor(name: &str, measure: &str, round: u32, value: f64) -> FloorRun {
    FloorRun {
        floor: name.to_owned(),
        about: format!("about {name}"),
        measure: measure.to_owned(),
        round,
        value,
    }
}

/// A histogram of round-trips in nanoseconds.
#[cfg(feature = "peers")]
pub(crate) fn histogram(values: &[u64]) -> HistogramBlob {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    for &value in values {
        histogram.record(value).unwrap();
    }
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(&histogram, &mut bytes)
        .unwrap();
    HistogramBlob {
        unit: "ns".to_owned(),
        v2_base64: BASE64_STANDARD.encode(bytes),
        sent: values.len() as u64,
        answered: values.len() as u64,
    }
}
