//! Redis: locks that are keys, and events that are published.
//!
//! ```text
//!   wire ── one connection (RESP3): commands, and what is published to us ── lost ─▶ another, after a growing pause
//!             │ each second a PING: a connection that hangs is lost, too
//!             └ whoever subscribes hears `Missed` with every new connection
//! ```
//!
//! No command that blocks is ever sent: it would hold up all others. Redis may forget keys when it fails over, and
//! what was published while a connection was away is gone; both are what hints may do.

mod events;
mod locks;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::{MultiplexedConnection, SendError};
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, FromRedisValue as _,
    IntoConnectionInfo as _, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError,
    TlsCertificates,
};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::figures::Figures;
use super::leases::Leased;
use super::topics::{Notice, Subscription, Topics};
use super::url::{RedisTarget, Secret, TlsFiles};
use super::{CoordinationError, Events, Locks, Name};

/// A command without an answer for so long will have none.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// A connection is not made in so long.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Whether it still works is asked so often.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Between two tries to connect: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Locks of a Redis.
pub(super) fn locks(target: &RedisTarget) -> Result<impl Locks + use<>, CoordinationError> {
    Ok(Leased::new(locks::RedisLeases::new(target)?))
}

/// Events of a Redis.
pub(super) fn events(target: &RedisTarget) -> Result<impl Events + use<>, CoordinationError> {
    events::RedisEvents::new(target)
}

/// The connection to a Redis, whichever it is at the moment.
struct Wire {
    shared: Arc<Shared>,
    connection: watch::Receiver<Option<MultiplexedConnection>>,
    _end: DropGuard,
}

struct Shared {
    client: Client,
    /// Where it is, for people.
    place: String,
    /// What every channel begins with.
    prefix: String,
    topics: Topics,
    /// Somebody hears something new.
    wanted: Notify,
    /// Why the last try to connect failed.
    trouble: Mutex<String>,
    read: Read,
    figures: Arc<Figures>,
}

/// What came on a channel becomes a notice, or nothing.
type Read = Box<dyn Fn(&[u8]) -> Option<Notice> + Send + Sync>;

impl Wire {
    /// Prepares it and begins to connect; `kind` is part of its channels' names.
    fn new(target: &RedisTarget, kind: &str, read: Read) -> Result<Self, CoordinationError> {
        let shared = Arc::new(Shared {
            client: client(target)?,
            place: format!("{}:{}", target.host, target.port),
            prefix: format!("{}:{kind}:", target.prefix),
            topics: Topics::default(),
            wanted: Notify::new(),
            trouble: Mutex::new("not connected yet".to_owned()),
            read,
            figures: Arc::default(),
        });
        let (connections, connection) = watch::channel(None);
        let end = CancellationToken::new();
        let keeping = keep(Arc::clone(&shared), connections);
        tokio::spawn(end.clone().run_until_cancelled_owned(keeping));
        Ok(Self {
            shared,
            connection,
            _end: end.drop_guard(),
        })
    }

    /// The connection; fails at once where the service is known to be away.
    async fn connection(&self) -> Result<MultiplexedConnection, CoordinationError> {
        let mut connection = self.connection.clone();
        // At the beginning it may be on its way.
        let first = connection.has_changed().is_ok_and(|changed| !changed);
        if let Some(connection) = connection.borrow().clone() {
            return Ok(connection);
        }
        if first
            && let Ok(Ok(())) = timeout(CONNECT_WITHIN, connection.changed()).await
            && let Some(connection) = connection.borrow().clone()
        {
            return Ok(connection);
        }
        Err(self.shared.away())
    }

    fn subscribe(&self, topic: &Name) -> Subscription {
        let subscription = self.shared.topics.subscribe(topic);
        self.shared.wanted.notify_one();
        subscription
    }

    fn channel(&self, topic: &Name) -> String {
        format!("{}{topic}", self.shared.prefix)
    }

    /// What it says it is.
    async fn check(&self) -> Result<String, CoordinationError> {
        let mut connection = self.connection().await?;
        let told: Result<String, _> = ::redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await;
        let told = told.map_err(|error| self.shared.failed(&error))?;
        let version = told
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Ok(format!(
            "Redis {}",
            version.unwrap_or("of an unknown version")
        ))
    }
}

impl Shared {
    fn failed(&self, error: &RedisError) -> CoordinationError {
        self.error(error.to_string())
    }

    fn away(&self) -> CoordinationError {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        self.error(trouble.clone())
    }

    fn error(&self, detail: String) -> CoordinationError {
        CoordinationError::Service {
            service: "Redis",
            place: self.place.clone(),
            detail,
        }
    }

    /// Takes what the connection was sent without being asked.
    fn take(&self, push: &PushInfo) {
        let (PushKind::Message, [channel, payload]) = (&push.kind, &push.data[..]) else {
            return;
        };
        let channel = String::from_redis_value_ref(channel).unwrap_or_default();
        let topic = channel.strip_prefix(&self.prefix).and_then(Name::new);
        let payload = Vec::<u8>::from_redis_value_ref(payload);
        if let (Some(topic), Ok(payload)) = (topic, payload)
            && let Some(notice) = (self.read)(&payload)
        {
            self.figures.heard();
            self.topics.tell(&topic, notice);
        }
    }

    /// Connects, and serves until the connection is lost.
    async fn serve(
        self: &Arc<Self>,
        connections: &watch::Sender<Option<MultiplexedConnection>>,
    ) -> Result<Infallible, RedisError> {
        let (lost, shared) = (Arc::new(Notify::new()), Arc::clone(self));
        let loses = Arc::clone(&lost);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN))
            .set_push_sender(move |push: PushInfo| {
                match push.kind {
                    PushKind::Disconnection => loses.notify_one(),
                    _ => shared.take(&push),
                }
                Ok::<_, SendError>(())
            });
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut connection = connecting.await?;
        // Whoever hears that something was missed may ask at once.
        connections.send_replace(Some(connection.clone()));
        self.figures.is_there(true);
        let mut heard = BTreeSet::new();
        self.hear(&mut connection, &mut heard).await?;
        // Whatever else happens: those who subscribe often must not keep it from being asked.
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = lost.notified() => return Err(RedisError::from(std::io::Error::from(
                    std::io::ErrorKind::ConnectionReset,
                ))),
                () = self.wanted.notified() => self.hear(&mut connection, &mut heard).await?,
                _ = pings.tick() => {
                    ::redis::cmd("PING").exec_async(&mut connection).await?;
                }
            }
        }
    }

    /// Subscribes to what is wanted and not heard yet, of which what was published before is missed; and leaves what
    /// nobody wants any more.
    async fn hear(
        &self,
        connection: &mut MultiplexedConnection,
        heard: &mut BTreeSet<Name>,
    ) -> Result<(), RedisError> {
        let channel = |topic: &Name| format!("{}{topic}", self.prefix);
        let wanted = BTreeSet::from_iter(self.topics.names());
        for topic in heard.difference(&wanted) {
            connection.unsubscribe(channel(topic)).await?;
        }
        for topic in wanted.difference(heard) {
            connection.subscribe(channel(topic)).await?;
            self.topics.tell(topic, Notice::Missed);
        }
        *heard = wanted;
        Ok(())
    }
}

/// Keeps a connection.
async fn keep(shared: Arc<Shared>, connections: watch::Sender<Option<MultiplexedConnection>>) -> ! {
    let mut pause = PAUSE.0;
    loop {
        let Err(error) = shared.serve(&connections).await;
        let was_there = connections.send_replace(None).is_some();
        shared.figures.is_there(false);
        if was_there {
            pause = PAUSE.0;
            tracing::warn!(place = shared.place, %error, "the connection to Redis is lost; the store's own heartbeats go on");
        } else {
            tracing::debug!(place = shared.place, %error, "no connection to Redis");
        }
        *shared
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = error.to_string();
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn client(target: &RedisTarget) -> Result<Client, CoordinationError> {
    let host = target.host.trim_matches(['[', ']']).to_owned();
    let address = match &target.tls {
        None => ConnectionAddr::Tcp(host, target.port),
        Some(_) => ConnectionAddr::TcpTls {
            host,
            port: target.port,
            insecure: false,
            tls_params: None,
        },
    };
    let mut settings = RedisConnectionInfo::default()
        .set_db(target.database.into())
        .set_protocol(ProtocolVersion::RESP3);
    if let Some(user) = &target.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &target.password {
        settings = settings.set_password(Secret::reveal(password));
    }
    let opened = address.into_connection_info().map(|info| {
        info.set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
    });
    let opened = match &target.tls {
        None => opened.and_then(Client::open),
        Some(files) => {
            let certificates = certificates(target, files)?;
            opened.and_then(|info| Client::build_with_tls(info, certificates))
        }
    };
    opened.map_err(|error| CoordinationError::Service {
        service: "Redis",
        place: format!("{}:{}", target.host, target.port),
        detail: error.to_string(),
    })
}

fn certificates(
    target: &RedisTarget,
    files: &TlsFiles,
) -> Result<TlsCertificates, CoordinationError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| CoordinationError::File {
            url: target.to_string(),
            path: path.display().to_string(),
            detail: error.to_string(),
        })
    };
    let own = files.own.as_ref().map(|(certificate, key)| {
        Ok::<_, CoordinationError>(ClientTlsConfig {
            client_cert: read(certificate)?,
            client_key: read(key)?,
        })
    });
    Ok(TlsCertificates {
        client_tls: own.transpose()?,
        root_cert: files.ca.as_deref().map(read).transpose()?,
    })
}
