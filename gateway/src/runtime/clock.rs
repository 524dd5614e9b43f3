//! The one place of this crate that reads a clock. Everything else is given `now`.

use std::time::Instant;

/// The monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the clock of the crate")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
