//! One shard's ring: arms, submits, reaps.
//!
//! The ring is `SINGLE_ISSUER | DEFER_TASKRUN`: the kernel does nothing for it except inside our
//! own calls, so a turn is interrupted by nothing and costs one `io_uring_enter` when there is
//! anything to do and none when there is not (`TASKRUN_FLAG` says which).
//!
//! Completions cannot overflow: every one belongs to a receive buffer, a transmit slot or one of a
//! handful of single operations, and the completion queue is larger than all of them together.

#![expect(unsafe_code, reason = "hands memory of ours to the kernel")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, Fixed, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::super::arena::Arena;
use super::super::mailbox::Waker;
use super::super::{
    Datagram, Datapath, DatapathKind, DatapathStats, SLEEP_MAX, Sent, TRAIN_SEGMENTS_MAX,
    UDP_PAYLOAD_BYTES_MAX,
};
use super::buffers::{BUFFER_BYTES, BUFFERS, Buffers, GROUP};
use super::message::{Arrival, CONTROL_BYTES, NAME_BYTES, decode_control, decode_name};
use super::slots::{SLOTS, Settled, Slots};
use super::sockopt;

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 4096;
const _: () = assert!(SLOTS as u32 + BUFFERS as u32 + 16 <= COMPLETIONS);

/// Where a filled buffer's payload begins: after `io_uring_recvmsg_out`, name and control messages.
const PAYLOAD_AT: usize = 16 + NAME_BYTES + CONTROL_BYTES;
const _: () = assert!(PAYLOAD_AT + UDP_PAYLOAD_BYTES_MAX <= BUFFER_BYTES);

/// The socket's place in the ring's table of files.
const SOCKET: Fixed = Fixed(0);

// What a completion belongs to: the low byte of its user data, a slot above it.
const RECEIVE: u64 = 1;
const WAKE: u64 = 2;
const DEADLINE: u64 = 3;
const DEADLINE_MOVED: u64 = 4;
const SEND: u64 = 5;
const KIND_BITS: u32 = 8;

/// Whether `error` of setting up a ring means "not here": forbidden, not built in, not supported
/// (6.1 has all that is used here) or no locked memory, as opposed to a mistake of ours.
pub(in crate::runtime) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPERM
                | libc::EACCES
                | libc::ENOSYS
                | libc::ENOMEM
                | libc::EINVAL
                | libc::EOPNOTSUPP
        )
    )
}

/// See the module.
pub(in crate::runtime) struct UringDatapath {
    // Dropped first: the ring must not outlive what it writes to.
    ring: IoUring,
    buffers: Buffers,
    slots: Slots,
    receive_header: Box<libc::msghdr>,
    deadline_at: Box<Timespec>,
    wake_count: Box<[u8; 8]>,
    socket: Arc<UdpSocket>,
    waker: Waker,
    arena: Arena,
    max_segments: usize,
    receiving: bool,
    wake_armed: bool,
    deadline: Option<Instant>,
    /// A datagram that was met while looking for sends that are done: at most one.
    early: Vec<Datagram>,
    /// The next park must not sleep: there was a wake, or room again, since the last one ended.
    stirred: bool,
    /// Completions that the last park returned for: a wake among them is no news any more.
    announced: usize,
    stats: DatapathStats,
}

impl UringDatapath {
    /// Makes the ring and its memory. Must happen on the thread that will use it.
    ///
    /// # Errors
    /// [`is_refusal`] tells those that a fallback is the answer to.
    pub(in crate::runtime) fn new(socket: Arc<UdpSocket>, waker: Waker) -> io::Result<Self> {
        let v6 = socket.local_addr()?.is_ipv6();
        // A non-blocking socket would have the ring answer EAGAIN instead of waiting.
        socket.set_nonblocking(false)?;
        prepare_socket(&socket, v6)?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .dontfork()
            .build(SUBMISSIONS)?;
        if !(ring.params().is_feature_nodrop() && ring.params().is_feature_ext_arg()) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        ring.submitter().register_files(&[socket.as_raw_fd()])?;
        let buffers = Buffers::new()?;
        // SAFETY: `buffers` is a field of the same value as the ring and declared after it, so that
        // the ring is gone first.
        unsafe { buffers.register(&ring.submitter())? };
        // SAFETY: a `msghdr` of zeroes is valid: null pointers and zero lengths.
        let mut receive_header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive_header.msg_namelen =
            libc::socklen_t::try_from(NAME_BYTES).map_err(io::Error::other)?;
        receive_header.msg_controllen = CONTROL_BYTES;
        Ok(Self {
            ring,
            buffers,
            slots: Slots::new()?,
            receive_header,
            deadline_at: Box::new(Timespec::new()),
            wake_count: Box::new([0; 8]),
            socket,
            waker,
            arena: Arena::default(),
            max_segments: TRAIN_SEGMENTS_MAX,
            receiving: false,
            wake_armed: false,
            deadline: None,
            early: Vec::with_capacity(1),
            stirred: false,
            announced: 0,
            stats: DatapathStats {
                kind: DatapathKind::Uring,
                ..DatapathStats::default()
            },
        })
    }

    /// Queues `entry`; false when the kernel will not take the queue just now.
    ///
    /// # Safety
    /// What the entry points to must stay in place until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<bool> {
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: passed on to our caller.
        Ok(unsafe { self.ring.submission().push(entry) }.is_ok())
    }

    fn submit(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Short of memory, or completions wait: what is queued stays queued.
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }

    fn arm_receive(&mut self) -> io::Result<()> {
        let entry = opcode::RecvMsgMulti::new(SOCKET, &raw const *self.receive_header, GROUP)
            .build()
            .user_data(RECEIVE);
        // SAFETY: the header is boxed and never written again; the buffers belong to the group.
        self.receiving = unsafe { self.push(&entry)? };
        Ok(())
    }

    /// As [`is_stirred`](Self::is_stirred), or whether the kernel has something to be entered for.
    pub(in crate::runtime) fn has_work(&mut self) -> bool {
        if !self.receiving || self.is_stirred() {
            return true;
        }
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Whether a park must not sleep. Asking takes note: the same wake is no reason twice.
    pub(in crate::runtime) fn is_stirred(&mut self) -> bool {
        let stirred = std::mem::take(&mut self.stirred);
        stirred || !self.early.is_empty() || !self.ring.completion().is_empty()
    }

    /// Has the ring write the waker's eventfd when something arrives while asleep.
    pub(in crate::runtime) fn register_waker(&mut self) -> io::Result<()> {
        self.ring
            .submitter()
            .register_eventfd(self.waker.as_fd().as_raw_fd())?;
        self.ring.completion().disable_eventfd();
        Ok(())
    }

    /// Turns the eventfd on and answers whether there is reason to wait for it. The order matters:
    /// the kernel marks the ring and then reads the switch, we turn the switch and then read the
    /// mark, with a full barrier between, so that one of the two sees the other.
    pub(in crate::runtime) fn fall_asleep(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        fence(Ordering::SeqCst);
        if self.has_work() {
            self.wake_up();
            return false;
        }
        true
    }

    /// Turns the eventfd off again: during a turn it would only cost system calls.
    pub(in crate::runtime) fn wake_up(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    /// Has the ring complete an operation at `deadline`, or earlier: an operation of an earlier
    /// sleep is left in place rather than moved back, and its completion finds out.
    pub(in crate::runtime) fn arm_deadline(
        &mut self,
        deadline: Instant,
        now: Instant,
    ) -> io::Result<()> {
        if self.deadline.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(now).min(SLEEP_MAX);
        *self.deadline_at = Timespec::from(left);
        let at = &raw const *self.deadline_at;
        let entry = if self.deadline.is_some() {
            opcode::TimeoutUpdate::new(DEADLINE, at)
                .build()
                .user_data(DEADLINE_MOVED)
        } else {
            opcode::Timeout::new(at).build().user_data(DEADLINE)
        };
        // SAFETY: the time is boxed; the kernel copies it at submission, which follows at once.
        if unsafe { self.push(&entry)? } {
            self.deadline = Some(deadline);
            self.submit()?;
        }
        Ok(())
    }

    /// Has the ring read the waker's eventfd, so that a wake ends [`wait`](Self::wait).
    fn arm_wake(&mut self) -> io::Result<()> {
        if !self.wake_armed {
            let event = Fd(self.waker.as_fd().as_raw_fd());
            let entry = opcode::Read::new(event, self.wake_count.as_mut_ptr(), 8)
                .build()
                .user_data(WAKE);
            // SAFETY: the eight bytes are boxed and looked at by nobody.
            self.wake_armed = unsafe { self.push(&entry)? };
        }
        Ok(())
    }

    /// Submits what is queued and sleeps in the kernel until a completion, or for `limit`.
    pub(in crate::runtime) fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        if !self.receiving {
            self.arm_receive()?;
        }
        self.arm_wake()?;
        let time;
        let mut args = SubmitArgs::new();
        if let Some(limit) = limit {
            time = Timespec::from(limit.min(SLEEP_MAX));
            args = args.timespec(&time);
        }
        if let Err(error) = self.ring.submitter().submit_with_args(1, &args) {
            match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => return Err(error),
            }
        }
        self.announced = self.ring.completion().len();
        Ok(())
    }

    /// Handles one completion; true if it brought a datagram.
    fn complete(&mut self, entry: &cqueue::Entry, out: &mut Vec<Datagram>) -> io::Result<bool> {
        let announced = self.announced > 0;
        self.announced = self.announced.saturating_sub(1);
        match entry.user_data() & ((1 << KIND_BITS) - 1) {
            RECEIVE => return self.received(entry, out),
            SEND => {
                let slot = u16::try_from(entry.user_data() >> KIND_BITS).unwrap_or(u16::MAX);
                self.sent(slot, entry.result())?;
            }
            WAKE => {
                self.wake_armed = false;
                self.stirred |= !announced;
            }
            DEADLINE => self.deadline = None,
            // Moving fails only when the deadline is just past: its own completion says so.
            _ => {}
        }
        Ok(false)
    }

    fn received(&mut self, entry: &cqueue::Entry, out: &mut Vec<Datagram>) -> io::Result<bool> {
        if !cqueue::more(entry.flags()) {
            self.receiving = false;
        }
        let len = match usize::try_from(entry.result()) {
            Ok(len) => len,
            Err(_) => return self.receive_failed(-entry.result()),
        };
        let Some(id) = cqueue::buffer_select(entry.flags()) else {
            return Ok(false);
        };
        // SAFETY: this completion names the buffer, which is given back only below.
        let bytes = unsafe { self.buffers.filled(id, len) };
        let datagram =
            parse(bytes, &self.receive_header).map(|(remote, arrival, payload)| Datagram {
                remote,
                local_ip: arrival.local_ip,
                ecn: arrival.ecn,
                payload: self.arena.copy(payload),
            });
        self.buffers.give_back(id);
        let Some(datagram) = datagram else {
            self.stats.dropped_in += 1;
            return Ok(false);
        };
        self.stats.datagrams_in += 1;
        self.stats.bytes_in += datagram.payload.len() as u64;
        out.push(datagram);
        Ok(true)
    }

    fn receive_failed(&mut self, error: i32) -> io::Result<bool> {
        match error {
            libc::ENOBUFS => {
                self.stats.receive_stalls += 1;
                Ok(false)
            }
            // Mistakes of ours: trying again would only spin.
            libc::EINVAL | libc::EBADF | libc::EFAULT | libc::ENOTSOCK | libc::EOPNOTSUPP => {
                Err(io::Error::from_raw_os_error(error))
            }
            _ => Ok(false),
        }
    }

    fn sent(&mut self, slot: u16, result: i32) -> io::Result<()> {
        match self.slots.settle(slot, result) {
            Settled::Sent { datagrams, bytes } => {
                self.stats.datagrams_out += datagrams;
                self.stats.bytes_out += bytes;
                return Ok(());
            }
            Settled::Refused { datagrams, sent } => {
                self.stats.datagrams_out += sent;
                self.stats.dropped_out += datagrams;
                return Ok(());
            }
            Settled::Again => {}
            Settled::AgainWithoutOffload => {
                self.stats.gso_fallbacks += 1;
                if self.max_segments > 1 {
                    self.max_segments = 1;
                    tracing::warn!(
                        "segmentation offload does not work on this machine's network device: \
                         sending datagrams one by one"
                    );
                }
            }
        }
        self.send(slot)
    }

    /// Nearly every send is done by the time it is submitted. Settling it here spares the shard a
    /// turn that would find nothing else.
    fn settle_sends(&mut self) -> io::Result<()> {
        let was_full = !self.slots.has_room();
        let mut early = std::mem::take(&mut self.early);
        while early.is_empty() {
            let Some(entry) = self.ring.completion().next() else {
                break;
            };
            self.complete(&entry, &mut early)?;
        }
        self.early = early;
        self.stirred |= was_full && self.slots.has_room();
        Ok(())
    }

    fn send(&mut self, slot: u16) -> io::Result<()> {
        let message = self.slots.message(slot);
        let entry = opcode::SendMsg::new(SOCKET, message)
            .build()
            .user_data(SEND | (u64::from(slot) << KIND_BITS));
        // SAFETY: a slot keeps its message and all that it points to until it is settled.
        if !unsafe { self.push(&entry)? } {
            self.slots.release(slot);
            self.stats.dropped_out += 1;
        }
        Ok(())
    }
}

/// Options that both receiving and sending rely on. Merged arrivals (`UDP_GRO`) stay off: agents send
/// little at a time, the gain was within noise, and a buffer would have to hold 64 KiB.
fn prepare_socket(socket: &UdpSocket, v6: bool) -> io::Result<()> {
    if v6 {
        rustix::net::sockopt::set_ipv6_recvtclass(socket, true)?;
    }
    // On a v6 socket for v4 peers of a dual-stack one.
    rustix::net::sockopt::set_ip_recvtos(socket, true)?;
    sockopt::receive_packet_info(socket, v6)?;
    sockopt::forbid_fragments(socket, v6)
}

/// Takes a filled buffer apart; `None` for what no shard should see.
fn parse<'a>(
    bytes: &'a [u8],
    header: &libc::msghdr,
) -> Option<(std::net::SocketAddr, Arrival, &'a [u8])> {
    let message = RecvMsgOut::parse(bytes, header).ok()?;
    let remote = decode_name(message.name_data()).filter(|remote| remote.port() != 0)?;
    let arrival = decode_control(message.control_data());
    if message.is_payload_truncated() {
        return None;
    }
    let payload = bytes
        .get(PAYLOAD_AT..)?
        .get(..message.payload_data().len())?;
    (payload.len() <= UDP_PAYLOAD_BYTES_MAX).then_some((remote, arrival, payload))
}

impl Datapath for UringDatapath {
    fn receive(&mut self, out: &mut Vec<Datagram>, limit: usize) -> io::Result<usize> {
        let deferred = {
            let queue = self.ring.submission();
            queue.taskrun() || queue.cq_overflow()
        };
        if deferred && self.ring.completion().is_empty() {
            self.submit()?;
        }
        let mut received = self.early.len();
        out.append(&mut self.early);
        while received < limit {
            let Some(entry) = self.ring.completion().next() else {
                break;
            };
            received += usize::from(self.complete(&entry, out)?);
        }
        self.buffers.publish();
        if !self.receiving {
            self.arm_receive()?;
        }
        Ok(received)
    }

    fn has_room(&self) -> bool {
        self.slots.has_room()
    }

    fn transmit(
        &mut self,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<quinn_proto::Transmit>,
    ) -> io::Result<Sent> {
        if !self.slots.has_room() {
            return Ok(Sent::NoRoom);
        }
        if let Some(slot) = self.slots.fill(fill) {
            self.send(slot)?;
        }
        Ok(Sent::Done)
    }

    fn max_segments(&self) -> usize {
        self.max_segments
    }

    fn discard(&mut self) {
        self.slots.address_nobody();
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.receiving {
            self.arm_receive()?;
        }
        let queue = self.ring.submission();
        let needed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if needed {
            self.submit()?;
            self.settle_sends()?;
        }
        Ok(())
    }

    fn stats(&self) -> DatapathStats {
        DatapathStats {
            kernel_dropped_in: sockopt::kernel_drops(&*self.socket),
            ..self.stats
        }
    }
}

impl Drop for UringDatapath {
    fn drop(&mut self) {
        // Nothing of ours may be in the kernel's hands when the memory goes, and the socket's
        // address must be free when the gateway is gone; closing the ring alone leaves both to a
        // kernel thread, later. An error means that there was nothing to cancel or take back.
        let submitter = self.ring.submitter();
        let cancelled = submitter.register_sync_cancel(None, CancelBuilder::any());
        let entered = submitter.submit();
        let taken_back = submitter.unregister_files();
        tracing::trace!(
            ?cancelled,
            ?entered,
            ?taken_back,
            "the datapath's ring is closed"
        );
    }
}
