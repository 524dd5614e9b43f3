//! The largest values that the limits allow fit into their frames; one more is refused by whoever
//! would send it, in words.

use std::time::Duration;

use bytes::Bytes;
use protocol::agent::{AgentMessage, GatewayMessage, Hello};
use protocol::enrol::{EnrolReply, EnrolRequest, Enrolment};
use protocol::flow::lending::{Incarnation, Lease, Report, Term};
use protocol::flow::{Class, LimitKey, Line};
use protocol::frame;
use protocol::ids::{AgentId, Epoch, Fence, GroupId, OperationId, ProcessId, ShardId, Slot};
use protocol::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_MAX, CAPACITY_MAX, CERTIFICATE_BYTES_MAX, CERTIFICATES_MAX,
    CHARGES_PER_FRAME_MAX, COMMAND_INPUT_BYTES_MAX, CREDITS_PER_FRAME_MAX, CSR_BYTES_MAX,
    DOMAIN_BYTES_MAX, JOURNAL_OPEN_MAX, KIND_BYTES_MAX, KINDS_MAX, LABEL_VALUE_BYTES_MAX,
    LABELS_MAX, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, OPERATIONS_PER_FRAME_MAX, OUTPUT_BYTES_MAX,
    RESOURCES_MAX,
};
use protocol::link::{Event, Request, Target};
use protocol::operation::{
    Channel, Command, OpenOperation, OperationState, Outcome, OutcomeStatus, Phase, Progress,
    Refusal,
};
use protocol::version::SUPPORTED;

fn operation(n: usize) -> OperationId {
    let n = u128::try_from(n).expect("small");
    OperationId::new(
        ProcessId::from_bytes((u128::MAX - n).to_be_bytes()),
        u16::MAX,
    )
}

fn address() -> String {
    format!("{}:65535", "h".repeat(ADDRESS_BYTES_MAX - 6))
}

fn largest_hello() -> Hello {
    let open = |n| OpenOperation {
        operation: operation(n),
        fence: Fence(u64::MAX),
        phase: Phase::Running,
    };
    let label = |n| {
        let name = format!("{n:0>NAME_BYTES_MAX$}");
        (name, "v".repeat(LABEL_VALUE_BYTES_MAX))
    };
    Hello {
        versions: SUPPORTED,
        agent: AgentId::from_bytes([0xff; 16]),
        session_count: u64::MAX,
        capacity: CAPACITY_MAX,
        epoch_seen: Epoch(u64::MAX),
        kinds: (0..KINDS_MAX)
            .map(|n| format!("{n:0>KIND_BYTES_MAX$}"))
            .collect(),
        open: (0..JOURNAL_OPEN_MAX).map(open).collect(),
        hostname: "h".repeat(NAME_BYTES_MAX),
        software: "s".repeat(NAME_BYTES_MAX),
        labels: (0..LABELS_MAX).map(label).collect(),
    }
}

fn largest_outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Interrupted,
        exit_code: Some(i32::MIN),
        message: "m".repeat(MESSAGE_BYTES_MAX),
        output: Bytes::from(vec![7; OUTPUT_BYTES_MAX]),
        service_time: Duration::from_micros(u64::MAX),
    }
}

fn largest_progress() -> Progress {
    Progress {
        sequence: u32::MAX,
        percent: Some(100),
        message: "m".repeat(MESSAGE_BYTES_MAX),
        channel: Channel::Stderr,
        output: Bytes::from(vec![7; OUTPUT_BYTES_MAX]),
    }
}

fn largest_command() -> Command {
    Command {
        operation: operation(0),
        fence: Fence(u64::MAX),
        kind: "k".repeat(KIND_BYTES_MAX),
        input: Bytes::from(vec![b'1'; COMMAND_INPUT_BYTES_MAX]),
        deadline_ms: u64::MAX,
    }
}

#[test]
fn the_largest_agent_messages_fit() {
    let (operation, fence) = (operation(0), Fence(u64::MAX));
    let text = || "t".repeat(MESSAGE_BYTES_MAX);
    let messages = [
        AgentMessage::Hello(Box::new(largest_hello())),
        AgentMessage::Report {
            operation,
            fence,
            state: OperationState::Finished(largest_outcome()),
        },
        AgentMessage::Refused {
            operation,
            fence,
            refusal: Refusal::JournalFailed { message: text() },
        },
        AgentMessage::Progress {
            operation,
            fence,
            progress: largest_progress(),
        },
        AgentMessage::Finished {
            operation,
            fence,
            outcome: largest_outcome(),
        },
    ];
    for message in messages {
        let mut out = Vec::new();
        frame::encode_agent_message(&message, &mut out).unwrap();
        assert_eq!(frame::decode_agent_message(&out[4..]), Ok(message));
    }
}

#[test]
fn the_largest_gateway_messages_fit() {
    let addresses = vec![address(); ADDRESSES_MAX];
    let messages = [
        GatewayMessage::Redirect {
            addresses: addresses.clone(),
            retry_after: Duration::from_millis(u64::from(u32::MAX)),
        },
        GatewayMessage::Query {
            operations: (0..OPERATIONS_PER_FRAME_MAX)
                .map(|n| (operation(n), Fence(u64::MAX)))
                .collect(),
        },
        GatewayMessage::Forget {
            operations: (0..OPERATIONS_PER_FRAME_MAX).map(operation).collect(),
        },
        GatewayMessage::Command {
            epoch: Epoch(u64::MAX),
            command: largest_command(),
        },
    ];
    for message in messages {
        let mut out = Vec::new();
        frame::encode_gateway_message(&message, &mut out).unwrap();
        assert_eq!(frame::decode_gateway_message(&out[4..]), Ok(message));
    }
}

#[test]
fn the_largest_enrolments_fit() {
    let request = EnrolRequest {
        secret: [0xff; 32],
        csr: vec![7; CSR_BYTES_MAX],
        hostname: "h".repeat(NAME_BYTES_MAX),
        software: "s".repeat(NAME_BYTES_MAX),
    };
    let mut out = Vec::new();
    frame::encode_enrol_request(&request, &mut out).unwrap();
    assert_eq!(frame::decode_enrol_request(&out[4..]), Ok(request));

    let certificates = vec![vec![7; CERTIFICATE_BYTES_MAX]; CERTIFICATES_MAX];
    let reply = EnrolReply::Enrolled(Box::new(Enrolment {
        agent: AgentId::from_bytes([0xff; 16]),
        group: GroupId::from_bytes([0xff; 16]),
        slot: Slot(u8::MAX),
        domain: "d".repeat(DOMAIN_BYTES_MAX),
        chain: certificates.clone(),
        roots: certificates,
        addresses: vec![address(); ADDRESSES_MAX],
    }));
    let mut out = Vec::new();
    frame::encode_enrol_reply(&reply, &mut out).unwrap();
    assert_eq!(frame::decode_enrol_reply(&out[4..]), Ok(reply));
}

fn refusal_of(message: &AgentMessage) -> String {
    let mut out = vec![1, 2, 3];
    let error = frame::encode_agent_message(message, &mut out).expect_err("over a limit");
    assert_eq!(out, [1, 2, 3], "`out` is unchanged");
    error.to_string()
}

fn hello(change: impl FnOnce(&mut Hello)) -> String {
    let mut hello = largest_hello();
    change(&mut hello);
    refusal_of(&AgentMessage::Hello(Box::new(hello)))
}

fn finished(change: impl FnOnce(&mut Outcome)) -> String {
    let mut outcome = largest_outcome();
    change(&mut outcome);
    let (operation, fence) = (operation(0), Fence(1));
    refusal_of(&AgentMessage::Finished {
        operation,
        fence,
        outcome,
    })
}

fn progress(change: impl FnOnce(&mut Progress)) -> String {
    let mut progress = largest_progress();
    change(&mut progress);
    let (operation, fence) = (operation(0), Fence(1));
    refusal_of(&AgentMessage::Progress {
        operation,
        fence,
        progress,
    })
}

#[test]
fn what_no_agent_message_may_carry_is_not_sent() {
    let cases = [
        (
            hello(|h| h.capacity += 1),
            "`hello.capacity` is more than the command streams of a session; it cannot be sent",
        ),
        (
            hello(|h| h.hostname.push('h')),
            "`hello.hostname` is too large to send: 129, at most 128",
        ),
        (
            hello(|h| h.software = "a\nb".to_owned()),
            "`hello.software` contains control characters; it cannot be sent",
        ),
        (
            hello(|h| h.kinds.push("exec".to_owned())),
            "`kinds` is too large to send: 65, at most 64",
        ),
        (
            hello(|h| h.kinds[0] = "Exec!".to_owned()),
            "`kinds` does not match [a-z0-9_.-]{1,64}; it cannot be sent",
        ),
        (
            hello(|h| h.open.push(h.open[0])),
            "`open` is too large to send: 1025, at most 1024",
        ),
        (
            hello(|h| h.labels[0].0.clear()),
            "`labels.name` is empty or contains `=`; it cannot be sent",
        ),
        (
            hello(|h| h.labels[0].1.push('v')),
            "`labels.value` is too large to send: 257, at most 256",
        ),
        (
            finished(|o| o.output = Bytes::from(vec![0; OUTPUT_BYTES_MAX + 1])),
            "`outcome.output` is too large to send: 16385, at most 16384",
        ),
        (
            finished(|o| o.message.push('m')),
            "`outcome.message` is too large to send: 1025, at most 1024",
        ),
        (
            progress(|p| p.percent = Some(101)),
            "`progress.percent` is more than 100; it cannot be sent",
        ),
        (
            refusal_of(&AgentMessage::Refused {
                operation: operation(0),
                fence: Fence(1),
                refusal: Refusal::Busy {
                    retry_after: Duration::from_secs(1 << 40),
                },
            }),
            "`refusal.retry_after` is longer than 2^32 - 1 ms; it cannot be sent",
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
}

#[test]
fn a_refused_value_leaves_the_next_one_whole() {
    let mut out = Vec::new();
    let mut bad = largest_hello();
    bad.labels[LABELS_MAX - 1].0.clear();
    assert!(frame::encode_agent_message(&AgentMessage::Hello(Box::new(bad)), &mut out).is_err());
    let good = AgentMessage::Status { capacity: 3 };
    frame::encode_agent_message(&good, &mut out).unwrap();
    assert_eq!(frame::decode_agent_message(&out[4..]), Ok(good));
}

#[test]
fn durations_lose_what_is_below_a_millisecond() {
    let spread = Duration::from_micros(1_999);
    let message = GatewayMessage::GoAway {
        addresses: Vec::new(),
        delay: spread,
        deadline: spread,
    };
    let mut out = Vec::new();
    frame::encode_gateway_message(&message, &mut out).unwrap();
    let read = frame::decode_gateway_message(&out[4..]).unwrap();
    let cut = Duration::from_millis(1);
    assert_eq!(
        read,
        GatewayMessage::GoAway {
            addresses: Vec::new(),
            delay: cut,
            deadline: cut
        }
    );
}

#[test]
fn the_largest_words_about_what_is_lent_fit() {
    let key = |n: usize| LimitKey::Resource(format!("{n:0NAME_BYTES_MAX$}"));
    let (incarnation, term) = (Incarnation(u64::MAX), Term(u64::MAX));
    let lease = Lease {
        incarnation,
        term,
        number: u64::MAX,
        answers: u64::MAX,
        credit: u32::MAX,
        only_prolongs: true,
    };
    let report = Report {
        incarnation,
        number: u64::MAX,
        term,
        lease: u64::MAX,
        holds: u32::MAX,
        in_use: u32::MAX,
        wants: u32::MAX,
    };
    let keys = || (0..CREDITS_PER_FRAME_MAX).map(key);
    let requests = [
        Request::Lend {
            shard: ShardId(u16::MAX),
            leases: keys().map(|key| (key, lease)).collect(),
        },
        Request::AskUse {
            keys: keys().collect(),
        },
    ];
    for request in requests {
        let mut out = Vec::new();
        frame::encode_request(&request, &mut out).unwrap();
        assert_eq!(frame::decode_request(&out[4..]), Ok(request));
    }
    let event = Event::Reported {
        shard: ShardId(u16::MAX),
        shards: u16::MAX,
        reports: keys().map(|key| (key, report)).collect(),
    };
    let mut out = Vec::new();
    frame::encode_event(&event, &mut out).unwrap();
    assert_eq!(frame::decode_event(&out[4..]), Ok(event));
    let too_many = Request::AskUse {
        keys: (0..=CREDITS_PER_FRAME_MAX).map(key).collect(),
    };
    assert!(frame::encode_request(&too_many, &mut out).is_err());
}

#[test]
fn the_largest_charge_fits() {
    let name = "n".repeat(NAME_BYTES_MAX);
    let line = Line {
        class: Class::Background,
        tenant: name,
        kind: "k".repeat(KIND_BYTES_MAX),
        work: "w".repeat(KIND_BYTES_MAX),
        resources: (0..RESOURCES_MAX)
            .map(|n| format!("{n:0NAME_BYTES_MAX$}"))
            .collect(),
    };
    let target = Target {
        agent: AgentId::from_bytes([0xff; 16]),
        group: GroupId::from_bytes([0xff; 16]),
        slot: Slot(u8::MAX),
    };
    let operations = (0..CHARGES_PER_FRAME_MAX).map(|n| (operation(n), line.clone()));
    let request = Request::Charge {
        target,
        operations: operations.collect(),
    };
    let mut out = Vec::new();
    frame::encode_request(&request, &mut out).unwrap();
    assert_eq!(frame::decode_request(&out[4..]), Ok(request));
}
