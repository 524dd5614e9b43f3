//! The process server: brings ready processes to agents, at the speed that agents can take.
//!
//! ```text
//!   API ── Engine ──▶ ┌──────── one task ────────┐ ◀── Event ──── gateway (home shards)
//!                     │ driver ─ Core ─ Fleet     │ ─── Request ─▶
//!                     └──── one batch at a time ──┘
//!                              store: rules, rows, COMMIT
//! ```
//!
//! A ready process is claimed only when the gateway has granted a permit of its agent: work that
//! cannot run costs nothing but its row. A claim raises the fence and is durable before the command
//! is sent; an outcome is durable before its agent is told to forget it. A lost reply is asked for.

mod asked;
mod census;
mod core;
mod doors;
mod driver;
mod fleet;
mod handle;
mod pace;
mod rhythm;
mod start;
mod telemetry;
mod tenants;

pub use census::{Census, ShardSessions};
pub(crate) use handle::ENROLMENTS_MAX;
pub use handle::{
    AgentView, Cancellation, Engine, EngineError, EnrolmentAsked, FlowError, Order, Ordered,
    Queued, SessionView, WaitingOn,
};
pub use start::{Company, StartError, Started, start, start_among};
pub(crate) use start::{Ending, introduce, start_under};
pub use telemetry::EngineStats;
