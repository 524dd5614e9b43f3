//! The one place of this crate that reads a clock. Everything else is given `now`.

use std::time::{Duration, Instant};

/// The time since the Unix epoch, for what others wrote in it: the ends of certificates.
pub(crate) fn unix_now() -> Duration {
    Duration::from_secs(rustls_pki_types::UnixTime::now().as_secs())
}

/// The monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the clock of the crate")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
