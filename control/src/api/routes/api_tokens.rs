//! `/v1/api-tokens`

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use protocol::limits::NAME_BYTES_MAX;

use crate::api::Api;
use crate::api::access::{self, Caller};
use crate::api::extract::{Body, Id, Params};
use crate::api::model::access::{ApiToken, CreateApiToken, CreatedApiToken};
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock;
use crate::store::api_tokens::{ApiTokenRow, CreateApiTokenError, Deleted};

const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// List API tokens
///
/// Oldest first, without their secrets.
#[utoipa::path(
    get,
    path = "/v1/api-tokens",
    tag = "api-tokens",
    operation_id = "list_api_tokens",
    params(PageParams),
    responses(
        (status = 200, description = "A page of tokens.", body = Page<ApiToken>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<ApiToken>>> {
    let (size, after) = params.read("api-tokens")?;
    let rows = api.store.api_tokens_after(after, size + 1).await?;
    Ok(Json(page::of(
        "api-tokens",
        size,
        rows,
        |row| row.id,
        describe,
    )))
}

/// Make an API token
#[utoipa::path(
    post,
    path = "/v1/api-tokens",
    tag = "api-tokens",
    operation_id = "create_api_token",
    request_body = CreateApiToken,
    responses(
        (status = 201, description = "Made; its text is shown once.", body = CreatedApiToken),
        (status = 400, description = "A field is not valid."),
        (status = 409, description = "There are too many."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<CreateApiToken>,
) -> ApiResult<(StatusCode, Json<CreatedApiToken>)> {
    if body.name.trim().is_empty()
        || body.name.len() > NAME_BYTES_MAX
        || body.name.chars().any(char::is_control)
    {
        return Err(ApiError::field(
            "name",
            format!("must be 1 to {NAME_BYTES_MAX} bytes of text without control characters"),
        ));
    }
    let now = clock::now();
    let expires_at = match body.ttl_seconds.map(Duration::from_secs) {
        None => None,
        Some(ttl) if !ttl.is_zero() && ttl <= TTL_MAX => Some(now.plus(ttl)),
        Some(ttl) => {
            let detail = format!(
                "is {}; it must be 1 to {} (10 years)",
                ttl.as_secs(),
                TTL_MAX.as_secs()
            );
            return Err(ApiError::field("ttl_seconds", detail));
        }
    };
    let (token, hash) =
        access::new_token().map_err(|error| ApiError::new(Kind::Internal, format!("{error}.")))?;
    let row = api
        .store
        .create_api_token(hash, body.name, body.role, now, expires_at)
        .await
        .map_err(|error| match error {
            CreateApiTokenError::TooMany => ApiError::new(Kind::Conflict, format!("{error}.")),
            CreateApiTokenError::Store(error) => error.into(),
        })?;
    tracing::info!(id = %row.id, name = row.name, role = %row.role, by = caller.name, "an API token was made");
    let info = describe(row);
    Ok((StatusCode::CREATED, Json(CreatedApiToken { token, info })))
}

/// Delete an API token
///
/// It stops working at once. The last admin token without an end cannot be deleted.
#[utoipa::path(
    delete,
    path = "/v1/api-tokens/{id}",
    tag = "api-tokens",
    operation_id = "delete_api_token",
    params(("id" = uuid::Uuid, Path, description = "The token's id, not its text.")),
    responses(
        (status = 204, description = "Gone."),
        (status = 404, description = "There is no such token."),
        (status = 409, description = "It is the last admin token."),
    )
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> ApiResult<StatusCode> {
    let deleted = api.store.delete_api_token(id).await?;
    api.auth.forget(id);
    match deleted {
        Deleted::Now => {
            tracing::info!(%id, by = caller.name, "an API token was deleted");
            Ok(StatusCode::NO_CONTENT)
        }
        Deleted::Unknown => Err(ApiError::not_found(
            "API token",
            &id.to_string(),
            "/v1/api-tokens",
        )),
        Deleted::LastAdmin => Err(ApiError::new(
            Kind::Conflict,
            "This is the last admin token that never ends: without it nobody could let anyone in. \
             Make another one first (POST /v1/api-tokens).",
        )),
    }
}

fn describe(row: ApiTokenRow) -> ApiToken {
    ApiToken {
        id: row.id,
        name: row.name,
        role: row.role,
        created_at: Timestamp(row.created_at.0),
        expires_at: row.expires_at.map(|at| Timestamp(at.0)),
        last_used_at: row.last_used_at.map(|at| Timestamp(at.0)),
    }
}
