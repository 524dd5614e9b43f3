//! The hypervisor's side of Drover: joins a deployment, keeps a session with its gateway, runs
//! operations, and never forgets what it promised.
//!
//! ```text
//!   join ──▶ identity.json ──▶ run ──▶ Agent ┬─ session     what to do and say (no I/O)
//!                                            ├─ reconnect   when and where to connect (no I/O)
//!                                            ├─ journal     what must survive a crash
//!                                            ├─ driver      the work itself: exec, simulated
//!                                            └─ connection  QUIC streams
//! ```
//!
//! [`join()`] and [`run()`] are the real agent. [`Agent`] is for whoever needs many in one process, such as
//! the load test: they share endpoints, trust, drivers and one journal file.

mod clock;
pub mod config;
mod connection;
mod daemon;
pub mod driver;
mod files;
pub mod identity;
mod join;
pub mod journal;
pub mod reconnect;
mod run;
pub mod session;
pub mod silence;
mod tls;
pub mod transport;

pub use config::AgentConfig;
pub use daemon::{Agent, AgentError, AgentParts, Observer, SessionEnd, Unobserved};
pub use identity::Identity;
pub use join::{EnrolError, JoinError, JoinOptions, enrol, join};
pub use journal::Journal;
pub use run::{JOURNAL_FILE, RunError, run};
pub use session::Profile;
pub use tls::{TlsError, Trust};
pub use transport::DialError;

/// What an agent says it is.
pub const SOFTWARE: &str = concat!("drover-agent/", env!("CARGO_PKG_VERSION"));
