//! A line of connections: each stands in it once, however often it is sent there.

use std::collections::VecDeque;

/// First come, first served. Never longer than there are indices: what is remembered about an
/// index outlives its connection, so that a successor does not stand in the line twice.
#[derive(Debug, Default)]
pub(super) struct Line {
    order: VecDeque<u32>,
    stands: Vec<bool>,
}

impl Line {
    /// Puts an index at the end, unless it is in the line already.
    pub(super) fn push(&mut self, index: u32) {
        let place = super::slot(index);
        if self.stands.len() <= place {
            self.stands.resize(place + 1, false);
        }
        if !std::mem::replace(&mut self.stands[place], true) {
            self.order.push_back(index);
        }
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let index = self.order.pop_front()?;
        self.stands[super::slot(index)] = false;
        Some(index)
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_in_the_line_once_and_may_come_again() {
        let mut line = Line::default();
        for index in [7, 2, 7, 2, 2, 0, 7] {
            line.push(index);
        }
        assert_eq!(line.len(), 3);
        assert_eq!(line.pop(), Some(7));
        line.push(7);
        line.push(2);
        let rest: Vec<u32> = std::iter::from_fn(|| line.pop()).collect();
        assert_eq!(rest, [2, 0, 7]);
        assert!(line.is_empty());
    }
}
