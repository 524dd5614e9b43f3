//! Lines by number, so that gateways, grants and operations name one in four bytes.
//!
//! A line is known as long as somebody uses it: an agent that has it open, an operation that an agent may
//! know something about. Each is one use. A number is not given out again soon: what a gateway says of a
//! line that is gone is not taken for a word about another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::flow::Line;

/// This process server's number of a line, as it tells it to gateways.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::dispatch) struct LineId(pub(in crate::dispatch) u32);

#[derive(Debug)]
struct Entry {
    line: Arc<Line>,
    uses: u32,
}

/// The lines in use.
#[derive(Debug, Default)]
pub(super) struct Lines {
    ids: BTreeMap<Arc<Line>, LineId>,
    entries: BTreeMap<LineId, Entry>,
    next: u32,
}

impl Lines {
    /// The number of a line; one use more.
    pub(super) fn enter(&mut self, line: &Arc<Line>) -> LineId {
        if let Some(id) = self.ids.get(line) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.uses += 1;
            }
            return *id;
        }
        // There are never as many lines as numbers: an operation and a queue use one at most each.
        while self.entries.contains_key(&LineId(self.next)) {
            self.next = self.next.wrapping_add(1);
        }
        let id = LineId(self.next);
        self.next = self.next.wrapping_add(1);
        self.ids.insert(Arc::clone(line), id);
        let entry = Entry {
            line: Arc::clone(line),
            uses: 1,
        };
        self.entries.insert(id, entry);
        id
    }

    /// One use less.
    pub(super) fn leave(&mut self, id: LineId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            debug_assert!(false, "a line is left more often than entered");
            return;
        };
        entry.uses -= 1;
        if entry.uses == 0
            && let Some(entry) = self.entries.remove(&id)
        {
            self.ids.remove(&entry.line);
        }
    }

    /// A line in use.
    pub(super) fn get(&self, id: LineId) -> Option<&Arc<Line>> {
        self.entries.get(&id).map(|entry| &entry.line)
    }

    /// The number of a line in use.
    pub(super) fn find(&self, line: &Line) -> Option<LineId> {
        self.ids.get(line).copied()
    }

    /// How many are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str) -> Arc<Line> {
        Arc::new(Line {
            kind: kind.to_owned(),
            ..Line::default()
        })
    }

    #[test]
    fn a_line_keeps_its_number_while_it_is_used_and_leaves_it_to_nobody() {
        let mut lines = Lines::default();
        let first = lines.enter(&line("a"));
        let second = lines.enter(&line("b"));
        assert_eq!(lines.enter(&line("a")), first);
        lines.leave(first);
        assert_eq!(lines.get(first), Some(&line("a")));
        lines.leave(first);
        assert_eq!((lines.get(first), lines.find(&line("a"))), (None, None));
        let again = lines.enter(&line("a"));
        assert!(again != first && again != second);
        assert_eq!(lines.len(), 2);
    }
}
