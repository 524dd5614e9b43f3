//! The control plane: API server, process server, store and identity.
//!
//! ```text
//!   people, programs ── api ──▶ dispatch (process server) ──▶ downlink ──▶ gateways
//!                        │          │        │ enrolments
//!                        ▼          ▼        ▼
//!                       store ◀──────────── enrol ── identity
//! ```
//!
//! [`start`] puts the parts together. They share the store, and the process server's bounded
//! queues; nothing else. A part that ends by itself is noticed: see [`Control::failed`].

pub mod api;
mod batches;
pub mod clock;
pub mod coordination;
mod dashboard;
pub mod dispatch;
pub mod downlink;
pub mod enrol;
pub mod gateways;
pub mod identity;
pub mod kinds;
pub mod lending;
pub mod limits;
pub mod process;
mod retention;
mod servers;
pub mod store;
pub mod telemetry;
pub mod webhooks;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::api::{AdminServer, ApiConfig, ApiServer, Parts, ReadySource, Served};
use crate::coordination::{CoordinationError, EventsUrl, Locks, LocksUrl};
use crate::dispatch::Engine;
use crate::downlink::Ends;
use crate::enrol::{EnrolConfig, Enroller};
use crate::gateways::Gateways;
use crate::identity::Identity;
use crate::kinds::Kinds;
pub use crate::servers::Mishaps;
use crate::servers::{Deaths, Servers, Services};
use crate::store::Store;
use crate::store::log::Retention;
use crate::telemetry::metrics::{Family, MetricsSource};
use crate::telemetry::{
    GatewaySource, Histograms, Log, LogConfig, Name, Reading, Times, TimesSource,
};
use crate::webhooks::{Webhooks, WebhooksConfig};

/// Which servers of a control plane this program runs: at least one.
///
/// | | API server | process servers |
/// |---|---|---|
/// | engine | observes, where there are no process servers here: orders go to the store, and it claims nothing | claims, dispatches, sweeps, lends |
/// | agent servers | asked what is at hand | told who may come in; leases prolonged, groups given away |
/// | enrolment | | answered |
/// | webhooks | made and tested | delivered |
/// | batches | run | |
/// | old records | | trimmed |
/// | figures, histograms | its own | their own |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Runs {
    /// The API and the dashboard.
    pub api: bool,
    /// Process servers.
    pub processes: bool,
}

/// What a control plane is told.
pub struct Config {
    /// Which of its servers are here.
    pub runs: Runs,
    /// Where the first admin token is written.
    pub data_dir: PathBuf,
    /// How the API listens.
    pub api: ApiConfig,
    /// What new agents are told and given.
    pub enrol: EnrolConfig,
    /// The kinds of processes that are declared.
    pub kinds: Kinds,
    /// How long records are kept.
    pub retention: Retention,
    /// Figures of the rest of the program, for `/metrics`.
    pub metrics: Vec<MetricsSource>,
    /// Figures of the gateway, for `/v1/overview`; `None`: there is none to ask.
    pub gateway: Option<GatewaySource>,
    /// What else must be well for `/readyz`.
    pub ready: Vec<ReadySource>,
    /// Histograms of the rest of the program, for `/v1/histograms`.
    pub times: Vec<TimesSource>,
    /// How histograms are written to the data directory.
    pub histogram_log: LogConfig,
    /// How webhooks are delivered.
    pub webhooks: WebhooksConfig,
    /// The lock service.
    pub locks: LocksUrl,
    /// The event service.
    pub events: EventsUrl,
    /// Several agent servers elsewhere, whose groups are to be looked after; `None`: there is one.
    pub gateways: Option<Arc<Gateways>>,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process server did not start.
    #[error("the process server did not start: {0}")]
    Dispatch(#[from] dispatch::StartError),
    /// A lock or event service cannot be used as configured. One that is away is no reason.
    #[error(transparent)]
    Coordination(#[from] CoordinationError),
    /// The API did not start.
    #[error(transparent)]
    Api(#[from] api::StartError),
    /// Webhooks cannot be delivered as configured.
    #[error(transparent)]
    Webhooks(#[from] webhooks::StartError),
}

/// A control plane that runs.
pub struct Control {
    face: Face,
    engine: Engine,
    store: Store,
    servers: Servers,
    keepers: Vec<JoinHandle<()>>,
    stop_keeping: CancellationToken,
    keeping: JoinHandle<()>,
    /// Stops webhooks and batches, which end by themselves then.
    stop_outward: CancellationToken,
    outward: Vec<JoinHandle<()>>,
    background: Vec<AbortHandle>,
    watch: Watch,
}

/// Where it is asked.
enum Face {
    Api(ApiServer),
    /// Without an API: health and figures, if they are told.
    Admin(Option<AdminServer>),
}

impl Face {
    async fn open(
        runs: Runs,
        config: &ApiConfig,
        data_dir: &Path,
        parts: Parts,
    ) -> Result<Self, api::StartError> {
        if runs.api {
            return Ok(Self::Api(ApiServer::start(config, data_dir, parts).await?));
        }
        Ok(Self::Admin(match config.admin_listen {
            Some(address) => Some(AdminServer::of_process_servers(address, parts).await?),
            None => None,
        }))
    }
}

/// Starts the servers of a control plane on a store and a gateway; [`Runs`] says which do what.
///
/// With process servers the gateway owns every agent group and has been told who may come in before it returns,
/// and with an API that answers. There are as many process servers as `ends` says; where there are several, another one
/// takes the place of each that dies, and the API goes on through those that live. A gateway elsewhere is waited for a
/// moment; then what needs one waits, and the rest begins.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub async fn start(
    config: Config,
    identity: Arc<Identity>,
    store: Store,
    ends: Ends,
) -> Result<Control, StartError> {
    let runs = config.runs;
    let (webhooks, courier) = webhooks::new(&config.webhooks, store.clone())?;
    let services = services(&config, &store)?;
    let locks = services.locks.clone();
    let told = coordination::metrics(locks.as_deref(), services.events.as_deref());
    let (front, servers) = Box::pin(servers::start(&store, ends, services)).await?;
    let (engine, recorded) = (front.engine, front.recorded);
    let signs = Arc::clone(&identity);
    let enroller = Enroller::new(store.clone(), engine.clone(), signs, config.enrol);
    let halt = CancellationToken::new();
    let (batch_runner, batching) = batches::start(store.clone(), engine.clone(), halt.clone());
    let own = (&enroller, &webhooks, &servers.deaths);
    let parts = Parts {
        store: store.clone(),
        engine: engine.clone(),
        events: recorded.clone(),
        identity,
        kinds: config.kinds,
        metrics: with_own(config.metrics, config.gateways.as_ref(), told, own),
        gateway: config.gateway,
        ready: with_company(config.ready, runs, &engine),
        telemetry: Arc::new(api::Telemetry::new()),
        histograms: Arc::new(Histograms::new(clock::now())),
        webhooks,
        batch_runner,
    };
    let (keeping, end_keeping) = keep(&parts, config.times, &config.data_dir, config.histogram_log);
    let face = Face::open(runs, &config.api, &config.data_dir, parts).await;
    let face = face.inspect_err(|_| servers.stop())?;
    let watch = Watch::default();
    let keepers = front.keepers.into_iter();
    let keepers = keepers.map(|keeper| watch.over("the process server", keeper));
    let keepers = keepers.collect();
    let keeping = watch.over("the keeping of histograms", tokio::spawn(keeping));
    let (mut outward, mut background) = (Vec::new(), Vec::new());
    if runs.api {
        outward.push(watch.over("the runner of batches", tokio::spawn(batching)));
    }
    if runs.processes {
        let delivering = tokio::spawn(Box::pin(courier.run(recorded, halt.clone())));
        outward.push(watch.over("the deliverer of webhooks", delivering));
        let trimming = retention::keep_trimmed(store.clone(), config.retention);
        background.push(("the trimming of old records", tokio::spawn(trimming)));
        let enrolling = tokio::spawn(enroller.run(front.enrolments));
        background.push(("the enrolment service", enrolling));
    }
    if let Some(several) = config.gateways {
        let keeping = keep_groups(runs, &store, &engine, (several, locks));
        background.push(("the keeping of agent servers' groups", keeping));
    }
    let background = background.into_iter().map(|(name, task)| {
        let abort = task.abort_handle();
        watch.over(name, task);
        abort
    });
    Ok(Control {
        background: background.collect(),
        face,
        engine,
        store,
        servers,
        keepers,
        stop_keeping: end_keeping,
        keeping,
        stop_outward: halt,
        outward,
        watch,
    })
}

/// The lock and event services, as far as they are quicker than the store itself and reach further than this process.
fn services(config: &Config, store: &Store) -> Result<Services, CoordinationError> {
    let (locks, events) = (&config.locks, &config.events);
    // Only process servers hold locks or watch them.
    let needed = config.runs.processes && *locks != LocksUrl::Sql;
    let locks = needed.then(|| coordination::locks(locks, store));
    let events = (*events != EventsUrl::Local).then(|| coordination::events(events, store));
    Ok(Services {
        locks: locks.transpose()?,
        events: events.transpose()?,
        observe: !config.runs.processes,
    })
}

/// The keeping of agent servers' groups: process servers give them away, others only hear of it.
fn keep_groups(
    runs: Runs,
    store: &Store,
    engine: &Engine,
    (several, locks): (Arc<Gateways>, Option<Arc<dyn Locks>>),
) -> JoinHandle<()> {
    let (store, engine) = (store.clone(), engine.clone());
    match runs.processes {
        true => tokio::spawn(gateways::keep(store, engine, several, locks)),
        false => tokio::spawn(gateways::watch(store, several)),
    }
}

/// The keeping of all histograms, and what stops it.
fn keep(
    parts: &Parts,
    mut times: Vec<TimesSource>,
    data_dir: &Path,
    log: LogConfig,
) -> (impl Future<Output = ()> + use<>, CancellationToken) {
    times.extend(own_times(parts));
    let log = (log.files > 0).then(|| Log::new(data_dir, log));
    let stop = CancellationToken::new();
    let histograms = Arc::clone(&parts.histograms);
    let keeping = telemetry::keep(histograms, times, log, stop.clone());
    (keeping, stop)
}

/// The figures of the rest of the program and those of this crate's parts that keep their own.
fn with_own(
    mut metrics: Vec<MetricsSource>,
    several: Option<&Arc<Gateways>>,
    services: MetricsSource,
    (enroller, webhooks, deaths): (&Enroller, &Webhooks, &Arc<Deaths>),
) -> Vec<MetricsSource> {
    metrics.extend(several.map(gateways::metrics));
    metrics.push(services);
    let (enroller, webhooks, deaths) = (enroller.clone(), webhooks.clone(), Arc::clone(deaths));
    metrics.push(Arc::new(move |families: &mut Vec<Family>| {
        families.push(enroller.stats().family());
        families.push(deaths.family());
        families.extend(webhooks.families());
    }));
    metrics
}

/// Where no process server is here: how many there are.
fn with_company(mut ready: Vec<ReadySource>, runs: Runs, engine: &Engine) -> Vec<ReadySource> {
    if !runs.processes {
        let engine = engine.clone();
        ready.push(Arc::new(move || {
            let words = match engine.stats().servers {
                0 => "none is alive on the store: what is accepted waits for one".to_owned(),
                servers => format!("{servers} are alive on the store"),
            };
            // Whatever is accepted is safe without them.
            vec![("process_servers_alive", Ok(words))]
        }));
    }
    ready
}

/// The histograms of this crate's own parts.
fn own_times(parts: &Parts) -> [TimesSource; 3] {
    let of = |name, times: &Times, tell: &mut dyn FnMut(Reading<'_>)| {
        tell(Reading {
            name,
            route: None,
            histogram: times.histogram(),
            sum_us: times.sum_us(),
        });
    };
    let (store, engine) = (parts.store.clone(), parts.engine.clone());
    let api = Arc::clone(&parts.telemetry);
    [
        Arc::new(move |tell| of(Name::StoreCommit, &store.stats().commit, tell)),
        Arc::new(move |tell| {
            let stats = engine.stats();
            of(Name::CommandQueue, &stats.queue, tell);
            of(Name::EngineBatch, &stats.batch, tell);
            of(Name::Process, &stats.total, tell);
        }),
        Arc::new(move |tell| api.read(tell)),
    ]
}

impl Control {
    /// The API: where its listeners are, and the reading of their certificates. `None`: it is not run here.
    pub fn api(&self) -> Option<&ApiServer> {
        match &self.face {
            Face::Api(api) => Some(api),
            Face::Admin(_) => None,
        }
    }

    /// Where health and figures are told without a token, if they are.
    pub fn admin_address(&self) -> Option<Served> {
        match &self.face {
            Face::Api(api) => api.admin_address(),
            Face::Admin(admin) => admin.as_ref().map(AdminServer::address),
        }
    }

    /// The process server's front door.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Lets things befall process servers. For tests of what follows.
    pub fn mishaps(&self) -> Mishaps {
        self.servers.mishaps.clone()
    }

    /// Returns when a part has ended by itself, with its name. Nothing accepted is lost, but the
    /// program should exit and be started again.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.watch.failure.subscribe();
        let name = failed.wait_for(Option::is_some).await;
        name.ok()
            .and_then(|name| *name)
            .unwrap_or("the control plane")
    }

    /// Ends in order, within about `deadline`: nothing new from the API, nothing new claimed, what
    /// was heard is made durable, the store is closed. What agents still run they report when they
    /// meet the next server.
    pub async fn drain(self, deadline: Duration) {
        self.watch.ending.cancel();
        // The API first: what it has accepted still needs the process server.
        let admin = match self.face {
            Face::Api(api) => {
                api.drain(deadline / 2).await;
                None
            }
            Face::Admin(admin) => admin.inspect(AdminServer::draining),
        };
        self.stop_outward.cancel();
        self.servers.drain(self.keepers, deadline / 2).await;
        for task in self.background {
            task.abort();
        }
        // These end within seconds by themselves.
        self.stop_keeping.cancel();
        drop(self.keeping.await);
        for task in self.outward {
            drop(task.await);
        }
        self.store.close().await;
        if let Some(admin) = admin {
            admin.stop().await;
        }
    }
}

/// Notices parts that end by themselves.
struct Watch {
    failure: watch::Sender<Option<&'static str>>,
    /// Cancelled when ending is what the parts should do.
    ending: CancellationToken,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            failure: watch::channel(None).0,
            ending: CancellationToken::new(),
        }
    }
}

impl Watch {
    /// Waits for a part, in a task, and tells when it ends although nobody asked it to.
    fn over(&self, name: &'static str, task: JoinHandle<()>) -> JoinHandle<()> {
        let (failure, ending) = (self.failure.clone(), self.ending.clone());
        tokio::spawn(async move {
            let ended = task.await;
            if !ending.is_cancelled() {
                match ended {
                    Ok(()) => tracing::error!("{name} ended by itself"),
                    Err(error) => tracing::error!(%error, "{name} failed"),
                }
                failure.send_replace(Some(name));
            }
        })
    }
}
