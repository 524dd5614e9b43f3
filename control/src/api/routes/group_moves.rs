//! `/v1/groups/{id}/assign`, `/v1/groups/{id}/drain`, `/v1/groups/rebalance`: moves that people ask for.
//!
//! Each is written as a pin that ends by itself ([`STAYS`]): whoever looks after the groups carries it out at its pace,
//! and balancing does not undo it at once.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use protocol::ids::{GatewayId, GroupId};

use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Body, Id, clip};
use crate::api::model::agents::{
    AssignGroup, Group, GroupMove, GroupRef, Rebalance, RebalanceGroups,
};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::{self, UnixMs};
use crate::gateways::{self, Field, Pin, Placed, Registered, STAYS, Taker};

/// Assign a group
///
/// It goes to that agent server now, once, and balancing leaves it there for ten minutes. To keep it there for good, pin it.
#[utoipa::path(
    post,
    path = "/v1/groups/{id}/assign",
    tag = "groups",
    operation_id = "assign_group",
    params(("id" = uuid::Uuid, Path, description = "The group.")),
    request_body = AssignGroup,
    responses(
        (status = 200, description = "It goes there, within seconds.", body = Group),
        (status = 404, description = "There is no such group."),
        (status = 409, description = "The agent server is gone or drains, or the group is pinned."),
        (status = 422, description = "There is no such agent server."),
    )
)]
pub(super) async fn assign(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Body(body): Body<AssignGroup>,
) -> ApiResult<Json<Group>> {
    let group = super::groups::find(&api, GroupId(id)).await?;
    let there = Deployment::read(&api).await?;
    let server = there.server(&body.agent_server)?;
    may_take(server)?;
    let placed = there.placed(GroupId(id))?;
    not_pinned(placed)?;
    tracing::warn!(
        group = group.name,
        to = body.agent_server,
        by = caller.name,
        "a group is assigned"
    );
    stay(&api, vec![(GroupId(id), body.agent_server)]).await?;
    super::groups::find(&api, GroupId(id)).await.map(Json)
}

/// Drain a group
///
/// Its agent server gives it away now, to the best of the others, and balancing leaves it there for ten minutes.
#[utoipa::path(
    post,
    path = "/v1/groups/{id}/drain",
    tag = "groups",
    operation_id = "drain_group",
    params(("id" = uuid::Uuid, Path, description = "The group.")),
    responses(
        (status = 200, description = "It goes, within seconds, to where `assigned` says.", body = Group),
        (status = 404, description = "There is no such group."),
        (status = 409, description = "No other agent server can take it, or the group is pinned."),
    )
)]
pub(super) async fn drain(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> ApiResult<Json<Group>> {
    let group = super::groups::find(&api, GroupId(id)).await?;
    let there = Deployment::read(&api).await?;
    let placed = there.placed(GroupId(id))?;
    not_pinned(placed)?;
    let to = gateways::elsewhere(&there.field(), &there.groups, placed);
    let to = to.and_then(|to| there.link(to)).ok_or_else(alone)?;
    tracing::warn!(
        group = group.name,
        to,
        by = caller.name,
        "a group is given away"
    );
    stay(&api, vec![(GroupId(id), to)]).await?;
    super::groups::find(&api, GroupId(id)).await.map(Json)
}

/// Rebalance groups
///
/// Groups move now until agent servers have as many agents as each other, as far as whole groups allow: without waiting
/// until agent servers have been there for a while, and also where loads differ by less than a tenth. Pinned and
/// assigned groups stay. Two groups a second move; each stays where it went for ten minutes.
#[utoipa::path(
    post,
    path = "/v1/groups/rebalance",
    tag = "groups",
    operation_id = "rebalance_groups",
    request_body = RebalanceGroups,
    responses(
        (status = 200, description = "What moves, or with `dry_run` would.", body = Rebalance),
        (status = 409, description = "There are not two agent servers that may be given groups."),
    )
)]
pub(super) async fn rebalance(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<RebalanceGroups>,
) -> ApiResult<Json<Rebalance>> {
    let there = Deployment::read(&api).await?;
    let field = there.field();
    if field.servers.len() < 2 {
        return Err(alone());
    }
    let gifts = gateways::even(&field, &there.groups);
    let moves = gifts.into_iter().filter_map(|(group, to)| {
        let placed = there.placed(group.id).ok()?;
        Some(GroupMove {
            group: GroupRef {
                id: group.id.0,
                name: group.name,
            },
            agents: placed.agents,
            from: placed.owner.and_then(|owner| there.link(owner)),
            to: there.link(to)?,
        })
    });
    let moves: Vec<GroupMove> = moves.collect();
    if !body.dry_run {
        tracing::warn!(
            groups = moves.len(),
            by = caller.name,
            "groups are rebalanced"
        );
        let pins = moves.iter();
        let pins = pins.map(|one| (GroupId(one.group.id), one.to.clone()));
        stay(&api, pins.collect()).await?;
    }
    Ok(Json(Rebalance {
        dry_run: body.dry_run,
        moves,
    }))
}

/// Where everything is.
struct Deployment {
    servers: Vec<Registered>,
    groups: Vec<Placed>,
}

impl Deployment {
    async fn read(api: &Api) -> ApiResult<Self> {
        let now = clock::now();
        Ok(Self {
            servers: api.store.agent_servers(now).await?,
            groups: api.store.placed_groups(now).await?,
        })
    }

    fn server(&self, link: &str) -> ApiResult<&Registered> {
        let mut servers = self.servers.iter();
        let server = servers.find(|one| one.server.link == link);
        server.ok_or_else(|| unknown_server(link))
    }

    fn placed(&self, group: GroupId) -> ApiResult<&Placed> {
        let mut groups = self.groups.iter();
        let placed = groups.find(|placed| placed.group.id == group);
        placed.ok_or_else(|| ApiError::not_found("group", &group.to_string(), "/v1/groups"))
    }

    fn link(&self, run: GatewayId) -> Option<String> {
        let mut servers = self.servers.iter();
        servers.find_map(|one| (one.server.run == run).then(|| one.server.link.clone()))
    }

    /// As whoever looks after the groups will see it who reaches all that are alive.
    fn field(&self) -> Field {
        let alive = || self.servers.iter().filter(|one| one.alive);
        let takers = alive().filter(|one| !one.draining);
        let taker = |one: &Registered| (one.server.run, Taker::from(one.server.clone()));
        Field {
            servers: takers.map(taker).collect(),
            alive: alive().map(|one| one.server.run).collect(),
            leaving: Vec::new(),
            hurried: Vec::new(),
        }
    }
}

/// What is said where a request names an agent server that nobody has reached.
pub(super) fn unknown_server(link: &str) -> ApiError {
    ApiError::in_field(
        Kind::Unprocessable,
        "agent_server",
        format!(
            "there is no agent server `{}`; GET /v1/agent-servers lists those that there are",
            clip(link)
        ),
    )
}

fn may_take(one: &Registered) -> ApiResult<()> {
    let link = &one.server.link;
    let why = match (one.alive, one.draining) {
        (true, false) => return Ok(()),
        (false, _) => format!(
            "`{link}` is gone; start it, or see in the logs why the control side does not reach it"
        ),
        (true, true) => format!(
            "`{link}` drains; end that first (POST /v1/agent-servers/{link}/undrain), or choose another one"
        ),
    };
    Err(ApiError::in_field(Kind::Conflict, "agent_server", why))
}

fn not_pinned(placed: &Placed) -> ApiResult<()> {
    match &placed.pin {
        Some(Pin { link, until: None }) => Err(ApiError::new(
            Kind::Conflict,
            format!(
                "Group `{0}` is pinned to `{link}`: pin it elsewhere (PUT /v1/groups/{1}/pin), or remove the pin first \
                 (DELETE /v1/groups/{1}/pin).",
                placed.group.name, placed.group.id
            ),
        )),
        Some(Pin { until: Some(_), .. }) | None => Ok(()),
    }
}

/// There is nowhere to go.
pub(super) fn alone() -> ApiError {
    ApiError::new(
        Kind::Conflict,
        "No other agent server can be given groups: all others are gone or drain, or there is only one; \
         GET /v1/agent-servers lists them.",
    )
}

/// Groups go to these links, and stay there for a while.
async fn stay(api: &Api, groups: Vec<(GroupId, String)>) -> ApiResult<()> {
    let until: Option<UnixMs> = Some(clock::now().plus(STAYS));
    let pins = groups.into_iter();
    let pins = pins.map(|(group, link)| (group, Pin { link, until }));
    Ok(api.store.pin_groups(pins.collect()).await?)
}
