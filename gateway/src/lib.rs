//! The agent server.

mod group;
mod runtime;
pub mod telemetry;
