//! The listeners of the API: each with its own address, TLS, limits and threads.
//!
//! ```text
//!   ui      everything, and the dashboard   ─▶ threads of its own ─▶ gate ─▶ router ─┐
//!   public  /v1 without what admins do      ─▶ threads of its own ─▶ gate ─▶ router ─┼▶ store, engine
//!   admin   /healthz /readyz /metrics       ─▶ a thread of its own ─▶ gate ─▶ router ─┘
//! ```
//!
//! What a flood costs is accepting, TLS, reading requests and refusing them. Tasks of one runtime wait
//! in line for its workers, so on shared workers all of that would stand before everybody else's
//! requests; with threads of its own it stands before the flooded listener's alone, and the kernel's
//! scheduler shares the cores between threads, not between connections. What the gate lets through does
//! meet at the store and the process server: the gate's rate bounds that.

mod gate;
mod tls;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) use self::gate::network;
use self::gate::{Gate, Limit};
pub(super) use self::tls::Certificate;
pub use self::tls::{TlsError, TlsFiles};
use super::{Api, Served, StartError, Telemetry, routes, server};
use crate::telemetry::metrics::{Family, Kind, Value};

/// How a listener serves: with what, for how many, on how many threads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerConfig {
    /// PEM file of its certificate; with [`key`](Self::key), or neither: then it speaks plain HTTP.
    pub certificate: Option<PathBuf>,
    /// PEM file of the certificate's key.
    pub key: Option<PathBuf>,
    /// Requests a second of all clients together; `None`: any number.
    pub requests_per_second: Option<NonZeroU32>,
    /// Requests at once after a pause, where there is a rate; `None`: a second's worth.
    pub burst: Option<NonZeroU32>,
    /// Requests a second of one address (of an IPv6 /64), a second's worth at once; `None`: any number.
    /// Behind a balancer all clients have one address.
    pub address_requests_per_second: Option<NonZeroU32>,
    /// Requests that it works on at once. An event stream counts until it begins.
    pub concurrent_requests: NonZeroU32,
    /// Connections at once; more wait in the listen queue.
    pub connections: NonZeroU32,
    /// Threads; `None`: one for each core.
    pub workers: Option<NonZeroU32>,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            certificate: None,
            key: None,
            requests_per_second: None,
            burst: None,
            address_requests_per_second: None,
            concurrent_requests: const { NonZeroU32::new(1024).unwrap() },
            connections: const { NonZeroU32::new(1024).unwrap() },
            workers: None,
        }
    }
}

impl ListenerConfig {
    /// What programs from outside are given by default: 500 requests a second, 64 at once, one thread.
    pub fn public() -> Self {
        Self {
            requests_per_second: NonZeroU32::new(500),
            concurrent_requests: const { NonZeroU32::new(64).unwrap() },
            workers: NonZeroU32::new(1),
            ..Self::default()
        }
    }

    /// What probes and scrapers need.
    pub(super) fn admin() -> Self {
        Self {
            concurrent_requests: const { NonZeroU32::new(64).unwrap() },
            connections: const { NonZeroU32::new(64).unwrap() },
            workers: NonZeroU32::new(1),
            ..Self::default()
        }
    }

    /// Its certificate and key.
    fn files(&self) -> Result<Option<TlsFiles>, &'static str> {
        match (&self.certificate, &self.key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            })),
            (Some(_), None) => Err("key"),
            (None, Some(_)) => Err("certificate"),
        }
    }
}

/// What a listener serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Serves {
    /// All of the API, and the dashboard.
    All,
    /// The API without figures, and without what needs the role admin unless `admin_routes`.
    Public { admin_routes: bool },
    /// Health and figures, without a token.
    Admin,
}

/// A listener as requests and figures meet it.
pub(super) struct Door {
    pub(super) name: &'static str,
    gate: Gate,
    /// A permit for each connection that may come.
    pub(super) connections: Arc<Semaphore>,
    connections_max: u32,
    pub(super) certificate: Option<Arc<Certificate>>,
    pub(super) handshakes_failed: AtomicU64,
}

impl Door {
    pub(super) fn new(name: &'static str, config: &ListenerConfig) -> Result<Self, StartError> {
        let files = config.files().map_err(|missing| StartError::HalfOfTls {
            listener: name,
            missing,
        })?;
        let certificate = files
            .map(|files| Certificate::open(name, files))
            .transpose();
        let certificate = certificate.map_err(|source| StartError::Tls {
            listener: name,
            source,
        })?;
        let connections = config.connections.get();
        Ok(Self {
            name,
            gate: Gate::new(name, config),
            connections: Arc::new(Semaphore::new(connections as usize)),
            connections_max: connections,
            certificate: certificate.map(Arc::new),
            handshakes_failed: AtomicU64::new(0),
        })
    }

    /// Forgets clients that have been quiet. Called once in a while.
    pub(super) fn settle(&self) {
        self.gate.settle();
    }

    fn connections_open(&self) -> u64 {
        let most = u64::from(self.connections_max);
        most - (self.connections.available_permits() as u64).min(most)
    }
}

/// Threads that end when this is dropped; what still runs on them ends with it.
struct Threads {
    handle: Handle,
    /// There until the end.
    runtime: Option<Runtime>,
}

impl Threads {
    fn start(listener: &'static str, workers: Option<NonZeroU32>) -> Result<Self, StartError> {
        let mut builder = Builder::new_multi_thread();
        if let Some(workers) = workers {
            builder.worker_threads(workers.get() as usize);
        }
        let runtime = builder
            .enable_all()
            .thread_name(format!("api-{listener}"))
            .build()
            .map_err(|source| StartError::Threads { listener, source })?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The plain way out blocks, which a task of another runtime must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A listener that has its address and serves nothing yet.
pub(super) struct Opening {
    pub(super) door: Arc<Door>,
    pub(super) serves: Serves,
    pub(super) served: Served,
    socket: TcpListener,
    threads: Threads,
}

impl Opening {
    /// Takes the address.
    pub(super) async fn open(
        name: &'static str,
        address: SocketAddr,
        serves: Serves,
        config: &ListenerConfig,
    ) -> Result<Self, StartError> {
        let door = Arc::new(Door::new(name, config)?);
        let threads = Threads::start(name, config.workers)?;
        let refused = |source| StartError::Listen {
            listener: name,
            address,
            source,
        };
        // The socket belongs to the threads that serve it.
        let bound = threads.handle.spawn(TcpListener::bind(address)).await;
        let bound = bound.unwrap_or_else(|error| Err(error.into()));
        let socket = bound.map_err(refused)?;
        let address = socket.local_addr().map_err(refused)?;
        let tls = door.certificate.is_some();
        warn_of_readers(name, address, serves, tls);
        Ok(Self {
            door,
            serves,
            served: Served { address, tls },
            socket,
            threads,
        })
    }

    /// Serves the API, or what of it the listener serves, from now on.
    pub(super) fn serve(self, api: Arc<Api>, reload: &watch::Sender<u64>) -> Listener {
        let telemetry = Arc::clone(&api.telemetry);
        let router = match self.serves {
            Serves::All | Serves::Public { .. } => routes::router(api),
            Serves::Admin => routes::admin_router(api),
        };
        self.serve_router(router, telemetry, reload)
    }

    /// Serves a router from now on.
    pub(super) fn serve_router(
        self,
        router: Router,
        telemetry: Arc<Telemetry>,
        reload: &watch::Sender<u64>,
    ) -> Listener {
        let (stopping, cut) = (CancellationToken::new(), CancellationToken::new());
        let passage = Passage {
            door: Arc::clone(&self.door),
            telemetry,
        };
        let router: Router = router.layer(middleware::from_fn_with_state(passage, pass));
        let limits = server::Limits::default();
        let serving = server::serve(
            self.socket,
            router,
            limits,
            Arc::clone(&self.door),
            stopping.clone(),
            cut.clone(),
        );
        let keeping = self.door.certificate.clone().map(|certificate| {
            certificate.keep(tls::LOOK_EVERY, reload.subscribe(), stopping.clone())
        });
        let all = async move {
            match keeping {
                Some(keeping) => drop(tokio::join!(serving, keeping)),
                None => serving.await,
            }
        };
        Listener {
            door: self.door,
            serves: self.serves,
            served: self.served,
            stopping,
            cut,
            serving: self.threads.handle.spawn(all),
            _threads: self.threads,
        }
    }
}

/// A listener that serves.
pub(super) struct Listener {
    door: Arc<Door>,
    pub(super) serves: Serves,
    pub(super) served: Served,
    stopping: CancellationToken,
    cut: CancellationToken,
    serving: JoinHandle<()>,
    _threads: Threads,
}

impl Listener {
    /// Takes no new connection, lets requests finish, and cuts what is left after `deadline`.
    pub(super) async fn drain(mut self, deadline: Duration) {
        self.stopping.cancel();
        let ended = match tokio::time::timeout(deadline, &mut self.serving).await {
            Ok(ended) => ended,
            Err(_) => {
                let listener = self.door.name;
                tracing::warn!(
                    listener,
                    "API requests were cut off at the drain's deadline"
                );
                self.cut.cancel();
                (&mut self.serving).await
            }
        };
        super::ended(ended);
    }
}

/// What a request passes before the router.
#[derive(Clone)]
struct Passage {
    door: Arc<Door>,
    telemetry: Arc<Telemetry>,
}

/// Probes are let through whatever else happens: a balancer that is refused takes the server out, and
/// both answers are cheap and remembered.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

async fn pass(State(passage): State<Passage>, request: Request, next: Next) -> Response {
    if PROBES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match passage.door.gate.enter(remote(&request)) {
        Ok(_place) => next.run(request).await,
        Err(refused) => {
            passage.telemetry.refused();
            routes::mark(refused.into_response())
        }
    }
}

/// The address that a request came from.
fn remote(request: &Request) -> IpAddr {
    let remote = request.extensions().get::<ConnectInfo<SocketAddr>>();
    remote.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |remote| remote.0.ip())
}

fn warn_of_readers(listener: &'static str, address: SocketAddr, serves: Serves, tls: bool) {
    if address.ip().is_loopback() {
        return;
    }
    if serves == Serves::Admin {
        tracing::warn!(
            %address,
            "the admin listener is open beyond this machine, and asks for no token: whoever reaches it \
             reads all figures; set `admin.listen` to a loopback address, or put a firewall around it"
        );
    } else if !tls {
        tracing::warn!(
            listener,
            %address,
            "the listener is open beyond this machine without TLS: set `api.{listener}.certificate` and \
             `api.{listener}.key`, or put a TLS proxy in front of it; API tokens can be read on the network"
        );
    }
}

/// The figures of all listeners.
pub(super) fn families(doors: &[Arc<Door>]) -> Vec<Family> {
    let mut requests = Family::new(
        Kind::Counter,
        "drover_api_listener_requests_total",
        "Requests that came, with refused ones; probes do not count.",
    );
    let mut refused = Family::new(
        Kind::Counter,
        "drover_api_listener_refused_total",
        "Requests refused by a limit of the listener.",
    );
    let mut under_way = Family::new(
        Kind::Gauge,
        "drover_api_listener_requests_under_way",
        "Requests that are worked on.",
    );
    let mut connections = Family::new(
        Kind::Gauge,
        "drover_api_listener_connections",
        "Connections that are open.",
    );
    let of = |door: &Door| vec![("listener", door.name.to_owned())];
    for door in doors {
        requests = requests.with(of(door), Value::Number(door.gate.requests()));
        under_way = under_way.with(of(door), Value::Number(door.gate.under_way()));
        connections = connections.with(of(door), Value::Number(door.connections_open()));
        for limit in Limit::ALL {
            let mut labels = of(door);
            labels.push(("limit", limit.name().to_owned()));
            refused = refused.with(labels, Value::Number(door.gate.refused(limit)));
        }
    }
    let mut all = vec![requests, refused, under_way, connections];
    let tls = tls_families(doors).into_iter();
    all.extend(tls.filter(|family| !family.samples.is_empty()));
    all
}

/// The figures of those that speak TLS.
fn tls_families(doors: &[Arc<Door>]) -> [Family; 3] {
    let mut failed = Family::new(
        Kind::Counter,
        "drover_api_tls_handshakes_failed_total",
        "Connections that came to nothing before TLS was spoken.",
    );
    let mut changes = Family::new(
        Kind::Counter,
        "drover_api_certificate_changes_total",
        "Changes of certificate files that were taken, or refused because they cannot be used.",
    );
    let mut expiry = Family::new(
        Kind::Gauge,
        "drover_api_certificate_expiry_timestamp_seconds",
        "When the certificate that is shown ends, in seconds since 1970.",
    );
    for door in doors {
        let Some(certificate) = &door.certificate else {
            continue;
        };
        let listener = || vec![("listener", door.name.to_owned())];
        let count = door.handshakes_failed.load(Ordering::Relaxed);
        failed = failed.with(listener(), Value::Number(count));
        for (result, count) in ["taken", "refused"].into_iter().zip(certificate.changes()) {
            let mut labels = listener();
            labels.push(("result", result.to_owned()));
            changes = changes.with(labels, Value::Number(count));
        }
        let ends = certificate.expires().0 / 1000;
        expiry = expiry.with(listener(), Value::Number(ends));
    }
    [failed, changes, expiry]
}
