//! The router: every route, and what wraps them all.

mod agent_servers;
mod agents;
mod api_tokens;
mod batches;
mod dead_letters;
mod events;
mod filters;
mod group_moves;
mod groups;
pub(super) mod health;
mod histograms;
mod join_tokens;
mod kinds;
mod limit_eta;
mod limit_view;
mod limits;
mod overview;
mod pauses;
mod process_batches;
mod process_dry_run;
mod process_input;
mod process_limits;
mod process_orders;
mod process_steps;
mod process_view;
mod process_waits;
mod processes;
mod webhooks;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{self, Alone};
use super::extract::clip;
use super::listener::Serves;
use super::problem::{ApiError, Kind};
use super::{Api, Telemetry, access, openapi, reads};
use crate::{clock, dashboard};

/// No handler takes longer; waiting for a process (`Prefer: wait`) ends before.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// The routes with their handlers, and the document that describes them.
fn described() -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(overview::show))
        .routes(routes!(overview::watch))
        .routes(routes!(histograms::list))
        .routes(routes!(histograms::show))
        .routes(routes!(agents::list))
        .routes(routes!(agents::show))
        .routes(routes!(agents::revoke))
        .routes(routes!(agents::rekey))
        .routes(routes!(agent_servers::list))
        .routes(routes!(agent_servers::drain))
        .routes(routes!(agent_servers::undrain))
        .routes(routes!(groups::list, groups::create))
        .routes(routes!(groups::show))
        .routes(routes!(groups::pin, groups::unpin))
        .routes(routes!(group_moves::assign))
        .routes(routes!(group_moves::drain))
        .routes(routes!(group_moves::rebalance))
        .routes(routes!(join_tokens::list, join_tokens::create))
        .routes(routes!(join_tokens::delete))
        .routes(routes!(api_tokens::list, api_tokens::create))
        .routes(routes!(api_tokens::delete))
        .routes(routes!(processes::list, processes::create))
        .routes(routes!(processes::show))
        .routes(routes!(processes::events))
        .routes(routes!(process_orders::history))
        .routes(routes!(process_orders::cancel))
        .routes(routes!(process_orders::retry))
        .routes(routes!(process_orders::replay))
        .routes(routes!(process_orders::clone))
        .routes(routes!(process_batches::create))
        .routes(routes!(kinds::list))
        .routes(routes!(kinds::show))
        .routes(routes!(pauses::list, pauses::create))
        .routes(routes!(pauses::delete))
        .routes(routes!(limits::list))
        .routes(routes!(limits::show, limits::set, limits::delete))
        .routes(routes!(batches::list, batches::create))
        .routes(routes!(batches::show))
        .routes(routes!(batches::cancel))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::summary))
        .routes(routes!(events::stream))
        .routes(routes!(webhooks::list, webhooks::create))
        .routes(routes!(webhooks::show, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::deliveries::list))
        .routes(routes!(webhooks::deliveries::redeliver))
        .split_for_parts()
}

/// The whole API as a service.
pub(super) fn router(api: Arc<Api>) -> Router {
    let (router, document) = described();
    let document = openapi::finish(document);
    let router = router
        .route(
            "/v1/openapi.json",
            get(move || async move { openapi::response(document) }),
        )
        .layer(middleware::from_fn_with_state(
            Arc::clone(&api),
            reads::answer,
        ))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&api),
            access::check,
        ));
    let router = match api.serves {
        Serves::All => router.merge(dashboard::router()),
        Serves::Public { .. } | Serves::Admin => router,
    };
    let telemetry = Arc::clone(&api.telemetry);
    wrapped(router.fallback(not_found), telemetry, api)
}

/// What the admin listener serves: no token is asked for.
pub(super) fn admin_router(api: Arc<Api>) -> Router {
    let router = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(not_for_admin);
    let telemetry = Arc::clone(&api.telemetry);
    wrapped(router, telemetry, api)
}

/// The same where there is no API.
pub(super) fn alone_router(alone: Arc<Alone>) -> Router {
    let router = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(admin::readyz))
        .route("/metrics", get(admin::metrics))
        .fallback(not_for_admin);
    let telemetry = Arc::clone(&alone.telemetry);
    wrapped(router, telemetry, alone)
}

/// Bounded in time, counted, and safe from its handlers' panics.
fn wrapped<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    telemetry: Arc<Telemetry>,
    state: S,
) -> Router {
    router
        .layer(middleware::from_fn(limit_time))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(telemetry, observe))
        .with_state(state)
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        Kind::NotFound,
        format!(
            "There is no {}; /v1/openapi.json lists every route.",
            clip(uri.path())
        ),
    )
}

async fn not_for_admin(uri: Uri) -> ApiError {
    ApiError::new(
        Kind::NotFound,
        format!(
            "There is no {} here; the admin listener has /healthz, /readyz and /metrics, and the API, where this \
             server has one, is where `api.listen` says.",
            clip(uri.path())
        ),
    )
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            Kind::Unavailable,
            format!(
                "The request took longer than {} s and was given up; whether it had an effect is not \
                 known. Repeat it with the same Idempotency-Key.",
                REQUEST_TIMEOUT.as_secs()
            ),
        )
        .into_response(),
    }
}

/// Counts and times a request, and marks the answer.
async fn observe(
    State(telemetry): State<Arc<Telemetry>>,
    request: Request,
    next: Next,
) -> Response {
    let began = clock::monotonic();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let response = next.run(request).await;
    let route = path.as_ref().map(MatchedPath::as_str);
    let took = clock::monotonic() - began;
    telemetry.answered(&method, route, response.status(), took);
    tracing::debug!(status = response.status().as_u16(), ?path, "API request");
    mark(response)
}

/// Marks an answer as nobody else's.
pub(super) fn mark(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that CatchPanicLayer asks for"
)]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let words = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(panic = words, "a handler of the API panicked");
    ApiError::new(
        Kind::Internal,
        "The server met an error of its own; its log has the details. Please report this.",
    )
    .into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use tower::ServiceExt as _;

    use crate::api::access::ROUTES;
    use crate::api::model::Problem;

    /// `GET /v1/agents`, … of the OpenAPI document.
    fn documented() -> BTreeSet<String> {
        let document = openapi::finish(described().1);
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        let paths = document["paths"].as_object().unwrap();
        paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect()
    }

    #[tokio::test]
    async fn a_handler_that_panics_answers_with_a_problem() {
        async fn fails() {
            panic!("of all things");
        }
        let router: Router = Router::new()
            .route("/", get(fails))
            .layer(CatchPanicLayer::custom(panicked));
        let request = Request::new(axum::body::Body::empty());
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 4096)
            .await
            .unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.kind, "urn:drover:problem:internal");
        assert!(
            !problem.detail.contains("of all things"),
            "strangers learn nothing"
        );
    }

    #[test]
    fn the_table_of_roles_and_the_openapi_document_name_the_same_routes() {
        let table: BTreeSet<_> = ROUTES
            .iter()
            .map(|(method, path, _)| format!("{method} {path}"))
            .collect();
        assert_eq!(table.len(), ROUTES.len(), "no route is twice in the table");
        assert_eq!(documented(), table);
    }
}
