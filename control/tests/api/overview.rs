//! The deployment at a glance: what is counted, that it is live, and that it is bounded.

use control::api::model::overview::{Overview, ServerState};
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::json;

use crate::plane::{Plane, eventually, plane};

async fn overview(plane: &Plane) -> Overview {
    let (status, body) = plane.get("/v1/overview").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_value(body).unwrap()
}

/// The overview as soon as it says so; it may be a second or two behind.
async fn once(plane: &Plane, what: &str, is_so: impl Fn(&Overview) -> bool) -> Overview {
    eventually(what, async || {
        let overview = overview(plane).await;
        is_so(&overview).then_some(overview)
    })
    .await
}

#[tokio::test]
async fn an_empty_deployment_shows_zeros_and_who_it_is() {
    let plane = plane().await;
    let overview = overview(&plane).await;
    assert_eq!(overview.server.state, ServerState::Ready);
    assert_eq!(overview.server.profile, "all");
    assert_eq!(overview.server.version, env!("CARGO_PKG_VERSION"));
    assert_eq!((overview.sessions.up, overview.sessions.known), (0, 0));
    assert!(overview.sessions.by_group.is_empty());
    assert_eq!(overview.processes.by_state.len(), 12);
    assert!(
        overview
            .processes
            .by_state
            .values()
            .all(|count| *count == 0)
    );
    assert!(
        overview
            .processes
            .waiting_on
            .values()
            .all(|count| *count == 0)
    );
}

#[tokio::test]
async fn sessions_are_counted_by_group_and_shard_as_they_come_and_go() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    plane.agent(2, true).await;
    plane.agent(3, false).await;
    let seen = once(&plane, "two sessions of three agents", |overview| {
        overview.sessions.up == 2 && overview.sessions.known == 3
    })
    .await;
    let groups = &seen.sessions.by_group;
    assert_eq!(groups.iter().map(|group| group.known).sum::<u64>(), 3);
    assert_eq!(groups.iter().map(|group| group.up).sum::<u64>(), 2);
    let shards = &seen.sessions.by_shard;
    assert_eq!((shards[0].sessions, shards[0].at_home), (2, 2));
    // A second session of the same agent replaces the first.
    plane.gateway.connect(agent, "hv-1");
    plane.gateway.disconnect(agent);
    let seen = once(&plane, "one session", |overview| overview.sessions.up == 1).await;
    assert_eq!(seen.sessions.by_shard[0].sessions, 1);
    assert_eq!((seen.sessions.begun, seen.sessions.ended), (3, 2));
}

#[tokio::test]
async fn what_the_gateway_says_is_shown() {
    let plane = plane().await;
    plane.agent(1, true).await;
    let seen = once(&plane, "a session and rates", |overview| {
        overview.sessions.up == 1 && !overview.rates.is_empty()
    })
    .await;
    let shards = seen.sessions.by_shard.iter();
    let shards: Vec<_> = shards
        .map(|row| (row.shard, row.sessions, row.half_open))
        .collect();
    // A shard without a session is one nevertheless.
    assert_eq!(shards, [(0, 1, Some(1)), (1, 0, Some(2))]);
    assert_eq!(seen.sessions.half_open, Some(3));
    let datapath = &seen.datapath;
    assert_eq!(datapath.kind.as_deref(), Some("poll"));
    assert_eq!(datapath.dropped, Some(5));
    assert_eq!(
        (datapath.uplink_full, datapath.mailbox_full),
        (Some(6), Some(7))
    );
    let failed = seen.rates["handshakes_failed"];
    assert!(failed > 0.0, "{:?}", seen.rates);
    for (name, times) in [("turned_away", 2.0), ("retried", 4.0), ("admitted", 8.0)] {
        let share = seen.rates[name] / failed;
        assert!((share - times).abs() < 1e-9, "{name}: {:?}", seen.rates);
    }
}

#[tokio::test]
async fn processes_are_counted_by_state_and_by_what_they_wait_on() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let away = plane.agent(2, false).await;
    for (key, kind) in [("a", "exec"), ("b", "hang")] {
        let body = json!({ "agent": agent, "kind": kind });
        assert_eq!(plane.start(key, body).await.0, 201);
    }
    let body = json!({ "agent": away, "kind": "exec" });
    assert_eq!(plane.start("c", body).await.0, 201);
    let seen = once(&plane, "one ended, one runs, one waits", |overview| {
        let states = &overview.processes.by_state;
        states["succeeded"] == 1 && states["running"] == 1 && states["ready"] == 1
    })
    .await;
    assert_eq!(seen.processes.waiting_on["session"], 1);
    assert_eq!(seen.processes.waiting_on["permit"], 0);
    // Its agent comes: nothing waits any more.
    plane.gateway.connect(away, "hv-2");
    once(&plane, "nothing waits", |overview| {
        overview.processes.by_state["succeeded"] == 2
            && overview.processes.waiting_on.values().sum::<u64>() == 0
    })
    .await;
}

#[tokio::test]
async fn what_failed_last_is_named() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let body = json!({ "agent": agent, "kind": "exec" });
    let (_, made) = plane.start("a", body).await;
    // Its agent is revoked: it can never run.
    let (status, _) = plane
        .post(&format!("/v1/agents/{agent}/revoke"), json!({}))
        .await;
    assert_eq!(status, 200);
    let seen = once(&plane, "a failure", |overview| {
        !overview.processes.newest_failures.is_empty()
    })
    .await;
    let failure = &seen.processes.newest_failures[0];
    assert_eq!(json!(failure.process), made["id"]);
    assert!(!failure.message.is_empty());
    assert_eq!(seen.processes.by_state["ready"], 0);
}

#[tokio::test]
async fn the_stream_sends_the_same_document_every_second() {
    let plane = plane().await;
    let request = plane.request(Method::GET, "/v1/overview/events");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut bytes = response.bytes_stream();
    let mut text = String::new();
    while text.matches("\n\n").count() < 2 {
        let piece = bytes.next().await.expect("the stream goes on").unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let stamps: Vec<_> = text
        .split("\n\n")
        .filter(|block| !block.is_empty())
        .map(|block| {
            let data = block.strip_prefix("event: overview\ndata: ").unwrap();
            serde_json::from_str::<Overview>(data).unwrap().at
        })
        .collect();
    assert!(stamps.is_sorted() && stamps[0] < stamps[1], "{stamps:?}");
}

#[tokio::test]
async fn streams_over_the_limit_are_turned_away() {
    let plane = plane().await;
    let mut open = Vec::new();
    loop {
        let request = plane.request(Method::GET, "/v1/overview/events");
        let response = request.send().await.unwrap();
        if response.status() == 503 {
            assert!(response.headers().contains_key("retry-after"));
            break;
        }
        assert_eq!(response.status(), 200);
        open.push(response);
        assert!(open.len() <= 256, "there is no limit");
    }
}

#[tokio::test]
async fn counts_are_right_again_after_a_restart() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    for key in ["a", "b", "c"] {
        let body = json!({ "agent": agent, "kind": "exec" });
        assert_eq!(plane.start(key, body).await.0, 201);
    }
    let Plane { control, dir, .. } = plane;
    control.drain(std::time::Duration::from_secs(5)).await;
    let plane = crate::plane::plane_in(dir, 10_000).await;
    let seen = once(&plane, "three wait", |overview| {
        overview.processes.by_state["ready"] == 3
    })
    .await;
    assert_eq!(seen.processes.waiting_on["session"], 3);
}

#[tokio::test]
async fn what_is_paused_is_not_counted_as_ready() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    for (key, tenant) in [("a", "acme"), ("b", "acme"), ("c", "other")] {
        let body = json!({ "agent": agent, "kind": "exec", "tenant": tenant });
        assert_eq!(plane.start(key, body).await.0, 201);
    }
    let pause = json!({ "scope": "tenant", "key": "acme", "reason": "an audit" });
    assert_eq!(plane.post("/v1/pauses", pause).await.0, 201);
    let seen = once(&plane, "two are paused", |overview| {
        overview.processes.by_state["paused"] == 2
    })
    .await;
    assert_eq!(seen.processes.by_state["ready"], 1);
    let waits = &seen.processes.waiting_on;
    assert_eq!(
        (waits["pause"], waits["session"], waits["permit"]),
        (2, 1, 0)
    );
    assert_eq!(plane.delete("/v1/pauses/tenant/acme").await.0, 204);
    let seen = once(&plane, "none is paused", |overview| {
        overview.processes.by_state["paused"] == 0
    })
    .await;
    assert_eq!(seen.processes.by_state["ready"], 3);
}

#[tokio::test]
async fn agents_are_found_by_parts_of_their_name_label_and_id() {
    let plane = plane().await;
    let first = plane.agent(1, true).await;
    plane.agent(2, true).await;
    for (search, expected) in [
        ("HV-1", 1),
        ("hv-", 2),
        ("rack%3D7", 2),
        (&first.to_string(), 1),
        ("%3Cscript%3E", 0),
    ] {
        let (status, body) = plane.get(&format!("/v1/agents?search={search}")).await;
        assert_eq!(status, 200);
        let items = body["items"].as_array().unwrap();
        assert_eq!(items.len(), expected, "{search}");
    }
    let (_, agent) = plane.get(&format!("/v1/agents/{first}")).await;
    assert_eq!(agent["session"]["shard"], 0);
    assert_eq!(agent["session"]["remote"], crate::plane::REMOTE);
    let long = "x".repeat(129);
    let (status, _) = plane.get(&format!("/v1/agents?search={long}")).await;
    assert_eq!(status, 400);
}
