//! A session's rules, without QUIC.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::agent::{AgentMessage, GatewayMessage, Hello};
use protocol::close::{CANCEL_STREAM, CloseCode, DONE_STREAM};
use protocol::frame::{FrameBuffer, decode_gateway_message, encode_agent_message};
use protocol::identity::KeyHash;
use protocol::ids::{
    AgentId, Epoch, Fence, GroupId, OperationId, ProcessId, SessionId, ShardId, Slot,
};
use protocol::limits::{
    COMMAND_INPUT_BYTES_MAX, COMMAND_STREAMS_MAX, FRAME_BYTES_MAX, OPERATIONS_PER_FRAME_MAX,
};
use protocol::link::{NotDelivered, Request, Target};
use protocol::operation::{
    Command, OpenOperation, OperationState, Outcome, OutcomeStatus, Phase, Refusal,
};
use protocol::version::SUPPORTED;
use quinn_proto::{Dir, StreamEvent, StreamId};

use super::fake::FakeStreams;
use super::streams::Read;
use super::{LINGER, Output, Session, Surroundings};
use crate::endpoint::identity::Identity;
use crate::group::{Directory, OperationEvent, SessionCommand};
use crate::lease::Lease;
use crate::runtime::clock;

mod fates;
mod fencing;

/// An idle session must stay small: there are a hundred thousand of them.
const _: () = assert!(size_of::<Session>() <= 300);

const KEY: KeyHash = KeyHash([3; 32]);
const FENCE: Fence = Fence(4);

struct Harness {
    session: Session,
    streams: FakeStreams,
    directory: Directory,
    now: Instant,
    control: StreamId,
    out: Vec<Output>,
}

fn agent() -> AgentId {
    AgentId::from_bytes([1; 16])
}

fn target() -> Target {
    Target {
        agent: agent(),
        group: GroupId::from_bytes([2; 16]),
        slot: Slot(0),
    }
}

fn operation(n: u128) -> OperationId {
    OperationId::new(ProcessId::from_bytes(n.to_be_bytes()), 0)
}

fn hello() -> Hello {
    Hello {
        versions: SUPPORTED,
        agent: agent(),
        session_count: 5,
        capacity: 4,
        epoch_seen: Epoch(0),
        kinds: vec!["exec".to_owned()],
        open: Vec::new(),
        hostname: "host".to_owned(),
        software: "test".to_owned(),
        labels: Vec::new(),
    }
}

fn dispatch(n: u128, input: usize) -> SessionCommand {
    let input = Bytes::from(format!("\"{}\"", "x".repeat(input)));
    let (kind, deadline_ms) = ("exec".to_owned(), 1);
    let command = Command {
        operation: operation(n),
        fence: FENCE,
        kind,
        input,
        deadline_ms,
    };
    SessionCommand::Dispatch {
        epoch: Epoch(7),
        command: Box::new(command),
    }
}

fn accepted(n: u128) -> AgentMessage {
    AgentMessage::Accepted {
        operation: operation(n),
        fence: FENCE,
    }
}

fn finished(n: u128) -> AgentMessage {
    let outcome = Outcome {
        status: OutcomeStatus::Succeeded,
        exit_code: None,
        message: String::new(),
        output: Bytes::new(),
        service_time: Duration::ZERO,
    };
    AgentMessage::Finished {
        operation: operation(n),
        fence: FENCE,
        outcome,
    }
}

/// A lease that holds if it is told so.
struct Told {
    holds: bool,
    fenced: AtomicUsize,
}

impl Lease for Told {
    fn holds(&self) -> bool {
        self.holds
    }

    fn fenced(&self) {
        self.fenced.fetch_add(1, Ordering::Relaxed);
    }
}

impl Harness {
    fn new() -> Self {
        let now = clock::now();
        let mut directory = Directory::default();
        let Target { group, slot, .. } = target();
        let assign = Request::AssignGroup {
            group,
            slot,
            epoch: Epoch(7),
        };
        directory.handle_request(&assign).unwrap();
        let admit = Request::AdmitAgent {
            target: target(),
            keys: vec![KEY],
        };
        directory.handle_request(&admit).unwrap();
        let expires = now + Duration::from_secs(3600);
        let not_after = Duration::ZERO;
        let identity = Identity {
            agent: agent(),
            key: KEY,
            not_after,
        };
        let mut streams = FakeStreams::default();
        let control = streams.agent_opens();
        let mut harness = Self {
            session: Session::new(SessionId(1), Box::new(identity), expires),
            streams,
            directory,
            now,
            control,
            out: Vec::new(),
        };
        harness.stream_event(StreamEvent::Opened { dir: Dir::Bi });
        harness
    }

    fn up() -> Self {
        let mut harness = Self::new();
        harness.hear(harness.control, &AgentMessage::Hello(Box::new(hello())));
        assert!(matches!(harness.take()[..], [Output::Up { .. }]));
        assert!(matches!(
            harness.said(harness.control)[..],
            [GatewayMessage::Welcome(_)]
        ));
        harness
    }

    fn stream_event(&mut self, event: StreamEvent) {
        self.session
            .handle_stream_event(event, &mut self.streams, &mut self.out);
    }

    fn command(&mut self, command: SessionCommand) {
        self.session
            .handle_command(self.now, command, &mut self.streams, &mut self.out);
    }

    /// Packets are about to be made, under a lease that holds, or not. Answers how many commands that kept back.
    fn fence(&mut self, holds: bool) -> usize {
        let lease = Told {
            holds,
            fenced: AtomicUsize::new(0),
        };
        self.session.fence(&lease, &mut self.streams, &mut self.out);
        lease.fenced.into_inner()
    }

    fn read(&mut self) {
        let sessions = AtomicU64::new(0);
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
            sessions: &sessions,
        };
        self.session.read(&around, &mut self.streams, &mut self.out);
    }

    /// The agent says something on a stream.
    fn hear(&mut self, stream: StreamId, message: &AgentMessage) {
        let mut frame = Vec::new();
        encode_agent_message(message, &mut frame).unwrap();
        self.hear_bytes(stream, &frame);
    }

    fn hear_bytes(&mut self, stream: StreamId, bytes: &[u8]) {
        self.streams.get(stream).incoming.extend_from_slice(bytes);
        self.stream_event(StreamEvent::Readable { id: stream });
        self.read();
    }

    fn hear_end(&mut self, stream: StreamId, end: Read) {
        self.streams.get(stream).incoming_end = Some(end);
        self.stream_event(StreamEvent::Readable { id: stream });
        self.read();
    }

    /// What the session has said on a stream since last asked.
    fn said(&mut self, stream: StreamId) -> Vec<GatewayMessage> {
        let mut input = FrameBuffer::default();
        input.push(&std::mem::take(&mut self.streams.get(stream).sent));
        let mut messages = Vec::new();
        while let Some(frame) = input.next_frame(FRAME_BYTES_MAX).unwrap() {
            messages.push(decode_gateway_message(&frame).unwrap());
        }
        messages
    }

    fn take(&mut self) -> Vec<Output> {
        let mut out = std::mem::take(&mut self.out);
        out.retain(|output| !matches!(output, Output::Answered { .. }));
        out
    }

    fn operations(&mut self) -> Vec<OperationEvent> {
        let events = self.take().into_iter().map(|output| match output {
            Output::Operation(event) => event,
            other => panic!("not about an operation: {other:?}"),
        });
        events.collect()
    }

    /// The code that the session is closed with.
    fn closed(&mut self) -> Option<CloseCode> {
        self.take().into_iter().find_map(|output| match output {
            Output::Close(code, _) => Some(code),
            _ => None,
        })
    }
}

fn not_delivered(n: u128, reason: NotDelivered) -> OperationEvent {
    OperationEvent::NotDelivered {
        operation: operation(n),
        fence: FENCE,
        reason,
    }
}

fn uncertain(n: u128) -> OperationEvent {
    OperationEvent::Uncertain {
        operation: operation(n),
        fence: FENCE,
    }
}

#[test]
fn a_command_runs_and_both_sides_of_its_stream_end() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    let stream = FakeStreams::opened(0);
    assert!(matches!(
        harness.said(stream)[..],
        [GatewayMessage::Command { .. }]
    ));
    harness.hear(stream, &accepted(1));
    assert!(matches!(
        harness.operations()[..],
        [OperationEvent::Accepted { .. }]
    ));
    assert!(harness.streams.get(stream).finished, "nothing follows");
    harness.hear(stream, &finished(1));
    assert!(matches!(
        harness.operations()[..],
        [OperationEvent::Finished { .. }]
    ));
    assert_eq!(
        harness.streams.get(stream).stopped,
        Some(DONE_STREAM),
        "no end came with it"
    );
}

#[test]
fn the_same_answers_in_pieces_of_one_byte_are_understood() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    let stream = FakeStreams::opened(0);
    let mut frames = Vec::new();
    encode_agent_message(&accepted(1), &mut frames).unwrap();
    encode_agent_message(&finished(1), &mut frames).unwrap();
    for byte in frames {
        harness.hear_bytes(stream, &[byte]);
    }
    assert_eq!(harness.operations().len(), 2);
}

#[test]
fn commands_wait_for_stream_credit_in_order() {
    let mut harness = Harness::up();
    harness.streams.credit = 1;
    harness.command(dispatch(1, 10));
    harness.command(dispatch(2, 10));
    assert!(matches!(
        harness.said(FakeStreams::opened(0))[..],
        [GatewayMessage::Command { .. }]
    ));
    harness.streams.credit = 1;
    harness.stream_event(StreamEvent::Available { dir: Dir::Bi });
    let said = harness.said(FakeStreams::opened(1));
    assert!(
        matches!(&said[..], [GatewayMessage::Command { command, .. }] if command.operation == operation(2))
    );
}

#[test]
fn a_command_that_is_not_whole_on_its_way_is_certainly_not_delivered() {
    let mut harness = Harness::up();
    harness.streams.room = 20;
    harness.command(dispatch(1, 100));
    harness.command(dispatch(2, 100));
    assert_eq!(harness.streams.get(FakeStreams::opened(0)).sent.len(), 20);
    harness.session.handle_lost(&mut harness.out);
    let lost = [
        not_delivered(1, NotDelivered::NoSession),
        not_delivered(2, NotDelivered::NoSession),
    ];
    assert_eq!(harness.operations(), lost);
}

#[test]
fn a_command_that_was_sent_is_uncertain_when_the_session_is_lost() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    harness.command(dispatch(2, 10));
    harness.hear(FakeStreams::opened(1), &accepted(2));
    harness.take();
    harness.session.handle_lost(&mut harness.out);
    assert_eq!(harness.operations(), [uncertain(1), uncertain(2)]);
    harness.session.handle_lost(&mut harness.out);
    assert!(harness.take().is_empty(), "each is said once");
}

#[test]
fn more_commands_than_streams_are_turned_away() {
    let mut harness = Harness::up();
    let max = u128::try_from(COMMAND_STREAMS_MAX).unwrap();
    (0..max).for_each(|n| harness.command(dispatch(n, 10)));
    assert!(harness.take().is_empty());
    harness.command(dispatch(max, 10));
    assert_eq!(
        harness.operations(),
        [not_delivered(max, NotDelivered::Busy)]
    );
}

#[test]
fn a_full_outbox_turns_commands_away_and_one_great_command_always_fits() {
    let mut harness = Harness::up();
    harness.streams.room = 0;
    harness.command(dispatch(1, COMMAND_INPUT_BYTES_MAX - 2));
    harness.command(dispatch(2, COMMAND_INPUT_BYTES_MAX - 2));
    assert_eq!(harness.operations(), [not_delivered(2, NotDelivered::Busy)]);
    harness.command(dispatch(3, COMMAND_INPUT_BYTES_MAX));
    assert_eq!(
        harness.operations(),
        [not_delivered(3, NotDelivered::TooLarge)]
    );
}

#[test]
fn an_agent_that_does_not_read_its_control_stream_is_let_go() {
    let mut harness = Harness::up();
    harness.streams.room = 0;
    let queries: Vec<_> = (0..u128::try_from(OPERATIONS_PER_FRAME_MAX).unwrap())
        .map(|n| (operation(n), FENCE))
        .collect();
    harness.command(SessionCommand::Query(queries.clone()));
    assert!(harness.take().is_empty());
    harness.command(SessionCommand::Query(queries));
    assert_eq!(harness.closed(), Some(CloseCode::LimitExceeded));
}

#[test]
fn a_cancel_before_the_command_left_takes_it_back() {
    let mut harness = Harness::up();
    harness.streams.room = 5;
    harness.command(dispatch(1, 10));
    let (operation, epoch) = (operation(1), Epoch(7));
    harness.command(SessionCommand::Cancel {
        operation,
        fence: FENCE,
        epoch,
    });
    assert_eq!(
        harness.operations(),
        [not_delivered(1, NotDelivered::NoSession)]
    );
    let stream = harness.streams.get(FakeStreams::opened(0));
    assert_eq!(
        (stream.reset, stream.stopped),
        (Some(CANCEL_STREAM), Some(DONE_STREAM))
    );
}

#[test]
fn after_a_cancel_the_end_of_the_command_is_still_heard() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    let stream = FakeStreams::opened(0);
    harness.hear(stream, &accepted(1));
    let cancel = SessionCommand::Cancel {
        operation: operation(1),
        fence: FENCE,
        epoch: Epoch(7),
    };
    harness.command(cancel);
    assert_eq!(harness.streams.get(stream).reset, None);
    assert!(matches!(
        harness.said(harness.control)[..],
        [GatewayMessage::Cancel { .. }]
    ));
    harness.take();
    harness.hear(stream, &finished(1));
    assert!(matches!(
        harness.operations()[..],
        [OperationEvent::Finished { .. }]
    ));
}

#[test]
fn a_cancel_goes_by_control_stream_even_if_it_may_overtake_its_command() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    let (operation, epoch) = (operation(1), Epoch(7));
    harness.command(SessionCommand::Cancel {
        operation,
        fence: FENCE,
        epoch,
    });
    let cancel = GatewayMessage::Cancel {
        operation,
        fence: FENCE,
        epoch,
    };
    assert_eq!(harness.said(harness.control), [cancel]);
    harness.hear_end(FakeStreams::opened(0), Read::Reset);
    assert_eq!(harness.operations(), [uncertain(1)]);
}

#[test]
fn a_cancel_of_an_older_fence_leaves_a_newer_attempt_alone() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    let (operation, epoch, fence) = (operation(1), Epoch(7), Fence(FENCE.0 - 1));
    harness.command(SessionCommand::Cancel {
        operation,
        fence,
        epoch,
    });
    assert_eq!(harness.streams.get(FakeStreams::opened(0)).reset, None);
}

#[test]
fn a_stream_that_ends_without_a_last_answer_is_uncertain() {
    for end in [Read::Finished, Read::Reset] {
        let mut harness = Harness::up();
        harness.command(dispatch(1, 10));
        harness.hear(FakeStreams::opened(0), &accepted(1));
        harness.take();
        harness.hear_end(FakeStreams::opened(0), end);
        assert_eq!(harness.operations(), [uncertain(1)]);
        harness.command(dispatch(2, 10));
        assert!(harness.take().is_empty(), "its place is free");
    }
}

#[test]
fn an_agent_that_stops_a_commands_stream_before_it_is_whole_did_not_get_it() {
    let mut harness = Harness::up();
    harness.streams.room = 5;
    harness.command(dispatch(1, 10));
    let id = FakeStreams::opened(0);
    harness.streams.get(id).refused = true;
    harness.stream_event(StreamEvent::Stopped {
        id,
        error_code: 0u32.into(),
    });
    assert_eq!(
        harness.operations(),
        [not_delivered(1, NotDelivered::NoSession)]
    );
}

#[test]
fn answers_out_of_order_close_the_session_and_say_what_became_of_the_rest() {
    let refused = AgentMessage::Refused {
        operation: operation(1),
        fence: FENCE,
        refusal: Refusal::JournalFull,
    };
    let stale = AgentMessage::Accepted {
        operation: operation(1),
        fence: Fence(1),
    };
    let status = AgentMessage::Status { capacity: 1 };
    let cases: [(&[&AgentMessage], CloseCode); 8] = [
        (&[&finished(1)], CloseCode::UnexpectedFrame),
        (&[&accepted(1), &accepted(1)], CloseCode::UnexpectedFrame),
        (&[&accepted(1), &refused], CloseCode::UnexpectedFrame),
        (
            &[&accepted(1), &finished(1), &finished(1)],
            CloseCode::UnexpectedFrame,
        ),
        (&[&refused, &accepted(1)], CloseCode::UnexpectedFrame),
        (&[&stale], CloseCode::UnexpectedFrame),
        (&[&status], CloseCode::UnexpectedFrame),
        (&[&accepted(2)], CloseCode::ForeignOperation),
    ];
    for (messages, code) in cases {
        let mut harness = Harness::up();
        harness.command(dispatch(1, 10));
        harness.command(dispatch(3, 10));
        let mut frames = Vec::new();
        for message in messages {
            encode_agent_message(message, &mut frames).unwrap();
        }
        harness.hear_bytes(FakeStreams::opened(0), &frames);
        let out = harness.take();
        assert!(
            matches!(out.last(), Some(Output::Close(with, _)) if *with == code),
            "{out:?}"
        );
        let fate = Output::Operation(uncertain(3));
        assert!(
            out.iter()
                .any(|output| format!("{output:?}") == format!("{fate:?}")),
            "{out:?}"
        );
    }
}

#[test]
fn reports_are_heard_about_what_the_agent_was_given_and_nothing_else() {
    let mut harness = Harness::new();
    let mut inventory = hello();
    let phase = Phase::Running;
    inventory.open = vec![OpenOperation {
        operation: operation(1),
        fence: FENCE,
        phase,
    }];
    harness.hear(harness.control, &AgentMessage::Hello(Box::new(inventory)));
    harness.command(SessionCommand::Query(vec![(operation(2), FENCE)]));
    harness.command(dispatch(3, 10));
    harness.command(SessionCommand::Forget(vec![operation(2)]));
    harness.take();
    let report = |n| AgentMessage::Report {
        operation: operation(n),
        fence: FENCE,
        state: OperationState::NeverSeen,
    };
    for n in [1, 2, 3, 2] {
        harness.hear(harness.control, &report(n));
        assert!(matches!(
            harness.operations()[..],
            [OperationEvent::Report { .. }]
        ));
    }
    harness.hear(harness.control, &report(4));
    assert_eq!(harness.closed(), Some(CloseCode::ForeignOperation));
}

#[test]
fn a_redirect_closes_the_session_once_it_has_arrived() {
    for arrives in [true, false] {
        let mut harness = Harness::new();
        let (group, epoch) = (target().group, Epoch(8));
        let addresses = vec!["other.test:7443".to_owned()];
        let release = Request::ReleaseGroup {
            group,
            epoch,
            addresses: addresses.clone(),
        };
        harness.directory.handle_request(&release).unwrap();
        harness.hear(harness.control, &AgentMessage::Hello(Box::new(hello())));
        let said = harness.said(harness.control);
        assert!(
            matches!(&said[..], [GatewayMessage::Redirect { addresses: to, .. }] if *to == addresses)
        );
        assert!(harness.streams.get(harness.control).finished);
        assert!(harness.take().is_empty(), "not before the agent has it");
        if arrives {
            harness.stream_event(StreamEvent::Finished {
                id: harness.control,
            });
        } else {
            assert_eq!(harness.session.poll_timeout(), Some(harness.now + LINGER));
            harness.session.handle_timeout(
                harness.now + LINGER,
                &mut harness.streams,
                &mut harness.out,
            );
        }
        assert_eq!(harness.closed(), Some(CloseCode::Redirected));
    }
}

#[test]
fn a_session_ends_with_its_certificate_or_with_a_goaway_whichever_is_first() {
    let mut harness = Harness::up();
    let hour = harness.now + Duration::from_secs(3600);
    assert_eq!(harness.session.poll_timeout(), Some(hour));
    harness.command(SessionCommand::GoAway {
        addresses: Vec::new(),
        delay: Duration::ZERO,
        deadline: Duration::from_secs(60),
    });
    let minute = harness.now + Duration::from_secs(60);
    assert_eq!(harness.session.poll_timeout(), Some(minute));
    harness.session.handle_timeout(
        minute - Duration::from_millis(1),
        &mut harness.streams,
        &mut harness.out,
    );
    assert!(harness.take().is_empty());
    harness
        .session
        .handle_timeout(minute, &mut harness.streams, &mut harness.out);
    assert_eq!(harness.closed(), Some(CloseCode::Draining));
    assert_eq!(harness.session.poll_timeout(), None);
}

#[test]
fn a_dispatch_to_a_session_that_is_not_up_comes_back() {
    let mut harness = Harness::new();
    harness.command(dispatch(1, 10));
    assert_eq!(
        harness.operations(),
        [not_delivered(1, NotDelivered::NoSession)]
    );
}

#[test]
fn after_its_end_a_session_says_nothing_more() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    harness.command(SessionCommand::Close(CloseCode::Superseded));
    assert_eq!(harness.closed(), Some(CloseCode::Superseded));
    harness.hear(harness.control, &AgentMessage::Status { capacity: 1 });
    harness.command(SessionCommand::Close(CloseCode::Revoked));
    harness.session.handle_timeout(
        harness.now + Duration::from_secs(7200),
        &mut harness.streams,
        &mut harness.out,
    );
    assert!(harness.take().is_empty());
}
