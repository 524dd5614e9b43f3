//! Additive increase, multiplicative decrease: each server has a limit a host, from 1.
//!
//! A success at the limit adds 1 / limit, a refusal or time-out halves it (Chiu and Jain, "Analysis
//! of the Increase and Decrease Algorithms for Congestion Avoidance", 1989). Full jitter after
//! failures.

use super::super::events::Nanos;
use super::super::scenario::Scenario;
use super::senders::{Ended, Policy};

pub(super) struct Aimd {
    /// By server and host: the limit, and what is in flight.
    limits: Vec<Vec<(f64, u32)>>,
}

impl Aimd {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            limits: vec![vec![(1.0, 0); scenario.hosts]; scenario.servers],
        }
    }
}

impl Policy for Aimd {
    fn may_send(&mut self, _now: Nanos, server: usize, host: usize) -> bool {
        let (limit, flight) = &mut self.limits[server][host];
        let may = f64::from(*flight) < limit.floor();
        *flight += u32::from(may);
        may
    }

    fn handle_ended(&mut self, server: usize, host: usize, _took: f64, ended: Ended) {
        let (limit, flight) = &mut self.limits[server][host];
        let at_limit = f64::from(*flight) >= limit.floor();
        *flight = flight.saturating_sub(1);
        match ended {
            Ended::Well if at_limit => *limit += 1.0 / *limit,
            Ended::Well => {}
            Ended::Refused | Ended::TimedOut => *limit = (*limit / 2.0).max(1.0),
        }
    }

    fn limit(&self, host: usize) -> Option<f64> {
        Some(self.limits.iter().map(|limits| limits[host].0).sum())
    }
}
