//! Webhooks from end to end: a real receiver on a real socket, the real log, the real store.

#[path = "webhooks/crash.rs"]
mod crash;
#[path = "webhooks/input.rs"]
mod input;
#[path = "webhooks/tls.rs"]
mod tls;

use std::time::Duration;

use control::webhooks::{Timing, WebhooksConfig};
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane_with, read};
use crate::receiver::{Answer, Got, Receiver};

/// Retries within milliseconds.
pub(crate) fn quick() -> Timing {
    Timing {
        timeout: Duration::from_millis(400),
        retry_base: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        probe_max: Duration::from_millis(50),
        sweep: Duration::from_millis(50),
        ..Timing::default()
    }
}

/// A plane that may tell loopback.
pub(crate) async fn plane(timing: Timing) -> Plane {
    let config = WebhooksConfig {
        allow_insecure: true,
        timing,
        ..WebhooksConfig::default()
    };
    plane_with(tempfile::tempdir().unwrap(), 10_000, config).await
}

/// Makes a webhook; its id and its secret.
pub(crate) async fn webhook(plane: &Plane, body: Value) -> (String, String) {
    let (status, made) = plane.post("/v1/webhooks", body).await;
    assert_eq!(status, 201, "{made}");
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("id"), text("secret"))
}

pub(crate) async fn patch(plane: &Plane, id: &str, body: Value) -> (u16, Value) {
    let request = plane.request(Method::PATCH, &format!("/v1/webhooks/{id}"));
    read(request.json(&body).send().await.unwrap()).await
}

/// Makes so many processes of an agent, each of which is an event.
pub(crate) async fn processes(plane: &Plane, agent: &str, key: &str, count: usize) {
    let items: Vec<Value> = (0..count)
        .map(|n| {
            json!({ "idempotency_key": format!("{key}{n}"),
                    "process": { "agent": agent, "kind": "exec" } })
        })
        .collect();
    let body = json!({ "processes": items });
    let (status, answer) = plane.post("/v1/process-batches", body).await;
    assert_eq!(status, 200, "{answer}");
}

async fn deliveries(plane: &Plane, id: &str) -> Vec<Value> {
    let (status, page) = plane.get(&format!("/v1/webhooks/{id}/deliveries")).await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().clone()
}

/// Waits until a webhook's only delivery is as it should be.
async fn delivery(plane: &Plane, id: &str, state: &str) -> Value {
    eventually(&format!("a delivery that is {state}"), async || {
        let all = deliveries(plane, id).await;
        all.into_iter().find(|delivery| delivery["state"] == state)
    })
    .await
}

#[tokio::test]
async fn events_arrive_signed_once_and_in_order() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, true).await;
    let receiver = Receiver::start(|_| Answer::Status(204)).await;
    let hook = json!({ "url": receiver.url("/hooks?a=1"), "events": ["process.*"] });
    let (id, secret) = webhook(&plane, hook).await;
    assert!(secret.starts_with("whsec_"));
    let (_, process) = plane
        .start(
            "1",
            json!({ "agent": agent, "kind": "exec", "input": { "a": 1 } }),
        )
        .await;
    let got = receiver.wait(4).await;
    let kinds: Vec<&str> = got.iter().map(Got::kind).collect();
    assert_eq!(kinds.first(), Some(&"process.created"), "{kinds:?}");
    let last = eventually("the end", async || {
        receiver
            .got()
            .into_iter()
            .find(|got| got.kind() == "process.succeeded")
    })
    .await;
    assert_eq!(last.body["data"]["process"], process["id"]);
    assert_eq!(last.body["data"]["agent"], agent.to_string());
    assert_eq!(last.body["data"]["kind"], "exec");
    assert_eq!(last.body["data"]["details"]["exit_code"], 0);
    for got in receiver.got() {
        assert_eq!(got.path, "/hooks");
        assert_eq!(got.headers["content-type"], "application/json");
        assert_eq!(got.signatures_by(&secret), 1);
        assert_eq!(got.headers["webhook-signature"].split(' ').count(), 1);
        let stamp: u64 = got.headers["webhook-timestamp"].parse().unwrap();
        assert!(stamp.abs_diff(control::clock::now().0 / 1000) < 60);
        assert!(got.body["timestamp"].as_str().unwrap().ends_with('Z'));
    }
    let shown = eventually("the cursor", async || {
        let (_, shown) = plane.get(&format!("/v1/webhooks/{id}")).await;
        (shown["lag"] == 0).then_some(shown)
    })
    .await;
    assert_eq!((&shown["waiting"], &shown["dead"]), (&json!(0), &json!(0)));
    assert!(!shown.to_string().contains(&secret), "shown once");
    let all = deliveries(&plane, &id).await;
    assert_eq!(all.len(), receiver.got().len(), "each once");
    assert_eq!(all[0]["message_id"], last.id());
    assert_eq!(
        (&all[0]["status"], &all[0]["attempts"]),
        (&json!(204), &json!(1))
    );
    let (_, metrics) = plane.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    for line in [
        format!("drover_webhook_lag_events{{webhook=\"{id}\"}} 0"),
        format!("drover_webhook_attempts_in_flight{{webhook=\"{id}\"}} 0"),
        format!(
            "drover_webhook_attempts_total{{result=\"succeeded\"}} {}",
            all.len()
        ),
    ] {
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_failure_is_repeated_with_the_same_id_and_body_until_it_succeeds() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, false).await.to_string();
    let receiver =
        Receiver::start(|got| Answer::Status([500, 404, 503, 200][got.nth.min(3)])).await;
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"] });
    let (id, secret) = webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 1).await;
    let got = receiver.wait(4).await;
    for again in &got {
        assert_eq!((again.id(), &again.bytes), (got[0].id(), &got[0].bytes));
        assert_eq!(again.signatures_by(&secret), 1);
    }
    let done = delivery(&plane, &id, "succeeded").await;
    assert_eq!(
        (&done["attempts"], &done["status"]),
        (&json!(4), &json!(200))
    );
    assert!(
        done.get("error").is_none() && done.get("next_at").is_none(),
        "{done}"
    );
}

#[tokio::test]
async fn patterns_and_filters_choose() {
    let plane = plane(quick()).await;
    let one = plane.agent(1, true).await;
    let two = plane.agent(2, true).await;
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    for (path, events, filter) in [
        ("/ends", json!(["process.finished"]), json!({})),
        (
            "/one",
            json!(["process.succeeded"]),
            json!({ "agent": "hv-1" }),
        ),
        ("/kind", json!(["process.*"]), json!({ "kind": "hang" })),
        (
            "/tenant",
            json!(["process.finished"]),
            json!({ "tenant": "acme" }),
        ),
        (
            "/failed",
            json!(["process.failed", "agent.down"]),
            json!({}),
        ),
    ] {
        let url = receiver.url(path);
        webhook(
            &plane,
            json!({ "url": url, "events": events, "filter": filter }),
        )
        .await;
    }
    for (key, agent, kind) in [("1", one, "exec"), ("2", two, "exec"), ("3", two, "hang")] {
        let tenant = if key == "2" { "acme" } else { "other" };
        let (status, _) = plane
            .start(
                key,
                json!({ "agent": agent, "kind": kind, "tenant": tenant }),
            )
            .await;
        assert_eq!(status, 201);
    }
    let at = |path: &str| {
        let got = receiver.got();
        got.into_iter()
            .filter(|got| got.path == path)
            .collect::<Vec<_>>()
    };
    eventually("what is wanted", async || {
        let told = at("/ends").len() == 2 && at("/one").len() == 1 && at("/tenant").len() == 1;
        (told && at("/kind").len() >= 3).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(at("/ends").len(), 2);
    assert_eq!(at("/one")[0].body["data"]["agent"], one.to_string());
    assert!(
        at("/kind")
            .iter()
            .all(|got| got.body["data"]["kind"] == "hang")
    );
    assert_eq!(at("/tenant").len(), 1);
    assert_eq!(at("/tenant")[0].body["data"]["tenant"], "acme");
    assert!(at("/failed").is_empty());
}

#[tokio::test]
async fn gone_disables_at_once_and_an_event_says_so() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, false).await.to_string();
    let receiver = Receiver::start(|got| match got.path.as_str() {
        "/gone" => Answer::Status(410),
        _ => Answer::Status(200),
    })
    .await;
    let gone = json!({ "url": receiver.url("/gone"), "events": ["process.created"] });
    let (id, _) = webhook(&plane, gone).await;
    webhook(
        &plane,
        json!({ "url": receiver.url("/watch"), "events": ["webhook.disabled"] }),
    )
    .await;
    processes(&plane, &agent, "a", 1).await;
    let told = eventually("the word about it", async || {
        receiver.got().into_iter().find(|got| got.path == "/watch")
    })
    .await;
    assert_eq!(told.body["data"]["details"]["webhook"], id);
    assert!(
        told.body["data"]["details"]["reason"]
            .as_str()
            .unwrap()
            .contains("410")
    );
    let (_, shown) = plane.get(&format!("/v1/webhooks/{id}")).await;
    assert_eq!(shown["disabled"], true);
    assert_eq!(shown["disabled_reason"], "the receiver answered 410 Gone");
    processes(&plane, &agent, "b", 3).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let tries = receiver
        .got()
        .iter()
        .filter(|got| got.path == "/gone")
        .count();
    assert_eq!(tries, 1);
    let path = format!("/v1/webhooks/{id}/deliveries/{}/redeliver", told.sequence());
    let (status, problem) = plane.post(&path, json!({})).await;
    assert_eq!(status, 409, "{problem}");
    // Enabled again it goes on with what happens then.
    let (status, shown) = patch(&plane, &id, json!({ "disabled": false })).await;
    assert_eq!(
        (status, &shown["disabled"]),
        (200, &json!(false)),
        "{shown}"
    );
    processes(&plane, &agent, "c", 1).await;
    eventually("another try", async || {
        let tries = receiver
            .got()
            .iter()
            .filter(|got| got.path == "/gone")
            .count();
        (tries == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_asks_for_a_pause_gets_it() {
    let timing = Timing {
        retry_max: Duration::from_secs(60),
        ..quick()
    };
    let plane = plane(timing).await;
    let agent = plane.agent(1, false).await.to_string();
    let receiver = Receiver::start(|got| match got.nth {
        0 => Answer::Later(429, "2".to_owned()),
        _ => Answer::Status(200),
    })
    .await;
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"] });
    let (id, _) = webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 1).await;
    receiver.wait(1).await;
    let waits = delivery(&plane, &id, "waiting").await;
    assert_eq!(
        (&waits["status"], &waits["error"]),
        (&json!(429), &json!("the answer was 429"))
    );
    // The pause counts for other events as well.
    processes(&plane, &agent, "b", 1).await;
    let got = receiver.wait(3).await;
    for later in &got[1..] {
        let pause = later.at - got[0].at;
        assert!(pause >= Duration::from_millis(1900), "{pause:?}");
    }
}

#[tokio::test]
async fn receivers_that_hang_delay_nobody() {
    let plane = plane(Timing {
        timeout: Duration::from_secs(5),
        ..quick()
    })
    .await;
    let agent = plane.agent(1, false).await.to_string();
    let hanging = Receiver::start(|_| Answer::Hang).await;
    let well = Receiver::start(|_| Answer::Status(200)).await;
    for n in 0..7 {
        let url = hanging.url(&format!("/{n}"));
        webhook(&plane, json!({ "url": url, "events": ["*"] })).await;
    }
    let hook = json!({ "url": well.url("/"), "events": ["process.created"] });
    webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 50).await;
    hanging.wait(28).await;
    let began = control::clock::monotonic();
    processes(&plane, &agent, "b", 50).await;
    let got = well.wait(100).await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let all: std::collections::BTreeSet<&str> = got.iter().map(Got::id).collect();
    assert_eq!(all.len(), 100);
    assert_eq!(hanging.got().len(), 28, "four each, no more");
}

#[tokio::test]
async fn an_attempt_that_gets_no_answer_is_given_up_in_time() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, false).await.to_string();
    let receiver = Receiver::start(|got| match got.nth {
        0 => Answer::Hang,
        1 => Answer::Slow(Duration::from_millis(100)),
        _ => Answer::Status(200),
    })
    .await;
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"] });
    let (id, _) = webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 1).await;
    let waits = delivery(&plane, &id, "waiting").await;
    assert_eq!(waits["error"], "no answer within 0.4 s");
    assert!(waits.get("status").is_none(), "{waits}");
    let done = delivery(&plane, &id, "succeeded").await;
    assert_eq!(done["attempts"], 2);
    assert!(done["took_ms"].as_u64().unwrap() >= 100, "{done}");
}

#[tokio::test]
async fn redirects_are_not_followed_and_long_answers_not_read() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, false).await.to_string();
    let other = Receiver::start(|_| Answer::Status(200)).await;
    let elsewhere = other.url("/elsewhere");
    let receiver = Receiver::start(move |got| match (got.path.as_str(), got.nth) {
        ("/flood", _) => Answer::Flood,
        _ => Answer::Elsewhere(elsewhere.clone()),
    })
    .await;
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"] });
    let (id, _) = webhook(&plane, hook).await;
    let hook = json!({ "url": receiver.url("/flood"), "events": ["process.created"] });
    let (flood, _) = webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 1).await;
    let waits = delivery(&plane, &id, "waiting").await;
    let words = waits["error"].as_str().unwrap();
    assert!(
        words.contains("302") && words.contains("not followed"),
        "{words}"
    );
    assert_eq!(delivery(&plane, &flood, "succeeded").await["status"], 200);
    assert!(other.got().is_empty());
}

#[tokio::test]
async fn what_was_given_up_is_kept_and_can_be_delivered_again() {
    let timing = Timing {
        give_up: Duration::from_millis(300),
        ..quick()
    };
    let plane = plane(timing).await;
    let agent = plane.agent(1, false).await.to_string();
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_well = std::sync::Arc::clone(&well);
    let receiver = Receiver::start(move |_| {
        let well = is_well.load(std::sync::atomic::Ordering::Relaxed);
        Answer::Status(if well { 200 } else { 500 })
    })
    .await;
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"] });
    let (id, _) = webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 1).await;
    let dead = delivery(&plane, &id, "dead").await;
    assert!(dead["attempts"].as_u64().unwrap() > 1, "{dead}");
    assert_eq!(dead["error"], "the answer was 500");
    let (_, shown) = plane.get(&format!("/v1/webhooks/{id}")).await;
    assert_eq!(shown["dead"], 1);
    assert!(shown["failing_since"].is_string(), "{shown}");
    well.store(true, std::sync::atomic::Ordering::Relaxed);
    let path = format!(
        "/v1/webhooks/{id}/deliveries/{}/redeliver",
        dead["sequence"]
    );
    let (status, again) = plane.post(&path, json!({})).await;
    assert_eq!(
        (status, &again["state"]),
        (202, &json!("waiting")),
        "{again}"
    );
    let done = delivery(&plane, &id, "succeeded").await;
    assert_eq!(done["message_id"], dead["message_id"]);
    let (_, shown) = plane.get(&format!("/v1/webhooks/{id}")).await;
    assert_eq!(
        (&shown["dead"], shown.get("failing_since")),
        (&json!(0), None)
    );
}

#[tokio::test]
async fn a_webhook_that_fails_for_days_is_disabled() {
    let timing = Timing {
        disable: Duration::from_millis(300),
        ..quick()
    };
    let plane = plane(timing).await;
    let agent = plane.agent(1, false).await.to_string();
    // Nobody listens there.
    let address = {
        let (receiver, ..) = Receiver::new(|_| Answer::Hang).await;
        receiver.address
    };
    let hook = json!({ "url": format!("http://{address}/"), "events": ["process.created"] });
    let (id, _) = webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 1).await;
    let shown = eventually("the end", async || {
        let (_, shown) = plane.get(&format!("/v1/webhooks/{id}")).await;
        (shown["disabled"] == true).then_some(shown)
    })
    .await;
    let reason = shown["disabled_reason"].as_str().unwrap();
    assert!(
        reason.contains("no attempt has succeeded since"),
        "{reason}"
    );
    assert!(reason.contains("onnection refused"), "{reason}");
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_the_new_one_for_a_while() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, false).await.to_string();
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"], "secret": own });
    let (id, first) = webhook(&plane, hook).await;
    assert_eq!(first, own);
    let rotate = format!("/v1/webhooks/{id}/rotate");
    let (status, rotated) = plane.post(&rotate, json!({})).await;
    assert_eq!(status, 200, "{rotated}");
    assert!(rotated["old_secret_until"].is_string());
    let second = rotated["secret"].as_str().unwrap();
    eventually("both signatures", async || {
        processes(&plane, &agent, &uuid::Uuid::new_v4().to_string(), 1).await;
        let got = receiver.wait(1).await.pop().unwrap();
        (got.signatures_by(&first) == 1 && got.signatures_by(second) == 1).then_some(())
    })
    .await;
    let (_, rotated) = plane.post(&rotate, json!({ "overlap_seconds": 0 })).await;
    let third = rotated["secret"].as_str().unwrap();
    eventually("the new signature alone", async || {
        processes(&plane, &agent, &uuid::Uuid::new_v4().to_string(), 1).await;
        let got = receiver.wait(1).await.pop().unwrap();
        let alone = got.headers["webhook-signature"].split(' ').count() == 1;
        (alone && got.signatures_by(third) == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_test_is_sent_at_once_and_tells_what_came_of_it() {
    let plane = plane(quick()).await;
    let receiver = Receiver::start(|got| Answer::Status([200, 500][got.nth.min(1)])).await;
    let url = receiver.url("/");
    let hook = json!({ "url": url, "events": ["*"], "disabled": true });
    let (id, secret) = webhook(&plane, hook).await;
    let path = format!("/v1/webhooks/{id}/test");
    let (status, tested) = plane.post(&path, json!({})).await;
    assert_eq!(
        (status, &tested["delivered"]),
        (200, &json!(true)),
        "{tested}"
    );
    let got = receiver.wait(1).await;
    assert_eq!(got[0].kind(), "webhook.test");
    assert_eq!(got[0].body["data"]["webhook"], id);
    assert_eq!(got[0].signatures_by(&secret), 1);
    let (_, tested) = plane.post(&path, json!({})).await;
    assert_eq!(tested["delivered"], false);
    assert_eq!(
        (&tested["status"], &tested["error"]),
        (&json!(500), &json!("the answer was 500"))
    );
    assert!(deliveries(&plane, &id).await.is_empty());
}

#[tokio::test]
async fn past_events_can_be_told_again() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, false).await.to_string();
    processes(&plane, &agent, "a", 5).await;
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"], "after": 0 });
    let (id, _) = webhook(&plane, hook).await;
    let got = receiver.wait(5).await;
    let sequences: Vec<u64> = got.iter().map(Got::sequence).collect();
    eventually("the cursor", async || {
        let (_, shown) = plane.get(&format!("/v1/webhooks/{id}")).await;
        (shown["lag"] == 0).then_some(())
    })
    .await;
    let (status, shown) = patch(&plane, &id, json!({ "after": sequences[2] })).await;
    assert_eq!(status, 200, "{shown}");
    let got = receiver.wait(7).await;
    let again: Vec<u64> = got[5..].iter().map(Got::sequence).collect();
    assert_eq!(again, sequences[3..]);
    // A webhook that is gone gets nothing.
    assert_eq!(plane.delete(&format!("/v1/webhooks/{id}")).await.0, 204);
    processes(&plane, &agent, "b", 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(receiver.got().len(), 7);
}

#[tokio::test]
async fn the_last_hundred_that_succeeded_are_kept() {
    let plane = plane(quick()).await;
    let agent = plane.agent(1, false).await.to_string();
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let hook = json!({ "url": receiver.url("/"), "events": ["process.created"] });
    let (id, _) = webhook(&plane, hook).await;
    processes(&plane, &agent, "a", 250).await;
    receiver.wait(250).await;
    eventually("the cursor", async || {
        let (_, shown) = plane.get(&format!("/v1/webhooks/{id}")).await;
        (shown["lag"] == 0).then_some(())
    })
    .await;
    let mut seen = Vec::new();
    let mut query = "?page_size=30&state=succeeded".to_owned();
    loop {
        let (_, page) = plane
            .get(&format!("/v1/webhooks/{id}/deliveries{query}"))
            .await;
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|item| item["sequence"].as_u64().unwrap()));
        match page["next_page_token"].as_str() {
            Some(token) => query = format!("?page_size=30&state=succeeded&page_token={token}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 100);
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first: {seen:?}");
}
