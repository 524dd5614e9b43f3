//! For how long nothing has come from the other side of a connection.
//!
//! QUIC's own idle time begins anew with the first packet that is sent after one was received (RFC 9000 §10.1), such as
//! the PING that asks a silent side whether it is there: so a side that is gone is noticed only an idle time after that
//! PING. What has come is counted here, and what is sent does not matter.

use std::time::{Duration, Instant};

/// A connection's silence, by readings of how many packets have come.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    packets: u64,
    since: Instant,
    looked: Instant,
    every: Duration,
}

impl Silence {
    /// It begins now, and is looked at `every` so often.
    #[must_use]
    pub fn new(now: Instant, every: Duration) -> Self {
        Self {
            packets: 0,
            since: now,
            looked: now,
            every,
        }
    }

    /// For how long it lasts at least; so many packets have come by now. Whoever stood still in between could not hear,
    /// and begins anew.
    pub fn lasts(&mut self, packets: u64, now: Instant) -> Duration {
        let stood = now.saturating_duration_since(self.looked) >= 3 * self.every;
        if stood || packets != self.packets {
            (self.packets, self.since) = (packets, now);
        }
        self.looked = now;
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_from_the_first_look_without_news_on() {
        let began = crate::clock::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut silence = Silence::new(began, Duration::from_secs(5));
        assert_eq!(silence.lasts(3, at(5)), Duration::ZERO);
        assert_eq!(silence.lasts(3, at(10)), Duration::from_secs(5));
        assert_eq!(silence.lasts(4, at(15)), Duration::ZERO);
        for seconds in [20, 25, 30, 35, 40, 45] {
            let lasts = silence.lasts(4, at(seconds));
            assert_eq!(lasts, Duration::from_secs(seconds - 15));
        }
    }

    #[test]
    fn whoever_stood_still_has_not_listened() {
        let began = crate::clock::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut silence = Silence::new(began, Duration::from_secs(5));
        silence.lasts(3, at(5));
        assert_eq!(silence.lasts(3, at(60)), Duration::ZERO);
        assert_eq!(silence.lasts(3, at(65)), Duration::from_secs(5));
    }
}
