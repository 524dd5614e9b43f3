//! What crypto and kernel cost without a server around them.
//!
//! ```text
//!   handshake   rustls and quinn-proto, both sides in memory; only the server's calls are timed
//!   protection  packet protection of one datagram in and one out
//!   echo        every datagram back, on the gateway's own io_uring datapath; measured from outside
//! ```

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig,
    ServerConfig, TransportConfig,
};
use rustix::time::{ClockId, clock_gettime};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384;
use rustls::quic::{DirectionalKeys, Keys, Version};

use super::material::{Material, SERVER_NAME};
use crate::clock;

/// A floor that a process of its own measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Floor {
    /// Microseconds of a server's side of an mTLS handshake.
    Handshake,
    /// Microseconds of the packet protection of one datagram in and one out.
    Protection,
    /// Echoes datagrams until standard input ends; prints its address.
    Echo,
}

/// ALPN of the handshake.
const ALPN: &[u8] = b"compare-floor";
/// Handshakes that do not count, and those that do.
const HANDSHAKES: (usize, usize) = (100, 1000);
/// Datagrams that are timed together, and how often.
const BATCH: usize = 64;
const BATCHES: usize = 4000;
/// Connection id in a short header; the whole header, with a packet number of four bytes; the tag.
const CONNECTION_ID_BYTES: usize = 8;
const HEADER_BYTES: usize = 1 + CONNECTION_ID_BYTES + 4;
const TAG_BYTES: usize = 16;
/// Payload, header, tag and a stream frame's head.
pub const DATAGRAM_BYTES: usize = super::PAYLOAD_BYTES + HEADER_BYTES + TAG_BYTES + 8;
/// Flights of a handshake, far above what one takes.
const FLIGHTS_MAX: usize = 20;

/// Measures one floor and prints it, or echoes.
///
/// # Errors
/// When the libraries or the kernel refuse.
pub fn measure(floor: Floor, dir: &Path) -> anyhow::Result<()> {
    match floor {
        Floor::Handshake => println!("{}", handshake(&Material::load(dir)?)?),
        Floor::Protection => println!("{}", protection()?),
        Floor::Echo => {
            let echo = gateway::bench::Echo::start(dir.join("echo.lock"))?;
            println!("{}", echo.local_addr());
            std::io::stdout().flush()?;
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
    }
    Ok(())
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// One end of a connection in memory.
struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    remote: SocketAddr,
    buffer: Vec<u8>,
}

impl End {
    fn new(server: Option<ServerConfig>, remote: SocketAddr) -> Self {
        let config = Arc::new(EndpointConfig::default());
        Self {
            endpoint: Endpoint::new(config, server.map(Arc::new), true, None),
            connection: None,
            remote,
            buffer: Vec::new(),
        }
    }

    /// Takes one flight.
    fn receive(&mut self, now: Instant, flight: Vec<BytesMut>) -> anyhow::Result<()> {
        for datagram in flight {
            self.buffer.clear();
            let event =
                self.endpoint
                    .handle(now, self.remote, None, None, datagram, &mut self.buffer);
            match event {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = self
                        .endpoint
                        .accept(incoming, now, &mut self.buffer, None)
                        .map_err(|error| error.cause)?;
                    self.connection = Some(accepted);
                }
                Some(DatagramEvent::ConnectionEvent(of, event)) => match &mut self.connection {
                    Some((handle, connection)) if *handle == of => connection.handle_event(event),
                    _ => bail!("a datagram of another connection"),
                },
                Some(DatagramEvent::Response(_)) | None => bail!("a datagram was refused"),
            }
        }
        Ok(())
    }

    /// Does what there is to do and sends one flight.
    fn send(&mut self, now: Instant) -> Vec<BytesMut> {
        let Some((handle, connection)) = &mut self.connection else {
            return Vec::new();
        };
        while connection.poll().is_some() {}
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut flight = Vec::new();
        self.buffer.clear();
        while let Some(transmit) = connection.poll_transmit(now, 1, &mut self.buffer) {
            flight.push(BytesMut::from(&self.buffer[..transmit.size]));
            self.buffer.clear();
        }
        flight
    }

    fn is_up(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|(_, connection)| !connection.is_handshaking())
    }
}

/// The server's CPU time of one handshake, in microseconds: rustls, quinn-proto and nothing else.
fn handshake(material: &Material) -> anyhow::Result<f64> {
    let transport = Arc::new(transport());
    let (server_address, client_address) = (
        SocketAddr::from(([127, 0, 0, 1], 4433)),
        SocketAddr::from(([127, 0, 0, 1], 4434)),
    );
    let tls = QuicServerConfig::try_from(material.server_tls(ALPN)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::clone(&transport));
    let mut server = End::new(Some(config), client_address);
    let mut client = End::new(None, server_address);
    let (warm_up, counted) = HANDSHAKES;
    let mut spent = Duration::ZERO;
    let mut kept = Vec::with_capacity(warm_up + counted);
    for n in 0..warm_up + counted {
        let credentials = &material.clients()[n % material.clients().len()];
        let tls = QuicClientConfig::try_from(material.client_tls(credentials, ALPN)?)?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::clone(&transport));
        let now = clock::now();
        let opened = client
            .endpoint
            .connect(now, config, server_address, SERVER_NAME)?;
        client.connection = Some(opened);
        let took = shake(&mut client, &mut server, now)?;
        if n >= warm_up {
            spent += took;
        }
        // Sessions stay, as in a fleet.
        kept.push((client.connection.take(), server.connection.take()));
    }
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    let handshakes = counted as f64;
    Ok(spent.as_secs_f64() * 1e6 / handshakes)
}

/// One handshake; answers the CPU time of the server's part.
fn shake(client: &mut End, server: &mut End, now: Instant) -> anyhow::Result<Duration> {
    let mut spent = Duration::ZERO;
    for _ in 0..FLIGHTS_MAX {
        let flight = client.send(now);
        let is_last = flight.is_empty();
        let begin = cpu_time();
        server.receive(now, flight)?;
        let flight = server.send(now);
        spent += cpu_time() - begin;
        if is_last && flight.is_empty() {
            break;
        }
        client.receive(now, flight)?;
    }
    match client.is_up() && server.is_up() {
        true => Ok(spent),
        false => bail!("the handshake did not end"),
    }
}

/// As small as it gets: no probes, no streams from the client.
fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(1_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None);
    transport
}

/// Packet protection with the suite that rustls prefers, AES-256-GCM: one datagram sealed and one
/// opened, header protection included, in microseconds.
fn protection() -> anyhow::Result<f64> {
    let suite = TLS13_AES_256_GCM_SHA384
        .tls13()
        .context("no TLS 1.3 suite")?;
    let quic = suite.quic.context("no QUIC keys")?;
    let id = [7; 8];
    let of = |side| Keys::initial(Version::V1, suite, quic, &id, side);
    let (server, client) = (of(rustls::Side::Server), of(rustls::Side::Client));
    let mut batch = vec![vec![0; DATAGRAM_BYTES]; BATCH];
    let mut spent = Duration::ZERO;
    for _ in 0..BATCHES {
        for (number, datagram) in (0..).zip(&mut batch) {
            seal(&client.local, number, datagram)?;
        }
        let begin = cpu_time();
        for (number, datagram) in (0..).zip(&mut batch) {
            open(&server.remote, number, datagram)?;
            seal(&server.local, number, datagram)?;
        }
        spent += cpu_time() - begin;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let counted = (BATCH * BATCHES) as f64;
    Ok(spent.as_secs_f64() * 1e6 / counted)
}

/// Protects a datagram of a short header (RFC 9001 §5.3, §5.4): first byte, connection id, packet
/// number, payload, tag.
fn seal(keys: &DirectionalKeys, number: u64, datagram: &mut [u8]) -> anyhow::Result<()> {
    let (header, rest) = datagram.split_at_mut(HEADER_BYTES);
    let (payload, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
    header[0] = 0x43;
    let sealed = keys.packet.encrypt_in_place(number, header, payload)?;
    tag.copy_from_slice(sealed.as_ref());
    let (first, pn) = protected(header);
    keys.header
        .encrypt_in_place(&rest[..keys.header.sample_len()], first, pn)?;
    Ok(())
}

/// Opens what [`seal`] protected.
fn open(keys: &DirectionalKeys, number: u64, datagram: &mut [u8]) -> anyhow::Result<()> {
    let (header, rest) = datagram.split_at_mut(HEADER_BYTES);
    let (first, pn) = protected(header);
    keys.header
        .decrypt_in_place(&rest[..keys.header.sample_len()], first, pn)?;
    keys.packet.decrypt_in_place(number, header, rest)?;
    Ok(())
}

/// The parts of a header that are hidden: the first byte and the packet number.
fn protected(header: &mut [u8]) -> (&mut u8, &mut [u8]) {
    let (first, rest) = header.split_at_mut(1);
    (&mut first[0], &mut rest[CONNECTION_ID_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_above_nothing() {
        assert!(protection().unwrap() > 0.0);
        let dir = tempfile::tempdir().unwrap();
        assert!(handshake(&Material::make(dir.path(), 2).unwrap()).unwrap() > 1.0);
    }
}
