//! compio-quic: quinn-proto on compio, a completion-based runtime with one thread, over io_uring. One
//! bidirectional stream per command, opened by the server.
//!
//! How it is set up, and why:
//! - TLS is rustls with aws-lc-rs, as for every peer that takes rustls. The library's own builders come
//!   only together with ring, so the configuration is made by hand; they would make the same one.
//! - The knobs that make quinn-proto lean (few streams announced, as they cost memory whether used or not;
//!   no MTU probes; no datagram buffer) are set; clients may open 16 streams, of `quinn-tuned` one.
//! - The ring is compio's default, through io_uring alone (no fallback is compiled in).
//! - Payloads go in and out as `Bytes`, its way without a copy.
//! - Clients are quinn's, the same as for every QUIC peer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use compio::net::UdpSocket;
use compio::quic::crypto::rustls::QuicServerConfig;
use compio::quic::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig,
};
use compio::runtime::Runtime;
use compio::time::{sleep, sleep_until};

use super::load::{Load, LoadReport, LoadSpec};
use super::orders::{Answer, Order};
use super::{IDLE_TIMEOUT, PAYLOAD_BYTES, Peer, Role, Server, quinn};
use crate::clock;

/// Sessions that do not come within this time never will.
const AWAIT_MAX: Duration = Duration::from_secs(120);

/// compio-quic.
pub(super) const COMPIO: Peer = Peer {
    name: "compio-quic",
    about: "compio-quic 0.8 on io_uring, few streams announced, no MTU probes",
    server: Server::Library(serve),
    clients: quinn::clients,
};

fn serve(role: Role) -> anyhow::Result<()> {
    Runtime::new()?.block_on(follow(role))
}

fn config(role: &Role) -> anyhow::Result<ServerConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT)?))
        .max_concurrent_bidi_streams(16_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None);
    let tls = QuicServerConfig::try_from(role.material.server_tls(quinn::ALPN)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Sessions of one thread.
type Sessions = Rc<RefCell<Vec<Connection>>>;

/// As `orders::follow_server`, which needs tokio.
async fn follow(mut role: Role) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(role.address).await?;
    let server = Some(config(&role)?);
    let endpoint = Endpoint::new(socket, EndpointConfig::default(), server, None)?;
    role.orders.answer(&Answer::Ready(endpoint.local_addr()?))?;
    let held = Sessions::default();
    compio::runtime::spawn(accept(endpoint, Rc::clone(&held))).detach();
    while let Some(order) = role.orders.next().await {
        let answer = match order {
            Order::Expect { .. } => Answer::Sessions(held.borrow().len()),
            Order::Await { sessions } => match awaited(&held, sessions).await {
                Ok(()) => Answer::Sessions(held.borrow().len()),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Order::Load(spec) => match run_load(spec, &held).await {
                Ok(report) => Answer::Loaded(report),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Order::Grow { .. } => Answer::Failed("a server does not grow".into()),
        };
        role.orders.answer(&answer)?;
    }
    Ok(())
}

async fn accept(endpoint: Endpoint, held: Sessions) {
    while let Some(incoming) = endpoint.wait_incoming().await {
        let held = Rc::clone(&held);
        compio::runtime::spawn(async move {
            match incoming.await {
                Ok(connection) => held.borrow_mut().push(connection),
                Err(error) => tracing::warn!(%error, "a handshake failed"),
            }
        })
        .detach();
    }
}

async fn awaited(held: &Sessions, sessions: usize) -> anyhow::Result<()> {
    let begin = clock::now();
    while held.borrow().len() < sessions {
        if clock::now() - begin > AWAIT_MAX {
            bail!("{} of {sessions} sessions came", held.borrow().len());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn run_load(spec: LoadSpec, held: &Sessions) -> anyhow::Result<LoadReport> {
    let there = held.borrow().len();
    if there < spec.sessions {
        bail!("{there} of {} sessions are there", spec.sessions);
    }
    let mut load = Load::new(spec, clock::now())?;
    while !load.is_over() {
        sleep_until(load.next_due()).await;
        while let Some((session, ticket)) = load.due(clock::now()) {
            let Some(connection) = held.borrow().get(session).cloned() else {
                continue;
            };
            compio::runtime::spawn(async move {
                match command(&connection).await {
                    Ok(()) => ticket.answered(),
                    Err(error) => tracing::warn!(%error, "a command was lost"),
                }
            })
            .detach();
        }
    }
    while !load.is_settled(clock::now()) {
        sleep(Duration::from_millis(5)).await;
    }
    load.report(clock::now())
}

/// Sends a command and reads its answer.
async fn command(connection: &Connection) -> anyhow::Result<()> {
    let (mut send, mut receive) = connection.open_bi_wait().await?;
    let payload = Bytes::from_static(&[0xc0; PAYLOAD_BYTES]);
    send.write_all_chunks(&mut [payload]).await?;
    send.finish()?;
    let mut received = 0;
    while let Some(chunk) = receive.read_chunk(PAYLOAD_BYTES, true).await? {
        received += chunk.bytes.len();
    }
    anyhow::ensure!(received == PAYLOAD_BYTES, "{received} bytes were answered");
    Ok(())
}
