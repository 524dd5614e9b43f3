//! The event stream: resuming, filters, and what is no longer there.

use std::time::Duration;

use control::clock;
use control::store::Store;
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, plane, plane_in, plane_of, read};

/// Reads events until `wanted` of them have come.
async fn watch(plane: &Plane, query: &str, after: Option<u64>, wanted: usize) -> Vec<Value> {
    let mut request = plane.request(Method::GET, &format!("/v1/events{query}"));
    if let Some(after) = after {
        request = request.header("Last-Event-ID", after.to_string());
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut bytes = response.bytes_stream();
    let mut text = String::new();
    loop {
        let events = parse(&text);
        if events.len() >= wanted {
            return events;
        }
        let piece = bytes.next().await.expect("the stream goes on").unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
}

fn parse(text: &str) -> Vec<Value> {
    let complete = text
        .rsplit_once("\n\n")
        .map_or("", |(complete, _)| complete);
    complete
        .split("\n\n")
        .filter_map(|block| {
            let field = |name: &str| {
                let mut lines = block.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let data: Value = serde_json::from_str(field("data")?).unwrap();
            assert_eq!(field("id").unwrap(), data["sequence"].to_string());
            assert_eq!(field("event").unwrap(), data["type"].as_str().unwrap());
            Some(data)
        })
        .collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_stream_goes_on_behind_the_last_event_and_misses_none() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let body = json!({ "agent": agent, "kind": "exec" });
    let (_, process) = plane.start("1", body.clone()).await;
    let id = process["id"].as_str().unwrap();
    let story = watch(&plane, &format!("?process={id}"), Some(0), 4).await;
    assert_eq!(story[0]["type"], "process.created");
    assert!(story.iter().all(|event| event["process"] == id));
    // Everything behind the first event of the story, again.
    let first = story[0]["sequence"].as_u64().unwrap();
    let rest = watch(&plane, &format!("?process={id}&after={first}"), None, 3).await;
    assert_eq!(rest[..3], story[1..4]);
    let all = watch(&plane, "", Some(0), 6).await;
    let sequences: Vec<_> = all
        .iter()
        .map(|event| event["sequence"].as_u64().unwrap())
        .collect();
    assert!(sequences.is_sorted() && sequences[0] == 1, "{sequences:?}");
    assert!(kinds(&all).contains(&"agent.enrolled"), "{:?}", kinds(&all));
}

#[tokio::test]
async fn a_stream_without_an_id_begins_now_and_filters() {
    let plane = plane().await;
    let (one, two) = (plane.agent(1, true).await, plane.agent(2, true).await);
    let query = format!("?agent={two}");
    let watching = watch(&plane, &query, None, 1);
    let acting = async {
        // Until the watcher has seen one: it may begin at any time.
        for n in 0.. {
            for agent in [one, two] {
                let body = json!({ "agent": agent, "kind": "exec" });
                plane.start(&format!("{agent}{n}"), body).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let events = tokio::select! {
        events = watching => events,
        () = acting => unreachable!("goes on for ever"),
    };
    assert!(events.iter().all(|event| event["agent"] == two.to_string()));
}

/// A process that writes nothing itself, and another one on the same store, of which nothing is heard: here the event
/// service reaches no further than the process.
async fn a_stream_tells_what_another_process_has_written(url: String) {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(&url, here.path()).await.unwrap();
    let plane = plane_of(here, store).await;
    let other = Store::open(&url, there.path()).await.unwrap();
    let watching = watch(&plane, "?type=made.elsewhere", None, 2);
    let writing = async {
        for number in 0..2 {
            // More than a sweep: the stream has found nothing before.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let data = json!({ "number": number });
            other
                .record_event(clock::now(), "made.elsewhere", None, data)
                .await
                .unwrap();
        }
        // Two sweeps.
        tokio::time::sleep(Duration::from_secs(4)).await;
    };
    let told = tokio::select! {
        told = watching => told,
        () = writing => panic!("the stream stands still"),
    };
    let numbers: Vec<_> = told.iter().map(|event| &event["data"]["number"]).collect();
    assert_eq!(numbers, [0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_what_another_process_has_written_to_postgres() {
    let server = testkit::Postgres::start().await.unwrap();
    let url = server.database("drover").await.unwrap();
    Box::pin(a_stream_tells_what_another_process_has_written(url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_what_another_process_has_written_to_mariadb() {
    let server = testkit::MariaDb::start().await.unwrap();
    let url = server.database("drover").await.unwrap();
    Box::pin(a_stream_tells_what_another_process_has_written(url)).await;
}

/// As on a database server after a transaction that failed: its numbers are nobody's.
#[tokio::test]
async fn a_stream_goes_on_over_a_number_that_no_event_has() {
    use sqlx::{ConnectOptions as _, Connection as _};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("drover.db");
    let plane = plane_in(dir, 10_000).await;
    let agent = plane.agent(1, true).await;
    plane
        .start("1", json!({ "agent": agent, "kind": "exec" }))
        .await;
    let all = watch(&plane, "", Some(0), 6).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut database = options.connect().await.unwrap();
    let missing = all[3]["sequence"].as_i64().unwrap();
    let gone = sqlx::query("DELETE FROM process_event WHERE seq = ?").bind(missing);
    let gone = gone.execute(&mut database).await.unwrap();
    assert_eq!(gone.rows_affected(), 1);
    database.close().await.unwrap();
    let rest = watch(&plane, "", Some(0), 5).await;
    assert_eq!((&rest[..3], &rest[3..5]), (&all[..3], &all[4..6]));
}

#[tokio::test]
async fn ids_that_are_not_there_are_gone() {
    let plane = plane().await;
    plane.agent(1, true).await;
    let request = plane
        .request(Method::GET, "/v1/events")
        .header("Last-Event-ID", "1000000");
    let (status, problem) = read(request.send().await.unwrap()).await;
    assert_eq!(status, 410, "{problem}");
    let retention = control::store::log::Retention {
        events: 1,
        ..Default::default()
    };
    let now = clock::now();
    while plane.store.trim(retention, now).await.unwrap() {}
    let (status, problem) = plane.get("/v1/events?after=0").await;
    assert_eq!(status, 410, "{problem}");
    assert_eq!(problem["type"], "urn:drover:problem:events-trimmed");
    let span = plane.store.event_span().await.unwrap();
    assert!(span.first > 1);
}

#[tokio::test]
async fn streams_end_when_the_server_drains() {
    let plane = plane().await;
    let response = plane
        .request(Method::GET, "/v1/events")
        .send()
        .await
        .unwrap();
    let reading = tokio::spawn(response.bytes());
    plane.control.drain(Duration::from_secs(20)).await;
    assert!(reading.await.unwrap().is_ok(), "an orderly end");
}
