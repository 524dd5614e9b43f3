//! ZooKeeper: locks that are ephemeral nodes.
//!
//! A node lives as long as the session that made it, and the session as long as its client is heard. So all locks of
//! a process end together, at most a session's time-out after it was heard last, and whoever waits is told by a watch.
//! Contenders make the same node and one of them succeeds. There is no queue: those that wait all wake at once, but
//! they are few, and fairness does not matter to a hint.

mod node;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use zookeeper_client::{Client, SessionState, StateWatcher, TlsOptions};

use self::node::Node;
use super::figures::Figures;
use super::url::{TlsFiles, ZooKeeperTarget};
use super::{CoordinationError, Held, Locks, Name};
use crate::clock;

type ZkError = zookeeper_client::Error;

/// A request without an answer for so long will have none.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A session is tried to begin so often at most.
const CONNECT_EVERY: Duration = Duration::from_millis(500);
/// What failed with the connection is tried again after this.
const RETRY: Duration = Duration::from_millis(100);
/// Locks are nodes below this one.
const FOLDER: &str = "locks";

/// Locks of a ZooKeeper.
pub(super) struct ZooKeeper {
    connector: zookeeper_client::Connector,
    /// Where it is, as its client reads it.
    cluster: String,
    /// The node whose children are locks.
    folder: String,
    /// Only our user may touch our nodes.
    private: bool,
    lease: Duration,
    session: Mutex<Session>,
    figures: Arc<Figures>,
}

/// The session, while it lives.
#[derive(Default)]
struct Session {
    client: Option<Client>,
    /// When the last try to begin one failed, and why.
    failed: Option<(Instant, String)>,
}

impl ZooKeeper {
    pub(super) fn new(target: &ZooKeeperTarget) -> Result<Self, CoordinationError> {
        let mut connector = Client::connector()
            .with_session_timeout(target.lease)
            .with_fail_eagerly();
        if let Some(files) = &target.tls {
            connector = connector.with_tls(tls(target, files)?);
        }
        if let Some((user, password)) = &target.user {
            let login = format!("{user}:{}", password.reveal());
            connector = connector.with_auth("digest", login.as_bytes());
        }
        let protocol = if target.tls.is_some() {
            "tcp+tls"
        } else {
            "tcp"
        };
        let servers = target.servers.iter();
        let servers: Vec<String> = servers
            .map(|server| format!("{protocol}://{server}"))
            .collect();
        Ok(Self {
            connector,
            cluster: servers.join(","),
            folder: format!("{}/{FOLDER}", target.path),
            private: target.user.is_some(),
            lease: target.lease,
            session: Mutex::default(),
            figures: Arc::default(),
        })
    }

    /// The session: another one if the last is over.
    async fn session(&self) -> Result<Client, CoordinationError> {
        let mut session = self.session.lock().await;
        let alive = |client: &&Client| !client.state().is_terminated();
        if let Some(client) = session.client.as_ref().filter(alive) {
            return Ok(client.clone());
        }
        // Those that have waited for the same try share its end.
        if let Some((at, detail)) = &session.failed
            && clock::monotonic().saturating_duration_since(*at) < CONNECT_EVERY
        {
            return Err(self.away(detail));
        }
        let connecting = self.connector.clone().connect(&self.cluster);
        let connected = match timeout(ANSWER_WITHIN.max(self.lease), connecting).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        };
        match connected {
            Ok(client) => {
                tokio::spawn(follow(client.state_watcher(), Arc::clone(&self.figures)));
                Ok(session.client.insert(client).clone())
            }
            Err(detail) => {
                let error = self.away(&detail);
                session.failed = Some((clock::monotonic(), detail));
                Err(error)
            }
        }
    }

    fn path(&self, name: &Name) -> String {
        format!("{}/{name}", self.folder)
    }

    fn away(&self, detail: &str) -> CoordinationError {
        CoordinationError::Service {
            service: "ZooKeeper",
            place: self.cluster.clone(),
            detail: detail.to_owned(),
        }
    }
}

impl Locks for ZooKeeper {
    fn try_acquire<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>> {
        async move {
            let session = self.session().await;
            self.figures.called(&session);
            let node = Node {
                client: session?,
                folder: self.folder.clone(),
                path: self.path(name),
                private: self.private,
                holder: Uuid::new_v4(),
            };
            // Whoever asked may give up while the node is made: it is removed then.
            let (tell, told) = oneshot::channel();
            tokio::spawn(node.take(tell));
            let taken = told.await.unwrap_or_else(|_| Err("it ended".to_owned()));
            self.figures.called(&taken);
            taken.map_err(|error| self.away(&error))
        }
        .boxed()
    }

    fn vacant<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
        async move {
            let path = self.path(name);
            loop {
                let session = self.session().await;
                self.figures.called(&session);
                let client = session?;
                let watched = again(|| client.check_and_watch_stat(&path)).await;
                self.figures.called(&watched);
                match watched.map_err(|error| self.away(&error))? {
                    (None, _) => return Ok(()),
                    // It has changed, or the session is over: look again.
                    (Some(_), watcher) => drop(watcher.changed().await),
                }
            }
        }
        .boxed()
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        async move {
            let client = self.session().await?;
            let looked = again(|| client.check_stat("/")).await;
            looked.map_err(|error| self.away(&error))?;
            let session = client.session_timeout();
            Ok(format!("ZooKeeper, sessions of {} ms", session.as_millis()))
        }
        .boxed()
    }

    fn figures(&self) -> Option<Arc<Figures>> {
        Some(Arc::clone(&self.figures))
    }
}

/// Tells whether a session is connected, until it is over.
async fn follow(mut states: StateWatcher, figures: Arc<Figures>) {
    let mut state = states.state();
    while !state.is_terminated() {
        figures.is_there(state != SessionState::Disconnected);
        state = states.changed().await;
    }
    figures.is_there(false);
}

/// Asks until there is an answer, within a time: a connection that was lost is made again by the client.
async fn again<T, F: Future<Output = Result<T, ZkError>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, String> {
    let asking = async {
        loop {
            match ask().await {
                Err(ZkError::ConnectionLoss) => sleep(RETRY).await,
                answer => return answer,
            }
        }
    };
    match timeout(ANSWER_WITHIN, asking).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

fn tls(target: &ZooKeeperTarget, files: &TlsFiles) -> Result<TlsOptions, CoordinationError> {
    let wrong = |path: &Path, detail: String| CoordinationError::File {
        url: target.to_string(),
        path: path.display().to_string(),
        detail,
    };
    let read =
        |path: &Path| std::fs::read_to_string(path).map_err(|error| wrong(path, error.to_string()));
    let mut options = TlsOptions::new();
    if let Some(ca) = &files.ca {
        let with = options.with_pem_ca(&read(ca)?);
        options = with.map_err(|error| wrong(ca, error.to_string()))?;
    }
    if let Some((certificate, key)) = &files.own {
        let with = options.with_pem_identity(&read(certificate)?, &read(key)?);
        options = with.map_err(|error| wrong(key, error.to_string()))?;
    }
    Ok(options)
}
