//! `/v1/dead-letters`

use std::fmt;
use std::str::FromStr;

use axum::Json;
use protocol::ids::ProcessId;
use serde::Deserialize;

use super::process_view::describe;
use super::{filters, groups, process_input};
use crate::api::Api;
use crate::api::extract::Params;
use crate::api::model::dead_letters::{DeadLetterGroup, DeadLetters};
use crate::api::model::processes::{OutcomeStatus, Process};
use crate::api::model::{Page, Timestamp};
use crate::api::page;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::reads::Reads;
use crate::clock::UnixMs;
use crate::store::dead_letters::{DeadCursor, DeadFilter, DeadGroup};
use crate::store::queries::ProcessRecord;

/// Which dead letters, which page.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    /// Only for this agent (id or hostname).
    agent: Option<String>,
    /// Only for agents of this group (id or name).
    group: Option<String>,
    /// Only of this kind.
    kind: Option<String>,
    /// Only of this tenant.
    tenant: Option<String>,
    /// Only those that ended like this.
    outcome: Option<OutcomeStatus>,
    /// Only those at which people must look, or only the others.
    needs_attention: Option<bool>,
    /// Only those that failed at or after this.
    finished_after: Option<Timestamp>,
    /// Only those that failed before this.
    finished_before: Option<Timestamp>,
    /// Items on a page, 1–500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    page_size: Option<u32>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

/// Which dead letters are counted.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct SummaryParams {
    /// Only for this agent (id or hostname).
    agent: Option<String>,
    /// Only for agents of this group (id or name).
    group: Option<String>,
    /// Only of this kind.
    kind: Option<String>,
    /// Only of this tenant.
    tenant: Option<String>,
    /// Only those that failed at or after this.
    finished_after: Option<Timestamp>,
    /// Only those that failed before this.
    finished_before: Option<Timestamp>,
}

/// List dead letters
///
/// Processes that have failed and were not started over since, the last that failed first. They keep
/// their input for a week. A retry takes one off the list, a batch with the action `redrive` many.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    tag = "dead-letters",
    operation_id = "list_dead_letters",
    params(ListParams),
    responses(
        (status = 200, description = "A page of processes.", body = Page<Process>),
        (status = 400, description = "A parameter is not valid."),
        (status = 422, description = "There is no such agent or group."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<ListParams>,
) -> ApiResult<Json<Page<Process>>> {
    let (size, after) = page::read::<Place>(
        "dead-letters",
        params.page_size,
        params.page_token.as_deref(),
    )?;
    let filter = DeadFilter {
        outcome: params.outcome.and_then(word),
        needs_attention: params.needs_attention,
        ..check(
            &api,
            SummaryParams {
                agent: params.agent,
                group: params.group,
                kind: params.kind,
                tenant: params.tenant,
                finished_after: params.finished_after,
                finished_before: params.finished_before,
            },
        )
        .await?
    };
    let rows = api
        .store
        .dead_letters(&filter, after.map(|place| place.0), size + 1)
        .await?;
    let page = page::of("dead-letters", size, rows, Place::of, describe);
    Ok(Json(page))
}

/// Count dead letters
///
/// By kind, by how they ended, and by whether people must look; with what the last of each said.
#[utoipa::path(
    get,
    path = "/v1/dead-letters/summary",
    tag = "dead-letters",
    operation_id = "summarize_dead_letters",
    params(SummaryParams),
    responses(
        (status = 200, description = "The groups.", body = DeadLetters),
        (status = 400, description = "A parameter is not valid."),
        (status = 422, description = "There is no such agent or group."),
    )
)]
pub(super) async fn summary(
    Reads(api): Reads,
    Params(params): Params<SummaryParams>,
) -> ApiResult<Json<DeadLetters>> {
    let filter = check(&api, params).await?;
    let (groups, more) = api.store.count_dead_letters(&filter).await?;
    Ok(Json(DeadLetters {
        counted: groups.iter().map(|group| group.count).sum(),
        more,
        groups: groups.into_iter().map(describe_group).collect(),
    }))
}

async fn check(api: &Api, params: SummaryParams) -> ApiResult<DeadFilter> {
    if let (Some(after), Some(before)) = (params.finished_after, params.finished_before)
        && after >= before
    {
        return Err(ApiError::field(
            "finished_after",
            "must be before `finished_before`",
        ));
    }
    if let Some(tenant) = &params.tenant {
        process_input::check_name("tenant", "a tenant", tenant)?;
    }
    let group = match &params.group {
        None => None,
        Some(text) => Some(groups::resolve(api, "group", text).await?.id),
    };
    Ok(DeadFilter {
        agent: filters::agent(api, "agent", params.agent.as_deref()).await?,
        group,
        kind: filters::kind("kind", params.kind)?,
        tenant: params.tenant,
        finished_after: params.finished_after.map(|at| UnixMs(at.0)),
        finished_before: params.finished_before.map(|at| UnixMs(at.0)),
        ..DeadFilter::default()
    })
}

fn describe_group(group: DeadGroup) -> DeadLetterGroup {
    let outcome = group.outcome.map(serde_json::Value::String);
    DeadLetterGroup {
        kind: group.kind,
        outcome: outcome.and_then(|word| serde_json::from_value(word).ok()),
        needs_attention: group.needs_attention,
        count: group.count,
        agents: u64::try_from(group.agents.len()).unwrap_or(u64::MAX),
        oldest_at: Timestamp(group.oldest_at.0),
        newest_at: Timestamp(group.newest.finished_at.0),
        newest: group.newest.id.0,
        message: group.message,
    }
}

/// The status as the store has it.
fn word(status: OutcomeStatus) -> Option<String> {
    let word = serde_json::to_value(status).ok()?;
    word.as_str().map(str::to_owned)
}

/// A place in the list, as its page token has it.
struct Place(DeadCursor);

impl Place {
    fn of(record: &ProcessRecord) -> Self {
        Self(DeadCursor {
            finished_at: record.finished_at.unwrap_or(record.created_at),
            id: record.id,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.finished_at.0, self.0.id)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, id) = text.split_once('/').ok_or(())?;
        Ok(Self(DeadCursor {
            finished_at: UnixMs(at.parse().map_err(|_| ())?),
            id: ProcessId(id.parse().map_err(|_| ())?),
        }))
    }
}
