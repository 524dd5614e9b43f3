//! The agent server: QUIC sessions of hypervisors on one thread per core.

mod group;
pub mod telemetry;
