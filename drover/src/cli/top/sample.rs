//! An overview for tests.

use std::collections::BTreeMap;

use control::api::model::Timestamp;
use control::api::model::overview::{
    DatapathOverview, Failure, GroupSessions, LatencyOverview, Overview, ProcessesOverview,
    ServerOverview, ServerState, SessionsOverview, ShardSessions, StoreOverview,
};
use uuid::Uuid;

/// 11:33:20.125Z of a day.
const NOW_MS: u64 = 1_795_512_600_125;

/// A group by name, with so many of so many agents.
pub(super) fn group(name: &str, up: u64, known: u64) -> GroupSessions {
    GroupSessions {
        group: Uuid::nil(),
        name: name.to_owned(),
        up,
        known,
    }
}

/// A process that failed two minutes ago.
pub(super) fn failure(kind: &str, message: &str) -> Failure {
    Failure {
        process: Uuid::from_u128(0x0190_b6b8_52f3_7c1a_8e5d_3f2a_9b7c_6d10),
        kind: kind.to_owned(),
        agent: Uuid::nil(),
        at: Timestamp(NOW_MS - 120_000),
        message: message.to_owned(),
    }
}

/// A small deployment at work.
pub(super) fn overview() -> Overview {
    let map = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
        let pairs = pairs.iter();
        pairs.map(|(name, n)| ((*name).to_owned(), *n)).collect()
    };
    let rates = [
        ("connects", 0.2),
        ("losses", 0.0),
        ("turned_away", 1.5),
        ("commands", 1234.0),
        ("admitted", 0.4),
    ];
    let states = [
        ("running", 12),
        ("ready", 3),
        ("succeeded", 998),
        ("failed", 4),
    ];
    Overview {
        at: Timestamp(NOW_MS),
        server: ServerOverview {
            version: "0.1.0".to_owned(),
            profile: "all".to_owned(),
            state: ServerState::Ready,
            uptime_seconds: 12_000,
            rss_bytes: Some(96 << 20),
            cpu_cores: Some(0.31),
        },
        sessions: SessionsOverview {
            up: 19,
            half_open: Some(2),
            known: 21,
            begun: 1204,
            ended: 1185,
            by_group: vec![group("auto-1", 10, 10), group("rack-7", 9, 11)],
            by_shard: vec![shard(0, 10), shard(1, 9)],
        },
        rates: rates.map(|(name, rate)| (name.to_owned(), rate)).into(),
        processes: ProcessesOverview {
            by_state: map(&states),
            waiting_on: map(&[("permit", 3), ("session", 0)]),
            newest_failures: vec![failure("exec", "exit code 7")],
        },
        latency: BTreeMap::from([("store_commit".to_owned(), latency())]),
        histograms: Vec::new(),
        store: StoreOverview {
            commits: 4321,
            failed_commits: 0,
            error: None,
        },
        datapath: DatapathOverview {
            kind: Some("uring".to_owned()),
            dropped: Some(0),
            uplink_full: None,
            mailbox_full: None,
            downlink_full: 0,
            outbox: 0,
        },
    }
}

/// A shard with so many sessions, all but one at home.
pub(super) fn shard(shard: u16, sessions: u64) -> ShardSessions {
    ShardSessions {
        shard,
        sessions,
        at_home: sessions.saturating_sub(1),
        half_open: Some(1),
    }
}

fn latency() -> LatencyOverview {
    LatencyOverview {
        p50_us: 950,
        p90_us: 1400,
        p99_us: 12_345,
        p999_us: 54_000,
        max_us: 120_000,
        count: 4321,
    }
}
