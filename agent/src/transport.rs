//! QUIC settings of an agent, its sockets, and how it finds a gateway's address.
//!
//! The first destination connection id carries the group's slot, so that the packet that opens a
//! session already reaches the shard that is home to the group (`protocol::steering`).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use protocol::identity::GATEWAY_SERVER_NAME;
use protocol::ids::Slot;
use protocol::{limits, steering};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, ConnectionError, ConnectionId, Endpoint,
    EndpointConfig, IdleTimeout, Runtime as _, TokenStore, TokioRuntime, TransportConfig,
    UdpPoller, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Kernel buffer of an agent's socket, each way. The kernel may grant less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// The QUIC side of one connection attempt of a session.
pub(crate) fn session_config(
    tls: Arc<QuicClientConfig>,
    tokens: Arc<dyn TokenStore>,
    slot: Slot,
    keep_alive: Duration,
) -> ClientConfig {
    // Four times what a gateway has open at once: QUIC tells of new stream credit when an eighth of
    // it is used up, in a datagram that is of no other use.
    let streams = VarInt::from_u32(4 * limits::CAPACITY_MAX);
    let mut config = ClientConfig::new(tls);
    config.transport_config(Arc::new(transport(streams, keep_alive)));
    config.token_store(tokens);
    config.initial_dst_cid_provider(Arc::new(move || {
        ConnectionId::new(&steering::initial_destination_id(slot, rand::random()))
    }));
    config
}

/// The QUIC side of an enrolment.
pub(crate) fn enrolment_config(tls: Arc<QuicClientConfig>) -> ClientConfig {
    let mut config = ClientConfig::new(tls);
    config.transport_config(Arc::new(transport(
        VarInt::from_u32(0),
        limits::AGENT_KEEP_ALIVE,
    )));
    config
}

fn transport(streams_from_gateway: VarInt, keep_alive: Duration) -> TransportConfig {
    // The limits are constants of a few hundred thousand bytes: they fit.
    let window = |bytes: usize| VarInt::from_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(streams_from_gateway)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(window(limits::STREAM_WINDOW_BYTES))
        .receive_window(window(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::CONNECTION_WINDOW_BYTES as u64)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None)
        .max_idle_timeout(IdleTimeout::try_from(limits::IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(keep_alive));
    config
}

/// An endpoint for one agent: IPv6 and IPv4, any port.
///
/// # Errors
/// The operating system's.
pub fn endpoint() -> io::Result<Endpoint> {
    let v6 = socket((Ipv6Addr::UNSPECIFIED, 0).into());
    let socket = v6.or_else(|_| socket((Ipv4Addr::UNSPECIFIED, 0).into()))?;
    Endpoint::new(
        EndpointConfig::default(),
        None,
        socket,
        Arc::new(TokioRuntime),
    )
}

fn socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel caps them at net.core.{r,w}mem_max.
    let sizes = [
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES),
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES),
    ];
    if let Some(error) = sizes.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "the socket keeps its default buffers");
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It could not be begun.
    #[error("the connection could not be begun: {0}")]
    Begin(#[from] quinn::ConnectError),
    /// It broke.
    #[error(transparent)]
    Broken(#[from] ConnectionError),
    /// It took too long.
    #[error("nothing answered in time")]
    TimedOut,
}

/// A `host:port` could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not of the form.
    #[error("`{0}` is not HOST:PORT (such as gateway.example:7443 or [2001:db8::1]:7443)")]
    Form(String),
    /// The name is not known.
    #[error("the name of `{address}` could not be resolved: {source}")]
    Unresolved {
        /// What was asked for.
        address: String,
        /// The resolver's words.
        source: io::Error,
    },
    /// It only has addresses that this machine's socket cannot reach.
    #[error("`{0}` has no address that this machine can reach: it has no IPv6")]
    Family(String),
}

/// Checks the form of a `host:port` without resolving it.
///
/// # Errors
/// [`AddressError::Form`].
pub fn check_address(address: &str) -> Result<(), AddressError> {
    let parts = address.rsplit_once(':');
    let good = parts.is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    good.then_some(())
        .ok_or_else(|| AddressError::Form(address.to_owned()))
}

/// Connections that are tried for one name; resolvers return few.
const ADDRESSES_PER_NAME_MAX: usize = 4;

/// Connects to `host:port`: to each address of the name in turn, for an equal part of `within`.
///
/// # Errors
/// [`DialError`]: of the last address.
pub async fn connect(
    endpoint: &Endpoint,
    address: &str,
    config: &ClientConfig,
    within: Duration,
) -> Result<Connection, DialError> {
    let found = resolve(endpoint, address).await?;
    let share = within / u32::try_from(found.len()).unwrap_or(1).max(1);
    let mut last = DialError::TimedOut;
    for to in found {
        let connecting = endpoint.connect_with(config.clone(), to, GATEWAY_SERVER_NAME)?;
        match tokio::time::timeout(share, connecting).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = error.into(),
            Err(_) => last = DialError::TimedOut,
        }
    }
    Err(last)
}

/// The addresses of `host:port` that `endpoint` can reach: at least one.
async fn resolve(endpoint: &Endpoint, address: &str) -> Result<Vec<SocketAddr>, AddressError> {
    check_address(address)?;
    // Literal addresses need no resolver thread: a fleet would queue for them.
    let mut found: Vec<SocketAddr> = match address.parse() {
        Ok(literal) => vec![literal],
        Err(_) => tokio::net::lookup_host(address)
            .await
            .map_err(|source| AddressError::Unresolved {
                address: address.to_owned(),
                source,
            })?
            .collect(),
    };
    let any_family = endpoint.local_addr().is_ok_and(|local| local.is_ipv6());
    found.retain(|found| any_family || found.is_ipv4());
    found.truncate(ADDRESSES_PER_NAME_MAX);
    match found.is_empty() {
        true => Err(AddressError::Family(address.to_owned())),
        false => Ok(found),
    }
}

/// An endpoint that can fall silent: for fleets whose agents are to die like killed processes.
/// Dropping a QUIC connection says goodbye; a silenced socket swallows that, and whatever still
/// comes in.
#[derive(Clone, Debug)]
pub struct SilenceableEndpoint {
    endpoint: Endpoint,
    socket: Arc<SilenceableSocket>,
}

impl SilenceableEndpoint {
    /// Binds one to `local`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind(local: SocketAddr) -> io::Result<Self> {
        let runtime = Arc::new(TokioRuntime);
        let socket = Arc::new(SilenceableSocket {
            inner: runtime.wrap_udp_socket(socket(local)?)?,
            silent: AtomicBool::new(false),
        });
        let shared = Arc::clone(&socket) as Arc<dyn AsyncUdpSocket>;
        let config = EndpointConfig::default();
        let endpoint = Endpoint::new_with_abstract_socket(config, None, shared, runtime)?;
        Ok(Self { endpoint, socket })
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// From now on nothing leaves it and nothing reaches it.
    pub fn silence(&self) {
        self.socket.silent.store(true, Ordering::Relaxed);
    }
}

struct SilenceableSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    silent: AtomicBool,
}

impl fmt::Debug for SilenceableSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for SilenceableSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.silent.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.inner.try_send(transmit),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.inner.poll_recv(cx, bufs, meta))?;
            if !self.silent.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(received));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_leads_to_addresses_that_the_socket_can_reach() {
        let socket = SilenceableEndpoint::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = socket.endpoint();
        let found = resolve(endpoint, "localhost:7443").await.unwrap();
        assert!(
            found
                .iter()
                .all(|found| found.is_ipv4() && found.port() == 7443)
        );
        let error = resolve(endpoint, "[::1]:7443").await.unwrap_err();
        assert!(matches!(error, AddressError::Family(_)));
        let error = resolve(endpoint, "no.such.name.invalid:1")
            .await
            .unwrap_err();
        assert!(matches!(error, AddressError::Unresolved { .. }), "{error}");
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for good in ["a:1", "10.0.0.1:7443", "[::1]:7443"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in ["", "a", ":1", "a:", "a:0", "a:70000", "https://a/"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
