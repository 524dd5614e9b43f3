//! Histograms over time: what was counted is there, under its name and route, and adds up.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control::api::model::Timestamp;
use control::api::model::histograms::{HistogramNames, HistogramRange};
use control::api::model::overview::Overview;
use control::telemetry::Name;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use reqwest::Method;
use serde_json::json;

use crate::plane::{Plane, eventually, plane};

async fn range(plane: &Plane, query: &str) -> HistogramRange {
    let (status, body) = plane.get(&format!("/v1/histograms/{query}")).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_value(body).unwrap()
}

/// The range as soon as it holds so many; the server looks once a second.
async fn counted(plane: &Plane, query: &str, count: u64) -> HistogramRange {
    eventually(query, async || {
        let found = range(plane, query).await;
        (found.count >= count).then_some(found)
    })
    .await
}

#[tokio::test]
async fn every_histogram_has_a_name_and_says_what_it_measures() {
    let plane = plane().await;
    let (status, body) = plane.get("/v1/histograms").await;
    assert_eq!(status, 200, "{body}");
    let told: HistogramNames = serde_json::from_value(body).unwrap();
    let names: Vec<&str> = told.items.iter().map(|item| item.name.as_str()).collect();
    let all: Vec<&str> = Name::ALL.iter().map(|name| name.as_str()).collect();
    assert_eq!(names, all);
    let api = told.items.iter().find(|item| item.name == "api").unwrap();
    assert!(api.routes.contains(&"GET /v1/histograms/{name}".to_owned()));
    assert!(api.routes.contains(&"other".to_owned()));
    let (_, body) = plane.get("/v1/overview").await;
    let overview: Overview = serde_json::from_value(body).unwrap();
    assert_eq!(overview.histograms, all);
    for name in all {
        range(&plane, name).await;
    }
}

#[tokio::test]
async fn what_was_done_is_found_and_its_parts_add_up() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    for key in ["a", "b", "c"] {
        let body = json!({ "agent": agent, "kind": "exec" });
        assert_eq!(plane.start(key, body).await.0, 201);
    }
    counted(&plane, "process", 3).await;
    let commits = counted(&plane, "store_commit?step=1", 1).await;
    let binned = commits.intervals.as_ref().unwrap().iter();
    let sum: u64 = binned.flat_map(|step| &step.bins).map(|bin| bin[2]).sum();
    assert_eq!(sum, commits.count);
    let ladder = [
        commits.min_us,
        commits.p50_us,
        commits.p90_us,
        commits.p99_us,
        commits.p999_us,
        commits.p9999_us,
        commits.max_us,
    ];
    assert!(
        ladder.iter().all(Option::is_some) && ladder.is_sorted(),
        "{ladder:?}"
    );
    let mean = commits.mean_us.unwrap();
    assert!(commits.min_us.unwrap() as f64 <= mean && mean <= commits.max_us.unwrap() as f64);
    assert!(commits.from < commits.to);
    let (_, body) = plane.get("/v1/overview").await;
    let overview: Overview = serde_json::from_value(body).unwrap();
    assert!(overview.latency["store_commit"].count >= commits.count);
    // Nothing came in through a gateway: it is measured, and there is nothing of it.
    let handshakes = range(&plane, "handshake?step=10").await;
    assert_eq!((handshakes.count, handshakes.p50_us), (0, None));
    assert_eq!(handshakes.intervals, Some(Vec::new()));
}

#[tokio::test]
async fn the_api_is_measured_by_route_and_strangers_make_no_new_ones() {
    let plane = plane().await;
    for _ in 0..3 {
        assert_eq!(plane.get("/v1/groups").await.0, 200);
    }
    for nowhere in 0..5 {
        assert_eq!(plane.get(&format!("/v1/nowhere/{nowhere}")).await.0, 404);
        assert_eq!(plane.get(&format!("/ui/nothing-{nowhere}.js")).await.0, 404);
    }
    let odd = plane.request(Method::PUT, "/v1/groups");
    assert_eq!(odd.send().await.unwrap().status(), 405);
    let groups = counted(&plane, "api?route=GET%20/v1/groups", 3).await;
    assert_eq!(groups.count, 3);
    assert_eq!(groups.route.as_deref(), Some("GET /v1/groups"));
    let other = counted(&plane, "api?route=other", 11).await;
    assert_eq!(other.count, 11);
    // All routes together.
    assert!(range(&plane, "api").await.count >= 14);
}

#[tokio::test]
async fn the_whole_histogram_comes_as_v2_and_says_the_same() {
    let plane = plane().await;
    assert_eq!(plane.get("/v1/agents").await.0, 200);
    let query = "api?route=GET%20/v1/agents";
    let json = counted(&plane, query, 1).await;
    let request = plane.request(
        Method::GET,
        &format!("/v1/histograms/{query}&format=v2&to={}", json.to),
    );
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; charset=utf-8"
    );
    let bytes = STANDARD.decode(response.bytes().await.unwrap()).unwrap();
    let told: Histogram<u64> = Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .unwrap();
    assert_eq!(told.len(), json.count);
    assert_eq!(Some(told.value_at_quantile(0.99)), json.p99_us);
    assert_eq!(Some(told.max()), json.max_us);
    assert_eq!((told.low(), told.sigfig()), (1, 2));
}

#[tokio::test]
async fn a_time_before_what_is_kept_is_gone() {
    let plane = plane().await;
    counted(&plane, "api", 1).await;
    let before = Timestamp(1_700_000_000_000);
    let (status, body) = plane.get(&format!("/v1/histograms/api?to={before}")).await;
    assert_eq!(
        (status, &body["type"]),
        (410, &json!("urn:drover:problem:not-kept"))
    );
    assert!(body["detail"].as_str().unwrap().contains("newer than 20"));
}
