//! The one writer: a task with a connection of its own that commits many jobs at once.
//!
//! ```text
//!   write(job) ─▶ bounded queue ─▶ BEGIN IMMEDIATE
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
use sqlx::Executor as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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
    /// Starts the writer's task on `connection`. It ends after [`Writer::close`], or when the last
    /// `Writer` is dropped, and gives the connection back.
    pub(super) fn start(
        connection: Connection,
        telemetry: Arc<Telemetry>,
    ) -> (Self, JoinHandle<Connection>) {
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let closing = CancellationToken::new();
        let task = tokio::spawn(run(connection, queue, closing.clone(), telemetry));
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
    mut connection: Connection,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    closing: CancellationToken,
    telemetry: Arc<Telemetry>,
) -> Connection {
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
            return connection;
        }
        let jobs = group.len();
        let started = clock::monotonic();
        let result = commit_group(&mut connection, &mut group).await;
        if let Err(error) = &result {
            tracing::error!(%error, jobs, "a commit failed; nothing of it was written");
        }
        telemetry.committed(jobs, started.elapsed(), result.is_ok());
    }
}

/// Runs the jobs in one transaction and answers them. After an error nothing of it was written.
async fn commit_group(
    connection: &mut Connection,
    group: &mut Vec<Box<dyn Job>>,
) -> Result<(), StoreError> {
    if let Err(error) = execute(connection, "BEGIN IMMEDIATE").await {
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
            None if alone => done.push(job.run(connection).await),
            None => broken = isolate(connection, job, &mut done).await.err(),
        }
    }
    let keep = done.iter().any(|job| job.keep);
    let result = finish(connection, keep, broken).await;
    for Done { settle, .. } in done {
        settle(result.clone());
    }
    result
}

/// Runs a job in a savepoint of its own.
///
/// # Errors
/// The transaction is lost (SQLite rolls back by itself when the disk is full, for example): no
/// further statement may run, it would commit by itself.
async fn isolate(
    connection: &mut Connection,
    job: Box<dyn Job>,
    done: &mut Vec<Done>,
) -> Result<(), StoreError> {
    if let Err(error) = execute(connection, "SAVEPOINT job").await {
        job.refuse(error.clone());
        return Err(error);
    }
    let ended = job.run(connection).await;
    let keep = ended.keep;
    done.push(ended);
    if !keep {
        execute(connection, "ROLLBACK TO job").await?;
    }
    execute(connection, "RELEASE job").await
}

async fn finish(
    connection: &mut Connection,
    keep: bool,
    broken: Option<StoreError>,
) -> Result<(), StoreError> {
    let result = match broken {
        Some(error) => Err(error),
        None if keep => execute(connection, "COMMIT").await,
        None => execute(connection, "ROLLBACK").await.or(Ok(())),
    };
    if result.is_err() {
        // Fails where SQLite has rolled back already; either way no transaction is open now.
        drop(execute(connection, "ROLLBACK").await);
    }
    result
}

async fn execute(connection: &mut Connection, sql: &'static str) -> Result<(), StoreError> {
    connection.execute(sql).await?;
    Ok(())
}
