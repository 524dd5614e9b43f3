//! Dead letters, and batches that let processes go on, keep them from being started, and end that.

use std::collections::BTreeSet;
use std::time::Duration;

use control::api::model::processes::OutcomeStatus;
use protocol::link::{Event, Request};
use protocol::operation::{Outcome, OutcomeStatus as Ended};
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane};

async fn made(plane: &Plane, key: &str, body: Value) -> String {
    let (status, process) = plane.start(key, body).await;
    assert_eq!(status, 201, "{process}");
    process["id"].as_str().unwrap().to_owned()
}

async fn items(plane: &Plane, path: &str) -> Vec<Value> {
    let (status, page) = plane.get(path).await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().clone()
}

async fn count(plane: &Plane, query: &str) -> usize {
    items(plane, &format!("/v1/processes?page_size=500&{query}"))
        .await
        .len()
}

async fn wait_for(plane: &Plane, query: &str, wanted: usize) {
    eventually(query, async || {
        (count(plane, query).await == wanted).then_some(())
    })
    .await;
}

/// How many a dry run finds.
async fn matched(plane: &Plane, action: &str, filter: Value) -> u64 {
    let body = json!({ "action": action, "filter": filter, "dry_run": true });
    let (status, preview) = plane.post("/v1/batches", body).await;
    assert_eq!(status, 200, "{preview}");
    preview["matched"].as_u64().unwrap()
}

/// Runs a batch to its end.
async fn batch(plane: &Plane, mut body: Value) -> Value {
    body["confirm"] = json!(
        matched(
            plane,
            body["action"].as_str().unwrap(),
            body["filter"].clone()
        )
        .await
    );
    body["rate_per_second"] = json!(1000);
    let (status, made) = plane.post("/v1/batches", body).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/v1/batches/{}", made["id"].as_str().unwrap());
    eventually("the batch's end", async || {
        let (_, batch) = plane.get(&path).await;
        (batch["state"] == "finished").then_some(batch)
    })
    .await
}

/// Five failures of one tenant, two of another, and one whose end nobody knows.
async fn failures(plane: &Plane) -> String {
    let agent = plane.agent(1, true).await.to_string();
    for n in 0..7 {
        let tenant = if n < 5 { "acme" } else { "other" };
        let body = json!({ "agent": agent, "kind": "fail", "tenant": tenant });
        made(plane, &format!("f{n}"), body).await;
    }
    made(plane, "h", json!({ "agent": agent, "kind": "hang" })).await;
    wait_for(plane, "state=failed", 7).await;
    wait_for(plane, "state=running", 1).await;
    let dispatch = plane
        .gateway
        .sent
        .lock()
        .unwrap()
        .iter()
        .find_map(|sent| match sent {
            Request::Dispatch {
                target, command, ..
            } if command.kind == "hang" => Some((*target, command.operation, command.fence)),
            _ => None,
        });
    let (target, operation, fence) = dispatch.unwrap();
    plane.gateway.say(Event::Finished {
        target,
        operation,
        fence,
        outcome: Outcome {
            status: Ended::Interrupted,
            exit_code: None,
            message: "the agent stopped".to_owned(),
            output: bytes::Bytes::new(),
            service_time: Duration::ZERO,
        },
    });
    wait_for(plane, "state=failed", 8).await;
    agent
}

#[tokio::test]
async fn dead_letters_are_listed_and_counted() {
    let plane = plane().await;
    let agent = failures(&plane).await;
    for (query, wanted) in [
        ("".to_owned(), 8),
        ("tenant=acme".to_owned(), 5),
        ("kind=hang".to_owned(), 1),
        ("outcome=interrupted".to_owned(), 1),
        ("needs_attention=false".to_owned(), 7),
        (format!("agent={agent}"), 8),
        ("agent=hv-1&tenant=other&kind=fail".to_owned(), 2),
        ("finished_before=2020-01-01T00:00:00Z".to_owned(), 0),
        ("finished_after=2020-01-01T00:00:00Z".to_owned(), 8),
    ] {
        let found = items(&plane, &format!("/v1/dead-letters?{query}")).await;
        assert_eq!(found.len(), wanted, "{query}");
        assert!(found.iter().all(|process| process["state"] == "failed"));
    }
    let (mut seen, mut ends, mut token) = (BTreeSet::new(), Vec::new(), String::new());
    loop {
        let (_, page) = plane
            .get(&format!("/v1/dead-letters?page_size=3{token}"))
            .await;
        for process in page["items"].as_array().unwrap() {
            assert!(seen.insert(process["id"].to_string()), "each once");
            ends.push(process["finished_at"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next_page_token"].as_str() else {
            break;
        };
        token = format!("&page_token={next}");
    }
    assert_eq!(seen.len(), 8);
    assert!(ends.is_sorted_by(|a, b| a >= b), "the last first: {ends:?}");
    let (status, summary) = plane.get("/v1/dead-letters/summary").await;
    assert_eq!(
        (status, &summary["counted"], &summary["more"]),
        (200, &json!(8), &json!(false))
    );
    let groups = summary["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{summary}");
    assert_eq!(
        (
            &groups[0]["kind"],
            &groups[0]["count"],
            &groups[0]["agents"]
        ),
        (&json!("fail"), &json!(7), &json!(1))
    );
    assert_eq!(groups[0]["outcome"], json!(OutcomeStatus::FailedPermanent));
    assert_eq!(groups[0]["message"], "it broke");
    assert_eq!(
        (&groups[1]["outcome"], &groups[1]["needs_attention"]),
        (&json!("interrupted"), &json!(true))
    );
    let (_, summary) = plane.get("/v1/dead-letters/summary?tenant=other").await;
    assert_eq!(summary["counted"], 2);
}

#[tokio::test]
async fn a_redrive_starts_each_over_once_though_it_fails_again() {
    let plane = plane().await;
    failures(&plane).await;
    for (action, filter, wanted) in [
        ("redrive", json!({}), 7),
        ("retry", json!({}), 8),
        ("redrive", json!({ "needs_attention": true }), 1),
        ("redrive", json!({ "tenant": "acme" }), 5),
        ("redrive", json!({ "outcome": "failed_permanent" }), 7),
        ("redrive", json!({ "outcome": "deadline_exceeded" }), 0),
        (
            "redrive",
            json!({ "finished_before": "2020-01-01T00:00:00Z" }),
            0,
        ),
        (
            "redrive",
            json!({ "finished_after": "2020-01-01T00:00:00Z", "kind": "fail" }),
            7,
        ),
    ] {
        assert_eq!(
            matched(&plane, action, filter.clone()).await,
            wanted,
            "{action} {filter}"
        );
    }
    let done = batch(
        &plane,
        json!({ "action": "redrive", "filter": { "tenant": "acme" }, "reason": "the pool is back" }),
    )
    .await;
    assert_eq!(
        (&done["done"], &done["failed"]),
        (&json!(5), &json!(0)),
        "{done}"
    );
    wait_for(&plane, "state=failed", 8).await;
    for process in items(&plane, "/v1/processes?tenant=acme").await {
        let path = format!("/v1/processes/{}/history", process["id"].as_str().unwrap());
        let history = items(&plane, &path).await;
        let reason = format!("batch {}: the pool is back", done["id"].as_str().unwrap());
        let ordered: Vec<&Value> = history
            .iter()
            .filter(|line| line["reason"] == reason.as_str())
            .collect();
        assert_eq!(ordered.len(), 1, "{history:?}");
        assert_eq!(ordered[0]["actor"], "first admin");
    }
}

#[tokio::test]
async fn a_replay_goes_on_where_it_is_told_and_says_what_it_could_not() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    for n in 0..3 {
        made(
            &plane,
            &format!("e{n}"),
            json!({ "agent": agent, "kind": "exec" }),
        )
        .await;
    }
    made(
        &plane,
        "three",
        json!({ "agent": agent, "kind": "three", "input": { "thing": "a" } }),
    )
    .await;
    wait_for(&plane, "state=succeeded", 3).await;
    let done = batch(
        &plane,
        json!({ "action": "replay", "filter": { "state": "succeeded" } }),
    )
    .await;
    assert_eq!(
        (&done["done"], &done["failed"]),
        (&json!(3), &json!(0)),
        "{done}"
    );
    wait_for(&plane, "state=succeeded", 3).await;
    let done = batch(
        &plane,
        json!({ "action": "replay", "step": 4, "filter": { "state": "succeeded" } }),
    )
    .await;
    assert_eq!(
        (&done["done"], &done["failed"], &done["step"]),
        (&json!(0), &json!(3), &json!(4)),
        "{done}"
    );
    let trouble = done["trouble"].as_str().unwrap();
    assert!(trouble.contains("it has 1 step"), "{trouble}");
    assert_eq!(count(&plane, "state=succeeded").await, 3);
}

#[tokio::test]
async fn a_revoked_agents_work_is_not_let_go_on() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    made(&plane, "e", json!({ "agent": agent, "kind": "exec" })).await;
    let (status, _) = plane
        .post(&format!("/v1/agents/{agent}/revoke"), json!({}))
        .await;
    assert_eq!(status, 200);
    wait_for(&plane, "state=failed", 1).await;
    assert_eq!(items(&plane, "/v1/dead-letters").await.len(), 1);
    assert_eq!(matched(&plane, "redrive", json!({})).await, 0);
    assert_eq!(matched(&plane, "retry", json!({})).await, 0);
}

#[tokio::test]
async fn many_are_paused_and_resumed_one_by_one() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    for n in 0..6 {
        let tenant = if n < 4 { "acme" } else { "other" };
        let body = json!({ "agent": agent, "kind": "exec", "tenant": tenant });
        made(&plane, &format!("e{n}"), body).await;
    }
    let acme = json!({ "tenant": "acme" });
    let pause = json!({ "action": "pause", "filter": acme, "reason": "an audit" });
    let done = batch(&plane, pause).await;
    assert_eq!(done["done"], 4, "{done}");
    assert_eq!(count(&plane, "state=paused").await, 4);
    let pauses = items(&plane, "/v1/pauses").await;
    assert_eq!(pauses.len(), 4);
    assert!(
        pauses[0]["reason"].as_str().unwrap().ends_with("an audit"),
        "{pauses:?}"
    );
    for (action, filter, wanted) in [
        ("pause", json!({}), 2),
        ("resume", json!({}), 4),
        ("cancel", json!({ "state": "paused" }), 4),
        ("cancel", json!({ "state": "ready" }), 2),
    ] {
        assert_eq!(
            matched(&plane, action, filter.clone()).await,
            wanted,
            "{action} {filter}"
        );
    }
    let done = batch(&plane, json!({ "action": "resume", "filter": {} })).await;
    assert_eq!(done["done"], 4, "{done}");
    assert_eq!(count(&plane, "state=ready").await, 6);
    assert!(items(&plane, "/v1/pauses").await.is_empty());
}

/// What is asked for, and the answer's status, field and words.
#[rustfmt::skip]
fn mistakes() -> Vec<(Value, u16, &'static str, &'static str)> {
    vec![
        (json!({ "action": "replay" }), 400, "filter.state", "does again what has succeeded"),
        (json!({ "action": "retry", "step": 1 }), 400, "step", "for `replay` only"),
        (json!({ "action": "replay", "step": 32, "filter": { "state": "failed" } }), 400, "step", "at most 32 steps"),
        (json!({ "action": "pause", "confirm": 1 }), 400, "reason", "why their work waits"),
        (json!({ "action": "pause", "confirm": 1, "reason": "  " }), 400, "reason", "why their work waits"),
        (json!({ "action": "redrive", "filter": { "state": "cancelled" } }), 400, "filter.state", "failed"),
        (json!({ "action": "retry", "filter": { "state": "running" } }), 400, "filter.state", "failed, cancelled"),
        (json!({ "action": "pause", "filter": { "state": "failed" } }), 400, "filter.state", "ready"),
        (json!({ "action": "cancel", "filter": { "tenant": "ACME" } }), 400, "filter.tenant", "a-z"),
        (json!({ "action": "redrive", "filter": { "outcome": "lost" } }), 400, "filter.outcome", "unknown variant"),
        (json!({ "action": "redrive", "filter": { "finished_after": "2030-01-01T00:00:00Z", "finished_before": "2029-01-01T00:00:00Z" } }), 400, "filter.finished_after", "must be before"),
        (json!({ "action": "redrive", "confirm": 5 }), 422, "filter", "matches no process"),
        (json!({ "action": "resume", "confirm": 1 }), 422, "filter", "matches no process"),
    ]
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_by_name() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    made(&plane, "e", json!({ "agent": agent, "kind": "exec" })).await;
    for (change, status, field, words) in mistakes() {
        let mut body = json!({ "filter": {} });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        if body.get("confirm").is_none() {
            body["dry_run"] = json!(true);
        }
        let (got, problem) = plane.post("/v1/batches", body).await;
        assert_eq!(got, status, "{change}: {problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{change}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{detail} lacks `{words}`");
    }
    for (query, status, field) in [
        ("outcome=lost", 400, "outcome"),
        ("tenant=ACME", 400, "tenant"),
        ("agent=nowhere", 422, "agent"),
        ("group=nowhere", 422, "group"),
        ("page_token=xyz", 400, "page_token"),
        ("page_size=501", 400, "page_size"),
        (
            "finished_after=2030-01-01T00:00:00Z&finished_before=2029-01-01T00:00:00Z",
            400,
            "finished_after",
        ),
    ] {
        let (got, problem) = plane.get(&format!("/v1/dead-letters?{query}")).await;
        assert_eq!(got, status, "{query}: {problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{query}: {problem}");
    }
    assert!(items(&plane, "/v1/batches").await.is_empty());
}
