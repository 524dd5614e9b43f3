//! Lines of demand by number, so that a permit remembers its line in four bytes.
//!
//! A line is known as long as somebody uses it: a server that states it, a permit that was granted for it,
//! an operation that runs on such a permit. Each is one use.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use protocol::flow::{Class, Line};
use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;

use crate::flow::fair::{self, Flow};

/// A line that is in use at a home.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(in crate::group) struct LineId(pub u32);

struct Entry {
    line: Arc<Line>,
    uses: u32,
}

/// The lines in use.
#[derive(Default)]
pub(super) struct Lines {
    entries: Slab<Entry>,
    ids: FxHashMap<Arc<Line>, u32>,
}

impl Lines {
    /// The number of a line; one use more.
    pub(super) fn enter(&mut self, line: &Line) -> LineId {
        if let Some(id) = self.ids.get(line) {
            self.entries[*id as usize].uses += 1;
            return LineId(*id);
        }
        let line = Arc::new(line.clone());
        let entry = Entry {
            line: Arc::clone(&line),
            uses: 1,
        };
        let id = super::index_u32(self.entries.insert(entry));
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
        if entry.uses == 0 {
            let entry = self.entries.remove(id.0 as usize);
            self.ids.remove(&entry.line);
        }
    }

    /// A line in use.
    pub(super) fn get(&self, id: LineId) -> Option<&Line> {
        self.entries.get(id.0 as usize).map(|entry| &*entry.line)
    }

    /// The queue of a line. Its resources are the line itself, so that queues and lines are the same.
    pub(super) fn flow(&self, id: LineId) -> Option<Flow> {
        let line = self.get(id)?;
        Some(Flow {
            class: class(line.class),
            tenant: number(&line.tenant),
            kind: number(&line.kind),
            resources: id.0,
        })
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.ids.is_empty()
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
