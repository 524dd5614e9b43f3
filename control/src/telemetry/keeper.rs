//! Reads every histogram once a second and keeps what came in between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::history::{Cells, Found, History, Series, Slot};
use super::log::{Batch, Log};
use super::{Name, Times};
use crate::clock::{self, UnixMs};

/// Histograms are read this often.
const EVERY: Duration = Duration::from_secs(1);
/// A look that came a little early still ends an interval of the log.
const LEEWAY: Duration = Duration::from_millis(500);
/// How long the end of the program waits for the log.
const LAST_WRITE: Duration = Duration::from_secs(2);
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
    /// What was not handed to the log yet; stays empty where there is none.
    unlogged: Option<Slot>,
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
            unlogged: None,
            at: now,
        }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the sources: what they have counted since the last time becomes a slot of the history,
    /// and of what is to be logged.
    fn read(&self, now: UnixMs, sources: &[TimesSource], logged: bool) {
        let mut kept = self.kept();
        let mut counted = Vec::new();
        for source in sources {
            source(&mut |reading| counted.extend(kept.take(reading)));
        }
        // A clock that was set back makes a slot of no length.
        let from = kept.at.min(now);
        kept.at = now;
        let slot = Slot::new(from, now, counted);
        match &mut kept.unlogged {
            Some(before) => before.merge(slot.clone()),
            None if logged => kept.unlogged = Some(slot.clone()),
            None => {}
        }
        kept.history.add(slot);
    }

    /// What was counted since it was last taken, if that is long enough.
    fn take_unlogged(&self, interval: Duration) -> Option<Batch> {
        let mut kept = self.kept();
        let slot = kept.unlogged.take_if(|slot| slot.length() >= interval)?;
        let (from, to, counted) = slot.into_parts();
        let tagged = counted.into_iter().map(|(series, cells)| {
            let known = &kept.series[usize::from(series)];
            (known.tag(), cells)
        });
        Some(Batch {
            from,
            to,
            counted: tagged.collect(),
        })
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

impl Known {
    /// `store_commit`, `api:GET:/v1/agents`: tags hold no blanks and no commas.
    fn tag(&self) -> String {
        match &self.route {
            Some(route) => format!("{}:{}", self.name, route.replace([' ', ','], ":")),
            None => self.name.to_string(),
        }
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
        known.last = Some(Times::of(reading.histogram, reading.sum_us));
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

/// Reads the sources each second until `stop`, and then once more.
pub(crate) async fn keep(
    histograms: Arc<Histograms>,
    sources: Vec<TimesSource>,
    log: Option<Log>,
    stop: CancellationToken,
) {
    let interval = log.as_ref().map(Log::interval);
    let writer = log.map(Writer::start);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = false;
    while !last {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => last = true,
        }
        histograms.read(clock::now(), &sources, writer.is_some());
        if let (Some(writer), Some(interval)) = (&writer, interval) {
            let least = if last {
                Duration::ZERO
            } else {
                interval.saturating_sub(LEEWAY)
            };
            writer.offer(&histograms, least);
        }
    }
    if let Some(writer) = writer {
        writer.finish().await;
    }
}

/// Writes the log on a thread that may wait for a disk.
struct Writer {
    batches: mpsc::Sender<Batch>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(mut log: Log) -> Self {
        let (batches, mut given) = mpsc::channel::<Batch>(1);
        let task = tokio::task::spawn_blocking(move || {
            while let Some(batch) = given.blocking_recv() {
                log.write(&batch);
            }
        });
        Self { batches, task }
    }

    /// Hands over what is due. While the disk is slow it goes on gathering: the interval gets longer.
    fn offer(&self, histograms: &Histograms, least: Duration) {
        if let Ok(place) = self.batches.try_reserve()
            && let Some(batch) = histograms.take_unlogged(least)
        {
            place.send(batch);
        }
    }

    async fn finish(self) {
        drop(self.batches);
        if timeout(LAST_WRITE, self.task).await.is_err() {
            tracing::warn!("the last histograms were not written: the disk does not answer");
        }
    }
}
