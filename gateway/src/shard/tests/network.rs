//! One shard, some agents and the wire between them, in one thread and on one made-up clock.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use protocol::agent::{ALPN_SESSION, AgentMessage, GatewayMessage, Hello};
use protocol::flow::Demand;
use protocol::frame::{FrameBuffer, decode_gateway_message, encode_agent_message};
use protocol::identity::GATEWAY_SERVER_NAME;
use protocol::ids::{
    AgentId, Epoch, Fence, GroupId, OperationId, ProcessId, ServerId, ShardId, Slot,
};
use protocol::limits::FRAME_BYTES_MAX;
use protocol::link::{Event, Request, Target};
use protocol::operation::Command;
use protocol::steering::CONNECTION_ID_BYTES;
use protocol::version::SUPPORTED;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, ConnectionId,
    ConnectionIdGenerator, DatagramEvent, Dir, Endpoint, EndpointConfig, InvalidCid, StreamId,
    Transmit,
};
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rustls::RootCertStore;

use super::authority::{Authority, Credentials, DOMAIN};
use crate::config::{AdmissionConfig, Secrets, TlsMaterial};
use crate::lease::Lease;
use crate::runtime::mailbox::{Sender, Waker, channel};
use crate::runtime::steering::ConnectionIds;
use crate::runtime::{Datagram, Datapath, DatapathStats, Sent, clock};
use crate::shard::message::{Outbound, ShardMessage};
use crate::shard::{ShardConfig, ShardTask, Worker};
use crate::telemetry::Hub;
use crate::tls;
use crate::uplink::{Uplink, UplinkQueue};

const STEP: Duration = Duration::from_millis(1);

pub(super) fn agent_id(n: u8) -> AgentId {
    AgentId::from_bytes([n; 16])
}

fn target(n: u8) -> Target {
    Target {
        agent: agent_id(n),
        group: GroupId::from_bytes([n; 16]),
        slot: Slot(n),
    }
}

pub(super) fn hello(n: u8) -> Hello {
    Hello {
        versions: SUPPORTED,
        agent: agent_id(n),
        session_count: 1,
        capacity: 4,
        epoch_seen: Epoch(0),
        kinds: vec!["exec".to_owned()],
        open: Vec::new(),
        hostname: "host".to_owned(),
        software: "test".to_owned(),
        labels: Vec::new(),
    }
}

/// Datagrams in memory.
#[derive(Default)]
pub(super) struct MemoryDatapath {
    incoming: VecDeque<Datagram>,
    outgoing: Vec<(SocketAddr, BytesMut)>,
    pub(super) room: bool,
}

impl Datapath for MemoryDatapath {
    fn receive(&mut self, out: &mut Vec<Datagram>, limit: usize) -> io::Result<usize> {
        let count = limit.min(self.incoming.len());
        out.extend(self.incoming.drain(..count));
        Ok(count)
    }

    fn has_room(&self) -> bool {
        self.room
    }

    fn transmit(
        &mut self,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Transmit>,
    ) -> io::Result<Sent> {
        if !self.room {
            return Ok(Sent::NoRoom);
        }
        let mut buffer = Vec::new();
        if let Some(transmit) = fill(&mut buffer) {
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            for datagram in buffer[..transmit.size].chunks(segment) {
                self.outgoing
                    .push((transmit.destination, BytesMut::from(datagram)));
            }
        }
        Ok(Sent::Done)
    }

    fn max_segments(&self) -> usize {
        10
    }

    fn discard(&mut self) {
        self.outgoing.clear();
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn stats(&self) -> DatapathStats {
        DatapathStats::default()
    }
}

/// An id that makes whoever checks it panic.
const PANIC_ID: [u8; CONNECTION_ID_BYTES] = [0xee; CONNECTION_ID_BYTES];

/// The gateway's ids, with a fault.
#[derive(Clone)]
struct PlantedIds(ConnectionIds);

impl ConnectionIdGenerator for PlantedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.0.generate_cid()
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        assert_ne!(id[..], PANIC_ID, "a test asked for this");
        self.0.validate(id)
    }

    fn cid_len(&self) -> usize {
        self.0.cid_len()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.0.cid_lifetime()
    }
}

struct Agent {
    n: u8,
    address: SocketAddr,
    endpoint: Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
    control: Option<StreamId>,
    input: FrameBuffer,
    end: Option<ConnectionError>,
    cut: bool,
}

pub(super) struct Network {
    pub(super) worker: Worker,
    pub(super) datapath: MemoryDatapath,
    now: Instant,
    events: Arc<UplinkQueue>,
    mailbox: Sender<ShardMessage>,
    authority: Authority,
    credentials: Vec<(u8, Credentials)>,
    agents: Vec<Agent>,
}

impl Network {
    pub(super) fn new() -> Self {
        Self::under(None)
    }

    /// The same for a shard of a gateway under a lease.
    pub(super) fn under(lease: Option<Arc<dyn Lease>>) -> Self {
        let authority = Authority::new();
        let now = clock::now();
        let own = authority.gateway();
        let material = TlsMaterial {
            chain: own.chain,
            key: own.key,
            agent_roots: vec![authority.agent_root()],
        };
        let secrets = Secrets {
            connection_ids: [1; 32],
            stateless_reset: [2; 32],
            tokens: [3; 32],
        };
        let ids = PlantedIds(ConnectionIds::new(&[1; 16], ShardId(0), 1, 0));
        let config = ShardConfig {
            endpoint: Arc::new(tls::endpoint_config(&secrets, move || ids.clone())),
            server: Arc::new(tls::server_config(&material, &secrets, DOMAIN.into()).unwrap()),
            admission: AdmissionConfig::default(),
            advertise: Arc::from(Vec::new()),
            reconnect_spread: Some(Duration::ZERO),
            adaptive_limits: false,
            sessions: Arc::new(AtomicU64::new(1)),
            afloat: Arc::from([AtomicUsize::new(0)]),
            lease,
        };
        let events = Arc::new(UplinkQueue::new());
        let uplink = Uplink::new(Arc::clone(&events), Arc::new(|| ()));
        let recorder = Hub::new(1, now).1.remove(0);
        let (mailbox, receiver) = channel(64, Waker::new().unwrap());
        let afloat: Arc<[AtomicUsize]> = Arc::from([AtomicUsize::new(0)]);
        let outbound = Outbound::new(
            ShardId(0),
            Arc::from([mailbox.clone()]),
            Arc::clone(&afloat),
        );
        let task = ShardTask {
            config,
            uplink,
            recorder,
        };
        Self {
            worker: Worker::new(now, task, ShardId(0), 1, receiver, outbound),
            datapath: MemoryDatapath {
                room: true,
                ..Default::default()
            },
            now,
            events,
            mailbox,
            authority,
            credentials: Vec::new(),
            agents: Vec::new(),
        }
    }

    /// Admits agent `n` and lets it shake hands. It opens its control stream and waits.
    /// Answers where it is in the list.
    pub(super) fn agent(&mut self, n: u8) -> usize {
        self.agent_of(n, GATEWAY_SERVER_NAME)
    }

    /// The same for an agent that asks for a server of that name.
    pub(super) fn agent_of(&mut self, n: u8, server_name: &str) -> usize {
        let credentials = self.admit(n);
        let port = u16::try_from(1000 + self.agents.len()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        let config = self.client_config(credentials);
        let server = SocketAddr::from(([127, 0, 0, 1], 7443));
        let (handle, connection) = endpoint
            .connect(self.now, config, server, server_name)
            .unwrap();
        self.agents.push(Agent {
            n,
            address,
            endpoint,
            handle,
            connection,
            control: None,
            input: FrameBuffer::default(),
            end: None,
            cut: false,
        });
        self.run(Duration::from_millis(20));
        let place = self.agents.len() - 1;
        let agent = &mut self.agents[place];
        agent.control = agent.connection.streams().open(Dir::Bi);
        place
    }

    /// The agent says Hello and hears Welcome.
    pub(super) fn welcome(&mut self, place: usize) {
        let words = hello(self.agents[place].n);
        self.say(place, &AgentMessage::Hello(Box::new(words)));
        self.run(Duration::from_millis(20));
        let heard = self.heard(place);
        assert!(
            matches!(heard[..], [GatewayMessage::Welcome(_)]),
            "{heard:?}"
        );
    }

    pub(super) fn say(&mut self, place: usize, message: &AgentMessage) {
        let mut frame = Vec::new();
        encode_agent_message(message, &mut frame).unwrap();
        let agent = &mut self.agents[place];
        let control = agent.control.unwrap();
        let written = agent.connection.send_stream(control).write(&frame).unwrap();
        assert_eq!(written, frame.len());
    }

    /// What has been said to the agent since last asked.
    pub(super) fn heard(&mut self, place: usize) -> Vec<GatewayMessage> {
        let agent = &mut self.agents[place];
        let mut stream = agent.connection.recv_stream(agent.control.unwrap());
        if let Ok(mut chunks) = stream.read(true) {
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                agent.input.push(&chunk.bytes);
            }
            let _more = chunks.finalize().should_transmit();
        }
        let mut messages = Vec::new();
        while let Some(frame) = agent.input.next_frame(FRAME_BYTES_MAX).unwrap() {
            messages.push(decode_gateway_message(&frame).unwrap());
        }
        messages
    }

    /// Nothing goes to or from the agent any more.
    pub(super) fn cut(&mut self, place: usize) {
        self.agents[place].cut = true;
    }

    /// After [`cut`](Self::cut): from now on all goes through again.
    pub(super) fn join(&mut self, place: usize) {
        self.agents[place].cut = false;
    }

    pub(super) fn close_code(&self, place: usize) -> Option<u64> {
        match &self.agents[place].end {
            Some(ConnectionError::ApplicationClosed(close)) => Some(close.error_code.into_inner()),
            _ => None,
        }
    }

    pub(super) fn request(&self, request: Request) {
        let message = ShardMessage::Request(Box::new(request), self.now);
        self.mailbox.try_send(message).unwrap();
    }

    /// Has the shard send a command to agent `n`, with the next turn.
    pub(super) fn dispatch(&mut self, n: u8) {
        self.request(Request::Demand {
            target: target(n),
            server: ServerId(1),
            lines: vec![Demand::of("exec", 1)],
        });
        self.run(STEP);
        let granted = self
            .take_events()
            .into_iter()
            .find_map(|event| match event {
                Event::Granted { grant, .. } => Some(grant),
                _ => None,
            });
        self.request(Request::Dispatch {
            target: target(n),
            grant: granted.unwrap(),
            epoch: Epoch(1),
            command: Box::new(Command {
                operation: OperationId::new(ProcessId::from_bytes([n; 16]), 0),
                fence: Fence(1),
                kind: "exec".to_owned(),
                input: Bytes::from_static(b"\"true\""),
                deadline_ms: 60_000,
            }),
        });
    }

    /// How many commands the agent has got since last asked.
    pub(super) fn commands(&mut self, place: usize) -> usize {
        let connection = &mut self.agents[place].connection;
        let mut count = 0;
        while let Some(stream) = connection.streams().accept(Dir::Bi) {
            let mut stream = connection.recv_stream(stream);
            let Ok(mut chunks) = stream.read(true) else {
                continue;
            };
            let mut input = FrameBuffer::default();
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                input.push(&chunk.bytes);
            }
            let _more = chunks.finalize().should_transmit();
            count += usize::from(input.next_frame(FRAME_BYTES_MAX).unwrap().is_some());
        }
        count
    }

    pub(super) fn query(&self, n: u8) {
        let operation = OperationId::new(ProcessId::from_bytes([n; 16]), 0);
        self.request(Request::Query {
            target: target(n),
            operations: vec![(operation, Fence(1))],
        });
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.pop()).collect()
    }

    pub(super) fn fill_uplink(&mut self) {
        let word = Event::Security {
            kind: protocol::link::SecurityEvent::LimitExceeded,
            agent: None,
            remote: SocketAddr::from(([127, 0, 0, 1], 1)),
        };
        while self.worker.uplink.push(word.clone()) {}
    }

    /// Sends the shard a first packet with some bytes changed, a packet to a known connection with
    /// some bytes changed, and noise.
    pub(super) fn damage(&mut self, seed: u64) {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let remote = SocketAddr::from(([127, 0, 0, 2], 2000));
        let credentials = self.admit(3);
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        let config = self.client_config(credentials);
        let server = SocketAddr::from(([127, 0, 0, 1], 7443));
        let connecting = endpoint.connect(self.now, config, server, GATEWAY_SERVER_NAME);
        let (mut first, mut later) = (Vec::new(), Vec::new());
        let _first = connecting.unwrap().1.poll_transmit(self.now, 1, &mut first);
        let agent = &mut self.agents[0];
        agent.connection.ping();
        let _later = agent.connection.poll_transmit(self.now, 1, &mut later);
        let mut noise = vec![0; random.random_range(0..1472)];
        random.fill_bytes(&mut noise);
        let from = agent.address;
        for (remote, mut bytes) in [(remote, first), (from, later), (remote, noise)] {
            for _ in 0..random.random_range(1..4) {
                if let Some(place) = bytes.len().checked_sub(1) {
                    bytes[random.random_range(0..=place)] ^= random.random_range(1..=255u8);
                }
            }
            bytes.truncate(random.random_range(0..=bytes.len()).max(bytes.len() / 2));
            self.datapath.incoming.push_back(Datagram {
                remote,
                local_ip: None,
                ecn: None,
                payload: BytesMut::from(&bytes[..]),
            });
        }
    }

    /// Sends the shard a packet that makes quinn's endpoint panic while it looks at its id.
    pub(super) fn trip(&mut self) {
        let mut packet = BytesMut::zeroed(60);
        packet[0] = 0x40;
        packet[1..=PANIC_ID.len()].copy_from_slice(&PANIC_ID);
        self.datapath.incoming.push_back(Datagram {
            remote: SocketAddr::from(([127, 0, 0, 2], 2000)),
            local_ip: None,
            ecn: None,
            payload: packet,
        });
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            for place in 0..self.agents.len() {
                self.agent_turn(place);
            }
            self.worker.turn(self.now, &mut self.datapath).unwrap();
            for (to, payload) in std::mem::take(&mut self.datapath.outgoing) {
                self.deliver(to, payload);
            }
            self.now += STEP;
        }
    }

    fn agent_turn(&mut self, place: usize) {
        let agent = &mut self.agents[place];
        if agent
            .connection
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            agent.connection.handle_timeout(self.now);
        }
        let mut buffer = Vec::new();
        while let Some(transmit) = agent.connection.poll_transmit(self.now, 1, &mut buffer) {
            if !agent.cut {
                self.datapath.incoming.push_back(Datagram {
                    remote: agent.address,
                    local_ip: None,
                    ecn: None,
                    payload: BytesMut::from(&buffer[..transmit.size]),
                });
            }
            buffer.clear();
        }
        while let Some(event) = agent.connection.poll_endpoint_events() {
            if let Some(event) = agent.endpoint.handle_event(agent.handle, event) {
                agent.connection.handle_event(event);
            }
        }
        while let Some(event) = agent.connection.poll() {
            if let quinn_proto::Event::ConnectionLost { reason } = event {
                // The first is what happened; a stateless reset may follow.
                agent.end.get_or_insert(reason);
            }
        }
    }

    fn deliver(&mut self, to: SocketAddr, payload: BytesMut) {
        let Some(agent) = self
            .agents
            .iter_mut()
            .find(|agent| agent.address == to && !agent.cut)
        else {
            return;
        };
        let server = SocketAddr::from(([127, 0, 0, 1], 7443));
        let mut reply = Vec::new();
        let event = agent
            .endpoint
            .handle(self.now, server, None, None, payload, &mut reply);
        if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
            agent.connection.handle_event(event);
        }
    }

    fn admit(&mut self, n: u8) -> Credentials {
        if let Some((_, credentials)) = self.credentials.iter().find(|(of, _)| *of == n) {
            return credentials.clone();
        }
        let credentials = self.authority.agent(agent_id(n));
        self.credentials.push((n, credentials.clone()));
        let Target { group, slot, .. } = target(n);
        self.request(Request::AssignGroup {
            group,
            slot,
            epoch: Epoch(1),
        });
        self.request(Request::AdmitAgent {
            target: target(n),
            keys: vec![credentials.key_hash],
        });
        credentials
    }

    fn client_config(&self, own: Credentials) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.gateway_root()).unwrap();
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        // A whole ClientHello in one datagram, whatever other crates of the build ask rustls for.
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
        let provider = Arc::new(provider);
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(own.chain, own.key)
            .unwrap();
        tls.alpn_protocols = vec![ALPN_SESSION.to_vec()];
        ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }
}
