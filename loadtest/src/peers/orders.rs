//! How `compare` talks with the processes of a peer: JSON lines on standard input and output.

use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::CONNECTING_MAX;
use super::load::{Load, LoadReport, LoadSpec, Ticker, Ticket};
use crate::clock;

/// Orders that wait. `compare` gives one at a time.
const ORDERS_MAX: usize = 4;
/// Sessions that do not come within this time never will.
const AWAIT_MAX: Duration = Duration::from_secs(120);

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Clients: hold so many sessions, `rate` new ones a second at most. Answered with
    /// [`Answer::Grown`] when all have been tried.
    Grow {
        /// How many in all.
        to: usize,
        /// New ones a second.
        rate: f64,
    },
    /// Servers and commanders: so many clients will come, numbers 0 to this. Answered with
    /// [`Answer::Sessions`].
    Expect {
        /// How many in all.
        sessions: usize,
    },
    /// Servers and commanders: answer [`Answer::Sessions`] when there are so many sessions.
    Await {
        /// How many.
        sessions: usize,
    },
    /// Servers and commanders: send commands; [`Answer::Loaded`] when all are answered.
    Load(LoadSpec),
}

/// What a process says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It takes orders. Servers listen on the address.
    Ready(SocketAddr),
    /// So many sessions are held.
    Sessions(usize),
    /// So many sessions are held, and so many could not be opened.
    Grown {
        /// Held.
        sessions: usize,
        /// Not opened.
        failed: usize,
    },
    /// The load is over.
    Loaded(LoadReport),
    /// The order could not be followed.
    Failed(String),
}

/// The orders of this process, in any runtime.
pub struct Orders(mpsc::Receiver<Order>);

impl Orders {
    /// Reads standard input in a thread of its own. Lines that are no orders end it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn from_stdin() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(ORDERS_MAX);
        let read = move || {
            for line in io::stdin().lock().lines() {
                let order = line.map(|line| serde_json::from_str(&line));
                let Ok(Ok(order)) = order else {
                    tracing::error!(?order, "not an order");
                    return;
                };
                if sender.blocking_send(order).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("orders".into())
            .spawn(read)?;
        Ok(Self(receiver))
    }

    /// The next one; none when the process is to end. Needs no particular runtime.
    pub async fn next(&mut self) -> Option<Order> {
        self.0.recv().await
    }

    /// As [`Orders::next`], for a thread without a runtime.
    pub fn blocking_next(&mut self) -> Option<Order> {
        self.0.blocking_recv()
    }

    /// Answers.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub fn answer(&self, answer: &Answer) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        Ok(out.flush()?)
    }
}

/// The sessions of a server, or what a commander knows of them.
pub trait Held {
    /// How many there are.
    fn count(&self) -> usize;

    /// Clients 0 to this may come from now on: for servers that know their clients by name.
    fn expect(&self, _sessions: usize) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Sends [`super::PAYLOAD_BYTES`] to session number `session` (below the load's `sessions`).
    /// [`Ticket::answered`] when as many have come back. Must not wait: spawn, or queue.
    fn command(&self, session: usize, ticket: Ticket);
}

/// Follows a server's or a commander's orders on tokio until they end.
///
/// # Errors
/// When nobody listens any more.
pub async fn follow_server(
    mut orders: Orders,
    address: SocketAddr,
    held: &impl Held,
) -> anyhow::Result<()> {
    orders.answer(&Answer::Ready(address))?;
    while let Some(order) = orders.next().await {
        let answer = match order {
            Order::Expect { sessions } => {
                held.expect(sessions).await;
                Answer::Sessions(held.count())
            }
            Order::Await { sessions } => match awaited(held, sessions).await {
                Ok(()) => Answer::Sessions(held.count()),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Order::Load(spec) => match run_load(spec, held).await {
                Ok(report) => Answer::Loaded(report),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Order::Grow { .. } => Answer::Failed("a server does not grow".into()),
        };
        orders.answer(&answer)?;
    }
    Ok(())
}

async fn awaited(held: &impl Held, sessions: usize) -> anyhow::Result<()> {
    let begin = clock::now();
    while held.count() < sessions {
        if clock::now() - begin > AWAIT_MAX {
            bail!("{} of {sessions} sessions came", held.count());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn run_load(spec: LoadSpec, held: &impl Held) -> anyhow::Result<LoadReport> {
    if held.count() < spec.sessions {
        bail!("{} of {} sessions are there", held.count(), spec.sessions);
    }
    let mut ticker = Ticker::new().context("no timer")?;
    let mut load = Load::new(spec, clock::now())?;
    while !load.is_over() {
        ticker.tick().await?;
        while let Some((session, ticket)) = load.due(clock::now()) {
            held.command(session, ticket);
        }
    }
    while !load.is_settled(clock::now()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    load.report(clock::now())
}

/// Follows the orders of a client process on tokio until they end: `connect(n)` opens session n and
/// returns what holds it open.
///
/// # Errors
/// When nobody listens any more.
pub async fn follow_clients<S, F>(
    mut orders: Orders,
    server: SocketAddr,
    connect: impl Fn(usize) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<S>>,
{
    orders.answer(&Answer::Ready(server))?;
    let mut held = Vec::new();
    while let Some(order) = orders.next().await {
        let Order::Grow { to, rate } = order else {
            orders.answer(&Answer::Failed("clients only grow".into()))?;
            continue;
        };
        let from = held.len();
        let begin = tokio::time::Instant::now();
        let connect = &connect;
        let mut opening = stream::iter(from..to)
            .map(|n| async move {
                #[expect(clippy::cast_precision_loss, reason = "fleets are small numbers")]
                let after = Duration::from_secs_f64((n - from) as f64 / rate);
                tokio::time::sleep_until(begin + after).await;
                connect(n).await
            })
            .buffer_unordered(CONNECTING_MAX);
        let mut failed = 0;
        while let Some(opened) = opening.next().await {
            match opened {
                Ok(session) => held.push(session),
                Err(error) => {
                    failed += 1;
                    tracing::warn!(%error, "a client could not connect");
                }
            }
        }
        let sessions = held.len();
        drop(opening);
        orders.answer(&Answer::Grown { sessions, failed })?;
    }
    Ok(())
}
