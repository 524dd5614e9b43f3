//! Errors as people and programs get them: RFC 9457.
//!
//! Every kind is one line in [`Kind::facts`]; its name is the stable part of `type`.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::model::{FieldProblem, Problem};
use crate::dispatch::EngineError;
use crate::store::StoreError;

/// Problem types start with this.
const URN: &str = "urn:drover:problem:";
/// The media type of RFC 9457.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// The constant part of a kind.
struct Facts {
    name: &'static str,
    status: u16,
    title: &'static str,
    retryable: bool,
}

macro_rules! kinds {
    ($($name:ident = $status:literal, $text:literal, $title:literal, $retryable:literal;)*) => {
        /// What kind of problem.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Kind { $($name,)* }

        impl Kind {
            fn facts(self) -> Facts {
                match self {
                    $(Self::$name => Facts {
                        name: $text,
                        status: $status,
                        title: $title,
                        retryable: $retryable,
                    },)*
                }
            }
        }
    };
}

// Kind, status, name, title, whether the very same request may succeed later.
kinds! {
    InvalidRequest = 400, "invalid-request", "The request is not valid", false;
    InvalidJson = 400, "invalid-json", "The body is not the expected JSON", false;
    IdempotencyKeyMissing = 400, "idempotency-key-missing", "The Idempotency-Key header is missing", false;
    Unauthenticated = 401, "unauthenticated", "A valid API token is needed", false;
    Forbidden = 403, "forbidden", "The role is not enough", false;
    NotFound = 404, "not-found", "There is no such thing", false;
    MethodNotAllowed = 405, "method-not-allowed", "The method is not allowed here", false;
    RequestTimeout = 408, "request-timeout", "The request did not arrive in time", true;
    Conflict = 409, "conflict", "The state does not allow it", false;
    NotKept = 410, "not-kept", "What was asked for is no longer kept", false;
    EventsTrimmed = 410, "events-trimmed", "The events asked for are no longer kept", false;
    BodyTooLarge = 413, "body-too-large", "The body is too large", false;
    UnsupportedMediaType = 415, "unsupported-media-type", "The body must be JSON", false;
    Unprocessable = 422, "unprocessable", "The request names something that cannot be used", false;
    IdempotencyKeyReused = 422, "idempotency-key-reused", "The key was used for another request", false;
    TooManyRequests = 429, "too-many-requests", "Too many requests", true;
    Internal = 500, "internal", "The server met an error of its own", false;
    Unavailable = 503, "unavailable", "The server cannot do this now", true;
}

/// A problem on its way out.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    problem: Box<Problem>,
    header: Option<(HeaderName, HeaderValue)>,
}

/// What a handler answers.
pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// A problem; `detail` says what is wrong this time and what to do next.
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let facts = kind.facts();
        Self {
            problem: Box::new(Problem {
                kind: format!("{URN}{}", facts.name),
                title: facts.title.to_owned(),
                status: facts.status,
                detail: detail.into(),
                retryable: facts.retryable,
                limit: None,
                errors: Vec::new(),
            }),
            header: None,
        }
    }

    /// One part of the request is wrong.
    pub(super) fn field(field: &str, detail: impl Into<String>) -> Self {
        Self::in_field(Kind::InvalidRequest, field, detail)
    }

    /// A problem of `kind` with one part of the request.
    pub(super) fn in_field(kind: Kind, field: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut error = Self::new(kind, format!("`{field}`: {detail}"));
        error.problem.errors.push(FieldProblem {
            field: field.to_owned(),
            detail,
        });
        error
    }

    /// There is no `what` with this id.
    pub(super) fn not_found(what: &str, id: &str, list: &str) -> Self {
        let detail = format!("There is no {what} `{id}`; GET {list} lists those that there are.");
        Self::new(Kind::NotFound, detail)
    }

    /// This limit, a key of the configuration, is exhausted.
    #[must_use]
    pub(super) fn over(mut self, limit: String) -> Self {
        self.problem.limit = Some(limit);
        self
    }

    /// Try again after `wait`.
    #[must_use]
    pub(super) fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs().max(1);
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// With one more header.
    #[must_use]
    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    /// The HTTP status.
    pub(super) fn status(&self) -> u16 {
        self.problem.status
    }

    /// The problem itself, for a batch's item.
    pub(super) fn into_problem(self) -> Problem {
        *self.problem
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy | StoreError::Stopped => {
                Self::new(Kind::Unavailable, format!("{error}."))
                    .retry_after(Duration::from_secs(1))
            }
            StoreError::Unreachable | StoreError::Doubtful => {
                tracing::warn!(%error, "a request failed in the store");
                Self::new(Kind::Unavailable, format!("{error}."))
                    .retry_after(Duration::from_secs(5))
            }
            StoreError::Sql(_) | StoreError::JobPanicked | StoreError::BadRow(_) => {
                // The details are for operators, not for whoever can reach the API.
                tracing::error!(%error, "a request failed in the store");
                Self::new(
                    Kind::Internal,
                    "The store failed; nothing was changed. The server's log says more: look for \
                     `a request failed in the store`.",
                )
            }
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => error.into(),
            EngineError::Busy | EngineError::Stopped => {
                Self::new(Kind::Unavailable, format!("{error}."))
                    .retry_after(Duration::from_secs(1))
            }
        }
    }
}
