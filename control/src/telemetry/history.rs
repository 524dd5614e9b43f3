//! The last hour of every histogram: pure, and bounded in slots and in bytes.
//!
//! ```text
//!   coarse: 10 s each, 58 minutes      fine: 1 s each, 2 minutes
//!   [··········|··········|····]       [·|·|·|·|·|·] ◀─ a slot a second
//!                           ◀── merged ──┘
//! ```
//!
//! A slot holds what was counted and nothing else. Over [`BYTES_MAX`] the oldest slots go first,
//! whatever their age. A clock that jumps is no trouble: slots are kept in the order in which they
//! came, and found by the times that they say.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Times;
use crate::clock::UnixMs;

/// A slot of the older part, in milliseconds.
pub(crate) const COARSE: u64 = 10_000;
/// Slots of the newer part: two minutes.
const FINE_MAX: usize = 120;
/// Slots of the older part: what is left of an hour.
const COARSE_MAX: usize = 348;
/// Bytes of all slots: a server that is busy everywhere needs about half of it for an hour.
const BYTES_MAX: usize = 16 << 20;

/// Which histogram: a place in the list of whoever fills the history.
pub(super) type Series = u16;

/// Times that were counted in some time: lowest value of a bucket in microseconds, and how many;
/// sorted.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Cells {
    cells: Vec<(u32, u32)>,
    sum_us: u64,
}

/// What all histograms counted in some time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    from: UnixMs,
    to: UnixMs,
    /// Sorted by series; none is empty.
    counted: Vec<(Series, Cells)>,
}

/// The last hour.
#[derive(Default)]
pub(super) struct History {
    coarse: VecDeque<Slot>,
    fine: VecDeque<Slot>,
    bytes: usize,
}

/// What was found in a range.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// When the first slot begins and the last one ends; nothing when no slot lies in the range.
    pub(crate) span: Option<(UnixMs, UnixMs)>,
    /// All of it.
    pub(crate) times: Times,
    /// Step by step, where steps were asked for; those in which nothing was counted are left out.
    pub(crate) steps: Vec<Step>,
}

/// One step of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    /// A multiple of the step's length.
    pub(crate) from: UnixMs,
    /// Lowest value, lowest value above it, count: at most 7 % wide, sorted, without the empty ones.
    pub(crate) bins: Vec<[u64; 3]>,
}

impl Cells {
    /// What `now` has counted since `before`; nothing if that is nothing.
    pub(super) fn since(before: Option<&Times>, now: &Histogram<u64>, sum_us: u64) -> Option<Self> {
        let earlier = |low| before.map_or(0, |times| times.histogram.count_at(low));
        let cells: Vec<(u32, u32)> = now
            .iter_recorded()
            .filter_map(|value| {
                let low = now.lowest_equivalent(value.value_iterated_to());
                let more = value.count_at_value().saturating_sub(earlier(low));
                let count = u32::try_from(more).unwrap_or(u32::MAX);
                (count > 0).then_some((u32::try_from(low).unwrap_or(u32::MAX), count))
            })
            .collect();
        let sum_us = sum_us.saturating_sub(before.map_or(0, Times::sum_us));
        (!cells.is_empty()).then_some(Self { cells, sum_us })
    }

    fn merge(&mut self, other: &Self) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        let mut merged = Vec::with_capacity(self.cells.len() + other.cells.len());
        let mut theirs = other.cells.iter().copied().peekable();
        for (low, count) in self.cells.drain(..) {
            while let Some(cell) = theirs.next_if(|cell| cell.0 < low) {
                merged.push(cell);
            }
            let same = theirs
                .next_if(|cell| cell.0 == low)
                .map_or(0, |cell| cell.1);
            merged.push((low, count.saturating_add(same)));
        }
        merged.extend(theirs);
        merged.shrink_to_fit();
        self.cells = merged;
    }

    pub(super) fn add_to(&self, times: &mut Times) {
        for (low, count) in &self.cells {
            let histogram = &mut times.histogram;
            histogram.saturating_record_n(u64::from(*low), u64::from(*count));
        }
        times.sum_us = times.sum_us.saturating_add(self.sum_us);
    }

    fn bytes(&self) -> usize {
        size_of::<(Series, Self)>() + self.cells.capacity() * size_of::<(u32, u32)>()
    }
}

impl Slot {
    /// What was counted between two looks, each series once.
    pub(super) fn new(from: UnixMs, to: UnixMs, mut counted: Vec<(Series, Cells)>) -> Self {
        counted.sort_by_key(|(series, _)| *series);
        for (_, cells) in &mut counted {
            cells.cells.shrink_to_fit();
        }
        counted.shrink_to_fit();
        Self { from, to, counted }
    }

    /// How long it was looked at.
    pub(super) fn length(&self) -> Duration {
        self.from.until(self.to)
    }

    /// The slot's place in time: its middle, so that a look that comes late by a few milliseconds
    /// counts for the second it is about.
    fn middle(&self) -> u64 {
        u64::midpoint(self.from.0, self.to.0)
    }

    /// Adds what came before or after.
    pub(super) fn merge(&mut self, other: Self) {
        self.from = self.from.min(other.from);
        self.to = self.to.max(other.to);
        for (series, cells) in other.counted {
            match self
                .counted
                .binary_search_by_key(&series, |(known, _)| *known)
            {
                Ok(at) => self.counted[at].1.merge(&cells),
                Err(at) => self.counted.insert(at, (series, cells)),
            }
        }
    }

    /// When it began, when it ended, what was counted.
    pub(super) fn into_parts(self) -> (UnixMs, UnixMs, Vec<(Series, Cells)>) {
        (self.from, self.to, self.counted)
    }

    fn bytes(&self) -> usize {
        let cells = self.counted.iter().map(|(_, cells)| cells.bytes());
        size_of::<Self>() + cells.sum::<usize>()
    }
}

impl History {
    /// Adds the newest second.
    pub(super) fn add(&mut self, slot: Slot) {
        self.bytes += slot.bytes();
        self.fine.push_back(slot);
        while self.fine.len() > FINE_MAX
            && let Some(oldest) = self.fine.pop_front()
        {
            self.age(oldest);
        }
        while (self.bytes > BYTES_MAX || self.coarse.len() > COARSE_MAX)
            && let Some(oldest) = self.coarse.pop_front().or_else(|| self.fine.pop_front())
        {
            self.bytes -= oldest.bytes();
        }
    }

    /// Moves a slot to the older part.
    fn age(&mut self, slot: Slot) {
        let step = |slot: &Slot| slot.middle() / COARSE;
        match self.coarse.back_mut() {
            Some(last) if step(last) == step(&slot) => {
                self.bytes -= slot.bytes() + last.bytes();
                last.merge(slot);
                self.bytes += last.bytes();
            }
            Some(_) | None => self.coarse.push_back(slot),
        }
    }

    /// Since when something is kept, and since when by the second.
    pub(super) fn kept_since(&self) -> Option<(UnixMs, UnixMs)> {
        let fine = self.fine.front()?.from;
        Some((self.coarse.front().map_or(fine, |slot| slot.from), fine))
    }

    /// What these series counted in the slots whose middle lies in `from..to`, and that in steps of
    /// so many milliseconds.
    pub(super) fn look(
        &self,
        wanted: &[Series],
        from: UnixMs,
        to: UnixMs,
        step: Option<u64>,
    ) -> Found {
        let mut found = Found {
            span: None,
            times: Times::new(),
            steps: Vec::new(),
        };
        let mut steps: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
        let within = |slot: &&Slot| (from.0..to.0).contains(&slot.middle());
        for slot in self.coarse.iter().chain(&self.fine).filter(within) {
            let (first, last) = found.span.unwrap_or((slot.from, slot.to));
            found.span = Some((first.min(slot.from), last.max(slot.to)));
            let counted = slot.counted.iter();
            for (_, cells) in counted.filter(|(series, _)| wanted.contains(series)) {
                cells.add_to(&mut found.times);
                if let Some(step) = step {
                    let bins = steps.entry(slot.middle() / step * step).or_default();
                    for (low, count) in &cells.cells {
                        *bins.entry(bin(*low).0).or_default() += u64::from(*count);
                    }
                }
            }
        }
        found.steps = steps
            .into_iter()
            .map(|(from, bins)| Step {
                from: UnixMs(from),
                bins: bins.into_iter().map(widened).collect(),
            })
            .collect();
        found
    }
}

/// The bin of a value: its five highest bits. Buckets of the histograms never lie across two.
fn bin(low: u32) -> (u64, u64) {
    let shift = (u32::BITS - low.leading_zeros()).saturating_sub(5);
    let first = u64::from(low >> shift << shift);
    (first, first + (1 << shift))
}

fn widened((low, count): (u64, u64)) -> [u64; 3] {
    let (first, next) = bin(u32::try_from(low).unwrap_or(u32::MAX));
    [first, next, count]
}

#[cfg(test)]
mod tests;
