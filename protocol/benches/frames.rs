//! Instructions of reading and writing the frames of a command, counted by callgrind: `.ci/gates`.

#![expect(unused_qualifications, reason = "gungraun's macros write full paths")]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use gungraun::{library_benchmark, library_benchmark_group, main};
use protocol::agent::{AgentMessage, GatewayMessage};
use protocol::frame::{
    FrameBuffer, decode_agent_message, encode_agent_message, encode_gateway_message,
};
use protocol::ids::{Epoch, Fence, OperationId, ProcessId};
use protocol::limits::FRAME_BYTES_MAX;
use protocol::operation::{Command, Outcome, OutcomeStatus};

/// Bytes of the input and of the output.
const PAYLOAD_BYTES: usize = 128;
const FENCE: Fence = Fence(1);

fn operation() -> OperationId {
    OperationId::new(ProcessId::from_bytes([7; 16]), 0)
}

fn framed(message: &AgentMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_agent_message(message, &mut bytes).expect("a valid message");
    bytes
}

fn accepted() -> Vec<u8> {
    framed(&AgentMessage::Accepted {
        operation: operation(),
        fence: FENCE,
    })
}

fn finished() -> Vec<u8> {
    framed(&AgentMessage::Finished {
        operation: operation(),
        fence: FENCE,
        outcome: Outcome {
            status: OutcomeStatus::Succeeded,
            exit_code: Some(0),
            message: String::new(),
            output: Bytes::from(vec![b'x'; PAYLOAD_BYTES]),
            service_time: Duration::from_millis(5),
        },
    })
}

fn command() -> GatewayMessage {
    GatewayMessage::Command {
        epoch: Epoch(1),
        command: Command {
            operation: operation(),
            fence: FENCE,
            kind: "exec".to_owned(),
            input: Bytes::from(vec![b'x'; PAYLOAD_BYTES]),
            deadline_ms: 60_000,
        },
    }
}

// Bytes as they come from a stream, to a checked message.
#[library_benchmark]
#[bench::accepted(setup = accepted)]
#[bench::finished(setup = finished)]
fn decode(bytes: Vec<u8>) -> Vec<u8> {
    let mut buffer = FrameBuffer::default();
    buffer.push(&bytes);
    let frame = buffer.next_frame(FRAME_BYTES_MAX).expect("a short frame");
    let message = decode_agent_message(&frame.expect("a whole frame"));
    assert!(black_box(message).is_ok());
    bytes
}

// A command to the bytes that go onto a stream.
#[library_benchmark]
#[bench::command(setup = command)]
fn encode(message: GatewayMessage) -> GatewayMessage {
    let mut bytes = Vec::new();
    let encoded = encode_gateway_message(&message, &mut bytes);
    assert!(black_box(encoded).is_ok());
    message
}

library_benchmark_group!(name = frames, benchmarks = [decode, encode]);
main!(library_benchmark_groups = frames);
