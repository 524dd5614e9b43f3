//! All agents of the measurement, on one socket and one thread.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocol::agent::{ALPN_SESSION, AgentMessage, GatewayMessage, Hello};
use protocol::frame::{FrameBuffer, decode_gateway_message, encode_agent_message};
use protocol::identity::GATEWAY_SERVER_NAME;
use protocol::ids::{AgentId, Epoch};
use protocol::limits::{AGENT_KEEP_ALIVE, COMMAND_STREAMS_MAX, FRAME_BYTES_MAX, IDLE_TIMEOUT};

use protocol::operation::{Outcome, OutcomeStatus};
use protocol::version::SUPPORTED;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, ReadError,
    StreamEvent, StreamId, TransportConfig,
};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use super::authority::Credentials;

/// Handshakes begun and not finished.
const CONNECTING_MAX: usize = 32;

struct Peer {
    connection: Connection,
    agent: AgentId,
    control: Option<StreamId>,
    inputs: HashMap<StreamId, FrameBuffer>,
    dirty: bool,
    armed: Option<Instant>,
}

/// A Finished that is to be said later.
struct Later {
    at: Instant,
    peer: usize,
    stream: StreamId,
    frame: Vec<u8>,
}

struct Fleet {
    socket: UdpSocket,
    server: SocketAddr,
    endpoint: Endpoint,
    peers: Vec<Peer>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    dirty: Vec<usize>,
    later: Vec<Later>,
    split: Duration,
    up: usize,
}

/// Connects all agents and answers for ever.
#[expect(clippy::infinite_loop, reason = "its thread ends with the process")]
pub(crate) fn run(
    server: SocketAddr,
    root: &CertificateDer<'static>,
    own: Vec<(AgentId, Credentials)>,
    split: Duration,
) {
    let socket = UdpSocket::bind((server.ip(), 0)).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1 << 22).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 1 << 22).unwrap();
    socket.set_nonblocking(true).unwrap();
    let endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let roots = Arc::new(roots);
    let transport = Arc::new(transport());
    let mut fleet = Fleet {
        socket,
        server,
        endpoint,
        peers: Vec::new(),
        timers: BinaryHeap::new(),
        dirty: Vec::new(),
        later: Vec::new(),
        split,
        up: 0,
    };
    for (agent, credentials) in own {
        while fleet.peers.len() - fleet.up >= CONNECTING_MAX {
            fleet.turn();
        }
        fleet.connect(agent, config(&roots, credentials, &transport));
    }
    loop {
        fleet.turn();
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(u32::try_from(4 * COMMAND_STREAMS_MAX).unwrap().into())
        .max_concurrent_uni_streams(0u32.into())
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().unwrap()))
        .keep_alive_interval(Some(AGENT_KEEP_ALIVE));
    transport
}

fn config(
    roots: &Arc<RootCertStore>,
    own: Credentials,
    transport: &Arc<TransportConfig>,
) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(own.chain, own.key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN_SESSION.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::clone(transport));
    config
}

impl Fleet {
    fn connect(&mut self, agent: AgentId, config: ClientConfig) {
        let (handle, connection) = self
            .endpoint
            .connect(Instant::now(), config, self.server, GATEWAY_SERVER_NAME)
            .unwrap();
        assert_eq!(handle.0, self.peers.len());
        self.peers.push(Peer {
            connection,
            agent,
            control: None,
            inputs: HashMap::new(),
            dirty: false,
            armed: None,
        });
        self.mark(handle.0);
    }

    fn mark(&mut self, at: usize) {
        if !std::mem::replace(&mut self.peers[at].dirty, true) {
            self.dirty.push(at);
        }
    }

    /// Waits for something, and does it.
    fn turn(&mut self) {
        self.serve();
        let next = self.timers.peek().map(|Reverse((at, _))| *at);
        let next = self.later.iter().map(|later| later.at).chain(next).min();
        let left = next.map_or(Duration::from_millis(100), |at| {
            at.saturating_duration_since(Instant::now())
        });
        let mut poll = [rustix::event::PollFd::new(
            &self.socket,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec::try_from(left).unwrap();
        rustix::event::poll(&mut poll, Some(&limit)).ok();
        self.receive();
        self.due();
    }

    fn due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, peer))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            if self.peers[peer].armed == Some(at) {
                self.peers[peer].armed = None;
                self.peers[peer].connection.handle_timeout(now);
                self.mark(peer);
            }
        }
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.later)
            .into_iter()
            .partition(|later| later.at <= now);
        self.later = later;
        for Later {
            peer,
            stream,
            frame,
            ..
        } in due
        {
            self.peers[peer].finish(stream, &frame);
            self.mark(peer);
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 2048];
        let mut reply = Vec::new();
        while let Ok((count, remote)) = self.socket.recv_from(&mut buffer) {
            let payload = BytesMut::from(&buffer[..count]);
            let now = Instant::now();
            let event = self
                .endpoint
                .handle(now, remote, None, None, payload, &mut reply);
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event {
                self.peers[handle.0].connection.handle_event(event);
                self.mark(handle.0);
            }
        }
    }

    fn serve(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        for at in dirty {
            self.peers[at].dirty = false;
            self.work(at);
            let now = Instant::now();
            let peer = &mut self.peers[at];
            let mut buffer = Vec::new();
            while let Some(transmit) = peer.connection.poll_transmit(now, 1, &mut buffer) {
                drop(
                    self.socket
                        .send_to(&buffer[..transmit.size], transmit.destination),
                );
                buffer.clear();
            }
            while let Some(event) = peer.connection.poll_endpoint_events() {
                let handle = quinn_proto::ConnectionHandle(at);
                if let Some(event) = self.endpoint.handle_event(handle, event) {
                    peer.connection.handle_event(event);
                }
            }
            let next = peer.connection.poll_timeout();
            if next != peer.armed {
                peer.armed = next;
                self.timers.extend(next.map(|next| Reverse((next, at))));
            }
        }
    }

    fn work(&mut self, at: usize) {
        while let Some(event) = self.peers[at].connection.poll() {
            match event {
                Event::Connected => self.peers[at].greet(),
                // At the end of the measurement.
                Event::ConnectionLost { .. } => {}
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    while let Some(stream) = self.peers[at].connection.streams().accept(Dir::Bi) {
                        self.read(at, stream);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read(at, id),
                _ => {}
            }
        }
    }

    fn read(&mut self, at: usize, stream: StreamId) {
        let peer = &mut self.peers[at];
        for message in peer.messages(stream) {
            match message {
                GatewayMessage::Welcome(_) => self.up += 1,
                GatewayMessage::Command { command, .. } => {
                    let (operation, fence) = (command.operation, command.fence);
                    let mut frame = Vec::new();
                    let accepted = AgentMessage::Accepted { operation, fence };
                    encode_agent_message(&accepted, &mut frame).unwrap();
                    peer.say(stream, &frame);
                    frame.clear();
                    let finished = AgentMessage::Finished {
                        operation,
                        fence,
                        outcome: outcome(),
                    };
                    encode_agent_message(&finished, &mut frame).unwrap();
                    if self.split.is_zero() {
                        peer.finish(stream, &frame);
                    } else {
                        self.later.push(Later {
                            at: Instant::now() + self.split,
                            peer: at,
                            stream,
                            frame,
                        });
                    }
                }
                _ => {}
            }
        }
    }
}

fn outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Succeeded,
        exit_code: Some(0),
        message: String::new(),
        output: bytes::Bytes::from_static(&[b'y'; 256]),
        service_time: Duration::from_millis(5),
    }
}

impl Peer {
    fn greet(&mut self) {
        let control = self.connection.streams().open(Dir::Bi).unwrap();
        self.control = Some(control);
        let mut frame = Vec::new();
        let hello = Hello {
            versions: SUPPORTED,
            agent: self.agent,
            session_count: 1,
            capacity: 16,
            epoch_seen: Epoch(0),
            kinds: vec!["exec".to_owned()],
            open: Vec::new(),
            hostname: "host".to_owned(),
            software: "measurement".to_owned(),
            labels: Vec::new(),
        };
        encode_agent_message(&AgentMessage::Hello(Box::new(hello)), &mut frame).unwrap();
        self.say(control, &frame);
    }

    fn say(&mut self, stream: StreamId, frame: &[u8]) {
        let written = self.connection.send_stream(stream).write(frame);
        assert_eq!(written.ok(), Some(frame.len()), "frames are small");
    }

    fn finish(&mut self, stream: StreamId, frame: &[u8]) {
        self.say(stream, frame);
        drop(self.connection.send_stream(stream).finish());
    }

    fn messages(&mut self, stream: StreamId) -> Vec<GatewayMessage> {
        let mut messages = Vec::new();
        let input = self.inputs.entry(stream).or_default();
        let mut over = false;
        let mut half = self.connection.recv_stream(stream);
        let Ok(mut chunks) = half.read(true) else {
            self.inputs.remove(&stream);
            return messages;
        };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => input.push(&chunk.bytes),
                Err(ReadError::Blocked) => break,
                Ok(None) | Err(_) => {
                    over = true;
                    break;
                }
            }
        }
        let _credit = chunks.finalize().should_transmit();
        while let Some(frame) = input.next_frame(FRAME_BYTES_MAX).unwrap() {
            messages.push(decode_gateway_message(&frame).unwrap());
        }
        if over {
            self.inputs.remove(&stream);
        }
        messages
    }
}
