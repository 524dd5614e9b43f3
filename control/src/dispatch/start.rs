//! Starts the process server: takes the groups, finds out what was on its way, tells the gateway.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use protocol::ids::AgentId;
use protocol::link::Request;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::core::{Core, Moment, Recovered};
use super::doors::{Door, Doors};
use super::driver::{Driver, LINK_RETRY};
use super::handle::{COMMANDS_MAX, ENROLMENTS_MAX, Engine, EngineError, EnrolmentAsked};
use super::telemetry::Telemetry;
use crate::clock;
use crate::coordination::{Locks, Presence};
use crate::downlink::{End, Link, LinkFull};
use crate::store::agents::Admission;
use crate::store::groups::Group;
use crate::store::workers::Looked;
use crate::store::{Store, StoreError};

/// A gateway that takes nothing for so long does not work.
const LINK_PATIENCE: Duration = Duration::from_secs(60);

/// What the locks of process servers are called.
const KIND: &str = "process-server";

/// Why a process server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The gateway takes nothing.
    #[error("the gateway has taken no request for {} s; is it running?", LINK_PATIENCE.as_secs())]
    Gateway,
    /// It was started, and has not heard of all changes since.
    #[error("a process server could not be told which agents came or went while it started: {0}")]
    Behind(#[from] EngineError),
}

/// A process server that runs.
pub struct Started {
    /// Its front door.
    pub engine: Engine,
    /// Enrolments that gateways pass on.
    pub enrolments: mpsc::Receiver<EnrolmentAsked>,
    /// Changes after every batch that may have recorded events.
    pub recorded: watch::Receiver<u64>,
    /// Ends when it has stopped; with an error if it panicked.
    pub task: JoinHandle<()>,
    /// Cancel it to drain: no further claims; the task ends when everything heard is durable.
    pub drain: CancellationToken,
    /// Cancel it to stop at once; nothing that was accepted is lost.
    pub stop: CancellationToken,
    /// Who it is to the store.
    pub(crate) worker: Uuid,
    /// For tests: it stands still for what is sent, as if it hung.
    pub(crate) hang: watch::Sender<Duration>,
    /// Who may come in, as it knows.
    admitted: BTreeMap<AgentId, Admission>,
}

impl Started {
    /// Tells it who has come and gone since it began to start: before its door was open, nobody could. What was
    /// read may be older than what it has been told meanwhile, so it is read again until nothing has changed.
    ///
    /// # Errors
    /// The store failed, or too many came at once: it does not know some of them.
    pub(crate) async fn catch_up(&mut self) -> Result<(), EngineError> {
        let engine = &self.engine;
        let mut told = std::mem::take(&mut self.admitted);
        loop {
            let read = by_agent(engine.store.admissions().await?);
            if read == told {
                return Ok(());
            }
            for agent in told.keys().filter(|agent| !read.contains_key(agent)) {
                engine.revoke_agent(*agent)?;
            }
            for (agent, now) in &read {
                if told.get(agent) != Some(now) {
                    engine.admit_agent(now.target, now.keys.clone())?;
                }
            }
            told = read;
        }
    }
}

/// How a process server hears of others sooner than the store tells it; by default it does not.
#[derive(Clone)]
pub struct Company {
    /// Each holds a lock while it lives: the others hear at once that it is free.
    pub locks: Option<Arc<dyn Locks>>,
    /// Changes when another process has written something: then the store is looked at.
    pub nudges: watch::Receiver<u64>,
    /// It only looks, and passes orders on: it claims nothing, beats for nobody, and looks after no timer.
    pub observes: bool,
}

impl Default for Company {
    fn default() -> Self {
        Self {
            locks: None,
            nudges: watch::channel(0).1,
            observes: false,
        }
    }
}

/// How a process server is told to end; see [`Started`].
#[derive(Clone, Default)]
pub(crate) struct Ending {
    pub(crate) drain: CancellationToken,
    pub(crate) stop: CancellationToken,
}

impl Ending {
    /// Of one that ends with the others, or alone.
    fn child(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            stop: self.stop.child_token(),
        }
    }
}

/// Starts a process server on the store and the gateway.
///
/// Before it returns, the gateway owns every group (epoch + 1 where another run of a gateway owned it) and
/// knows every agent, and every operation that was on its way when the last server stopped is `unknown`,
/// to be asked for when its agent is back.
///
/// May be called several times with one store, each time with an end of its own of the gateway: the servers
/// share what is ready, and follow each other when one ends (`store/workers.rs`).
///
/// # Errors
/// [`StartError`]; calling again is harmless.
pub async fn start(store: Store, end: End) -> Result<Started, StartError> {
    start_among(store, end, Company::default()).await
}

/// The same for one that hears of others by more than the store.
///
/// # Errors
/// As [`start`].
pub async fn start_among(store: Store, end: End, company: Company) -> Result<Started, StartError> {
    start_under(store, end, company, &Ending::default()).await
}

/// The same for one that ends with others.
pub(crate) async fn start_under(
    store: Store,
    end: End,
    company: Company,
    all: &Ending,
) -> Result<Started, StartError> {
    let worker = Uuid::new_v4();
    let link = &end.link;
    store.ensure_automatic_groups(clock::now()).await?;
    let (groups, active) = match company.observes {
        true => (learn_owners(&store, &**link).await?, Vec::new()),
        false => {
            let groups = groups(&store, &**link).await?;
            store.begin_worker(worker, clock::now()).await?;
            (groups, store.leases(worker).await?)
        }
    };
    // Agents first: a group without its agents would turn them away as strangers.
    let admitted = admit(&store, &**link).await?;
    let works = !company.observes;
    let recovered = Recovered {
        targets: admitted.values().map(|one| one.target).collect(),
        waiting: store.waiting_by_state().await?,
        ready: store.ready_counts().await?,
        pauses: store.pauses().await?,
        limits: store.limits().await?,
        active,
        resources: match works {
            true => store.free_resources().await?,
            false => Vec::new(),
        },
        abandoned: match works {
            true => store.revoked_with_work().await?,
            false => Vec::new(),
        },
    };
    // Limits as well: nothing is granted that they do not permit. And what may be under way counts against
    // them from the first report of a home on, which is after the first group.
    let limits = recovered.limits.on_the_wire();
    let counts = !limits.is_empty();
    tell(&**link, Request::SetLimits { limits }).await?;
    let now = Moment {
        mono: clock::monotonic(),
        wall: clock::now(),
    };
    let mut core = Core::new(now, (end.server, worker), recovered);
    match (company.observes, &company.locks) {
        (true, _) => core.observe(),
        (false, Some(_)) => core.be_watched(),
        (false, None) => {}
    }
    for charge in core.charges().into_iter().filter(|_| counts) {
        tell(&**link, charge).await?;
    }
    for group in &groups {
        tell(
            &**link,
            Request::AssignGroup {
                group: group.id,
                slot: group.slot,
                epoch: group.epoch,
            },
        )
        .await?;
    }
    let mut started = spawn(store, end, (worker, core), company, all.child());
    started.admitted = admitted;
    Ok(started)
}

/// Tells a gateway that is there anew what it must know before anybody hears it: what is limited, and who may come
/// in. Which groups are whose it is told with all others.
///
/// # Errors
/// [`StartError`]; calling again is harmless.
pub(crate) async fn introduce(store: &Store, link: &dyn Link) -> Result<(), StartError> {
    let limits = store.limits().await?.on_the_wire();
    tell(link, Request::SetLimits { limits }).await?;
    admit(store, link).await?;
    Ok(())
}

/// All groups, with the epochs of their owners.
async fn groups(store: &Store, link: &dyn Link) -> Result<Vec<Group>, StoreError> {
    let Some(several) = link.several() else {
        return store.take_groups(link.gateway().0).await;
    };
    let placed = several.settle(store).await?.into_iter();
    Ok(placed.map(|placed| placed.group).collect())
}

/// Hears from the store who owns which group, so that requests find their way. Nobody is told of any.
async fn learn_owners(store: &Store, link: &dyn Link) -> Result<Vec<Group>, StoreError> {
    if let Some(several) = link.several() {
        several.learn(store).await?;
    }
    Ok(Vec::new())
}

/// Tells the gateway who may come in. A change meanwhile is told at once by whom it was asked of, and what was
/// read before it must not be the last word: so it is read again until nothing has changed.
async fn admit(store: &Store, link: &dyn Link) -> Result<BTreeMap<AgentId, Admission>, StartError> {
    let mut told: BTreeMap<AgentId, Admission> = BTreeMap::new();
    loop {
        let read = by_agent(store.admissions().await?);
        if read == told {
            return Ok(read);
        }
        for agent in told.keys().filter(|agent| !read.contains_key(agent)) {
            tell(link, Request::RevokeAgent { agent: *agent }).await?;
        }
        for (agent, now) in &read {
            if told.get(agent) != Some(now) {
                let (target, keys) = (now.target, now.keys.clone());
                tell(link, Request::AdmitAgent { target, keys }).await?;
            }
        }
        told = read;
    }
}

fn by_agent(admissions: Vec<Admission>) -> BTreeMap<AgentId, Admission> {
    let admissions = admissions.into_iter();
    admissions.map(|one| (one.target.agent, one)).collect()
}

fn spawn(
    store: Store,
    end: End,
    (worker, core): (Uuid, Core),
    company: Company,
    ending: Ending,
) -> Started {
    let locks = company.locks.filter(|_| !company.observes);
    let presence = locks.map(|locks| Presence::start(locks, KIND, worker));
    let owner = end.link.gateway().0;
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (enrolments, enrolment_queue) = mpsc::channel(ENROLMENTS_MAX);
    let (recorded, recorded_watch) = watch::channel(0);
    let telemetry = Arc::new(Telemetry::new());
    let (hang, hangs) = watch::channel(Duration::ZERO);
    let Ending { drain, stop } = ending;
    let driver = Driver {
        core,
        store: store.clone(),
        worker,
        looked: Looked::default(),
        seen: None,
        timers: store.timers(),
        link: end.link,
        wake: end.wake,
        commands: command_queue,
        enrolments,
        telemetry: Arc::clone(&telemetry),
        recorded,
        presence,
        nudges: company.nudges,
        observes: company.observes,
        drain: drain.clone(),
        stop: stop.clone(),
    };
    let doors = Doors::default();
    doors.open(Door {
        worker,
        owner,
        commands,
        telemetry,
    });
    Started {
        engine: Engine {
            doors: Arc::new(doors),
            store,
            met: Arc::default(),
        },
        enrolments: enrolment_queue,
        recorded: recorded_watch,
        task: tokio::spawn(hanging(driver.run(), hangs)),
        drain,
        stop,
        worker,
        hang,
        admitted: BTreeMap::new(),
    }
}

/// Runs it, and stands still while it is to hang: nothing of it goes on, as where it waits for something that
/// never comes.
async fn hanging(run: impl Future<Output = ()>, mut hangs: watch::Receiver<Duration>) {
    let mut run = pin!(run);
    loop {
        tokio::select! {
            () = &mut run => return,
            Ok(()) = hangs.changed() => {
                let time = *hangs.borrow_and_update();
                tokio::time::sleep(time).await;
            }
        }
    }
}

async fn tell(link: &dyn Link, mut request: Request) -> Result<(), StartError> {
    let patience = clock::monotonic() + LINK_PATIENCE;
    while let Err(LinkFull(refused)) = link.send(request) {
        if clock::monotonic() >= patience {
            return Err(StartError::Gateway);
        }
        request = *refused;
        tokio::time::sleep(LINK_RETRY).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard};

    use protocol::ids::{GatewayId, ServerId};
    use protocol::link::{Event, Target};

    use super::*;
    use crate::clock::UnixMs;
    use crate::downlink::Wake;
    use crate::store::processes::{Creation, NewProcess};
    use crate::store::tests::enrol;

    /// A gateway that has no room after the first request until it is told.
    #[derive(Default)]
    struct Narrow {
        sent: Mutex<Vec<Request>>,
        open: CancellationToken,
    }

    impl Narrow {
        fn sent(&self) -> MutexGuard<'_, Vec<Request>> {
            self.sent.lock().unwrap()
        }
    }

    impl Link for Narrow {
        fn gateway(&self) -> GatewayId {
            GatewayId(Uuid::nil())
        }

        fn send(&self, request: Request) -> Result<(), LinkFull> {
            let mut sent = self.sent();
            if !sent.is_empty() && !self.open.is_cancelled() {
                return Err(LinkFull(Box::new(request)));
            }
            sent.push(request);
            Ok(())
        }

        fn receive(&self, _: &mut Vec<Event>, _: usize) -> usize {
            0
        }
    }

    #[tokio::test]
    async fn an_agent_that_is_revoked_while_a_server_starts_is_not_let_in_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open("sqlite:", directory.path()).await.unwrap();
        store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
        let (first, second) = (enrol(&store, 1).await, enrol(&store, 2).await);
        let link = Narrow::default();
        let meanwhile = async {
            while link.sent().is_empty() {
                tokio::task::yield_now().await;
            }
            let revoked = store.revoke_agent(first.agent, "ann".to_owned(), UnixMs(3));
            revoked.await.unwrap();
            link.open.cancel();
        };
        let (targets, ()) = tokio::join!(admit(&store, &link), meanwhile);
        let targets: Vec<_> = targets
            .unwrap()
            .into_values()
            .map(|one| one.target)
            .collect();
        assert_eq!(targets, [second]);
        let said: Vec<_> = link
            .sent()
            .iter()
            .map(|request| match request {
                Request::AdmitAgent { target, .. } => (target.agent, true),
                Request::RevokeAgent { agent } => (*agent, false),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = [(first, true), (second, true), (first, false)];
        assert_eq!(
            said,
            expected.map(|(target, lets_in)| (target.agent, lets_in))
        );
    }

    #[tokio::test]
    async fn whoever_comes_or_goes_before_the_door_of_a_server_opens_is_known_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open("sqlite:", directory.path()).await.unwrap();
        store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
        let first = enrol(&store, 1).await;
        let link = Arc::new(Narrow::default());
        link.open.cancel();
        let end = End {
            server: ServerId(1),
            link: Arc::<Narrow>::clone(&link),
            wake: Wake::new(),
        };
        let mut started = start(store.clone(), end).await.unwrap();
        let second = enrol(&store, 2).await;
        let revoked = store.revoke_agent(first.agent, "ann".to_owned(), UnixMs(3));
        revoked.await.unwrap();
        let create = async |engine: &Engine| {
            let of = |target: Target| NewProcess::of_driver(target.agent, "exec", "{}", UnixMs(9));
            let made = engine.create(vec![of(first), of(second)]).await.unwrap();
            let known = |creation| !matches!(creation, Creation::UnknownAgent);
            made.into_iter().map(known).collect::<Vec<_>>()
        };
        assert_eq!(create(&started.engine).await, [true, false]);
        started.catch_up().await.unwrap();
        assert_eq!(create(&started.engine).await, [false, true]);
        started.stop.cancel();
    }
}
