//! A shard's thread: its CPU, its datapath, its executor.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use protocol::ids::ShardId;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::super::mailbox::{Receiver, Sender, Waker};
use super::super::park::{DirectPark, MonoioPark, MonoioPollPark};
use super::super::poll::PollDatapath;
use super::super::ring::{UringDatapath, is_refusal};
use super::super::{Datapath, DatapathKind, Park, ParkKind};
use super::{LaunchError, Report, Seat, Shard, StopFlag};

/// Operations in monoio's own ring: it carries one read of an eventfd at a time.
const MONOIO_ENTRIES: u32 = 256;

/// What a shard's thread needs to become a [`Seat`].
pub(super) struct Seating<M> {
    pub shard: ShardId,
    pub shards: u16,
    pub datapath: DatapathKind,
    pub park: ParkKind,
    pub cpu: Option<usize>,
    pub socket: Arc<UdpSocket>,
    pub waker: Waker,
    pub mailbox: Receiver<M>,
    pub mailboxes: Arc<[Sender<M>]>,
    pub stop: StopFlag,
    /// That io_uring was refused is said by the first shard that finds out.
    pub fallback_said: Arc<AtomicBool>,
}

pub(super) type MonoioUring = monoio::Runtime<IoUringDriver>;

/// The datapath and, for a shard that parks on monoio, its executor.
enum Chosen {
    Uring(Box<UringDatapath>, Option<MonoioUring>),
    Poll(Box<PollDatapath>),
}

impl<M: Send + 'static> Seating<M> {
    /// Sets up, reports, and runs `body` to its end.
    pub(super) fn run<S: Shard<Message = M>>(self, body: S, report: Report) -> io::Result<()> {
        let shard = self.shard;
        self.pin();
        let reporter = Reporter {
            shard,
            report,
            stop: self.stop.clone(),
        };
        match self.choose() {
            Err(error) => reporter.failed(error),
            Ok(Chosen::Uring(datapath, Some(runtime))) => {
                self.on_monoio(runtime, body, reporter, *datapath, MonoioPark::new)
            }
            Ok(Chosen::Uring(datapath, None)) => {
                reporter.ready();
                block_on(body.run(self.seat(*datapath, DirectPark)))
            }
            Ok(Chosen::Poll(datapath)) if self.park == ParkKind::Direct => {
                reporter.ready();
                block_on(body.run(self.seat(*datapath, DirectPark)))
            }
            Ok(Chosen::Poll(datapath)) => {
                match RuntimeBuilder::<LegacyDriver>::new()
                    .with_entries(MONOIO_ENTRIES)
                    .build()
                {
                    Ok(runtime) => {
                        let park =
                            |datapath: &mut PollDatapath, _: &Waker| MonoioPollPark::new(datapath);
                        self.on_monoio(runtime, body, reporter, *datapath, park)
                    }
                    Err(source) => reporter.failed(LaunchError::Setup { shard, source }),
                }
            }
        }
    }

    fn pin(&self) {
        let Some(cpu) = self.cpu else { return };
        let mut set = CpuSet::new();
        set.set(cpu);
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::warn!(shard = %self.shard, cpu, %error, "cannot pin the shard to its CPU");
        }
    }

    /// io_uring for both the datapath and monoio, or for neither: who refuses one refuses both.
    fn choose(&self) -> Result<Chosen, LaunchError> {
        let shard = self.shard;
        let mut fallback = false;
        if self.datapath != DatapathKind::Poll {
            match self.uring() {
                Ok(chosen) => return Ok(chosen),
                Err(source) if !is_refusal(&source) => {
                    return Err(LaunchError::Setup { shard, source });
                }
                Err(source) if self.datapath == DatapathKind::Uring => {
                    return Err(LaunchError::UringRefused(source));
                }
                Err(error) => {
                    fallback = true;
                    if !self.fallback_said.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            %error,
                            "this machine refuses io_uring: using the slower poll datapath; to use \
                             io_uring allow it in the container's seccomp profile and in \
                             kernel.io_uring_disabled, and raise the locked memory limit"
                        );
                    }
                }
            }
        }
        PollDatapath::new(Arc::clone(&self.socket), self.waker.clone(), fallback)
            .map(|datapath| Chosen::Poll(Box::new(datapath)))
            .map_err(|source| LaunchError::Setup { shard, source })
    }

    fn uring(&self) -> io::Result<Chosen> {
        let (datapath, runtime) = rings(Arc::clone(&self.socket), self.waker.clone(), self.park)?;
        Ok(Chosen::Uring(Box::new(datapath), runtime))
    }

    fn seat<D, P>(self, datapath: D, park: P) -> Seat<D, P, M> {
        Seat {
            shard: self.shard,
            shards: self.shards,
            datapath,
            park,
            mailbox: self.mailbox,
            mailboxes: self.mailboxes,
            stop: self.stop,
        }
    }

    /// Runs `body` as a task of `runtime`: only a task of monoio's can let others run.
    fn on_monoio<S, D, P>(
        self,
        mut runtime: monoio::Runtime<impl monoio::Driver>,
        body: S,
        reporter: Reporter,
        mut datapath: D,
        park: impl FnOnce(&mut D, &Waker) -> io::Result<P>,
    ) -> io::Result<()>
    where
        S: Shard<Message = M>,
        D: Datapath + 'static,
        P: Park<D> + 'static,
    {
        runtime.block_on(async move {
            match park(&mut datapath, &self.waker) {
                Ok(park) => {
                    reporter.ready();
                    monoio::spawn(body.run(self.seat(datapath, park))).await
                }
                Err(source) => {
                    let shard = reporter.shard;
                    reporter.failed(LaunchError::Setup { shard, source })
                }
            }
        })
    }
}

/// The datapath's ring and, for a shard that parks on monoio, the executor's.
///
/// # Errors
/// [`is_refusal`] tells those of a machine that has no io_uring for us.
pub(super) fn rings(
    socket: Arc<UdpSocket>,
    waker: Waker,
    park: ParkKind,
) -> io::Result<(UringDatapath, Option<MonoioUring>)> {
    let datapath = UringDatapath::new(socket, waker)?;
    let runtime = match park {
        ParkKind::Direct => None,
        ParkKind::Monoio => Some(
            RuntimeBuilder::<IoUringDriver>::new()
                .with_entries(MONOIO_ENTRIES)
                .build()?,
        ),
    };
    Ok((datapath, runtime))
}

/// Tells the launcher how the set-up went.
struct Reporter {
    shard: ShardId,
    report: Report,
    stop: StopFlag,
}

impl Reporter {
    fn ready(self) {
        self.say(Ok(()));
    }

    /// The launcher gets the error; the thread, and with it every other, ends quietly.
    fn failed(self, error: LaunchError) -> io::Result<()> {
        self.stop.set();
        self.say(Err(error));
        Ok(())
    }

    fn say(self, outcome: Result<(), LaunchError>) {
        if self.report.send(outcome).is_err() {
            tracing::debug!(shard = %self.shard, "nobody waits for this shard any more");
        }
    }
}

/// Drives a future that blocks inside its own polls: [`DirectPark`] is its only await.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(std::task::Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        // Someone awaited what cannot wake this thread; going round is all that can be done.
        std::thread::yield_now();
    }
}
