//! What a window of ended operations says, and what is known of the kinds of operations.

use std::time::{Duration, Instant};

use super::Sample;

/// Kinds that are told apart at one target; all others share the last place.
const KINDS_MAX: usize = 16;
/// Ends of a kind before its durations count.
const LEARN: u32 = 12;
/// Ends in a window at least.
const ENDS: u32 = 12;
/// More where durations scatter more, up to this.
const ENDS_SCATTERED: f64 = 48.0;
/// The error of a window's mean that the number of ends aims at, squared.
const ERROR_SQUARED: f64 = 0.02;
/// Shortest window, and the longest that waits for all its ends.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Variance of ln(duration) before anything is known: a coefficient of variation of 0.5.
const VARIANCE: f64 = 0.22;

struct Kind {
    id: u32,
    /// ln of the seconds that an operation takes.
    reference: f64,
    /// Ends that `reference` is the mean of.
    seen: u32,
    /// Of this window: ends, and the sum of ln(duration) - reference.
    ends: u32,
    sum: f64,
}

/// The kinds of operations at one target, in the order of their first end.
pub(super) struct Kinds {
    kinds: Vec<Kind>,
    variance: f64,
    /// Mean of the last window: what a new kind's first durations are cleared of.
    level: f64,
    mean_seconds: f64,
    windows: u32,
}

impl Default for Kinds {
    fn default() -> Self {
        Self {
            kinds: Vec::new(),
            variance: VARIANCE,
            level: 0.0,
            mean_seconds: 0.0,
            windows: 0,
        }
    }
}

impl Kinds {
    /// ln of a kind's seconds, once it is known.
    pub(super) fn reference(&self, id: u32) -> Option<f64> {
        let kind = self.kinds.iter().find(|kind| kind.id == id);
        let kind = kind.or_else(|| self.kinds.get(KINDS_MAX - 1))?;
        (kind.seen >= LEARN).then_some(kind.reference)
    }

    /// Variance of ln(duration / reference) around a window's mean.
    pub(super) fn variance(&self) -> f64 {
        self.variance
    }

    /// Mean duration of what ended lately.
    pub(super) fn mean_seconds(&self) -> f64 {
        self.mean_seconds
    }

    /// Takes an end; what it is worth in a window, unless its kind is still being learnt.
    fn add(&mut self, sample: &Sample) -> Option<f64> {
        let seconds = sample.service.as_secs_f64().max(1e-6);
        let weight = if self.mean_seconds > 0.0 { 0.02 } else { 1.0 };
        self.mean_seconds += weight * (seconds - self.mean_seconds);
        let place = self.place(sample.kind);
        let level = self.level;
        let kind = self.kinds.get_mut(place)?;
        let value = seconds.ln();
        if kind.seen < LEARN {
            kind.seen += 1;
            kind.reference += (value - level - kind.reference) / f64::from(kind.seen);
            return None;
        }
        let off = value - kind.reference;
        kind.ends += 1;
        kind.sum += off;
        Some(off)
    }

    fn place(&mut self, id: u32) -> usize {
        let found = self.kinds.iter().position(|kind| kind.id == id);
        found.unwrap_or_else(|| {
            if self.kinds.len() < KINDS_MAX {
                self.kinds.push(Kind {
                    id,
                    reference: 0.0,
                    seen: 0,
                    ends: 0,
                    sum: 0.0,
                });
            }
            self.kinds.len() - 1
        })
    }

    /// A window of mean `m` ended: kinds that are slower or faster than the rest move a little, so
    /// that a change of the mix is not taken for congestion.
    fn settle(&mut self, m: f64, variance: f64) {
        self.level = m;
        let weight = if self.windows < 4 { 0.5 } else { 0.1 };
        self.windows += 1;
        self.variance += weight * (variance.clamp(0.01, 4.0) - self.variance);
        for kind in &mut self.kinds {
            if kind.ends > 0 {
                let off = kind.sum / f64::from(kind.ends) - m;
                let weight = 0.2 * f64::from(kind.ends) / f64::from(kind.ends + ENDS);
                kind.reference += weight * off;
            }
        }
    }

    /// A new window begins.
    fn clear(&mut self) {
        for kind in &mut self.kinds {
            kind.ends = 0;
            kind.sum = 0.0;
        }
    }
}

/// A window that is still open.
pub(super) struct Window {
    opened: Instant,
    /// All ends, and those whose duration counts.
    ends: u32,
    samples: u32,
    sum: f64,
    squares: f64,
    flight: u64,
    flight_max: u32,
    flight_last: u32,
    /// It was looked at when it was due, and had too few ends.
    waits: bool,
}

/// A window that was closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    /// Mean of ln(duration / reference): the logarithm of a geometric mean, which one slow
    /// operation hardly moves.
    pub(super) m: f64,
    /// Ends in that mean.
    pub(super) samples: u32,
    /// Mean, greatest and last number of operations in flight.
    pub(super) flight: f64,
    pub(super) flight_max: u32,
    pub(super) flight_last: u32,
    /// Ends a second.
    pub(super) rate: f64,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            opened: now,
            ends: 0,
            samples: 0,
            sum: 0.0,
            squares: 0.0,
            flight: 0,
            flight_max: 0,
            flight_last: 0,
            waits: false,
        }
    }

    /// Takes an end; its ln(duration / reference), unless its kind is still being learnt.
    pub(super) fn add(&mut self, now: Instant, kinds: &mut Kinds, sample: &Sample) -> Option<f64> {
        if self.ends == 0 {
            kinds.clear();
            // An idle time before the first end is no part of the window.
            self.opened = now
                .checked_sub(sample.service)
                .unwrap_or(now)
                .max(self.opened);
        }
        self.ends += 1;
        self.flight += u64::from(sample.in_flight);
        self.flight_max = self.flight_max.max(sample.in_flight);
        self.flight_last = sample.in_flight;
        let value = kinds.add(sample)?;
        self.samples += 1;
        self.sum += value;
        self.squares += value * value;
        Some(value)
    }

    /// When it is to be looked at, if it has begun; once, as later only one more end fills it.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.ends > 0 && !self.waits).then(|| self.opened + LONGEST)
    }

    /// It was looked at and goes on.
    pub(super) fn wait(&mut self) {
        self.waits = true;
    }

    /// Whether it says enough under a limit.
    pub(super) fn is_full(&self, now: Instant, limit: u32, kinds: &Kinds) -> bool {
        let age = now.saturating_duration_since(self.opened);
        if age < SHORTEST {
            return false;
        }
        let scattered = (kinds.variance / ERROR_SQUARED).min(ENDS_SCATTERED);
        let by_limit = u64::from(limit);
        let enough = u64::from(self.ends) >= by_limit.max(u64::from(ENDS))
            && f64::from(self.ends) >= scattered;
        enough || (age >= LONGEST && self.ends >= ENDS)
    }

    /// What it said; nothing where all its kinds are still being learnt.
    pub(super) fn close(self, now: Instant, kinds: &mut Kinds) -> Option<Closed> {
        if self.samples < ENDS / 2 {
            return None;
        }
        let count = f64::from(self.samples);
        let m = self.sum / count;
        let variance = (self.squares / count - m * m).max(0.0) * count / (count - 1.0).max(1.0);
        kinds.settle(m, variance);
        let seconds = now.saturating_duration_since(self.opened).as_secs_f64();
        let ends = f64::from(self.ends);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a sum of counts of at most a few thousand"
        )]
        let flight = (self.flight as f64 / ends).max(1.0);
        Some(Closed {
            m,
            samples: self.samples,
            flight,
            flight_max: self.flight_max,
            flight_last: self.flight_last,
            rate: ends / seconds.max(1e-9),
        })
    }
}
