//! `/v1/agent-servers`

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};

use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Params, clip};
use crate::api::model::agent_servers::AgentServer;
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult};
use crate::clock;
use crate::gateways::Registered;

/// List agent servers
///
/// Those on machines of their own that process servers have reached, by their links; none where the agent server is
/// in this process, or the only one.
#[utoipa::path(
    get,
    path = "/v1/agent-servers",
    tag = "agent-servers",
    operation_id = "list_agent_servers",
    params(PageParams),
    responses(
        (status = 200, description = "A page of agent servers.", body = Page<AgentServer>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<AgentServer>>> {
    let (size, after) = params.read::<String>("agent-servers")?;
    let mut rows = read(&api).await?;
    rows.retain(|row| after.as_ref().is_none_or(|after| row.link > *after));
    let link = |row: &AgentServer| row.link.clone();
    Ok(Json(page::of("agent-servers", size, rows, link, |row| row)))
}

/// Drain an agent server
///
/// Its groups go to the others, two a second, and it is given none until it is started again. Repeating it is harmless.
/// When `groups` is 0 it can be stopped.
#[utoipa::path(
    post,
    path = "/v1/agent-servers/{link}/drain",
    tag = "agent-servers",
    operation_id = "drain_agent_server",
    params(("link" = String, Path, description = "`host:port`, as the list has it.")),
    responses(
        (status = 200, description = "It drains.", body = AgentServer),
        (status = 404, description = "There is no such agent server."),
        (status = 409, description = "No other agent server can be given its groups."),
    )
)]
pub(super) async fn drain(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
) -> ApiResult<Json<AgentServer>> {
    set(&api, &caller, path, true).await.map(Json)
}

/// End the drain of an agent server
///
/// It is given its share of the groups again. Repeating it is harmless.
#[utoipa::path(
    post,
    path = "/v1/agent-servers/{link}/undrain",
    tag = "agent-servers",
    operation_id = "undrain_agent_server",
    params(("link" = String, Path, description = "`host:port`, as the list has it.")),
    responses(
        (status = 200, description = "It drains no longer.", body = AgentServer),
        (status = 404, description = "There is no such agent server."),
    )
)]
pub(super) async fn undrain(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
) -> ApiResult<Json<AgentServer>> {
    set(&api, &caller, path, false).await.map(Json)
}

async fn set(
    api: &Api,
    caller: &Caller,
    path: Result<Path<String>, PathRejection>,
    draining: bool,
) -> ApiResult<AgentServer> {
    let Path(link) = path.map_err(|_| ApiError::field("link", "is not valid UTF-8"))?;
    let unknown = || ApiError::not_found("agent server", &clip(&link), "/v1/agent-servers");
    if draining {
        let servers = api.store.agent_servers(clock::now()).await?;
        let is_it = |one: &Registered| one.server.link == link;
        let takes = |one: &Registered| one.alive && !one.draining && !is_it(one);
        // What drains already goes on.
        let new = servers.iter().any(|one| is_it(one) && !one.draining);
        if new && !servers.iter().any(takes) {
            return Err(super::group_moves::alone());
        }
    }
    if !api.store.drain_agent_server(link.clone(), draining).await? {
        return Err(unknown());
    }
    tracing::warn!(
        link,
        draining,
        by = caller.name,
        "an agent server is to drain, or no longer"
    );
    let servers = read(api).await?;
    let server = servers.into_iter().find(|server| server.link == link);
    server.ok_or_else(unknown)
}

/// All of them, by their links.
async fn read(api: &Api) -> ApiResult<Vec<AgentServer>> {
    let now = clock::now();
    let servers = api.store.agent_servers(now).await?;
    let placed = api.store.placed_groups(now).await?;
    let described = servers.into_iter().map(|row| {
        let run = row.server.run;
        let own = placed.iter().filter(|placed| placed.owner == Some(run));
        AgentServer {
            link: row.server.link,
            run: run.0,
            addresses: row.server.addresses,
            shards: row.server.shards,
            capacity: row.server.capacity,
            alive: row.alive,
            draining: row.draining,
            groups: own.clone().count() as u64,
            agents: own.map(|placed| placed.agents).sum(),
            renewed_at: Timestamp(row.renewed_at.0),
        }
    });
    Ok(described.collect())
}
