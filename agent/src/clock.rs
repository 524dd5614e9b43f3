//! The crate's only clocks. Everything else takes the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time: for timers and durations.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the monotonic clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time in milliseconds since the Unix epoch: for the deadlines of commands, which are
/// absolute because they come from another machine.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
