//! The ways to sleep, for either datapath.
//!
//! | | io_uring datapath | poll datapath |
//! |---|---|---|
//! | [`MonoioPark`] | a monoio read of the eventfd that the ring and the mailbox both write; the deadline is an operation in the ring | |
//! | [`MonoioPollPark`] | | monoio readiness of the datapath's epoll; the deadline is a timer in it |
//! | [`DirectPark`] | `io_uring_enter` until one completion; the mailbox's eventfd is read by the ring | `epoll_wait` |
//!
//! Polling the ring's own descriptor from monoio, the obvious bridge, hangs: a ring with deferred
//! task work posts nothing until its owner enters it, so that its descriptor never turns readable.
//! The kernel writes a *registered eventfd* in this case on purpose.
//!
//! A shard that is idle has one read (or one readiness) outstanding and wakes for nothing.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::clock;
use super::mailbox::Waker;
use super::poll::PollDatapath;
use super::ring::UringDatapath;
use super::{Datapath, Park};

/// Turns of a busy shard between two looks at the other tasks of its thread.
const BUSY_TURNS: u32 = 16;

/// Lets the other tasks of a monoio thread run, and its driver look around.
async fn let_others_run() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Sleeps on monoio, for the io_uring datapath.
pub(super) struct MonoioPark {
    event: monoio::fs::File,
    /// Where the eventfd's count is read to: lent to each read.
    count: Vec<u8>,
    /// Parks in a row that did not sleep.
    busy: u32,
}

impl MonoioPark {
    /// Must be called inside the monoio runtime that will park, which must be an io_uring one.
    pub(super) fn new(datapath: &mut UringDatapath, waker: &Waker) -> io::Result<Self> {
        datapath.register_waker()?;
        let event = File::from(waker.as_fd().try_clone_to_owned()?);
        Ok(Self {
            event: monoio::fs::File::from_std(event)?,
            count: Vec::with_capacity(8),
            busy: 0,
        })
    }

    /// Letting others run costs a system call of monoio's, so a busy shard does it now and then.
    async fn stay_awake(&mut self) -> io::Result<()> {
        self.busy = (self.busy + 1) % BUSY_TURNS;
        if self.busy == 0 {
            let_others_run().await;
        }
        Ok(())
    }
}

impl Park<UringDatapath> for MonoioPark {
    async fn park(
        &mut self,
        datapath: &mut UringDatapath,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        datapath.flush()?;
        let now = clock::now();
        if deadline.is_some_and(|deadline| deadline <= now) || datapath.has_work() {
            return self.stay_awake().await;
        }
        if let Some(deadline) = deadline {
            datapath.arm_deadline(deadline, now)?;
        }
        if !datapath.fall_asleep() {
            return self.stay_awake().await;
        }
        self.busy = 0;
        let count = std::mem::take(&mut self.count);
        let (read, mut count) = self.event.read_at(count, 0).await;
        datapath.wake_up();
        count.clear();
        self.count = count;
        ended(read)
    }
}

/// An interrupted or cancelled read is one more wake for no reason.
fn ended(read: io::Result<usize>) -> io::Result<()> {
    match read {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::ECANCELED) => Ok(()),
            _ => Err(error),
        },
    }
}

/// Sleeps on monoio, for the poll datapath.
pub(super) struct MonoioPollPark {
    /// Not a UDP socket at all: monoio's only type that waits for readiness of any descriptor.
    epoll: monoio::net::udp::UdpSocket,
}

impl MonoioPollPark {
    /// Must be called inside the monoio runtime that will park.
    pub(super) fn new(datapath: &PollDatapath) -> io::Result<Self> {
        let epoll = UdpSocket::from(datapath.epoll().try_clone_to_owned()?);
        Ok(Self {
            epoll: monoio::net::udp::UdpSocket::from_std(epoll)?,
        })
    }
}

impl Park<PollDatapath> for MonoioPollPark {
    async fn park(
        &mut self,
        datapath: &mut PollDatapath,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        datapath.flush()?;
        let now = clock::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            let_others_run().await;
            return Ok(());
        }
        if let Some(deadline) = deadline {
            datapath.arm_deadline(deadline, now)?;
        }
        self.epoll.readable(false).await?;
        datapath.wait(Some(Duration::ZERO))
    }
}

/// Sleeps in the kernel: nothing else runs on the thread.
pub(super) struct DirectPark;

impl Park<UringDatapath> for DirectPark {
    async fn park(
        &mut self,
        datapath: &mut UringDatapath,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(clock::now()));
        if limit == Some(Duration::ZERO) || datapath.is_stirred() {
            return datapath.flush();
        }
        datapath.wait(limit)
    }
}

impl Park<PollDatapath> for DirectPark {
    async fn park(
        &mut self,
        datapath: &mut PollDatapath,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        datapath.flush()?;
        datapath.wait(deadline.map(|deadline| deadline.saturating_duration_since(clock::now())))
    }
}
