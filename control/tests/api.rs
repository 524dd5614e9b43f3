//! The API over real sockets, a real store and the real process server; only the gateway and its
//! agents are made up.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail the test that they belong to"
)]

#[path = "api/access.rs"]
mod access;
#[path = "api/bad_input.rs"]
mod bad_input;
#[path = "api/batches.rs"]
mod batches;
#[path = "api/client_model.rs"]
mod client_model;
#[path = "api/drivers.rs"]
mod drivers;
#[path = "api/enrolment.rs"]
mod enrolment;
#[path = "api/events.rs"]
mod events;
#[path = "api/group_moves.rs"]
mod group_moves;
#[path = "api/histograms.rs"]
mod histograms;
#[path = "api/kinds.rs"]
mod kinds;
#[path = "api/later.rs"]
mod later;
#[path = "api/limits.rs"]
mod limits;
#[path = "api/listeners.rs"]
mod listeners;
#[path = "api/metrics.rs"]
mod metrics;
#[path = "api/overview.rs"]
mod overview;
#[path = "api/pauses.rs"]
mod pauses;
#[path = "api/plane.rs"]
mod plane;
#[path = "api/processes.rs"]
mod processes;
#[path = "api/receiver.rs"]
mod receiver;
#[path = "api/redrive.rs"]
mod redrive;
#[path = "api/refusals.rs"]
mod refusals;
#[path = "api/replicas.rs"]
mod replicas;
#[path = "api/routes.rs"]
mod routes;
#[path = "api/waits.rs"]
mod waits;
#[path = "api/webhooks.rs"]
mod webhooks;
