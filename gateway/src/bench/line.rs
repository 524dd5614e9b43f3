//! A whole shard and its agents: real QUIC and TLS, datagrams in memory, a made-up clock.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocol::agent::AgentMessage;
use protocol::flow::Demand;
use protocol::identity::{GATEWAY_SERVER_NAME, KeyHash};
use protocol::ids::{AgentId, GrantId, ServerId, ShardId};
use protocol::link::{Event, Request};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event as QuicEvent, StreamEvent, StreamId, Transmit,
};

use super::talk::frame;
use super::{EPOCH, FENCE, agent_id, command, hello, operation, outcome, target};
use crate::config::{AdmissionConfig, Secrets, TlsMaterial};
use crate::runtime::mailbox::{Sender, Waker, channel};
use crate::runtime::steering::ConnectionIds;
use crate::runtime::{Datagram, Datapath, DatapathStats, Sent, clock};
use crate::shard::message::{Outbound, ShardMessage};
use crate::shard::{ShardConfig, ShardTask, Worker};
use crate::telemetry::Hub;
use crate::tls;
use crate::uplink::{Uplink, UplinkQueue};

const STEP: Duration = Duration::from_millis(1);
const SHARD: ShardId = ShardId(0);
const MAILBOX_WORDS: usize = 256;

/// What an agent connects with.
pub struct Credentials {
    /// Its TLS and transport configuration.
    pub client: ClientConfig,
    /// The hash of its key.
    pub key: KeyHash,
}

/// A shard in memory whose agents are all up and idle.
pub struct Line {
    worker: Worker,
    datapath: MemoryDatapath,
    now: Instant,
    events: Arc<UplinkQueue>,
    mailbox: Sender<ShardMessage>,
    agents: Vec<Agent>,
}

struct Agent {
    address: SocketAddr,
    endpoint: Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
    /// Streams on which the gateway has sent a command.
    asked: Vec<StreamId>,
    connected: bool,
}

impl Line {
    /// A shard of the trust domain `domain`, with so many agents. `credentials` makes those of an
    /// agent by its id.
    pub fn new(
        material: &TlsMaterial,
        domain: &str,
        agents: u16,
        mut credentials: impl FnMut(AgentId) -> Credentials,
    ) -> Self {
        let now = clock::now();
        let secrets = Secrets {
            connection_ids: [1; 32],
            stateless_reset: [2; 32],
            tokens: [3; 32],
        };
        let ids = ConnectionIds::new(&[1; 16], SHARD, 1, 0);
        let server = tls::server_config(material, &secrets, domain.into());
        let afloat: Arc<[AtomicUsize]> = Arc::from([AtomicUsize::new(0)]);
        let config = ShardConfig {
            endpoint: Arc::new(tls::endpoint_config(&secrets, move || ids.clone())),
            server: Arc::new(server.expect("good TLS material")),
            admission: AdmissionConfig::default(),
            advertise: Arc::from(Vec::new()),
            reconnect_spread: Some(Duration::ZERO),
            adaptive_limits: true,
            sessions: Arc::new(AtomicU64::new(1)),
            afloat: Arc::clone(&afloat),
            lease: None,
        };
        let events = Arc::new(UplinkQueue::new());
        let uplink = Uplink::new(Arc::clone(&events), Arc::new(|| ()));
        let recorder = Hub::new(1, now).1.remove(0);
        let waker = Waker::new().expect("an eventfd");
        let (mailbox, receiver) = channel(MAILBOX_WORDS, waker);
        let outbound = Outbound::new(SHARD, Arc::from([mailbox.clone()]), afloat);
        let task = ShardTask {
            config,
            uplink,
            recorder,
        };
        let mut line = Self {
            worker: Worker::new(now, task, SHARD, 1, receiver, outbound),
            datapath: MemoryDatapath::default(),
            now,
            events,
            mailbox,
            agents: Vec::new(),
        };
        line.request(Request::AssignGroup {
            group: target(0).group,
            slot: target(0).slot,
            epoch: EPOCH,
        });
        for n in 0..agents {
            let Credentials { client, key } = credentials(agent_id(n));
            line.request(Request::AdmitAgent {
                target: target(n),
                keys: vec![key],
            });
            line.join(n, client);
        }
        // Late handshake packets, acknowledgements and probes are over by then.
        line.pass(2000);
        while line.events.pop().is_some() {}
        line
    }

    /// Every agent sends two PINGs, which the next turn acknowledges.
    #[must_use]
    pub fn with_pings(mut self) -> Self {
        for place in 0..self.agents.len() {
            for _ in 0..2 {
                self.agents[place].connection.ping();
                self.send(place);
            }
        }
        self
    }

    /// Every agent is asked for something: the next turn sends a command to each.
    #[must_use]
    pub fn with_commands(mut self) -> Self {
        for n in 0..self.count() {
            self.request(Request::Demand {
                target: target(n),
                server: ServerId(1),
                lines: vec![Demand::of("exec", 1)],
            });
        }
        self.turn();
        for n in 0..self.count() {
            let grant = self.granted();
            self.request(Request::Dispatch {
                target: target(n),
                grant,
                epoch: EPOCH,
                command: command(n),
            });
        }
        self
    }

    /// Every agent has accepted and finished a command: the next turn hears it.
    #[must_use]
    pub fn with_answers(self) -> Self {
        let mut line = self.with_commands();
        line.turn();
        line.deliver();
        for n in 0..line.count() {
            let place = usize::from(n);
            let agent = &mut line.agents[place];
            agent.listen();
            let stream = agent.asked.pop().expect("a command has arrived");
            let accepted = AgentMessage::Accepted {
                operation: operation(n),
                fence: FENCE,
            };
            let finished = AgentMessage::Finished {
                operation: operation(n),
                fence: FENCE,
                outcome: outcome(),
            };
            agent.write(stream, &[frame(&accepted), frame(&finished)].concat());
            let ended = agent.connection.send_stream(stream).finish();
            assert!(ended.is_ok());
            line.send(place);
        }
        line
    }

    /// One turn of the shard. Answers how many datagrams it took and how many it sent.
    pub fn run(&mut self) -> (usize, usize) {
        let taken = self.datapath.incoming.len();
        self.turn();
        (taken, self.datapath.outgoing.len())
    }

    /// How many commands have ended, as the control plane was told.
    pub fn ended(&self) -> usize {
        std::iter::from_fn(|| self.events.pop())
            .filter(|event| matches!(event, Event::Finished { .. }))
            .count()
    }

    fn count(&self) -> u16 {
        u16::try_from(self.agents.len()).unwrap_or(u16::MAX)
    }

    fn granted(&self) -> GrantId {
        std::iter::from_fn(|| self.events.pop())
            .find_map(|event| match event {
                Event::Granted { grant, .. } => Some(grant),
                _ => None,
            })
            .expect("a grant")
    }

    fn request(&self, request: Request) {
        let message = ShardMessage::Request(Box::new(request), self.now);
        assert!(self.mailbox.try_send(message).is_ok());
    }

    fn join(&mut self, n: u16, client: ClientConfig) {
        let address = SocketAddr::from(([127, 0, 0, 1], 1000 + n));
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        let (handle, connection) = endpoint
            .connect(self.now, client, server(), GATEWAY_SERVER_NAME)
            .expect("a good client configuration");
        self.agents.push(Agent {
            address,
            endpoint,
            handle,
            connection,
            asked: Vec::new(),
            connected: false,
        });
        self.pass(20);
        let agent = self.agents.last_mut().expect("just pushed");
        assert!(agent.connected, "the handshake is over");
        let control = agent.connection.streams().open(Dir::Bi);
        let words = AgentMessage::Hello(Box::new(hello(n)));
        agent.write(control.expect("stream credit"), &frame(&words));
        self.pass(20);
    }

    /// Lets so many milliseconds pass.
    fn pass(&mut self, steps: u32) {
        for _ in 0..steps {
            for place in 0..self.agents.len() {
                let (now, agent) = (self.now, &mut self.agents[place]);
                if agent.connection.poll_timeout().is_some_and(|at| at <= now) {
                    agent.connection.handle_timeout(now);
                }
                agent.listen();
                self.send(place);
            }
            self.turn();
            self.deliver();
            self.now += STEP;
        }
    }

    fn turn(&mut self) {
        let turned = self.worker.turn(self.now, &mut self.datapath);
        assert!(turned.is_ok());
    }

    /// What an agent has to send goes to the shard.
    fn send(&mut self, place: usize) {
        let agent = &mut self.agents[place];
        let mut buffer = Vec::new();
        while let Some(transmit) = agent.connection.poll_transmit(self.now, 1, &mut buffer) {
            self.datapath.incoming.push_back(Datagram {
                remote: agent.address,
                local_ip: None,
                ecn: None,
                payload: BytesMut::from(&buffer[..transmit.size]),
            });
            buffer.clear();
        }
    }

    /// What the shard has sent goes to its agents.
    fn deliver(&mut self) {
        for (to, payload) in std::mem::take(&mut self.datapath.outgoing) {
            let agents = &mut self.agents;
            if let Some(agent) = agents.iter_mut().find(|agent| agent.address == to) {
                agent.hear(self.now, payload);
            }
        }
    }
}

impl Agent {
    fn hear(&mut self, now: Instant, payload: BytesMut) {
        let mut reply = Vec::new();
        let event = self
            .endpoint
            .handle(now, server(), None, None, payload, &mut reply);
        if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
            self.connection.handle_event(event);
        }
    }

    /// Takes what has happened on the connection.
    fn listen(&mut self) {
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        while let Some(event) = self.connection.poll() {
            match event {
                QuicEvent::Connected => self.connected = true,
                QuicEvent::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    while let Some(stream) = self.connection.streams().accept(Dir::Bi) {
                        self.asked.push(stream);
                    }
                }
                QuicEvent::ConnectionLost { reason } => panic!("the agent lost the line: {reason}"),
                _ => {}
            }
        }
    }

    fn write(&mut self, stream: StreamId, bytes: &[u8]) {
        let written = self.connection.send_stream(stream).write(bytes);
        assert_eq!(written, Ok(bytes.len()), "an idle line takes it all");
    }
}

fn server() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7443))
}

#[derive(Default)]
struct MemoryDatapath {
    incoming: VecDeque<Datagram>,
    outgoing: Vec<(SocketAddr, BytesMut)>,
    buffer: Vec<u8>,
}

impl Datapath for MemoryDatapath {
    fn receive(&mut self, out: &mut Vec<Datagram>, limit: usize) -> io::Result<usize> {
        let count = limit.min(self.incoming.len());
        out.extend(self.incoming.drain(..count));
        Ok(count)
    }

    fn has_room(&self) -> bool {
        true
    }

    fn transmit(
        &mut self,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Transmit>,
    ) -> io::Result<Sent> {
        self.buffer.clear();
        if let Some(transmit) = fill(&mut self.buffer) {
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            for datagram in self.buffer[..transmit.size].chunks(segment) {
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
