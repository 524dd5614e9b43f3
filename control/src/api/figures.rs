//! Everything that `/metrics` tells, by name.

use std::collections::BTreeMap;

use super::{Api, listener};
use crate::dispatch::{Engine, EngineStats};
use crate::store::replicas::ReplicasStats;
use crate::store::{Store, StoreStats};
use crate::telemetry::metrics::{Family, Kind, Value};

/// The figures of the whole program.
pub(super) fn collect(api: &Api) -> Vec<Family> {
    let mut families = Vec::new();
    for source in &api.metrics {
        source(&mut families);
    }
    families.extend(api.telemetry.families());
    families.extend(listener::families(&api.doors));
    families.extend(of_work(&api.store, &api.engine));
    let replicas = api.store.replicas();
    let replicas = replicas.map(|replicas| of_replicas(&replicas.stats()));
    families.extend(replicas.into_iter().flatten());
    families
}

/// The figures of the store and of the process servers here.
pub(super) fn of_work(of: &Store, by: &Engine) -> impl Iterator<Item = Family> + use<> {
    store(of.stats()).into_iter().chain(engine(by.stats()))
}

fn store(stats: StoreStats) -> [Family; 6] {
    let counter = |name, help, count| Family::number(Kind::Counter, name, help, count);
    [
        counter(
            "drover_store_commits_total",
            "Commits that succeeded.",
            stats.commits,
        ),
        counter(
            "drover_store_failed_commits_total",
            "Commits that failed.",
            stats.failed_commits,
        ),
        counter(
            "drover_store_writes_total",
            "Writes in all commits.",
            stats.jobs,
        ),
        counter(
            "drover_store_reads_total",
            "Read-only connections taken, each for one read or a few.",
            stats.reads,
        ),
        Family::times(
            "drover_store_commit_seconds",
            "From the begin of a transaction to the end of its commit.",
            stats.commit,
        ),
        clocks(stats.clock_offset_ms),
    ]
}

/// `offset`: how much later it is by the database.
fn clocks(offset: i64) -> Family {
    let way = |way: &str| vec![("way", way.to_owned())];
    let (behind, ahead) = (offset.max(0), offset.min(0));
    Family::new(
        Kind::Gauge,
        "drover_store_clock_offset_milliseconds",
        "How far this machine's clock is `ahead` of the database's, or `behind` it; 0 with SQLite.",
    )
    .with(way("ahead"), Value::Number(ahead.unsigned_abs()))
    .with(way("behind"), Value::Number(behind.unsigned_abs()))
}

fn of_replicas(stats: &ReplicasStats) -> [Family; 4] {
    let mut reads = Family::new(
        Kind::Counter,
        "drover_api_reads_total",
        "Requests that replicas may answer, by where they were read: `primary`, or a replica.",
    );
    let at = |place: &str| vec![("place", place.to_owned())];
    reads = reads.with(at("primary"), Value::Number(stats.primary));
    let mut fallbacks = Family::new(
        Kind::Counter,
        "drover_api_read_fallbacks_total",
        "Of these, answered by the primary because no replica was up, young enough (`old`), far enough (`behind`), or \
         because one has failed.",
    );
    for (why, count) in stats.fallbacks {
        fallbacks = fallbacks.with(vec![("why", why.to_owned())], Value::Number(count));
    }
    let mut up = Family::new(
        Kind::Gauge,
        "drover_replica_up",
        "Whether a replica of the store can be read from.",
    );
    let mut age = Family::new(
        Kind::Gauge,
        "drover_replica_age_milliseconds",
        "What a replica lacks is no older than this; without a figure it is older than store_read_max_age.",
    );
    for replica in &stats.replicas {
        let place = || at(&replica.url);
        reads = reads.with(place(), Value::Number(replica.reads));
        up = up.with(place(), Value::Number(u64::from(replica.up)));
        if let Some(found) = replica.age {
            let milliseconds = u64::try_from(found.as_millis()).unwrap_or(u64::MAX);
            age = age.with(place(), Value::Number(milliseconds));
        }
    }
    [reads, fallbacks, up, age]
}

fn engine(stats: EngineStats) -> Vec<Family> {
    let named = |kind| move |(name, help, count)| Family::number(kind, name, help, count);
    let counters = counters(&stats).map(named(Kind::Counter));
    let gauges = gauges(&stats).map(named(Kind::Gauge));
    let security = security(&stats.security);
    let times = [
        (
            "drover_batch_commit_seconds",
            "From handing a batch to the store to its commit.",
            stats.batch,
        ),
        (
            "drover_command_queue_seconds",
            "From a process becoming ready to its claim.",
            stats.queue,
        ),
        (
            "drover_process_start_seconds",
            "From a process's creation to its claim.",
            stats.start,
        ),
        (
            "drover_process_total_seconds",
            "From a process's creation to its end.",
            stats.total,
        ),
    ];
    let times = times.map(|(name, help, times)| Family::times(name, help, times));
    let all = counters.into_iter().chain(gauges).chain(times);
    all.chain([security]).collect()
}

/// Name, help, count.
type Figure = (&'static str, &'static str, u64);

fn counters(stats: &EngineStats) -> [Figure; 13] {
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
            "drover_retries_deferred_total",
            "Retries that waited because their budget was empty.",
            stats.deferred,
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

/// What each server says alike ends with `of the whole deployment`, for whoever might add it up.
fn gauges(stats: &EngineStats) -> [Figure; 5] {
    [
        (
            "drover_agents_connected",
            "Agents that have a session, of the whole deployment.",
            stats.connected,
        ),
        (
            "drover_processes_ready",
            "Processes ready, of the whole deployment.",
            stats.ready,
        ),
        (
            "drover_operations_active",
            "Operations claimed or running, of the process servers here.",
            stats.active,
        ),
        (
            "drover_process_servers",
            "Process servers on the store that are alive, of the whole deployment.",
            stats.servers,
        ),
        (
            "drover_link_outbox",
            "Requests that wait for room in the gateway's queue.",
            stats.outbox,
        ),
    ]
}

fn security(by_kind: &BTreeMap<&'static str, u64>) -> Family {
    let mut family = Family::new(
        Kind::Counter,
        "drover_security_events_total",
        "What gateways refused, by kind.",
    );
    for (kind, count) in by_kind {
        family = family.with(vec![("kind", (*kind).to_owned())], Value::Number(*count));
    }
    family
}
