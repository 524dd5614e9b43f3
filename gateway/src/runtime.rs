//! The gateway's runtime: one pinned thread per shard, and on it everything that touches the
//! kernel, the clock or another thread, so that nothing above this module does.
//!
//! ```text
//!   launch ── binds N sockets of one reuseport group, locks, steers, starts N threads
//!     │
//!     ▼            one shard thread
//!   ┌──────────────────────────────────────────────────────────┐
//!   │  Datapath   datagrams in and out (io_uring ring, or poll) │
//!   │  Park       sleeps until packets, a wake or a deadline    │
//!   │  Wheel      one timer entry a session                     │
//!   │  mailbox    bounded words from other threads              │
//!   └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A shard's turn is: `park` → `receive` → (its own work) → `transmit`… → `flush`. The two datapaths
//! and the two ways to park are chosen at the start ([`DatapathKind`], [`ParkKind`]); the shard is
//! generic over them and cannot tell which it has.
//!
//! This module knows nothing of QUIC beyond quinn-proto's `Transmit` and the first bytes of a
//! packet (`steering`), and nothing at all of sessions.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::EcnCodepoint;

mod arena;
pub(crate) mod clock;
pub(crate) mod launch;
pub(crate) mod mailbox;
mod park;
mod poll;
mod ring;
pub(crate) mod steering;
pub(crate) mod wheel;

#[cfg(test)]
mod conformance;

/// The longest UDP payload that a datapath takes in, in bytes; a longer datagram is dropped and
/// counted. It is what an Ethernet frame holds (1500 − 20 − 8), and quinn-proto's default.
pub(crate) const UDP_PAYLOAD_BYTES_MAX: usize = 1472;

/// The most datagrams that one transmit may hold, so that one session does not keep others waiting.
pub(crate) const TRAIN_SEGMENTS_MAX: usize = 10;

/// The longest sleep that the kernel is asked for: it refuses absurd ones. Whoever wishes for more
/// wakes once for nothing.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);

/// How datagrams move between a shard and the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DatapathKind {
    /// io_uring where the kernel allows it, else [`Poll`](Self::Poll), said once in the log.
    #[default]
    Auto,
    /// A dedicated io_uring per shard; starting fails where the kernel refuses it.
    Uring,
    /// `recvmmsg` and `sendmsg` on a non-blocking socket.
    Poll,
}

/// How a shard sleeps when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ParkKind {
    /// On monoio, which may run other tasks of the thread meanwhile.
    #[default]
    Monoio,
    /// In the kernel, directly: the shard's own future is all that the thread runs.
    Direct,
}

/// One UDP datagram that has arrived.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// Who sent it. The port is never 0.
    pub remote: SocketAddr,
    /// Which of our addresses it was sent to.
    pub local_ip: Option<IpAddr>,
    /// The congestion mark that it carried.
    pub ecn: Option<EcnCodepoint>,
    /// At most [`UDP_PAYLOAD_BYTES_MAX`] bytes, in memory shared with the datagrams of its batch:
    /// whoever keeps a part of it for long should copy that part.
    pub payload: BytesMut,
}

/// What became of a [`Datapath::transmit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The train is on its way (or `fill` had none, or the kernel refused it, which is counted as
    /// a loss: QUIC sends again).
    Done,
    /// Every transmit slot is in use: nothing was asked of `fill`. Try again after a `receive`.
    NoRoom,
}

/// Counters of one shard's datapath since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatapathStats {
    /// What is in use: never [`DatapathKind::Auto`].
    pub kind: DatapathKind,
    /// io_uring was wished for and refused, so that this is the fallback.
    pub fallback: bool,
    /// Datagrams given to the shard.
    pub datagrams_in: u64,
    /// Their payload bytes.
    pub bytes_in: u64,
    /// Datagrams that arrived but were too long, damaged or from port 0.
    pub dropped_in: u64,
    /// Datagrams that the kernel dropped because the socket's receive buffer was full.
    pub kernel_dropped_in: u64,
    /// Times that the receive buffers ran out and receiving had to be armed again (nothing is lost
    /// by that alone: the socket's own buffer holds what comes meanwhile).
    pub receive_stalls: u64,
    /// Datagrams taken by the kernel for sending.
    pub datagrams_out: u64,
    /// Their payload bytes.
    pub bytes_out: u64,
    /// Datagrams that the kernel refused to send.
    pub dropped_out: u64,
    /// Trains that had to be sent again one by one because segmentation offload failed.
    pub gso_fallbacks: u64,
}

/// The datagrams of one shard's socket. Nothing here blocks.
pub(crate) trait Datapath {
    /// Appends up to `limit` datagrams that have arrived and answers how many. Payloads are copied
    /// out of the receive buffers, trains of segments are already split.
    ///
    /// # Errors
    /// Only those after which the shard cannot go on.
    fn receive(&mut self, out: &mut Vec<Datagram>, limit: usize) -> io::Result<usize>;

    /// Whether a transmit slot is free.
    fn has_room(&self) -> bool;

    /// Sends one train. `fill` is called at most once with an empty buffer, appends at most
    /// [`max_segments`](Self::max_segments) datagrams, all but the last of `segment_size`, and
    /// answers what it wrote, or `None` for nothing.
    ///
    /// # Errors
    /// Only those after which the shard cannot go on; a refused datagram is counted, not reported.
    fn transmit(
        &mut self,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<quinn_proto::Transmit>,
    ) -> io::Result<Sent>;

    /// How many datagrams one train may have: 1 where segmentation offload does not work.
    fn max_segments(&self) -> usize;

    /// Drops what is queued and not submitted yet, as a network might; of what was submitted before and is not done
    /// it may drop some, too. For what must not leave any more.
    fn discard(&mut self);

    /// Submits what is queued; call it once a turn, after the transmits.
    ///
    /// # Errors
    /// Only those after which the shard cannot go on.
    fn flush(&mut self) -> io::Result<()>;

    /// The counters so far. Asks the kernel for its share: not for every turn.
    fn stats(&self) -> DatapathStats;
}

/// Sleeps on behalf of a shard.
pub(crate) trait Park<D: Datapath> {
    /// Returns once the datapath may have something to receive, the shard's mailbox was written, a
    /// transmit slot became free again, or `deadline` is past; sometimes for no reason at all. With
    /// a deadline that is already past it does not sleep, but may let other tasks of the thread run.
    ///
    /// The future must be driven to its end: a wake that it consumed is lost with it.
    ///
    /// # Errors
    /// Only those after which the shard cannot go on.
    async fn park(&mut self, datapath: &mut D, deadline: Option<Instant>) -> io::Result<()>;
}
