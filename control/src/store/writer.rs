//! The one writer of a process: a task with a connection of its own ([`super::pen`]) that commits many jobs at once.
//!
//! ```text
//!   write(job) ─▶ bounded queue ─▶ BEGIN, and nobody else writes
//!   write(job) ─▶                    SAVEPOINT · job 1 · RELEASE
//!                                    SAVEPOINT · job 2 · ROLLBACK TO   (failed: alone)
//!                                  COMMIT (one fsync)
//!                                  then, and only then, answers 1 … n
//! ```
//!
//! While one group commits, the next one gathers: under load groups grow by themselves, and an idle
//! store answers at once. A job that fails or panics is rolled back alone. It does not retry: a
//! caller whose commit failed knows best whether to.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::pen::Pen;
use super::telemetry::Telemetry;
use super::{Connection, StoreError};
use crate::clock;

/// Jobs that may wait for the writer.
pub(super) const QUEUE_MAX: usize = 1024;
/// Jobs in one commit.
const GROUP_MAX: usize = 128;

/// Where jobs are handed in.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    closing: CancellationToken,
}

impl Writer {
    /// Starts the writer's task with `pen`. It ends after [`Writer::close`], or when the last
    /// `Writer` is dropped, and gives the pen back.
    pub(super) fn start(pen: Pen, telemetry: Arc<Telemetry>) -> (Self, JoinHandle<Pen>) {
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let closing = CancellationToken::new();
        let task = tokio::spawn(run(pen, queue, closing.clone(), telemetry));
        (Self { jobs, closing }, task)
    }

    /// Takes no further job; those handed in are still done.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// Runs `job` within the next commit and returns when that is durable.
    pub(super) async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        self.write_and(job, |_| ()).await
    }

    /// As [`Writer::write`]; `committed` hears of what was written as soon as that is durable, before anybody
    /// else, and in the order of the jobs.
    pub(super) async fn write_and<T, E, F, C>(&self, job: F, committed: C) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        C: FnOnce(&T) + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let pending = Pending {
            job,
            committed,
            answer,
        };
        self.jobs
            .try_send(Box::new(pending))
            .map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(_) => StoreError::Busy,
                mpsc::error::TrySendError::Closed(_) => StoreError::Stopped,
            })?;
        answered
            .await
            .unwrap_or_else(|_| Err(StoreError::Stopped.into()))
    }
}

/// Tells a caller how its job ended, once the commit is known.
type Settle = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A job that has run and waits for the commit.
struct Done {
    /// Its writes belong into the commit.
    keep: bool,
    settle: Settle,
}

trait Job: Send {
    fn run(self: Box<Self>, connection: &mut Connection) -> BoxFuture<'_, Done>;

    /// Answers without having run.
    fn refuse(self: Box<Self>, error: StoreError);
}

struct Pending<T, E, F, C> {
    job: F,
    committed: C,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F, C> Job for Pending<T, E, F, C>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
    F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    C: FnOnce(&T) + Send + 'static,
{
    fn run(self: Box<Self>, connection: &mut Connection) -> BoxFuture<'_, Done> {
        let Self {
            job,
            committed,
            answer,
        } = *self;
        async move {
            let result = AssertUnwindSafe(job(connection))
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(StoreError::JobPanicked.into()));
            Done {
                keep: result.is_ok(),
                // A caller that has gone away no longer wants its answer.
                settle: Box::new(move |commit| {
                    let result = commit.map_err(E::from).and(result);
                    if let Ok(written) = &result {
                        committed(written);
                    }
                    drop(answer.send(result));
                }),
            }
        }
        .boxed()
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        drop(self.answer.send(Err(error.into())));
    }
}

async fn run(
    mut pen: Pen,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    closing: CancellationToken,
    telemetry: Arc<Telemetry>,
) -> Pen {
    let mut group = Vec::with_capacity(GROUP_MAX);
    loop {
        let received = tokio::select! {
            received = queue.recv_many(&mut group, GROUP_MAX) => received,
            () = closing.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        if received == 0 {
            return pen;
        }
        let jobs = group.len();
        let started = clock::monotonic();
        let doubt = pen.doubt();
        // What it takes to write to three kinds of servers is large.
        let committing = Box::pin(commit_group(&mut pen, &mut group));
        let result = refusing_in_doubt(committing, doubt, &mut queue).await;
        if let Err(error) = &result {
            tracing::error!(%error, jobs, "a commit failed; nothing of it was written");
        }
        telemetry.committed(jobs, started.elapsed(), result.is_ok());
    }
}

/// Waits for a commit. While it is found out whether it has happened, which ends when the server is back, whoever
/// comes is told that the server is away, and does not wait.
async fn refusing_in_doubt<T>(
    mut committing: impl Future<Output = T> + Unpin,
    mut doubt: watch::Receiver<bool>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> T {
    loop {
        let doubts = *doubt.borrow_and_update();
        tokio::select! {
            biased;
            done = &mut committing => return done,
            Ok(()) = doubt.changed() => {}
            Some(job) = queue.recv(), if doubts => job.refuse(StoreError::Unreachable),
        }
    }
}

/// Runs the jobs in one transaction and answers them. After an error nothing of it was written.
async fn commit_group(pen: &mut Pen, group: &mut Vec<Box<dyn Job>>) -> Result<(), StoreError> {
    if let Err(error) = pen.begin().await {
        for job in group.drain(..) {
            job.refuse(error.clone());
        }
        return Err(error);
    }
    let alone = group.len() == 1;
    let mut done = Vec::with_capacity(group.len());
    let mut broken = None;
    for job in group.drain(..) {
        match &broken {
            Some(error) => job.refuse(StoreError::clone(error)),
            None if alone => broken = run_job(pen, job, &mut done).await.err(),
            None => broken = isolate(pen, job, &mut done).await.err(),
        }
    }
    let keep = done.iter().any(|job| job.keep);
    let result = finish(pen, keep, broken).await;
    for Done { settle, .. } in done {
        settle(result.clone());
    }
    result
}

/// Runs a job; says whether it wants kept what it has written.
async fn run_job(
    pen: &mut Pen,
    job: Box<dyn Job>,
    done: &mut Vec<Done>,
) -> Result<bool, StoreError> {
    match pen.connection() {
        Ok(connection) => {
            let ended = job.run(connection).await;
            let keep = ended.keep;
            done.push(ended);
            Ok(keep)
        }
        Err(error) => {
            job.refuse(error.clone());
            Err(error)
        }
    }
}

/// Runs a job in a savepoint of its own.
///
/// # Errors
/// The transaction is lost (SQLite rolls back by itself when the disk is full, for example, and the connection
/// to a server may break): no further statement may run, it would commit by itself.
async fn isolate(pen: &mut Pen, job: Box<dyn Job>, done: &mut Vec<Done>) -> Result<(), StoreError> {
    if let Err(error) = pen.savepoint().await {
        job.refuse(error.clone());
        return Err(error);
    }
    let keep = run_job(pen, job, done).await?;
    pen.release(keep).await
}

async fn finish(pen: &mut Pen, keep: bool, broken: Option<StoreError>) -> Result<(), StoreError> {
    match broken {
        None if keep => pen.commit().await,
        None => {
            pen.rollback().await;
            Ok(())
        }
        Some(error) => {
            // Fails where SQLite has rolled back already; either way no transaction is open now.
            pen.rollback().await;
            Err(error)
        }
    }
}
