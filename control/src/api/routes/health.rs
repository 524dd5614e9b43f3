//! The server itself: whether it lives, whether it can work, and its figures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;

use crate::api::model::{Health, HealthCheck};
use crate::api::{Api, accept, figures};
use crate::clock;
use crate::dispatch::Engine;
use crate::store::Store;
use crate::telemetry::metrics::Family;
use crate::telemetry::{protobuf, text};

/// A check that takes longer has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Checks write to the store: asking more often gets the same answer.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);

/// The last answer of `/readyz`. Whoever asks while it is looked for waits for the same one.
#[derive(Default)]
pub(in crate::api) struct Readiness(Mutex<Option<(Instant, Vec<HealthCheck>)>>);

/// Whether the process lives
///
/// Answers as long as the API can answer anything. Restart the server when this fails.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "server",
    responses((status = 200, description = "It lives.", body = Health))
)]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
        checks: Vec::new(),
    })
}

/// Whether the server can do its work
///
/// Checks that the store takes writes and that the process server answers. Send no traffic while
/// this fails.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "server",
    responses(
        (status = 200, description = "It can.", body = Health),
        (status = 503, description = "It cannot; `checks` says why.", body = Health),
    )
)]
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let mut checks = work(&api.store, &api.engine, &api.readiness).await;
    let others = api.ready.iter().flat_map(|ready| ready());
    checks.extend(others.map(|(name, result)| check(name, result)));
    checks.push(if api.stopping.is_cancelled() {
        check("serving", Err("the server is draining".to_owned()))
    } else {
        check("serving", Ok("the API takes requests".to_owned()))
    });
    judged(checks)
}

/// The answer of `/readyz`.
pub(in crate::api) fn judged(checks: Vec<HealthCheck>) -> Response {
    let ok = checks.iter().all(|check| check.ok);
    let (status, word) = if ok {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    };
    let health = Health {
        status: word.to_owned(),
        checks,
    };
    (status, Json(health)).into_response()
}

/// Figures for Prometheus
///
/// The text exposition format, version 0.0.4; or, where the Accept header prefers it, protobuf
/// (`io.prometheus.client.MetricFamily`, delimited), with native histograms beside the classic ones.
/// Everything counts from the start of the server;
/// latencies are histograms, whose percentiles over time, shards and servers Prometheus computes.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses((status = 200, description = "The figures.", content(
        (String = "text/plain"),
        (Vec<u8> = "application/vnd.google.protobuf"),
    )))
)]
pub(super) async fn metrics(State(api): State<Arc<Api>>, asked: HeaderMap) -> Response {
    written(&figures::collect(&api), &asked)
}

/// Figures in the format that was asked for.
pub(in crate::api) fn written(families: &[Family], asked: &HeaderMap) -> Response {
    let (kind, page) = match accept::prefers_protobuf(asked) {
        true => (protobuf::CONTENT_TYPE, protobuf::render(families)),
        false => (text::CONTENT_TYPE, text::render(families).into_bytes()),
    };
    (
        [(header::CONTENT_TYPE, kind), (header::VARY, "accept")],
        page,
    )
        .into_response()
}

/// Whether the store takes writes and the process server answers: what was found last, or just now where that is too
/// long ago.
pub(in crate::api) async fn work(
    of: &Store,
    by: &Engine,
    readiness: &Readiness,
) -> Vec<HealthCheck> {
    let mut last = readiness.0.lock().await;
    let now = clock::monotonic();
    if let Some((at, checks)) = &*last
        && now.saturating_duration_since(*at) < REMEMBERED_FOR
    {
        return checks.clone();
    }
    let checks = vec![store(of).await, gateway(by).await];
    *last = Some((clock::monotonic(), checks.clone()));
    checks
}

async fn store(store: &Store) -> HealthCheck {
    let advice = match store.is_open_to_others() {
        true => "check the database and the way to it",
        false => "check the disk of the data directory",
    };
    let result = match tokio::time::timeout(CHECK_TIMEOUT, store.probe()).await {
        Ok(Ok(())) => Ok("a write was committed to the disk".to_owned()),
        Ok(Err(error)) => Err(format!("{error}; {advice}")),
        Err(_) => Err(format!(
            "a write did not end within {} s; {advice}",
            CHECK_TIMEOUT.as_secs()
        )),
    };
    check("store", result)
}

async fn gateway(engine: &Engine) -> HealthCheck {
    let result = match tokio::time::timeout(CHECK_TIMEOUT, engine.connected()).await {
        Ok(Ok(by_group)) => match engine.stats().store_error {
            None => {
                let connected: u64 = by_group.values().sum();
                Ok(format!(
                    "the process server answers and stores results; agents connected: {connected}"
                ))
            }
            Some(error) => Err(format!("results cannot be stored: {error}")),
        },
        Ok(Err(_)) if engine.is_closed() => Err(
            "it waits for an agent server; is one running, and does link.connect name its link.listen?"
                .to_owned(),
        ),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "the process server did not answer within {} s",
            CHECK_TIMEOUT.as_secs()
        )),
    };
    check("processes", result)
}

/// What was found, either way, in words.
pub(in crate::api) fn check(name: &str, result: Result<String, String>) -> HealthCheck {
    let ok = result.is_ok();
    let (Ok(detail) | Err(detail)) = result;
    HealthCheck {
        name: name.to_owned(),
        ok,
        detail,
    }
}
