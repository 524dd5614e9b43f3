//! The deployment at a glance: put together at most once a second, however many look.
//!
//! ```text
//!   process server's counts ─────────────────────────────────────┐
//!   store: names, newest failures (when their number has risen) ─┼─▶ Overview ─▶ JSON, shared
//!   figures of the gateway ──────────────────────────────────────┘
//! ```

mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use protocol::ids::{GroupId, ShardId};
use tokio::sync::Mutex;

use self::sample::{Sample, Samples, Usage};
use super::Api;
use super::model::Timestamp;
use super::model::overview::{
    DatapathOverview, Failure, GroupSessions, LatencyOverview, Overview, ProcessesOverview,
    ServerOverview, ServerState, SessionsOverview, ShardSessions, StoreOverview,
};
use super::problem::ApiResult;
use crate::clock;
use crate::dispatch::{Census, EngineStats};
use crate::process::State;
use crate::store::queries::ProcessRecord;
use crate::store::{StoreError, StoreStats};
use crate::telemetry::{GatewayFigures, GatewaySource, Histograms, Name};

/// A document is given out for so long.
const FRESH: Duration = Duration::from_millis(900);
/// Names and sizes of groups are read this often.
const GROUPS_EVERY: Duration = Duration::from_secs(5);
/// What is paused is counted this often.
const PAUSED_EVERY: Duration = Duration::from_secs(2);
/// Ready processes that are looked through for what is paused.
const PAUSED_AMONG: u32 = 100_000;
/// Failures shown.
const FAILURES: u32 = 10;
/// Ended processes that are looked through for failures.
const FAILURES_AMONG: u32 = 2000;

/// Puts the overview together and keeps it while it is fresh.
pub(super) struct Board {
    profile: &'static str,
    started: Instant,
    gateway: Option<GatewaySource>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    document: Option<(Instant, Arc<str>)>,
    groups: Option<(Instant, Vec<KnownGroup>)>,
    paused: Option<(Instant, u64)>,
    /// The count of failures when they were read, and what was read.
    failures: Option<(u64, Vec<Failure>)>,
    samples: Samples,
}

struct KnownGroup {
    id: GroupId,
    name: String,
    agents: u64,
}

impl Board {
    pub(super) fn new(profile: &'static str, gateway: Option<GatewaySource>, now: Instant) -> Self {
        Self {
            profile,
            started: now,
            gateway,
            kept: Mutex::default(),
        }
    }

    /// The overview as JSON. Callers that come while it is made wait for it and share it.
    pub(super) async fn text(&self, api: &Api) -> ApiResult<Arc<str>> {
        let mut kept = self.kept.lock().await;
        let now = clock::monotonic();
        if let Some((at, text)) = &kept.document
            && now.saturating_duration_since(*at) < FRESH
        {
            return Ok(Arc::clone(text));
        }
        let overview = self.look(api, &mut kept, now).await?;
        let text: Arc<str> = serde_json::to_string(&overview).unwrap_or_default().into();
        kept.document = Some((now, Arc::clone(&text)));
        Ok(text)
    }

    async fn look(&self, api: &Api, kept: &mut Kept, now: Instant) -> Result<Overview, StoreError> {
        let stats = api.engine.stats();
        if !is_fresh(kept.paused.as_ref(), now, PAUSED_EVERY) {
            kept.paused = Some((now, api.store.count_paused(PAUSED_AMONG).await?));
        }
        let paused = kept.paused.map_or(0, |(_, count)| count);
        if !is_fresh(kept.groups.as_ref(), now, GROUPS_EVERY) {
            kept.groups = Some((now, known_groups(api).await?));
        }
        let groups = kept.groups.as_ref().map_or(&[][..], |(_, groups)| groups);
        let gateway = self.gateway.as_ref().map(|ask| ask());
        let gateway = gateway.as_ref();
        let sessions = sessions(&stats.census, groups, gateway);
        let usage = Usage::now();
        let store_stats = api.store.stats();
        let sample = Sample::take(&stats, &store_stats, gateway, &usage);
        let (rates, cpu_cores) = kept.samples.add(now, sample);
        let newest_failures = newest_failures(api, kept, stats.failed).await?;
        Ok(Overview {
            at: Timestamp(clock::now().0),
            server: ServerOverview {
                rss_bytes: usage.rss_bytes,
                cpu_cores,
                ..self.server(api, &stats, now)
            },
            sessions,
            rates,
            processes: ProcessesOverview {
                by_state: by_state(&stats, paused),
                waiting_on: waiting_on(&stats.census, paused),
                newest_failures,
            },
            latency: latency(&api.histograms),
            histograms: Name::ALL.iter().map(ToString::to_string).collect(),
            store: store(&store_stats, &stats),
            datapath: datapath(&stats, gateway),
        })
    }

    fn server(&self, api: &Api, stats: &EngineStats, now: Instant) -> ServerOverview {
        ServerOverview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: self.profile.to_owned(),
            state: if api.stopping.is_cancelled() {
                ServerState::Draining
            } else if stats.store_error.is_some() {
                ServerState::Degraded
            } else {
                ServerState::Ready
            },
            uptime_seconds: now.saturating_duration_since(self.started).as_secs(),
            rss_bytes: None,
            cpu_cores: None,
        }
    }
}

fn is_fresh<T>(kept: Option<&(Instant, T)>, now: Instant, every: Duration) -> bool {
    kept.is_some_and(|(at, _)| now.saturating_duration_since(*at) < every)
}

async fn known_groups(api: &Api) -> Result<Vec<KnownGroup>, StoreError> {
    let agents = api.store.agents_by_group().await?;
    let groups = api.store.groups().await?.into_iter();
    let known = groups.map(|group| KnownGroup {
        id: group.id,
        agents: agents.get(&group.id).copied().unwrap_or(0),
        name: group.name,
    });
    Ok(known.collect())
}

/// What is kept stays on show when it no longer is among the last that ended.
async fn newest_failures(
    api: &Api,
    kept: &mut Kept,
    failed: u64,
) -> Result<Vec<Failure>, StoreError> {
    if let Some((at, failures)) = &kept.failures
        && *at == failed
    {
        return Ok(failures.clone());
    }
    let rows = api.store.newest_failures(FAILURES, FAILURES_AMONG).await?;
    let mut failures: Vec<Failure> = rows.into_iter().map(failure).collect();
    let older = kept.failures.take().map_or_else(Vec::new, |(_, kept)| kept);
    for old in older {
        if failures
            .iter()
            .all(|failure| failure.process != old.process)
        {
            failures.push(old);
        }
    }
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.at));
    failures.truncate(usize::try_from(FAILURES).unwrap_or(usize::MAX));
    kept.failures = Some((failed, failures.clone()));
    Ok(failures)
}

fn failure(record: ProcessRecord) -> Failure {
    let message = record.outcome.map_or_else(String::new, |outcome| {
        let code = outcome.exit_code.map(|code| format!("exit code {code}"));
        match (outcome.message.is_empty(), code) {
            (false, _) => outcome.message,
            (true, Some(code)) => code,
            (true, None) => String::new(),
        }
    });
    Failure {
        process: record.id.0,
        kind: record.kind,
        agent: record.agent.0,
        at: Timestamp(record.finished_at.unwrap_or(record.created_at).0),
        message,
    }
}

fn sessions(
    census: &Census,
    groups: &[KnownGroup],
    gateway: Option<&GatewayFigures>,
) -> SessionsOverview {
    let by_group: Vec<GroupSessions> = groups
        .iter()
        .map(|group| GroupSessions {
            group: group.id.0,
            name: group.name.clone(),
            up: census.by_group.get(&group.id).copied().unwrap_or(0),
            known: group.agents,
        })
        .filter(|group| group.known > 0 || group.up > 0)
        .collect();
    SessionsOverview {
        up: census.by_group.values().sum(),
        half_open: gateway.map(|gateway| gateway.half_open.values().sum()),
        known: by_group.iter().map(|group| group.known).sum(),
        begun: census.sessions_begun,
        ended: census.sessions_ended,
        by_group,
        by_shard: by_shard(census, gateway),
    }
}

/// Every shard that holds sessions, and every one that the gateway has.
fn by_shard(census: &Census, gateway: Option<&GatewayFigures>) -> Vec<ShardSessions> {
    let half_open = gateway.map(|gateway| &gateway.half_open);
    let mut shards: BTreeSet<ShardId> = census.by_shard.keys().copied().collect();
    shards.extend(half_open.into_iter().flat_map(BTreeMap::keys));
    let row = |shard: ShardId| {
        let held = census.by_shard.get(&shard).copied().unwrap_or_default();
        ShardSessions {
            shard: shard.0,
            sessions: held.sessions,
            at_home: held.at_home,
            half_open: half_open.and_then(|counts| counts.get(&shard).copied()),
        }
    };
    shards.into_iter().map(row).collect()
}

/// A paused process is a ready one to the process server: the two are told apart here.
fn by_state(stats: &EngineStats, paused: u64) -> BTreeMap<String, u64> {
    let ended = [
        (State::Succeeded, stats.succeeded),
        (State::Failed, stats.failed),
        (State::Cancelled, stats.cancelled),
    ];
    let mut counts: BTreeMap<String, u64> = State::ALL
        .iter()
        .map(|state| {
            let living = stats.census.processes.get(state).copied().unwrap_or(0);
            (state.as_str().to_owned(), living)
        })
        .collect();
    let ready = counts.entry("ready".to_owned()).or_default();
    let paused = paused.min(*ready);
    *ready -= paused;
    counts.insert("paused".to_owned(), paused);
    counts.extend(ended.map(|(state, count)| (state.as_str().to_owned(), count)));
    counts
}

fn waiting_on(census: &Census, paused: u64) -> BTreeMap<String, u64> {
    let count = |state| census.processes.get(&state).copied().unwrap_or(0);
    let ready = count(State::Ready);
    let paused = paused.min(ready);
    // What is paused may wait for its agent as well; the pause is what people can end.
    let session = census.ready_without_session.min(ready - paused);
    let waits = [
        ("permit", ready - paused - session),
        ("session", session),
        ("pause", paused),
        ("backoff", count(State::Backoff)),
        ("time", count(State::Scheduled)),
        ("resource", count(State::Blocked)),
        ("answer", count(State::Unknown) + count(State::Cancelling)),
    ];
    waits.map(|(what, count)| (what.to_owned(), count)).into()
}

fn latency(histograms: &Histograms) -> BTreeMap<String, LatencyOverview> {
    let measured = Name::ALL.iter().filter_map(|name| {
        let times = histograms.total(*name)?;
        Some((name.to_string(), percentiles(times.histogram())))
    });
    measured.collect()
}

fn percentiles(histogram: &Histogram<u64>) -> LatencyOverview {
    LatencyOverview {
        p50_us: histogram.value_at_quantile(0.5),
        p90_us: histogram.value_at_quantile(0.9),
        p99_us: histogram.value_at_quantile(0.99),
        p999_us: histogram.value_at_quantile(0.999),
        max_us: histogram.max(),
        count: histogram.len(),
    }
}

fn store(figures: &StoreStats, stats: &EngineStats) -> StoreOverview {
    StoreOverview {
        commits: figures.commits,
        failed_commits: figures.failed_commits,
        error: stats.store_error.clone(),
    }
}

fn datapath(stats: &EngineStats, gateway: Option<&GatewayFigures>) -> DatapathOverview {
    DatapathOverview {
        kind: gateway.and_then(|gateway| gateway.datapath.map(str::to_owned)),
        dropped: gateway.map(|gateway| gateway.dropped),
        uplink_full: gateway.map(|gateway| gateway.uplink_full),
        mailbox_full: gateway.map(|gateway| gateway.mailbox_full),
        downlink_full: stats.link_full,
        outbox: stats.outbox,
    }
}
