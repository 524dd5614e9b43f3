//! The REST API.
//!
//! ```text
//!   server.rs   sockets, limits, drain
//!     └ access.rs   the table of routes and roles; bearer tokens; rates
//!         └ routes/*   one file for each kind of thing, described for OpenAPI where it is written
//!             └ extract.rs, page.rs, problem.rs   what comes in, lists, errors
//!   model/*   the JSON, shared with the CLI
//! ```
//!
//! Handlers check and translate; what happens is decided in [`crate::dispatch`] and
//! [`crate::store`]. There is no TLS yet: the API listens on loopback unless configured otherwise.

mod accept;
mod access;
mod drivers;
mod extract;
mod figures;
mod first_admin;
pub mod model;
mod openapi;
mod overview;
mod page;
mod problem;
mod routes;
mod server;
mod telemetry;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::access::Auth;
use self::drivers::Drivers;
pub use self::first_admin::{ADMIN_TOKEN_FILE, FirstAdminError};
use self::overview::Board;
use self::routes::health::Readiness;
pub use self::server::CONNECTIONS_MAX;
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

/// Event streams at once.
const STREAMS_MAX: usize = 256;
/// Batches at once: each may be several MiB.
const BATCHES_MAX: usize = 8;
/// How often usage of tokens is written down.
const SETTLE_EVERY: Duration = Duration::from_secs(30);

/// How the API listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiConfig {
    /// Where. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Requests per second for each token; twice as many in a burst.
    pub requests_per_second: NonZeroU32,
    /// The server's profile, for people.
    pub profile: &'static str,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7480)),
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
    #[error("the API cannot listen on {address}: {source}; set `api.listen` to another address")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// No admin token.
    #[error("the first admin token could not be made: {0}")]
    FirstAdmin(#[from] FirstAdminError),
}

/// What every handler knows.
struct Api {
    store: Store,
    engine: Engine,
    events: watch::Receiver<u64>,
    identity: Arc<Identity>,
    kinds: Kinds,
    drivers: Drivers,
    auth: Auth,
    telemetry: Arc<Telemetry>,
    histograms: Arc<Histograms>,
    webhooks: Webhooks,
    batch_runner: Batches,
    metrics: Vec<MetricsSource>,
    readiness: Readiness,
    board: Board,
    streams: Arc<Semaphore>,
    batches: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// The API while it runs.
pub struct ApiServer {
    address: SocketAddr,
    admin_token_file: Option<PathBuf>,
    stopping: CancellationToken,
    cut: CancellationToken,
    serving: JoinHandle<()>,
    settling: JoinHandle<()>,
}

impl ApiServer {
    /// Listens and serves. On a deployment without an admin token it makes one and writes it to
    /// [`ADMIN_TOKEN_FILE`] in `data_dir`, readable by its owner only.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: &ApiConfig,
        data_dir: &Path,
        parts: Parts,
    ) -> Result<Self, StartError> {
        let admin_token_file = first_admin::ensure(&parts.store, data_dir, clock::now()).await?;
        let address = config.listen;
        if !address.ip().is_loopback() {
            tracing::warn!(
                %address,
                "the API listens beyond this machine and does not speak TLS yet: put a TLS proxy in \
                 front of it, or API tokens can be read on the network"
            );
        }
        let refused = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let stopping = CancellationToken::new();
        let cut = CancellationToken::new();
        let api = Arc::new(Api {
            auth: Auth::new(parts.store.clone(), config.requests_per_second),
            store: parts.store,
            engine: parts.engine,
            events: parts.events,
            identity: parts.identity,
            kinds: parts.kinds,
            drivers: Drivers::default(),
            telemetry: parts.telemetry,
            histograms: parts.histograms,
            webhooks: parts.webhooks,
            batch_runner: parts.batch_runner,
            metrics: parts.metrics,
            readiness: Readiness::default(),
            board: Board::new(config.profile, parts.gateway, clock::monotonic()),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            stopping: stopping.clone(),
        });
        let router: Router = routes::router(Arc::clone(&api));
        let serving = tokio::spawn(server::serve(
            listener,
            router,
            server::Limits::default(),
            stopping.clone(),
            cut.clone(),
        ));
        let settling = tokio::spawn(settle(api, stopping.clone()));
        Ok(Self {
            address,
            admin_token_file,
            stopping,
            cut,
            serving,
            settling,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file with the admin token, if this start made one.
    pub fn admin_token_file(&self) -> Option<&Path> {
        self.admin_token_file.as_deref()
    }

    /// Takes no new connection, ends event streams, lets requests finish, and cuts what is left
    /// after `deadline`.
    pub async fn drain(self, deadline: Duration) {
        self.stopping.cancel();
        let mut serving = self.serving;
        if tokio::time::timeout(deadline, &mut serving).await.is_err() {
            tracing::warn!("API requests were cut off at the drain's deadline");
            self.cut.cancel();
            ended(serving.await);
        }
        ended(self.settling.await);
    }
}

fn ended(result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result {
        tracing::error!(%error, "a task of the API ended badly");
    }
}

/// Writes down usage of tokens until the end, and then once more.
async fn settle(api: Arc<Api>, stopping: CancellationToken) {
    while !stopping.is_cancelled() {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = tokio::time::sleep(SETTLE_EVERY) => {}
        }
        api.auth.settle().await;
    }
}
