//! Frames that the FlatBuffers verifier accepts and that we refuse: written with the generated
//! types, as a faulty or hostile peer would write them. What a person reads is part of the test.

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};

use super::codec::Builder;
use super::{
    decode_agent_message, decode_enrol_reply, decode_enrol_request, decode_event,
    decode_gateway_message, decode_request,
};
use crate::generated::{agent as fb, link};

const OPERATION: fb::OperationId = fb::OperationId([0; 18]);

fn finish<T>(mut b: Builder, root: WIPOffset<T>, identifier: &str) -> Vec<u8> {
    b.finish(root, Some(identifier));
    b.finished_data().to_vec()
}

type Written<T> = (T, WIPOffset<UnionWIPOffset>);

fn agent(write: impl FnOnce(&mut Builder) -> Written<fb::AgentBody>) -> String {
    let mut b = FlatBufferBuilder::new();
    let (body_type, body) = write(&mut b);
    let body = Some(body);
    let root = fb::AgentMessage::create(&mut b, &fb::AgentMessageArgs { body_type, body });
    let frame = finish(b, root, "DRAM");
    decode_agent_message(&frame).unwrap_err().to_string()
}

fn gateway(write: impl FnOnce(&mut Builder) -> Written<fb::GatewayBody>) -> String {
    let mut b = FlatBufferBuilder::new();
    let (body_type, body) = write(&mut b);
    let body = Some(body);
    let root = fb::GatewayMessage::create(&mut b, &fb::GatewayMessageArgs { body_type, body });
    let frame = finish(b, root, "DRGM");
    decode_gateway_message(&frame).unwrap_err().to_string()
}

fn hello(change: impl FnOnce(&mut Builder, &mut fb::HelloArgs<'static>)) -> String {
    agent(|b| {
        let mut args = fb::HelloArgs {
            agent: Some(&fb::Uuid([0; 16])),
            ..Default::default()
        };
        change(b, &mut args);
        let hello = fb::Hello::create(b, &args);
        (fb::AgentBody::Hello, hello.as_union_value())
    })
}

fn label(b: &mut Builder, name: &str, value: &str) -> WIPOffset<fb::Label<'static>> {
    let args = fb::LabelArgs {
        name: Some(b.create_string(name)),
        value: Some(b.create_string(value)),
    };
    fb::Label::create(b, &args)
}

#[test]
fn a_hello_over_a_limit_names_the_field() {
    let cases = [
        (
            hello(|_, args| args.capacity = 17),
            "field `hello.capacity` is more than the command streams of a session",
        ),
        (
            hello(|b, args| args.hostname = Some(b.create_string(&"h".repeat(129)))),
            "field `hello.hostname` is longer than its limit",
        ),
        (
            hello(|b, args| args.software = Some(b.create_string("1.0\u{1b}[2J"))),
            "field `hello.software` contains control characters",
        ),
        (
            hello(|b, args| {
                let kind = b.create_string("exec");
                args.kinds = Some(b.create_vector(&[kind; 65]));
            }),
            "field `kinds` is longer than its limit",
        ),
        (
            hello(|b, args| {
                let kind = b.create_string("Exec!");
                args.kinds = Some(b.create_vector(&[kind]));
            }),
            "field `kinds` does not match [a-z0-9_.-]{1,64}",
        ),
        (
            hello(|b, args| {
                let label = label(b, "a=b", "c");
                args.labels = Some(b.create_vector(&[label]));
            }),
            "field `labels.name` is empty or contains `=`",
        ),
        (
            hello(|b, args| {
                let label = label(b, "rack", &"v".repeat(257));
                args.labels = Some(b.create_vector(&[label]));
            }),
            "field `labels.value` is longer than its limit",
        ),
        (
            hello(|b, args| {
                let label = label(b, "rack", "7");
                args.labels = Some(b.create_vector(&[label; 65]));
            }),
            "field `labels` is longer than its limit",
        ),
        (
            hello(|b, args| {
                let line = fb::OpenOperation::new(&OPERATION, fb::Phase::Running, 1);
                args.open = Some(b.create_vector(&vec![line; 1025]));
            }),
            "field `open` is longer than its limit",
        ),
        (
            hello(|b, args| {
                let line = fb::OpenOperation::new(&OPERATION, fb::Phase::NeverSeen, 1);
                args.open = Some(b.create_vector(&[line]));
            }),
            "field `open.phase` has a value that is not in the schema",
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
}

#[test]
fn tables_that_are_shared_cannot_multiply_the_work() {
    let said = hello(|b, args| {
        let label = label(b, "rack", "7");
        args.labels = Some(b.create_vector(&vec![label; 2000]));
    });
    assert_eq!(said, "the frame is not well-formed: Too many tables.");
    let said = hello(|b, args| {
        let kind = b.create_string(&"k".repeat(10_000));
        args.kinds = Some(b.create_vector(&vec![kind; 1000]));
    });
    assert_eq!(
        said,
        "the frame is not well-formed: Apparent size too large."
    );
}

fn outcome(b: &mut Builder, status: u8, output: usize) -> WIPOffset<fb::Outcome<'static>> {
    let args = fb::OutcomeArgs {
        status: fb::OutcomeStatus(status),
        output: Some(b.create_vector(&vec![0u8; output])),
        ..Default::default()
    };
    fb::Outcome::create(b, &args)
}

fn finished(status: u8, output: usize) -> String {
    agent(|b| {
        let args = fb::FinishedArgs {
            operation: Some(&OPERATION),
            fence: 1,
            outcome: Some(outcome(b, status, output)),
        };
        let finished = fb::Finished::create(b, &args);
        (fb::AgentBody::Finished, finished.as_union_value())
    })
}

fn report(phase: fb::Phase, with_outcome: bool) -> String {
    agent(|b| {
        let args = fb::ReportArgs {
            operation: Some(&OPERATION),
            fence: 1,
            phase,
            outcome: with_outcome.then(|| outcome(b, 1, 0)),
        };
        (
            fb::AgentBody::Report,
            fb::Report::create(b, &args).as_union_value(),
        )
    })
}

fn progress(percent: u8, channel: u8, message: usize) -> String {
    agent(|b| {
        let args = fb::ProgressArgs {
            operation: Some(&OPERATION),
            percent: Some(percent),
            channel: fb::Channel(channel),
            message: Some(b.create_string(&"m".repeat(message))),
            ..Default::default()
        };
        (
            fb::AgentBody::Progress,
            fb::Progress::create(b, &args).as_union_value(),
        )
    })
}

fn refused(reason: u8, text: &str) -> String {
    agent(|b| {
        let args = fb::RefusedArgs {
            operation: Some(&OPERATION),
            reason: fb::RefusalReason(reason),
            text: Some(b.create_string(text)),
            ..Default::default()
        };
        (
            fb::AgentBody::Refused,
            fb::Refused::create(b, &args).as_union_value(),
        )
    })
}

#[test]
fn an_ending_out_of_range_names_the_field() {
    let not_in_schema = "has a value that is not in the schema";
    let cases = [
        (
            finished(0, 0),
            format!("field `outcome.status` {not_in_schema}"),
        ),
        (
            finished(7, 0),
            format!("field `outcome.status` {not_in_schema}"),
        ),
        (
            finished(1, 16_385),
            "field `outcome.output` is longer than its limit".to_owned(),
        ),
        (
            finished(1, 24 << 10),
            "field `outcome.output` is longer than its limit".to_owned(),
        ),
        (
            report(fb::Phase::Finished, false),
            "field `report.outcome` is missing".to_owned(),
        ),
        (
            report(fb::Phase::Running, true),
            "field `report.outcome` is there although the operation has not finished".to_owned(),
        ),
        (
            report(fb::Phase::Unset, false),
            format!("field `report.phase` {not_in_schema}"),
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
}

#[test]
fn an_answer_out_of_range_names_the_field() {
    let not_in_schema = "has a value that is not in the schema";
    let cases = [
        (
            progress(101, 1, 0),
            "field `progress.percent` is more than 100".to_owned(),
        ),
        (
            progress(1, 3, 0),
            format!("field `progress.channel` {not_in_schema}"),
        ),
        (
            progress(1, 1, 1025),
            "field `progress.message` is longer than its limit".to_owned(),
        ),
        (
            refused(0, ""),
            format!("field `refusal.reason` {not_in_schema}"),
        ),
        (
            refused(11, ""),
            format!("field `refusal.reason` {not_in_schema}"),
        ),
        (
            refused(4, "No Such Kind"),
            "field `refusal.kind` does not match [a-z0-9_.-]{1,64}".to_owned(),
        ),
        (
            refused(5, &"t".repeat(1025)),
            "field `refusal.text` is longer than its limit".to_owned(),
        ),
        (
            agent(|b| {
                let args = fb::StatusArgs { capacity: 1000 };
                (
                    fb::AgentBody::Status,
                    fb::Status::create(b, &args).as_union_value(),
                )
            }),
            "field `status.capacity` is more than the command streams of a session".to_owned(),
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
}

#[test]
fn a_message_of_another_version_is_refused_by_name() {
    let said = agent(|b| {
        let args = fb::StatusArgs { capacity: 1 };
        (
            fb::AgentBody(99),
            fb::Status::create(b, &args).as_union_value(),
        )
    });
    assert_eq!(said, "field `body` has a value that is not in the schema");
}

#[test]
fn a_gateway_message_out_of_range_names_the_field() {
    let command = |kind: &str, input: usize| {
        gateway(|b| {
            let args = fb::CommandArgs {
                operation: Some(&OPERATION),
                kind: Some(b.create_string(kind)),
                input: Some(b.create_vector(&vec![b' '; input])),
                ..Default::default()
            };
            (
                fb::GatewayBody::Command,
                fb::Command::create(b, &args).as_union_value(),
            )
        })
    };
    let redirect = |address: &str, count: usize| {
        gateway(|b| {
            let address = b.create_string(address);
            let args = fb::RedirectArgs {
                addresses: Some(b.create_vector(&vec![address; count])),
                retry_after_ms: 0,
            };
            (
                fb::GatewayBody::Redirect,
                fb::Redirect::create(b, &args).as_union_value(),
            )
        })
    };
    let query = gateway(|b| {
        let line = fb::OperationFence::new(&OPERATION, 1);
        let operations = Some(b.create_vector(&vec![line; 1025]));
        let query = fb::Query::create(b, &fb::QueryArgs { operations });
        (fb::GatewayBody::Query, query.as_union_value())
    });
    let cases = [
        (
            command("", 0),
            "field `command.kind` does not match [a-z0-9_.-]{1,64}",
        ),
        (
            command("exec", 98_305),
            "field `command.input` is longer than its limit",
        ),
        (
            redirect("gw:7443", 17),
            "field `addresses` is longer than its limit",
        ),
        (
            redirect("gw", 1),
            "field `addresses` is not host:port: it has no port",
        ),
        (query, "field `query.operations` is longer than its limit"),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
}

#[test]
fn an_enrolment_over_a_limit_names_the_field() {
    let mut b = FlatBufferBuilder::new();
    let args = fb::EnrolRequestArgs {
        secret: Some(&fb::Bytes32([0; 32])),
        csr: Some(b.create_vector(&[0u8; 4097])),
        ..Default::default()
    };
    let root = fb::EnrolRequest::create(&mut b, &args);
    let said = decode_enrol_request(&finish(b, root, "DREQ")).unwrap_err();
    assert_eq!(
        said.to_string(),
        "field `enrol.csr` is longer than its limit"
    );

    let mut b = FlatBufferBuilder::new();
    let der = Some(b.create_vector(&[0u8; 100]));
    let certificate = fb::Certificate::create(&mut b, &fb::CertificateArgs { der });
    let certificates = b.create_vector(&[certificate; 5]);
    let args = fb::EnrolledArgs {
        agent: Some(&fb::Uuid([0; 16])),
        group: Some(&fb::Uuid([0; 16])),
        domain: Some(b.create_string("cloud.example")),
        chain: Some(certificates),
        roots: Some(certificates),
        ..Default::default()
    };
    let body = Some(fb::Enrolled::create(&mut b, &args).as_union_value());
    let body_type = fb::EnrolBody::Enrolled;
    let root = fb::EnrolReply::create(&mut b, &fb::EnrolReplyArgs { body_type, body });
    let said = decode_enrol_reply(&finish(b, root, "DREP")).unwrap_err();
    assert_eq!(
        said.to_string(),
        "field `enrol.chain` is longer than its limit"
    );
}

#[test]
fn a_link_message_without_its_target_is_refused() {
    let mut b = FlatBufferBuilder::new();
    let body = link::Demand::create(&mut b, &link::DemandArgs::default());
    let args = link::RequestArgs {
        target: None,
        body_type: link::RequestBody::Demand,
        body: Some(body.as_union_value()),
    };
    let root = link::Request::create(&mut b, &args);
    let said = decode_request(&finish(b, root, "DRLR")).unwrap_err();
    assert_eq!(said.to_string(), "field `target` is missing");

    let mut b = FlatBufferBuilder::new();
    let remote = link::SocketAddress::new(&[0; 16], 0, 0, 1, 5);
    let args = link::SecurityArgs {
        kind: link::SecurityKind::NoCertificate,
        agent: None,
        remote: Some(&remote),
    };
    let body = link::Security::create(&mut b, &args).as_union_value();
    let args = link::EventArgs {
        target: None,
        body_type: link::EventBody::Security,
        body: Some(body),
    };
    let root = link::Event::create(&mut b, &args);
    let said = decode_event(&finish(b, root, "DRLE")).unwrap_err();
    let expected = "field `remote.family` has a value that is not in the schema";
    assert_eq!(said.to_string(), expected);
}

#[test]
fn another_kind_of_frame_is_refused_by_its_identifier() {
    let mut b = FlatBufferBuilder::new();
    let args = fb::StatusArgs { capacity: 1 };
    let body = Some(fb::Status::create(&mut b, &args).as_union_value());
    let body_type = fb::AgentBody::Status;
    let root = fb::AgentMessage::create(&mut b, &fb::AgentMessageArgs { body_type, body });
    let frame = finish(b, root, "DRAM");
    let said = decode_gateway_message(&frame).unwrap_err().to_string();
    assert_eq!(said, "the frame's identifier is not DRGM");
    let said = decode_agent_message(b"DRAM").unwrap_err().to_string();
    assert_eq!(said, "the frame is not well-formed: it has no header");
}
