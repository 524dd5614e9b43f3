//! Rules of flow in a simulator: a virtual clock, seeded, so that a run can be repeated exactly.
//!
//! ```text
//!   scenario ─▶ world (events, hosts that thrash, a network that delays) ⇄ rule ─▶ score
//!                    rules: drover = the production code of gateway::flow; cattle, aimd, gradient, bucket
//!   matrix (rules × servers × γ × seeds) ─▶ table, JSON, a dated folder with plots
//! ```
//!
//! `docs/FLOW.md` has the model, its limits and what was found. [`real`] asks the same questions to the real
//! server.

mod crash;
mod events;
mod homes;
mod lending;
mod matrix;
mod plant;
pub(crate) mod random;
pub mod real;
mod report;
mod rules;
mod scenario;
mod score;
mod world;

pub use crash::{Crashed, crash};
pub use homes::{Spanned, span};
pub use lending::{Lending, Lent, lend};
pub use matrix::{Found, Options, Row, run};
pub use rules::RuleName;
pub use rules::drover::Audit;
pub use scenario::{Change, Fault, Kind, Scenario, Tenant};
pub use score::{Score, jain};
