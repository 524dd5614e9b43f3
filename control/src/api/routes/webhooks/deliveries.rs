//! `/v1/webhooks/{id}/deliveries`

use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::{Extension, Json};
use serde::Deserialize;
use uuid::Uuid;

use super::find;
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::{Id, Params, clip};
use crate::api::model::webhooks::{WebhookDelivery, WebhookDeliveryState};
use crate::api::model::{Page, Timestamp};
use crate::api::page;
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::store::webhooks::{DeliveryRow, DeliveryState, Redelivery};
use crate::webhooks::message_id;

/// Which deliveries, which page.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(in crate::api::routes) struct ListParams {
    /// Only in this state.
    state: Option<WebhookDeliveryState>,
    /// Items on a page, 1–500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    page_size: Option<u32>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

/// List a webhook's deliveries
///
/// The newest event first: those that wait for another attempt, those that were given up (the last
/// 1000), and the last 100 that succeeded.
#[utoipa::path(
    get,
    path = "/v1/webhooks/{id}/deliveries",
    tag = "webhooks",
    operation_id = "list_webhook_deliveries",
    params(("id" = uuid::Uuid, Path, description = "The webhook."), ListParams),
    responses(
        (status = 200, description = "A page of deliveries.", body = Page<WebhookDelivery>),
        (status = 400, description = "A parameter is not valid."),
        (status = 404, description = "There is no such webhook."),
    )
)]
pub(in crate::api::routes) async fn list(
    Reads(api): Reads,
    Id(id): Id,
    Params(params): Params<ListParams>,
) -> ApiResult<Json<Page<WebhookDelivery>>> {
    let (size, before) = page::read(
        "webhook-deliveries",
        params.page_size,
        params.page_token.as_deref(),
    )?;
    let state = params.state.map(|state| match state {
        WebhookDeliveryState::Waiting => DeliveryState::Waiting,
        WebhookDeliveryState::Succeeded => DeliveryState::Succeeded,
        WebhookDeliveryState::Dead => DeliveryState::Dead,
    });
    find(&api, id).await?;
    let rows = api
        .store
        .webhook_deliveries(id, state, before, size + 1)
        .await?;
    let shown = |row| describe(id, row);
    Ok(Json(page::of(
        "webhook-deliveries",
        size,
        rows,
        |row| row.seq,
        shown,
    )))
}

/// Deliver an event again
///
/// At once, whatever became of it before, with the same `webhook-id`; the three days until it is
/// given up begin anew.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/deliveries/{sequence}/redeliver",
    tag = "webhooks",
    operation_id = "redeliver_webhook_delivery",
    params(
        ("id" = uuid::Uuid, Path, description = "The webhook."),
        ("sequence" = u64, Path, description = "The event's sequence."),
    ),
    responses(
        (status = 202, description = "Its attempt follows.", body = WebhookDelivery),
        (status = 404, description = "There is no such webhook, or it has no such delivery."),
        (status = 409, description = "The webhook is disabled."),
    )
)]
pub(in crate::api::routes) async fn redeliver(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Sequence(sequence): Sequence,
) -> ApiResult<(StatusCode, Json<WebhookDelivery>)> {
    if find(&api, id).await?.disabled.is_some() {
        return Err(ApiError::new(
            Kind::Conflict,
            "The webhook is disabled; enable it first (PATCH with `\"disabled\": false`).",
        ));
    }
    match api.store.redeliver(id, sequence, clock::now()).await? {
        Redelivery::Waiting(row) => {
            api.webhooks.changed();
            tracing::info!(webhook = %id, sequence, by = caller.name, "a delivery is repeated");
            Ok((StatusCode::ACCEPTED, Json(describe(id, *row))))
        }
        Redelivery::Unknown => Err(ApiError::not_found(
            "delivery",
            &sequence.to_string(),
            &format!("/v1/webhooks/{id}/deliveries"),
        )),
    }
}

/// The `{sequence}` of the path.
pub(in crate::api::routes) struct Sequence(u64);

impl<S: Send + Sync> FromRequestParts<S> for Sequence {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::field("sequence", "is not valid UTF-8"))?;
        let text = params.iter().find(|(name, _)| *name == "sequence");
        let text = text.map_or("", |(_, value)| value);
        text.parse().map(Self).map_err(|_| {
            let detail = format!(
                "`{}` is not an event's sequence, a whole number",
                clip(text)
            );
            ApiError::field("sequence", detail)
        })
    }
}

fn describe(webhook: Uuid, row: DeliveryRow) -> WebhookDelivery {
    WebhookDelivery {
        sequence: row.seq,
        message_id: message_id(webhook, row.seq),
        kind: row.name,
        state: match row.state {
            DeliveryState::Waiting => WebhookDeliveryState::Waiting,
            DeliveryState::Succeeded => WebhookDeliveryState::Succeeded,
            DeliveryState::Dead => WebhookDeliveryState::Dead,
        },
        attempts: row.attempts,
        status: row.status,
        took_ms: row.took_ms,
        error: row.error,
        first_at: Timestamp(row.first_at.0),
        last_at: Timestamp(row.last_at.0),
        next_at: row.next_at.map(|at| Timestamp(at.0)),
    }
}
