//! What people order about a process: `/v1/processes/{id}/cancel`, `retry`, `replay`, `clone`; and
//! its history, which says who did.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use protocol::ids::ProcessId;
use serde_json::Value;

use super::process_view::{created, describe};
use super::processes::{find, idempotency_key, unknown};
use super::{agents, pauses, process_input};
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::drivers;
use crate::api::extract::{Id, OptionalBody, Params, clip};
use crate::api::model::processes::{
    CancelMode, CancelProcess, CloneProcess, HistoryEntry, Process, ReplayProcess, RetryProcess,
    StepName,
};
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::dispatch::{Order, Ordered};
use crate::store::log::EventRow;
use crate::store::processes::{Actor, NewProcess};
use crate::store::queries::ProcessRecord;

/// Cancel a process
///
/// `graceful`: what waits ends at once, what an agent may be doing becomes `cancelling` until the
/// agent has confirmed, and steps that were done are undone where their kind says how. `force` ends it
/// now, without the agent's word and without undoing anything: its outcome is `interrupted`, and
/// people must look. One that is being undone already goes on with that: only `force` ends it. A process
/// that has ended stays as it is. Repeating it is harmless.
#[utoipa::path(
    post,
    path = "/v1/processes/{id}/cancel",
    tag = "processes",
    operation_id = "cancel_process",
    params(("id" = uuid::Uuid, Path, description = "The process.")),
    request_body = Option<CancelProcess>,
    responses(
        (status = 200, description = "It has ended.", body = Process),
        (status = 202, description = "Its agent is being told, or steps are being undone.",
         body = Process),
        (status = 400, description = "A field is not valid."),
        (status = 404, description = "There is no such process."),
    )
)]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    OptionalBody(request): OptionalBody<CancelProcess>,
) -> ApiResult<(StatusCode, Json<Process>)> {
    let id = ProcessId(id);
    let actor = actor(&caller, request.reason.as_deref())?;
    let order = match request.mode {
        CancelMode::Graceful => Order::Cancel,
        CancelMode::Force => Order::Force,
    };
    // An end that was there before is no failure of the cancel.
    if api.engine.order(id, order, Some(actor)).await? == Ordered::NotFound {
        return Err(unknown(id));
    }
    let record = find(&api, id).await?;
    let status = if record.state.is_terminal() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((status, Json(describe(record))))
}

/// Retry a process
///
/// A failed or cancelled process goes on, with the same id and input, from the step at which it
/// ended: with all its attempts and its whole time anew. One whose steps were undone begins anew; one
/// whose steps could not be undone goes on undoing.
#[utoipa::path(
    post,
    path = "/v1/processes/{id}/retry",
    tag = "processes",
    operation_id = "retry_process",
    params(("id" = uuid::Uuid, Path, description = "The process.")),
    request_body = Option<RetryProcess>,
    responses(
        (status = 202, description = "It goes on.", body = Process),
        (status = 400, description = "A field is not valid."),
        (status = 404, description = "There is no such process."),
        (status = 409, description = "It is not over, or has succeeded."),
        (status = 422, description = "Its agent is revoked."),
    )
)]
pub(super) async fn retry(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    OptionalBody(request): OptionalBody<RetryProcess>,
) -> ApiResult<(StatusCode, Json<Process>)> {
    let actor = actor(&caller, request.reason.as_deref())?;
    let record = find(&api, ProcessId(id)).await?;
    go_on(&api, &record, Order::Retry, actor).await
}

/// Replay a process from a step
///
/// It goes on from the named step, now: also out of a backoff, and also when it has succeeded. Steps
/// from there on are done again. All steps before it must be done, and not undone.
#[utoipa::path(
    post,
    path = "/v1/processes/{id}/replay",
    tag = "processes",
    operation_id = "replay_process",
    params(("id" = uuid::Uuid, Path, description = "The process.")),
    request_body = Option<ReplayProcess>,
    responses(
        (status = 202, description = "It goes on.", body = Process),
        (status = 400, description = "A field is not valid."),
        (status = 404, description = "There is no such process."),
        (status = 409, description = "An agent may be at work on it, it has no such step, or the steps before \
          that one are not all done: the answer names the last step that it can be replayed from."),
        (status = 422, description = "Its agent is revoked."),
    )
)]
pub(super) async fn replay(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    OptionalBody(request): OptionalBody<ReplayProcess>,
) -> ApiResult<(StatusCode, Json<Process>)> {
    let actor = actor(&caller, request.reason.as_deref())?;
    let record = find(&api, ProcessId(id)).await?;
    let step = match &request.step {
        None => record.step.index(),
        Some(StepName::Number(number)) => *number,
        Some(StepName::Name(name)) => step_number(&api, &record, name).await?,
    };
    go_on(&api, &record, Order::Replay(step), actor).await
}

/// Clone a process
///
/// A new process with the same kind, agent, tenant, input and steps as this one had, and its whole time
/// anew: whatever has become of this one, and whatever its kind says today. It begins at once, also where this
/// one had a time of its own.
#[utoipa::path(
    post,
    path = "/v1/processes/{id}/clone",
    tag = "processes",
    operation_id = "clone_process",
    params(
        ("id" = uuid::Uuid, Path, description = "The process."),
        ("Idempotency-Key" = String, Header, description = "Makes repeating the request harmless."),
    ),
    request_body = Option<CloneProcess>,
    responses(
        (status = 201, description = "Made.", body = Process,
         headers(("Location" = String, description = "The new process."))),
        (status = 200, description = "Made earlier by a request with the same key.", body = Process),
        (status = 400, description = "Idempotency-Key is missing or not valid, or the body says something."),
        (status = 404, description = "There is no such process."),
        (status = 422, description = "Its agent is revoked or lacks a driver that it needs, or the key \
          was used for another request."),
    )
)]
pub(super) async fn clone(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Id(id): Id,
    OptionalBody(CloneProcess {}): OptionalBody<CloneProcess>,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers)?;
    let record = find(&api, ProcessId(id)).await?;
    let key = process_input::key_of(&caller, "Idempotency-Key", key, &("clone", id))?;
    let input = api.store.process_input(record.id).await?;
    let plan = api.store.plan(record.id).await?;
    let now = clock::now();
    let process = NewProcess {
        agent: record.agent,
        kind: record.kind,
        input: input.unwrap_or_else(|| "{}".to_owned()),
        plan,
        tenant: record.tenant,
        class: record.class,
        resource: record.resource,
        run_at: None,
        deadline_at: now.plus(record.life),
        max_attempts: record.max_attempts,
        supersedes: Vec::new(),
        actor: Some(Actor {
            by: caller.name,
            reason: Some(format!("a clone of {id}")),
        }),
        idempotency: Some(key),
    };
    drivers::check(&api, &process, &mut drivers::Said::new(), "").await?;
    let creation = api.engine.create(vec![process]).await?.pop();
    let creation = creation.ok_or_else(|| {
        ApiError::new(
            Kind::Internal,
            "No process was made; repeat the request with its key.",
        )
    })?;
    let (record, new) = created(creation, "agent")?;
    let location = format!("/v1/processes/{}", record.id);
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let answer = (
        status,
        [(header::LOCATION, location)],
        Json(describe(record)),
    );
    Ok(answer.into_response())
}

/// Show a process's history
///
/// Every change of its state, oldest first: who, when, from what to what, in which step, and why.
/// `GET /v1/processes/{id}/events` has its output as well.
#[utoipa::path(
    get,
    path = "/v1/processes/{id}/history",
    tag = "processes",
    operation_id = "get_process_history",
    params(("id" = uuid::Uuid, Path, description = "The process."), PageParams),
    responses(
        (status = 200, description = "A page of its history.", body = Page<HistoryEntry>),
        (status = 400, description = "A parameter is not valid."),
        (status = 404, description = "There is no such process."),
    )
)]
pub(super) async fn history(
    Reads(api): Reads,
    Id(id): Id,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<HistoryEntry>>> {
    let (size, after) = params.read("history")?;
    let id = find(&api, ProcessId(id)).await?.id;
    let rows = api.store.history(id, after.unwrap_or(0), size + 1).await?;
    Ok(Json(page::of("history", size, rows, |row| row.seq, entry)))
}

async fn go_on(
    api: &Api,
    record: &ProcessRecord,
    order: Order,
    actor: Actor,
) -> ApiResult<(StatusCode, Json<Process>)> {
    let id = record.id;
    // Nobody would ever do it.
    agents::resolve(api, "agent", &record.agent.to_string()).await?;
    match api.engine.order(id, order, Some(actor)).await? {
        Ordered::NotFound => Err(unknown(id)),
        Ordered::Refused(why) => Err(ApiError::new(
            Kind::Conflict,
            format!("The process {id} does not go on: {why}."),
        )),
        Ordered::State(_) => {
            let record = find(api, id).await?;
            Ok((StatusCode::ACCEPTED, Json(describe(record))))
        }
    }
}

async fn step_number(api: &Api, record: &ProcessRecord, name: &str) -> ApiResult<u16> {
    let rows = api.store.plan_rows(record.id).await?;
    let found = rows
        .iter()
        .find(|row| !row.step.undoes() && row.name == name);
    found.map(|row| row.step.index()).ok_or_else(|| {
        let names: Vec<&str> = rows
            .iter()
            .filter(|row| !row.step.undoes())
            .map(|row| row.name.as_str())
            .collect();
        let known = match names.is_empty() {
            true => "it has one step, 0".to_owned(),
            false => format!("its steps are {}", names.join(", ")),
        };
        ApiError::field(
            "step",
            format!("there is no step `{}`; {known}", clip(name)),
        )
    })
}

fn actor(caller: &Caller, reason: Option<&str>) -> ApiResult<Actor> {
    Ok(Actor {
        by: caller.name.clone(),
        reason: pauses::reason(reason)?,
    })
}

fn entry(row: EventRow) -> HistoryEntry {
    let text = |name: &str| {
        row.data
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let number = |name: &str| row.data.get(name).and_then(Value::as_u64);
    HistoryEntry {
        sequence: row.seq,
        at: Timestamp(row.at.0),
        actor: text("actor").unwrap_or_else(|| "system".to_owned()),
        from: text("from"),
        to: text("to").or_else(|| text("state")),
        step: number("step"),
        attempt: number("attempt"),
        fence: number("fence"),
        reason: text("reason"),
        detail: text("note"),
        kind: row.kind,
    }
}
