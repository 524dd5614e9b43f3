//! The agent server: QUIC sessions of hypervisors on one thread per core.
//!
//! ```text
//!   agents ⇄ runtime (sockets, threads) ⇄ shard ─┬─ endpoint: QUIC connections, admission
//!                                                ├─ session: the agent protocol, one agent each
//!                                                ├─ group: who may connect, permits, home shards
//!                                                ├─ flow: limits, order of grants, credits (rules)
//!                                                └─ uplink, mailboxes ⇄ gateway::Handle ⇄ (hub ⇄) control
//! ```
//!
//! It speaks with the control plane in values of [`protocol::link`] only, keeps nothing on disk, and
//! holds no CA key. What is durable is the control plane's and the agents' business.

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod config;
mod endpoint;
pub mod flow;
mod gateway;
mod group;
pub mod hub;
mod lease;
pub mod model;
mod runtime;
mod session;
mod shard;
pub mod telemetry;
mod tls;
mod uplink;

pub use config::{AdmissionConfig, Config, Secrets, TlsMaterial};
pub use gateway::{Gateway, Handle, SendError, StartError, start, start_under};
pub use lease::{LAPSE, Lease};
pub use runtime::launch::{LaunchError, Machine, Rings, ShardFailure, probe};
pub use runtime::{DatapathKind, DatapathStats, ParkKind};
pub use tls::TlsError;
