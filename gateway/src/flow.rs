//! Rules of flow: how much work a target takes, who gets its next permit, what spans targets.
//!
//! ```text
//!   controller ── L ──▶ ledger (counts by key, all or nothing) ◀── sub-credits ── escrow
//!                          ▲ fits?                                   (limits that span homes)
//!   demand of servers ──▶ fair (class, tenant, kind, deadline) ──▶ grants
//! ```
//!
//! All of it is pure: `now` and randomness are arguments, nothing waits, nothing locks. No type of
//! the wire appears here; targets, tenants, kinds and servers are numbers that the caller gives out.
//! `docs/FLOW.md` says the rules in plain words and what they reach in the simulator, which runs
//! this very code (`drover-loadtest flow`).

pub mod controller;
pub mod escrow;
pub mod fair;
pub mod ledger;
