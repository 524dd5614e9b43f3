//! The server dies in the middle of delivering, and starts again on the same store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control::webhooks::WebhooksConfig;
use serde_json::json;
use tokio::runtime::Runtime;

use super::{processes, quick, webhook};
use crate::plane::{eventually, plane_with};
use crate::receiver::{Answer, Got, Receiver};

fn config() -> WebhooksConfig {
    WebhooksConfig {
        allow_insecure: true,
        timing: quick(),
        ..WebhooksConfig::default()
    }
}

#[test]
fn a_crash_in_the_middle_of_delivering_loses_nothing() {
    const EVENTS: usize = 200;
    let outside = Runtime::new().unwrap();
    // Some fail, some are slow: at the crash there are rows, flights and unread events.
    let receiver = outside.block_on(Receiver::start(|got: &Got| match got.nth % 7 {
        2 | 5 => Answer::Status(500),
        3 => Answer::Slow(Duration::from_millis(30)),
        _ => Answer::Status(200),
    }));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();

    let first = Runtime::new().unwrap();
    let url = receiver.url("/");
    let secret = first.block_on(async {
        let plane = plane_with(dir, 10_000, config()).await;
        let hook = json!({ "url": url, "events": ["process.created"] });
        let (_, secret) = webhook(&plane, hook).await;
        let agent = plane.agent(1, false).await.to_string();
        processes(&plane, &agent, "a", EVENTS).await;
        receiver.wait(EVENTS / 3).await;
        // Nothing is told that the end comes; the directory outlives it.
        std::mem::forget(plane.dir);
        secret
    });
    first.shutdown_timeout(Duration::from_secs(10));
    let before = receiver.got().len();
    assert!(before < EVENTS, "the crash came too late to prove anything");

    let second = Runtime::new().unwrap();
    second.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        // The same files under a name that goes away with the test.
        std::fs::remove_dir(dir.path()).unwrap();
        std::fs::rename(&path, dir.path()).unwrap();
        let plane = plane_with(dir, 10_000, config()).await;
        eventually("everything at the receiver", async || {
            let (_, page) = plane.get("/v1/webhooks").await;
            let hook = &page["items"][0];
            (hook["lag"] == 0 && hook["waiting"] == 0).then_some(())
        })
        .await;
    });
    let mut told: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for got in receiver.got() {
        assert_eq!(got.signatures_by(&secret), 1);
        told.entry(got.sequence())
            .or_default()
            .insert(got.id().to_owned());
    }
    assert_eq!(told.len(), EVENTS, "at least once");
    assert!(told.values().all(|ids| ids.len() == 1), "each under one id");
}
