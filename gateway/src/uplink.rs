//! Events of one shard on their way to the control plane: bounded, in order, never dropped. When it
//! is full the shard stops reading its sessions, and QUIC's flow control does the rest.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use protocol::link::Event;

/// Tells the control plane that events wait.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// The shard's end.
pub(crate) struct Uplink {
    queue: Arc<ArrayQueue<Event>>,
    wake: Wake,
    pushed: bool,
}

impl Uplink {
    /// The end of a queue whose other end is read elsewhere.
    pub(crate) fn new(queue: Arc<ArrayQueue<Event>>, wake: Wake) -> Self {
        Self {
            queue,
            wake,
            pushed: false,
        }
    }

    /// Whether another event can be taken.
    pub(crate) fn has_room(&self) -> bool {
        !self.queue.is_full()
    }

    /// Takes an event; whether there was room for it.
    pub(crate) fn push(&mut self, event: Event) -> bool {
        let taken = self.queue.push(event).is_ok();
        self.pushed |= taken;
        taken
    }

    /// Wakes the control plane, once for all events since the last call.
    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.pushed) {
            (self.wake)();
        }
    }
}
