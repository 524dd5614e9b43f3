//! `/v1/webhooks`

pub(super) mod deliveries;
mod input;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::{Extension, Json};
use uuid::Uuid;

use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Body, Id, OptionalBody, Params};
use crate::api::model::webhooks::{
    CreateWebhook, RotateWebhook, UpdateWebhook, Webhook, WebhookFilter, WebhookTest,
    WebhookWithSecret,
};
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::store::webhooks::{
    CreateWebhookError, NewWebhook, Unsettled, WebhookChange, WebhookRow,
};

/// How long a secret that was replaced signs as well, when nobody says.
const OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The longest that it can.
const OVERLAP_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// List webhooks
///
/// Oldest first, without their secrets.
#[utoipa::path(
    get,
    path = "/v1/webhooks",
    tag = "webhooks",
    operation_id = "list_webhooks",
    params(PageParams),
    responses(
        (status = 200, description = "A page of webhooks.", body = Page<Webhook>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<Webhook>>> {
    let (size, after) = params.read("webhooks")?;
    let rows = api.store.webhooks_after(after, size + 1).await?;
    let unsettled = api.store.unsettled_deliveries().await?;
    let tip = api.store.event_span().await?.last;
    let shown = |row: WebhookRow| {
        let unsettled = unsettled.get(&row.id).copied().unwrap_or_default();
        describe(row, unsettled, tip)
    };
    Ok(Json(page::of("webhooks", size, rows, |row| row.id, shown)))
}

/// Make a webhook
///
/// Events are sent as they happen, at least once each, signed as Standard Webhooks 1.0 has it. The
/// answer shows the secret, once.
#[utoipa::path(
    post,
    path = "/v1/webhooks",
    tag = "webhooks",
    operation_id = "create_webhook",
    request_body = CreateWebhook,
    responses(
        (status = 201, description = "Made; its secret is shown once.", body = WebhookWithSecret,
         headers(("Location" = String, description = "The webhook."))),
        (status = 400, description = "A field is not valid."),
        (status = 409, description = "There are too many."),
        (status = 410, description = "The events behind `after` are no longer kept."),
        (status = 422, description = "There is no such agent."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<CreateWebhook>,
) -> ApiResult<(
    StatusCode,
    [(header::HeaderName, String); 1],
    Json<WebhookWithSecret>,
)> {
    input::url(&api, &body.url)?;
    input::events(&body.events)?;
    let filter = body.filter.unwrap_or_default();
    let about = input::filter(&api, filter).await?;
    input::after(&api, body.after).await?;
    let new = NewWebhook {
        url: body.url,
        events: body.events,
        agent: about.agent,
        kind: about.kind,
        tenant: about.tenant,
        description: input::description(body.description)?.unwrap_or_default(),
        secret: input::secret(body.secret.as_deref())?,
        disabled: body.disabled.unwrap_or(false),
        after: body.after,
    };
    let made = api.store.create_webhook(new, clock::now()).await;
    let row = made.map_err(|error| match error {
        CreateWebhookError::TooMany => ApiError::new(Kind::Conflict, format!("{error}.")),
        CreateWebhookError::Store(error) => error.into(),
    })?;
    api.webhooks.changed();
    tracing::info!(webhook = %row.id, by = caller.name, "a webhook was made");
    let location = format!("/v1/webhooks/{}", row.id);
    let made = with_secret(&api, row).await?;
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(made),
    ))
}

/// Show a webhook
#[utoipa::path(
    get,
    path = "/v1/webhooks/{id}",
    tag = "webhooks",
    operation_id = "get_webhook",
    params(("id" = uuid::Uuid, Path, description = "The webhook.")),
    responses(
        (status = 200, description = "The webhook.", body = Webhook),
        (status = 404, description = "There is no such webhook."),
    )
)]
pub(super) async fn show(Reads(api): Reads, Id(id): Id) -> ApiResult<Json<Webhook>> {
    let row = find(&api, id).await?;
    describe_now(&api, row).await.map(Json)
}

/// Change a webhook
///
/// What is absent stays. Enabling one that was disabled goes on with what happens from now on;
/// with `after` it goes on behind that event.
#[utoipa::path(
    patch,
    path = "/v1/webhooks/{id}",
    tag = "webhooks",
    operation_id = "update_webhook",
    params(("id" = uuid::Uuid, Path, description = "The webhook.")),
    request_body = UpdateWebhook,
    responses(
        (status = 200, description = "The webhook as it is now.", body = Webhook),
        (status = 400, description = "A field is not valid."),
        (status = 404, description = "There is no such webhook."),
        (status = 410, description = "The events behind `after` are no longer kept."),
        (status = 422, description = "There is no such agent."),
    )
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Body(body): Body<UpdateWebhook>,
) -> ApiResult<Json<Webhook>> {
    if let Some(url) = &body.url {
        input::url(&api, url)?;
    }
    if let Some(events) = &body.events {
        input::events(events)?;
    }
    let filter = match body.filter {
        Some(filter) => Some(input::filter(&api, filter).await?),
        None => None,
    };
    input::after(&api, body.after).await?;
    let change = WebhookChange {
        url: body.url,
        events: body.events,
        filter,
        description: input::description(body.description)?,
        disabled: body.disabled,
        after: body.after,
    };
    let changed = api.store.update_webhook(id, change, clock::now()).await?;
    let row = changed.ok_or_else(|| unknown(id))?;
    api.webhooks.changed();
    tracing::info!(webhook = %id, by = caller.name, "a webhook was changed");
    describe_now(&api, row).await.map(Json)
}

/// Delete a webhook
///
/// With its deliveries. What is under way may still arrive.
#[utoipa::path(
    delete,
    path = "/v1/webhooks/{id}",
    tag = "webhooks",
    operation_id = "delete_webhook",
    params(("id" = uuid::Uuid, Path, description = "The webhook.")),
    responses(
        (status = 204, description = "Gone."),
        (status = 404, description = "There is no such webhook."),
    )
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> ApiResult<StatusCode> {
    if !api.store.delete_webhook(id).await? {
        return Err(unknown(id));
    }
    api.webhooks.changed();
    tracing::info!(webhook = %id, by = caller.name, "a webhook was deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Give a webhook a new secret
///
/// The answer shows it, once. The one before signs as well for `overlap_seconds`, so that the
/// receiver can be changed in between; the one before that stops at once.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/rotate",
    tag = "webhooks",
    operation_id = "rotate_webhook",
    params(("id" = uuid::Uuid, Path, description = "The webhook.")),
    request_body = RotateWebhook,
    responses(
        (status = 200, description = "The webhook with its new secret.", body = WebhookWithSecret),
        (status = 400, description = "A field is not valid."),
        (status = 404, description = "There is no such webhook."),
    )
)]
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    OptionalBody(body): OptionalBody<RotateWebhook>,
) -> ApiResult<Json<WebhookWithSecret>> {
    let overlap = body.overlap_seconds.map(Duration::from_secs);
    let overlap = overlap.unwrap_or(OVERLAP_DEFAULT);
    if overlap > OVERLAP_MAX {
        let detail = format!(
            "is {}; it must be 0 to {} (7 days)",
            overlap.as_secs(),
            OVERLAP_MAX.as_secs()
        );
        return Err(ApiError::field("overlap_seconds", detail));
    }
    let secret = input::secret(body.secret.as_deref())?;
    let until = clock::now().plus(overlap);
    let row = api.store.rotate_webhook(id, secret, until).await?;
    let row = row.ok_or_else(|| unknown(id))?;
    api.webhooks.changed();
    tracing::info!(webhook = %id, by = caller.name, "a webhook has a new secret");
    with_secret(&api, row).await.map(Json)
}

/// Try a webhook
///
/// Sends a `webhook.test` at once, also to one that is disabled, and tells what came of it. It is no
/// event: it is not repeated and not among the deliveries.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/test",
    tag = "webhooks",
    operation_id = "test_webhook",
    params(("id" = uuid::Uuid, Path, description = "The webhook.")),
    responses(
        (status = 200, description = "What came of it.", body = WebhookTest),
        (status = 404, description = "There is no such webhook."),
    )
)]
pub(super) async fn test(State(api): State<Arc<Api>>, Id(id): Id) -> ApiResult<Json<WebhookTest>> {
    let row = find(&api, id).await?;
    let tested = api.webhooks.test(&row).await.ok_or_else(|| {
        ApiError::new(
            Kind::Unavailable,
            "Too many tests of webhooks are under way; try again in a few seconds.",
        )
        .retry_after(Duration::from_secs(5))
    })?;
    let delivered = matches!(tested.result, Ok(200..=299));
    let error = match &tested.result {
        Ok(_) if delivered => None,
        Ok(status) => Some(format!("the answer was {status}")),
        Err(words) => Some(words.clone()),
    };
    Ok(Json(WebhookTest {
        delivered,
        status: tested.result.ok(),
        took_ms: u64::try_from(tested.took.as_millis()).unwrap_or(u64::MAX),
        error,
    }))
}

async fn find(api: &Api, id: Uuid) -> ApiResult<WebhookRow> {
    api.store.webhook(id).await?.ok_or_else(|| unknown(id))
}

fn unknown(id: Uuid) -> ApiError {
    ApiError::not_found("webhook", &id.to_string(), "/v1/webhooks")
}

async fn with_secret(api: &Api, row: WebhookRow) -> ApiResult<WebhookWithSecret> {
    Ok(WebhookWithSecret {
        secret: row.secret.reveal(),
        webhook: describe_now(api, row).await?,
    })
}

async fn describe_now(api: &Api, row: WebhookRow) -> ApiResult<Webhook> {
    let mut unsettled = api.store.unsettled_deliveries().await?;
    let tip = api.store.event_span().await?.last;
    let unsettled = unsettled.remove(&row.id).unwrap_or_default();
    Ok(describe(row, unsettled, tip))
}

fn describe(row: WebhookRow, unsettled: Unsettled, tip: u64) -> Webhook {
    let now = clock::now();
    let old_until = row.old_secret.map(|(_, until)| until);
    let (disabled_at, disabled_reason) = row
        .disabled
        .map(|disabled| (Timestamp(disabled.at.0), disabled.why))
        .unzip();
    Webhook {
        id: row.id,
        url: row.url,
        events: row.events,
        filter: WebhookFilter {
            agent: row.agent.map(|agent| agent.to_string()),
            kind: row.kind,
            tenant: row.tenant,
        },
        description: row.description,
        disabled: disabled_at.is_some(),
        disabled_at,
        disabled_reason,
        cursor: row.cursor,
        lag: tip.saturating_sub(row.cursor),
        waiting: unsettled.waiting,
        dead: unsettled.dead,
        missed: row.missed,
        failing_since: row.failing_since.map(|at| Timestamp(at.0)),
        old_secret_until: old_until
            .filter(|until| *until > now)
            .map(|until| Timestamp(until.0)),
        created_at: Timestamp(row.created_at.0),
    }
}
