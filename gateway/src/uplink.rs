//! Events of one shard on their way to the control plane: bounded in number and in bytes, in order,
//! never dropped. When it is full the shard stops reading its sessions, and QUIC's flow control
//! does the rest.
//!
//! ```text
//!   shard: Uplink ──push──▶ UplinkQueue ──pop──▶ gateway::Handle
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use protocol::flow::LimitKey;
use protocol::limits::{UPLINK_BYTES_MAX, UPLINK_MAX};
use protocol::link::Event;
use protocol::operation::{OperationState, Outcome, Progress};

/// Tells the control plane that events wait.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// What lies between a shard and the control plane.
pub(crate) struct UplinkQueue {
    events: ArrayQueue<Event>,
    /// What the waiting events hold on the heap, about.
    bytes: AtomicUsize,
}

impl UplinkQueue {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        Self {
            events: ArrayQueue::new(UPLINK_MAX),
            bytes: AtomicUsize::new(0),
        }
    }

    /// The oldest event.
    pub(crate) fn pop(&self) -> Option<Event> {
        let event = self.events.pop()?;
        self.bytes.fetch_sub(weight(&event), Ordering::Relaxed);
        Some(event)
    }

    fn push(&self, event: Event) -> bool {
        // Counted before it can be popped, so that the sum never falls below zero.
        let bytes = weight(&event);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let taken = self.events.push(event).is_ok();
        if !taken {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    fn is_filling(&self) -> bool {
        2 * self.events.len() >= self.events.capacity()
    }

    fn has_room(&self) -> bool {
        !self.events.is_full() && self.bytes.load(Ordering::Relaxed) < UPLINK_BYTES_MAX
    }
}

/// The shard's end.
pub(crate) struct Uplink {
    queue: Arc<UplinkQueue>,
    wake: Wake,
    pushed: bool,
}

impl Uplink {
    /// The end of a queue whose other end is read elsewhere.
    pub(crate) fn new(queue: Arc<UplinkQueue>, wake: Wake) -> Self {
        Self {
            queue,
            wake,
            pushed: false,
        }
    }

    /// Whether another event can be taken, whatever its size.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    /// Takes an event; whether there was room for it. An offer is of use only with the next process,
    /// so it waits for another event to go with, unless the queue fills up.
    pub(crate) fn push(&mut self, event: Event) -> bool {
        let idle = matches!(event, Event::Offered { .. });
        let taken = self.queue.push(event);
        self.pushed |= taken && (!idle || self.queue.is_filling());
        taken
    }

    /// Wakes the control plane, once for all events since the last call.
    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.pushed) {
            (self.wake)();
        }
    }
}

/// Bytes that an event holds on the heap, for the most part because an agent made it, besides the event itself.
pub(crate) fn weight(event: &Event) -> usize {
    match event {
        Event::Progress { progress, .. } => progress_bytes(progress),
        Event::Finished { outcome, .. } => outcome_bytes(outcome),
        Event::Report {
            state: OperationState::Finished(outcome),
            ..
        } => outcome_bytes(outcome),
        Event::Reported { reports, .. } => {
            let names = reports.iter().map(|(key, _)| match key {
                LimitKey::Resource(name) | LimitKey::Tenant(name) => name.len(),
                _ => 0,
            });
            size_of_val(&**reports) + names.sum::<usize>()
        }
        Event::Enrol { request, .. } => request.csr.len() + request.hostname.len(),
        Event::SessionUp(up) => {
            let labels = up
                .labels
                .iter()
                .map(|(name, value)| name.len() + value.len());
            size_of_val(&**up) + size_of_val(&*up.open) + labels.sum::<usize>()
        }
        _ => 0,
    }
}

/// Bytes of a progress report.
pub(crate) fn progress_bytes(progress: &Progress) -> usize {
    progress.output.len() + progress.message.len()
}

/// Bytes of an outcome.
pub(crate) fn outcome_bytes(outcome: &Outcome) -> usize {
    outcome.output.len() + outcome.message.len()
}

#[cfg(test)]
mod tests {
    use protocol::ids::{AgentId, Epoch, GrantId, GroupId, Slot};
    use protocol::link::Target;

    use super::*;

    fn uplink() -> (Uplink, Arc<AtomicUsize>) {
        let woken = Arc::new(AtomicUsize::new(0));
        let wakes = Arc::clone(&woken);
        let wake: Wake = Arc::new(move || {
            wakes.fetch_add(1, Ordering::Relaxed);
        });
        (Uplink::new(Arc::new(UplinkQueue::new()), wake), woken)
    }

    fn offer() -> Event {
        Event::Offered {
            target: Target {
                agent: AgentId::from_bytes([1; 16]),
                group: GroupId::from_bytes([2; 16]),
                slot: Slot(0),
            },
            grant: GrantId(1),
            epoch: Epoch(1),
        }
    }

    #[test]
    fn offers_wake_nobody_until_they_pile_up() {
        let (mut uplink, woken) = uplink();
        for _ in 0..UPLINK_MAX / 2 - 1 {
            assert!(uplink.push(offer()));
            uplink.flush();
        }
        assert_eq!(woken.load(Ordering::Relaxed), 0);
        assert!(uplink.push(offer()));
        uplink.flush();
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn every_other_event_wakes_and_takes_the_offers_along() {
        let (mut uplink, woken) = uplink();
        assert!(uplink.push(offer()));
        let Event::Offered { target, grant, .. } = offer() else {
            return;
        };
        assert!(uplink.push(Event::Withdrawn { target, grant }));
        uplink.flush();
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        let first = uplink.queue.pop();
        assert!(matches!(first, Some(Event::Offered { .. })), "in order");
    }
}
