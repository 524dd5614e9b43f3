//! A fleet of simulated hypervisors, its workload, attacks and reports.
//!
//! ```text
//!   hold ──▶ server (started, killed, measured)
//!     ├────▶ fleet (the agent crate's own session code, over a few sockets)
//!     ├────▶ workload (public API, open loop) ──▶ ledger ◀── effects at the simulated hypervisors
//!     └────▶ report (screen, JSON, bench-results/)
//!   siege ─▶ storm (first flights that never become sessions), and honest newcomers
//!   api ───▶ a flood of one of the API's listeners, and the other one asked meanwhile
//!   flow ──▶ rules of flow in a simulator; Drover's are the production code of the gateway
//!   scenario ▶ a deployment of any shape, on real services, whose every process dies
//!   failover ▶ several agent servers that die, drain, stand still, come and go
//!   compare ─▶ peers (the same job on other servers; feature `peers`)
//! ```
//!
//! Nothing here looks inside a running server: it uses the public API, the agent protocol and `/proc`.

pub mod api;
pub mod clock;
pub mod compare;
pub mod door;
pub mod failover;
pub mod fleet;
pub mod flow;
pub mod hammer;
pub mod hold;
pub mod index;
pub mod ledger;
#[cfg(feature = "peers")]
pub mod peers;
#[cfg(feature = "peers")]
mod plot;
pub mod report;
pub mod scenario;
pub mod server;
pub mod siege;
mod stand;
pub mod storm;
pub mod workload;
