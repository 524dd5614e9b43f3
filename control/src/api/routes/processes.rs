//! `/v1/processes`

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use protocol::ids::ProcessId;
use serde::Deserialize;

use super::process_input::{self, Looked};
use super::process_view::{created, describe, describe_whole, paused_filter, state_filter};
use super::{agents, events as event_routes, process_dry_run, process_steps};
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Body, Id, Params, header_text};
use crate::api::model::Page;
use crate::api::model::events::EventRecord;
use crate::api::model::processes::{CreateProcess, Process, ProcessDetail, ProcessState};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::store::queries::{ProcessFilter, ProcessRecord};

/// The header that makes repeating a request harmless.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest wait that `Prefer: wait` gets.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A waiting request looks at its process at most this often.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Which processes, which page.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    /// Only in this state.
    state: Option<ProcessState>,
    /// Only for this agent (id or hostname).
    agent: Option<String>,
    /// Only of this kind.
    kind: Option<String>,
    /// Only on this resource.
    resource: Option<String>,
    /// Only of this tenant.
    tenant: Option<String>,
    /// Only those at which people must look, or only the others.
    needs_attention: Option<bool>,
    /// Items on a page, 1–500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    page_size: Option<u32>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

/// List processes
///
/// Newest first: a stable order. Ended processes are kept for a week.
#[utoipa::path(
    get,
    path = "/v1/processes",
    tag = "processes",
    operation_id = "list_processes",
    params(ListParams),
    responses(
        (status = 200, description = "A page of processes.", body = Page<Process>),
        (status = 400, description = "A parameter is not valid."),
        (status = 422, description = "There is no such agent."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<ListParams>,
) -> ApiResult<Json<Page<Process>>> {
    let (size, after) = page::read("processes", params.page_size, params.page_token.as_deref())?;
    let agent = match &params.agent {
        None => None,
        // The work of a revoked agent can still be looked at.
        Some(text) => match text.parse() {
            Ok(id) => Some(id),
            Err(_) => Some(agents::resolve(&api, "agent", text).await?),
        },
    };
    let filter = ProcessFilter {
        state: params.state.map(state_filter),
        agent,
        kind: params.kind,
        resource: params.resource,
        tenant: params.tenant,
        needs_attention: params.needs_attention,
        paused: params.state.and_then(paused_filter),
    };
    let rows = api
        .store
        .processes(&filter, after.map(ProcessId), size + 1)
        .await?;
    Ok(Json(page::of(
        "processes",
        size,
        rows,
        |row| row.id,
        describe,
    )))
}

/// Whether anything is to be written.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateParams {
    /// Only say what would be done and what it would meet; needs no Idempotency-Key.
    dry_run: Option<bool>,
}

/// Start a process
///
/// Durable when the answer comes. The same key with the same request gives the process that the
/// first one made; keys belong to the API token and are remembered for a day. With `Prefer:
/// wait=SECONDS` the answer waits until the process has ended, at most 60 s; it shows the process
/// as it is then, ended or not.
#[utoipa::path(
    post,
    path = "/v1/processes",
    tag = "processes",
    operation_id = "create_process",
    request_body = CreateProcess,
    params(
        CreateParams,
        ("Idempotency-Key" = String, Header, description = "1–255 visible ASCII characters, such \
          as a UUID: makes repeating the request harmless."),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`: answer when the process \
          has ended (RFC 7240)."),
    ),
    responses(
        (status = 201, description = "Made.", body = Process,
         headers(("Location" = String, description = "The process."))),
        (status = 200, description = "Made earlier by a request with the same key; with `dry_run`, a \
          DryRun.", body = Process),
        (status = 400, description = "A field is not valid, or Idempotency-Key is missing."),
        (status = 413, description = "The body is too large."),
        (status = 415, description = "The body is not JSON."),
        (status = 422, description = "There is no such agent, it lacks a driver that the process \
          needs, or the key was used for another request."),
        (status = 429, description = "Too many processes wait for the agent, or of the tenant; see \
          Retry-After."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Params(params): Params<CreateParams>,
    Body(request): Body<CreateProcess>,
) -> ApiResult<Response> {
    let now = clock::now();
    let mut looked = Looked::default();
    if params.dry_run == Some(true) {
        let process = process_input::checked(&api, &request, now, &mut looked).await?;
        let answer = process_dry_run::dry_run(&api, process).await?;
        return Ok(Json(answer).into_response());
    }
    let key = idempotency_key(&headers)?;
    let wait = preferred_wait(&headers)?;
    let key = process_input::key(&caller, "Idempotency-Key", key, &request)?;
    let mut process = process_input::check(&api, &request, key, now, &mut looked, "").await?;
    process.actor = Some(process_input::by(&caller));
    let creation = api
        .engine
        .create(vec![process])
        .await?
        .pop()
        .ok_or_else(|| {
            ApiError::new(
                Kind::Internal,
                "No process was made; repeat the request with its key.",
            )
        })?;
    let (record, new) = created(creation, "agent")?;
    let location = format!("/v1/processes/{}", record.id);
    let record = match wait {
        Some(wait) => wait_for_end(&api, record, wait).await?,
        None => record,
    };
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = (
        status,
        [(header::LOCATION, location)],
        Json(describe(record)),
    )
        .into_response();
    if wait.is_some() {
        let applied = HeaderName::from_static("preference-applied");
        response
            .headers_mut()
            .insert(applied, HeaderValue::from_static("wait"));
    }
    Ok(response)
}

/// Show a process
#[utoipa::path(
    get,
    path = "/v1/processes/{id}",
    tag = "processes",
    operation_id = "get_process",
    params(("id" = uuid::Uuid, Path, description = "The process.")),
    responses(
        (status = 200, description = "The process.", body = ProcessDetail),
        (status = 404, description = "There is no such process."),
    )
)]
pub(super) async fn show(Reads(api): Reads, Id(id): Id) -> ApiResult<Json<ProcessDetail>> {
    let record = find(&api, ProcessId(id)).await?;
    let input = api.store.process_input(record.id).await?;
    let input = input.and_then(|text| serde_json::from_str(&text).ok());
    let progress_dropped = record.progress_dropped;
    let rows = match record.planned {
        true => api.store.plan_rows(record.id).await?,
        false => Vec::new(),
    };
    Ok(Json(ProcessDetail {
        steps: process_steps::describe(&record, rows),
        process: describe_whole(&api, record).await?,
        input: input.unwrap_or_default(),
        progress_dropped,
    }))
}

/// Show what happened to a process
///
/// Oldest first. `GET /v1/events?process=…` goes on from the last one as it happens.
#[utoipa::path(
    get,
    path = "/v1/processes/{id}/events",
    tag = "processes",
    operation_id = "list_process_events",
    params(("id" = uuid::Uuid, Path, description = "The process."), PageParams),
    responses(
        (status = 200, description = "A page of events.", body = Page<EventRecord>),
        (status = 400, description = "A parameter is not valid."),
        (status = 404, description = "There is no such process."),
    )
)]
pub(super) async fn events(
    Reads(api): Reads,
    Id(id): Id,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<EventRecord>>> {
    let (size, after) = params.read("events")?;
    let id = find(&api, ProcessId(id)).await?.id;
    let rows = api
        .store
        .events_after(after.unwrap_or(0), Some(id), size + 1)
        .await?;
    let shown = event_routes::describe;
    Ok(Json(page::of("events", size, rows, |row| row.seq, shown)))
}

/// The header that makes repeating a request harmless.
pub(super) fn idempotency_key(headers: &HeaderMap) -> ApiResult<&str> {
    header_text(headers, IDEMPOTENCY_KEY)?.ok_or_else(|| {
        ApiError::in_field(
            Kind::IdempotencyKeyMissing,
            "Idempotency-Key",
            "send a new unique value, such as a UUID, with each new request, and the same one when \
             you repeat it",
        )
    })
}

/// The process with this id.
pub(super) async fn find(api: &Api, id: ProcessId) -> ApiResult<ProcessRecord> {
    api.store.process(id).await?.ok_or_else(|| unknown(id))
}

/// There is no such process.
pub(super) fn unknown(id: ProcessId) -> ApiError {
    ApiError::not_found("process", &id.to_string(), "/v1/processes")
}

/// `Prefer: wait=SECONDS`. Other preferences are ignored, as RFC 7240 asks.
fn preferred_wait(headers: &HeaderMap) -> ApiResult<Option<Duration>> {
    let Some(text) = header_text(headers, "prefer")? else {
        return Ok(None);
    };
    let wait = text
        .split([',', ';'])
        .filter_map(|part| part.trim().split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"));
    let Some((_, seconds)) = wait else {
        return Ok(None);
    };
    let seconds = seconds.trim().trim_matches('"').parse().map_err(|_| {
        ApiError::field(
            "Prefer",
            "`wait` must be a whole number of seconds, such as wait=10",
        )
    })?;
    Ok(Some(Duration::from_secs(seconds).min(WAIT_MAX)))
}

/// The process when it has ended, or as it is after `wait`.
async fn wait_for_end(
    api: &Api,
    mut record: ProcessRecord,
    wait: Duration,
) -> ApiResult<ProcessRecord> {
    let mut recorded = api.events.clone();
    let timeout = tokio::time::sleep(wait);
    tokio::pin!(timeout);
    loop {
        // Before the look, so that nothing falls between the two.
        recorded.mark_unchanged();
        record = match api.store.process(record.id).await? {
            Some(now) if !now.state.is_terminal() => now,
            Some(ended) => return Ok(ended),
            None => return Ok(record),
        };
        tokio::select! {
            () = &mut timeout => return Ok(record),
            () = api.stopping.cancelled() => return Ok(record),
            changed = recorded.changed() => if changed.is_err() { return Ok(record); },
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
