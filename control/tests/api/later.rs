//! Processes that are to be started later, over the API.

use std::time::Duration;

use control::api::model::Timestamp;
use control::clock;
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane, read};

/// So long from now.
fn later(wait: Duration) -> Timestamp {
    Timestamp(clock::now().plus(wait).0)
}

async fn made(plane: &Plane, key: &str, body: Value) -> Value {
    let (status, process) = plane.start(key, body).await;
    assert_eq!(status, 201, "{process}");
    process
}

async fn until(plane: &Plane, process: &Value, state: &str) -> Value {
    let path = format!("/v1/processes/{}", process["id"].as_str().unwrap());
    eventually(state, async || {
        let (_, process) = plane.get(&path).await;
        (process["state"] == state).then_some(process)
    })
    .await
}

#[tokio::test]
async fn a_process_for_later_waits_for_its_time_and_only_then_for_its_resource() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let body = json!({"agent": agent, "kind": "hang", "resource": "disk/1"});
    let holder = made(&plane, "holder", body).await;
    until(&plane, &holder, "running").await;
    let at = later(Duration::from_secs(4));
    let body = json!({"agent": agent, "kind": "exec", "resource": "disk/1", "run_at": at,
        "deadline_seconds": 60});
    let process = made(&plane, "later", body).await;
    assert_eq!(process["state"], "scheduled");
    assert_eq!(
        process["deadline_at"],
        json!(Timestamp(at.0 + 60_000)),
        "counted from its time"
    );
    let waits = &process["waiting_on"];
    assert_eq!(
        (&waits["scope"], &waits["key"]),
        (&json!("time"), &json!(at))
    );
    let advice = waits["advice"].as_str().unwrap();
    assert!(advice.contains("drover processes replay"), "{advice}");
    // Whoever has the resource then goes on.
    let blocked = until(&plane, &process, "blocked").await;
    assert_eq!(blocked["waiting_on"]["held_by"], holder["id"]);
    let force = format!("/v1/processes/{}/cancel", holder["id"].as_str().unwrap());
    plane.post(&force, json!({"mode": "force"})).await;
    let ended = until(&plane, &process, "succeeded").await;
    assert!(
        ended["started_at"].as_str().unwrap() >= at.to_string().as_str(),
        "{ended}"
    );
}

#[tokio::test]
async fn what_is_for_later_neither_supersedes_nor_is_superseded_and_can_be_started_now() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let three = |run_at: Option<Timestamp>| json!({"agent": agent, "kind": "three", "input": {"thing": "a"}, "run_at": run_at});
    let now = made(&plane, "now", three(None)).await;
    let tonight = later(Duration::from_secs(8 * 3600));
    let night = made(&plane, "night", three(Some(tonight))).await;
    until(&plane, &now, "ready").await;
    let next = made(&plane, "next", three(None)).await;
    until(&plane, &now, "cancelled").await;
    until(&plane, &night, "scheduled").await;
    // It holds no resource until then.
    until(&plane, &next, "ready").await;
    let request = plane.request(Method::POST, "/v1/processes?dry_run=true");
    let (status, run) = read(request.json(&three(Some(tonight))).send().await.unwrap()).await;
    assert_eq!((status, &run["state"]), (200, &json!("scheduled")), "{run}");
    assert!(run["predicted_wait_s"].as_u64().unwrap() > 8 * 3600 - 60);
    assert_eq!(run["supersedes"], Value::Null);
    // Its time is the default; somebody wants it now.
    let path = format!("/v1/processes/{}/replay", night["id"].as_str().unwrap());
    let (status, body) = plane.post(&path, json!({})).await;
    assert_eq!(status, 202, "{body}");
    let blocked = until(&plane, &night, "blocked").await;
    assert_eq!(blocked["waiting_on"]["held_by"], next["id"]);
}

#[tokio::test]
async fn a_time_that_cannot_be_meant_is_refused() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let hour = Duration::from_secs(3600);
    for (run_at, deadline_at, words) in [
        (
            json!(later(2 * hour)),
            json!(later(hour)),
            "it would be over before it starts",
        ),
        (json!(later(31 * 24 * hour)), Value::Null, "within 30 days"),
        (json!("tonight"), Value::Null, "tonight"),
    ] {
        let body = json!({"agent": agent, "kind": "exec", "run_at": run_at,
            "deadline_at": deadline_at});
        let (status, problem) = plane.start("bad", body).await;
        assert_eq!(status, 400, "{problem}");
        let text = problem.to_string();
        assert!(text.contains(words) && text.contains("run_at"), "{problem}");
    }
    // What has passed is at once.
    let passed = Timestamp(clock::now().0 - 60_000);
    let body = json!({"agent": agent, "kind": "exec", "run_at": passed});
    let process = made(&plane, "passed", body).await;
    assert_eq!(process["state"], "ready");
    let path = format!("/v1/processes/{}/clone", process["id"].as_str().unwrap());
    let request = plane
        .request(Method::POST, &path)
        .header("Idempotency-Key", "c");
    let body = json!({"run_at": later(hour)});
    let (status, problem) = read(request.json(&body).send().await.unwrap()).await;
    assert_eq!(status, 400, "{problem}");
    assert!(
        problem.to_string().contains("unknown field `run_at`"),
        "{problem}"
    );
}
