//! Processes as the API shows them.

use std::time::Duration;

use super::{kinds, process_waits};
use crate::api::Api;
use crate::api::model::Timestamp;
use crate::api::model::processes::{Process, ProcessState};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::UnixMs;
use crate::process::State;
use crate::store::processes::Creation;
use crate::store::queries::ProcessRecord;

/// A process without what only the process server knows.
pub(super) fn describe(record: ProcessRecord) -> Process {
    let stamp = |at: UnixMs| Timestamp(at.0);
    Process {
        waiting_on: process_waits::in_store(&record),
        id: record.id.0,
        kind: record.kind,
        tenant: record.tenant,
        agent: record.agent.0,
        state: state(record.state, record.paused.is_some()),
        step: record.step.index(),
        step_count: record.steps,
        undoing: record.step.undoes(),
        needs_attention: record.needs_attention,
        attempts: record.attempts,
        max_attempts: record.max_attempts,
        class: kinds::class(record.class),
        resource: record.resource,
        created_at: stamp(record.created_at),
        started_at: record.started_at.map(stamp),
        finished_at: record.finished_at.map(stamp),
        deadline_at: stamp(record.deadline_at),
        outcome: record.outcome,
    }
}

/// A process with why it is not running.
pub(super) async fn describe_whole(api: &Api, record: ProcessRecord) -> ApiResult<Process> {
    let waiting_on = process_waits::whole(api, &record).await?;
    Ok(Process {
        waiting_on,
        ..describe(record)
    })
}

/// The process that a creation made or found, and whether it is new.
pub(super) fn created(creation: Creation, agent_field: &str) -> ApiResult<(ProcessRecord, bool)> {
    match creation {
        Creation::Created(record) => Ok((*record, true)),
        Creation::Existing(record) => Ok((*record, false)),
        Creation::KeyConflict { process } => Err(ApiError::new(
            Kind::IdempotencyKeyReused,
            format!(
                "The idempotency key made the process {process} with another request; use a new key \
                 for a new request."
            ),
        )),
        Creation::Trimmed { process } => Err(ApiError::new(
            Kind::IdempotencyKeyReused,
            format!(
                "The idempotency key made the process {process}, which ended so long ago that it is \
                 no longer kept; use a new key to do it again."
            ),
        )),
        Creation::UnknownAgent => Err(ApiError::in_field(
            Kind::Unprocessable,
            agent_field,
            "there is no such agent, or it is revoked; GET /v1/agents lists those that there are",
        )),
        Creation::QueueFull {
            waiting,
            retry_after,
        } => Err(full(
            &format!("{waiting} processes wait for this agent already"),
            retry_after,
        )),
        Creation::ResourceFull { waiting } => Err(ApiError::new(
            Kind::TooManyRequests,
            format!(
                "{waiting} processes wait for this resource already, one after the other; cancel some, or \
                 try again when some have ended."
            ),
        )
        .retry_after(Duration::from_secs(60))),
        Creation::TenantFull {
            waiting,
            retry_after,
        } => Err(full(
            &format!("{waiting} processes of this tenant wait already"),
            retry_after,
        )),
    }
}

fn full(what: &str, retry_after: Duration) -> ApiError {
    ApiError::new(
        Kind::TooManyRequests,
        format!(
            "{what}; at their present pace these take about {} s. Try again then, or cancel some.",
            retry_after.as_secs()
        ),
    )
    .retry_after(retry_after)
}

/// The API's word for a state; `paused`: a pause keeps it from being started.
fn state(state: State, paused: bool) -> ProcessState {
    match state {
        State::Scheduled => ProcessState::Scheduled,
        State::Blocked => ProcessState::Blocked,
        State::Ready if paused => ProcessState::Paused,
        State::Ready => ProcessState::Ready,
        State::Backoff => ProcessState::Backoff,
        State::Leased => ProcessState::Leased,
        State::Running => ProcessState::Running,
        State::Unknown => ProcessState::Unknown,
        State::Cancelling => ProcessState::Cancelling,
        State::Succeeded => ProcessState::Succeeded,
        State::Failed => ProcessState::Failed,
        State::Cancelled => ProcessState::Cancelled,
    }
}

/// The process server's word for a state. A paused process is a ready one: see [`paused_filter`].
pub(super) fn state_filter(state: ProcessState) -> State {
    match state {
        ProcessState::Scheduled => State::Scheduled,
        ProcessState::Blocked => State::Blocked,
        ProcessState::Ready | ProcessState::Paused => State::Ready,
        ProcessState::Backoff => State::Backoff,
        ProcessState::Leased => State::Leased,
        ProcessState::Running => State::Running,
        ProcessState::Unknown => State::Unknown,
        ProcessState::Cancelling => State::Cancelling,
        ProcessState::Succeeded => State::Succeeded,
        ProcessState::Failed => State::Failed,
        ProcessState::Cancelled => State::Cancelled,
    }
}

/// Of those in this state: only the paused ones, only the others, or both.
pub(super) fn paused_filter(state: ProcessState) -> Option<bool> {
    match state {
        ProcessState::Ready => Some(false),
        ProcessState::Paused => Some(true),
        _ => None,
    }
}
