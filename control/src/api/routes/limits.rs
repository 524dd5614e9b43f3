//! `/v1/limits`

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use protocol::flow::LimitKey;
use protocol::ids::{AgentId, GroupId};
use protocol::limits::NAME_BYTES_MAX;

use super::pauses::{DeleteParams, reason};
use super::{agents, groups, limit_view, process_input};
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Body, Params, clip};
use crate::api::model::Page;
use crate::api::model::limits::{Limit, LimitScope, SetLimit};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::limits::{GLOBAL_KEY, Setting, WORK_LIMITS_MAX, key_text};
use crate::store::limits::{LimitPut, LimitRow};

type Named = Result<Path<(String, String)>, PathRejection>;

/// List limits
///
/// Those that operators have set, by scope and key: a stable order. Agents have a limit of their own also
/// where nothing is set: `GET /v1/limits/agent/{key}`.
#[utoipa::path(
    get,
    path = "/v1/limits",
    tag = "limits",
    operation_id = "list_limits",
    params(PageParams),
    responses(
        (status = 200, description = "A page of limits.", body = Page<Limit>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<Limit>>> {
    let (size, after) = params.read("limits")?;
    let after: usize = after.unwrap_or(0);
    let table = api.store.limits().await?;
    let rows = table.limits.into_iter().skip(after).collect();
    let (rows, more) = page::cut(rows, size);
    let next = more.then(|| page::next_token("limits", after + rows.len()));
    Ok(Json(Page {
        items: limit_view::describe_all(&api, rows).await?,
        next_page_token: next,
    }))
}

/// Show a limit
///
/// What is set, and what is so now. Agents, groups and `global/all` are shown also where nothing is set.
#[utoipa::path(
    get,
    path = "/v1/limits/{scope}/{key}",
    tag = "limits",
    operation_id = "get_limit",
    params(
        ("scope" = LimitScope, Path, description = "What it counts."),
        ("key" = String, Path, description = "Which one: an agent's id or hostname, a group's id or name, a name, `all`."),
    ),
    responses(
        (status = 200, description = "The limit.", body = Limit),
        (status = 400, description = "The scope or the key cannot be one."),
        (status = 404, description = "There is no such agent or group, or nothing is set."),
    )
)]
pub(super) async fn show(Reads(api): Reads, path: Named) -> ApiResult<Json<Limit>> {
    let key = named(&api, path).await?.shown()?;
    let row = api.store.limit(&key).await?;
    match (&key, row) {
        (_, Some(row)) => limit_view::describe(&api, &key, Some(row)).await.map(Json),
        (LimitKey::Agent(_) | LimitKey::Group(_) | LimitKey::Global, None) => {
            limit_view::describe(&api, &key, None).await.map(Json)
        }
        (_, None) => Err(unset(&key)),
    }
}

/// Set a limit
///
/// In the place of all that was set of it. It counts from the answer on: what runs goes on, and nothing new is
/// started above it. A limit of 0 stops what it counts. Doing it again is harmless.
#[utoipa::path(
    put,
    path = "/v1/limits/{scope}/{key}",
    tag = "limits",
    operation_id = "set_limit",
    params(
        ("scope" = LimitScope, Path, description = "What it counts."),
        ("key" = String, Path, description = "Which one: an agent's id or hostname, a group's id or name, a name, `all`."),
    ),
    request_body = SetLimit,
    responses(
        (status = 201, description = "It is set.", body = Limit),
        (status = 200, description = "It is set, in the place of another.", body = Limit),
        (status = 400, description = "A figure is not valid, or contradicts another."),
        (status = 409, description = "There are too many limits."),
        (status = 422, description = "There is no such agent or group."),
    )
)]
pub(super) async fn set(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    path: Named,
    Body(request): Body<SetLimit>,
) -> ApiResult<(StatusCode, Json<Limit>)> {
    let named = named(&api, path).await?;
    let set = Setting {
        min: request.min,
        max: request.max,
        pin: request.pin,
        weight: request.weight,
    };
    set.check(named.scope())
        .map_err(|refused| ApiError::field(refused.field, refused.problem))?;
    let reason = reason(Some(&request.reason))?
        .ok_or_else(|| ApiError::field("reason", "is empty; say to others why their work waits"))?;
    let key = named.usable()?;
    let row = LimitRow {
        key: key.clone(),
        set,
        by: caller.name,
        reason,
        at: clock::now(),
    };
    let status = match api.engine.set_limit(row).await? {
        LimitPut::New => StatusCode::CREATED,
        LimitPut::Replaced => StatusCode::OK,
        LimitPut::Full(WORK_LIMITS_MAX) => {
            return Err(full(WORK_LIMITS_MAX, "limits of sorts of work"));
        }
        LimitPut::Full(max) => return Err(full(max, "limits")),
    };
    let row = api.store.limit(&key).await?;
    let limit = limit_view::describe(&api, &key, row).await?;
    Ok((status, Json(limit)))
}

fn full(max: u32, what: &str) -> ApiError {
    ApiError::new(
        Kind::Conflict,
        format!(
            "There are {max} {what} already; remove some, or limit groups and tenants instead of single agents."
        ),
    )
}

/// Remove a limit
///
/// What was set of it; an agent's own limit then follows what the agent can take.
#[utoipa::path(
    delete,
    path = "/v1/limits/{scope}/{key}",
    tag = "limits",
    operation_id = "delete_limit",
    params(
        ("scope" = LimitScope, Path, description = "What it counts."),
        ("key" = String, Path, description = "Which one."),
        DeleteParams,
    ),
    responses(
        (status = 204, description = "Nothing is set of it any more."),
        (status = 404, description = "Nothing was set of it."),
    )
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    path: Named,
    Params(params): Params<DeleteParams>,
) -> ApiResult<StatusCode> {
    let key = named(&api, path).await?.shown()?;
    let reason = reason(params.reason.as_deref())?.unwrap_or_default();
    let order = (clock::now(), caller.name);
    let removed = api
        .engine
        .remove_limit(key.clone(), order.0, order.1, reason)
        .await?;
    match removed {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(unset(&key)),
    }
}

fn unset(key: &LimitKey) -> ApiError {
    let text = format!("{} {}", crate::limits::LimitScope::of(key), key_text(key));
    ApiError::not_found("limit of", &text, "/v1/limits")
}

/// What a path names.
enum Target {
    Key(LimitKey),
    /// An id of an agent that is revoked: it is shown, and nothing is set of it any more.
    Revoked(AgentId, ApiError),
    /// There is no such agent or group.
    Nobody(crate::limits::LimitScope, ApiError),
}

impl Target {
    fn scope(&self) -> crate::limits::LimitScope {
        match self {
            Self::Key(key) => crate::limits::LimitScope::of(key),
            Self::Revoked(..) => crate::limits::LimitScope::Agent,
            Self::Nobody(scope, _) => *scope,
        }
    }

    /// To be looked at, or removed.
    fn shown(self) -> ApiResult<LimitKey> {
        match self {
            Self::Key(key) => Ok(key),
            Self::Revoked(agent, _) => Ok(LimitKey::Agent(agent)),
            Self::Nobody(_, refused) => {
                Err(ApiError::new(Kind::NotFound, refused.into_problem().detail))
            }
        }
    }

    /// To be set.
    fn usable(self) -> ApiResult<LimitKey> {
        match self {
            Self::Key(key) => Ok(key),
            Self::Revoked(_, refused) | Self::Nobody(_, refused) => Err(refused),
        }
    }
}

async fn named(api: &Api, path: Named) -> ApiResult<Target> {
    use crate::limits::LimitScope as Scope;
    let Path((scope, text)) = path.map_err(|_| ApiError::field("key", "is not valid UTF-8"))?;
    let scope: Scope = scope.parse().map_err(|()| {
        ApiError::field(
            "scope",
            "must be agent, work, resource, tenant, group or global",
        )
    })?;
    Ok(Target::Key(match scope {
        Scope::Agent => match agents::resolve(api, "key", &text).await {
            Ok(agent) => LimitKey::Agent(agent),
            Err(refused) => return not_an_agent(api, &text, refused).await,
        },
        Scope::Group => match groups::resolve(api, "key", &text).await {
            Ok(group) => LimitKey::Group(GroupId(group.id.0)),
            Err(refused) if refused.status() == 422 => {
                return Ok(Target::Nobody(scope, refused));
            }
            Err(error) => return Err(error),
        },
        Scope::Work => {
            process_input::check_name("key", "a sort of work", &text)?;
            LimitKey::Work(text)
        }
        Scope::Tenant => {
            process_input::check_name("key", "a tenant", &text)?;
            LimitKey::Tenant(text)
        }
        Scope::Resource => {
            check_resource(&text)?;
            LimitKey::Resource(text)
        }
        Scope::Global if text == GLOBAL_KEY => LimitKey::Global,
        Scope::Global => {
            let shown = clip(&text);
            return Err(ApiError::field(
                "key",
                format!("is `{shown}`; the one limit of scope `global` has the key `{GLOBAL_KEY}`"),
            ));
        }
    }))
}

async fn not_an_agent(api: &Api, text: &str, refused: ApiError) -> ApiResult<Target> {
    if refused.status() != 422 {
        return Err(refused);
    }
    if let Ok(agent) = text.parse::<AgentId>()
        && api.store.agent(agent).await?.is_some()
    {
        return Ok(Target::Revoked(agent, refused));
    }
    Ok(Target::Nobody(crate::limits::LimitScope::Agent, refused))
}

fn check_resource(name: &str) -> ApiResult<()> {
    let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    if fits && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(ApiError::field(
        "key",
        format!(
            "a resource must be 1 to {NAME_BYTES_MAX} bytes without control characters, as in a step's \
             `resources`"
        ),
    ))
}
