//! Who may do what: one table of every route, and the check that every request passes.
//!
//! ```text
//!   Authorization: Bearer drvapi_…  ─▶ SHA-256 ─▶ cache (5 s) ─▶ store ─▶ role ≥ the route's
//! ```
//!
//! A route that is not in the table cannot be reached.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use uuid::Uuid;

use super::Api;
use super::extract::header_text;
use super::listener::{Serves, network};
use super::model::access::Role;
use super::problem::{ApiError, ApiResult, Kind};
use crate::clock::{self, UnixMs};
use crate::identity::{IssueError, fill_random};
use crate::store::Store;
use crate::store::api_tokens::{API_TOKENS_MAX, ApiTokenRow};
use crate::store::tokens::SecretHash;

/// API tokens start with this, so that people and secret scanners know them.
const PREFIX: &str = "drvapi_";
/// A token that was found is believed for this long; deletions here take effect at once.
const CACHE_LIFE: Duration = Duration::from_secs(5);
/// Wrong tokens that one address may show in a burst, and then per second.
const FAILURES_BURST: NonZeroU32 = NonZeroU32::new(50).unwrap();
const FAILURES_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).unwrap();
/// The longest Authorization header that is looked at.
const AUTHORIZATION_BYTES_MAX: usize = 256;

/// What a route asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Nothing.
    Public,
    /// A token with at least this role.
    Role(Role),
}

const PUBLIC: Access = Access::Public;
const VIEWER: Access = Access::Role(Role::Viewer);
const OPERATOR: Access = Access::Role(Role::Operator);
const ADMIN: Access = Access::Role(Role::Admin);

/// Every route of the API and who may use it.
pub(super) static ROUTES: &[(Method, &str, Access)] = &[
    (Method::GET, "/healthz", PUBLIC),
    (Method::GET, "/readyz", PUBLIC),
    (Method::GET, "/metrics", VIEWER),
    (Method::GET, "/v1/openapi.json", PUBLIC),
    (Method::GET, "/v1/overview", VIEWER),
    (Method::GET, "/v1/overview/events", VIEWER),
    (Method::GET, "/v1/histograms", VIEWER),
    (Method::GET, "/v1/histograms/{name}", VIEWER),
    (Method::GET, "/v1/agents", VIEWER),
    (Method::GET, "/v1/agents/{id}", VIEWER),
    (Method::POST, "/v1/agents/{id}/revoke", ADMIN),
    (Method::POST, "/v1/agents/{id}/rekey", ADMIN),
    (Method::GET, "/v1/agent-servers", VIEWER),
    (Method::POST, "/v1/agent-servers/{link}/drain", ADMIN),
    (Method::POST, "/v1/agent-servers/{link}/undrain", ADMIN),
    (Method::GET, "/v1/groups", VIEWER),
    (Method::POST, "/v1/groups", ADMIN),
    (Method::GET, "/v1/groups/{id}", VIEWER),
    (Method::PUT, "/v1/groups/{id}/pin", ADMIN),
    (Method::DELETE, "/v1/groups/{id}/pin", ADMIN),
    (Method::POST, "/v1/groups/{id}/assign", ADMIN),
    (Method::POST, "/v1/groups/{id}/drain", ADMIN),
    (Method::POST, "/v1/groups/rebalance", ADMIN),
    (Method::GET, "/v1/tokens", ADMIN),
    (Method::POST, "/v1/tokens", ADMIN),
    (Method::DELETE, "/v1/tokens/{id}", ADMIN),
    (Method::GET, "/v1/api-tokens", ADMIN),
    (Method::POST, "/v1/api-tokens", ADMIN),
    (Method::DELETE, "/v1/api-tokens/{id}", ADMIN),
    (Method::GET, "/v1/processes", VIEWER),
    (Method::POST, "/v1/processes", OPERATOR),
    (Method::GET, "/v1/processes/{id}", VIEWER),
    (Method::GET, "/v1/processes/{id}/events", VIEWER),
    (Method::GET, "/v1/processes/{id}/history", VIEWER),
    (Method::POST, "/v1/processes/{id}/cancel", OPERATOR),
    (Method::POST, "/v1/processes/{id}/retry", OPERATOR),
    (Method::POST, "/v1/processes/{id}/replay", OPERATOR),
    (Method::POST, "/v1/processes/{id}/clone", OPERATOR),
    (Method::POST, "/v1/process-batches", OPERATOR),
    (Method::GET, "/v1/kinds", VIEWER),
    (Method::GET, "/v1/kinds/{name}", VIEWER),
    (Method::GET, "/v1/pauses", VIEWER),
    (Method::POST, "/v1/pauses", OPERATOR),
    (Method::DELETE, "/v1/pauses/{scope}/{key}", OPERATOR),
    (Method::GET, "/v1/limits", VIEWER),
    (Method::GET, "/v1/limits/{scope}/{key}", VIEWER),
    (Method::PUT, "/v1/limits/{scope}/{key}", OPERATOR),
    (Method::DELETE, "/v1/limits/{scope}/{key}", OPERATOR),
    (Method::GET, "/v1/batches", VIEWER),
    (Method::POST, "/v1/batches", OPERATOR),
    (Method::GET, "/v1/batches/{id}", VIEWER),
    (Method::POST, "/v1/batches/{id}/cancel", OPERATOR),
    (Method::GET, "/v1/dead-letters", VIEWER),
    (Method::GET, "/v1/dead-letters/summary", VIEWER),
    (Method::GET, "/v1/events", VIEWER),
    (Method::GET, "/v1/webhooks", OPERATOR),
    (Method::POST, "/v1/webhooks", ADMIN),
    (Method::GET, "/v1/webhooks/{id}", OPERATOR),
    (Method::PATCH, "/v1/webhooks/{id}", ADMIN),
    (Method::DELETE, "/v1/webhooks/{id}", ADMIN),
    (Method::POST, "/v1/webhooks/{id}/rotate", ADMIN),
    (Method::POST, "/v1/webhooks/{id}/test", ADMIN),
    (Method::GET, "/v1/webhooks/{id}/deliveries", OPERATOR),
    (
        Method::POST,
        "/v1/webhooks/{id}/deliveries/{sequence}/redeliver",
        ADMIN,
    ),
];

/// Who is asking.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The token's id: scopes idempotency keys, and names the actor in logs.
    pub(super) token: Uuid,
    /// The token's name.
    pub(super) name: String,
    role: Role,
}

/// Knows tokens and counts their use.
pub(super) struct Auth {
    store: Store,
    cache: Mutex<HashMap<SecretHash, Cached>>,
    used: Mutex<BTreeMap<Uuid, UnixMs>>,
    requests: DefaultKeyedRateLimiter<Uuid>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
}

struct Cached {
    row: Arc<ApiTokenRow>,
    until: Instant,
}

impl Auth {
    /// `per_second` requests for each token, with bursts of twice that.
    pub(super) fn new(store: Store, per_second: NonZeroU32) -> Self {
        let requests =
            Quota::per_second(per_second).allow_burst(per_second.saturating_add(per_second.get()));
        let failures = Quota::per_second(FAILURES_PER_SECOND).allow_burst(FAILURES_BURST);
        Self {
            store,
            cache: Mutex::default(),
            used: Mutex::default(),
            requests: RateLimiter::keyed(requests),
            failures: RateLimiter::keyed(failures),
        }
    }

    /// Finds out who shows this Authorization header.
    async fn authenticate(&self, headers: &HeaderMap, remote: IpAddr) -> ApiResult<Caller> {
        let Some(text) = header_text(headers, "authorization")? else {
            return Err(unauthenticated(
                "There is no Authorization header; send `Authorization: Bearer drvapi_…`.",
            ));
        };
        let token = text
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .filter(|token| token.starts_with(PREFIX) && text.len() <= AUTHORIZATION_BYTES_MAX)
            .ok_or_else(|| {
                unauthenticated(
                    "The Authorization header is not `Bearer drvapi_…`; copy the token again whole.",
                )
            })?;
        let hash = SecretHash::of(token.as_bytes());
        let now = clock::monotonic();
        let row = match self.cached(hash, now) {
            Some(row) => row,
            None => self.look_up(hash, remote, now).await?,
        };
        let wall = clock::now();
        if row.expires_at.is_some_and(|end| wall >= end) {
            return Err(unauthenticated(
                "The API token has expired; an admin can make a new one.",
            ));
        }
        if let Err(denied) = self.requests.check_key(&row.id) {
            let wait = denied.wait_time_from(DefaultClock::default().now());
            return Err(ApiError::new(
                Kind::TooManyRequests,
                "This token is over its request rate; slow down, or send process batches.",
            )
            .over("api.requests_per_second".to_owned())
            .retry_after(wait));
        }
        lock(&self.used).insert(row.id, wall);
        Ok(Caller {
            token: row.id,
            name: row.name.clone(),
            role: row.role,
        })
    }

    fn cached(&self, hash: SecretHash, now: Instant) -> Option<Arc<ApiTokenRow>> {
        let cache = lock(&self.cache);
        cache
            .get(&hash)
            .filter(|entry| entry.until > now)
            .map(|entry| Arc::clone(&entry.row))
    }

    async fn look_up(
        &self,
        hash: SecretHash,
        remote: IpAddr,
        now: Instant,
    ) -> ApiResult<Arc<ApiTokenRow>> {
        if let Some(row) = self.store.find_api_token(hash).await? {
            let row = Arc::new(row);
            let mut cache = lock(&self.cache);
            if cache.len() >= usize::try_from(API_TOKENS_MAX).unwrap_or(usize::MAX) {
                cache.clear();
            }
            let until = now + CACHE_LIFE;
            let entry = Cached { row, until };
            return Ok(Arc::clone(&cache.entry(hash).insert_entry(entry).get().row));
        }
        // Guessing 256 bits is hopeless; this keeps the log and the store quiet.
        if let Err(denied) = self.failures.check_key(&network(remote)) {
            let wait = denied.wait_time_from(DefaultClock::default().now());
            return Err(ApiError::new(
                Kind::TooManyRequests,
                "Too many wrong API tokens from this address; check the token, then try again.",
            )
            .retry_after(wait));
        }
        tracing::warn!(%remote, "an unknown API token was refused");
        Err(unauthenticated(
            "The API token is not known here: it was deleted, or belongs to another deployment.",
        ))
    }

    /// Forgets what is cached of a token.
    pub(super) fn forget(&self, id: Uuid) {
        lock(&self.cache).retain(|_, entry| entry.row.id != id);
    }

    /// Writes down when tokens were used and drops counters of those that rest. Called once in a
    /// while, and before the end.
    pub(super) async fn settle(&self) {
        self.requests.retain_recent();
        self.failures.retain_recent();
        let used = std::mem::take(&mut *lock(&self.used));
        if used.is_empty() {
            return;
        }
        if let Err(error) = self
            .store
            .note_api_tokens_used(used.into_iter().collect())
            .await
        {
            tracing::warn!(%error, "when API tokens were last used was not stored");
        }
    }
}

/// A new token's text: 256 random bits.
pub(super) fn new_token() -> Result<(String, SecretHash), IssueError> {
    let mut secret = [0; 32];
    fill_random(&mut secret)?;
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
    let hash = SecretHash::of(text.as_bytes());
    Ok((text, hash))
}

/// Lets a request through to its handler, or answers it.
pub(super) async fn check(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match allow(&api, &parts).await {
        Ok(caller) => {
            if let Some(caller) = caller {
                parts.extensions.insert(caller);
            }
            next.run(Request::from_parts(parts, body)).await
        }
        Err(error) => error.into_response(),
    }
}

async fn allow(api: &Api, request: &Parts) -> ApiResult<Option<Caller>> {
    let Some(path) = request.extensions.get::<MatchedPath>() else {
        // No such route: the fallback says so.
        return Ok(None);
    };
    let access = access_of(&request.method, path.as_str())?;
    if !is_served(api.serves, path.as_str(), access) {
        return Err(ApiError::new(
            Kind::NotFound,
            format!(
                "{} {} is not served to the public; ask the listener `ui`.",
                request.method,
                path.as_str()
            ),
        ));
    }
    let Access::Role(needed) = access else {
        return Ok(None);
    };
    let remote = request
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |remote| remote.0.ip());
    let caller = api.auth.authenticate(&request.headers, remote).await?;
    if caller.role < needed {
        return Err(ApiError::new(
            Kind::Forbidden,
            format!(
                "This needs the role {needed}; the token `{}` has the role {}. Ask an admin for \
                 another token.",
                caller.name, caller.role
            ),
        ));
    }
    Ok(Some(caller))
}

/// Whether a listener serves a route.
fn is_served(serves: Serves, path: &str, access: Access) -> bool {
    match serves {
        Serves::All | Serves::Admin => true,
        Serves::Public { admin_routes } => path != "/metrics" && (admin_routes || access != ADMIN),
    }
}

/// What a route asks for.
fn access_of(method: &Method, path: &str) -> ApiResult<Access> {
    // HEAD is GET without the body (RFC 9110 §9.3.2).
    let method = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let mut methods = Vec::new();
    for (allowed, at, access) in ROUTES {
        if *at == path {
            if allowed == method {
                return Ok(*access);
            }
            methods.push(allowed.as_str());
        }
    }
    let allowed = methods.join(", ");
    let error = ApiError::new(
        Kind::MethodNotAllowed,
        format!("{path} takes {allowed}, not {method}."),
    );
    Err(match HeaderValue::from_str(&allowed) {
        Ok(value) => error.with_header(header::ALLOW, value),
        Err(_) => error,
    })
}

fn unauthenticated(detail: &str) -> ApiError {
    ApiError::new(Kind::Unauthenticated, detail).with_header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"drover\""),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
