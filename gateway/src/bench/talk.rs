//! A session that is up, without QUIC.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use protocol::agent::AgentMessage;
use protocol::frame::encode_agent_message;
use protocol::identity::KeyHash;
use protocol::ids::{OperationId, SessionId, ShardId};
use protocol::link::Request;
use quinn_proto::{Dir, StreamEvent, StreamId};

use super::streams::MemoryStreams;
use super::{EPOCH, FENCE, agent_id, command, hello, operation, outcome, target};
use crate::endpoint::identity::Identity;
use crate::group::{Directory, OperationEvent, SessionCommand};
use crate::runtime::clock;
use crate::session::{Output, Session, Surroundings};

const AGENT: u16 = 1;
const KEY: KeyHash = KeyHash([3; 32]);

struct Exchange {
    operation: OperationId,
    dispatch: SessionCommand,
    /// The frames of Accepted and Finished.
    answers: Vec<u8>,
}

/// A session that is up, and what will be said.
pub struct Talk {
    session: Session,
    streams: MemoryStreams,
    directory: Directory,
    sessions: AtomicU64,
    now: Instant,
    exchanges: Vec<Exchange>,
    out: Vec<Output>,
}

impl Talk {
    /// Says Hello, and prepares so many commands.
    pub fn new(commands: u16) -> Self {
        let now = clock::now();
        let mut directory = Directory::default();
        let assign = Request::AssignGroup {
            group: target(AGENT).group,
            slot: target(AGENT).slot,
            epoch: EPOCH,
        };
        let admit = Request::AdmitAgent {
            target: target(AGENT),
            keys: vec![KEY],
        };
        for request in [assign, admit] {
            assert!(directory.handle_request(&request).is_ok());
        }
        let identity = Identity {
            agent: agent_id(AGENT),
            key: KEY,
            not_after: Duration::ZERO,
        };
        let end = now + Duration::from_secs(3600);
        let mut talk = Self {
            session: Session::new(SessionId(1), Box::new(identity), end),
            streams: MemoryStreams::default(),
            directory,
            sessions: AtomicU64::new(0),
            now,
            exchanges: (0..commands).map(exchange).collect(),
            out: Vec::with_capacity(16),
        };
        talk.stream_event(StreamEvent::Opened { dir: Dir::Bi });
        let hello = AgentMessage::Hello(Box::new(hello(AGENT)));
        talk.hear(MemoryStreams::control(), frame(&hello));
        assert!(matches!(talk.out[..], [Output::Up { .. }]));
        talk.out.clear();
        talk
    }

    /// Each command in turn: said, accepted, finished, forgotten. Answers how many ended.
    pub fn run(&mut self) -> usize {
        let mut ended = 0;
        for exchange in std::mem::take(&mut self.exchanges) {
            self.command(exchange.dispatch);
            let stream = self.streams.last_opened();
            self.hear(stream, exchange.answers);
            let finished = |output: &Output| {
                matches!(output, Output::Operation(OperationEvent::Finished { .. }))
            };
            ended += self.out.drain(..).filter(finished).count();
            self.command(SessionCommand::Forget(vec![exchange.operation]));
        }
        ended
    }

    fn command(&mut self, command: SessionCommand) {
        self.session
            .handle_command(self.now, command, &mut self.streams, &mut self.out);
    }

    fn stream_event(&mut self, event: StreamEvent) {
        self.session
            .handle_stream_event(event, &mut self.streams, &mut self.out);
    }

    fn hear(&mut self, stream: StreamId, frames: Vec<u8>) {
        self.streams.incoming = frames;
        self.stream_event(StreamEvent::Readable { id: stream });
        let around = Surroundings {
            now: self.now,
            shard: ShardId(0),
            shards: 1,
            remote: SocketAddr::from(([127, 0, 0, 1], 9)),
            directory: &self.directory,
            advertise: &[],
            reconnect_spread: Duration::ZERO,
            draining: false,
            unix_now: clock::unix_now,
            sessions: &self.sessions,
        };
        self.session.read(&around, &mut self.streams, &mut self.out);
    }
}

fn exchange(n: u16) -> Exchange {
    let operation = operation(n);
    let accepted = AgentMessage::Accepted {
        operation,
        fence: FENCE,
    };
    let finished = AgentMessage::Finished {
        operation,
        fence: FENCE,
        outcome: outcome(),
    };
    Exchange {
        operation,
        dispatch: SessionCommand::Dispatch {
            epoch: EPOCH,
            command: command(n),
        },
        answers: [frame(&accepted), frame(&finished)].concat(),
    }
}

pub(super) fn frame(message: &AgentMessage) -> Vec<u8> {
    let mut frame = Vec::new();
    assert!(encode_agent_message(message, &mut frame).is_ok());
    frame
}
