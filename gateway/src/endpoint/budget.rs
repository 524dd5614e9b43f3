//! How much may be sent to an address that has not been proved (RFC 9000 §8.1): at most three times
//! what came from it.
//!
//! quinn-proto keeps this rule too, but sends one more whole datagram while any budget is left,
//! which came to 3.185 times. So it is asked for datagrams only while there is room for whole ones.
//! What is held back stays inside quinn and goes out when the peer's next datagram arrives.

use crate::tls::DATAGRAM_BYTES;

const FACTOR: u64 = 3;

/// Bytes in and out of one connection, until its address is proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Budget {
    /// Nobody has proved yet to be at that address.
    Unproved {
        /// Payload bytes that came from it.
        received: u64,
        /// Payload bytes sent to it.
        sent: u64,
    },
    /// The peer has answered something that was only sent to that address.
    Proved,
}

impl Budget {
    /// The peer sent this much.
    pub(crate) fn credit(&mut self, bytes: usize) {
        if let Self::Unproved { received, .. } = self {
            *received += widen(bytes);
        }
    }

    /// This much was sent to the peer.
    pub(crate) fn charge(&mut self, bytes: usize) {
        if let Self::Unproved { sent, .. } = self {
            *sent += widen(bytes);
        }
    }

    /// How many full datagrams may go out now, at most `max`.
    pub(crate) fn datagrams(&self, max: usize) -> usize {
        let Self::Unproved { received, sent } = self else {
            return max;
        };
        let left = (received * FACTOR).saturating_sub(*sent);
        usize::try_from(left / u64::from(DATAGRAM_BYTES)).map_or(max, |count| count.min(max))
    }
}

fn widen(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_first_datagram_pays_for_three() {
        let mut budget = Budget::Unproved {
            received: 1200,
            sent: 0,
        };
        assert_eq!(budget.datagrams(10), 3);
        budget.charge(1200);
        budget.charge(1100);
        assert_eq!(budget.datagrams(10), 1);
        budget.charge(1200);
        assert_eq!(budget.datagrams(10), 0, "the rest is less than a datagram");
        budget.credit(40);
        assert_eq!(budget.datagrams(10), 0);
        budget.credit(1200);
        assert_eq!(budget.datagrams(10), 3);
    }

    proptest! {
        #[test]
        fn never_more_than_three_times_what_came(steps in prop::collection::vec((0usize..1500, 0usize..12), 1..200)) {
            let (mut received, mut sent) = (1200, 0);
            let mut budget = Budget::Unproved { received: 1200, sent: 0 };
            for (arrives, wanted) in steps {
                budget.credit(arrives);
                received += arrives;
                let train = budget.datagrams(wanted) * usize::from(DATAGRAM_BYTES);
                budget.charge(train);
                sent += train;
                prop_assert!(sent <= 3 * received);
            }
        }
    }
}
