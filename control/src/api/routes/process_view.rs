//! Processes as the API shows them.

use crate::api::Api;
use crate::api::model::Timestamp;
use crate::api::model::processes::{Class, Process, ProcessState, WaitingOn};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::UnixMs;
use crate::dispatch;
use crate::process::{self, State};
use crate::store::processes::Creation;
use crate::store::queries::ProcessRecord;

/// A process without what only the process server knows.
pub(super) fn describe(record: ProcessRecord) -> Process {
    let stamp = |at: UnixMs| Timestamp(at.0);
    Process {
        waiting_on: waits_in_store(&record),
        id: record.id.0,
        kind: record.kind,
        agent: record.agent.0,
        state: state(record.state),
        attempts: record.attempts,
        max_attempts: record.max_attempts,
        class: match record.class {
            process::Class::Interactive => Class::Interactive,
            process::Class::Normal => Class::Normal,
            process::Class::Background => Class::Background,
        },
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
    let (id, agent, ready) = (record.id, record.agent, record.state == State::Ready);
    let mut process = describe(record);
    if ready && let Some(waiting) = api.engine.waiting_on(id, agent).await? {
        process.waiting_on = Some(waits_in_queue(&waiting));
    }
    Ok(process)
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
        Creation::QueueFull { waiting } => Err(ApiError::new(
            Kind::TooManyRequests,
            format!(
                "{waiting} processes wait for this agent already; try again when some have ended."
            ),
        )
        .retry_after(std::time::Duration::from_secs(5))),
    }
}

/// The API's word for a state.
fn state(state: State) -> ProcessState {
    match state {
        State::Scheduled => ProcessState::Scheduled,
        State::Blocked => ProcessState::Blocked,
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

/// The process server's word for a state.
pub(super) fn state_filter(state: ProcessState) -> State {
    match state {
        ProcessState::Scheduled => State::Scheduled,
        ProcessState::Blocked => State::Blocked,
        ProcessState::Ready => State::Ready,
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

fn waits_in_store(record: &ProcessRecord) -> Option<WaitingOn> {
    let agent = record.agent.to_string();
    let due = record
        .due_at
        .map_or_else(String::new, |at| Timestamp(at.0).to_string());
    let (scope, key, detail) = match record.state {
        State::Scheduled => ("time", due, "it is not to be started before"),
        State::Backoff => (
            "time",
            due,
            "the last attempt failed in a way that may pass; the next one starts then",
        ),
        State::Blocked => (
            "resource",
            record.resource.clone().unwrap_or_default(),
            "another process works on this resource; this one follows when that has ended",
        ),
        State::Unknown => (
            "answer",
            agent,
            "the reply was lost; the agent is asked as soon as it has a session",
        ),
        State::Cancelling => (
            "answer",
            agent,
            "the agent has not confirmed the cancel; it is told as soon as it has a session",
        ),
        State::Ready
        | State::Leased
        | State::Running
        | State::Succeeded
        | State::Failed
        | State::Cancelled => return None,
    };
    Some(WaitingOn {
        scope: scope.to_owned(),
        key,
        detail: detail.to_owned(),
    })
}

fn waits_in_queue(waiting: &dispatch::WaitingOn) -> WaitingOn {
    match waiting {
        dispatch::WaitingOn::Session { agent } => WaitingOn {
            scope: "agent".to_owned(),
            key: agent.to_string(),
            detail: "the agent has no session; it starts when the agent is back".to_owned(),
        },
        dispatch::WaitingOn::Host {
            agent,
            limit,
            in_use,
            position,
        } => WaitingOn {
            scope: "capacity".to_owned(),
            key: agent.to_string(),
            detail: in_line(*limit, *in_use, *position),
        },
    }
}

/// Where a process stands in its agent's queue, in words; `position` 0 is further back than memory.
fn in_line(limit: u32, in_use: u32, position: u32) -> String {
    let free = limit.saturating_sub(in_use);
    match position {
        0 => format!("{in_use} of {limit} places are taken, and many are before it"),
        place if place <= free => {
            "the agent has a free place for it; it is about to start".to_owned()
        }
        place => format!("{in_use} of {limit} places are taken; it is number {place} in line"),
    }
}

#[cfg(test)]
mod tests {
    use super::in_line;

    #[test]
    fn a_process_with_a_free_place_is_about_to_start() {
        assert!(in_line(4, 0, 1).contains("about to start"));
        assert!(in_line(4, 3, 1).contains("about to start"));
        assert_eq!(
            in_line(4, 3, 2),
            "3 of 4 places are taken; it is number 2 in line"
        );
        assert_eq!(
            in_line(4, 4, 1),
            "4 of 4 places are taken; it is number 1 in line"
        );
        assert_eq!(
            in_line(4, 0, 0),
            "0 of 4 places are taken, and many are before it"
        );
        // An agent may lower its capacity below what it runs.
        assert!(in_line(2, 5, 1).contains("5 of 2"));
    }
}
