//! The whole deployment at a glance: what the dashboard and `drover top` show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;

/// The whole deployment at a glance, at most about a second old.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// When.
    pub at: Timestamp,
    /// The server that answers.
    pub server: ServerOverview,
    /// Sessions of agents.
    pub sessions: SessionsOverview,
    /// Per second, over the last ten seconds, by name: `connects`, `losses`, `refusals`, `commands`,
    /// `processes_created`, `processes_finished`, `commits`; where the gateway says, also what came
    /// to its door: `admitted` (handshakes begun), `retried` (asked to prove their address first),
    /// `turned_away` (dropped without an answer), `handshakes_failed`. Others may come.
    /// Empty when nobody has looked for a while: look again.
    pub rates: BTreeMap<String, f64>,
    /// Processes.
    pub processes: ProcessesOverview,
    /// Percentiles by the name of what took so long; what recorded nothing is left out.
    pub latency: BTreeMap<String, LatencyOverview>,
    /// Names that `GET /v1/histograms/{name}` knows, for a look at how latency changes over time.
    #[serde(default)]
    pub histograms: Vec<String>,
    /// The store.
    pub store: StoreOverview,
    /// The way of packets and of words between gateway and process server.
    pub datapath: DatapathOverview,
}

/// The server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServerOverview {
    /// Its version.
    pub version: String,
    /// Its profile: which servers run in the process.
    pub profile: String,
    /// `ready`, `draining`, or `degraded` while results cannot be stored.
    pub state: ServerState,
    /// Since its start.
    pub uptime_seconds: u64,
    /// Resident memory; absent where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Processor time over the last ten seconds, in cores; absent as `rates`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<f64>,
}

/// How a server is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// It does its work.
    Ready,
    /// Results cannot be stored now: see `store.error`.
    Degraded,
    /// It is about to stop.
    Draining,
}

/// Sessions of agents.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionsOverview {
    /// Agents that have a session.
    pub up: u64,
    /// Connections under way, without a session yet; absent when the gateway does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open: Option<u64>,
    /// Agents that may connect.
    pub known: u64,
    /// Sessions that began, since the server's start.
    pub begun: u64,
    /// Sessions that ended, since the server's start.
    pub ended: u64,
    /// By group, by name; groups without agents are left out.
    pub by_group: Vec<GroupSessions>,
    /// By shard.
    pub by_shard: Vec<ShardSessions>,
}

/// A group's sessions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupSessions {
    /// The group.
    pub group: Uuid,
    /// Its name.
    pub name: String,
    /// Agents of it that have a session.
    pub up: u64,
    /// Agents of it that may connect.
    pub known: u64,
}

/// A shard's sessions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ShardSessions {
    /// The shard, from 0.
    pub shard: u16,
    /// Sessions that it holds.
    pub sessions: u64,
    /// Those whose group is at home there.
    pub at_home: u64,
    /// Connections under way; absent when the gateway does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open: Option<u64>,
}

/// Processes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessesOverview {
    /// By state. Those that are not over: how many there are now; of those that are ready, `paused`
    /// are counted apart (among the first 100,000, every two seconds). `succeeded`, `failed` and
    /// `cancelled`: how many ended so since the server's start.
    pub by_state: BTreeMap<String, u64>,
    /// Of those that are not over: how many wait on what. `permit`: a free place on their agent;
    /// `session`: their agent to connect; `pause`: the end of a pause; `backoff`: the next attempt; `time`: their time;
    /// `resource`: another process; `answer`: an agent's word about a lost reply or a cancel.
    pub waiting_on: BTreeMap<String, u64>,
    /// The newest that failed, at most ten, newest first.
    pub newest_failures: Vec<Failure>,
}

/// A process that failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// The process.
    pub process: Uuid,
    /// Its driver.
    pub kind: String,
    /// Its agent.
    pub agent: Uuid,
    /// When.
    pub at: Timestamp,
    /// Its outcome's status and message.
    pub message: String,
}

/// Percentiles of a duration, in microseconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LatencyOverview {
    /// Half took at most this long.
    pub p50_us: u64,
    /// 90 of 100 took at most this long.
    pub p90_us: u64,
    /// 99 of 100 took at most this long.
    pub p99_us: u64,
    /// 999 of 1,000 took at most this long.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// How many there were.
    pub count: u64,
}

/// The store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StoreOverview {
    /// Commits since the server's start.
    pub commits: u64,
    /// Commits that failed and were rolled back, since the server's start.
    pub failed_commits: u64,
    /// Why results cannot be stored now; absent when they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The way of packets and of words between gateway and process server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DatapathOverview {
    /// `uring` or `poll`; absent when the gateway does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Datagrams that were lost to the server since its start: damaged ones, those that found the
    /// kernel's buffer full, and those that the kernel refused to send. Newcomers that were turned
    /// away are not among them: see `rates`. Absent when the gateway does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    /// Events that found the way up to the process server full, since the server's start; absent when
    /// the gateway does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink_full: Option<u64>,
    /// Messages that found another shard's mailbox full, since the server's start; absent when the
    /// gateway does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailbox_full: Option<u64>,
    /// Requests to the gateway that found its queue full, since the server's start.
    pub downlink_full: u64,
    /// Requests that wait for room in the gateway's queue now.
    pub outbox: u64,
}
