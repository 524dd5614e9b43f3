//! One token bucket for all servers, at the nominal rate of all hosts, with room for one second.
//!
//! It stands for every central rate limit that was set once: right as long as the capacity is what
//! it was. Full jitter after failures.

use super::super::events::{Nanos, nanos, seconds};
use super::super::scenario::Scenario;
use super::senders::Policy;

pub(super) struct Bucket {
    /// Tokens a second.
    rate: f64,
    tokens: f64,
    filled_at: Nanos,
}

impl Bucket {
    #[expect(clippy::cast_precision_loss, reason = "a few hosts")]
    pub(super) fn new(scenario: &Scenario) -> Self {
        let rate = scenario.hosts as f64 * scenario.slots / scenario.mean_work();
        Self {
            rate,
            tokens: rate,
            filled_at: 0,
        }
    }
}

impl Policy for Bucket {
    fn may_send(&mut self, now: Nanos, _server: usize, _host: usize) -> bool {
        let since = seconds(now.saturating_sub(self.filled_at));
        self.tokens = (self.tokens + since * self.rate).min(self.rate);
        self.filled_at = now;
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }

    fn look_again_at(&self, now: Nanos) -> Option<Nanos> {
        let missing = (1.0 - self.tokens).max(0.0);
        Some(now + nanos(missing / self.rate) + 1)
    }
}
