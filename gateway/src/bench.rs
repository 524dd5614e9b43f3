//! Single steps of the hot paths, for the instruction counts of `gateway/benches/steps.rs`.
//!
//! ```text
//!   Permits   a home shard: demand ─▶ grant ─▶ dispatch ─▶ end
//!   Talk      a session without QUIC: a command ─▶ accepted ─▶ finished ─▶ forgotten
//!   Line      a whole shard with real QUIC, TLS and agents in memory: one turn
//!   Echo      the datapath alone: a floor for the comparison of `drover-loadtest compare`
//! ```
//!
//! Behind the feature `bench`, and no part of the crate's interface: it may change with the code
//! that it steps through. A value is made outside of what is counted; its `run` is what is counted.

mod echo;
mod line;
mod permits;
mod streams;
mod talk;

pub use echo::Echo;
pub use line::{Credentials, Line};
pub use permits::Permits;
pub use talk::Talk;

use std::time::Duration;

use bytes::Bytes;
use protocol::agent::Hello;
use protocol::ids::{AgentId, Epoch, Fence, GroupId, OperationId, ProcessId, Slot};
use protocol::link::Target;
use protocol::operation::{Command, Outcome, OutcomeStatus};
use protocol::version::SUPPORTED;

const EPOCH: Epoch = Epoch(1);
const FENCE: Fence = Fence(1);
/// Operations that every agent here takes at once.
const CAPACITY: u32 = 16;
/// Bytes of a command's input and of an outcome's output: together with the rest of the frame the
/// 256 bytes that comparisons use.
const PAYLOAD_BYTES: usize = 128;

fn agent_id(n: u16) -> AgentId {
    AgentId::from_bytes(u128::from(n).to_be_bytes())
}

fn target(n: u16) -> Target {
    Target {
        agent: agent_id(n),
        group: GroupId::from_bytes([1; 16]),
        slot: Slot(0),
    }
}

fn operation(n: u16) -> OperationId {
    OperationId::new(ProcessId::from_bytes(u128::from(n).to_be_bytes()), 0)
}

fn command(n: u16) -> Box<Command> {
    Box::new(Command {
        operation: operation(n),
        fence: FENCE,
        kind: "exec".to_owned(),
        input: Bytes::from(format!("\"{}\"", "x".repeat(PAYLOAD_BYTES))),
        deadline_ms: 60_000,
    })
}

fn outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Succeeded,
        exit_code: Some(0),
        message: String::new(),
        output: Bytes::from(vec![b'x'; PAYLOAD_BYTES]),
        service_time: Duration::from_millis(5),
    }
}

fn hello(n: u16) -> Hello {
    Hello {
        versions: SUPPORTED,
        agent: agent_id(n),
        session_count: 1,
        capacity: CAPACITY,
        epoch_seen: Epoch(0),
        kinds: vec!["exec".to_owned()],
        open: Vec::new(),
        hostname: "host".to_owned(),
        software: "bench".to_owned(),
        labels: Vec::new(),
    }
}
