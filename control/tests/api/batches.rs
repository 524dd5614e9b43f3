//! Batches: what matches, what is confirmed, and that they go on after a crash.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::runtime::Runtime;

use crate::plane::{Plane, eventually, plane, plane_in};
use crate::webhooks::processes;

/// So many processes that wait, of an agent that is not connected.
async fn waiting(plane: &Plane, ticket: u64, count: usize) -> String {
    let agent = plane.agent(ticket, false).await.to_string();
    processes(plane, &agent, &format!("{ticket}-"), count).await;
    agent
}

async fn ask(plane: &Plane, change: impl FnOnce(&mut Value)) -> (u16, Value) {
    let mut body = json!({ "filter": {}, "action": "cancel" });
    change(&mut body);
    plane.post("/v1/batches", body).await
}

/// How many processes are in a state.
async fn count(plane: &Plane, query: &str) -> usize {
    let (status, page) = plane
        .get(&format!("/v1/processes?page_size=500&{query}"))
        .await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().len()
}

async fn ended(plane: &Plane, id: &str) -> Value {
    eventually("the batch's end", async || {
        let (_, batch) = plane.get(&format!("/v1/batches/{id}")).await;
        (batch["state"] != "running").then_some(batch)
    })
    .await
}

async fn events(plane: &Plane, kind: &str) -> Vec<Value> {
    let rows = plane.store.events_after(0, None, 10_000).await.unwrap();
    let of_kind = rows.into_iter().filter(|row| row.kind == kind);
    of_kind.map(|row| row.data).collect()
}

#[tokio::test]
async fn a_dry_run_counts_and_writes_nothing() {
    let plane = plane().await;
    waiting(&plane, 1, 30).await;
    let (status, preview) = ask(&plane, |body| body["dry_run"] = json!(true)).await;
    assert_eq!(
        (status, &preview["matched"]),
        (200, &json!(30)),
        "{preview}"
    );
    let sample = preview["sample"].as_array().unwrap();
    assert_eq!(sample.len(), 20);
    let ids: Vec<&str> = sample
        .iter()
        .map(|process| process["id"].as_str().unwrap())
        .collect();
    assert!(ids.is_sorted(), "the oldest first");
    assert_eq!(count(&plane, "state=ready").await, 30);
    let (_, page) = plane.get("/v1/batches").await;
    assert_eq!(page["items"], json!([]));
    assert!(events(&plane, "batch.started").await.is_empty());
}

#[tokio::test]
async fn a_batch_needs_the_right_figure_and_does_what_matches() {
    let plane = plane().await;
    let one = waiting(&plane, 1, 20).await;
    let two = waiting(&plane, 2, 15).await;
    let (status, problem) = ask(&plane, |_| {}).await;
    assert_eq!(
        (status, &problem["errors"][0]["field"]),
        (400, &json!("confirm")),
        "{problem}"
    );
    let filter = json!({ "agent": one, "state": "ready", "kind": "exec" });
    let (status, problem) = ask(&plane, |body| {
        body["filter"] = filter.clone();
        body["confirm"] = json!(35);
    })
    .await;
    assert_eq!(
        (status, &problem["errors"][0]["field"]),
        (409, &json!("confirm")),
        "{problem}"
    );
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("20 processes match"),
        "{problem}"
    );
    assert_eq!(count(&plane, "state=cancelled").await, 0);
    let (status, batch) = ask(&plane, |body| {
        body["filter"] = filter.clone();
        body["confirm"] = json!(19);
        body["reason"] = json!("rack 7 is going");
        body["rate_per_second"] = json!(1000);
    })
    .await;
    assert_eq!((status, &batch["matched"]), (201, &json!(20)), "{batch}");
    let batch = ended(&plane, batch["id"].as_str().unwrap()).await;
    assert_eq!(batch["state"], "finished");
    assert_eq!((&batch["done"], &batch["failed"]), (&json!(20), &json!(0)));
    assert!(
        batch["finished_at"].is_string() && batch["by"].is_string(),
        "{batch}"
    );
    assert_eq!(
        count(&plane, &format!("state=cancelled&agent={one}")).await,
        20
    );
    assert_eq!(count(&plane, &format!("state=ready&agent={two}")).await, 15);
    let started = events(&plane, "batch.started").await;
    let finished = events(&plane, "batch.finished").await;
    assert_eq!((started.len(), finished.len()), (1, 1));
    assert_eq!(started[0]["reason"], "rack 7 is going");
    assert_eq!(
        (&finished[0]["done"], &finished[0]["state"]),
        (&json!(20), &json!("finished"))
    );
    // A second one finds nothing.
    let (status, problem) = ask(&plane, |body| {
        body["filter"] = filter;
        body["confirm"] = json!(20);
    })
    .await;
    assert_eq!(
        (status, &problem["errors"][0]["field"]),
        (422, &json!("filter")),
        "{problem}"
    );
}

#[tokio::test]
async fn every_part_of_a_filter_counts() {
    let plane = plane().await;
    let (status, group) = plane.post("/v1/groups", json!({ "name": "rack-7" })).await;
    assert_eq!(status, 201, "{group}");
    let token = plane
        .join_tokens(json!({ "group": "rack-7" }))
        .await
        .pop()
        .unwrap();
    let grouped = plane
        .enrol(9, token.secret, crate::plane::csr())
        .await
        .unwrap()
        .agent;
    processes(&plane, &grouped.to_string(), "g", 3).await;
    waiting(&plane, 1, 4).await;
    let middle = control::api::model::Timestamp(control::clock::now().0 + 1).to_string();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let busy = plane.agent(2, true).await;
    for key in ["x", "y"] {
        plane
            .start(key, json!({ "agent": busy, "kind": "hang" }))
            .await;
    }
    eventually("the work to run", async || {
        (count(&plane, "state=running").await == 2).then_some(())
    })
    .await;
    for (filter, matched) in [
        (json!({}), 9),
        (json!({ "group": "rack-7" }), 3),
        (json!({ "group": group["id"] }), 3),
        (json!({ "kind": "hang" }), 2),
        (json!({ "state": "running" }), 2),
        (json!({ "state": "ready" }), 7),
        (json!({ "agent": "hv-2" }), 2),
        (json!({ "agent": grouped }), 3),
        (json!({ "created_before": middle }), 7),
        (json!({ "created_after": middle }), 2),
        (
            json!({ "created_after": "2020-01-01T00:00:00Z", "created_before": "2021-01-01T00:00:00Z" }),
            0,
        ),
        (json!({ "agent": "hv-2", "state": "ready" }), 0),
    ] {
        let (status, preview) = ask(&plane, |body| {
            body["filter"] = filter.clone();
            body["dry_run"] = json!(true);
        })
        .await;
        assert_eq!(
            (status, &preview["matched"]),
            (200, &json!(matched)),
            "{filter}: {preview}"
        );
    }
    // What runs is told to stop, by its agent's word.
    let (_, batch) = ask(&plane, |body| {
        body["filter"] = json!({ "kind": "hang" });
        body["confirm"] = json!(2);
    })
    .await;
    let batch = ended(&plane, batch["id"].as_str().unwrap()).await;
    assert_eq!(batch["done"], 2, "{batch}");
    assert_eq!(count(&plane, "state=cancelling").await, 2);
}

#[tokio::test]
async fn the_pace_the_maximum_and_a_cancel_hold() {
    let plane = plane().await;
    waiting(&plane, 1, 60).await;
    let (_, batch) = ask(&plane, |body| {
        body["confirm"] = json!(60);
        body["max"] = json!(5);
        body["rate_per_second"] = json!(1000);
    })
    .await;
    let batch = ended(&plane, batch["id"].as_str().unwrap()).await;
    assert_eq!((&batch["matched"], &batch["done"]), (&json!(60), &json!(5)));
    let began = control::clock::monotonic();
    let (_, batch) = ask(&plane, |body| {
        body["confirm"] = json!(55);
        body["rate_per_second"] = json!(20);
    })
    .await;
    let id = batch["id"].as_str().unwrap();
    // What comes later is not its business.
    waiting(&plane, 2, 5).await;
    eventually("ten", async || {
        let (_, batch) = plane.get(&format!("/v1/batches/{id}")).await;
        (batch["done"].as_u64() >= Some(10)).then_some(())
    })
    .await;
    assert!(
        began.elapsed() >= Duration::from_millis(400),
        "{:?}",
        began.elapsed()
    );
    let (status, batch) = plane
        .post(&format!("/v1/batches/{id}/cancel"), json!({}))
        .await;
    assert_eq!(
        (status, &batch["state"]),
        (200, &json!("cancelled")),
        "{batch}"
    );
    tokio::time::sleep(Duration::from_millis(400)).await;
    let (_, later) = plane.get(&format!("/v1/batches/{id}")).await;
    let done = later["done"].as_u64().unwrap();
    assert!(done < 55 && later["state"] == "cancelled", "{later}");
    let cancelled = count(&plane, "state=cancelled").await;
    assert_eq!(u64::try_from(cancelled).unwrap(), done + 5);
    let finished = events(&plane, "batch.finished").await;
    assert_eq!(finished.last().unwrap()["state"], "cancelled");
}

#[test]
fn a_batch_goes_on_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let first = Runtime::new().unwrap();
    let id = first.block_on(async {
        let plane = plane_in(dir, 10_000).await;
        waiting(&plane, 1, 60).await;
        let (status, batch) = ask(&plane, |body| {
            body["confirm"] = json!(60);
            body["rate_per_second"] = json!(40);
        })
        .await;
        assert_eq!(status, 201, "{batch}");
        let id = batch["id"].as_str().unwrap().to_owned();
        eventually("some", async || {
            let (_, batch) = plane.get(&format!("/v1/batches/{id}")).await;
            (batch["done"].as_u64() >= Some(12)).then_some(())
        })
        .await;
        std::mem::forget(plane.dir);
        id
    });
    first.shutdown_timeout(Duration::from_secs(10));
    let second = Runtime::new().unwrap();
    second.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        std::fs::remove_dir(dir.path()).unwrap();
        std::fs::rename(&path, dir.path()).unwrap();
        let plane = plane_in(dir, 10_000).await;
        let (_, batch) = plane.get(&format!("/v1/batches/{id}")).await;
        let before = batch["done"].as_u64().unwrap();
        assert!((12..60).contains(&before), "{batch}");
        let batch = ended(&plane, &id).await;
        assert_eq!(batch["state"], "finished");
        // The step that the crash cut off may have acted without being counted.
        let done = batch["done"].as_u64().unwrap();
        assert!((56..=60).contains(&done), "{batch}");
        assert_eq!(count(&plane, "state=cancelled").await, 60);
        assert_eq!(events(&plane, "batch.finished").await.len(), 1);
    });
}

/// What is asked for, and the answer's status, field and words.
#[rustfmt::skip]
fn mistakes() -> Vec<(Value, u16, &'static str, &'static str)> {
    vec![
        (json!({ "max": 0 }), 400, "max", "1 to 1000000"),
        (json!({ "rate_per_second": 1001 }), 400, "rate_per_second", "1 to 1000"),
        (json!({ "reason": "x".repeat(257) }), 400, "reason", "256 bytes"),
        (json!({ "action": "explode" }), 400, "action", "unknown variant `explode`"),
        (json!({ "filter": { "state": "succeeded" } }), 400, "filter.state", "ready"),
        (json!({ "filter": { "state": "done" } }), 400, "filter.state", "unknown variant"),
        (json!({ "filter": { "colour": 1 } }), 400, "filter.colour", "unknown field"),
        (json!({ "filter": { "kind": "" } }), 400, "filter.kind", "a-z"),
        (json!({ "filter": { "agent": "nowhere" } }), 422, "filter.agent", "`nowhere`"),
        (json!({ "filter": { "group": "nowhere" } }), 422, "filter.group", "`nowhere`"),
        (json!({ "filter": { "created_before": "today" } }), 400, "filter.created_before", "RFC 3339"),
        (json!({ "filter": { "created_after": "2030-01-01T00:00:00Z", "created_before": "2029-01-01T00:00:00Z" } }), 400, "filter.created_after", "must be before"),
        (json!({ "confirm": 4 }), 409, "confirm", "3 processes match"),
    ]
}

#[tokio::test]
async fn a_batch_that_cannot_be_is_refused_by_name() {
    let plane = plane().await;
    waiting(&plane, 1, 3).await;
    let nil = uuid::Uuid::nil();
    for (change, status, field, words) in mistakes() {
        let (got, problem) = ask(&plane, |body| {
            for (name, value) in change.as_object().unwrap() {
                body[name] = value.clone();
            }
            if body.get("confirm").is_none() {
                body["dry_run"] = json!(true);
            }
        })
        .await;
        assert_eq!(got, status, "{change}: {problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{change}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{detail} lacks `{words}`");
    }
    let (status, problem) = plane.get(&format!("/v1/batches/{nil}")).await;
    assert_eq!(status, 404, "{problem}");
    let (status, problem) = plane
        .post(&format!("/v1/batches/{nil}/cancel"), json!({}))
        .await;
    assert_eq!(status, 404, "{problem}");
    assert_eq!(count(&plane, "state=ready").await, 3);
}

#[tokio::test]
async fn only_so_many_run_at_once() {
    let plane = plane().await;
    waiting(&plane, 1, 300).await;
    let mut ids = Vec::new();
    let problem = eventually("a refusal", async || {
        let (status, answer) = ask(&plane, |body| {
            body["confirm"] = json!(290);
            body["rate_per_second"] = json!(1);
        })
        .await;
        if status == 409 {
            return Some(answer);
        }
        ids.push(answer["id"].as_str().unwrap().to_owned());
        None
    })
    .await;
    assert_eq!(ids.len(), 16, "{problem}");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("16 batches are running"),
        "{problem}"
    );
    let (_, page) = plane.get("/v1/batches?page_size=5").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 5);
    assert_eq!(page["items"][0]["id"], ids[15], "newest first");
    assert!(page["next_page_token"].is_string());
}

/// So many processes of one agent whose next attempt waits 10 s and more: too many have failed.
async fn held_back(plane: &Plane, count: usize) {
    let agent = plane.agent(1, true).await;
    for n in 0..count {
        let body = json!({ "agent": agent, "kind": "flaky", "max_attempts": 20 });
        assert_eq!(plane.start(&format!("f{n}"), body).await.0, 201);
    }
    all_held_back(plane, count).await;
}

async fn all_held_back(plane: &Plane, count: usize) {
    eventually("all wait for the retry budget", async || {
        let (_, page) = plane.get("/v1/processes?page_size=500").await;
        let items = page["items"].as_array().unwrap();
        let held = items
            .iter()
            .filter(|process| process["waiting_on"]["scope"] == "budget");
        (held.count() == count).then_some(())
    })
    .await;
}

/// Takes back what a batch has noted, as if the server had died between acting and noting.
async fn forget_progress(dir: &std::path::Path) {
    let database = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("drover.db"));
    let mut database = database.connect().await.unwrap();
    let changed = sqlx::query(
        "UPDATE batch SET state = 'running', finished_at = NULL, done = 0, failed = 0,
             cursor = zeroblob(16)",
    )
    .execute(&mut database)
    .await
    .unwrap();
    assert_eq!(changed.rows_affected(), 1);
    database.close().await.unwrap();
}

#[test]
fn a_replay_that_dies_before_it_has_noted_its_orders_repeats_none() {
    const COUNT: usize = 14;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let first = Runtime::new().unwrap();
    let id = first.block_on(async {
        let plane = plane_in(dir, 10_000).await;
        held_back(&plane, COUNT).await;
        let (status, batch) = ask(&plane, |body| {
            body["action"] = json!("replay");
            body["filter"] = json!({ "state": "backoff" });
            body["confirm"] = json!(COUNT);
            body["rate_per_second"] = json!(1000);
        })
        .await;
        assert_eq!(status, 201, "{batch}");
        let id = batch["id"].as_str().unwrap().to_owned();
        assert_eq!(ended(&plane, &id).await["done"], COUNT);
        all_held_back(&plane, COUNT).await;
        std::mem::forget(plane.dir);
        id
    });
    first.shutdown_timeout(Duration::from_secs(10));
    let second = Runtime::new().unwrap();
    second.block_on(async {
        forget_progress(&path).await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::remove_dir(dir.path()).unwrap();
        std::fs::rename(&path, dir.path()).unwrap();
        let plane = plane_in(dir, 10_000).await;
        let batch = ended(&plane, &id).await;
        assert_eq!(
            (&batch["done"], &batch["failed"]),
            (&json!(COUNT), &json!(0)),
            "{batch}"
        );
        let reason = format!("batch {id}");
        let states = events(&plane, "process.state").await;
        let orders = states.iter().filter(|data| data["reason"] == *reason);
        assert_eq!(orders.count(), COUNT, "each once");
    });
}

#[tokio::test]
async fn a_replay_is_not_held_back_by_an_empty_budget() {
    let plane = plane().await;
    held_back(&plane, 12).await;
    let (_, page) = plane.get("/v1/processes?state=backoff").await;
    let path = format!("/v1/processes/{}", page["items"][0]["id"].as_str().unwrap());
    let (status, body) = plane.post(&format!("{path}/replay"), json!({})).await;
    assert_eq!(status, 202, "{body}");
    let is_order = |line: &Value| line["actor"] == "first admin" && line["from"] == "backoff";
    let claimed = |history: &Value| {
        let items = history["items"].as_array().unwrap().iter();
        let mut since = items.skip_while(|line| !is_order(line));
        since.any(|line| line["to"] == "leased")
    };
    eventually("an attempt after the order", async || {
        let (_, history) = plane.get(&format!("{path}/history")).await;
        claimed(&history).then_some(())
    })
    .await;
}
