//! The control plane: API server, process server, store and identity.

pub mod api;
pub mod clock;
pub mod dispatch;
pub mod downlink;
pub mod identity;
pub mod process;
pub mod store;
mod telemetry;
