//! `/v1/pauses`

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use protocol::ids::ProcessId;
use serde::Deserialize;

use super::{agents, groups, process_input};
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Body, Params, clip};
use crate::api::model::pauses::{CreatePause, Pause, PauseScope};
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::store::pauses::{self, PAUSES_MAX, PauseAdded, PauseKey};

/// Bytes of a reason at most.
const REASON_BYTES_MAX: usize = 256;

/// List pauses
///
/// By scope and key: a stable order.
#[utoipa::path(
    get,
    path = "/v1/pauses",
    tag = "pauses",
    operation_id = "list_pauses",
    params(PageParams),
    responses(
        (status = 200, description = "A page of pauses.", body = Page<Pause>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<Pause>>> {
    let (size, after) = params.read("pauses")?;
    let after: usize = after.unwrap_or(0);
    let table = api.store.pauses().await?;
    let rows = table.pauses.into_iter().skip(after).collect();
    let (rows, more) = page::cut(rows, size);
    let next = more.then(|| page::next_token("pauses", after + rows.len()));
    Ok(Json(Page {
        items: rows.iter().map(describe).collect(),
        next_page_token: next,
    }))
}

/// Pause something
///
/// From the answer on, nothing of it is started; what runs goes on, and what waits for a time or a
/// resource goes on waiting for it. Deadlines go on as well. Pausing again is harmless: the first
/// pause stays as it is.
#[utoipa::path(
    post,
    path = "/v1/pauses",
    tag = "pauses",
    operation_id = "create_pause",
    request_body = CreatePause,
    responses(
        (status = 201, description = "Paused.", body = Pause),
        (status = 200, description = "It was paused already.", body = Pause),
        (status = 400, description = "A field is not valid."),
        (status = 409, description = "The process is over, or there are too many pauses."),
        (status = 422, description = "There is no such process, agent or group."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<CreatePause>,
) -> ApiResult<(StatusCode, Json<Pause>)> {
    let reason = reason(Some(&request.reason))?
        .ok_or_else(|| ApiError::field("reason", "is empty; say to others why their work waits"))?;
    let key = key(&api, request.scope, &request.key, true).await?;
    let pause = pauses::Pause {
        key,
        by: caller.name,
        reason,
        at: clock::now(),
    };
    match api.engine.pause(pause).await? {
        PauseAdded::New(pause) => Ok((StatusCode::CREATED, Json(made(&api, &pause)))),
        PauseAdded::Already(pause) => Ok((StatusCode::OK, Json(made(&api, &pause)))),
        PauseAdded::Full => Err(ApiError::new(
            Kind::Conflict,
            format!(
                "There are {PAUSES_MAX} pauses already; pause the agent, the tenant or the kind instead \
                 of single processes."
            ),
        )),
    }
}

/// Why a pause ends.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteParams {
    /// For the history: at most 256 bytes.
    pub(super) reason: Option<String>,
}

/// End a pause
///
/// What is ready goes on at once.
#[utoipa::path(
    delete,
    path = "/v1/pauses/{scope}/{key}",
    tag = "pauses",
    operation_id = "delete_pause",
    params(
        ("scope" = PauseScope, Path, description = "What `key` names."),
        ("key" = String, Path, description = "Which one: id, name, tenant or kind."),
        DeleteParams,
    ),
    responses(
        (status = 204, description = "It is no longer paused."),
        (status = 404, description = "It is not paused."),
    )
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<(String, String)>, PathRejection>,
    Params(params): Params<DeleteParams>,
) -> ApiResult<StatusCode> {
    let Path((scope, name)) = path.map_err(|_| ApiError::field("key", "is not valid UTF-8"))?;
    let scope = serde_json::from_value(serde_json::Value::from(scope))
        .map_err(|_| ApiError::field("scope", "must be process, agent, group, tenant or kind"))?;
    let reason = reason(params.reason.as_deref())?.unwrap_or_default();
    let key = key(&api, scope, &name, false).await?;
    let text = key.to_string();
    match api
        .engine
        .resume(key, clock::now(), caller.name, reason)
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found("pause of", &text, "/v1/pauses")),
    }
}

/// Checks why somebody does something: for people who read it later.
pub(super) fn reason(text: Option<&str>) -> ApiResult<Option<String>> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text.len() > REASON_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(ApiError::field(
            "reason",
            format!("must be at most {REASON_BYTES_MAX} bytes of text without control characters"),
        ));
    }
    Ok(Some(text.to_owned()))
}

/// What a request names. `living`: a process must not be over.
async fn key(api: &Api, scope: PauseScope, text: &str, living: bool) -> ApiResult<PauseKey> {
    let id = |id| PauseKey::of_id(described(scope), id);
    let name = || PauseKey::of_name(described(scope), text);
    match scope {
        PauseScope::Process => {
            let process: ProcessId = text.parse().map_err(|_| {
                ApiError::field(
                    "key",
                    format!("`{}` is not the id of a process", clip(text)),
                )
            })?;
            if living {
                check_living(api, process).await?;
            }
            Ok(id(process.0))
        }
        PauseScope::Agent => match text.parse() {
            // The pause of a revoked agent can still be ended.
            Ok(agent) if !living => Ok(id(agent)),
            _ => Ok(id(agents::resolve(api, "key", text).await?.0)),
        },
        PauseScope::Group => match text.parse() {
            Ok(group) if !living => Ok(id(group)),
            _ => Ok(id(groups::resolve(api, "key", text).await?.id.0)),
        },
        PauseScope::Tenant => {
            process_input::check_name("key", "a tenant", text)?;
            Ok(name())
        }
        PauseScope::Kind => {
            process_input::check_name("key", "a kind", text)?;
            Ok(name())
        }
    }
}

async fn check_living(api: &Api, process: ProcessId) -> ApiResult<()> {
    match api.store.process(process).await? {
        None => Err(ApiError::in_field(
            Kind::Unprocessable,
            "key",
            format!(
                "there is no process `{process}`; GET /v1/processes lists those that there are"
            ),
        )),
        Some(record) if record.state.is_terminal() => Err(ApiError::new(
            Kind::Conflict,
            format!(
                "The process {process} is over ({}); there is nothing to pause.",
                record.state
            ),
        )),
        Some(_) => Ok(()),
    }
}

fn described(scope: PauseScope) -> pauses::PauseScope {
    match scope {
        PauseScope::Process => pauses::PauseScope::Process,
        PauseScope::Agent => pauses::PauseScope::Agent,
        PauseScope::Group => pauses::PauseScope::Group,
        PauseScope::Tenant => pauses::PauseScope::Tenant,
        PauseScope::Kind => pauses::PauseScope::Kind,
    }
}

fn describe(pause: &pauses::Pause) -> Pause {
    Pause {
        scope: match pause.key.scope() {
            pauses::PauseScope::Process => PauseScope::Process,
            pauses::PauseScope::Agent => PauseScope::Agent,
            pauses::PauseScope::Group => PauseScope::Group,
            pauses::PauseScope::Tenant => PauseScope::Tenant,
            pauses::PauseScope::Kind => PauseScope::Kind,
        },
        key: pause.key.key(),
        by: pause.by.clone(),
        reason: pause.reason.clone(),
        at: Timestamp(pause.at.0),
        warnings: Vec::new(),
    }
}

/// A pause that was asked for, with what may not have been meant.
fn made(api: &Api, pause: &pauses::Pause) -> Pause {
    let kind = pause.key.key();
    let undeclared =
        pause.key.scope() == pauses::PauseScope::Kind && api.kinds.get(&kind).is_none();
    let warning = undeclared.then(|| {
        format!(
            "no kind `{kind}` is declared (drover kinds list): this holds processes of a driver of that name, \
             and no kind whose steps use it"
        )
    });
    Pause {
        warnings: warning.into_iter().collect(),
        ..describe(pause)
    }
}
