//! The admin listener of a program without an API, such as an agent server or process servers on their own: whether it
//! lives, whether it can work, and its figures.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::listener::{self, Door, Listener, ListenerConfig, Opening, Serves};
use super::routes::health::{Readiness, check, judged, work, written};
use super::{ADMIN_DEADLINE, Parts, Served, StartError, Telemetry, figures, routes};
use crate::dispatch::Engine;
use crate::store::Store;
use crate::telemetry::metrics::MetricsSource;

/// What can be said of a part of the program: its name, and whether it can do its work, in words.
pub type Ready = (&'static str, Result<String, String>);

/// Says of every part whether it can do its work. Asked at each `/readyz`, so it must be cheap.
pub type ReadySource = Arc<dyn Fn() -> Vec<Ready> + Send + Sync>;

/// What its handlers know.
pub(super) struct Alone {
    pub(super) telemetry: Arc<Telemetry>,
    metrics: Vec<MetricsSource>,
    ready: Vec<ReadySource>,
    /// Where there are process servers.
    work: Option<Work>,
    doors: [Arc<Door>; 1],
    stopping: CancellationToken,
}

/// What process servers work with.
struct Work {
    store: Store,
    engine: Engine,
    readiness: Readiness,
}

/// The admin listener while it runs.
pub struct AdminServer {
    listener: Listener,
    stopping: CancellationToken,
}

impl AdminServer {
    /// Listens and serves `/healthz`, `/readyz` and `/metrics`; no token is asked for.
    ///
    /// # Errors
    /// [`StartError`]; nothing listens then.
    pub async fn start(
        address: SocketAddr,
        metrics: Vec<MetricsSource>,
        ready: ReadySource,
    ) -> Result<Self, StartError> {
        Self::open(address, metrics, vec![ready], None).await
    }

    /// The same where process servers are: their figures, and whether they and their store are well.
    pub(crate) async fn of_process_servers(
        address: SocketAddr,
        parts: Parts,
    ) -> Result<Self, StartError> {
        let work = Work {
            store: parts.store,
            engine: parts.engine,
            readiness: Readiness::default(),
        };
        Self::open(address, parts.metrics, parts.ready, Some(work)).await
    }

    async fn open(
        address: SocketAddr,
        metrics: Vec<MetricsSource>,
        ready: Vec<ReadySource>,
        work: Option<Work>,
    ) -> Result<Self, StartError> {
        let config = ListenerConfig::admin();
        let opening = Opening::open("admin", address, Serves::Admin, &config).await?;
        let (telemetry, stopping) = (Arc::new(Telemetry::new()), CancellationToken::new());
        let alone = Alone {
            telemetry: Arc::clone(&telemetry),
            metrics,
            ready,
            work,
            doors: [Arc::clone(&opening.door)],
            stopping: stopping.clone(),
        };
        let router = routes::alone_router(Arc::new(alone));
        Ok(Self {
            // It has no certificate that could be read again.
            listener: opening.serve_router(router, telemetry, &watch::Sender::new(0)),
            stopping,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> Served {
        self.listener.served
    }

    /// From now on `/readyz` says that the server drains.
    pub fn draining(&self) {
        self.stopping.cancel();
    }

    /// Takes no new connection, and cuts what is left within a second.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.listener.drain(ADMIN_DEADLINE).await;
    }
}

pub(super) async fn readyz(State(alone): State<Arc<Alone>>) -> Response {
    let mut checks = match &alone.work {
        Some(of) => work(&of.store, &of.engine, &of.readiness).await,
        None => Vec::new(),
    };
    let found = alone.ready.iter().flat_map(|ready| ready());
    checks.extend(found.map(|(name, result)| check(name, result)));
    checks.push(match alone.stopping.is_cancelled() {
        true => check("serving", Err("the server is draining".to_owned())),
        false => check("serving", Ok("the server runs".to_owned())),
    });
    judged(checks)
}

pub(super) async fn metrics(State(alone): State<Arc<Alone>>, asked: HeaderMap) -> Response {
    let mut families = Vec::new();
    for source in &alone.metrics {
        source(&mut families);
    }
    families.extend(alone.telemetry.families());
    if let Some(work) = &alone.work {
        families.extend(figures::of_work(&work.store, &work.engine));
    }
    families.extend(listener::families(&alone.doors));
    written(&families, &asked)
}
