//! "Why is this process not running?": every reason, in one answer of the API.

use protocol::flow::{AgentFlow, LimitKey, Line, LineFlow, Parked};
use protocol::ids::{AgentId, GroupId, ServerId};
use serde_json::{Value, json};

use crate::limits::flow;
use crate::plane::{Plane, eventually, plane};

async fn made(plane: &Plane, key: &str, body: Value) -> String {
    let (status, process) = plane.start(key, body).await;
    assert_eq!(status, 201, "{process}");
    process["id"].as_str().unwrap().to_owned()
}

async fn why(plane: &Plane, id: &str) -> Value {
    let (_, process) = plane.get(&format!("/v1/processes/{id}")).await;
    process["waiting_on"].clone()
}

/// A connected agent that is given no permit, and a process that waits there.
async fn stuck(plane: &Plane) -> (AgentId, String) {
    let agent = plane.agent(1, true).await;
    plane.gateway.fill(agent);
    let body = json!({"agent": agent, "kind": "exec", "tenant": "acme"});
    let id = made(plane, "stuck", body).await;
    (agent, id)
}

/// What the gateway says when the process server's one line is parked on a limit.
fn parked(key: LimitKey) -> AgentFlow {
    AgentFlow {
        lines: vec![LineFlow {
            server: ServerId(1),
            number: 0,
            line: Line {
                tenant: "acme".to_owned(),
                kind: "exec".to_owned(),
                ..Line::default()
            },
            waiting: 1,
            parked: Some(Parked {
                key,
                limit: 2,
                in_use: 2,
                before: 1,
            }),
        }],
        ..flow()
    }
}

#[tokio::test]
async fn a_process_says_that_its_agent_has_no_session_or_a_pause_holds_it() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let id = made(&plane, "a", json!({"agent": agent, "kind": "exec"})).await;
    assert_eq!(why(&plane, &id).await["scope"], "agent");
    let pause = json!({"scope": "agent", "key": agent, "reason": "new disks"});
    assert_eq!(plane.post("/v1/pauses", pause).await.0, 201);
    let waits = why(&plane, &id).await;
    assert_eq!(waits["scope"], "pause");
    assert!(
        waits["detail"].as_str().unwrap().ends_with("new disks"),
        "{waits}"
    );
}

#[tokio::test]
async fn a_process_says_that_another_has_its_resource() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let on = |kind: &str| json!({"agent": agent, "kind": kind, "resource": "disk/1"});
    let holder = made(&plane, "h", on("hang")).await;
    let second = made(&plane, "s", on("exec")).await;
    let waits = why(&plane, &second).await;
    assert_eq!(
        (&waits["scope"], &waits["held_by"]),
        (&json!("resource"), &json!(holder))
    );
}

#[tokio::test]
async fn a_process_says_that_its_agent_is_given_no_more() {
    let plane = plane().await;
    let (agent, id) = stuck(&plane).await;
    // The gateway says nothing of this agent: what the process server knows is told.
    let waits = why(&plane, &id).await;
    assert_eq!(
        (&waits["scope"], &waits["limit"]),
        (&json!("capacity"), &json!(4))
    );
    let full = AgentFlow {
        lines: Vec::new(),
        ..flow()
    };
    plane.gateway.flow(agent, full);
    let waits = why(&plane, &id).await;
    assert_eq!(
        (
            &waits["scope"],
            &waits["limit"],
            &waits["in_use"],
            &waits["position"]
        ),
        (&json!("capacity"), &json!(6), &json!(6), &json!(1))
    );
    let detail = waits["detail"].as_str().unwrap();
    assert!(
        detail.contains("would take 8 by its own word, and is given 6"),
        "{detail}"
    );
    let body = json!({"max": 6, "reason": "its disks are slow"});
    assert_eq!(plane.put("/v1/limits/agent/hv-1", body).await.0, 201);
    let waits = why(&plane, &id).await;
    assert_eq!(
        (&waits["scope"], &waits["key"], &waits["limit"]),
        (&json!("limit"), &json!("agent hv-1"), &json!(6))
    );
    let detail = waits["detail"].as_str().unwrap();
    assert!(
        detail.contains("first admin set that") && detail.contains("disks are slow"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_process_says_which_shared_limit_has_no_room_for_it() {
    let plane = plane().await;
    let (agent, id) = stuck(&plane).await;
    let (_, shown) = plane.get(&format!("/v1/agents/{agent}")).await;
    let group = shown["group"]["id"].as_str().unwrap();
    let name = shown["group"]["name"].as_str().unwrap();
    for (key, path, said) in [
        (
            LimitKey::Work("build".to_owned()),
            "work/build".to_owned(),
            "work build".to_owned(),
        ),
        (
            LimitKey::Group(group.parse::<GroupId>().unwrap()),
            format!("group/{name}"),
            format!("group {name}"),
        ),
        (
            LimitKey::Tenant("acme".to_owned()),
            "tenant/acme".to_owned(),
            "tenant acme".to_owned(),
        ),
        (
            LimitKey::Resource("pool/fast".to_owned()),
            "resource/pool%2Ffast".to_owned(),
            "resource pool/fast".to_owned(),
        ),
        (
            LimitKey::Global,
            "global/all".to_owned(),
            "global all".to_owned(),
        ),
    ] {
        plane.gateway.flow(agent, parked(key));
        let body = json!({"max": 2, "reason": "the array is slow"});
        let (status, set) = plane.put(&format!("/v1/limits/{path}"), body).await;
        assert_eq!(status, 201, "{set}");
        let waits = why(&plane, &id).await;
        assert_eq!(
            (&waits["scope"], &waits["key"]),
            (&json!("limit"), &json!(said))
        );
        assert_eq!(
            (&waits["limit"], &waits["in_use"], &waits["position"]),
            (&json!(2), &json!(2), &json!(1))
        );
        let detail = waits["detail"].as_str().unwrap();
        for words in [
            "2 of the 2 permits",
            "first admin set that",
            "the array is slow",
            "one other line",
        ] {
            assert!(detail.contains(words), "{words}: {detail}");
        }
        let advice = waits["advice"].as_str().unwrap();
        assert!(
            advice.contains(&format!("drover limits get {said}")),
            "{advice}"
        );
    }
}

#[tokio::test]
async fn a_process_says_when_a_shared_limit_may_have_room_and_nothing_where_that_is_not_known() {
    let plane = plane().await;
    let (agent, id) = stuck(&plane).await;
    let tenant = LimitKey::Tenant("acme".to_owned());
    plane.gateway.flow(agent, parked(tenant));
    let waits = why(&plane, &id).await;
    assert_eq!(waits["eta_s"], Value::Null, "none has ended: {waits}");
    // The tenant's work elsewhere tells how fast it goes.
    let elsewhere = plane.agent(2, true).await;
    for n in 0..5 {
        let body = json!({"agent": elsewhere, "kind": "exec", "tenant": "acme"});
        let other = made(&plane, &format!("e{n}"), body).await;
        let path = format!("/v1/processes/{other}");
        eventually("its end", async || {
            (plane.get(&path).await.1["state"] == "succeeded").then_some(())
        })
        .await;
    }
    let waits = why(&plane, &id).await;
    let eta = waits["eta_s"].as_u64().unwrap();
    assert!(
        (1..=10).contains(&eta),
        "two ends of a quick tenant: {waits}"
    );
    let pool = LimitKey::Resource("pool/fast".to_owned());
    plane.gateway.flow(agent, parked(pool));
    let waits = why(&plane, &id).await;
    assert_eq!(waits["key"], "resource pool/fast");
    assert_eq!(waits["eta_s"], Value::Null, "{waits}");
}

#[tokio::test]
async fn a_process_says_that_too_many_of_its_kind_have_failed_there() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    // Ten retries are paid for, and twelve are wanted.
    let mut ids = Vec::new();
    for n in 0..12 {
        let body = json!({"agent": agent, "kind": "flaky", "max_attempts": 20});
        ids.push(made(&plane, &format!("f{n}"), body).await);
    }
    let waits = eventually("an empty budget", async || {
        for id in &ids {
            let waits = why(&plane, id).await;
            if waits["scope"] == "budget" {
                return Some(waits);
            }
        }
        None
    })
    .await;
    let detail = waits["detail"].as_str().unwrap();
    assert!(
        detail.contains("too many attempts of kind `flaky`"),
        "{waits}"
    );
    assert!(waits["eta_s"].as_u64().unwrap() > 0, "{waits}");
}
