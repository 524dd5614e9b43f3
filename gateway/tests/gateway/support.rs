//! A gateway with a control plane that tests play themselves, and agents made of quinn-proto and a
//! plain socket.

pub(crate) mod agent;
pub(crate) mod authority;
pub(crate) mod client;
pub(crate) mod forgeries;
pub(crate) mod world;

use std::time::Instant;

use protocol::ids::{AgentId, OperationId, ProcessId};

/// Nothing in these tests takes longer, unless something is broken.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

#[expect(
    clippy::disallowed_methods,
    reason = "the clock of these tests: they play the network"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn agent_id(n: u128) -> AgentId {
    AgentId::from_bytes(n.to_be_bytes())
}

pub(crate) fn operation(n: u128) -> OperationId {
    OperationId::new(ProcessId::from_bytes(n.to_be_bytes()), 0)
}
