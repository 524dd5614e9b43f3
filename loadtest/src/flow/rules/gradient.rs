//! Netflix's Gradient2 (concurrency-limits 78a74b9), one a server and host, with its defaults:
//! limit from 20 to 200, start 20, tolerance 1.5, smoothing 0.2, a long-term mean over 600 samples.
//!
//! `gradient = clamp(1.5 · long / short, 0.5, 1)`, `limit = 0.8 · limit + 0.2 · (limit · gradient +
//! 4)`, not while fewer than half the limit are in flight. Its own minimum is above a host's
//! capacity. Full jitter after failures.

use super::super::events::Nanos;
use super::super::scenario::Scenario;
use super::senders::{Ended, Policy};

const MIN: f64 = 20.0;
const MAX: f64 = 200.0;
const QUEUE: f64 = 4.0;
const TOLERANCE: f64 = 1.5;
const SMOOTHING: f64 = 0.2;
/// Samples of the long-term mean, and those of which it is the plain mean at first.
const LONG: f64 = 600.0;
const FIRST: f64 = 10.0;

#[derive(Clone)]
struct Limit {
    limit: f64,
    flight: u32,
    long: f64,
    samples: f64,
}

pub(super) struct Gradient {
    limits: Vec<Vec<Limit>>,
}

impl Gradient {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let limit = Limit {
            limit: MIN,
            flight: 0,
            long: 0.0,
            samples: 0.0,
        };
        Self {
            limits: vec![vec![limit; scenario.hosts]; scenario.servers],
        }
    }
}

impl Limit {
    fn measure(&mut self, short: f64, flight: f64) {
        if self.samples < FIRST {
            self.samples += 1.0;
            self.long += (short - self.long) / self.samples;
        } else {
            self.long += 2.0 / (LONG + 1.0) * (short - self.long);
        }
        // The long-term mean is brought down faster than it came up.
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
        if flight < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * self.long / short).clamp(0.5, 1.0);
        let wished = self.limit * gradient + QUEUE;
        let limit = self.limit * (1.0 - SMOOTHING) + wished * SMOOTHING;
        self.limit = limit.clamp(MIN, MAX);
    }
}

impl Policy for Gradient {
    fn may_send(&mut self, _now: Nanos, server: usize, host: usize) -> bool {
        let limit = &mut self.limits[server][host];
        let may = f64::from(limit.flight) < limit.limit.floor();
        limit.flight += u32::from(may);
        may
    }

    fn handle_ended(&mut self, server: usize, host: usize, took: f64, ended: Ended) {
        let limit = &mut self.limits[server][host];
        let flight = f64::from(limit.flight);
        limit.flight = limit.flight.saturating_sub(1);
        // Failures are ignored by its blocking adaptor's default, as they say nothing of the time.
        if ended == Ended::Well {
            limit.measure(took, flight);
        }
    }

    fn limit(&self, host: usize) -> Option<f64> {
        Some(self.limits.iter().map(|limits| limits[host].limit).sum())
    }
}
