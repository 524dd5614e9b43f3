//! The REST API.
//!
//! ```text
//!   admin.rs      the admin listener where there is no API
//!   listener.rs   who listens where, with which TLS, limits and threads
//!     └ server.rs   sockets, time limits, drain
//!         └ access.rs   the table of routes and roles; bearer tokens; rates
//!             └ reads.rs   whether a replica of the store may answer, and what clients have seen
//!                 └ routes/*   one file for each kind of thing, described for OpenAPI where it is written
//!                     └ extract.rs, page.rs, problem.rs   what comes in, lists, errors
//!   model/*   the JSON, shared with the CLI
//! ```
//!
//! Handlers check and translate; what happens is decided in [`crate::dispatch`] and
//! [`crate::store`]. No state of a client is kept between requests: any number of API servers on one
//! store may stand behind any balancer.

mod accept;
mod access;
mod admin;
mod drivers;
mod extract;
mod figures;
mod first_admin;
mod listener;
pub mod model;
mod openapi;
mod overview;
mod page;
mod problem;
mod reads;
mod routes;
mod server;
mod telemetry;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::access::Auth;
pub use self::admin::{AdminServer, Ready, ReadySource};
use self::drivers::Drivers;
pub use self::first_admin::{ADMIN_TOKEN_FILE, FirstAdminError};
use self::listener::{Door, Listener, Opening, Serves};
pub use self::listener::{ListenerConfig, TlsError, TlsFiles};
use self::overview::Board;
use self::routes::health::Readiness;
pub(crate) use self::telemetry::Telemetry;
use crate::batches::Batches;
use crate::clock;
use crate::dispatch::Engine;
use crate::identity::Identity;
use crate::kinds::Kinds;
use crate::store::Store;
use crate::telemetry::metrics::MetricsSource;
use crate::telemetry::{GatewaySource, Histograms};
use crate::webhooks::Webhooks;

/// Event streams at once on each listener.
const STREAMS_MAX: usize = 256;
/// Batches at once on each listener: each may be several MiB.
const BATCHES_MAX: usize = 8;
/// How often usage of tokens is written down.
const SETTLE_EVERY: Duration = Duration::from_secs(30);
/// How long the admin listener's last answers may take.
const ADMIN_DEADLINE: Duration = Duration::from_secs(1);

/// How the API listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiConfig {
    /// Where everything is served: the listener `ui`. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// How `ui` serves.
    pub ui: ListenerConfig,
    /// Where programs from outside are served: the listener `public`. `None`: nowhere.
    pub public_listen: Option<SocketAddr>,
    /// How `public` serves.
    pub public: ListenerConfig,
    /// Whether `public` also serves what needs the role admin.
    pub public_admin_routes: bool,
    /// Where health and figures are told without a token: the listener `admin`. `None`: nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// Requests per second for each token; twice as many in a burst.
    pub requests_per_second: NonZeroU32,
    /// The server's profile, for people.
    pub profile: &'static str,
}

impl ApiConfig {
    /// Connections of clients at once, on all listeners. Each holds a file descriptor.
    pub fn connections(&self) -> u64 {
        let admin = ListenerConfig::admin();
        let open = [
            Some(&self.ui),
            self.public_listen.map(|_| &self.public),
            self.admin_listen.map(|_| &admin),
        ];
        let connections = open.into_iter().flatten();
        connections
            .map(|one| u64::from(one.connections.get()))
            .sum()
    }
}

/// Whether the listeners of an API server can speak the TLS that is asked of them; nothing listens.
///
/// # Errors
/// [`StartError::HalfOfTls`] or [`StartError::Tls`], as at the start.
pub fn check_tls(config: &ApiConfig) -> Result<(), StartError> {
    Door::new("ui", &config.ui)?;
    if config.public_listen.is_some() {
        Door::new("public", &config.public)?;
    }
    Ok(())
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7480)),
            ui: ListenerConfig::default(),
            public_listen: None,
            public: ListenerConfig::public(),
            public_admin_routes: false,
            admin_listen: None,
            requests_per_second: const { NonZeroU32::new(2000).unwrap() },
            profile: "all",
        }
    }
}

/// What the API works with.
pub struct Parts {
    /// The store.
    pub store: Store,
    /// The process server.
    pub engine: Engine,
    /// Changes whenever the process server has recorded something; wakes watchers.
    pub events: watch::Receiver<u64>,
    /// The certificate authority.
    pub identity: Arc<Identity>,
    /// The kinds that are declared.
    pub kinds: Kinds,
    /// Figures of the rest of the program.
    pub metrics: Vec<MetricsSource>,
    /// Figures of the gateway.
    pub gateway: Option<GatewaySource>,
    /// What else must be well for `/readyz`.
    pub ready: Vec<ReadySource>,
    /// What the API measures about itself.
    pub(crate) telemetry: Arc<Telemetry>,
    /// The last hour of every histogram.
    pub(crate) histograms: Arc<Histograms>,
    /// The deliverer of events.
    pub(crate) webhooks: Webhooks,
    /// The runner of batches.
    pub(crate) batch_runner: Batches,
}

/// Why the API did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error(
        "the listener `{listener}` cannot listen on {address}: {source}; give it another address"
    )]
    Listen {
        /// Which listener: `ui`, `public` or `admin`.
        listener: &'static str,
        /// Where.
        address: SocketAddr,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// There are no threads for a listener.
    #[error("the listener `{listener}` cannot start its threads: {source}; give it fewer workers")]
    Threads {
        /// Which listener.
        listener: &'static str,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// Of certificate and key only one is configured.
    #[error(
        "the listener `{listener}` cannot speak TLS: there is no `api.{listener}.{missing}`; set both \
         `certificate` and `key`, or neither"
    )]
    HalfOfTls {
        /// Which listener.
        listener: &'static str,
        /// `certificate` or `key`.
        missing: &'static str,
    },
    /// A certificate or key cannot be used.
    #[error("the listener `{listener}` cannot speak TLS: {source}")]
    Tls {
        /// Which listener.
        listener: &'static str,
        /// What is wrong, and what to do.
        source: TlsError,
    },
    /// No admin token.
    #[error("the first admin token could not be made: {0}")]
    FirstAdmin(#[from] FirstAdminError),
}

/// What every handler knows. The listeners share all of it but what is marked.
#[derive(Clone)]
struct Api {
    store: Store,
    engine: Engine,
    events: watch::Receiver<u64>,
    identity: Arc<Identity>,
    kinds: Kinds,
    drivers: Arc<Drivers>,
    auth: Arc<Auth>,
    telemetry: Arc<Telemetry>,
    histograms: Arc<Histograms>,
    webhooks: Webhooks,
    batch_runner: Batches,
    metrics: Vec<MetricsSource>,
    ready: Vec<ReadySource>,
    readiness: Arc<Readiness>,
    board: Arc<Board>,
    doors: Arc<[Arc<Door>]>,
    /// The listener's own: what it serves.
    serves: Serves,
    /// The listener's own: a flood of another one takes none of them.
    streams: Arc<Semaphore>,
    /// The listener's own.
    batches: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Api {
    fn new(config: &ApiConfig, parts: Parts, doors: Arc<[Arc<Door>]>) -> Self {
        Self {
            auth: Arc::new(Auth::new(parts.store.clone(), config.requests_per_second)),
            store: parts.store,
            engine: parts.engine,
            events: parts.events,
            identity: parts.identity,
            kinds: parts.kinds,
            drivers: Arc::default(),
            telemetry: parts.telemetry,
            histograms: parts.histograms,
            webhooks: parts.webhooks,
            batch_runner: parts.batch_runner,
            metrics: parts.metrics,
            ready: parts.ready,
            readiness: Arc::default(),
            board: Arc::new(Board::new(
                config.profile,
                parts.gateway,
                clock::monotonic(),
            )),
            doors,
            serves: Serves::All,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            stopping: CancellationToken::new(),
        }
    }

    /// The same for another listener.
    fn on(&self, serves: Serves) -> Arc<Self> {
        Arc::new(Self {
            serves,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            ..self.clone()
        })
    }
}

/// The API while it runs.
pub struct ApiServer {
    ui: Served,
    admin_token_file: Option<PathBuf>,
    stopping: CancellationToken,
    listeners: Vec<Listener>,
    reload: watch::Sender<u64>,
    settling: JoinHandle<()>,
}

impl ApiServer {
    /// Listens and serves. On a deployment without an admin token it makes one and writes it to
    /// [`ADMIN_TOKEN_FILE`] in `data_dir`, readable by its owner only.
    ///
    /// # Errors
    /// [`StartError`]; nothing listens then.
    pub async fn start(
        config: &ApiConfig,
        data_dir: &Path,
        parts: Parts,
    ) -> Result<Self, StartError> {
        let admin_token_file = first_admin::ensure(&parts.store, data_dir, clock::now()).await?;
        let (ui, openings) = open(config).await?;
        let doors = openings.iter().map(|opening| Arc::clone(&opening.door));
        let api = Api::new(config, parts, doors.collect());
        let reload = watch::Sender::new(0);
        let listeners = openings.into_iter().map(|opening| {
            let api = api.on(opening.serves);
            opening.serve(api, &reload)
        });
        Ok(Self {
            ui,
            admin_token_file,
            stopping: api.stopping.clone(),
            listeners: listeners.collect(),
            reload,
            settling: tokio::spawn(settle(api)),
        })
    }

    /// Where everything is served.
    pub fn address(&self) -> Served {
        self.ui
    }

    /// Where programs from outside are served, if they are.
    pub fn public_address(&self) -> Option<Served> {
        self.served(|serves| matches!(serves, Serves::Public { .. }))
    }

    /// Where health and figures are told, if they are.
    pub fn admin_address(&self) -> Option<Served> {
        self.served(|serves| serves == Serves::Admin)
    }

    fn served(&self, by: impl Fn(Serves) -> bool) -> Option<Served> {
        let listener = self.listeners.iter().find(|listener| by(listener.serves))?;
        Some(listener.served)
    }

    /// The file with the admin token, if this start made one.
    pub fn admin_token_file(&self) -> Option<&Path> {
        self.admin_token_file.as_deref()
    }

    /// Looks at all certificate files now, and takes what has changed. What came of it is logged and
    /// counted.
    pub fn reload_certificates(&self) {
        self.reload.send_modify(|asked| *asked += 1);
    }

    /// Takes no new connection, ends event streams, lets requests finish, and cuts what is left
    /// after `deadline`. The admin listener goes last: until then it tells that the server drains.
    pub async fn drain(self, deadline: Duration) {
        self.stopping.cancel();
        let (admin, others): (Vec<_>, Vec<_>) = self
            .listeners
            .into_iter()
            .partition(|listener| listener.serves == Serves::Admin);
        join_all(others.into_iter().map(|other| other.drain(deadline))).await;
        join_all(admin.into_iter().map(|admin| admin.drain(ADMIN_DEADLINE))).await;
        ended(self.settling.await);
    }
}

/// Where a listener is, and how to speak to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Served {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// Takes the address of every listener that is configured; also where `ui` is.
async fn open(config: &ApiConfig) -> Result<(Served, Vec<Opening>), StartError> {
    let ui = Opening::open("ui", config.listen, Serves::All, &config.ui).await?;
    let (served, mut all) = (ui.served, vec![ui]);
    if let Some(address) = config.public_listen {
        let serves = Serves::Public {
            admin_routes: config.public_admin_routes,
        };
        all.push(Opening::open("public", address, serves, &config.public).await?);
    }
    if let Some(address) = config.admin_listen {
        let plain = ListenerConfig::admin();
        all.push(Opening::open("admin", address, Serves::Admin, &plain).await?);
    }
    Ok((served, all))
}

fn ended(result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result {
        tracing::error!(%error, "a task of the API ended badly");
    }
}

/// Writes down usage of tokens until the end, and then once more.
async fn settle(api: Api) {
    while !api.stopping.is_cancelled() {
        tokio::select! {
            () = api.stopping.cancelled() => {}
            () = tokio::time::sleep(SETTLE_EVERY) => {}
        }
        api.auth.settle().await;
        for door in api.doors.iter() {
            door.settle();
        }
    }
}
