//! Figures as Prometheus protobuf: `io.prometheus.client.MetricFamily`, each with its length before it.
//!
//! Histograms are there twice, as in the official clients: with the buckets of the text format, and as
//! native ones, whose buckets are powers of 2^(1/8) seconds (schema 3, 9 % wide) and exist only where
//! something was counted.
//!
//! The messages are few and flat, so they are written here by hand; a test reads them with `prost`.

use std::collections::BTreeMap;

use super::Times;
use super::metrics::{Family, Kind, Sample, Value};
use super::text::cumulative;

/// The media type.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.google.protobuf; \
     proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Native buckets: 2^3 for each power of two.
const SCHEMA: i32 = 3;

/// The page.
pub(crate) fn render(families: &[Family]) -> Vec<u8> {
    let mut page = Vec::new();
    for family in families {
        let message = self::family(family);
        varint(&mut page, message.0.len() as u64);
        page.extend(message.0);
    }
    page
}

fn family(family: &Family) -> Message {
    let mut message = Message::default();
    message.bytes(1, family.name.as_bytes());
    message.bytes(2, family.help.as_bytes());
    message.uint(
        3,
        match family.kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram => 4,
        },
    );
    for sample in &family.samples {
        message.message(4, &metric(family.kind, sample));
    }
    message
}

fn metric(kind: Kind, sample: &Sample) -> Message {
    let mut message = Message::default();
    for (name, value) in &sample.labels {
        let mut label = Message::default();
        label.bytes(1, name.as_bytes());
        label.bytes(2, value.as_bytes());
        message.message(1, &label);
    }
    match &sample.value {
        Value::Number(value) => {
            let mut number = Message::default();
            number.double(1, *value as f64);
            message.message(if kind == Kind::Gauge { 2 } else { 3 }, &number);
        }
        Value::Times(times) => message.message(7, &histogram(times)),
    }
    message
}

fn histogram(times: &Times) -> Message {
    let mut message = Message::default();
    message.uint(1, times.histogram().len());
    message.double(2, seconds(times.sum_us()));
    for (bound_us, _, count) in cumulative(times) {
        let mut bucket = Message::default();
        bucket.uint(1, count);
        bucket.double(2, seconds(bound_us));
        message.message(3, &bucket);
    }
    message.sint(5, SCHEMA.into());
    let native = Native::of(times);
    for (offset, length) in native.spans {
        let mut span = Message::default();
        span.sint(1, offset.into());
        span.uint(2, length);
        message.message(12, &span);
    }
    let mut deltas = Vec::new();
    for delta in native.deltas {
        varint(&mut deltas, zigzag(delta));
    }
    message.bytes(13, &deltas);
    message
}

/// The buckets of a native histogram.
struct Native {
    /// Where a run of buckets begins, counted from the end of the one before; how many they are.
    spans: Vec<(i32, u64)>,
    /// Counts of the buckets, each less the one before.
    deltas: Vec<i64>,
}

impl Native {
    fn of(times: &Times) -> Self {
        let histogram = times.histogram();
        let mut buckets = BTreeMap::<i32, u64>::new();
        for value in histogram.iter_recorded() {
            // As in the text format: a time counts for a bound when the bucket that holds it begins
            // there or before.
            let low = histogram.lowest_equivalent(value.value_iterated_to());
            *buckets.entry(place(low)).or_default() += value.count_since_last_iteration();
        }
        let mut native = Self {
            spans: Vec::new(),
            deltas: Vec::with_capacity(buckets.len()),
        };
        let mut next = 0;
        let mut before = 0;
        for (place, count) in buckets {
            match native.spans.last_mut() {
                Some((_, length)) if place == next => *length += 1,
                Some(_) | None => native.spans.push((place - next, 1)),
            }
            next = place + 1;
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            native.deltas.push(count - before);
            before = count;
        }
        if native.spans.is_empty() {
            // Says that this is a native histogram, of nothing.
            native.spans.push((0, 0));
        }
        native
    }
}

/// The native bucket of a time: the first whose upper bound is not below it.
fn place(micros: u64) -> i32 {
    let value = seconds(micros.max(1));
    let scale = f64::from(1 << SCHEMA);
    let bound = |place: i32| (f64::from(place) / scale).exp2();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the logarithm of 64 bits of microseconds is small"
    )]
    let mut place = (value.log2() * scale).ceil() as i32;
    // The logarithm is rounded; the bounds decide.
    while bound(place - 1) >= value {
        place -= 1;
    }
    while bound(place) < value {
        place += 1;
    }
    place
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A message as it is written: fields in rising order.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn tag(&mut self, field: u64, wire: u64) {
        varint(&mut self.0, field << 3 | wire);
    }

    fn uint(&mut self, field: u64, value: u64) {
        self.tag(field, 0);
        varint(&mut self.0, value);
    }

    fn sint(&mut self, field: u64, value: i64) {
        self.uint(field, zigzag(value));
    }

    fn double(&mut self, field: u64, value: f64) {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, 2);
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "seven bits are taken")]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "no more than seven bits are left"
    )]
    out.push(value as u8);
}

#[expect(clippy::cast_sign_loss, reason = "the sign goes into the lowest bit")]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests;
