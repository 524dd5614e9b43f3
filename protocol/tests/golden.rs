//! Frames written by another implementation: the FlatBuffers compiler itself (C++), from the JSON in
//! `tests/golden`. `.ci/codegen` makes them.

use std::time::Duration;

use bytes::Bytes;
use protocol::agent::{AgentMessage, GatewayMessage, Hello};
use protocol::enrol::{EnrolReply, EnrolRequest, Enrolment};
use protocol::frame;
use protocol::ids::{
    AgentId, Epoch, Fence, GatewayId, GroupId, OperationId, ProcessId, ServerId, Slot,
};
use protocol::link::{Event, GatewayWord, Request, ServerWord, Target};
use protocol::operation::{Command, OpenOperation, Outcome, OutcomeStatus, Phase};
use protocol::version::VersionRange;

/// `0190b6b8-0000-7000-8000-00000000000N`.
fn uuid(n: u8) -> [u8; 16] {
    [1, 144, 182, 184, 0, 0, 112, 0, 128, 0, 0, 0, 0, 0, 0, n]
}

fn operation(step: u16) -> OperationId {
    OperationId::new(ProcessId::from_bytes(uuid(2)), step)
}

fn target() -> Target {
    Target {
        agent: AgentId::from_bytes(uuid(1)),
        group: GroupId::from_bytes(uuid(4)),
        slot: Slot(200),
    }
}

#[test]
fn a_hello() {
    let hello = Hello {
        versions: VersionRange {
            oldest: 1,
            newest: 2,
        },
        agent: AgentId::from_bytes(uuid(1)),
        session_count: 7,
        capacity: 4,
        epoch_seen: Epoch(u64::MAX),
        kinds: vec!["exec".to_owned(), "simulated".to_owned()],
        open: vec![OpenOperation {
            operation: operation(3),
            fence: Fence(9),
            phase: Phase::Finished,
        }],
        hostname: "hv-17".to_owned(),
        software: "another-agent 0.1".to_owned(),
        labels: vec![
            ("rack".to_owned(), "r4".to_owned()),
            ("spare".to_owned(), String::new()),
        ],
    };
    let read = frame::decode_agent_message(include_bytes!("golden/agent_message.bin"));
    assert_eq!(read, Ok(AgentMessage::Hello(Box::new(hello))));
}

#[test]
fn a_command() {
    let command = Command {
        operation: operation(0),
        fence: Fence(1),
        kind: "exec".to_owned(),
        input: Bytes::from_static(b"{}"),
        deadline_ms: 1_790_000_000_000,
    };
    let epoch = Epoch(12);
    let read = frame::decode_gateway_message(include_bytes!("golden/gateway_message.bin"));
    assert_eq!(read, Ok(GatewayMessage::Command { epoch, command }));
}

#[test]
fn an_enrolment() {
    let request = EnrolRequest {
        secret: std::array::from_fn(|n| u8::try_from(n).expect("32 bytes")),
        csr: vec![48, 3, 2, 1, 0],
        hostname: "hv-17".to_owned(),
        software: String::new(),
    };
    let read = frame::decode_enrol_request(include_bytes!("golden/enrol_request.bin"));
    assert_eq!(read, Ok(request));

    let enrolment = Enrolment {
        agent: AgentId::from_bytes(uuid(1)),
        group: GroupId::from_bytes(uuid(4)),
        slot: Slot(200),
        domain: "cloud.example".to_owned(),
        chain: vec![vec![48, 1], vec![48, 2]],
        roots: vec![vec![48, 3]],
        addresses: vec![
            "gateway.example:7443".to_owned(),
            "[2001:db8::1]:7443".to_owned(),
        ],
    };
    let read = frame::decode_enrol_reply(include_bytes!("golden/enrol_reply.bin"));
    assert_eq!(read, Ok(EnrolReply::Enrolled(Box::new(enrolment))));
}

#[test]
fn a_request_and_an_event() {
    let request = Request::Query {
        target: target(),
        operations: vec![(operation(u16::MAX), Fence(3))],
    };
    let read = frame::decode_request(include_bytes!("golden/request.bin"));
    assert_eq!(read, Ok(request));

    let event = Event::Finished {
        target: target(),
        operation: operation(0),
        fence: Fence(3),
        outcome: Outcome {
            status: OutcomeStatus::FailedPermanent,
            exit_code: Some(-1),
            message: "no such image".to_owned(),
            output: Bytes::from_static(b"out"),
            service_time: Duration::from_millis(1500),
        },
    };
    let read = frame::decode_event(include_bytes!("golden/event.bin"));
    assert_eq!(read, Ok(event));
}

#[test]
fn words_about_a_connection() {
    let hello = ServerWord::Hello {
        versions: VersionRange {
            oldest: 1,
            newest: 2,
        },
        software: "another-server 0.1".to_owned(),
        observes: true,
    };
    let read = frame::decode_server_word(include_bytes!("golden/server_word.bin"));
    assert_eq!(read, Ok(hello));

    let welcome = GatewayWord::Welcome {
        version: 1,
        gateway: GatewayId::from_bytes(uuid(3)),
        server: ServerId(7),
        shards: 4,
        port: 7443,
        addresses: vec!["a.example:7443".to_owned(), "[2001:db8::1]:7443".to_owned()],
    };
    let read = frame::decode_gateway_word(include_bytes!("golden/gateway_word.bin"));
    assert_eq!(read, Ok(welcome));
}
