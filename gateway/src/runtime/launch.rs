//! Starts the shards of a gateway, notices when one dies, and stops them in order.
//!
//! ```text
//!   launch: lock file → bind N sockets (the first one exclusively) → steer → N threads
//!             each: pin → datapath → executor → Shard::run ──┐
//!           ◀── ready, or the error that the caller gets ────┘
//!   a shard returns early, fails or panics → all others are told to stop → on_failure
//!   Launched::stop: tell, join shard 0, 1, …, then close the sockets and free the lock
//! ```
//!
//! Everything that can be refused (the lock, the address, io_uring, memory) is refused before
//! [`launch`] returns.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use protocol::ids::ShardId;
use protocol::limits::SHARDS_MAX;

use super::mailbox::{Receiver, Sender, Waker, channel};
use super::{Datapath, DatapathKind, Park, ParkKind};

mod executor;
mod group;
mod lock;
mod probe;

use executor::Seating;
pub use probe::{Machine, Rings, probe};

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
    ) -> io::Result<()>;
}

/// What to launch.
#[derive(Debug, Clone)]
pub(crate) struct LaunchConfig {
    /// The address of all shards. Port 0 lets the kernel choose one.
    pub listen: SocketAddr,
    /// Shards, 1 to [`SHARDS_MAX`].
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

/// Why a gateway did not start. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The number of shards.
    #[error("a gateway has 1 to {SHARDS_MAX} shards, not {0}: set the number of shards in between")]
    Shards(u16),
    /// Another gateway runs on the same lock file.
    #[error(
        "another gateway{} holds {}: stop it first, or give this one a data directory of its own",
        .holder.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        .path.display()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that holds it, as far as it wrote itself down.
        holder: Option<u32>,
    },
    /// The lock file cannot be made.
    #[error("cannot make the lock file {}: {source}; is the directory there and writable?", .path.display())]
    LockFile {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address is taken or not ours.
    #[error(
        "cannot listen on UDP {address}: {source}; choose another address, or stop who uses it"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel takes no steering program.
    #[error("cannot steer packets to shards: {0}; Linux 6.1 or later is needed")]
    Steering(#[source] io::Error),
    /// io_uring was demanded and is not allowed here.
    #[error(
        "this machine refuses io_uring: {0}; allow it (seccomp profile, kernel.io_uring_disabled, \
         locked memory limit), or choose the datapath `auto` or `poll`"
    )]
    UringRefused(#[source] io::Error),
    /// A shard could not set up what it needs.
    #[error("shard {shard} cannot start: {source}")]
    Setup {
        /// Which shard.
        shard: ShardId,
        /// What the system said.
        source: io::Error,
    },
    /// A shard panicked before it was ready.
    #[error("shard {0} died while starting: see the log for its panic")]
    Died(ShardId),
}

/// Why a running gateway stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ShardFailure {
    /// A bug: the thread panicked.
    #[error("shard {0} panicked: see the log")]
    Panicked(ShardId),
    /// The kernel let the shard down, or it returned before it was told to.
    #[error("shard {shard} failed: {source}")]
    Failed {
        /// Which shard.
        shard: ShardId,
        /// What happened.
        source: io::Error,
    },
}

/// Tells shards to stop, and whether they were told.
#[derive(Debug, Clone)]
pub(crate) struct StopFlag {
    set: Arc<AtomicBool>,
    wakers: Arc<[Waker]>,
}

impl StopFlag {
    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        // SeqCst with the store in `set`: whoever wakes by it sees it.
        self.set.load(Ordering::SeqCst)
    }

    /// Tells every shard to stop and ends its park. Answers whether this was the first time.
    pub(crate) fn set(&self) -> bool {
        let first = !self.set.swap(true, Ordering::SeqCst);
        for waker in &*self.wakers {
            waker.wake();
        }
        first
    }
}

/// A running gateway's threads.
pub(crate) struct Launched<M> {
    local_addr: SocketAddr,
    mailboxes: Arc<[Sender<M>]>,
    stop: StopFlag,
    threads: Vec<JoinHandle<io::Result<()>>>,
    // Kept to the end: closing one socket would renumber the others of its group.
    _sockets: Vec<Arc<UdpSocket>>,
    _lock: lock::Lock,
}

impl<M> Launched<M> {
    /// The address of all shards, with the port that the kernel chose.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The mailboxes of all shards, by shard.
    pub(crate) fn mailboxes(&self) -> &Arc<[Sender<M>]> {
        &self.mailboxes
    }

    /// The flag that stops the shards; it is also set when one of them died.
    pub(crate) fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }

    /// Stops the shards and waits for each.
    ///
    /// # Errors
    /// The first failure, by shard, if any shard had not ended well. All have ended either way.
    pub(crate) fn stop(mut self) -> Result<(), ShardFailure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ShardFailure> {
        self.stop.set();
        let mut outcome = Ok(());
        for (index, thread) in self.threads.drain(..).enumerate() {
            let shard = ShardId(u16::try_from(index).unwrap_or(u16::MAX));
            let ended = match thread.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(source)) => Err(ShardFailure::Failed { shard, source }),
                Err(_) => Err(ShardFailure::Panicked(shard)),
            };
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl<M> Drop for Launched<M> {
    fn drop(&mut self) {
        // After `stop` there is nothing left to end.
        if let Err(failure) = self.end() {
            tracing::error!(%failure, "a shard had not ended well");
        }
    }
}

/// Binds, steers and starts. `make` builds each shard; `on_failure` is called, from the thread of
/// the shard, once when one ends without having been told to; the others are then told to stop.
///
/// # Errors
/// [`LaunchError`]; then no thread is left.
pub(crate) fn launch<S: Shard>(
    config: &LaunchConfig,
    make: impl FnMut(ShardId) -> S,
    on_failure: Arc<dyn Fn() + Send + Sync>,
) -> Result<Launched<S::Message>, LaunchError> {
    if !(1..=SHARDS_MAX).contains(&config.shards) {
        return Err(LaunchError::Shards(config.shards));
    }
    let lock = lock::Lock::take(&config.lock_file)?;
    let (sockets, local_addr) = group::bind(config.listen, config.shards)?;
    let wakers = (0..config.shards)
        .map(|_| Waker::new())
        .collect::<io::Result<Vec<_>>>()
        .map_err(|source| LaunchError::Setup {
            shard: ShardId(0),
            source,
        })?;
    let (senders, receivers): (Vec<_>, Vec<_>) = wakers
        .iter()
        .map(|waker| channel(config.mailbox_capacity, waker.clone()))
        .unzip();
    let mut launched = Launched {
        local_addr,
        mailboxes: senders.into(),
        stop: StopFlag {
            set: Arc::default(),
            wakers: wakers.into(),
        },
        threads: Vec::with_capacity(sockets.len()),
        _sockets: sockets,
        _lock: lock,
    };
    // On an error, dropping `launched` stops the shards that did start.
    launched.start(config, make, receivers, on_failure)?;
    Ok(launched)
}

impl<M: Send + 'static> Launched<M> {
    fn start<S: Shard<Message = M>>(
        &mut self,
        config: &LaunchConfig,
        mut make: impl FnMut(ShardId) -> S,
        receivers: Vec<Receiver<M>>,
        on_failure: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(), LaunchError> {
        let cpus = group::cpus(config.pin_threads);
        let fallback_said = Arc::new(AtomicBool::new(false));
        let mut ready = Vec::with_capacity(receivers.len());
        for (index, mailbox) in receivers.into_iter().enumerate() {
            let shard = ShardId(u16::try_from(index).unwrap_or(u16::MAX));
            let (report, started) = sync_channel(1);
            let seating = Seating {
                shard,
                shards: config.shards,
                datapath: config.datapath,
                park: config.park,
                cpu: cpus.get(index % cpus.len().max(1)).copied(),
                socket: Arc::clone(&self._sockets[index]),
                waker: self.stop.wakers[index].clone(),
                mailbox,
                mailboxes: Arc::clone(&self.mailboxes),
                stop: self.stop.clone(),
                fallback_said: Arc::clone(&fallback_said),
            };
            let guard = Guard {
                stop: self.stop.clone(),
                on_failure: Arc::clone(&on_failure),
            };
            let body = make(shard);
            let thread = Builder::new()
                .name(format!("shard-{shard}"))
                .spawn(move || run_guarded(seating, body, report, guard))
                .map_err(|source| LaunchError::Setup { shard, source })?;
            self.threads.push(thread);
            ready.push((shard, started));
        }
        for (shard, started) in ready {
            started.recv().unwrap_or(Err(LaunchError::Died(shard)))?;
        }
        Ok(())
    }
}

type Report = SyncSender<Result<(), LaunchError>>;

/// What follows when a shard ends.
struct Guard {
    stop: StopFlag,
    on_failure: Arc<dyn Fn() + Send + Sync>,
}

/// The life of a shard's thread. A panic is caught only to be passed on after the others know.
fn run_guarded<S: Shard>(
    seating: Seating<S::Message>,
    body: S,
    report: Report,
    guard: Guard,
) -> io::Result<()> {
    let shard = seating.shard;
    let ended = catch_unwind(AssertUnwindSafe(|| seating.run(body, report)));
    if guard.stop.set() {
        tracing::error!(%shard, "a shard ended before its time: stopping the gateway");
        (guard.on_failure)();
    }
    match ended {
        Ok(ended) => ended,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
