//! Lines of demand by number, so that a permit remembers its line in four bytes.
//!
//! A line is known as long as somebody uses it: a server that states it, a permit that was granted for it,
//! an operation that runs on such a permit. Each is one use. A few that nobody uses any more are kept,
//! as the same line is most often stated again.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use protocol::flow::{Class, Line};
use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;

use crate::flow::fair::{self, Flow};

/// A line that is in use at a home.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(in crate::group) struct LineId(pub u32);

/// Lines without a use that are kept at most; then all of them go.
const UNUSED_MAX: usize = 64;

struct Entry {
    line: Arc<Line>,
    /// Its queue: the numbers of its names, and its own.
    flow: Flow,
    uses: u32,
}

/// The lines in use.
#[derive(Default)]
pub(super) struct Lines {
    entries: Slab<Entry>,
    ids: FxHashMap<Arc<Line>, u32>,
    unused: usize,
}

impl Lines {
    /// The number of a line; one use more.
    pub(super) fn enter(&mut self, line: &Line) -> LineId {
        if let Some(id) = self.ids.get(line) {
            let entry = &mut self.entries[*id as usize];
            self.unused -= usize::from(entry.uses == 0);
            entry.uses += 1;
            return LineId(*id);
        }
        let line = Arc::new(line.clone());
        let place = self.entries.vacant_entry();
        let id = super::index_u32(place.key());
        place.insert(Entry {
            flow: Flow {
                class: class(line.class),
                tenant: number(&line.tenant),
                kind: number(&line.kind),
                resources: id,
            },
            line: Arc::clone(&line),
            uses: 1,
        });
        self.ids.insert(line, id);
        LineId(id)
    }

    /// So many uses more of a line that is in use.
    pub(super) fn hold(&mut self, id: LineId, uses: u32) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.uses += uses;
        }
    }

    /// So many uses less.
    pub(super) fn leave(&mut self, id: LineId, uses: u32) {
        let Some(entry) = self.entries.get_mut(id.0 as usize) else {
            return;
        };
        debug_assert!(entry.uses >= uses, "a line is left more often than entered");
        entry.uses = entry.uses.saturating_sub(uses);
        if uses > 0 && entry.uses == 0 {
            self.unused += 1;
            if self.unused > UNUSED_MAX {
                self.forget_unused();
            }
        }
    }

    fn forget_unused(&mut self) {
        let ids = &mut self.ids;
        self.entries.retain(|_, entry| {
            let keeps = entry.uses > 0;
            if !keeps {
                ids.remove(&entry.line);
            }
            keeps
        });
        self.unused = 0;
    }

    /// A line in use.
    pub(super) fn get(&self, id: LineId) -> Option<&Line> {
        self.entries.get(id.0 as usize).map(|entry| &*entry.line)
    }

    /// The queue of a line. Its resources are the line itself, so that queues and lines are the same.
    pub(super) fn flow(&self, id: LineId) -> Option<Flow> {
        self.entries.get(id.0 as usize).map(|entry| entry.flow)
    }

    /// Whether nobody uses any.
    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        assert_eq!(self.entries.len(), self.ids.len());
        let unused = self.entries.iter().filter(|(_, entry)| entry.uses == 0);
        assert_eq!(unused.count(), self.unused);
        assert!(self.unused <= UNUSED_MAX);
        self.unused == self.entries.len()
    }
}

/// A number for a name that only shares and durations are kept by: two names with one number share a
/// turn, which is unfair to them and harmless.
pub(super) fn number(name: &str) -> u32 {
    let hash = FxBuildHasher.hash_one(name);
    u32::try_from(hash >> 32).unwrap_or(u32::MAX)
}

fn class(class: Class) -> fair::Class {
    match class {
        Class::System => fair::Class::System,
        Class::Interactive => fair::Class::Interactive,
        Class::Normal => fair::Class::Normal,
        Class::Background => fair::Class::Background,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize) -> Line {
        Line {
            kind: format!("kind-{n}"),
            ..Line::default()
        }
    }

    #[test]
    fn a_line_that_is_stated_again_keeps_its_number() {
        let mut lines = Lines::default();
        let first = lines.enter(&line(1));
        lines.leave(first, 1);
        assert!(lines.is_unused());
        let other = lines.enter(&line(2));
        assert_eq!(lines.enter(&line(1)), first);
        assert_ne!(first, other);
        assert!(!lines.is_unused());
        assert_eq!(lines.flow(first).map(|flow| flow.resources), Some(first.0));
    }

    #[test]
    fn only_so_many_lines_are_kept_that_nobody_uses() {
        let mut lines = Lines::default();
        let used = lines.enter(&line(0));
        for n in 1..10 * UNUSED_MAX {
            let id = lines.enter(&line(n));
            lines.leave(id, 1);
            assert!(lines.entries.len() <= UNUSED_MAX + 1, "{n}");
        }
        assert!(lines.get(used).is_some_and(|used| *used == line(0)));
        lines.leave(used, 1);
        assert!(lines.is_unused());
    }
}
