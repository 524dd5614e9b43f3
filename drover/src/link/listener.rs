//! The agent server's side of the link between machines: process servers come over QUIC, and each has an end
//! of the hub as if it were in this process.
//!
//! ```text
//!   process server ═ Request, Came, Draining ═▶ hear ─▶ hub ─▶ gateway
//!                  ◀═ Event, Leads ════════════ speak ◀─ hub ◀─ gateway
//! ```
//!
//! Both directions wait for room: `hear` reads no further than the hub takes, `speak` takes no more of the hub
//! than the process server reads. The hub cuts off whoever does not come.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use control::downlink::{Link as _, LinkFull, Wake};
use control::identity::AgentServerIdentity;
use gateway::hub::SERVERS_MAX;
use protocol::close::CloseCode;
use protocol::frame::{self, DecodeError};
use protocol::limits::HANDSHAKE_DEADLINE;
use protocol::link::{Event, GatewayWord, LINK_SUPPORTED, Request, ServerWord};
use quinn::{Connection, Endpoint, EndpointConfig, Incoming, SendStream, TokioRuntime, VarInt};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::Part;
use super::departure::Departure;
use super::lease::Lease;
use super::shared::{HubLink, RETRY, Shared};
use super::wire::{self, Broken, Frames, PIECE_BYTES, TlsError};

/// Events taken from the hub at once.
const EVENTS_PER_TURN: usize = 32;
/// Connections at once, those included that have not said yet who they are.
const CONNECTIONS_MAX: usize = 2 * SERVERS_MAX;
/// The ends of all connections are told within this.
const FAREWELL: Duration = Duration::from_millis(500);

/// The agent server cannot be reached by process servers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The socket.
    #[error("the link cannot listen on UDP {address}: {source}")]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// The operating system's words.
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// An address that is listened on, where nobody is let in yet.
pub(crate) struct Door {
    endpoint: Endpoint,
    address: SocketAddr,
}

/// What process servers are told of where agents come, and what they prolong.
pub(crate) struct AgentsPlace {
    /// How many shards the gateway has.
    pub(crate) shards: u16,
    /// Its UDP port.
    pub(crate) port: u16,
    /// `host:port` as configured, the best first; may be empty.
    pub(crate) addresses: Vec<String>,
    /// For how long it may dispatch.
    pub(crate) lease: Arc<Lease>,
    /// Whether it is told to stop.
    pub(crate) departure: Arc<Departure>,
}

/// Process servers come here.
pub(crate) struct Listener {
    endpoint: Endpoint,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Door {
    /// Takes the address.
    ///
    /// # Errors
    /// [`ListenError`].
    pub(crate) fn bind(
        address: SocketAddr,
        identity: &AgentServerIdentity,
    ) -> Result<Self, ListenError> {
        let config = wire::server_config(&identity.tls, &identity.process_roots)?;
        // After a restart whoever was connected learns of it at once.
        let reset = hmac::Key::new(hmac::HMAC_SHA256, &identity.secrets.reset_key);
        let bind = |source| ListenError::Bind { address, source };
        let socket = UdpSocket::bind(address).map_err(bind)?;
        let endpoint = Endpoint::new(
            EndpointConfig::new(Arc::new(reset)),
            Some(config),
            socket,
            Arc::new(TokioRuntime),
        );
        let endpoint = endpoint.map_err(bind)?;
        let address = endpoint.local_addr().map_err(bind)?;
        Ok(Self { endpoint, address })
    }

    /// Lets process servers in. What they say is passed on by [`Shared::run`].
    pub(crate) fn open(self, shared: Arc<Shared>, place: AgentsPlace) -> Listener {
        Listener {
            accepting: tokio::spawn(accept(self.endpoint.clone(), shared, Arc::new(place))),
            endpoint: self.endpoint,
            address: self.address,
        }
    }
}

impl Listener {
    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections, and lets nobody in any more.
    pub(crate) async fn stop(self) {
        self.accepting.abort();
        let code = VarInt::from_u32(CloseCode::Draining.to_wire());
        let reason = CloseCode::Draining.to_string();
        self.endpoint.close(code, reason.as_bytes());
        // Whoever is not told now learns of it by the silence.
        drop(timeout(FAREWELL, self.endpoint.wait_idle()).await);
    }
}

async fn accept(endpoint: Endpoint, shared: Arc<Shared>, place: Arc<AgentsPlace>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(incoming) = endpoint.accept().await {
        // Nobody takes a seat from an address that is not its own.
        if !incoming.remote_address_validated() && incoming.may_retry() {
            drop(incoming.retry());
            continue;
        }
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (shared, place) = (Arc::clone(&shared), Arc::clone(&place));
        tokio::spawn(async move {
            attend(incoming, &shared, &place).await;
            drop(seat);
        });
    }
}

/// One connection from its first packet to its end.
async fn attend(incoming: Incoming, shared: &Arc<Shared>, place: &AgentsPlace) {
    let from = incoming.remote_address();
    let connection = match timeout(HANDSHAKE_DEADLINE, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::warn!(%from, %error, "somebody is no process server of this deployment, or its connection failed");
            return;
        }
        Err(_) => {
            tracing::warn!(%from, "somebody came to the link and did not finish its handshake");
            return;
        }
    };
    match serve(&connection, shared, place).await {
        Ok(()) => {
            tracing::info!(%from, "a process server has left");
            wire::close(&connection, CloseCode::Normal);
        }
        Err(broken) => {
            tracing::warn!(%from, error = %broken, "a process server is gone");
            broken.close(&connection);
        }
    }
}

/// Lets a process server join and speaks with it until it leaves, or is gone.
async fn serve(
    connection: &Connection,
    shared: &Arc<Shared>,
    place: &AgentsPlace,
) -> Result<(), Broken> {
    let greeted = timeout(HANDSHAKE_DEADLINE, greet(connection)).await;
    let Greeted {
        version,
        part,
        mut stream,
        frames,
    } = greeted.map_err(|_| Broken::Silent)??;
    let (port, wake) = shared.enter(part).map_err(|_| Broken::TooMany)?;
    let (server, cut_off) = (port.server(), port.cut_off());
    let mut welcome = Vec::new();
    let word = GatewayWord::Welcome {
        version,
        gateway: port.gateway(),
        server,
        shards: place.shards,
        port: place.port,
        addresses: place.addresses.clone(),
    };
    frame::encode_gateway_word(&word, &mut welcome)?;
    stream.write_all(&welcome).await?;
    let from = connection.remote_address();
    match part {
        Part::Works => tracing::info!(%from, number = %server, "a process server has joined"),
        Part::Observes => tracing::info!(%from, number = %server, "an API server has joined"),
    }
    tokio::select! {
        heard = hear(frames, &port, place) => heard,
        said = speak(stream, &port, &wake, place) => said,
        () = cut_off.cancelled() => Err(Broken::CutOff),
    }
}

/// Whoever has come, as its first word says.
struct Greeted {
    /// In which version the rest will be.
    version: u16,
    part: Part,
    stream: SendStream,
    frames: Frames,
}

/// Hears what is said first.
async fn greet(connection: &Connection) -> Result<Greeted, Broken> {
    let (stream, frames) = connection.accept_bi().await?;
    let mut frames = Frames::of(frames);
    let first = frames.next().await?.ok_or(Broken::Ended)?;
    let ServerWord::Hello {
        versions,
        software,
        observes,
    } = frame::decode_server_word(&first)?
    else {
        return Err(Broken::Unexpected);
    };
    tracing::debug!(from = %connection.remote_address(), software, ?versions, "a process server says who it is");
    Ok(Greeted {
        version: LINK_SUPPORTED.negotiate(versions)?,
        part: match observes {
            true => Part::Observes,
            false => Part::Works,
        },
        stream,
        frames,
    })
}

/// Passes on what a process server says, until it has said all.
async fn hear(mut frames: Frames, port: &HubLink, place: &AgentsPlace) -> Result<(), Broken> {
    let lease = &place.lease;
    let mut began = false;
    while let Some(bytes) = frames.next().await? {
        match frame::decode_request(&bytes) {
            Ok(request) => pass_on(port, lease, request, began).await,
            Err(DecodeError::Identifier { .. }) => match frame::decode_server_word(&bytes)? {
                ServerWord::Came => {
                    began = true;
                    port.come();
                }
                ServerWord::Draining => port.drain(),
                ServerWord::Renewed { ticket, leave } => {
                    lease.renewed(ticket).map_err(|_| Broken::Unexpected)?;
                    place.departure.told(leave);
                }
                ServerWord::Hello { .. } => return Err(Broken::Unexpected),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until the hub has room. Meanwhile it is not the process server that hangs. A dispatch waits no longer than
/// the lease holds; after that its permit goes back instead.
async fn pass_on(port: &HubLink, lease: &Lease, mut request: Request, began: bool) {
    loop {
        if let Some(refused) = lease.refuses(&request) {
            port.answer(refused.answer);
            request = refused.instead;
        }
        let Err(LinkFull(refused)) = port.send(request) else {
            return;
        };
        request = *refused;
        if began {
            port.come();
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Tells a process server what the hub has for it, as fast as it reads; ends with the connection.
async fn speak(
    mut stream: SendStream,
    port: &HubLink,
    wake: &Wake,
    place: &AgentsPlace,
) -> Result<(), Broken> {
    let AgentsPlace {
        lease, departure, ..
    } = place;
    let (mut leads, mut leaves) = (false, false);
    let mut renew_at = Instant::now();
    let mut piece = Vec::new();
    let mut events = Vec::with_capacity(EVENTS_PER_TURN);
    loop {
        let leads_now = port.leads();
        if leads_now != leads {
            leads = leads_now;
            frame::encode_gateway_word(&GatewayWord::Leads { leads }, &mut piece)?;
        }
        let leaving = departure.leaves_in();
        let anew = !std::mem::replace(&mut leaves, leaving.is_some()) && leaves;
        if anew || Instant::now() >= renew_at {
            let every = leaving.map_or(lease.renew_every(), |(_, every)| every);
            renew_at = Instant::now() + every;
            let word = GatewayWord::Renew {
                ticket: lease.ticket(),
                leaves_in: leaving.map(|(left, _)| left),
            };
            frame::encode_gateway_word(&word, &mut piece)?;
        }
        while piece.len() < PIECE_BYTES && port.take(&mut events, EVENTS_PER_TURN) > 0 {
            for event in events.drain(..) {
                write(&event, &mut piece);
            }
        }
        if piece.is_empty() {
            tokio::select! {
                () = wake.rung() => {}
                () = sleep_until(renew_at) => {}
                () = departure.begun(), if !leaves => {}
            }
            continue;
        }
        stream.write_all(&piece).await?;
        piece.clear();
        piece.shrink_to(PIECE_BYTES);
    }
}

fn write(event: &Event, out: &mut Vec<u8>) {
    if let Err(error) = frame::encode_event(event, out) {
        // Whatever an agent says has been checked against the same limits. If one of our own is wrong, asking
        // again will mend more than the end of the connection.
        tracing::error!(%error, ?event, "an event could not be sent to a process server");
    }
}

#[cfg(test)]
mod tests {
    use protocol::version::VersionRange;
    use quinn::ConnectionError;

    use super::super::wire::tests::{Deployment, meet};
    use super::*;

    /// What somebody is told who begins like this.
    async fn answer(first: &[u8]) -> String {
        let ours = Deployment::new();
        let met = meet(ours.server(), ours.process_server()).await;
        let (server, client) = (met.server.unwrap(), met.client.unwrap());
        let (mut stream, _) = client.open_bi().await.unwrap();
        stream.write_all(first).await.unwrap();
        let Err(broken) = greet(&server).await else {
            return "welcome".to_owned();
        };
        broken.close(&server);
        match client.closed().await {
            ConnectionError::ApplicationClosed(close) => {
                let code = CloseCode::from_wire(close.error_code.into_inner()).unwrap();
                format!("{code:?}: {}", String::from_utf8_lossy(&close.reason))
            }
            other => panic!("{other}"),
        }
    }

    fn hello(oldest: u16, newest: u16) -> Vec<u8> {
        let word = ServerWord::Hello {
            versions: VersionRange { oldest, newest },
            software: "test".to_owned(),
            observes: false,
        };
        let mut bytes = Vec::new();
        frame::encode_server_word(&word, &mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn whoever_begins_wrongly_is_told_why() {
        assert_eq!(answer(&hello(1, 9)).await, "welcome");
        let old = answer(&hello(8, 9)).await;
        assert!(
            old.starts_with("VersionMismatch: ") && old.contains("8–9"),
            "{old}"
        );
        let mut came = Vec::new();
        frame::encode_server_word(&ServerWord::Came, &mut came).unwrap();
        let came = answer(&came).await;
        assert!(came.starts_with("UnexpectedFrame: "), "{came}");
        let mut request = Vec::new();
        let drain = Request::AskUse { keys: Vec::new() };
        frame::encode_request(&drain, &mut request).unwrap();
        let request = answer(&request).await;
        assert!(
            request.starts_with("BadFrame: ") && request.contains("DRLS"),
            "{request}"
        );
        let huge = answer(&u32::MAX.to_le_bytes()).await;
        assert!(huge.starts_with("BadFrame: "), "{huge}");
    }
}
