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
        Ok(Self {
            event: Arc::new(event),
        })
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
        Self {
            shared: Arc::clone(&self.shared),
        }
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
}

impl<T> Sender<T> {
    /// As [`try_send`](Self::try_send), for a word that may wait until the receiver comes for another
    /// reason: it wakes nobody unless words pile up.
    ///
    /// # Errors
    /// [`Full`] with the word, when `capacity` words wait already.
    pub(crate) fn try_send_idly(&self, word: T) -> Result<(), Full<T>> {
        let Shared { queue, .. } = &*self.shared;
        if 2 * queue.len() >= queue.capacity() {
            return self.try_send(word);
        }
        queue.push(word).map_err(Full)
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
        Drain {
            shared: &self.shared,
            left: max,
        }
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
    (
        Sender {
            shared: Arc::clone(&shared),
        },
        Receiver { shared },
    )
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Sleeps until a wake; false if none came for long.
    fn sleep(waker: &Waker) -> bool {
        let mut poll = [rustix::event::PollFd::new(
            waker,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let woken = rustix::event::poll(&mut poll, Some(&limit)).unwrap() == 1;
        if woken {
            rustix::io::read(waker, &mut [0; 8]).unwrap();
        }
        woken
    }

    #[test]
    fn a_full_mailbox_gives_the_word_back_and_takes_it_after_a_drain() {
        let (sender, mut receiver) = channel(2, Waker::new().unwrap());
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Ok(()));
        assert_eq!(sender.try_send(3), Err(Full(3)));
        assert_eq!(receiver.drain(10).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(sender.try_send(3), Ok(()));
    }

    #[test]
    fn only_the_first_word_after_a_drain_wakes() {
        let waker = Waker::new().unwrap();
        let (sender, mut receiver) = channel(8, waker.clone());
        for _ in 0..3 {
            for word in 0..5 {
                sender.try_send(word).unwrap();
            }
            let mut count = [0; 8];
            rustix::io::read(&waker, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 1);
            assert_eq!(receiver.drain(8).count(), 5);
        }
    }

    #[test]
    fn idle_words_wake_nobody_until_they_pile_up_and_keep_their_place() {
        let waker = Waker::new().unwrap();
        let (sender, mut receiver) = channel(8, waker.clone());
        for word in 0..4 {
            sender.try_send_idly(word).unwrap();
        }
        assert!(!sender.shared.notified.load(Ordering::SeqCst));
        sender.try_send_idly(4).unwrap();
        assert!(sleep(&waker));
        sender.try_send(5).unwrap();
        assert_eq!(receiver.drain(8).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_drain_that_leaves_words_behind_wakes_its_own_receiver() {
        let waker = Waker::new().unwrap();
        let (sender, mut receiver) = channel(8, waker.clone());
        for word in 0..5 {
            sender.try_send(word).unwrap();
        }
        assert!(sleep(&waker));
        assert_eq!(receiver.drain(2).collect::<Vec<_>>(), [0, 1]);
        assert!(sleep(&waker));
        assert_eq!(
            receiver.drain(8).next(),
            Some(2),
            "and an unfinished drain loses nothing"
        );
        assert!(sleep(&waker));
        assert_eq!(receiver.drain(8).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn no_word_and_no_wake_is_lost_between_threads() {
        const SENDERS: u32 = 4;
        const WORDS: u32 = 20_000;
        let waker = Waker::new().unwrap();
        let (sender, mut receiver) = channel(16, waker.clone());
        let senders: Vec<_> = (0..SENDERS)
            .map(|from| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for number in 0..WORDS {
                        let mut word = (from, number);
                        while let Err(Full(back)) = sender.try_send(word) {
                            word = back;
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; SENDERS as usize];
        let mut left = SENDERS * WORDS;
        while left > 0 {
            // Sleeping without looking first: a lost wake would never end.
            assert!(sleep(&waker), "a wake was lost with {left} words to come");
            for (from, number) in receiver.drain(7) {
                assert_eq!(
                    number, next[from as usize],
                    "words of one sender keep their order"
                );
                next[from as usize] += 1;
                left -= 1;
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
    }
}
