//! `/v1/agents`

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use protocol::ids::AgentId;
use serde::Deserialize;

use super::{groups, join_tokens, limit_view};
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Id, OptionalBody, Params, clip};
use crate::api::model::access::{CreatedToken, Rekey};
use crate::api::model::agents::{Agent, AgentSession, AgentState, GroupRef};
use crate::api::model::{Page, Timestamp};
use crate::api::page;
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock::{self, UnixMs};
use crate::dispatch::{AgentView, EngineError};
use crate::store::agents::{self, AgentFilter, Revoked};
use crate::store::tokens::TokenUse;

/// Agents that one request looks at when it filters by state or text; a page may be shorter for it.
const SCANNED_MAX: u32 = 20_000;
/// Bytes of a search at most.
const SEARCH_BYTES_MAX: usize = 128;
/// How often to try again to tell the gateways of a revoked agent.
const TELL_AGAIN: Duration = Duration::from_millis(20);
const TELL_TRIES: u32 = 50;

/// Which agents, which page.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    /// Only of this group (id or name).
    group: Option<String>,
    /// Only in this state.
    state: Option<AgentState>,
    /// Only those whose hostname, label (`name=value`) or id has this in it, in any case; at most
    /// 128 bytes.
    search: Option<String>,
    /// Items on a page, 1–500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    page_size: Option<u32>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

/// List agents
///
/// By id: a stable order. A page of a filtered list may be shorter than `page_size`, or empty, and
/// still have a `next_page_token`.
#[utoipa::path(
    get,
    path = "/v1/agents",
    tag = "agents",
    operation_id = "list_agents",
    params(ListParams),
    responses(
        (status = 200, description = "A page of agents.", body = Page<Agent>),
        (status = 400, description = "A parameter is not valid."),
        (status = 422, description = "There is no such group."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<ListParams>,
) -> ApiResult<Json<Page<Agent>>> {
    let (size, after) = page::read("agents", params.page_size, params.page_token.as_deref())?;
    let mut after = after.map(AgentId);
    let group = match &params.group {
        Some(text) => Some(groups::resolve(&api, "group", text).await?.id),
        None => None,
    };
    let filter = AgentFilter {
        group,
        revoked: params.state.map(|state| state == AgentState::Revoked),
    };
    let search = Search::new(params.search.as_deref())?;
    let wanted = usize::try_from(size).unwrap_or(usize::MAX);
    let mut items = Vec::new();
    let mut scanned = 0;
    let more = loop {
        let rows = api
            .store
            .agents_after(filter, after, page::PAGE_SIZE_MAX)
            .await?;
        let last_page = rows.len() < usize::try_from(page::PAGE_SIZE_MAX).unwrap_or(usize::MAX);
        scanned += page::PAGE_SIZE_MAX;
        let views = views(&api, &rows).await?;
        let mut taken_all = true;
        for (row, view) in rows.into_iter().zip(views) {
            if items.len() == wanted {
                taken_all = false;
                break;
            }
            after = Some(row.target.agent);
            let agent = describe(row, &view);
            let in_state = params.state.is_none_or(|state| state == agent.state);
            if in_state && search.finds(&agent) {
                items.push(agent);
            }
        }
        if !taken_all {
            break true;
        }
        if last_page {
            break false;
        }
        if items.len() == wanted || scanned >= SCANNED_MAX {
            break true;
        }
    };
    let next = after.filter(|_| more);
    Ok(Json(Page {
        items,
        next_page_token: next.map(|last| page::next_token("agents", last.0)),
    }))
}

/// Show an agent
#[utoipa::path(
    get,
    path = "/v1/agents/{id}",
    tag = "agents",
    operation_id = "get_agent",
    params(("id" = uuid::Uuid, Path, description = "The agent.")),
    responses(
        (status = 200, description = "The agent.", body = Agent),
        (status = 404, description = "There is no such agent."),
    )
)]
pub(super) async fn show(Reads(api): Reads, Id(id): Id) -> ApiResult<Json<Agent>> {
    let mut agent = find(&api, AgentId(id)).await?;
    if agent.session.is_some() {
        // What the gateway does not say is left out: the rest is known all the same.
        let flow = api.engine.flow_of(AgentId(id)).await.ok();
        agent.live = flow.map(limit_view::of_agent);
    }
    Ok(Json(agent))
}

/// Revoke an agent
///
/// Takes its keys away and closes its session within two seconds. There is no way back: the host
/// joins as a new agent. Work that runs on the host is not stopped. Repeating it is harmless.
#[utoipa::path(
    post,
    path = "/v1/agents/{id}/revoke",
    tag = "agents",
    operation_id = "revoke_agent",
    params(("id" = uuid::Uuid, Path, description = "The agent.")),
    responses(
        (status = 200, description = "Revoked.", body = Agent),
        (status = 404, description = "There is no such agent."),
    )
)]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> ApiResult<Json<Agent>> {
    let id = AgentId(id);
    match api
        .store
        .revoke_agent(id, caller.name.clone(), clock::now())
        .await?
    {
        Revoked::Unknown => return Err(unknown(id)),
        Revoked::Now => tracing::warn!(agent = %id, by = caller.name, "an agent was revoked"),
        Revoked::Before => {}
    }
    // Also when it was revoked before: an earlier request may have ended half-way.
    tell_revoked(&api, id).await?;
    find(&api, id).await.map(Json)
}

/// Give an agent a new key
///
/// Makes a join token for this agent: `drover agent join` with it replaces the agent's key. The
/// agent keeps its id, its group and its history.
#[utoipa::path(
    post,
    path = "/v1/agents/{id}/rekey",
    tag = "agents",
    operation_id = "rekey_agent",
    params(("id" = uuid::Uuid, Path, description = "The agent.")),
    request_body(content = Option<Rekey>, description = "May be left out."),
    responses(
        (status = 201, description = "The token; its text is shown once.", body = CreatedToken),
        (status = 400, description = "A field is not valid."),
        (status = 404, description = "There is no such agent."),
        (status = 409, description = "The agent is revoked."),
    )
)]
pub(super) async fn rekey(
    State(api): State<Arc<Api>>,
    Id(id): Id,
    OptionalBody(body): OptionalBody<Rekey>,
) -> ApiResult<(StatusCode, Json<CreatedToken>)> {
    let id = AgentId(id);
    let agent = api.store.agent(id).await?.ok_or_else(|| unknown(id))?;
    if agent.revoked_at.is_some() {
        return Err(ApiError::new(
            Kind::Conflict,
            format!(
                "The agent {id} is revoked; let the host join as a new agent (POST /v1/tokens)."
            ),
        ));
    }
    let ttl = join_tokens::ttl(body.ttl_seconds)?;
    let mut tokens = join_tokens::make(&api, 1, TokenUse::Rekey(id), ttl).await?;
    let token = tokens.pop().ok_or_else(|| {
        ApiError::new(
            Kind::Internal,
            "No token was made; try again and report this.",
        )
    })?;
    Ok((StatusCode::CREATED, Json(token)))
}

/// The agent that a request names by id or by hostname; not a revoked one.
pub(super) async fn resolve(api: &Api, field: &str, text: &str) -> ApiResult<AgentId> {
    let cannot = |detail: String| ApiError::in_field(Kind::Unprocessable, field, detail);
    if let Ok(id) = text.parse::<AgentId>() {
        return match api.store.agent(id).await? {
            None => Err(cannot(format!(
                "there is no agent `{id}`; GET /v1/agents lists those that there are"
            ))),
            Some(agent) if agent.revoked_at.is_some() => Err(cannot(format!(
                "the agent {id} is revoked and takes no work; let the host join again"
            ))),
            Some(_) => Ok(id),
        };
    }
    let shown = clip(text);
    match &api.store.agents_of_host(text).await?[..] {
        [agent] => Ok(agent.target.agent),
        [] => Err(cannot(format!(
            "there is no agent with the hostname `{shown}`; GET /v1/agents lists those that there \
             are"
        ))),
        _ => Err(cannot(format!(
            "several agents have the hostname `{shown}`; use the id of the one you mean"
        ))),
    }
}

async fn tell_revoked(api: &Api, id: AgentId) -> ApiResult<()> {
    let mut tries = 0;
    loop {
        match api.engine.revoke_agent(id) {
            Ok(()) => return Ok(()),
            Err(EngineError::Busy) if tries < TELL_TRIES => {
                tries += 1;
                tokio::time::sleep(TELL_AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn find(api: &Api, id: AgentId) -> ApiResult<Agent> {
    let row = api.store.agent(id).await?.ok_or_else(|| unknown(id))?;
    let view = views(api, std::slice::from_ref(&row)).await?.pop();
    view.map(|view| describe(row, &view))
        .ok_or_else(|| unknown(id))
}

fn unknown(id: AgentId) -> ApiError {
    ApiError::not_found("agent", &id.to_string(), "/v1/agents")
}

async fn views(api: &Api, rows: &[agents::Agent]) -> ApiResult<Vec<AgentView>> {
    let ids = rows.iter().map(|row| row.target.agent).collect();
    Ok(api.engine.agents(ids).await?)
}

/// What the store remembers and what the process server sees, as one; the newer word wins.
fn describe(row: agents::Agent, view: &AgentView) -> Agent {
    let stamp = |at: UnixMs| Timestamp(at.0);
    let session = view.session.as_ref().filter(|_| row.revoked_at.is_none());
    let (state, since) = match (row.revoked_at, session) {
        (Some(at), _) => (AgentState::Revoked, Some(at)),
        (None, Some(_)) => (AgentState::Connected, view.since),
        (None, None) => (AgentState::Disconnected, view.since.or(row.last_seen_at)),
    };
    let last_seen = view.since.into_iter().chain(row.last_seen_at).max();
    Agent {
        id: row.target.agent.0,
        group: GroupRef {
            id: row.target.group.0,
            name: row.group_name,
        },
        state,
        since: since.map(stamp),
        capacity: session.map_or(0, |session| session.capacity),
        in_use: view.in_use,
        hostname: session.map_or(row.hostname, |session| session.hostname.clone()),
        kinds: session.map_or(row.kinds, |session| session.kinds.clone()),
        labels: session.map_or(row.labels, |session| {
            session.labels.iter().cloned().collect()
        }),
        software: session.map_or(row.software, |session| session.software.clone()),
        last_seen_at: last_seen.map(stamp),
        created_at: stamp(row.created_at),
        keys: row.keys.iter().map(ToString::to_string).collect(),
        session: session.map(|session| AgentSession {
            id: session.session.0,
            shard: session.shard.0,
            at_home: session.at_home,
            remote: session.remote.to_string(),
        }),
        ready: view.ready,
        live: None,
    }
}

/// What agents are searched for, in lower case; empty: everything.
struct Search(String);

impl Search {
    fn new(text: Option<&str>) -> ApiResult<Self> {
        let text = text.unwrap_or_default().trim();
        if text.len() > SEARCH_BYTES_MAX {
            return Err(ApiError::field(
                "search",
                format!(
                    "has {} bytes; at most {SEARCH_BYTES_MAX} are looked for",
                    text.len()
                ),
            ));
        }
        Ok(Self(text.to_lowercase()))
    }

    fn finds(&self, agent: &Agent) -> bool {
        let has = |text: &str| text.to_lowercase().contains(&self.0);
        self.0.is_empty()
            || has(&agent.hostname)
            || has(&agent.id.to_string())
            || agent
                .labels
                .iter()
                .any(|(name, value)| has(&format!("{name}={value}")))
    }
}
