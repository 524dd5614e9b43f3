//! Events in the order of their time; of equal times in the order in which they were made.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Virtual time since the beginning, in nanoseconds.
pub(super) type Nanos = u64;

/// Nanoseconds of so many seconds; nothing is before the beginning.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates; a simulation lasts hours"
)]
pub(super) fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9).max(0.0) as Nanos
}

/// Seconds of so many nanoseconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "hours in nanoseconds are exact in 53 bits"
)]
pub(super) fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

struct Entry<E> {
    at: Nanos,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    /// The heap gives the greatest first: the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// What is still to happen.
pub(super) struct Events<E> {
    heap: BinaryHeap<Entry<E>>,
    made: u64,
}

impl<E> Events<E> {
    pub(super) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            made: 0,
        }
    }

    pub(super) fn push(&mut self, at: Nanos, event: E) {
        self.made += 1;
        let order = self.made;
        self.heap.push(Entry { at, order, event });
    }

    /// When the next event is.
    pub(super) fn first(&self) -> Option<Nanos> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// The next event, unless it is after `until`.
    pub(super) fn pop(&mut self, until: Nanos) -> Option<(Nanos, E)> {
        if self.heap.peek()?.at > until {
            return None;
        }
        let entry = self.heap.pop()?;
        Some((entry.at, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_and_then_of_making() {
        let mut events = Events::new();
        for (at, name) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b'), (9, 'e')] {
            events.push(at, name);
        }
        let order: String = std::iter::from_fn(|| events.pop(8))
            .map(|(_, e)| e)
            .collect();
        assert_eq!(order, "abcd");
        assert_eq!(events.pop(9), Some((9, 'e')));
    }
}
