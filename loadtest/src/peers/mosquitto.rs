//! mosquitto, with an MQTT 3.1.1 client library.
//!
//! ```text
//!   commander ── agent/N ──▶ mosquitto ──▶ client N
//!             ◀── answers ──           ◀──
//! ```
//!
//! How it is set up, and why:
//! - `require_certificate`: a client needs a certificate of the authority. TLS 1.3 alone.
//! - Quality of service 0 both ways: at most once, nothing stored, which is what the other peers do and
//!   the cheapest that MQTT has. MQTT 5's response topics and correlation data would only add bytes: a
//!   command's number is in the first eight bytes of its payload, which the client sends back.
//! - Every client has a topic of its own; all answers go to one that only the commander reads.
//! - `set_tcp_nodelay`, without which small messages wait for an ACK; no persistence, no `$SYS` topics,
//!   no log of connections. The queue of a client is longer than the default thousand: a full one
//!   drops messages, and all answers go through the commander's.
//! - Clients ping every 10 seconds (MQTT's keep-alive).
//! - A client says hello once its subscription is in force, one message of a few bytes: the commander
//!   would otherwise not know when the fleet is there.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, NetworkOptions, Publish, PublishOptions,
    QoS, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use tokio::runtime;

use super::brokers::{self, Greeted};
use super::load::Ticket;
use super::orders::{self, Held};
use super::{KEEP_ALIVE, PAYLOAD_BYTES, Peer, Role, Server};

const NAME: &str = "mosquitto";
/// Registered for MQTT (IANA); the broker does not ask.
const ALPN: &[u8] = b"mqtt";
/// Clients say here that they are there.
const HELLO: &str = "hello";
/// Clients answer here.
const ANSWERS: &str = "answers";
/// Requests that a client's connection may have waiting.
const REQUESTS_MAX: usize = 16;
/// The same for the commander, which sends them all.
const COMMANDS_MAX: usize = 65_536;

/// mosquitto.
pub(super) const MOSQUITTO: Peer = Peer {
    name: NAME,
    about: "mosquitto 2.0, TLS with client certificates, QoS 0, a topic per client",
    server: Server::Broker { program, commander },
    clients,
};

fn program(dir: &Path, address: SocketAddr) -> anyhow::Result<Command> {
    let program = brokers::find("mosquitto", NAME)?;
    let file = |name: &str| dir.join(name).display().to_string();
    // As root it would otherwise become a user that may not read the keys.
    let config = format!(
        "user root\n\
         listener {port} {ip}\n\
         cafile {}\n\
         certfile {}\n\
         keyfile {}\n\
         require_certificate true\n\
         tls_version tlsv1.3\n\
         allow_anonymous true\n\
         set_tcp_nodelay true\n\
         max_queued_messages 100000\n\
         persistence false\n\
         sys_interval 0\n\
         connection_messages false\n\
         log_dest file {}\n\
         log_type error\n\
         log_type warning\n",
        file("ca.pem"),
        file("server.pem"),
        file("server.key"),
        file("mosquitto.log"),
        port = address.port(),
        ip = address.ip(),
    );
    let path = dir.join("mosquitto.conf");
    fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(path);
    Ok(command)
}

/// Connects and subscribes; from then on somebody must poll the event loop.
async fn connect(
    server: SocketAddr,
    tls: ClientConfig,
    name: String,
    topics: &[&str],
    requests: usize,
) -> anyhow::Result<(AsyncClient, EventLoop)> {
    let broker = (server.ip().to_string(), server.port());
    let mut options = MqttOptions::new(name, broker);
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
        Arc::new(tls),
    )));
    options.set_keep_alive(u16::try_from(KEEP_ALIVE.as_secs())?);
    let (client, mut events) = AsyncClient::builder(options).capacity(requests).build();
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    wait(&mut events, |event| matches!(event, Incoming::ConnAck(_))).await?;
    for topic in topics {
        client.try_subscribe(*topic, QoS::AtMostOnce)?;
        wait(&mut events, |event| matches!(event, Incoming::SubAck(_))).await?;
    }
    Ok((client, events))
}

async fn wait(events: &mut EventLoop, what: impl Fn(&Incoming) -> bool) -> anyhow::Result<()> {
    loop {
        if let Event::Incoming(event) = events.poll().await?
            && what(&event)
        {
            return Ok(());
        }
    }
}

/// Takes what comes. A connection that broke is lost, as with the other peers.
async fn listen(mut events: EventLoop, message: impl Fn(Publish)) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Incoming::Publish(publish))) => message(publish),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection broke");
                return;
            }
        }
    }
}

fn current_thread() -> anyhow::Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn commander(role: Role) -> anyhow::Result<()> {
    current_thread()?.block_on(async {
        let tls = role.material.client_tls(role.material.commander(), ALPN)?;
        let topics = [HELLO, ANSWERS];
        let (client, events) =
            connect(role.address, tls, NAME.into(), &topics, COMMANDS_MAX).await?;
        let held = Arc::new(Sessions {
            client,
            greeted: Greeted::default(),
            next: AtomicU64::new(0),
            under_way: Mutex::default(),
        });
        let listening = Arc::clone(&held);
        tokio::spawn(listen(events, move |publish| listening.take(&publish)));
        orders::follow_server(role.orders, role.address, &*held).await
    })
}

/// What a commander knows of the sessions.
struct Sessions {
    client: AsyncClient,
    greeted: Greeted,
    next: AtomicU64,
    /// By number.
    under_way: Mutex<HashMap<u64, Ticket>>,
}

impl Sessions {
    fn take(&self, publish: &Publish) {
        if publish.topic == HELLO.as_bytes() {
            self.greeted.hello(&publish.payload);
            return;
        }
        let number = publish.payload.first_chunk().copied();
        let ticket = number.and_then(|number| self.lock().remove(&u64::from_be_bytes(number)));
        match ticket {
            Some(ticket) if publish.payload.len() == PAYLOAD_BYTES => ticket.answered(),
            _ => tracing::warn!("an answer to no command"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Ticket>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held for Sessions {
    fn count(&self) -> usize {
        self.greeted.count()
    }

    fn command(&self, session: usize, ticket: Ticket) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut payload = vec![0xc0; PAYLOAD_BYTES];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        self.lock().insert(number, ticket);
        let options = PublishOptions::at_most_once();
        if let Err(error) = self.client.try_publish(topic(session), payload, options) {
            tracing::warn!(%error, "a command was lost");
            self.lock().remove(&number);
        }
    }
}

fn clients(role: Role) -> anyhow::Result<()> {
    let Role {
        material,
        address,
        orders,
        ..
    } = role;
    let material = &material;
    let connect = |n: usize| async move {
        let credentials = material.clients().get(n).context("no such client")?;
        let tls = material.client_tls(credentials, ALPN)?;
        let own = topic(n);
        let (client, events) = connect(address, tls, own.clone(), &[&own], REQUESTS_MAX).await?;
        let hello = PublishOptions::at_most_once();
        client.try_publish(HELLO, n.to_string(), hello)?;
        tokio::spawn(listen(events, move |command| {
            let answer = PublishOptions::at_most_once();
            if let Err(error) = client.try_publish(ANSWERS, command.payload, answer) {
                tracing::warn!(%error, "a command cannot be answered");
            }
        }));
        Ok(())
    };
    current_thread()?.block_on(orders::follow_clients(orders, address, connect))
}

fn topic(session: usize) -> String {
    format!("agent/{session}")
}
