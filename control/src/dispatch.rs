//! The process server: brings ready processes to agents, at the speed that agents can take.

mod handle;
mod telemetry;

pub use handle::{
    AgentView, Cancellation, Engine, EngineError, EnrolmentAsked, SessionView, WaitingOn,
};
pub use telemetry::EngineStats;
