//! `/v1/tokens`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::enrol::JoinToken;

use super::groups;
use crate::api::Api;
use crate::api::extract::{Body, Id, Params};
use crate::api::model::access::{CreateTokens, CreatedToken, CreatedTokens, Token, TokenState};
use crate::api::model::agents::GroupRef;
use crate::api::model::{Page, Timestamp};
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::reads::Reads;
use crate::clock::{self, UnixMs};
use crate::identity::fill_random;
use crate::store::tokens::{JoinTokenRow, SecretHash, TokenUse};

const COUNT_MAX: u32 = 1000;
const TTL_DEFAULT: Duration = Duration::from_secs(15 * 60);
const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// List join tokens
///
/// Oldest first, without their secrets. Used and expired ones are kept for a week.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    tag = "tokens",
    operation_id = "list_tokens",
    params(PageParams),
    responses(
        (status = 200, description = "A page of tokens.", body = Page<Token>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    Reads(api): Reads,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<Token>>> {
    let (size, after) = params.read("tokens")?;
    let rows = api.store.tokens_after(after, size + 1).await?;
    let now = clock::now();
    Ok(Json(page::of(
        "tokens",
        size,
        rows,
        |row| row.id,
        |row| describe(row, now),
    )))
}

/// Make join tokens
///
/// Each lets one machine in, once, within its life. Hand the text to `drover agent join`.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    tag = "tokens",
    operation_id = "create_tokens",
    request_body = CreateTokens,
    responses(
        (status = 201, description = "Made; their text is shown once.", body = CreatedTokens),
        (status = 400, description = "A field is not valid."),
        (status = 422, description = "There is no such group."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Body(body): Body<CreateTokens>,
) -> ApiResult<(StatusCode, Json<CreatedTokens>)> {
    let count = match body.count.unwrap_or(1) {
        count @ 1..=COUNT_MAX => count,
        count => {
            let detail = format!("is {count}; it must be 1 to {COUNT_MAX}");
            return Err(ApiError::field("count", detail));
        }
    };
    let ttl = ttl(body.ttl_seconds)?;
    let purpose = match &body.group {
        Some(text) => TokenUse::Join(groups::resolve(&api, "group", text).await?.id),
        None => TokenUse::JoinAnywhere,
    };
    let tokens = make(&api, count, purpose, ttl).await?;
    Ok((StatusCode::CREATED, Json(CreatedTokens { tokens })))
}

/// Delete a join token
///
/// An agent that came in with it stays.
#[utoipa::path(
    delete,
    path = "/v1/tokens/{id}",
    tag = "tokens",
    operation_id = "delete_token",
    params(("id" = uuid::Uuid, Path, description = "The token's id, not its text.")),
    responses(
        (status = 204, description = "Gone."),
        (status = 404, description = "There is no such token."),
    )
)]
pub(super) async fn delete(State(api): State<Arc<Api>>, Id(id): Id) -> ApiResult<StatusCode> {
    if api.store.delete_token(id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found("token", &id.to_string(), "/v1/tokens"))
    }
}

/// Checks `ttl_seconds`.
pub(super) fn ttl(seconds: Option<u64>) -> ApiResult<Duration> {
    let ttl = seconds.map_or(TTL_DEFAULT, Duration::from_secs);
    if ttl.is_zero() || ttl > TTL_MAX {
        let detail = format!(
            "is {}; it must be 1 to {} (7 days)",
            ttl.as_secs(),
            TTL_MAX.as_secs()
        );
        return Err(ApiError::field("ttl_seconds", detail));
    }
    Ok(ttl)
}

/// Makes tokens and shows their text, the only time.
pub(super) async fn make(
    api: &Api,
    count: u32,
    purpose: TokenUse,
    ttl: Duration,
) -> ApiResult<Vec<CreatedToken>> {
    let mut texts = Vec::new();
    let mut hashes = Vec::new();
    for _ in 0..count {
        let mut secret = [0; 32];
        fill_random(&mut secret)
            .map_err(|error| ApiError::new(Kind::Internal, format!("{error}.")))?;
        hashes.push(SecretHash::of(&secret));
        let ca_key = api.identity.root_key();
        texts.push(JoinToken { ca_key, secret }.to_string());
    }
    let now = clock::now();
    let rows = api
        .store
        .create_tokens(hashes, purpose, now, now.plus(ttl))
        .await?;
    Ok(texts
        .into_iter()
        .zip(rows)
        .map(|(token, row)| CreatedToken {
            token,
            info: describe(row, now),
        })
        .collect())
}

fn describe(row: JoinTokenRow, now: UnixMs) -> Token {
    let state = match row.used_at {
        Some(_) => TokenState::Used,
        None if now >= row.expires_at => TokenState::Expired,
        None => TokenState::Valid,
    };
    Token {
        id: row.id,
        group: row.group.map(|(id, name)| GroupRef { id: id.0, name }),
        rekeys: row.rekeys.map(|agent| agent.0),
        state,
        created_at: Timestamp(row.created_at.0),
        expires_at: Timestamp(row.expires_at.0),
        used_at: row.used_at.map(|at| Timestamp(at.0)),
        used_by: row.used_by.map(|agent| agent.0),
        used_from: row.used_from,
    }
}
