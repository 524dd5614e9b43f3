//! `docs/PROTOCOL.md` says what the code does, where a machine can compare the two.

use std::time::Duration;

use protocol::agent::AgentMessage;
use protocol::close::{CANCEL_STREAM, CloseCode, DONE_STREAM};
use protocol::enrol::{EnrolRefusal, EnrolReply};
use protocol::frame;
use protocol::ids::{Fence, OperationId};
use protocol::limits;

const DOCUMENT: &str = include_str!("../../docs/PROTOCOL.md");

/// The cells of every table row in the document.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

/// The row that begins with these cells.
fn has_row(first: &[&str]) -> bool {
    rows().any(|row| row.starts_with(first))
}

#[test]
fn every_close_code_is_in_the_table_and_no_other() {
    for code in CloseCode::ALL {
        let (value, name) = (format!("{:#x}", code.to_wire()), format!("`{code:?}`"));
        let retry = format!("{:?}", code.retry());
        let found =
            rows().any(|row| row.starts_with(&[&value, &name]) && row.get(3) == Some(&&*retry));
        assert!(found, "{value} {name} {retry}");
    }
    let documented = rows()
        .filter(|row| row[0].starts_with("0x1") && row.len() == 5)
        .count();
    assert_eq!(documented, CloseCode::ALL.len());
    assert!(has_row(&[
        &format!("{CANCEL_STREAM:#x}"),
        "`CANCEL_STREAM`"
    ]));
    assert!(has_row(&[&format!("{DONE_STREAM:#x}"), "`DONE_STREAM`"]));
}

macro_rules! in_the_table {
    ($($limit:ident),* $(,)?) => {
        $(assert!(
            has_row(&[concat!("`", stringify!($limit), "`"), &limits::$limit.to_string()]),
            concat!(stringify!($limit), " = {}"), limits::$limit
        );)*
    };
}

#[test]
fn every_limit_has_the_value_in_the_table() {
    in_the_table!(
        CONTROL_FRAME_BYTES_MAX,
        COMMAND_REPLY_BYTES_MAX,
        GATEWAY_FRAME_BYTES_MAX,
        ENROL_FRAME_BYTES_MAX,
        WORD_FRAME_BYTES_MAX,
        COMMAND_STREAMS_MAX,
        AGENT_STREAMS_MAX,
        STREAM_WINDOW_BYTES,
        CONNECTION_WINDOW_BYTES,
        LINK_WINDOW_BYTES,
        COMMAND_INPUT_BYTES_MAX,
        OUTPUT_BYTES_MAX,
        MESSAGE_BYTES_MAX,
        KIND_BYTES_MAX,
        NAME_BYTES_MAX,
        KINDS_MAX,
        LABELS_MAX,
        LABEL_VALUE_BYTES_MAX,
        JOURNAL_OPEN_MAX,
        OPERATIONS_PER_FRAME_MAX,
        CAPACITY_MAX,
        ADDRESSES_MAX,
        ADDRESS_BYTES_MAX,
        CSR_BYTES_MAX,
        CERTIFICATE_BYTES_MAX,
        CERTIFICATES_MAX,
        DOMAIN_BYTES_MAX,
    );
}

#[test]
fn every_timer_has_the_value_in_the_table() {
    let timers: [(&str, Duration); 10] = [
        ("`KEEP_ALIVE`", limits::KEEP_ALIVE),
        ("`AGENT_KEEP_ALIVE`", limits::AGENT_KEEP_ALIVE),
        ("`IDLE_TIMEOUT`", limits::IDLE_TIMEOUT),
        ("`HANDSHAKE_DEADLINE`", limits::HANDSHAKE_DEADLINE),
        ("`ENROLMENT_DEADLINE`", limits::ENROLMENT_DEADLINE),
        ("`LINK_IDLE_TIMEOUT`", limits::LINK_IDLE_TIMEOUT),
        ("`LINK_RENEW`", limits::LINK_RENEW),
        ("`LINK_LEASE`", limits::LINK_LEASE),
        ("`LINK_KEEP_ALIVE`", limits::LINK_KEEP_ALIVE),
        (
            "`OPERATION_DEADLINE_DEFAULT`",
            limits::OPERATION_DEADLINE_DEFAULT,
        ),
    ];
    for (name, timer) in timers {
        assert!(has_row(&[name, &timer.as_secs().to_string()]), "{name}");
    }
}

#[test]
fn the_example_frame_is_what_the_encoder_writes() {
    let (_, rest) = DOCUMENT.split_once("```frame\n").expect("the example");
    let (example, _) = rest.split_once("```").expect("its end");
    let mut bytes = Vec::new();
    for line in example.lines() {
        let (offset, line) = line.split_at(4);
        assert_eq!(usize::from_str_radix(offset, 16), Ok(bytes.len()), "{line}");
        let hex = line.split_whitespace().take(4);
        bytes.extend(hex.map(|hex| u8::from_str_radix(hex, 16).expect("a byte")));
    }
    let operation: OperationId = "0190b6b8-0000-7000-8000-000000000001/2"
        .parse()
        .expect("an id");
    let message = AgentMessage::Accepted {
        operation,
        fence: Fence(5),
    };
    let mut written = Vec::new();
    frame::encode_agent_message(&message, &mut written).expect("it fits");
    assert_eq!(bytes, written);
    assert_eq!(frame::decode_agent_message(&bytes[4..]), Ok(message));
}

#[test]
fn every_identifier_is_in_the_table() {
    let mut reply = Vec::new();
    let refused = EnrolReply::Refused(EnrolRefusal::Busy);
    frame::encode_enrol_reply(&refused, &mut reply).expect("it fits");
    assert_eq!(&reply[8..12], b"DREP");
    let other = &reply[4..];
    let said = [
        frame::decode_agent_message(other).map(drop),
        frame::decode_gateway_message(other).map(drop),
        frame::decode_enrol_request(other).map(drop),
        frame::decode_request(other).map(drop),
        frame::decode_event(other).map(drop),
        frame::decode_server_word(other).map(drop),
        frame::decode_gateway_word(other).map(drop),
    ];
    for said in said {
        let said = said.expect_err("another kind of frame").to_string();
        let identifier = said.rsplit(' ').next().expect("it names one").to_owned();
        assert!(has_row(&[&format!("`{identifier}`")]), "{said}");
    }
    assert!(has_row(&["`DREP`"]));
}
