//! Limits over the API: set, shown with what is so now, removed; and what cannot be meant.

use std::time::Duration;

use control::api::model::access::Role;
use protocol::flow::{
    AgentFlow, Class, Decision, Limit, LimitKey, LimitUse, Line, LineFlow, Parked, Why,
};
use protocol::ids::{GroupId, ServerId};
use protocol::link::Request;
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane, plane_in, read};

impl Plane {
    pub(crate) async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        read(
            self.request(Method::PUT, path)
                .json(&body)
                .send()
                .await
                .unwrap(),
        )
        .await
    }
}

/// The limits that the gateway was told last.
fn told(plane: &Plane) -> Vec<Limit> {
    let sent = plane.gateway.sent.lock().unwrap();
    let mut told = sent.iter().filter_map(|request| match request {
        Request::SetLimits { limits } => Some(limits.clone()),
        _ => None,
    });
    told.next_back().unwrap()
}

/// Waits until the gateway was told these last: the answer may be before that.
async fn is_told(plane: &Plane, expected: &[Limit]) {
    eventually("the gateway is told the limits", async || {
        (told(plane) == expected).then_some(())
    })
    .await;
}

fn times_told(plane: &Plane) -> usize {
    let sent = plane.gateway.sent.lock().unwrap();
    let told = |request: &&Request| matches!(request, Request::SetLimits { .. });
    sent.iter().filter(told).count()
}

/// An agent of 8 places that is given 6, and has two sorts of work waiting.
pub(crate) fn flow() -> AgentFlow {
    let line = |work: &str, class| Line {
        class,
        tenant: "acme".to_owned(),
        kind: "exec".to_owned(),
        work: work.to_owned(),
        resources: Vec::new(),
    };
    AgentFlow {
        capacity: 8,
        limit: 6,
        running: 5,
        granted: 1,
        lines: vec![
            LineFlow {
                server: ServerId(1),
                number: 0,
                line: line("", Class::Normal),
                waiting: 40,
                parked: None,
            },
            LineFlow {
                server: ServerId(1),
                number: 1,
                line: line("build", Class::Background),
                waiting: 1,
                parked: Some(Parked {
                    key: LimitKey::Work("build".to_owned()),
                    limit: 2,
                    in_use: 2,
                    before: 0,
                }),
            },
        ],
        decision: Some(Decision {
            age: Duration::from_millis(3100),
            why: Why::Followed,
            from: 5500,
            to: 6200,
            slowdown: 1070,
            baseline: 1000,
            rate: 3100,
        }),
    }
}

#[tokio::test]
async fn an_agents_limit_is_set_shown_live_and_removed() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    plane.gateway.flow(agent, flow());
    assert_eq!(told(&plane), [], "told before groups, and empty");
    let path = format!("/v1/limits/agent/{agent}");
    // Without anything set there is a limit all the same.
    let (status, adaptive) = plane.get(&path).await;
    assert_eq!(status, 200, "{adaptive}");
    assert_eq!(adaptive["max"], Value::Null);
    assert_eq!(adaptive["by"], Value::Null);
    assert_eq!(adaptive["live"]["limit"], 6);
    let body = json!({"max": 4, "pin": 2, "reason": "its disks are slow"});
    let (status, set) = plane.put("/v1/limits/agent/hv-1", body.clone()).await;
    assert_eq!(status, 201, "{set}");
    let (status, same) = plane.put(&path, body).await;
    assert_eq!((status, &same), (200, &set));
    let expected = json!({
        "scope": "agent", "key": agent.to_string(), "name": "hv-1",
        "min": null, "max": 4, "pin": 2, "weight": null,
        "by": "first admin", "reason": "its disks are slow", "at": set["at"], "live": live(),
    });
    assert_eq!(set, expected);
    let expected = Limit {
        key: LimitKey::Agent(agent),
        min: 1,
        max: 4,
        pin: Some(2),
    };
    is_told(&plane, &[expected]).await;
    assert_eq!(times_told(&plane), 2, "the same again is not told again");
    let (_, list) = plane.get("/v1/limits").await;
    assert_eq!(list["items"], json!([set]));
    let (_, shown) = plane.get(&format!("/v1/agents/{agent}")).await;
    assert_eq!(shown["live"], live());
    let (status, body) = plane.delete(&format!("{path}?reason=mended")).await;
    assert_eq!(status, 204, "{body}");
    is_told(&plane, &[]).await;
    let (status, body) = plane.delete(&path).await;
    assert_eq!(status, 404, "{body}");
    let (_, list) = plane.get("/v1/limits").await;
    assert_eq!(list["items"], json!([]));
}

/// [`flow`] as the API shows it: the most urgent line first.
fn live() -> Value {
    let line = |class: &str, work: &str, waiting: u32, parked: Value| {
        json!({
            "class": class, "tenant": "acme", "kind": "exec", "work": work, "resources": [],
            "waiting": waiting, "parked": parked,
        })
    };
    let parked = json!({"scope": "work", "key": "build", "limit": 2, "in_use": 2, "before": 0});
    json!({
        "limit": 6, "in_use": 6, "capacity": 8, "running": 5, "granted": 1, "waiting": 41,
        "decision": {
            "why": "followed", "text": "moved towards the capacity that was measured",
            "from": 5.5, "to": 6.2, "age_ms": 3100, "slowdown": 1.07, "baseline": 1.0, "rate": 3.1,
        },
        "lines": [
            line("normal", "", 40, Value::Null),
            line("background", "build", 1, parked),
        ],
    })
}

#[tokio::test]
async fn what_is_not_known_live_is_said_and_the_rest_is_shown() {
    let plane = plane().await;
    let offline = plane.agent(1, false).await;
    let silent = plane.agent(2, true).await;
    let (status, limit) = plane.get(&format!("/v1/limits/agent/{offline}")).await;
    assert_eq!((status, &limit["live"]), (200, &Value::Null));
    assert_eq!(limit["not_live"], "the agent has no session");
    // The made-up gateway answers only for agents that it was given figures for.
    let (status, limit) = plane.get(&format!("/v1/limits/agent/{silent}")).await;
    assert_eq!((status, &limit["live"]), (200, &Value::Null));
    assert!(
        limit["not_live"]
            .as_str()
            .unwrap()
            .contains("has not answered within 2 s")
    );
    let (status, agent) = plane.get(&format!("/v1/agents/{silent}")).await;
    assert_eq!((status, &agent["live"]), (200, &Value::Null));
}

#[tokio::test]
async fn a_groups_limit_shows_how_much_of_it_is_in_use() {
    let plane = plane().await;
    let (_, groups) = plane.get("/v1/groups").await;
    let group = &groups["items"][0];
    let (id, name) = (
        group["id"].as_str().unwrap(),
        group["name"].as_str().unwrap(),
    );
    let key = LimitKey::Group(id.parse::<GroupId>().unwrap());
    plane.gateway.use_of(
        key.clone(),
        LimitUse {
            limit: Some(64),
            in_use: 60,
            waiting: 3,
        },
    );
    let (_, unset) = plane.get(&format!("/v1/limits/group/{name}")).await;
    assert_eq!(unset["live"], Value::Null);
    assert!(
        unset["not_live"]
            .as_str()
            .unwrap()
            .contains("no `max` is set")
    );
    let body = json!({"max": 64, "reason": "one switch"});
    let (status, set) = plane.put(&format!("/v1/limits/group/{name}"), body).await;
    assert_eq!(status, 201, "{set}");
    assert_eq!((&set["key"], &set["name"]), (&json!(id), &json!(name)));
    // Two shards answer: their use adds up.
    assert_eq!(
        (
            &set["live"]["limit"],
            &set["live"]["in_use"],
            &set["live"]["parked_lines"]
        ),
        (&json!(64), &json!(120), &json!(6))
    );
    eventually("the gateway is told the limit", async || {
        told(&plane)
            .first()
            .is_some_and(|limit| limit.key == key)
            .then_some(())
    })
    .await;
    let body = json!({"max": 2, "reason": "the array is slow"});
    let (status, set) = plane.put("/v1/limits/resource/pool%2Ffast", body).await;
    assert_eq!((status, &set["key"]), (201, &json!("pool/fast")), "{set}");
    let (status, _) = plane.delete("/v1/limits/resource/pool%2Ffast").await;
    assert_eq!(status, 204);
}

#[tokio::test]
async fn a_tenants_weight_is_no_limit_and_goes_with_its_demand() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    plane.gateway.fill(agent);
    let process = json!({"agent": agent, "kind": "exec", "tenant": "acme"});
    assert_eq!(plane.start("p", process).await.0, 201);
    let body = json!({"weight": 5, "reason": "they pay for it"});
    let (status, set) = plane.put("/v1/limits/tenant/acme", body).await;
    assert_eq!((status, &set["weight"]), (201, &json!(5)));
    assert_eq!(set["max"], Value::Null);
    assert_eq!(times_told(&plane), 1, "at the start");
    eventually("the weight at the gateway", async || {
        let sent = plane.gateway.sent.lock().unwrap();
        let last = sent.iter().rev().find_map(|request| match request {
            Request::Demand { lines, .. } => lines.first().map(|line| line.weight),
            _ => None,
        });
        (last == Some(5)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_next_server_tells_the_gateway_what_is_set_before_it_owns_a_group() {
    let first = plane().await;
    let agent = first.agent(1, false).await;
    for (path, body) in [
        (
            format!("agent/{agent}"),
            json!({"min": 2, "reason": "never idle"}),
        ),
        (
            "global/all".to_owned(),
            json!({"max": 500, "reason": "the array"}),
        ),
    ] {
        let (status, body) = first.put(&format!("/v1/limits/{path}"), body).await;
        assert_eq!(status, 201, "{body}");
    }
    let Plane {
        control,
        store,
        dir,
        gateway,
        ..
    } = first;
    control.drain(Duration::from_secs(5)).await;
    drop((store, gateway));
    let second = plane_in(dir, 10_000).await;
    let sent = second.gateway.sent.lock().unwrap();
    let place = |wanted: fn(&Request) -> bool| sent.iter().position(wanted).unwrap();
    let limits =
        place(|request| matches!(request, Request::SetLimits { limits } if limits.len() == 2));
    let groups = place(|request| matches!(request, Request::AssignGroup { .. }));
    assert!(limits < groups);
}

/// Path, body, status and words of the answer. Where a body has no `reason`, it gets one; `LONG` is a name of
/// 129 letters, and `NOBODY` an id that nobody has.
const REFUSED: &str = r#"
agent/hv-1      | {"min": 5, "max": 4}          | 400 | above `max`
agent/hv-1      | {"pin": 5, "max": 4}          | 400 | above `max`
agent/hv-1      | {"pin": 1, "min": 2}          | 400 | below `min`
agent/hv-1      | {"min": 0}                    | 400 | 1 to 1000000
agent/hv-1      | {"max": 1000001}              | 400 | 0 to 1000000
agent/hv-1      | {"max": -1}                   | 400 | `max`
agent/hv-1      | {"weight": 3}                 | 400 | only a tenant
agent/hv-1      | {}                            | 400 | nothing is set
agent/hv-1      | {"max": 3, "reason": null}    | 400 | `reason`
agent/hv-1      | {"max": 3, "reason": " "}     | 400 | say to others why
agent/hv-1      | {"maximum": 3}                | 400 | unknown field `maximum`
tenant/acme     | {"weight": 0}                 | 400 | 1 to 1000
tenant/acme     | {"weight": 1001}              | 400 | 1 to 1000
tenant/ACME     | {"max": 3}                    | 400 | a-z
group/auto-00   | {"min": 1, "max": 3}          | 400 | only an agent's limit adapts
work/build      | {"pin": 3}                    | 400 | only an agent's limit adapts
global/some     | {"max": 3}                    | 400 | has the key `all`
planet/earth    | {"max": 3}                    | 400 | must be agent, work
resource/LONG   | {"max": 3}                    | 400 | 128 bytes
work/LONG       | {"max": 3}                    | 400 | 1 to 64
agent/NOBODY    | {"max": 3}                    | 422 | no agent
agent/nobody    | {"max": 3}                    | 422 | no agent
group/nowhere   | {"max": 3}                    | 422 | no group
"#;

fn refused() -> impl Iterator<Item = (String, Value, u16, &'static str)> {
    REFUSED.trim().lines().map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let path = cells[0].replace("LONG", &"x".repeat(129));
        let path = path.replace("NOBODY", &uuid::Uuid::nil().to_string());
        let mut body: Value = serde_json::from_str(cells[1]).unwrap();
        let fields = body.as_object_mut().unwrap();
        fields.entry("reason").or_insert(json!("x"));
        (path, body, cells[2].parse().unwrap(), cells[3])
    })
}

#[tokio::test]
async fn a_limit_that_cannot_be_meant_is_refused() {
    let plane = plane().await;
    plane.agent(1, true).await;
    for (path, body, expected, words) in refused() {
        let (status, problem) = plane.put(&format!("/v1/limits/{path}"), body.clone()).await;
        assert_eq!(status, expected, "{path} {body}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{path} {body}: {problem}");
    }
    for path in ["agent/nobody", "group/nowhere", "tenant/acme", "work/build"] {
        let (status, problem) = plane.get(&format!("/v1/limits/{path}")).await;
        assert_eq!(status, 404, "{path}: {problem}");
    }
    let (_, list) = plane.get("/v1/limits").await;
    assert_eq!(list["items"], json!([]), "nothing of it was written");
    let viewer = plane.token(Role::Viewer).await.token;
    for method in [Method::PUT, Method::DELETE] {
        let refused = plane
            .client
            .request(method, format!("{}/v1/limits/global/all", plane.base))
            .bearer_auth(&viewer)
            .json(&json!({"max": 3, "reason": "x"}))
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), 403);
    }
}

#[tokio::test]
async fn a_limit_that_may_be_meant_and_has_another_effect_comes_with_a_warning() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    plane.gateway.flow(agent, flow());
    let body = json!({"max": 12, "reason": "x"});
    let (status, set) = plane.put("/v1/limits/agent/hv-1", body).await;
    assert_eq!(status, 201, "{set}");
    assert!(
        set["warnings"][0]
            .as_str()
            .unwrap()
            .contains("takes 8 at once"),
        "{set}"
    );
    // One letter is in the wrong place; and one that a kind has.
    let body = json!({"max": 1, "reason": "x"});
    for (work, warned) in [("lihgt", true), ("light", false)] {
        let path = format!("/v1/limits/work/{work}");
        let (status, set) = plane.put(&path, body.clone()).await;
        assert_eq!(status, 201, "{set}");
        let warning = set["warnings"][0].as_str().unwrap_or_default();
        assert_eq!(
            warning.contains("no declared kind has a step"),
            warned,
            "{set}"
        );
    }
    let body = json!({"max": 0, "reason": "the array is down"});
    let (status, set) = plane.put("/v1/limits/global/all", body).await;
    assert_eq!(status, 201, "{set}");
    assert!(
        set["warnings"][0]
            .as_str()
            .unwrap()
            .contains("nothing new is started"),
        "{set}"
    );
}

#[tokio::test]
async fn a_revoked_agents_limit_can_be_removed_and_not_set() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let path = format!("/v1/limits/agent/{agent}");
    let body = json!({"max": 3, "reason": "x"});
    assert_eq!(plane.put(&path, body.clone()).await.0, 201);
    let revoke = format!("/v1/agents/{agent}/revoke");
    assert_eq!(plane.post(&revoke, json!({})).await.0, 200);
    let (status, problem) = plane.put(&path, body).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("revoked"));
    assert_eq!(plane.get(&path).await.0, 200);
    assert_eq!(plane.delete(&path).await.0, 204);
}

#[tokio::test]
async fn who_set_what_and_what_was_before_is_in_the_log() {
    let plane = plane().await;
    for max in [4, 2] {
        let body = json!({"max": max, "reason": "slow"});
        plane.put("/v1/limits/work/build", body).await;
    }
    plane.delete("/v1/limits/work/build?reason=mended").await;
    let events = plane.store.events_after(0, None, 100).await.unwrap();
    let told: Vec<_> = events
        .iter()
        .filter(|event| event.kind.starts_with("limit."))
        .map(|event| {
            json!([
                event.kind,
                event.data["actor"],
                event.data["reason"],
                event.data["now"]["max"],
                event.data["before"]["max"]
            ])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!(["limit.set", "first admin", "slow", 4, null]),
            json!(["limit.set", "first admin", "slow", 2, 4]),
            json!(["limit.removed", "first admin", "mended", null, 2]),
        ]
    );
}
