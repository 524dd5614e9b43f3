//! Drover and what people would pick instead, at the same job in the same run.
//!
//! ```text
//!   compare ─┬─ round 1: peer a, peer b, … ─ fresh server (CPU 0) and fresh clients (CPU 1) each
//!            ├─ round 2: peer b, …, peer a
//!            └─ floors: what crypto and kernel cost without any server
//!               ─▶ model::Comparison (JSON) ─▶ ratios with their spread, report
//! ```
//!
//! `docs/COMPARE.md` says how each peer is set up and what each measure is.

pub mod model;
pub mod targets;

#[cfg(test)]
pub(crate) mod made_up;

#[cfg(feature = "peers")]
mod floors;
#[cfg(feature = "peers")]
mod folder;
#[cfg(feature = "peers")]
mod machine;
#[cfg(any(feature = "peers", test))]
pub(crate) mod measures;
#[cfg(feature = "peers")]
pub mod process;
#[cfg(feature = "peers")]
pub mod report;
#[cfg(feature = "peers")]
mod run;
#[cfg(feature = "peers")]
mod table;
#[cfg(feature = "peers")]
mod turn;

#[cfg(feature = "peers")]
pub use run::{Measure, Options, run};
