//! `/v1/batches`

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use protocol::ids::ProcessId;
use uuid::Uuid;

use super::process_view::{describe as describe_process, state_filter};
use super::{filters, groups, process_input};
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Body, Id, Params};
use crate::api::model::batches::{Batch, BatchAction, BatchFilter, BatchPreview, CreateBatch};
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::batches::{eligible, id_bound, is_confirmed, matching};
use crate::clock::{self, UnixMs};
use crate::process::STEPS_MAX;
use crate::store::batches::{BatchRow, CreateBatchError, Matching, NewBatch, Range};
use crate::store::pauses::PAUSES_MAX;

/// Processes that a batch acts on, when nobody says.
const MAX_DEFAULT: u32 = 10_000;
/// Processes that a batch acts on at most.
const MAX_MAX: u32 = 1_000_000;
/// Processes a second, when nobody says.
const RATE_DEFAULT: u32 = 50;
/// Processes a second at most.
const RATE_MAX: u32 = 1000;
/// Processes that a dry run shows.
const SAMPLE: usize = 20;
/// Processes that one look counts.
const COUNT_STEP: u32 = 10_000;
/// Bytes of a reason.
const REASON_BYTES_MAX: usize = 256;

/// List batches
///
/// Newest first. The last 1000 are kept.
#[utoipa::path(
    get,
    path = "/v1/batches",
    tag = "batches",
    operation_id = "list_batches",
    params(PageParams),
    responses(
        (status = 200, description = "A page of batches.", body = Page<Batch>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<Batch>>> {
    let (size, before) = params.read("batches")?;
    let rows = api.store.batches_before(before, size + 1).await?;
    Ok(Json(page::of(
        "batches",
        size,
        rows,
        |row| row.id,
        describe,
    )))
}

/// Act on many processes
///
/// On those that match now; what is made later is left alone, and what a retry has started over and
/// fails again too. First with `dry_run`, which writes
/// nothing and says how many match; then with that figure as `confirm`. The batch is durable: it
/// goes on after a restart of the server.
#[utoipa::path(
    post,
    path = "/v1/batches",
    tag = "batches",
    operation_id = "create_batch",
    request_body = CreateBatch,
    responses(
        (status = 200, description = "What it would do (`dry_run`).", body = BatchPreview),
        (status = 201, description = "It runs.", body = Batch,
         headers(("Location" = String, description = "The batch."))),
        (status = 400, description = "A field is not valid."),
        (status = 409, description = "`confirm` is not near what matches now, too many batches run, or \
          there is no room for so many pauses."),
        (status = 422, description = "There is no such agent or group, or nothing matches."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<CreateBatch>,
) -> ApiResult<Response> {
    let max = within("max", body.max, MAX_DEFAULT, MAX_MAX)?;
    let rate = within(
        "rate_per_second",
        body.rate_per_second,
        RATE_DEFAULT,
        RATE_MAX,
    )?;
    let reason = filters::text("reason", body.reason.clone(), REASON_BYTES_MAX)?;
    let filter = check_filter(&api, body.action, &body.filter).await?;
    let dry_run = body.dry_run.unwrap_or(false);
    check_action(&body, dry_run)?;
    if !dry_run && body.confirm.is_none() {
        return Err(ApiError::field(
            "confirm",
            "is missing: ask with `\"dry_run\": true` first, and give the `matched` of its answer",
        ));
    }
    let range = range(&api, &filter).await?;
    let now = clock::now();
    let matching = matching(body.action, &filter, now);
    let (matched, sample) = count(&api, range, &matching).await?;
    if dry_run {
        let sample = api.store.processes_by_ids(sample).await?;
        let preview = BatchPreview {
            matched,
            sample: sample.into_iter().map(describe_process).collect(),
        };
        return Ok(Json(preview).into_response());
    }
    check_confirm(matched, body.confirm.unwrap_or(0))?;
    if body.action == BatchAction::Pause {
        check_room(&api, matched.min(u64::from(max))).await?;
    }
    let new = NewBatch {
        action: body.action,
        step: body.step,
        filter,
        range,
        max,
        rate,
        matched,
        reason: reason.unwrap_or_default(),
        by: caller.name.clone(),
    };
    let made = api.store.create_batch(new, now).await;
    let row = made.map_err(|error| match error {
        CreateBatchError::TooMany => ApiError::new(Kind::Conflict, format!("{error}.")),
        CreateBatchError::Store(error) => error.into(),
    })?;
    api.batch_runner.changed();
    tracing::info!(batch = %row.id, matched, by = caller.name, "a batch was made");
    let location = format!("/v1/batches/{}", row.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(describe(row)),
    )
        .into_response())
}

/// Show a batch
#[utoipa::path(
    get,
    path = "/v1/batches/{id}",
    tag = "batches",
    operation_id = "get_batch",
    params(("id" = uuid::Uuid, Path, description = "The batch.")),
    responses(
        (status = 200, description = "The batch.", body = Batch),
        (status = 404, description = "There is no such batch."),
    )
)]
pub(super) async fn show(Reads(api): Reads, Id(id): Id) -> ApiResult<Json<Batch>> {
    let row = api.store.batch(id).await?;
    row.map(|row| Json(describe(row)))
        .ok_or_else(|| unknown(id))
}

/// Stop a batch
///
/// What it has done until then stays done. One that has ended stays as it is.
#[utoipa::path(
    post,
    path = "/v1/batches/{id}/cancel",
    tag = "batches",
    operation_id = "cancel_batch",
    params(("id" = uuid::Uuid, Path, description = "The batch.")),
    responses(
        (status = 200, description = "The batch as it is now.", body = Batch),
        (status = 404, description = "There is no such batch."),
    )
)]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> ApiResult<Json<Batch>> {
    let row = api.store.cancel_batch(id, clock::now()).await?;
    let row = row.ok_or_else(|| unknown(id))?;
    api.batch_runner.changed();
    tracing::info!(batch = %id, by = caller.name, "a batch was cancelled");
    Ok(Json(describe(row)))
}

fn unknown(id: Uuid) -> ApiError {
    ApiError::not_found("batch", &id.to_string(), "/v1/batches")
}

fn within(field: &str, given: Option<u32>, default: u32, max: u32) -> ApiResult<u32> {
    match given.unwrap_or(default) {
        number if (1..=max).contains(&number) => Ok(number),
        number => Err(ApiError::field(
            field,
            format!("is {number}; it must be 1 to {max}"),
        )),
    }
}

/// What one action needs and others cannot have.
fn check_action(body: &CreateBatch, dry_run: bool) -> ApiResult<()> {
    let replay = body.action == BatchAction::Replay;
    if body.step.is_some() && !replay {
        return Err(ApiError::field(
            "step",
            "is for `replay` only; a retry goes on where each process ended",
        ));
    }
    if let Some(step) = body.step
        && usize::from(step) >= STEPS_MAX
    {
        return Err(ApiError::field(
            "step",
            format!("is {step}; a process has at most {STEPS_MAX} steps, counted from 0"),
        ));
    }
    if replay && body.filter.state.is_none() {
        return Err(ApiError::field(
            "filter.state",
            "is missing: a replay does again what has succeeded as well; say `backoff`, `failed`, \
             `cancelled` or `succeeded`",
        ));
    }
    let said = body.reason.as_deref().map_or("", str::trim);
    if body.action == BatchAction::Pause && said.is_empty() && !dry_run {
        return Err(ApiError::field(
            "reason",
            "is empty; say to others why their work waits",
        ));
    }
    Ok(())
}

/// Whether so many more pauses find room.
async fn check_room(api: &Api, wanted: u64) -> ApiResult<()> {
    let there = api.store.pauses().await?.pauses.len();
    room_for(wanted, u64::try_from(there).unwrap_or(u64::MAX))
}

fn room_for(wanted: u64, there: u64) -> ApiResult<()> {
    let room = u64::from(PAUSES_MAX).saturating_sub(there);
    if wanted <= room {
        return Ok(());
    }
    Err(ApiError::in_field(
        Kind::Conflict,
        "filter",
        format!(
            "leads to {wanted} pauses, and {room} of {PAUSES_MAX} are free; pause the agent, the group, \
             the tenant or the kind instead: that is one pause"
        ),
    ))
}

fn check_confirm(matched: u64, confirm: u64) -> ApiResult<()> {
    if matched == 0 {
        return Err(ApiError::in_field(
            Kind::Unprocessable,
            "filter",
            "matches no process that this action can do something to; nothing was made",
        ));
    }
    if !is_confirmed(matched, confirm) {
        return Err(ApiError::in_field(
            Kind::Conflict,
            "confirm",
            format!(
                "is {confirm}, but {} now; look again with a dry run, and give {matched} if that is what \
                 you want",
                match matched {
                    1 => "1 process matches".to_owned(),
                    more => format!("{more} processes match"),
                }
            ),
        ));
    }
    Ok(())
}

/// The filter with ids instead of names.
async fn check_filter(
    api: &Api,
    action: BatchAction,
    filter: &BatchFilter,
) -> ApiResult<BatchFilter> {
    if let Some(state) = filter.state {
        let states = eligible(action);
        if !states.contains(&state_filter(state)) {
            let names: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
            return Err(ApiError::field(
                "filter.state",
                format!(
                    "is none that this action can do something to: {}",
                    names.join(", ")
                ),
            ));
        }
    }
    for (what, after, before) in [
        ("created", filter.created_after, filter.created_before),
        ("finished", filter.finished_after, filter.finished_before),
    ] {
        if let (Some(after), Some(before)) = (after, before)
            && after >= before
        {
            return Err(ApiError::field(
                &format!("filter.{what}_after"),
                format!("must be before `filter.{what}_before`"),
            ));
        }
    }
    if let Some(tenant) = &filter.tenant {
        process_input::check_name("filter.tenant", "a tenant", tenant)?;
    }
    let agent = filters::agent(api, "filter.agent", filter.agent.as_deref()).await?;
    let group = match &filter.group {
        None => None,
        Some(text) => Some(groups::resolve(api, "filter.group", text).await?.id),
    };
    Ok(BatchFilter {
        agent: agent.map(|agent| agent.to_string()),
        group: group.map(|group| group.to_string()),
        kind: filters::kind("filter.kind", filter.kind.clone())?,
        ..filter.clone()
    })
}

/// The ids that the batch walks over: processes that there are now, made within the given times.
async fn range(api: &Api, filter: &BatchFilter) -> ApiResult<Range> {
    let bound = |at: Timestamp| id_bound(UnixMs(at.0));
    let first = ProcessId(Uuid::nil());
    let newest = api.store.newest_process().await?.unwrap_or(first);
    let before = filter.created_before.map_or(newest, bound);
    Ok(Range {
        after: filter.created_after.map_or(first, bound),
        last: newest.min(before),
    })
}

/// How many match, and the first of them. In steps: each frees its connection and its snapshot.
async fn count(api: &Api, range: Range, matching: &Matching) -> ApiResult<(u64, Vec<ProcessId>)> {
    let (mut matched, mut sample) = (0, Vec::new());
    let mut from = range;
    loop {
        let found = api.store.find_processes(from, matching, COUNT_STEP).await?;
        matched += u64::try_from(found.processes.len()).unwrap_or(0);
        let room = SAMPLE.saturating_sub(sample.len());
        sample.extend(found.processes.into_iter().take(room));
        match found.next {
            Some(next) => from.after = next,
            None => return Ok((matched, sample)),
        }
    }
}

fn describe(row: BatchRow) -> Batch {
    Batch {
        id: row.id,
        action: row.action,
        step: row.step,
        filter: row.filter,
        state: row.state,
        matched: row.matched,
        done: row.done,
        failed: row.failed,
        trouble: row.trouble,
        max: row.max,
        rate_per_second: row.rate,
        reason: row.reason,
        by: row.by,
        created_at: Timestamp(row.created_at.0),
        finished_at: row.finished_at.map(|at| Timestamp(at.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_figure_is_told_with_the_right_one() {
        let detail = |matched| {
            let refused = check_confirm(matched, 30).unwrap_err();
            refused.into_problem().errors.remove(0).detail
        };
        assert!(detail(1).starts_with("is 30, but 1 process matches now;"));
        assert!(detail(20).starts_with("is 30, but 20 processes match now;"));
        assert!(check_confirm(29, 30).is_ok());
    }

    #[test]
    fn more_pauses_than_there_is_room_for_are_refused() {
        assert!(room_for(10, u64::from(PAUSES_MAX) - 10).is_ok());
        let refused = room_for(11, u64::from(PAUSES_MAX) - 10).unwrap_err();
        assert_eq!(refused.status(), 409);
        let problem = refused.into_problem();
        assert!(
            problem.detail.contains("10 of 10000 are free"),
            "{}",
            problem.detail
        );
    }
}
