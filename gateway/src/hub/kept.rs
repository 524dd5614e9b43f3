//! Events that wait to be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::link::Event;

use crate::uplink;

/// An event that waits for a process server.
pub(super) enum Kept {
    /// For it alone.
    Own(Event),
    /// For all that heard when it came; kept once, and read by each.
    Shared(Arc<Shared>),
}

pub(super) struct Shared {
    event: Event,
    /// Somebody has read it.
    read: AtomicBool,
}

impl Kept {
    /// As many as are wanted of one event.
    pub(super) fn copies(event: Event) -> impl Iterator<Item = Self> {
        let shared = Arc::new(Shared {
            event,
            read: AtomicBool::new(false),
        });
        std::iter::repeat_with(move || Self::Shared(Arc::clone(&shared)))
    }

    pub(super) fn event(&self) -> &Event {
        match self {
            Self::Own(event) => event,
            Self::Shared(shared) => &shared.event,
        }
    }

    /// What it takes up, in bytes, about.
    pub(super) fn weight(&self) -> usize {
        uplink::weight(self.event())
    }

    pub(super) fn read(self) -> Event {
        match self {
            Self::Own(event) => event,
            Self::Shared(shared) => {
                shared.read.store(true, Ordering::Relaxed);
                Arc::try_unwrap(shared)
                    .map_or_else(|shared| shared.event.clone(), |shared| shared.event)
            }
        }
    }

    /// The event, of one that is not read by its server, if nobody else has read it or will. Without this rule
    /// what several leave unread one after the other would double each time.
    pub(super) fn unheard(self) -> Option<Event> {
        match self {
            Self::Own(event) => Some(event),
            Self::Shared(shared) => Arc::into_inner(shared)
                .filter(|shared| !shared.read.load(Ordering::Relaxed))
                .map(|shared| shared.event),
        }
    }
}
