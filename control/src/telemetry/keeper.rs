//! Reads every histogram once a second and keeps what came in between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::{MissedTickBehavior, interval};

use super::history::{Cells, Found, History, Series, Slot};
use super::{Name, Times};
use crate::clock::{self, UnixMs};

/// Histograms are read this often.
const EVERY: Duration = Duration::from_secs(1);
/// Series at most: every name, and every route of the API.
const SERIES_MAX: usize = 256;

/// A histogram as it is now: everything since the start of whoever keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// What was measured.
    pub name: Name,
    /// Of which route of the API; `None` for everything else.
    pub route: Option<&'a str>,
    /// How many took how long: bounds from 1 µs, two significant digits.
    pub histogram: &'a Histogram<u64>,
    /// The sum of all times in microseconds.
    pub sum_us: u64,
}

/// Tells the histograms that a part of the program keeps, each name and route once.
pub type TimesSource = Arc<dyn Fn(&mut dyn FnMut(Reading<'_>)) + Send + Sync>;

/// Every histogram that is known, since the start and over the last hour.
pub(crate) struct Histograms(Mutex<Kept>);

struct Kept {
    series: Vec<Known>,
    history: History,
    /// When it was last read.
    at: UnixMs,
}

struct Known {
    name: Name,
    route: Option<Box<str>>,
    /// As it was at the last look, with its keeper's bounds.
    last: Option<Times>,
}

impl Histograms {
    pub(crate) fn new(now: UnixMs) -> Self {
        Self(Mutex::new(Kept {
            series: Vec::new(),
            history: History::default(),
            at: now,
        }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the sources: what they have counted since the last time becomes a slot of the history.
    fn read(&self, now: UnixMs, sources: &[TimesSource]) {
        let mut kept = self.kept();
        let mut counted = Vec::new();
        for source in sources {
            source(&mut |reading| counted.extend(kept.take(reading)));
        }
        // A clock that was set back makes a slot of no length.
        let from = kept.at.min(now);
        kept.at = now;
        kept.history.add(Slot::new(from, now, counted));
    }

    /// Since when something is kept, and since when by the second; nothing before the first look.
    pub(crate) fn kept_since(&self) -> Option<(UnixMs, UnixMs)> {
        self.kept().history.kept_since()
    }

    /// What was counted in a range, of one route or of all, and that in steps of so many
    /// milliseconds.
    pub(crate) fn look(
        &self,
        name: Name,
        route: Option<&str>,
        range: (UnixMs, UnixMs),
        step: Option<u64>,
    ) -> Found {
        let kept = self.kept();
        let wanted: Vec<Series> = (0..)
            .zip(&kept.series)
            .filter(|(_, known)| known.name == name)
            .filter(|(_, known)| route.is_none() || known.route.as_deref() == route)
            .map(|(series, _)| series)
            .collect();
        kept.history.look(&wanted, range.0, range.1, step)
    }

    /// All times of a name since the start; nothing where nothing was measured.
    pub(crate) fn total(&self, name: Name) -> Option<Times> {
        let kept = self.kept();
        let mut parts = kept
            .series
            .iter()
            .filter(|known| known.name == name)
            .filter_map(|known| known.last.as_ref());
        let mut total = Times::new();
        total.merge(parts.next()?);
        for part in parts {
            total.merge(part);
        }
        Some(total)
    }
}

impl Kept {
    /// What a histogram has counted since it was last read.
    fn take(&mut self, reading: Reading<'_>) -> Option<(Series, Cells)> {
        if reading.histogram.is_empty() {
            return None;
        }
        let series = self.series(reading.name, reading.route)?;
        let known = &mut self.series[usize::from(series)];
        let before = known.last.as_ref();
        if before.is_some_and(|last| last.histogram.len() == reading.histogram.len()) {
            return None;
        }
        let cells = Cells::since(before, reading.histogram, reading.sum_us);
        known.last = Some(Times {
            histogram: reading.histogram.clone(),
            sum_us: reading.sum_us,
        });
        cells.map(|cells| (series, cells))
    }

    fn series(&mut self, name: Name, route: Option<&str>) -> Option<Series> {
        let known = self
            .series
            .iter()
            .position(|known| known.name == name && known.route.as_deref() == route);
        let place = known.or_else(|| {
            let room = self.series.len() < SERIES_MAX;
            room.then(|| {
                self.series.push(Known {
                    name,
                    route: route.map(Box::from),
                    last: None,
                });
                self.series.len() - 1
            })
        });
        Series::try_from(place?).ok()
    }
}

/// Reads the sources each second, for as long as the task lives.
#[expect(clippy::infinite_loop, reason = "it ends with its task")]
pub(crate) async fn keep(histograms: Arc<Histograms>, sources: Vec<TimesSource>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        histograms.read(clock::now(), &sources);
    }
}
