//! quinn on tokio, as its documentation shows it (`quinn`), and with every knob that was found to help
//! (`quinn-tuned`). One bidirectional stream per command.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, SendStream, ServerConfig,
    TransportConfig,
};
use tokio::runtime;

use super::load::Ticket;
use super::material::{Material, SERVER_NAME};
use super::orders::{self, Held};
use super::{IDLE_TIMEOUT, KEEP_ALIVE, PAYLOAD_BYTES, Peer, Role, Server};

/// ALPN of this peer, and of every server that its clients are to talk to.
pub(super) const ALPN: &[u8] = b"compare-quinn";
/// Clients that share a socket, as in the fleet of `hold`.
const CLIENTS_PER_SOCKET: usize = 500;

/// quinn as in its documentation.
pub(super) const STOCK: Peer = Peer {
    name: "quinn",
    about: "quinn 0.11 on tokio's multi-thread runtime, transport settings as they come",
    server: Server::Library(|role| serve(role, &multi_thread()?, TransportConfig::default())),
    clients,
};

/// quinn with every knob that was found to help.
pub(super) const TUNED: Peer = Peer {
    name: "quinn-tuned",
    about: "quinn 0.11 on one tokio thread; few streams, no MTU probes, no datagrams",
    server: Server::Library(|role| {
        let mut transport = TransportConfig::default();
        transport
            // Clients open none; every stream that they might open costs memory beforehand.
            .max_concurrent_bidi_streams(1_u32.into())
            .max_concurrent_uni_streams(0_u32.into())
            .datagram_receive_buffer_size(None)
            .mtu_discovery_config(None);
        serve(role, &current_thread()?, transport)
    }),
    clients,
};

fn multi_thread() -> anyhow::Result<runtime::Runtime> {
    Ok(runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn current_thread() -> anyhow::Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn serve(
    role: Role,
    runtime: &runtime::Runtime,
    mut transport: TransportConfig,
) -> anyhow::Result<()> {
    transport.max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT)?));
    let tls = QuicServerConfig::try_from(role.material.server_tls(ALPN)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    runtime.block_on(async {
        let endpoint = Endpoint::server(config, role.address)?;
        let address = endpoint.local_addr()?;
        let held = Arc::new(Sessions::default());
        tokio::spawn(accept(endpoint, Arc::clone(&held)));
        orders::follow_server(role.orders, address, &*held).await
    })
}

/// The sessions of a server.
#[derive(Default)]
struct Sessions(Mutex<Vec<Connection>>);

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held for Sessions {
    fn count(&self) -> usize {
        self.lock().len()
    }

    fn command(&self, session: usize, ticket: Ticket) {
        let Some(connection) = self.lock().get(session).cloned() else {
            return;
        };
        tokio::spawn(async move {
            match command(&connection).await {
                Ok(()) => ticket.answered(),
                Err(error) => tracing::warn!(%error, "a command was lost"),
            }
        });
    }
}

async fn accept(endpoint: Endpoint, held: Arc<Sessions>) {
    while let Some(incoming) = endpoint.accept().await {
        let held = Arc::clone(&held);
        tokio::spawn(async move {
            match incoming.await {
                Ok(connection) => held.lock().push(connection),
                Err(error) => tracing::warn!(%error, "a handshake failed"),
            }
        });
    }
}

/// Sends a command and reads its answer.
async fn command(connection: &Connection) -> anyhow::Result<()> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&[0xc0; PAYLOAD_BYTES]).await?;
    send.finish()?;
    let answer = receive.read_to_end(PAYLOAD_BYTES).await?;
    anyhow::ensure!(answer.len() == PAYLOAD_BYTES, "the answer is too short");
    Ok(())
}

/// The clients of every QUIC peer that takes quinn's ALPN.
pub(super) fn clients(role: Role) -> anyhow::Result<()> {
    current_thread()?.block_on(async {
        let material = &role.material;
        let sockets = material.clients().len().div_ceil(CLIENTS_PER_SOCKET);
        let endpoints = (0..sockets)
            .map(|_| Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))))
            .collect::<Result<Vec<_>, _>>()?;
        let transport = Arc::new(client_transport()?);
        let server = role.address;
        let connect = |n: usize| {
            let (endpoints, transport) = (&endpoints, Arc::clone(&transport));
            async move {
                let config = client_config(material, n, transport)?;
                let endpoint = &endpoints[n / CLIENTS_PER_SOCKET];
                let connection = endpoint.connect_with(config, server, SERVER_NAME)?.await?;
                tokio::spawn(answer(connection.clone()));
                Ok(connection)
            }
        };
        orders::follow_clients(role.orders, server, connect).await
    })
}

/// Small windows and no MTU probes: what clients do is the same for every QUIC peer.
fn client_transport() -> anyhow::Result<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT)?))
        .max_concurrent_bidi_streams(16_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None);
    Ok(transport)
}

fn client_config(
    material: &Material,
    n: usize,
    transport: Arc<TransportConfig>,
) -> anyhow::Result<ClientConfig> {
    let credentials = material.clients().get(n).context("no such client")?;
    let tls = QuicClientConfig::try_from(material.client_tls(credentials, ALPN)?)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport);
    Ok(config)
}

/// Answers every command of a connection until it ends.
async fn answer(connection: Connection) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        // A broken stream is lost: the server says so.
        tokio::spawn(async move { drop(answer_one(send, receive).await) });
    }
}

async fn answer_one(mut send: SendStream, mut receive: RecvStream) -> anyhow::Result<()> {
    let command = receive.read_to_end(PAYLOAD_BYTES).await?;
    send.write_all(&command).await?;
    send.finish()?;
    Ok(())
}
