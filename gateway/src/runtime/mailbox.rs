//! Bounded words from any thread to one shard.
//!
//! ```text
//!   Sender ──push──▶ [ ArrayQueue, capacity ] ──drain──▶ Receiver (the shard)
//!      │                                                    │
//!      └─ first after a drain: Waker::wake ──eventfd──▶ Park ┘
//! ```
//!
//! Nobody ever blocks here: a full mailbox gives the word back. Words of one sender arrive in the
//! order of sending. Between two drains only the first sender pays for a wake.
//!
//! # Why no wake is lost
//!
//! `notified` says "the receiver has been told and will drain". A sender *pushes, then swaps
//! `notified` to true*; the receiver *swaps it to false, then pops*. All four are SeqCst operations
//! (the queue's own index updates are SeqCst read-modify-writes or fenced, and both swaps are
//! SeqCst), so in their one total order either the sender's swap comes after the receiver's: it
//! sees `false` and wakes; or it comes before: then its push came before too, and the receiver's
//! pops, which come after its swap, see the word. A drain that leaves words behind (its `max` was
//! reached) tells itself, so that the next park returns at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

/// The mailbox has no room; here is the word back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard's mailbox is full: it is busy; try again after its next turn")]
pub(crate) struct Full<T>(pub T);

/// Ends the park of one shard, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    /// A waker with an eventfd of its own. The eventfd is blocking on purpose: io_uring answers a
    /// read of a non-blocking one with EAGAIN instead of waiting.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// Ends the current park, or the next one.
    pub(crate) fn wake(&self) {
        // A write blocks only at 2^64 − 2 unread wakes, and fails only on a closed descriptor,
        // which this value keeps open; an interrupted write has not happened.
        while rustix::io::write(&self.event, &1u64.to_ne_bytes()) == Err(rustix::io::Errno::INTR) {}
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[derive(Debug)]
struct Shared<T> {
    queue: ArrayQueue<T>,
    notified: AtomicBool,
    waker: Waker,
}

impl<T> Shared<T> {
    fn notify(&self) {
        if !self.notified.swap(true, Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

/// The sending side: any number, on any thread.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Sender<T> {
    /// Queues `word` and makes sure that the receiver will come for it.
    ///
    /// # Errors
    /// [`Full`] with the word, when `capacity` words wait already.
    pub(crate) fn try_send(&self, word: T) -> Result<(), Full<T>> {
        let sent = self.shared.queue.push(word).map_err(Full);
        // Also when full: whoever filled it may be between its push and its swap.
        self.shared.notify();
        sent
    }

    /// Words that wait now: a hint for telemetry.
    pub(crate) fn len(&self) -> usize {
        self.shared.queue.len()
    }
}

/// The receiving side: the shard's own.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Receiver<T> {
    /// Takes up to `max` waiting words. Dropping the iterator early leaves the rest in place. If
    /// words are left, the next park returns at once.
    pub(crate) fn drain(&mut self, max: usize) -> Drain<'_, T> {
        self.shared.notified.swap(false, Ordering::SeqCst);
        Drain { shared: &self.shared, left: max }
    }
}

/// See [`Receiver::drain`].
#[derive(Debug)]
pub(crate) struct Drain<'a, T> {
    shared: &'a Shared<T>,
    left: usize,
}

impl<T> Iterator for Drain<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        self.shared.queue.pop()
    }
}

impl<T> Drop for Drain<'_, T> {
    fn drop(&mut self) {
        if !self.shared.queue.is_empty() {
            self.shared.notify();
        }
    }
}

/// A mailbox of `capacity` words (at least one) whose receiver sleeps on `waker`.
pub(crate) fn channel<T>(capacity: usize, waker: Waker) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        notified: AtomicBool::new(false),
        waker,
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}
