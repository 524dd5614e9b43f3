//! The promises of the runtime, kept by every datapath with every way to sleep.
//!
//! Each test here starts real shards through `launch` on the loopback device; `every_combination!`
//! runs it four times.

mod datagrams;
mod failure;
mod harness;
mod steering;
mod waking;

/// Makes each test `fn(DatapathKind, ParkKind)` of the calling module four tests.
macro_rules! every_combination {
    ($($test:ident),+ $(,)?) => {
        every_combination!(@ uring_monoio, Uring, Monoio, $($test),+);
        every_combination!(@ uring_direct, Uring, Direct, $($test),+);
        every_combination!(@ poll_monoio, Poll, Monoio, $($test),+);
        every_combination!(@ poll_direct, Poll, Direct, $($test),+);
    };
    (@ $name:ident, $datapath:ident, $park:ident, $($test:ident),+) => {
        mod $name {
            use crate::runtime::{DatapathKind, ParkKind};
            $(
                #[test]
                fn $test() {
                    super::$test(DatapathKind::$datapath, ParkKind::$park);
                }
            )+
        }
    };
}
use every_combination;
