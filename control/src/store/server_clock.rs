//! What time it is for all servers on one store: the database's.
//!
//! ```text
//!   measured   with each connection of the writer, and every 10 s by whoever beats or prolongs leases
//!   offset     the database's time then + what has passed since (monotonic) − this machine's wall clock now
//! ```
//!
//! Leases and heartbeats are written by one machine and judged by another. By their own clocks, one that is 12 s ahead
//! would take all others for gone, and one that is behind shorten what others have prolonged. So whatever says how long
//! somebody lives is written and compared in the database's time. When a process is due goes by the clock of whoever
//! writes it: a little more or less is harmless there.
//!
//! The embedded store has one process, and this machine's clock is the only one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::sql::{self, Connection};
use super::{Store, StoreError};
use crate::clock::{self, UnixMs};

/// How often the clocks are compared.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// An answer that takes longer says too little.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// What may be due to the way there and back beyond what was measured, or to how finely is counted: no difference.
const GRAIN: Duration = Duration::from_millis(100);
/// This machine's clock was set, or the machine stood still: the clocks are compared at once.
const JUMP: Duration = Duration::from_millis(500);
/// From here on somebody has to see to the clocks.
const WARN_FROM: Duration = Duration::from_secs(1);

/// How far this machine's clock is from the database's.
#[derive(Default)]
pub(super) struct ServerClock {
    /// `None`: never, as of the embedded store.
    measured: Mutex<Option<Measured>>,
    /// It is known that the clocks differ.
    warned: AtomicBool,
    /// In tests this machine's clock is so many milliseconds ahead.
    #[cfg(test)]
    ahead: std::sync::atomic::AtomicI64,
}

#[derive(Clone, Copy)]
struct Measured {
    database: UnixMs,
    /// When it was that late there, by this machine's clocks.
    at: Instant,
    wall: UnixMs,
    /// So much earlier or later it may have been.
    doubt: Duration,
}

impl Measured {
    /// What is to be added to the wall clock, at `now` by both clocks; nothing as long as it may be the measuring.
    fn offset(&self, now: Instant, wall: UnixMs) -> i64 {
        let passed = now.saturating_duration_since(self.at);
        let offset = difference(self.database.plus(passed), wall);
        match offset.unsigned_abs() <= millis(self.doubt + GRAIN) {
            true => 0,
            false => offset,
        }
    }

    fn is_old(&self, now: Instant, wall: UnixMs) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let jumped = difference(self.wall.plus(passed), wall).unsigned_abs();
        passed >= COMPARE_EVERY || jumped > millis(JUMP) || self.doubt > ANSWER_WITHIN / 2
    }
}

impl ServerClock {
    /// Asks the database what time it is.
    ///
    /// # Errors
    /// The database's; what was known before is kept.
    pub(super) async fn measure(&self, db: &mut Connection) -> Result<(), sqlx::Error> {
        let asked = clock::monotonic();
        let database = database_time(db).await?;
        let doubt = asked.elapsed() / 2;
        let wall = self.wall().minus(doubt);
        let measured = Measured {
            database,
            at: asked + doubt,
            wall,
            doubt,
        };
        *self.lock() = Some(measured);
        self.judge(measured.offset(measured.at, wall));
        Ok(())
    }

    /// In milliseconds: what is to be added to this machine's wall clock, so that it is as late as by the database.
    pub(super) fn offset(&self) -> i64 {
        let measured = *self.lock();
        measured.map_or(0, |measured| {
            measured.offset(clock::monotonic(), self.wall())
        })
    }

    fn is_old(&self) -> bool {
        let measured = *self.lock();
        measured.is_none_or(|measured| measured.is_old(clock::monotonic(), self.wall()))
    }

    /// Says once that the clocks differ, and once that they do no longer.
    fn judge(&self, offset: i64) {
        let differs = offset.unsigned_abs() >= millis(WARN_FROM);
        if self.warned.swap(differs, Ordering::Relaxed) == differs {
            return;
        }
        if differs {
            tracing::warn!(
                offset_ms = offset,
                "this machine's clock and the database's differ: leases and heartbeats go by the database's, but deadlines, retries and tokens by this one; have both synchronised (NTP: chrony, or `timedatectl set-ntp true`)"
            );
        } else {
            tracing::info!("this machine's clock and the database's agree again");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Measured>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests have clocks of their own")]
    fn wall(&self) -> UnixMs {
        clock::now()
    }

    #[cfg(test)]
    fn wall(&self) -> UnixMs {
        shifted(clock::now(), self.ahead.load(Ordering::Relaxed))
    }
}

impl Store {
    /// A time of this machine as all servers on this store count it.
    pub(super) fn in_common(&self, time: UnixMs) -> UnixMs {
        shifted(time, self.clock_offset())
    }

    /// In milliseconds: how much later it is by the database than by this machine.
    pub(super) fn clock_offset(&self) -> i64 {
        self.shared.server_clock.offset()
    }

    /// Compares this machine's clock with the database's, if it is time to. What is known of them stays so if the
    /// database does not answer soon: whoever asks has more to say to it, and hears so then.
    pub(super) async fn compare_clocks(&self) {
        let clock = &self.shared.server_clock;
        if !self.is_open_to_others() || !clock.is_old() {
            return;
        }
        let measured = tokio::time::timeout(ANSWER_WITHIN, async {
            let mut reader = self.reader().await?;
            Ok::<_, StoreError>(clock.measure(&mut reader).await?)
        });
        match measured.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the clocks were not compared"),
            Err(_) => tracing::debug!("the clocks were not compared: no answer in time"),
        }
    }

    /// This machine's clock goes wrong by so many milliseconds, and what is late by it.
    #[cfg(test)]
    pub(super) async fn set_clock_ahead(&self, milliseconds: i64) {
        let ahead = &self.shared.server_clock.ahead;
        ahead.store(milliseconds, Ordering::Relaxed);
        self.compare_clocks().await;
    }

    /// This machine's clock.
    #[cfg(test)]
    pub(super) fn wall(&self) -> UnixMs {
        self.shared.server_clock.wall()
    }
}

/// What time it is by the database; of the embedded store, by this machine.
pub(super) async fn database_time(db: &mut Connection) -> Result<UnixMs, sqlx::Error> {
    let now = sql::query_scalar("SELECT unix_ms()").fetch_one(db).await?;
    Ok(UnixMs::from_sql(now))
}

/// How much later `left` is.
fn difference(left: UnixMs, right: UnixMs) -> i64 {
    left.to_sql().saturating_sub(right.to_sql())
}

fn shifted(time: UnixMs, by: i64) -> UnixMs {
    UnixMs(time.0.saturating_add_signed(by))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_what_was_measured_and_goes_with_clocks_that_are_set() {
        let at = clock::monotonic();
        let after = |seconds| at + Duration::from_secs(seconds);
        let measured = |database, doubt| Measured {
            database: UnixMs(database),
            at,
            wall: UnixMs(100_000),
            doubt: Duration::from_millis(doubt),
        };
        // This machine is 12 s ahead, or behind.
        let (ahead, behind) = (measured(88_000, 5), measured(112_000, 5));
        assert_eq!(ahead.offset(at, UnixMs(100_000)), -12_000);
        assert_eq!(behind.offset(after(4), UnixMs(104_000)), 12_000);
        // Somebody sets it right meanwhile: the offset is right at once, and it is measured again.
        assert_eq!(ahead.offset(after(4), UnixMs(92_000)), 0);
        assert!(ahead.is_old(after(4), UnixMs(92_000)));
        assert!(!ahead.is_old(after(4), UnixMs(104_000)));
        assert!(ahead.is_old(after(10), UnixMs(110_000)));
        // What may be the measuring is no difference.
        assert_eq!(measured(99_900, 0).offset(at, UnixMs(100_000)), 0);
        assert_eq!(measured(99_800, 0).offset(at, UnixMs(100_000)), -200);
        assert_eq!(measured(98_000, 2000).offset(at, UnixMs(100_000)), 0);
        assert!(measured(98_000, 2000).is_old(at, UnixMs(100_000)));
    }

    #[tokio::test]
    async fn the_embedded_store_has_this_machines_time() {
        let (_directory, store) = crate::store::tests::fresh().await;
        store.set_clock_ahead(30_000).await;
        assert_eq!(store.clock_offset(), 0);
        let mut reader = store.reader().await.unwrap();
        let before = clock::now();
        let database = database_time(&mut reader).await.unwrap();
        let (early, late) = (before.minus(GRAIN), clock::now().plus(GRAIN));
        assert!(early <= database && database <= late, "{database}");
    }
}
