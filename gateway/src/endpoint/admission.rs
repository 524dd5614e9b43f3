//! Who gets a TLS handshake: the decision before any expensive work.
//!
//! ```text
//!   shut ──────────────────────────────────────────▶ TooFast (silence)
//!   half-open ≥ max ───────────────────────────────▶ TooMany (silence: the client backs off itself)
//!   address unproved and (many half-open or tokens low) ─▶ Retry
//!   a token left ──────────────────────────────────▶ Accept
//!   none ──────────────────────────────────────────▶ TooFast (silence)
//! ```

use std::time::{Duration, Instant};

use crate::config::AdmissionConfig;

/// Answers that cost no connection (Retry, version negotiation, reset, refusal) a shard gives a
/// second: enough for a whole fleet, and a small share of a core.
const REPLIES_PER_SECOND: u32 = 5000;
const REPLY_BURST: u32 = 1000;

const NANOS: u64 = 1_000_000_000;

/// Time for a fleet to come back in, when every agent comes at a random moment of it: as long as
/// all shards take to let it in at `per_second` handshakes each, and a tenth more because chance
/// is not even. At least a second.
pub(crate) fn fleet_spread(agents: usize, shards: u16, per_second: u32) -> Duration {
    let agents = u32::try_from(agents).unwrap_or(u32::MAX);
    let rate = u32::from(shards).saturating_mul(per_second).max(1);
    Duration::from_millis(u64::from(agents) * 1100 / u64::from(rate)).max(Duration::from_secs(1))
}

/// Tokens that come back with time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    per_second: u32,
    burst: u32,
    /// In billionths of a token.
    level: u64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) fn new(now: Instant, per_second: u32, burst: u32) -> Self {
        Self {
            per_second,
            burst,
            level: u64::from(burst) * NANOS,
            at: now,
        }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let left = self.level.checked_sub(NANOS);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }

    /// Whether less than half of the burst is left.
    pub(crate) fn is_low(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.level < u64::from(self.burst) * (NANOS / 2)
    }

    fn refill(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        let gained = u64::try_from(nanos)
            .unwrap_or(u64::MAX)
            .saturating_mul(self.per_second.into());
        self.level = self
            .level
            .saturating_add(gained)
            .min(u64::from(self.burst) * NANOS);
        self.at = self.at.max(now);
    }
}

/// What to do with a newcomer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// Begin a handshake.
    Accept,
    /// Let it prove its address first.
    Retry,
    /// Drop it without an answer: too many came in a short time, or the door is still shut.
    TooFast,
    /// Drop it without an answer: too many handshakes are unfinished.
    TooMany,
}

/// One shard's door.
#[derive(Debug)]
pub(crate) struct Admission {
    config: AdmissionConfig,
    handshakes: TokenBucket,
    enrolments: TokenBucket,
    replies: TokenBucket,
    shut: bool,
}

impl Admission {
    /// A door, open or shut as configured.
    pub(crate) fn new(now: Instant, config: AdmissionConfig) -> Self {
        Self {
            config,
            handshakes: TokenBucket::new(now, config.handshakes_per_second, config.handshake_burst),
            enrolments: TokenBucket::new(now, config.enrolments_per_second, config.enrolment_burst),
            replies: TokenBucket::new(now, REPLIES_PER_SECOND, REPLY_BURST),
            shut: config.shut_at_start,
        }
    }

    /// Opens the door for good.
    pub(crate) fn open(&mut self) {
        self.shut = false;
    }

    /// Decides about a newcomer while so many handshakes are unfinished.
    pub(crate) fn decide(&mut self, now: Instant, half_open: usize, proved: bool) -> Decision {
        if self.shut {
            return Decision::TooFast;
        }
        if half_open >= self.config.half_open_max {
            return Decision::TooMany;
        }
        let pressed = half_open > self.config.half_open_retry || self.handshakes.is_low(now);
        if pressed && !proved {
            return Decision::Retry;
        }
        if self.handshakes.take(now) {
            Decision::Accept
        } else {
            Decision::TooFast
        }
    }

    /// Whether one more enrolment may go to the control plane while so many wait for it.
    pub(crate) fn enrol(&mut self, now: Instant, pending: usize) -> bool {
        pending < self.config.enrolments_pending_max && self.enrolments.take(now)
    }

    /// Whether one more answer without a connection may be given.
    pub(crate) fn reply(&mut self, now: Instant) -> bool {
        self.replies.take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    fn config() -> AdmissionConfig {
        AdmissionConfig {
            handshakes_per_second: 10,
            handshake_burst: 8,
            ..Default::default()
        }
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let now = clock::now();
        let mut bucket = TokenBucket::new(now, 10, 3);
        assert_eq!((0..10).filter(|_| bucket.take(now)).count(), 3);
        assert!(!bucket.take(now + Duration::from_millis(99)));
        assert!(bucket.take(now + Duration::from_millis(100)));
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 3);
    }

    #[test]
    fn time_that_stands_still_or_goes_back_gives_nothing() {
        let now = clock::now() + Duration::from_secs(10);
        let mut bucket = TokenBucket::new(now, 10, 1);
        assert!(bucket.take(now));
        assert!(!bucket.take(now - Duration::from_secs(5)));
        assert!(!bucket.take(now));
    }

    #[test]
    fn newcomers_prove_their_address_when_it_gets_tight() {
        let now = clock::now();
        let mut door = Admission::new(now, config());
        let half_open = config().half_open_retry;
        assert_eq!(door.decide(now, half_open, false), Decision::Accept);
        assert_eq!(door.decide(now, half_open + 1, false), Decision::Retry);
        assert_eq!(door.decide(now, half_open + 1, true), Decision::Accept);
        while !door.handshakes.is_low(now) {
            assert_eq!(door.decide(now, 0, false), Decision::Accept);
        }
        assert_eq!(door.decide(now, 0, false), Decision::Retry);
        assert_eq!(door.decide(now, 0, true), Decision::Accept);
    }

    #[test]
    fn beyond_the_limits_there_is_silence() {
        let now = clock::now();
        let mut door = Admission::new(now, config());
        assert_eq!(
            door.decide(now, config().half_open_max, true),
            Decision::TooMany
        );
        while door.decide(now, 0, true) == Decision::Accept {}
        assert_eq!(door.decide(now, 0, true), Decision::TooFast);
    }

    #[test]
    fn a_shut_door_is_silent_and_costs_no_token() {
        let now = clock::now();
        let mut door = Admission::new(
            now,
            AdmissionConfig {
                shut_at_start: true,
                ..config()
            },
        );
        for proved in [false, true] {
            assert_eq!(
                (0..50).find(|_| door.decide(now, 0, proved) != Decision::TooFast),
                None
            );
        }
        door.open();
        assert_eq!(door.decide(now, 0, false), Decision::Accept);
    }

    #[test]
    fn enrolments_have_a_bucket_and_a_queue_of_their_own() {
        let now = clock::now();
        let mut door = Admission::new(now, config());
        assert!(!door.enrol(now, config().enrolments_pending_max));
        assert_eq!((0..100).filter(|_| door.enrol(now, 0)).count(), 20);
        assert_eq!(door.decide(now, 0, true), Decision::Accept);
    }

    #[test]
    fn a_fleet_comes_back_as_fast_as_it_is_let_in() {
        assert_eq!(fleet_spread(10_000, 2, 500), Duration::from_secs(11));
        assert_eq!(fleet_spread(3, 64, 500), Duration::from_secs(1));
        assert_eq!(fleet_spread(0, 0, 0), Duration::from_secs(1));
        assert!(fleet_spread(usize::MAX, 1, 1) > Duration::from_secs(86_400));
    }
}
