//! The one place of this crate that reads a clock. Everything else is given `now`.

use std::time::{Duration, Instant, SystemTime};

/// The time since the Unix epoch, for what others wrote in it: the ends of certificates.
pub(crate) fn unix_now() -> Duration {
    Duration::from_secs(rustls_pki_types::UnixTime::now().as_secs())
}

/// Tells this run of the gateway from those before, as long as the machine's clock goes forward:
/// microseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "this is the clock of the crate")]
pub(crate) fn incarnation() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// The monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the clock of the crate")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
