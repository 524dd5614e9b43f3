//! When and where to connect next: a pure policy, so that a fleet of ten thousand comes back evenly.
//!
//! ```text
//!   session lost ─▶ U(0, S) ─▶ address 1, 2, … ─▶ U(0, 1 s) ─▶ address 1, 2, … ─▶ U(0, 2 s) ─▶ … U(0, 60 s)
//!                   S asked by the gateway                       full jitter, doubling
//! ```
//!
//! A round tries every known address once, in order; the waiting is between rounds. For every 10 s that a session
//! stood it takes back one doubling: a server that dies every half a minute is met again within a second or two, one
//! that dies as soon as its fleet is there is met by a fleet that is spread over a minute. No pause is longer: however
//! long a server was away, a minute after it is back everybody is there, and a hundred thousand agents over a minute
//! are fewer than one core lets in. Times and random numbers (0 ≤ r < 1) are arguments.

use std::time::{Duration, Instant};

use protocol::close::Retry;
use protocol::limits;

/// The spread before the first retry of an agent that never had a session.
const SPREAD_NEVER_CONNECTED: Duration = Duration::from_secs(1);
/// The spread when a gateway asked for none that makes sense.
const SPREAD_DEFAULT: Duration = Duration::from_secs(5);
/// No gateway can ask for more.
const SPREAD_MAX: Duration = Duration::from_secs(600);
/// The first interval of the doubling.
const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// The longest interval.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Where something must be mended first.
const SLOWLY: Duration = Duration::from_secs(300);
/// A session takes back one failure for each time this long that it stood.
const FORGIVES_EVERY: Duration = Duration::from_secs(10);
/// Failures that count at most: as many as it takes to [`BACKOFF_MAX`].
const FAILURES_MAX: u32 = 7;

/// Why there is no session now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Down {
    /// No session came about, or it was lost; for a close of the gateway what its code asks for.
    Lost(Retry),
    /// A session was lost because nothing was heard any more. One that starts again would have said so.
    Silent,
    /// The gateway named another one.
    Redirected {
        /// Its addresses, in order.
        addresses: Vec<String>,
        /// Not before this.
        retry_after: Duration,
    },
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Wait, then connect to this `host:port`.
    Connect {
        /// How long to wait first.
        after: Duration,
        /// Where to.
        address: String,
    },
    /// Do not connect again.
    Never,
}

/// The policy's memory.
#[derive(Clone, Debug)]
pub struct Reconnect {
    /// From the configuration.
    configured: Vec<String>,
    /// From the last Welcome.
    known: Vec<String>,
    /// What is left of this round.
    round: Vec<String>,
    /// The address of the last session, tried first.
    last_good: Option<String>,
    failed_rounds: u32,
    spread: Duration,
    up_since: Option<Instant>,
}

impl Reconnect {
    /// A policy for an agent that knows these `host:port`s.
    pub fn new(configured: Vec<String>) -> Self {
        Self {
            configured,
            known: Vec::new(),
            round: Vec::new(),
            last_good: None,
            failed_rounds: 0,
            spread: SPREAD_NEVER_CONNECTED,
            up_since: None,
        }
    }

    /// The very first attempt: at once.
    pub fn first(&mut self) -> Next {
        self.begin_round(Vec::new());
        self.take(Duration::ZERO)
    }

    /// A session is up through `address`; the gateway asks for `spread` and names `addresses`.
    pub fn handle_up(
        &mut self,
        now: Instant,
        address: &str,
        spread: Duration,
        addresses: &[String],
    ) {
        self.up_since = Some(now);
        self.last_good = Some(address.to_owned());
        self.spread = match spread.is_zero() {
            true => SPREAD_DEFAULT,
            false => spread.min(SPREAD_MAX),
        };
        self.known = addresses
            .iter()
            .take(limits::ADDRESSES_MAX)
            .cloned()
            .collect();
        self.round.clear();
    }

    /// There is no session. `random`: 0 ≤ r < 1.
    pub fn handle_down(&mut self, now: Instant, down: Down, random: f64) -> Next {
        let lost_session = self.up_since.take();
        if let Some(since) = lost_session {
            let forgiven = now.duration_since(since).as_secs() / FORGIVES_EVERY.as_secs();
            let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
            self.failed_rounds = self.failed_rounds.saturating_sub(forgiven);
        }
        match down {
            Down::Lost(Retry::Never) => Next::Never,
            Down::Lost(Retry::Slowly) => {
                self.note_failure();
                self.begin_round(Vec::new());
                self.take(around(SLOWLY, random))
            }
            Down::Lost(Retry::Soon) | Down::Silent => {
                let address = self.round.first().cloned();
                if lost_session.is_none() && address.is_some() {
                    return self.take(Duration::ZERO);
                }
                let after = self.pause(lost_session.is_some(), random);
                self.begin_round(Vec::new());
                if down == Down::Silent {
                    self.put_last_good_last();
                }
                self.take(after)
            }
            Down::Redirected {
                addresses,
                retry_after,
            } => {
                // Two gateways that point at each other must not make an agent spin.
                let wait = match self.failed_rounds {
                    0 => around(retry_after.min(SLOWLY), random),
                    _ => around(retry_after.min(SLOWLY), random) + self.interval().mul_f64(random),
                };
                self.note_failure();
                self.begin_round(addresses);
                self.take(wait)
            }
        }
    }

    /// Where to go when the gateway drains: first what it names.
    pub fn handle_go_away(&mut self, addresses: Vec<String>, delay: Duration) -> Next {
        self.begin_round(addresses);
        self.take(delay.min(SPREAD_MAX))
    }

    /// The pause before a round: U(0, S) after a session, full jitter after a failed round. A
    /// session that fell soon after it stood gets the longer of the two, so that a fleet whose
    /// gateway restarts again and again stays spread.
    fn pause(&mut self, lost_session: bool, random: f64) -> Duration {
        let pause = match (self.failed_rounds, lost_session) {
            (0, _) => self.spread.mul_f64(random),
            (_, true) => self.interval().max(self.spread).mul_f64(random),
            (_, false) => self.interval().mul_f64(random),
        };
        self.note_failure();
        pause
    }

    fn note_failure(&mut self) {
        self.failed_rounds = self.failed_rounds.saturating_add(1).min(FAILURES_MAX);
    }

    /// The cap of the full jitter: min(60 s, 1 s · 2ⁿ).
    fn interval(&self) -> Duration {
        let doublings = self.failed_rounds.saturating_sub(1);
        BACKOFF_BASE.saturating_mul(1 << doublings).min(BACKOFF_MAX)
    }

    fn begin_round(&mut self, first: Vec<String>) {
        let first = first.into_iter().take(limits::ADDRESSES_MAX);
        let rest = self
            .last_good
            .iter()
            .chain(&self.known)
            .chain(&self.configured);
        let mut round: Vec<String> = Vec::new();
        for address in first.chain(rest.cloned()) {
            if !round.contains(&address) {
                round.push(address);
            }
        }
        self.round = round;
    }

    /// Where nobody has answered for so long is tried after the others: each try there takes as long as it may.
    fn put_last_good_last(&mut self) {
        let last = self.last_good.as_ref();
        let at = self.round.iter().position(|address| Some(address) == last);
        if let Some(at) = at {
            let address = self.round.remove(at);
            self.round.push(address);
        }
    }

    fn take(&mut self, after: Duration) -> Next {
        if self.round.is_empty() {
            // Nothing is configured: the caller checks that before it begins.
            return Next::Never;
        }
        let address = self.round.remove(0);
        Next::Connect { after, address }
    }
}

/// A duration ± 20 %.
pub(crate) fn around(duration: Duration, random: f64) -> Duration {
    duration.mul_f64(random.mul_add(0.4, 0.8))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    fn policy() -> Reconnect {
        Reconnect::new(vec!["a:1".into(), "b:1".into()])
    }

    fn connect(after_ms: u64, address: &str) -> Next {
        Next::Connect {
            after: Duration::from_millis(after_ms),
            address: address.into(),
        }
    }

    const SOON: Down = Down::Lost(Retry::Soon);

    #[test]
    fn the_first_attempt_is_at_once_and_a_round_tries_every_address() {
        let now = clock::now();
        let mut policy = policy();
        assert_eq!(policy.first(), connect(0, "a:1"));
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(0, "b:1"));
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(500, "a:1"));
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(0, "b:1"));
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(500, "a:1"));
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(0, "b:1"));
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(1000, "a:1"));
    }

    #[test]
    fn after_a_long_session_the_spread_of_the_gateway_counts_and_the_last_address_comes_first() {
        let now = clock::now();
        let mut policy = policy();
        policy.first();
        for _ in 0..10 {
            policy.handle_down(now, SOON, 0.9);
        }
        policy.handle_up(now, "b:1", Duration::from_secs(20), &["c:1".into()]);
        let later = now + FORGIVES_EVERY * FAILURES_MAX;
        assert_eq!(policy.handle_down(later, SOON, 0.5), connect(10_000, "b:1"));
        assert_eq!(policy.handle_down(later, SOON, 0.5), connect(0, "c:1"));
        assert_eq!(policy.handle_down(later, SOON, 0.5), connect(0, "a:1"));
    }

    #[test]
    fn where_nothing_was_heard_any_more_is_tried_last() {
        let now = clock::now();
        let mut policy = policy();
        policy.first();
        policy.handle_up(now, "a:1", Duration::from_secs(20), &["c:1".into()]);
        assert_eq!(
            policy.handle_down(now, Down::Silent, 0.5),
            connect(10_000, "c:1")
        );
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(0, "b:1"));
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(0, "a:1"));
        let mut alone = Reconnect::new(vec!["a:1".into()]);
        alone.first();
        alone.handle_up(now, "a:1", Duration::from_secs(20), &[]);
        assert_eq!(
            alone.handle_down(now, Down::Silent, 0.5),
            connect(10_000, "a:1")
        );
    }

    #[test]
    fn a_session_that_fell_soon_is_followed_by_the_whole_spread() {
        let now = clock::now();
        let mut policy = Reconnect::new(vec!["a:1".into()]);
        policy.first();
        for _ in 0..3 {
            policy.handle_up(now, "a:1", Duration::from_secs(20), &[]);
            assert_eq!(policy.handle_down(now, SOON, 0.5), connect(10_000, "a:1"));
        }
    }

    #[test]
    fn sessions_that_fall_at_once_keep_the_backoff_growing() {
        let mut now = clock::now();
        let mut policy = Reconnect::new(vec!["a:1".into()]);
        policy.first();
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            policy.handle_up(now, "a:1", Duration::from_millis(10), &[]);
            now += Duration::from_secs(1);
            let Next::Connect { after, .. } = policy.handle_down(now, SOON, 0.999) else {
                panic!("it may connect");
            };
            assert!(after >= last);
            last = after;
        }
        assert!(last > Duration::from_secs(59));
    }

    #[test]
    fn a_server_that_dies_again_and_again_is_met_soon_where_it_lives_a_while() {
        let mut now = clock::now();
        let mut policy = Reconnect::new(vec!["a:1".into()]);
        policy.first();
        // It was away for long.
        for _ in 0..20 {
            policy.handle_down(now, SOON, 0.999);
        }
        for _ in 0..20 {
            policy.handle_up(now, "a:1", Duration::from_secs(1), &[]);
            now += Duration::from_secs(20);
            policy.handle_down(now, SOON, 0.999);
        }
        policy.handle_up(now, "a:1", Duration::from_secs(1), &[]);
        now += Duration::from_secs(20);
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(500, "a:1"));
    }

    #[test]
    fn close_codes_are_obeyed() {
        let now = clock::now();
        let mut policy = policy();
        policy.first();
        assert_eq!(
            policy.handle_down(now, Down::Lost(Retry::Slowly), 0.5),
            connect(300_000, "a:1")
        );
        assert_eq!(
            policy.handle_down(now, Down::Lost(Retry::Never), 0.5),
            Next::Never
        );
    }

    #[test]
    fn a_redirect_is_followed_and_a_ring_of_redirects_slows_down() {
        let now = clock::now();
        let mut policy = policy();
        policy.first();
        let redirect = || Down::Redirected {
            addresses: vec!["x:1".into()],
            retry_after: Duration::from_secs(1),
        };
        assert_eq!(
            policy.handle_down(now, redirect(), 0.5),
            connect(1000, "x:1")
        );
        assert_eq!(
            policy.handle_down(now, redirect(), 0.5),
            connect(1500, "x:1")
        );
        assert_eq!(
            policy.handle_down(now, redirect(), 0.5),
            connect(2000, "x:1")
        );
        assert_eq!(policy.handle_down(now, SOON, 0.5), connect(0, "a:1"));
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_it_may_be(
            events in prop::collection::vec((0..5_u8, 0.0..1.0_f64, 0..1000_u64), 1..60)
        ) {
            let mut now = clock::now();
            let mut policy = policy();
            policy.first();
            for (kind, random, seconds) in events {
                now += Duration::from_secs(seconds);
                let next = match kind {
                    0 => {
                        policy.handle_up(now, "b:1", Duration::from_secs(seconds), &[]);
                        continue;
                    }
                    1 => policy.handle_down(now, Down::Lost(Retry::Slowly), random),
                    2 => policy.handle_down(now, Down::Redirected {
                        addresses: vec![],
                        retry_after: Duration::from_secs(seconds),
                    }, random),
                    _ => policy.handle_down(now, SOON, random),
                };
                let Next::Connect { after, .. } = next else {
                    panic!("nothing said never");
                };
                prop_assert!(after <= SPREAD_MAX.max(SLOWLY * 2));
            }
        }
    }
}
