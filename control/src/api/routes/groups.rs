//! `/v1/groups`

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use protocol::ids::GroupId;
use protocol::limits::NAME_BYTES_MAX;

use super::group_moves::unknown_server;
use crate::api::Api;
use crate::api::extract::{Body, Id, Params};
use crate::api::model::agents::{CreateGroup, Group, PinGroup};
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::gateways::{Pin, Registered};
use crate::store::groups::{self, CreateGroupError};

/// List groups
///
/// By id: a stable order.
#[utoipa::path(
    get,
    path = "/v1/groups",
    tag = "groups",
    operation_id = "list_groups",
    params(PageParams),
    responses(
        (status = 200, description = "A page of groups.", body = Page<Group>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<Group>>> {
    let (size, after) = params.read("groups")?;
    let after = after.map(GroupId);
    let mut rows = api.store.groups().await?;
    rows.sort_by_key(|group| group.id);
    rows.retain(|group| after.is_none_or(|after| group.id > after));
    let counts = Counts::read(&api).await?;
    let shown = |row| counts.describe(row);
    Ok(Json(page::of("groups", size, rows, |row| row.id, shown)))
}

/// Make a group
///
/// For agents that belong together. Agents join it with tokens made for it.
#[utoipa::path(
    post,
    path = "/v1/groups",
    tag = "groups",
    operation_id = "create_group",
    request_body = CreateGroup,
    responses(
        (status = 201, description = "Made.", body = Group,
         headers(("Location" = String, description = "The group."))),
        (status = 400, description = "The name is not valid."),
        (status = 409, description = "The name is taken."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Body(body): Body<CreateGroup>,
) -> ApiResult<(StatusCode, [(header::HeaderName, String); 1], Json<Group>)> {
    check_name(&body.name)?;
    let group = api
        .store
        .create_group(&body.name, clock::now())
        .await
        .map_err(|error| match error {
            CreateGroupError::NameTaken(_) | CreateGroupError::TooMany => {
                ApiError::in_field(Kind::Conflict, "name", format!("{error}."))
            }
            CreateGroupError::Store(error) => error.into(),
        })?;
    let id = group.id;
    api.engine.adopt_group(group).await?;
    let group = find(&api, id).await?;
    let location = format!("/v1/groups/{id}");
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(group),
    ))
}

/// Show a group
#[utoipa::path(
    get,
    path = "/v1/groups/{id}",
    tag = "groups",
    operation_id = "get_group",
    params(("id" = uuid::Uuid, Path, description = "The group.")),
    responses(
        (status = 200, description = "The group.", body = Group),
        (status = 404, description = "There is no such group."),
    )
)]
pub(super) async fn show(Reads(api): Reads, Id(id): Id) -> ApiResult<Json<Group>> {
    find(&api, GroupId(id)).await.map(Json)
}

pub(super) async fn find(api: &Api, id: GroupId) -> ApiResult<Group> {
    let row = api
        .store
        .group(id)
        .await?
        .ok_or_else(|| ApiError::not_found("group", &id.to_string(), "/v1/groups"))?;
    Ok(Counts::read(api).await?.describe(row))
}

/// The group that a request names by id or by name.
pub(super) async fn resolve(api: &Api, field: &str, text: &str) -> ApiResult<groups::Group> {
    let found = match text.parse::<GroupId>() {
        Ok(id) => api.store.group(id).await?,
        Err(_) => {
            let groups = api.store.groups().await?;
            groups.into_iter().find(|group| group.name == text)
        }
    };
    found.ok_or_else(|| {
        ApiError::in_field(
            Kind::Unprocessable,
            field,
            format!(
                "there is no group `{}`; GET /v1/groups lists those that there are",
                crate::api::extract::clip(text)
            ),
        )
    })
}

/// Pin a group
///
/// It goes to that agent server and stays there, as long as that is there and does not drain. Replaces an earlier pin.
#[utoipa::path(
    put,
    path = "/v1/groups/{id}/pin",
    tag = "groups",
    operation_id = "pin_group",
    params(("id" = uuid::Uuid, Path, description = "The group.")),
    request_body = PinGroup,
    responses(
        (status = 200, description = "Pinned.", body = Group),
        (status = 404, description = "There is no such group."),
        (status = 422, description = "There is no such agent server."),
    )
)]
pub(super) async fn pin(
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Body(body): Body<PinGroup>,
) -> ApiResult<Json<Group>> {
    let group = find(&api, GroupId(id)).await?;
    let servers = api.store.agent_servers(clock::now()).await?;
    let known = |one: &Registered| one.server.link == body.agent_server;
    if !servers.iter().any(known) {
        return Err(unknown_server(&body.agent_server));
    }
    let pin = Pin {
        link: body.agent_server,
        until: None,
    };
    let pins = vec![(GroupId(group.id), pin)];
    api.store.pin_groups(pins).await?;
    find(&api, GroupId(id)).await.map(Json)
}

/// Unpin a group
///
/// It may go to any agent server again, also if it was assigned to one for a while.
#[utoipa::path(
    delete,
    path = "/v1/groups/{id}/pin",
    tag = "groups",
    operation_id = "unpin_group",
    params(("id" = uuid::Uuid, Path, description = "The group.")),
    responses(
        (status = 204, description = "It is not pinned."),
        (status = 404, description = "There is no such group."),
    )
)]
pub(super) async fn unpin(State(api): State<Arc<Api>>, Id(id): Id) -> ApiResult<StatusCode> {
    find(&api, GroupId(id)).await?;
    api.store.unpin_group(GroupId(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

struct Counts {
    agents: BTreeMap<GroupId, u64>,
    connected: BTreeMap<GroupId, u64>,
    /// The links of owners and of pins.
    places: BTreeMap<GroupId, (Option<String>, Option<Pin>)>,
}

impl Counts {
    async fn read(api: &Api) -> ApiResult<Self> {
        let now = clock::now();
        let servers = api.store.agent_servers(now).await?;
        let link = |run| {
            let server = servers.iter().find(|one| Some(one.server.run) == run);
            server.map(|one| one.server.link.clone())
        };
        let placed = api.store.placed_groups(now).await?.into_iter();
        let places = placed.map(|one| (one.group.id, (link(one.owner), one.pin)));
        Ok(Self {
            places: places.collect(),
            agents: api.store.agents_by_group().await?,
            connected: api.engine.connected().await?,
        })
    }

    fn describe(&self, row: groups::Group) -> Group {
        let (agent_server, pin) = self.places.get(&row.id).cloned().unwrap_or_default();
        let (for_good, for_a_while) = match pin {
            Some(pin) if pin.until.is_some() => (None, Some(pin)),
            pin => (pin, None),
        };
        let until = for_a_while.as_ref().and_then(|pin| pin.until);
        Group {
            agent_server,
            pin: for_good.map(|pin| pin.link),
            assigned: for_a_while.map(|pin| pin.link),
            assigned_until: until.map(|until| Timestamp(until.0)),
            id: row.id.0,
            slot: row.slot.0,
            automatic: row.automatic,
            epoch: row.epoch.0,
            agents: self.agents.get(&row.id).copied().unwrap_or(0),
            connected: self.connected.get(&row.id).copied().unwrap_or(0),
            created_at: Timestamp(row.created_at.0),
            name: row.name,
        }
    }
}

fn check_name(name: &str) -> ApiResult<()> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(valid) {
        return Err(ApiError::field(
            "name",
            format!("must be 1 to {NAME_BYTES_MAX} characters of a-z, 0-9, `-`, `_` and `.`"),
        ));
    }
    if name.parse::<GroupId>().is_ok() {
        return Err(ApiError::field(
            "name",
            "must not look like an id; choose a name that people can read",
        ));
    }
    Ok(())
}
