//! `/metrics` in both of its formats.

use std::collections::BTreeSet;

use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::json;

use crate::client_model::{MetricFamily, read};
use crate::plane::{Plane, eventually, plane};

/// What Prometheus asks for when it scrapes native histograms.
const NATIVE: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
    encoding=delimited;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";

async fn native(plane: &Plane) -> Vec<MetricFamily> {
    let request = plane
        .request(Method::GET, "/metrics")
        .header(ACCEPT, NATIVE);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers()[CONTENT_TYPE],
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
    );
    assert_eq!(response.headers()["vary"], "accept");
    read(&response.bytes().await.unwrap())
}

async fn text(plane: &Plane) -> String {
    let response = plane.request(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(
        response.headers()[CONTENT_TYPE],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    response.text().await.unwrap()
}

fn value(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn native_histograms_say_what_the_text_says() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    for key in 0..20 {
        let body = json!({ "agent": agent, "kind": "exec" });
        assert_eq!(plane.start(&key.to_string(), body).await.0, 201);
    }
    // Figures of the process server are told once a second; these stand still from then on.
    let page = eventually("twenty ends", async || {
        let page = text(&plane).await;
        (value(&page, "drover_process_total_seconds_count ") == 20.0).then_some(page)
    })
    .await;
    let families = native(&plane).await;
    let names: BTreeSet<&str> = families
        .iter()
        .map(|family| family.name.as_deref().unwrap())
        .collect();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let expected: BTreeSet<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, expected);
    assert_eq!(names.len(), families.len(), "every family comes once");
    for name in [
        "drover_process_total_seconds",
        "drover_process_start_seconds",
    ] {
        let family = families
            .iter()
            .find(|family| family.name.as_deref() == Some(name));
        let told = family.unwrap().metric[0].histogram.clone().unwrap();
        assert_eq!(told.sample_count, Some(20));
        assert_eq!(told.schema, Some(3));
        assert_eq!(told.native().last().unwrap().1, 20);
        let sum = value(&page, &format!("{name}_sum "));
        assert!((told.sample_sum.unwrap() - sum).abs() < 1e-6);
        for bucket in told.bucket {
            let line = format!("{name}_bucket{{le=\"{}\"}} ", bucket.upper_bound.unwrap());
            assert_eq!(value(&page, &line), bucket.cumulative_count.unwrap() as f64);
        }
    }
}
