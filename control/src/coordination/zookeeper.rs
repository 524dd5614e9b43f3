//! ZooKeeper: locks that are ephemeral nodes.
//!
//! A node lives as long as the session that made it, and the session as long as its client is heard. So all locks of
//! a process end together, at most a session's time-out after it was heard last, and whoever waits is told by a watch.
//! Contenders make the same node and one of them succeeds. There is no queue: those that wait all wake at once, but
//! they are few, and fairness does not matter to a hint.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::{sleep, sleep_until, timeout};
use uuid::Uuid;
use zookeeper_client::{
    Acls, Client, CreateMode, EventType, OneshotWatcher, SessionState, TlsOptions,
};

use super::hold::Keeper;
use super::url::{TlsFiles, ZooKeeperTarget};
use super::{CoordinationError, Held, Hold, Locks, Name};
use crate::clock;

type ZkError = zookeeper_client::Error;

/// A request without an answer for so long will have none.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A session is tried to begin so often at most.
const CONNECT_EVERY: Duration = Duration::from_millis(500);
/// What failed with the connection is tried again after this.
const RETRY: Duration = Duration::from_millis(100);
/// A lock that is held is looked at so often within a session's time-out.
const LOOKS: u32 = 3;
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
            Ok(client) => Ok(session.client.insert(client).clone()),
            Err(detail) => {
                let error = self.away(&detail);
                session.failed = Some((clock::monotonic(), detail));
                Err(error)
            }
        }
    }

    /// Makes the lock's node; whether it is ours now.
    async fn make(&self, client: &Client, path: &str, holder: Uuid) -> Result<bool, ZkError> {
        let acls = match self.private {
            true => Acls::creator_all(),
            false => Acls::anyone_all(),
        };
        let node = CreateMode::Ephemeral.with_acls(acls);
        let folder = CreateMode::Persistent.with_acls(acls);
        loop {
            match client.create(path, holder.as_bytes(), &node).await {
                Ok(_) => return Ok(true),
                Err(ZkError::NoNode) => client.mkdir(&self.folder, &folder).await?,
                Err(ZkError::NodeExists) => break,
                Err(error) => return Err(error),
            }
        }
        // Ours, if an answer was lost.
        match client.get_data(path).await {
            Ok((data, _)) => Ok(data == holder.as_bytes()),
            Err(ZkError::NoNode) => Ok(false),
            Err(error) => Err(error),
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
            let (client, path, holder) = (self.session().await?, self.path(name), Uuid::new_v4());
            let made = again(|| self.make(&client, &path, holder)).await;
            match made {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    // It may have been made all the same, and would live as long as the session.
                    tokio::spawn(async move { give_back(&client, &path, holder).await });
                    return Err(self.away(&error));
                }
            }
            let (held, keeper) = Held::new();
            tokio::spawn(keep(client, path, holder, keeper));
            Ok(Some(held))
        }
        .boxed()
    }

    fn vacant<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
        async move {
            let path = self.path(name);
            loop {
                let client = self.session().await?;
                let watched = again(|| client.check_and_watch_stat(&path)).await;
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

/// Watches a lock until it is lost or given back.
async fn keep(client: Client, path: String, holder: Uuid, keeper: Keeper) {
    let mut states = client.state_watcher();
    let mut watcher: Option<OneshotWatcher> = None;
    let session = client.session_timeout();
    // The session was heard then, as far as we know.
    let mut heard = clock::monotonic();
    loop {
        let connected = states.peek_state() != SessionState::Disconnected;
        if connected && watcher.is_none() {
            // An answer says what was so after it was asked for.
            let asked = clock::monotonic();
            match timeout(ANSWER_WITHIN, client.get_and_watch_data(&path)).await {
                Ok(Ok((data, _, again))) if data == holder.as_bytes() => {
                    (watcher, heard) = (Some(again), asked);
                    keeper.tell(Hold::Held);
                }
                Ok(Ok(_) | Err(ZkError::NoNode | ZkError::SessionExpired)) => break,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        if watcher.is_none() {
            keeper.tell(Hold::Doubtful);
        }
        let (look, end) = match &watcher {
            // A process that stood still finds out by this.
            Some(_) => (clock::monotonic() + session / LOOKS, None),
            None => (clock::monotonic() + RETRY, Some(heard + session)),
        };
        if end.is_some_and(|end| clock::monotonic() >= end) {
            break;
        }
        tokio::select! {
            () = keeper.released() => return give_back(&client, &path, holder).await,
            state = states.changed() => {
                if state.is_terminated() {
                    break;
                }
                // What has changed while nothing was heard is seen by a look.
                watcher = None;
            }
            event = changed(&mut watcher) => {
                if event == EventType::NodeDeleted {
                    break;
                }
                watcher = None;
            }
            () = sleep_until(look.into()) => watcher = None,
        }
    }
    keeper.tell(Hold::Lost);
    give_back(&client, &path, holder).await;
}

/// What has happened to a node; never, while it is not watched.
async fn changed(watcher: &mut Option<OneshotWatcher>) -> EventType {
    match watcher.take() {
        Some(watcher) => watcher.changed().await.event_type,
        None => std::future::pending().await,
    }
}

/// Removes a node if it is ours, as long as the session may keep it.
async fn give_back(client: &Client, path: &str, holder: Uuid) {
    while !client.state().is_terminated() {
        let removed = async {
            let (data, stat) = client.get_data(path).await?;
            match data == holder.as_bytes() {
                true => client.delete(path, Some(stat.version)).await,
                false => Ok(()),
            }
        };
        match timeout(ANSWER_WITHIN, removed).await {
            Ok(Ok(()) | Err(ZkError::NoNode)) => return,
            Ok(Err(_)) | Err(_) => sleep(RETRY).await,
        }
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
