//! The server itself: whether it lives, whether it can work, and its figures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::Api;
use crate::api::model::{Health, HealthCheck};
use crate::api::telemetry::{line, summary};
use crate::clock;
use crate::dispatch::EngineStats;

/// A check that takes longer has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Checks write to the store: asking more often gets the same answer.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);

/// The last answer of `/readyz`.
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
    let now = clock::monotonic();
    let remembered = {
        let last = api
            .readiness
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .filter(|(at, _)| now.saturating_duration_since(*at) < REMEMBERED_FOR)
            .map(|(_, checks)| checks.clone())
    };
    let mut checks = match remembered {
        Some(checks) => checks,
        None => {
            let checks = vec![store(&api).await, gateway(&api).await];
            let mut last = api
                .readiness
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *last = Some((now, checks.clone()));
            checks
        }
    };
    checks.push(if api.stopping.is_cancelled() {
        check("serving", Err("the server is draining".to_owned()))
    } else {
        check("serving", Ok("the API takes requests".to_owned()))
    });
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
/// The text exposition format, version 0.0.4. Percentiles are over the life of the server.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses((status = 200, description = "The figures.", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let mut text = String::new();
    for source in &api.metrics {
        source(&mut text);
    }
    api.telemetry.write(&mut text);
    store_figures(&api, &mut text);
    engine_figures(&api, &mut text);
    let format = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, format)], text).into_response()
}

async fn store(api: &Api) -> HealthCheck {
    let result = match tokio::time::timeout(CHECK_TIMEOUT, api.store.probe()).await {
        Ok(Ok(())) => Ok("a write was committed to the disk".to_owned()),
        Ok(Err(error)) => Err(format!("{error}; check the disk of the data directory")),
        Err(_) => Err(format!(
            "a write did not end within {} s; check the disk of the data directory",
            CHECK_TIMEOUT.as_secs()
        )),
    };
    check("store", result)
}

async fn gateway(api: &Api) -> HealthCheck {
    let result = match tokio::time::timeout(CHECK_TIMEOUT, api.engine.connected()).await {
        Ok(Ok(by_group)) => match api.engine.stats().store_error {
            None => {
                let connected: u64 = by_group.values().sum();
                Ok(format!(
                    "the process server answers and stores results; agents connected: {connected}"
                ))
            }
            Some(error) => Err(format!("results cannot be stored: {error}")),
        },
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "the process server did not answer within {} s",
            CHECK_TIMEOUT.as_secs()
        )),
    };
    check("processes", result)
}

/// What was found, either way, in words.
fn check(name: &str, result: Result<String, String>) -> HealthCheck {
    let ok = result.is_ok();
    let (Ok(detail) | Err(detail)) = result;
    HealthCheck {
        name: name.to_owned(),
        ok,
        detail,
    }
}

fn store_figures(api: &Api, out: &mut String) {
    let stats = api.store.stats();
    for (name, help, count) in [
        (
            "drover_store_commits_total",
            "Commits that succeeded.",
            stats.commits,
        ),
        (
            "drover_store_failed_commits_total",
            "Commits that failed.",
            stats.failed_commits,
        ),
        (
            "drover_store_writes_total",
            "Writes in all commits.",
            stats.jobs,
        ),
    ] {
        figure(out, name, help, "counter", count);
    }
    summary(
        out,
        "drover_store_commit_seconds",
        "From the begin of a transaction to the end of its commit.",
        stats.commit.histogram(),
    );
}

fn engine_figures(api: &Api, out: &mut String) {
    let stats = api.engine.stats();
    for (name, help, count) in counters(&stats) {
        figure(out, name, help, "counter", count);
    }
    let gauges = [
        (
            "drover_agents_connected",
            "Agents that have a session.",
            stats.connected,
        ),
        (
            "drover_processes_ready",
            "Processes ready, in the store.",
            stats.ready,
        ),
        (
            "drover_operations_active",
            "Operations claimed or running.",
            stats.active,
        ),
        (
            "drover_link_outbox",
            "Requests that wait for room in the gateway's queue.",
            stats.outbox,
        ),
    ];
    for (name, help, count) in gauges {
        figure(out, name, help, "gauge", count);
    }
    let summaries = [
        (
            "drover_batch_commit_seconds",
            "From handing a batch to the store to its commit.",
            stats.batch.histogram(),
        ),
        (
            "drover_process_start_seconds",
            "From a process's creation to its claim.",
            stats.start.histogram(),
        ),
        (
            "drover_process_total_seconds",
            "From a process's creation to its end.",
            stats.total.histogram(),
        ),
    ];
    for (name, help, histogram) in summaries {
        summary(out, name, help, histogram);
    }
    security_figures(out, &stats.security);
}

/// Name, help, count.
type Counter = (&'static str, &'static str, u64);

fn counters(stats: &EngineStats) -> [Counter; 12] {
    [
        (
            "drover_processes_created_total",
            "Processes made.",
            stats.created,
        ),
        (
            "drover_processes_claimed_total",
            "Claims made.",
            stats.claimed,
        ),
        (
            "drover_processes_succeeded_total",
            "Processes that succeeded.",
            stats.succeeded,
        ),
        (
            "drover_processes_failed_total",
            "Processes that failed.",
            stats.failed,
        ),
        (
            "drover_processes_cancelled_total",
            "Processes that were cancelled.",
            stats.cancelled,
        ),
        (
            "drover_replies_lost_total",
            "Replies that were lost and asked for.",
            stats.unknown,
        ),
        (
            "drover_processes_returned_total",
            "Came back without having been started.",
            stats.returned,
        ),
        (
            "drover_permits_returned_total",
            "Permits given back unused.",
            stats.permits_returned,
        ),
        (
            "drover_stale_words_total",
            "Words about claims that are over.",
            stats.stale,
        ),
        (
            "drover_link_full_total",
            "Requests that found the gateway's queue full.",
            stats.link_full,
        ),
        (
            "drover_enrolments_busy_total",
            "Enrolments turned away at a full queue.",
            stats.enrolments_busy,
        ),
        (
            "drover_failed_batches_total",
            "Batches that the store failed to write.",
            stats.failed_batches,
        ),
    ]
}

fn security_figures(out: &mut String, by_kind: &BTreeMap<&'static str, u64>) {
    let name = "drover_security_events_total";
    line(
        out,
        format_args!("# HELP {name} What gateways refused, by kind."),
    );
    line(out, format_args!("# TYPE {name} counter"));
    for (kind, count) in by_kind {
        line(out, format_args!("{name}{{kind=\"{kind}\"}} {count}"));
    }
}

fn figure(out: &mut String, name: &str, help: &str, kind: &str, value: u64) {
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} {kind}"));
    line(out, format_args!("{name} {value}"));
}
