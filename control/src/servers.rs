//! The process servers of one control plane: one, or several that share a gateway.
//!
//! ```text
//!   start ─▶ serves ─▶ drained, stopped: the end
//!     ▲        │
//!     │        ▼ has ended by itself, or hung and was cut off
//!     └── pause (1 s, longer each time, 30 s at most)
//! ```
//!
//! They share the store and the gateway and nothing else, as on separate machines. The program cannot do
//! without its only one. Of several each may end: the others take over what it had claimed
//! (`store/workers.rs`), the front door leads to those that live, and another one takes its place, under an
//! identity of its own. Each has a keeper, a task that does this.

mod mishaps;
mod news;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::mishaps::Mishaps;
use self::mishaps::{Mishap, Victim};
use crate::clock;
use crate::coordination::{Events, Locks};
use crate::dispatch::{
    self, Company, ENROLMENTS_MAX, Ending, Engine, EnrolmentAsked, StartError, Started,
};
use crate::downlink::{End, Ends, Join};
use crate::store::Store;
use crate::telemetry::metrics::{Family, Kind, Value};

/// A gateway elsewhere that is there answers within this. Without one the rest of the control plane does what it can.
const FIRST_WITHIN: Duration = Duration::from_secs(5);
/// Before another one takes the place of the first that has ended.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Before another one takes the place of one that keeps ending.
const PAUSE_LAST: Duration = Duration::from_secs(30);
/// Whoever has lived so long has not ended for the same reason as the one before.
const LIVED: Duration = Duration::from_secs(60);

/// What the rest of the control plane needs of them.
pub(crate) struct Front {
    /// The front door of all.
    pub(crate) engine: Engine,
    /// Enrolments that the gateway passes on.
    pub(crate) enrolments: mpsc::Receiver<EnrolmentAsked>,
    /// Changes after every batch, of any of them, that may have recorded events.
    pub(crate) recorded: watch::Receiver<u64>,
    /// Each ends when its process servers have drained or stopped; before, only where none lives and none can
    /// be started.
    pub(crate) keepers: Vec<JoinHandle<()>>,
}

/// What ends them, and what is known of them.
pub(crate) struct Servers {
    ending: Ending,
    pub(crate) deaths: Arc<Deaths>,
    pub(crate) mishaps: Mishaps,
    _news: DropGuard,
}

/// What makes servers hear of each other sooner than by the store.
#[derive(Clone, Default)]
pub(crate) struct Services {
    /// Tells at once that one is gone; `None`: nothing is quicker than heartbeats.
    pub(crate) locks: Option<Arc<dyn Locks>>,
    /// Tells other processes that something was written; `None`: there are none.
    pub(crate) events: Option<Arc<dyn Events>>,
    /// Nobody here is a process server: they keep the API's read model, and pass its orders on.
    pub(crate) observe: bool,
}

/// How many have ended by themselves.
#[derive(Default)]
pub(crate) struct Deaths {
    ended: AtomicU64,
    cut_off: AtomicU64,
}

impl Deaths {
    /// The figures for `/metrics`.
    pub(crate) fn family(&self) -> Family {
        let family = Family::new(
            Kind::Counter,
            "drover_process_server_deaths_total",
            "Process servers that ended by themselves, or hung and were cut off.",
        );
        [("ended", &self.ended), ("cut_off", &self.cut_off)]
            .into_iter()
            .fold(family, |family, (how, count)| {
                let count = Value::Number(count.load(Ordering::Relaxed));
                family.with(vec![("how", how.to_owned())], count)
            })
    }
}

/// What keepers have in common.
#[derive(Clone)]
struct Common {
    store: Store,
    engine: Engine,
    enrolments: mpsc::Sender<EnrolmentAsked>,
    recorded: Arc<watch::Sender<u64>>,
    /// The same, of what those of this process have written.
    written: Arc<watch::Sender<u64>>,
    company: Company,
    ending: Ending,
    deaths: Arc<Deaths>,
}

/// A process server that runs.
struct Life {
    number: u32,
    cut_off: CancellationToken,
    started: Started,
}

/// Looks after a process server, and after those that take its place.
struct Keeper {
    common: Common,
    /// Where another one gets its end; `None`: it is the only one.
    join: Option<Join>,
    victim: Victim,
}

/// How a process server's life is over.
enum Over {
    /// It was told to end.
    InOrder,
    /// It has ended by itself, or was cut off.
    Died,
    /// A test let it crash, which says nothing about the next one.
    Crashed,
    /// The same, and nobody is to follow.
    CrashedForGood,
}

/// Starts them one after the other. Where the gateway is elsewhere and cannot be reached soon, they begin when it can.
///
/// # Errors
/// One did not start: those before it are stopped.
pub(crate) async fn start(
    store: &Store,
    ends: Ends,
    services: Services,
) -> Result<(Front, Servers), StartError> {
    let (first, others, join) = match ends {
        Ends::One(end) => (Some(end), 0, None),
        Ends::Several { servers, join } => {
            let first = timeout(FIRST_WITHIN, join()).await.ok();
            (first, servers.saturating_sub(1), Some(join))
        }
    };
    let (enrolments, enrolment_queue) = mpsc::channel(ENROLMENTS_MAX);
    let (recorded, recorded_watch) = watch::channel(0);
    let (recorded, written) = (Arc::new(recorded), Arc::new(watch::channel(0).0));
    let (nudges, news) = news::start(services.events, written.subscribe(), Arc::clone(&recorded));
    let common = Common {
        store: store.clone(),
        engine: Engine::of_none(store.clone()),
        enrolments,
        recorded,
        written,
        company: Company {
            locks: services.locks,
            nudges,
            observes: services.observe,
        },
        ending: Ending::default(),
        deaths: Arc::default(),
    };
    let lives = match first {
        Some(first) => common.begin_all(first, others, join.as_ref()).await?,
        None => {
            tracing::warn!(
                "no agent server can be reached: what needs one waits until one is there, the rest begins"
            );
            (0..=others).map(|_| None).collect()
        }
    };
    let (mishaps, victims) = Mishaps::of(lives.len());
    let keepers = lives.into_iter().zip(victims).map(|(life, victim)| {
        let keeper = Keeper {
            common: common.clone(),
            join: join.clone(),
            victim,
        };
        tokio::spawn(keeper.keep(life))
    });
    let front = Front {
        keepers: keepers.collect(),
        engine: common.engine,
        enrolments: enrolment_queue,
        recorded: recorded_watch,
    };
    let servers = Servers {
        ending: common.ending,
        deaths: common.deaths,
        mishaps,
        _news: news,
    };
    Ok((front, servers))
}

impl Servers {
    /// Stops all at once; nothing that was accepted is lost.
    pub(crate) fn stop(&self) {
        self.ending.stop.cancel();
    }

    /// Nothing new is claimed; waits until what was heard is durable, `within` at most.
    pub(crate) async fn drain(self, keepers: Vec<JoinHandle<()>>, within: Duration) {
        self.ending.drain.cancel();
        let mut all = futures_util::future::join_all(keepers);
        if timeout(within, &mut all).await.is_err() {
            tracing::warn!(
                "the process server did not come to rest; its queue is left to the next start"
            );
            self.ending.stop.cancel();
            // They end at their next turn.
            drop(all.await);
        }
    }
}

impl Common {
    /// Starts the first, and so many others.
    async fn begin_all(
        &self,
        first: End,
        others: u32,
        join: Option<&Join>,
    ) -> Result<Vec<Option<Life>>, StartError> {
        let mut lives = vec![Some(self.begin(first).await?)];
        for _ in 0..others {
            if let Some(join) = join {
                // It may have gone away since the first: its keeper goes on waiting.
                let Ok(end) = timeout(FIRST_WITHIN, join()).await else {
                    lives.push(None);
                    continue;
                };
                let life = self.begin(end).await;
                lives.push(Some(life.inspect_err(|_| self.ending.stop.cancel())?));
            }
        }
        Ok(lives)
    }

    /// Starts one, and opens its door.
    async fn begin(&self, end: End) -> Result<Life, StartError> {
        let (number, cut_off) = (end.server.0, end.link.cut_off());
        let mut started = {
            let company = self.company.clone();
            dispatch::start_under(self.store.clone(), end, company, &self.ending).await?
        };
        self.engine.open(&started.engine);
        if let Err(error) = started.catch_up().await {
            self.engine.close(started.worker);
            started.stop.cancel();
            return Err(error.into());
        }
        let unasked = mpsc::channel(1).1;
        let bells = [self.recorded.clone(), self.written.clone()];
        let mut asked = std::mem::replace(&mut started.enrolments, unasked);
        let (enrolments, mut recorded) = (self.enrolments.clone(), started.recorded.clone());
        // Both end with it.
        tokio::spawn(async move {
            while let Some(asked) = asked.recv().await {
                if enrolments.send(asked).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while recorded.changed().await.is_ok() {
                for bell in &bells {
                    bell.send_modify(|batches| *batches += 1);
                }
            }
        });
        Ok(Life {
            number,
            cut_off,
            started,
        })
    }

    fn is_ending(&self) -> bool {
        self.ending.drain.is_cancelled() || self.ending.stop.is_cancelled()
    }

    /// Waits until it is time to end.
    async fn ending(&self) {
        tokio::select! {
            () = self.ending.drain.cancelled() => {}
            () = self.ending.stop.cancelled() => {}
        }
    }
}

impl Keeper {
    /// `begun`: the first, where it could be started with the others.
    async fn keep(mut self, begun: Option<Life>) {
        let mut pause = match begun {
            Some(_) => PAUSE_FIRST,
            None => Duration::ZERO,
        };
        let mut next = begun;
        loop {
            let mut life = match (next.take(), &self.join) {
                (Some(life), _) => life,
                (None, Some(join)) => match self.follow(join, &mut pause).await {
                    Some(life) => life,
                    None => return,
                },
                (None, None) => return,
            };
            let began = clock::monotonic();
            let over = self.live(&mut life).await;
            self.common.engine.close(life.started.worker);
            let lived = clock::monotonic().saturating_duration_since(began);
            match over {
                Over::InOrder => return,
                Over::CrashedForGood => return self.common.ending().await,
                Over::Died if lived < LIVED => {}
                Over::Died | Over::Crashed => pause = PAUSE_FIRST,
            }
            if self.join.is_some() {
                self.bury(life);
            }
        }
    }

    /// Waits until a process server's life is over.
    async fn live(&mut self, life: &mut Life) -> Over {
        let mut died = Over::Died;
        self.victim.lives(true);
        let ended = loop {
            tokio::select! {
                ended = &mut life.started.task => break Some(ended),
                () = life.cut_off.cancelled() => break None,
                mishap = self.victim.suffers() => {
                    died = match mishap {
                        Mishap::Hang(time) => {
                            life.started.hang.send_replace(time);
                            continue;
                        }
                        Mishap::Crash => Over::Crashed,
                        Mishap::CrashForGood => Over::CrashedForGood,
                    };
                    life.started.task.abort();
                }
            }
        };
        self.victim.lives(false);
        let number = life.number;
        let count = match ended {
            Some(Ok(())) if self.common.is_ending() => return Over::InOrder,
            Some(Ok(())) => {
                tracing::error!(number, "a process server has ended by itself");
                &self.common.deaths.ended
            }
            Some(Err(error)) => {
                tracing::error!(number, %error, "a process server has failed");
                &self.common.deaths.ended
            }
            // The gateway's side has said so.
            None => &self.common.deaths.cut_off,
        };
        count.fetch_add(1, Ordering::Relaxed);
        died
    }

    /// Tells the store, once nothing of it goes on, so that the others need not wait until its beat is missed.
    /// One that hangs may take as long as it likes.
    fn bury(&self, life: Life) {
        if self.common.company.observes {
            life.started.task.abort();
            return;
        }
        let (store, number) = (self.common.store.clone(), life.number);
        let Started { task, worker, .. } = life.started;
        task.abort();
        tokio::spawn(async move {
            if !task.is_finished() {
                drop(task.await);
            }
            if let Err(error) = store.end_worker(worker, clock::now()).await {
                tracing::warn!(number, %error, "a process server's end was not written; the others will miss it");
            }
        });
    }

    /// Starts another one; `None`: it is time to end, or none lives and none can be started.
    async fn follow(&self, join: &Join, pause: &mut Duration) -> Option<Life> {
        loop {
            let begin = async {
                tokio::time::sleep(*pause).await;
                self.common.begin(join().await).await
            };
            let begun = tokio::select! {
                begun = begin => begun,
                () = self.common.ending() => return None,
            };
            *pause = (*pause * 2).clamp(PAUSE_FIRST, PAUSE_LAST);
            match begun {
                Ok(life) => {
                    tracing::info!(number = life.number, "a process server has taken its place");
                    return Some(life);
                }
                Err(error) if self.common.engine.is_closed() => {
                    tracing::error!(%error, "no process server lives, and none can be started");
                    return None;
                }
                Err(error) => tracing::error!(%error, "no process server could take its place yet"),
            }
        }
    }
}
