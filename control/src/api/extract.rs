//! What handlers take out of a request. Everything that does not fit becomes a problem that names
//! the part of the request that is wrong.

use std::time::Duration;

use axum::body::{Bytes, HttpBody as _};
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::problem::{ApiError, ApiResult, Kind};

/// Bytes in a body, unless a route takes more.
pub(super) const BODY_BYTES_MAX: usize = 512 << 10;
/// A body must have arrived within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// A JSON body of at most `LIMIT` bytes.
pub(super) struct Body<T, const LIMIT: usize = BODY_BYTES_MAX>(pub(super) T);

/// A JSON body, or none at all: then the default.
pub(super) struct OptionalBody<T>(pub(super) T);

/// Query parameters; unknown ones are refused where the type says so.
pub(super) struct Params<T>(pub(super) T);

/// The `{id}` of the path.
pub(super) struct Id(pub(super) Uuid);

impl<S: Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for Body<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let bytes = read(request, LIMIT).await?;
        if bytes.is_empty() {
            return Err(ApiError::new(
                Kind::InvalidJson,
                "The body is empty; send a JSON object. /v1/openapi.json describes it.",
            ));
        }
        parse(&bytes).map(Self)
    }
}

impl<S: Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let headers = request.headers().clone();
        let bytes = read(request, BODY_BYTES_MAX).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        check_content_type(&headers)?;
        parse(&bytes).map(Self)
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text
                    .strip_prefix("Failed to deserialize query string: ")
                    .unwrap_or(&text);
                Err(match text.split_once(": ") {
                    Some((field, detail)) => ApiError::field(field, clip(detail)),
                    None => ApiError::field(unknown_field(text).unwrap_or("query"), clip(text)),
                })
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::field("id", "is not valid UTF-8"))?;
        let text = params.iter().find(|(name, _)| *name == "id");
        let text = text.map_or("", |(_, value)| value);
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| ApiError::field("id", format!("`{}` is not a UUID", clip(text))))
    }
}

/// The header `name` as text, if it is there.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> ApiResult<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(ApiError::field(name, "is there more than once"));
    }
    value
        .to_str()
        .map(Some)
        .map_err(|_| ApiError::field(name, "holds characters outside ASCII"))
}

/// Text of a stranger, short enough to be repeated in a message.
pub(super) fn clip(text: &str) -> String {
    const MAX: usize = 200;
    let mut clipped: String = text
        .chars()
        .take(MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MAX).is_some() {
        clipped.push('…');
    }
    clipped
}

fn check_content_type(headers: &HeaderMap) -> ApiResult<()> {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    let json = essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case("+json"));
    if json {
        return Ok(());
    }
    let detail = if value.is_empty() {
        "There is no Content-Type; send `Content-Type: application/json`.".to_owned()
    } else {
        format!(
            "The Content-Type is `{}`; send `Content-Type: application/json`.",
            clip(value)
        )
    };
    Err(ApiError::new(Kind::UnsupportedMediaType, detail))
}

async fn read(request: Request, limit: usize) -> ApiResult<Bytes> {
    let too_large = || {
        ApiError::new(
            Kind::BodyTooLarge,
            format!("The body is larger than {limit} bytes; send less, or in several requests."),
        )
    };
    let body = request.into_body();
    // An honest sender is told before it sends.
    if body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::new(
            Kind::InvalidRequest,
            "The body ended early or could not be read; send it again.",
        )),
        Err(_) => Err(ApiError::new(
            Kind::RequestTimeout,
            format!(
                "The body did not arrive within {} s; send it again, in smaller parts on a slow line.",
                BODY_TIMEOUT.as_secs()
            ),
        )),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    // Otherwise `["hv-1", "exec"]` would be read as the fields of a struct in their order.
    if let Some(b'[' | b'"' | b'n' | b't' | b'f' | b'-' | b'0'..=b'9') =
        bytes.trim_ascii_start().first()
    {
        return Err(ApiError::new(
            Kind::InvalidJson,
            "The body is not a JSON object; send `{…}`. /v1/openapi.json describes it.",
        ));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let text = inner.to_string();
        if inner.is_data() {
            let field = field_name(&path, &text);
            ApiError::in_field(Kind::InvalidJson, &clip(&field), clip(&text))
        } else {
            not_json(&inner)
        }
    })?;
    reader.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::new(
        Kind::InvalidJson,
        format!("The body is not JSON: {}.", clip(&error.to_string())),
    )
}

/// Where in the body the trouble is: the path, and the field in it that should or should not be
/// there.
fn field_name(path: &str, text: &str) -> String {
    let at = if path == "." { "" } else { path };
    let named = unknown_field(text).or_else(|| quoted_after(text, "missing field `"));
    match named {
        Some(name) if at.is_empty() => name.to_owned(),
        // The path may lead to the unknown field already.
        Some(name) if at == name || at.ends_with(&format!(".{name}")) => at.to_owned(),
        Some(name) => format!("{at}.{name}"),
        None if at.is_empty() => "body".to_owned(),
        None => at.to_owned(),
    }
}

fn unknown_field(text: &str) -> Option<&str> {
    quoted_after(text, "unknown field `")
}

fn quoted_after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.strip_prefix(prefix)?.split('`').next()
}
