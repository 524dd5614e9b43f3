//! What crosses a wire in Drover, and nothing else.
//!
//! ```text
//!   agent  ── AgentMessage ──▶ gateway ── link::Event ──▶ control
//!   agent  ◀─ GatewayMessage ─ gateway ◀─ link::Request ─ control
//! ```
//!
//! Everything here is an owned, validated value or a pure function from bytes to one. There is no
//! I/O, no clock and no randomness: callers pass them in. FlatBuffers types stay inside this crate.

pub mod agent;
pub mod close;
pub mod enrol;
pub mod flow;
pub mod frame;
mod generated;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod link;
pub mod operation;
pub mod steering;
pub mod version;
