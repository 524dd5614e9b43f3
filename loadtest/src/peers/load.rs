//! The load that all peers share: an open loop that does not wait for answers.
//!
//! Commands are due on a grid of one millisecond, whatever became of earlier ones. A round-trip is
//! counted from the moment at which its command was due, not from when it was sent, so that a server
//! that stands still is charged for what queued up meanwhile (G. Tene, "How NOT to Measure
//! Latency": coordinated omission).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::clock;

/// The grid on which commands are due.
pub const TICK: Duration = Duration::from_millis(1);
/// Answers are waited for this long after the last command.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// The least and the greatest round-trip that is told apart.
const ROUND_TRIP_NS: (u64, u64) = (1_000, 60_000_000_000);

/// Which load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LoadSpec {
    /// Commands a second.
    pub rate: f64,
    /// For so many seconds.
    pub seconds: f64,
    /// To sessions 0 to this, evenly at random.
    pub sessions: usize,
    /// Of the choice of sessions.
    pub seed: u64,
}

/// How a load went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadReport {
    /// Commands sent.
    pub sent: u64,
    /// Commands answered.
    pub answered: u64,
    /// From the first command to the last answer, in seconds.
    pub seconds: f64,
    /// Round-trips in nanoseconds: HdrHistogram V2, base64. A command without an answer counts with
    /// the time that was waited for it.
    pub histogram: String,
}

/// A load under way. Has no clock and no timer: [`Load::due`] is told the time.
pub struct Load {
    spec: LoadSpec,
    begin: Instant,
    planned: u64,
    sent: u64,
    random: StdRng,
    record: Arc<Record>,
}

/// What has come back.
struct Record {
    answered: AtomicU64,
    dropped: AtomicU64,
    round_trips: Mutex<Histogram<u64>>,
}

/// One command under way. Dropped without [`Ticket::answered`] it counts as lost.
pub struct Ticket {
    due: Instant,
    record: Option<Arc<Record>>,
}

impl Load {
    /// A load that begins now.
    ///
    /// # Errors
    /// When the histogram's bounds do not fit.
    pub fn new(spec: LoadSpec, now: Instant) -> anyhow::Result<Self> {
        let (low, high) = ROUND_TRIP_NS;
        let round_trips = Histogram::new_with_bounds(low, high, 3)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a saturating cast of a small product"
        )]
        let planned = (spec.rate * spec.seconds) as u64;
        Ok(Self {
            begin: now,
            planned,
            sent: 0,
            random: StdRng::seed_from_u64(spec.seed),
            record: Arc::new(Record {
                answered: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                round_trips: Mutex::new(round_trips),
            }),
            spec,
        })
    }

    /// Whether every command has been sent.
    pub fn is_over(&self) -> bool {
        self.sent >= self.planned
    }

    /// When the next command is due: a whole number of [`TICK`]s after the begin.
    pub fn next_due(&self) -> Instant {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 commands")]
        let seconds = self.sent as f64 / self.spec.rate;
        let ticks = (seconds / TICK.as_secs_f64() + 1e-6).floor();
        self.begin + TICK.mul_f64(ticks)
    }

    /// The next command that is due: to which session. Call until it answers none.
    pub fn due(&mut self, now: Instant) -> Option<(usize, Ticket)> {
        let due = self.next_due();
        if self.is_over() || due > now {
            return None;
        }
        self.sent += 1;
        let ticket = Ticket {
            due,
            record: Some(Arc::clone(&self.record)),
        };
        Some((self.random.random_range(0..self.spec.sessions), ticket))
    }

    /// Whether nothing more is waited for.
    pub fn is_settled(&self, now: Instant) -> bool {
        let back = self.record.answered.load(Ordering::Relaxed)
            + self.record.dropped.load(Ordering::Relaxed);
        back >= self.sent || now > self.next_due() + SETTLE_MAX
    }

    /// How it went.
    ///
    /// # Errors
    /// When the histogram cannot be written.
    pub fn report(self, now: Instant) -> anyhow::Result<LoadReport> {
        let answered = self.record.answered.load(Ordering::Relaxed);
        let mut round_trips = lock(&self.record.round_trips);
        let lost = self.sent.saturating_sub(answered);
        round_trips.saturating_record_n(nanoseconds(SETTLE_MAX), lost);
        let mut blob = Vec::new();
        V2Serializer::new().serialize(&*round_trips, &mut blob)?;
        Ok(LoadReport {
            sent: self.sent,
            answered,
            seconds: (now - self.begin).as_secs_f64(),
            histogram: BASE64_STANDARD.encode(blob),
        })
    }
}

impl Ticket {
    /// Its answer has come.
    pub fn answered(mut self) {
        let took = clock::now().saturating_duration_since(self.due);
        if let Some(record) = self.record.take() {
            lock(&record.round_trips).saturating_record(nanoseconds(took));
            record.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            record.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ticks every [`TICK`] on tokio. Its own timers round up to the next millisecond but one, which
/// would be most of a round-trip here; a `timerfd` is due within microseconds.
pub struct Ticker(AsyncFd<OwnedFd>);

impl Ticker {
    /// Starts ticking.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let every = Itimerspec {
            it_interval: tick,
            it_value: tick,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an owned timer stays open as long as it is used"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(timer))
    }

    /// Waits for the next one; ticks that were missed count as one.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn tick(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut count)?));
            match read {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: LoadSpec = LoadSpec {
        rate: 2000.0,
        seconds: 0.01,
        sessions: 3,
        seed: 1,
    };

    #[test]
    fn commands_are_due_on_the_grid_however_late_the_caller_is() {
        let begin = clock::now();
        let mut load = Load::new(SPEC, begin).unwrap();
        let mut due = Vec::new();
        while let Some((session, ticket)) = load.due(begin + Duration::from_secs(1)) {
            assert!(session < SPEC.sessions);
            due.push(ticket.due - begin);
            ticket.answered();
        }
        let grid: Vec<_> = (0..20).map(|n| TICK * (n / 2)).collect();
        assert_eq!(due, grid);
        assert!(load.is_over() && load.is_settled(begin));
        let report = load.report(clock::now()).unwrap();
        assert_eq!((report.sent, report.answered), (20, 20));
    }

    #[test]
    fn a_dropped_command_is_lost_and_counts_with_the_longest_wait() {
        let begin = clock::now();
        let mut load = Load::new(SPEC, begin).unwrap();
        assert!(load.due(begin).is_some());
        assert!(load.is_settled(begin), "a lost command is not waited for");
        let report = load.report(begin).unwrap();
        assert_eq!((report.sent, report.answered), (1, 0));
        let blob = BASE64_STANDARD.decode(report.histogram).unwrap();
        let histogram: Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
            .deserialize(&mut blob.as_slice())
            .unwrap();
        assert!(histogram.max() >= nanoseconds(SETTLE_MAX));
    }
}
