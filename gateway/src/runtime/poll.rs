//! The datapath without io_uring: `recvmmsg` and `sendmsg` on a non-blocking socket, through
//! quinn-udp, and one epoll that says when to come back.
//!
//! ```text
//!   epoll ── socket: readable; writable too while a train waits for room
//!         ├─ the mailbox's eventfd
//!         └─ timer: a timerfd, for MonoioPark (DirectPark gives epoll_wait the time instead)
//! ```
//!
//! It exists for machines that refuse io_uring (many container runtimes do) and is slower by little.
//! One train at a time waits here when the kernel's send buffer is full; QUIC keeps the rest.

use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::arena::Arena;
use super::mailbox::Waker;
use super::ring::sockopt;
use super::{
    Datagram, Datapath, DatapathKind, DatapathStats, SLEEP_MAX, Sent, TRAIN_SEGMENTS_MAX,
    UDP_PAYLOAD_BYTES_MAX,
};

/// Bytes of one receive buffer: more than the longest datagram, so that a longer one shows.
const BUFFER_BYTES: usize = 2048;
/// What is written about a train at most: longer needs no more room than this to begin with.
const TRAIN_BYTES: usize = 16 << 10;

const SOCKET: u64 = 0;
const EVENT: u64 = 1;
const TIMER: u64 = 2;

/// See the module.
pub(super) struct PollDatapath {
    socket: Arc<UdpSocket>,
    state: UdpSocketState,
    waker: Waker,
    epoll: OwnedFd,
    timer: OwnedFd,
    deadline: Option<Instant>,
    buffers: Box<[u8]>,
    arena: Arena,
    train: Vec<u8>,
    /// What `train` holds, when the kernel had no room for it.
    waiting: Option<quinn_proto::Transmit>,
    writable_asked: bool,
    max_segments: usize,
    stats: DatapathStats,
}

impl PollDatapath {
    /// # Errors
    /// When the process has no file descriptor left, or the socket takes no options.
    pub(super) fn new(socket: Arc<UdpSocket>, waker: Waker, fallback: bool) -> io::Result<Self> {
        let state = UdpSocketState::new((&*socket).into())?;
        sockopt::forbid_merging(&*socket)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let readable = epoll::EventFlags::IN;
        epoll::add(
            &epoll,
            &*socket,
            epoll::EventData::new_u64(SOCKET),
            readable,
        )?;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(EVENT), readable)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), readable)?;
        let stats = DatapathStats {
            kind: DatapathKind::Poll,
            fallback,
            ..DatapathStats::default()
        };
        Ok(Self {
            max_segments: state.max_gso_segments().clamp(1, TRAIN_SEGMENTS_MAX),
            socket,
            state,
            waker,
            epoll,
            timer,
            deadline: None,
            buffers: vec![0; BATCH_SIZE * BUFFER_BYTES].into_boxed_slice(),
            arena: Arena::default(),
            train: Vec::with_capacity(TRAIN_BYTES),
            waiting: None,
            writable_asked: false,
            stats,
        })
    }

    /// A descriptor that is readable as long as a park should not go on.
    pub(super) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Makes the epoll readable at `deadline`, or earlier: a timer set for an earlier sleep is left
    /// in place rather than moved back.
    pub(super) fn arm_deadline(&mut self, deadline: Instant, now: Instant) -> io::Result<()> {
        if self.deadline.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        // A value of zero would disarm.
        let left = deadline.saturating_duration_since(now);
        let left = left.clamp(Duration::from_nanos(1), SLEEP_MAX);
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Itimerspec {
            it_interval: zero,
            it_value: timespec(left),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        self.deadline = Some(deadline);
        Ok(())
    }

    /// Waits until there is something to do, at most for `limit`, and takes note of it.
    pub(super) fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(whole_milliseconds).map(timespec);
        let nothing = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(SOCKET),
        };
        let mut events = [nothing; 4];
        let count = match epoll::wait(&self.epoll, &mut events, limit.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            match event.data.u64() {
                EVENT => read_count(self.waker.as_fd())?,
                TIMER => {
                    read_count(self.timer.as_fd())?;
                    self.deadline = None;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends the waiting train, if the kernel has room now.
    fn send_waiting(&mut self) -> io::Result<()> {
        if let Some(transmit) = self.waiting.take() {
            self.send(transmit);
        }
        self.ask_writable()
    }

    /// Has the epoll watch for room as long as a train waits for it, and no longer.
    fn ask_writable(&mut self) -> io::Result<()> {
        if self.waiting.is_some() != self.writable_asked {
            let mut interest = epoll::EventFlags::IN;
            interest.set(epoll::EventFlags::OUT, self.waiting.is_some());
            let data = epoll::EventData::new_u64(SOCKET);
            epoll::modify(&self.epoll, &*self.socket, data, interest)?;
            self.writable_asked = self.waiting.is_some();
        }
        Ok(())
    }

    /// Sends `train` as `transmit` says, or lets it wait.
    fn send(&mut self, transmit: quinn_proto::Transmit) {
        let len = transmit.size.min(self.train.len());
        let segment = transmit.segment_size.filter(|segment| *segment < len);
        match self.send_piece(&transmit, 0..len, segment) {
            Ok(()) => self.count_out(len.div_ceil(segment.unwrap_or(len).max(1)), len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.waiting = Some(transmit);
            }
            Err(error) => match (segment, error.raw_os_error()) {
                (Some(segment), Some(libc::EIO | libc::EINVAL)) => {
                    self.send_one_by_one(&transmit, len, segment);
                }
                _ => self.stats.dropped_out += len.div_ceil(segment.unwrap_or(len).max(1)) as u64,
            },
        }
    }

    /// Segmentation offload or the destination is to blame: the datagrams alone will tell.
    fn send_one_by_one(&mut self, transmit: &quinn_proto::Transmit, len: usize, segment: usize) {
        let mut sent = 0;
        for start in (0..len).step_by(segment) {
            let end = len.min(start + segment);
            if self.send_piece(transmit, start..end, None).is_ok() {
                self.count_out(1, end - start);
                sent += 1;
            } else {
                self.stats.dropped_out += 1;
            }
        }
        if sent > 0 {
            self.stats.gso_fallbacks += 1;
            if self.max_segments > 1 {
                self.max_segments = 1;
                tracing::warn!(
                    "segmentation offload does not work on this machine's network device: sending \
                     datagrams one by one"
                );
            }
        }
    }

    fn send_piece(
        &self,
        transmit: &quinn_proto::Transmit,
        piece: std::ops::Range<usize>,
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit
                .ecn
                .and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &self.train[piece],
            segment_size,
            src_ip: transmit.src_ip,
        };
        self.state.try_send((&*self.socket).into(), &transmit)
    }

    fn count_out(&mut self, datagrams: usize, bytes: usize) {
        self.stats.datagrams_out += datagrams as u64;
        self.stats.bytes_out += bytes as u64;
    }

    /// One `recvmmsg` of at most `limit` datagrams; answers how many it took from the socket.
    fn receive_batch(&mut self, out: &mut Vec<Datagram>, limit: usize) -> io::Result<usize> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut chunks = self.buffers.chunks_exact_mut(BUFFER_BYTES);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let socket = (&*self.socket).into();
        let count = match self
            .state
            .recv(socket, &mut slices[..limit], &mut metas[..limit])
        {
            Ok(count) => count,
            Err(error) => return receive_failed(error),
        };
        for (buffer, meta) in self.buffers.chunks_exact(BUFFER_BYTES).zip(&metas[..count]) {
            if meta.len > UDP_PAYLOAD_BYTES_MAX || meta.addr.port() == 0 {
                self.stats.dropped_in += 1;
                continue;
            }
            self.stats.datagrams_in += 1;
            self.stats.bytes_in += meta.len as u64;
            out.push(Datagram {
                remote: meta.addr,
                local_ip: meta.dst_ip,
                ecn: meta
                    .ecn
                    .and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8)),
                payload: self.arena.copy(&buffer[..meta.len]),
            });
        }
        Ok(count)
    }
}

/// Only mistakes of ours end a shard; what the network reports (an unreachable peer) is no news.
fn receive_failed(error: io::Error) -> io::Result<usize> {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EBADF | libc::EFAULT | libc::ENOTSOCK) => Err(error),
        _ => Ok(0),
    }
}

/// Empties an eventfd or timerfd that is known to be readable.
fn read_count(from: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::io::read(from, &mut [0; 8]) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Up: `epoll_wait` knows nothing finer, and would cut.
fn whole_milliseconds(limit: Duration) -> Duration {
    let millis = limit.min(SLEEP_MAX).as_nanos().div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

impl Datapath for PollDatapath {
    fn receive(&mut self, out: &mut Vec<Datagram>, limit: usize) -> io::Result<usize> {
        let before = out.len();
        let mut left = limit;
        while left > 0 {
            let asked = left.min(BATCH_SIZE);
            let taken = self.receive_batch(out, asked)?;
            left -= taken.min(left);
            if taken < asked {
                break;
            }
        }
        Ok(out.len() - before)
    }

    fn has_room(&self) -> bool {
        self.waiting.is_none()
    }

    fn transmit(
        &mut self,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<quinn_proto::Transmit>,
    ) -> io::Result<Sent> {
        if self.waiting.is_some() {
            self.send_waiting()?;
            if self.waiting.is_some() {
                return Ok(Sent::NoRoom);
            }
        }
        self.train.clear();
        if let Some(transmit) = fill(&mut self.train) {
            self.send(transmit);
        }
        Ok(Sent::Done)
    }

    fn max_segments(&self) -> usize {
        self.max_segments
    }

    fn discard(&mut self) {
        // All else has left at once.
        if let Some(transmit) = self.waiting.take() {
            let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
            self.stats.dropped_out += transmit.size.div_ceil(segment) as u64;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_waiting()
    }

    fn stats(&self) -> DatapathStats {
        DatapathStats {
            kernel_dropped_in: sockopt::kernel_drops(&*self.socket),
            ..self.stats
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn ends_a_park(datapath: &PollDatapath) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut epoll = [PollFd::from_borrowed_fd(datapath.epoll(), PollFlags::IN)];
        poll(&mut epoll, Some(&now)).unwrap() == 1
    }

    #[test]
    fn a_train_that_waits_for_room_ends_parks_until_it_has_left() {
        // The loopback device never runs out of room, so the wait is made up.
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut datapath = PollDatapath::new(socket, Waker::new().unwrap(), false).unwrap();
        assert!(!ends_a_park(&datapath) && datapath.has_room());

        datapath.train.extend_from_slice(b"late");
        datapath.waiting = Some(quinn_proto::Transmit {
            destination: other.local_addr().unwrap(),
            ecn: None,
            size: 4,
            segment_size: None,
            src_ip: None,
        });
        assert!(!datapath.has_room());
        datapath.ask_writable().unwrap();
        assert!(ends_a_park(&datapath));

        datapath.flush().unwrap();
        assert!(!ends_a_park(&datapath) && datapath.has_room());
        let mut buffer = [0; 8];
        assert_eq!(other.recv(&mut buffer).unwrap(), 4);
        assert_eq!(datapath.stats().datagrams_out, 1);
    }
}
