//! Pauses over the API, and why processes wait.

use control::api::model::access::Role;
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane};

async fn made(plane: &Plane, key: &str, body: Value) -> String {
    let (status, process) = plane.start(key, body).await;
    assert_eq!(status, 201, "{process}");
    process["id"].as_str().unwrap().to_owned()
}

async fn shown(plane: &Plane, id: &str) -> Value {
    plane.get(&format!("/v1/processes/{id}")).await.1
}

#[tokio::test]
async fn a_pause_is_made_shown_and_ended() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let pause = json!({"scope": "tenant", "key": "acme", "reason": "they asked for it"});
    let (status, body) = plane.post("/v1/pauses", pause.clone()).await;
    assert_eq!(status, 201, "{body}");
    let (status, same) = plane.post("/v1/pauses", pause).await;
    assert_eq!((status, &same["at"]), (200, &body["at"]));
    let body = json!({"agent": agent, "kind": "exec", "tenant": "acme"});
    let id = made(&plane, "p", body).await;
    let other = made(&plane, "o", json!({"agent": agent, "kind": "exec"})).await;
    eventually("the other tenant's process", async || {
        (shown(&plane, &other).await["state"] == "succeeded").then_some(())
    })
    .await;
    let process = shown(&plane, &id).await;
    assert_eq!(process["state"], "paused");
    let waits = &process["waiting_on"];
    assert_eq!(
        (&waits["scope"], &waits["key"]),
        (&json!("pause"), &json!("tenant acme"))
    );
    assert!(
        waits["detail"]
            .as_str()
            .unwrap()
            .ends_with("they asked for it"),
        "{waits}"
    );
    assert_eq!(waits["advice"], "drover pauses remove tenant acme");
    let (_, list) = plane.get("/v1/processes?state=paused").await;
    assert_eq!(list["items"][0]["id"], id.as_str());
    let (_, list) = plane.get("/v1/processes?state=ready").await;
    assert!(list["items"].as_array().unwrap().is_empty());
    let (_, list) = plane.get("/v1/pauses").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let (status, body) = plane.delete("/v1/pauses/tenant/acme?reason=enough").await;
    assert_eq!(status, 204, "{body}");
    eventually("the paused process", async || {
        (shown(&plane, &id).await["state"] == "succeeded").then_some(())
    })
    .await;
    let (status, body) = plane.delete("/v1/pauses/tenant/acme").await;
    assert_eq!(status, 404, "{body}");
}

#[tokio::test]
async fn a_single_process_is_paused_and_its_history_says_by_whom() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let id = made(&plane, "p", json!({"agent": agent, "kind": "exec"})).await;
    let pause = json!({"scope": "process", "key": id, "reason": "not yet"});
    let (status, body) = plane.post("/v1/pauses", pause).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(shown(&plane, &id).await["state"], "paused");
    let (status, _) = plane.delete(&format!("/v1/pauses/process/{id}")).await;
    assert_eq!(status, 204);
    assert_eq!(shown(&plane, &id).await["state"], "ready");
    let (_, history) = plane.get(&format!("/v1/processes/{id}/history")).await;
    let kinds: Vec<&str> = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["process.created", "pause.added", "pause.removed"]);
    assert_eq!(history["items"][1]["reason"], "not yet");
}

#[tokio::test]
async fn a_pause_of_a_process_ends_with_it() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    // What the tenant's pause holds is still there to be paused itself.
    let hold = json!({"scope": "tenant", "key": "acme", "reason": "hold"});
    plane.post("/v1/pauses", hold).await;
    let body = json!({"agent": agent, "kind": "exec", "tenant": "acme"});
    let id = made(&plane, "p", body).await;
    let pause = json!({"scope": "process", "key": id, "reason": "not yet"});
    let (status, body) = plane.post("/v1/pauses", pause).await;
    assert_eq!(status, 201, "{body}");
    let path = format!("/v1/processes/{id}");
    let (_, cancelled) = plane.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!(cancelled["state"], "cancelled");
    let (_, list) = plane.get("/v1/pauses").await;
    let scopes: Vec<&Value> = list["items"].as_array().unwrap().iter().collect();
    assert_eq!(scopes.len(), 1, "{list}");
    assert_eq!(scopes[0]["scope"], "tenant");
    plane.delete("/v1/pauses/tenant/acme").await;
    let (status, body) = plane.post(&format!("{path}/retry"), json!({})).await;
    assert_eq!(status, 202, "{body}");
    eventually("the retried process", async || {
        (shown(&plane, &id).await["state"] == "succeeded").then_some(())
    })
    .await;
    let (_, history) = plane.get(&format!("{path}/history")).await;
    let entries = history["items"].as_array().unwrap();
    let ended = entries
        .iter()
        .find(|entry| entry["type"] == "pause.removed")
        .unwrap();
    assert_eq!(
        (&ended["actor"], &ended["reason"]),
        (&json!("system"), &json!("the process is over"))
    );
}

#[tokio::test]
async fn what_waits_for_a_resource_and_is_paused_says_both() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let on = |kind: &str| json!({"agent": agent, "kind": kind, "input": {"thing": "a"}});
    let holder = made(&plane, "h", on("three")).await;
    let id = made(&plane, "p", on("doomed")).await;
    let pause = json!({"scope": "kind", "key": "doomed", "reason": "it dooms"});
    let (status, body) = plane.post("/v1/pauses", pause).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(body["warnings"], Value::Null);
    let process = shown(&plane, &id).await;
    assert_eq!(process["state"], "blocked");
    let waits = &process["waiting_on"];
    assert_eq!(
        (&waits["scope"], &waits["held_by"]),
        (&json!("resource"), &json!(holder))
    );
    for (field, words) in [
        ("detail", "works on `thing/a`"),
        ("detail", "; and first admin paused the kind doomed at"),
        ("detail", "it dooms"),
        ("advice", "drover processes why"),
        ("advice", "drover pauses remove kind doomed"),
    ] {
        assert!(waits[field].as_str().unwrap().contains(words), "{waits}");
    }
}

#[tokio::test]
async fn a_pause_of_a_kind_that_nobody_declared_comes_with_a_warning() {
    let plane = plane().await;
    let pause = json!({"scope": "kind", "key": "vm-strat", "reason": "x"});
    for status in [201, 200] {
        let (said, body) = plane.post("/v1/pauses", pause.clone()).await;
        assert_eq!(said, status, "{body}");
        let warning = body["warnings"][0].as_str().unwrap();
        assert!(
            warning.contains("no kind `vm-strat` is declared"),
            "{warning}"
        );
    }
    let (_, list) = plane.get("/v1/pauses").await;
    assert_eq!(list["items"][0]["key"], "vm-strat");
}

/// Pauses with what is wrong with them; `over` is a process that has ended.
fn bad_pauses(over: &str) -> [(Value, u16, &'static str); 13] {
    let nobody = uuid::Uuid::nil();
    [
        (
            json!({"scope": "tenant", "key": "a"}),
            400,
            "missing field `reason`",
        ),
        (
            json!({"scope": "tenant", "key": "a", "reason": " "}),
            400,
            "say to others why",
        ),
        (
            json!({"scope": "tenant", "key": "A", "reason": "x"}),
            400,
            "a-z",
        ),
        (
            json!({"scope": "planet", "key": "a", "reason": "x"}),
            400,
            "unknown variant",
        ),
        (
            json!({"scope": "kind", "key": "", "reason": "x"}),
            400,
            "a-z",
        ),
        (
            json!({"scope": "process", "key": "x", "reason": "x"}),
            400,
            "not the id of a process",
        ),
        (
            json!({"scope": "process", "key": nobody, "reason": "x"}),
            422,
            "no process",
        ),
        (
            json!({"scope": "process", "key": over, "reason": "x"}),
            409,
            "is over",
        ),
        (
            json!({"scope": "agent", "key": nobody, "reason": "x"}),
            422,
            "no agent",
        ),
        (
            json!({"scope": "agent", "key": "no-such-host", "reason": "x"}),
            422,
            "no agent",
        ),
        (
            json!({"scope": "group", "key": "no-such-group", "reason": "x"}),
            422,
            "no group",
        ),
        (
            json!({"scope": "kind", "key": "a", "reason": "a\u{7}b"}),
            400,
            "control",
        ),
        (
            json!({"scope": "kind", "key": "a", "reason": "x".repeat(257)}),
            400,
            "256",
        ),
    ]
}

#[tokio::test]
async fn a_pause_that_cannot_be_meant_is_refused() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let over = made(&plane, "p", json!({"agent": agent, "kind": "exec"})).await;
    eventually("its end", async || {
        (shown(&plane, &over).await["state"] == "succeeded").then_some(())
    })
    .await;
    for (body, expected, words) in bad_pauses(&over) {
        let (status, problem) = plane.post("/v1/pauses", body.clone()).await;
        assert_eq!(status, expected, "{body}: {problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains(words),
            "{body}: {problem}"
        );
    }
    let (status, problem) = plane.delete("/v1/pauses/planet/earth").await;
    assert_eq!(status, 400, "{problem}");
    let viewer = plane.token(Role::Viewer).await.token;
    let refused = plane
        .client
        .post(format!("{}/v1/pauses", plane.base))
        .bearer_auth(viewer)
        .json(&json!({"scope": "kind", "key": "a", "reason": "x"}))
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 403);
}

#[tokio::test]
async fn a_process_says_who_holds_its_resource_and_its_place_in_line() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let on = |kind: &str| json!({"agent": agent, "kind": kind, "resource": "disk/1"});
    let holder = made(&plane, "h", on("hang")).await;
    let first = made(&plane, "a", on("exec")).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let second = made(&plane, "b", on("exec")).await;
    for (id, position) in [(&first, 1), (&second, 2)] {
        let process = shown(&plane, id).await;
        let waits = &process["waiting_on"];
        assert_eq!(waits["scope"], "resource", "{process}");
        assert_eq!(waits["held_by"], holder.as_str());
        assert_eq!(waits["position"], position);
        let advice = waits["advice"].as_str().unwrap();
        assert!(
            advice.contains(&format!("processes why {holder}")),
            "{advice}"
        );
    }
    let hangs = |n: u32| json!({"agent": agent, "kind": "hang", "resource": format!("r/{n}")});
    for n in 0..12 {
        made(&plane, &format!("f{n}"), hangs(n)).await;
    }
    let offline = plane.agent(2, false).await;
    let waiting = made(&plane, "w", json!({"agent": offline, "kind": "exec"})).await;
    let process = shown(&plane, &waiting).await;
    assert!(
        process["waiting_on"]["advice"]
            .as_str()
            .unwrap()
            .contains("start the agent")
    );
}
