//! A QUIC client of quinn-proto and a plain socket: everything it sends and receives is counted.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use protocol::agent::ALPN_SESSION;
use protocol::identity::GATEWAY_SERVER_NAME;
use protocol::limits::COMMAND_STREAMS_MAX;
use protocol::steering::CONNECTION_ID_BYTES;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, ConnectionId, DatagramEvent,
    Endpoint, EndpointConfig, Event, StreamEvent, Transmit, TransportConfig,
};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use super::authority::Credentials;
use super::{PATIENCE, now};

#[derive(Clone)]
pub(crate) struct ClientOptions {
    pub(crate) server: SocketAddr,
    pub(crate) gateway_root: CertificateDer<'static>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) alpn: Vec<u8>,
    pub(crate) first_id: Option<[u8; CONNECTION_ID_BYTES]>,
}

impl ClientOptions {
    pub(crate) fn session(
        server: SocketAddr,
        root: CertificateDer<'static>,
        credentials: &Credentials,
    ) -> Self {
        Self {
            server,
            gateway_root: root,
            credentials: Some(credentials.clone()),
            alpn: ALPN_SESSION.to_vec(),
            first_id: None,
        }
    }
}

pub(crate) struct Client {
    socket: UdpSocket,
    endpoint: Endpoint,
    handle: ConnectionHandle,
    pub(crate) connection: Connection,
    pub(crate) connected: bool,
    pub(crate) lost: Option<ConnectionError>,
    pub(crate) stream_events: Vec<StreamEvent>,
    pub(crate) bytes_sent: usize,
    pub(crate) bytes_received: usize,
    pub(crate) retried: bool,
}

impl Client {
    pub(crate) fn connect(options: &ClientOptions) -> Self {
        let socket = UdpSocket::bind((options.server.ip(), 0)).unwrap();
        socket.connect(options.server).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        let config = client_config(options);
        let (handle, connection) = endpoint
            .connect(now(), config, options.server, GATEWAY_SERVER_NAME)
            .unwrap();
        Self {
            socket,
            endpoint,
            handle,
            connection,
            connected: false,
            lost: None,
            stream_events: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
            retried: false,
        }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Plays the network until `until` is satisfied.
    pub(crate) fn drive<T>(&mut self, mut until: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begin = now();
        loop {
            if let Some(value) = until(self) {
                return value;
            }
            assert!(
                now() - begin < PATIENCE,
                "waited in vain; lost: {:?}",
                self.lost
            );
            self.turn();
        }
    }

    /// Plays the network for some time.
    pub(crate) fn drive_for(&mut self, time: Duration) {
        let end = now() + time;
        while now() < end {
            self.turn();
        }
    }

    /// Sends what quinn wants to send, and throws away what comes.
    pub(crate) fn ignore_for(&mut self, time: Duration) {
        let end = now() + time;
        let mut buffer = [0; 2048];
        while now() < end {
            self.send_what_there_is();
            while let Ok(count) = self.socket.recv(&mut buffer) {
                self.bytes_received += count;
            }
            if self.connection.poll_timeout().is_some_and(|at| at <= now()) {
                self.connection.handle_timeout(now());
            }
        }
    }

    /// Only listens.
    pub(crate) fn listen_for(&mut self, time: Duration) {
        let end = now() + time;
        let mut buffer = [0; 2048];
        while now() < end {
            self.bytes_received += self.socket.recv(&mut buffer).unwrap_or(0);
        }
    }

    /// Waits for the end of the connection, and says how it ended.
    pub(crate) fn end(&mut self) -> ConnectionError {
        self.drive(|client| client.lost.take())
    }

    /// The application code that the gateway closed with.
    pub(crate) fn close_code(&mut self) -> u64 {
        match self.end() {
            ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("not closed by the application: {other:?}"),
        }
    }

    pub(crate) fn send_what_there_is(&mut self) {
        let mut buffer = Vec::new();
        while let Some(transmit) = self.connection.poll_transmit(now(), 1, &mut buffer) {
            self.send(&transmit, &buffer);
            buffer.clear();
        }
    }

    fn turn(&mut self) {
        self.send_what_there_is();
        self.receive();
        if self.connection.poll_timeout().is_some_and(|at| at <= now()) {
            self.connection.handle_timeout(now());
        }
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => self.connected = true,
                Event::ConnectionLost { reason } => self.lost = Some(reason),
                Event::Stream(event) => self.stream_events.push(event),
                _ => {}
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 2048];
        let Ok(count) = self.socket.recv(&mut buffer) else {
            return;
        };
        self.bytes_received += count;
        // A Retry packet: long header, type 3.
        self.retried |= buffer[0] & 0xf0 == 0xf0;
        let payload = BytesMut::from(&buffer[..count]);
        let remote = self.socket.peer_addr().unwrap();
        let mut reply = Vec::new();
        match self
            .endpoint
            .handle(now(), remote, None, None, payload, &mut reply)
        {
            Some(DatagramEvent::ConnectionEvent(_, event)) => self.connection.handle_event(event),
            Some(DatagramEvent::Response(transmit)) => self.send(&transmit, &reply),
            Some(DatagramEvent::NewConnection(_)) | None => {}
        }
    }

    fn send(&mut self, transmit: &Transmit, buffer: &[u8]) {
        self.bytes_sent += transmit.size;
        self.socket.send(&buffer[..transmit.size]).unwrap();
    }
}

fn client_config(options: &ClientOptions) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(options.gateway_root.clone()).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // As agents do, in one datagram.
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match options.credentials.clone() {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![options.alpn.clone()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(u32::try_from(COMMAND_STREAMS_MAX).unwrap().into())
        .mtu_discovery_config(None)
        .keep_alive_interval(Some(Duration::from_secs(2)));
    config.transport_config(Arc::new(transport));
    if let Some(id) = options.first_id {
        config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&id)));
    }
    config
}
