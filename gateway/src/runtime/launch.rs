//! Starts the shards of a gateway.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use protocol::ids::ShardId;

use super::mailbox::{Receiver, Sender};
use super::{Datapath, DatapathKind, Park, ParkKind};

/// Everything that a shard is given on its own thread.
pub(crate) struct Seat<D, P, M> {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many there are.
    pub shards: u16,
    /// The shard's socket.
    pub datapath: D,
    /// How it sleeps.
    pub park: P,
    /// Words from other threads.
    pub mailbox: Receiver<M>,
    /// The mailboxes of all shards, by shard; one's own included.
    pub mailboxes: Arc<[Sender<M>]>,
    /// True once the gateway is to stop: `run` then finishes what it wants to and returns. A park
    /// in progress ends when it turns true.
    pub stop: StopFlag,
}

/// What a shard does, once it sits on its thread. The value itself is made by the caller of
/// [`launch`] and sent to the thread.
pub(crate) trait Shard: Send + 'static {
    /// The words of the mailboxes.
    type Message: Send + 'static;

    /// Runs until [`Seat::stop`]. Returning earlier, an error or a panic stops the whole gateway.
    ///
    /// The future may await nothing but the park and, with [`ParkKind::Monoio`], monoio.
    ///
    /// # Errors
    /// Whatever ends the shard before its time.
    async fn run<D: Datapath + 'static, P: Park<D> + 'static>(
        self,
        seat: Seat<D, P, Self::Message>,
    ) -> std::io::Result<()>;
}

/// What to launch.
#[derive(Debug, Clone)]
pub(crate) struct LaunchConfig {
    /// The address of all shards. Port 0 lets the kernel choose one.
    pub listen: SocketAddr,
    /// Shards, 1 to [`protocol::limits::SHARDS_MAX`].
    pub shards: u16,
    /// How datagrams move.
    pub datapath: DatapathKind,
    /// How shards sleep.
    pub park: ParkKind,
    /// Pins shard n to the n-th CPU that this process may use (round robin).
    pub pin_threads: bool,
    /// Held exclusively while the gateway runs, so that no second process joins its sockets.
    pub lock_file: PathBuf,
    /// Words that each mailbox holds.
    pub mailbox_capacity: usize,
}

/// Tells shards to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopFlag(Arc<std::sync::atomic::AtomicBool>);

impl StopFlag {
    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Acquire)
    }
}
