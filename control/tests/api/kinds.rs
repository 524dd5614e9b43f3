//! Kinds, steps, and what people may order about processes, over the API.

use control::api::model::access::Role;
use protocol::flow::{AgentFlow, Class as Urgency, LimitKey, LimitUse, Line, LineFlow, Parked};
use protocol::ids::{AgentId, ServerId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane, read};

async fn shown(plane: &Plane, id: &str) -> Value {
    let (status, body) = plane.get(&format!("/v1/processes/{id}")).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn until(plane: &Plane, id: &str, state: &str) -> Value {
    eventually(state, async || {
        let process = shown(plane, id).await;
        (process["state"] == state).then_some(process)
    })
    .await
}

async fn made(plane: &Plane, key: &str, body: Value) -> String {
    let (status, process) = plane.start(key, body).await;
    assert_eq!(status, 201, "{process}");
    process["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn kinds_are_listed_shown_and_started_by_name() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let (status, list) = plane.get("/v1/kinds?page_size=500").await;
    assert_eq!(status, 200, "{list}");
    let names: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kind| kind["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"vm-create") && names.contains(&"sim-vm-delete"),
        "{names:?}"
    );
    assert!(names.is_sorted());
    let (_, page) = plane.get("/v1/kinds?page_size=1").await;
    let token = page["next_page_token"].as_str().unwrap();
    let (_, next) = plane
        .get(&format!("/v1/kinds?page_size=1&page_token={token}"))
        .await;
    assert_eq!(next["items"][0]["name"], names[1]);
    let (_, kind) = plane.get("/v1/kinds/three").await;
    assert_eq!(kind["built_in"], false);
    assert_eq!(
        kind["fields"],
        json!([{"name": "thing", "type": "any", "required": true}])
    );
    assert_eq!(
        kind["steps"][0]["compensate"]["input"],
        json!({"undo": "first"})
    );
    let (status, missing) = plane.get("/v1/kinds/nothing").await;
    assert_eq!(status, 404, "{missing}");

    let body = json!({"agent": agent, "kind": "three", "input": {"thing": "a"}, "tenant": "acme"});
    let id = made(&plane, "k", body).await;
    let process = eventually("the third step", async || {
        let process = shown(&plane, &id).await;
        (process["step"] == 2 && process["state"] == "running").then_some(process)
    })
    .await;
    assert_eq!(process["resource"], "thing/a");
    assert_eq!(process["class"], "background");
    assert_eq!(
        (&process["max_attempts"], &process["step_count"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(process["tenant"], "acme");
    let states: Vec<&str> = process["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["done", "done", "current"]);
    assert_eq!(process["steps"][0]["input"], json!({"say": "a"}));
    assert_eq!(process["steps"][0]["timeout_seconds"], 30);
    let (_, list) = plane.get("/v1/processes?tenant=acme").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let (_, list) = plane.get("/v1/processes?tenant=other").await;
    assert!(list["items"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_kind_refuses_what_it_cannot_use_by_the_name_of_the_field() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let cases = [
        (
            json!({"kind": "three", "input": {}}),
            "input.thing",
            "is missing",
        ),
        (
            json!({"kind": "three", "input": {"thing": []}}),
            "input.thing",
            "must be text",
        ),
        (
            json!({"kind": "three", "input": {"thing": 1, "x": 1}}),
            "input.x",
            "no such field",
        ),
        (
            json!({"kind": "three", "input": [1]}),
            "input",
            "takes a JSON object",
        ),
        (
            json!({"kind": "vm-start", "input": {"vm": "-x"}}),
            "input.vm",
            "no `-`",
        ),
        (
            json!({"kind": "three", "input": {"thing": 1}, "resource": "r"}),
            "resource",
            "leave it out",
        ),
        (json!({"kind": "exec", "tenant": "ACME"}), "tenant", "a-z"),
        (json!({"kind": "exec", "tenant": ""}), "tenant", "a-z"),
    ];
    for (n, (mut body, field, words)) in cases.into_iter().enumerate() {
        body["agent"] = json!(agent);
        let (status, problem) = plane.start(&format!("bad{n}"), body).await;
        assert_eq!(status, 400, "{problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
        let detail = problem["errors"][0]["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{problem}");
    }
}

#[tokio::test]
async fn a_doomed_process_is_undone_kept_and_can_be_tried_again() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let body = json!({"agent": agent, "kind": "doomed", "input": {"thing": "a"}});
    let id = made(&plane, "k", body).await;
    let process = until(&plane, &id, "failed").await;
    assert_eq!(process["needs_attention"], false);
    assert_eq!(process["outcome"]["message"], "it broke; undone: steps 1");
    let states: Vec<&str> = process["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["undone", "done", "failed"]);
    assert_eq!(process["steps"][2]["outcome"]["exit_code"], 1);
    let path = format!("/v1/processes/{id}");
    let retry = json!({"reason": "the disk is mended"});
    let (status, again) = plane.post(&format!("{path}/retry"), retry).await;
    assert_eq!(status, 202, "{again}");
    until(&plane, &id, "failed").await;
    let (status, history) = plane.get(&format!("{path}/history?page_size=500")).await;
    assert_eq!(status, 200);
    let entries = history["items"].as_array().unwrap();
    assert_eq!(entries[0]["type"], "process.created");
    assert_ne!(entries[0]["actor"], "system");
    let ordered = entries
        .iter()
        .find(|entry| entry["reason"] == "the disk is mended")
        .unwrap();
    assert_eq!(ordered["from"], "failed");
    assert_ne!(ordered["actor"], "system");
    assert!(
        ordered["detail"]
            .as_str()
            .unwrap()
            .contains("started over at step 1")
    );
    assert!(
        entries
            .iter()
            .any(|entry| entry["actor"] == "system" && entry["to"] == "leased")
    );
}

#[tokio::test]
async fn a_replay_after_undoing_begins_where_all_before_is_still_done() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let body = json!({"agent": agent, "kind": "doomed", "input": {"thing": "a"}});
    let id = made(&plane, "k", body).await;
    let undone = until(&plane, &id, "failed").await;
    let path = format!("/v1/processes/{id}/replay");
    // The second one stands on the first one, which is undone.
    for step in [json!("second"), json!(2)] {
        let (status, problem) = plane.post(&path, json!({"step": step})).await;
        assert_eq!(status, 409, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.ends_with("replay it from step 0."), "{detail}");
    }
    let (_, now) = plane.get(&format!("/v1/processes/{id}")).await;
    assert_eq!(now["steps"], undone["steps"], "a refusal changes nothing");
    let (status, replayed) = plane.post(&path, json!({"step": 0})).await;
    assert_eq!((status, &replayed["step"]), (202, &json!(0)), "{replayed}");
    until(&plane, &id, "failed").await;
}

#[tokio::test]
async fn orders_that_do_not_fit_are_refused_with_the_reason() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let id = made(&plane, "ok", json!({"agent": agent, "kind": "exec"})).await;
    until(&plane, &id, "succeeded").await;
    let hang = made(&plane, "hang", json!({"agent": agent, "kind": "hang"})).await;
    until(&plane, &hang, "running").await;
    let path = |id: &str, order: &str| format!("/v1/processes/{id}/{order}");
    let nobody = uuid::Uuid::nil().to_string();
    let cases = [
        (path(&id, "retry"), json!({}), 409, "has succeeded"),
        (path(&hang, "retry"), json!({}), 409, "cancel it first"),
        (path(&hang, "replay"), json!({}), 409, "cancel it first"),
        (path(&id, "replay"), json!({"step": 1}), 409, "1 step"),
        (
            path(&id, "replay"),
            json!({"step": "first"}),
            400,
            "it has one step",
        ),
        (path(&id, "replay"), json!({"step": -1}), 400, "step"),
        (
            path(&id, "retry"),
            json!({"why": "x"}),
            400,
            "unknown field",
        ),
        (
            path(&id, "retry"),
            json!({"reason": "x".repeat(300)}),
            400,
            "256 bytes",
        ),
        (
            path(&id, "cancel"),
            json!({"mode": "gently"}),
            400,
            "graceful",
        ),
        (path(&nobody, "retry"), json!({}), 404, "no process"),
        (path(&nobody, "replay"), json!({}), 404, "no process"),
        (path(&nobody, "history"), Value::Null, 404, "no process"),
    ];
    for (path, body, expected, words) in cases {
        let (status, problem) = match path.ends_with("history") {
            true => plane.get(&path).await,
            false => plane.post(&path, body).await,
        };
        assert_eq!(status, expected, "{path}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{path}: {problem}");
    }
    let (status, problem) = plane.post(&path(&id, "clone"), json!({})).await;
    assert_eq!(
        (status, problem["type"].as_str()),
        (400, Some("urn:drover:problem:idempotency-key-missing"))
    );
}

#[tokio::test]
async fn force_ends_what_runs_and_says_that_people_must_look() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let id = made(&plane, "hang", json!({"agent": agent, "kind": "hang"})).await;
    until(&plane, &id, "running").await;
    let path = format!("/v1/processes/{id}/cancel");
    let viewer = plane.token(Role::Viewer).await.token;
    let refused = plane
        .client
        .post(format!("{}{path}", plane.base))
        .bearer_auth(viewer)
        .json(&json!({"mode": "force"}))
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 403);
    let (status, process) = plane.post(&path, json!({"mode": "force"})).await;
    assert_eq!(status, 200, "{process}");
    assert_eq!(process["state"], "cancelled");
    assert_eq!(process["needs_attention"], true);
    assert_eq!(process["outcome"]["status"], "interrupted");
    let (_, list) = plane.get("/v1/processes?needs_attention=true").await;
    assert_eq!(list["items"][0]["id"], id.as_str());
    let (_, list) = plane
        .get("/v1/processes?state=cancelled&needs_attention=false")
        .await;
    assert!(list["items"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_clone_is_a_new_process_with_the_same_plan() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let body = json!({"agent": agent, "kind": "doomed", "input": {"thing": "a"}, "tenant": "acme"});
    let id = made(&plane, "k", body).await;
    until(&plane, &id, "failed").await;
    let clone = |key: &'static str| {
        let path = format!("/v1/processes/{id}/clone");
        let request = plane
            .request(Method::POST, &path)
            .header("Idempotency-Key", key);
        async move { read(request.send().await.unwrap()).await }
    };
    let (status, other) = clone("c").await;
    assert_eq!(status, 201, "{other}");
    assert_ne!(other["id"], id.as_str());
    assert_eq!(
        (&other["tenant"], &other["resource"]),
        (&json!("acme"), &json!("thing/a"))
    );
    let (status, same) = clone("c").await;
    assert_eq!((status, &same["id"]), (200, &other["id"]));
    let ended = until(&plane, other["id"].as_str().unwrap(), "failed").await;
    assert_eq!(ended["steps"][0]["state"], "undone");
}

/// What a dry run of `exec` says that it would wait for, and what `why` says of one that is there.
async fn foretold_and_told(plane: &Plane, agent: AgentId, id: &str) -> [Value; 2] {
    let body = json!({"agent": agent, "kind": "exec"});
    let request = plane.request(Method::POST, "/v1/processes?dry_run=true");
    let (status, run) = read(request.json(&body).send().await.unwrap()).await;
    assert_eq!(status, 200, "{run}");
    [
        run["waiting_on"].clone(),
        shown(plane, id).await["waiting_on"].clone(),
    ]
}

#[tokio::test]
async fn a_dry_run_meets_the_limits_that_a_process_meets() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    plane.gateway.fill(agent);
    let id = made(&plane, "k", json!({"agent": agent, "kind": "exec"})).await;
    let mut flow = AgentFlow {
        capacity: 4,
        limit: 1,
        running: 1,
        granted: 0,
        lines: Vec::new(),
        decision: None,
    };
    plane.gateway.flow(agent, flow.clone());
    // The agent is given less than it states.
    let [foretold, told] = foretold_and_told(&plane, agent, &id).await;
    for name in ["scope", "key", "limit", "in_use", "advice"] {
        assert_eq!(foretold[name], told[name], "{foretold} {told}");
    }
    assert_eq!(
        (&foretold["limit"], &foretold["position"], &told["position"]),
        (&json!(1), &json!(2), &json!(1))
    );
    // Nothing at all is to be started: nobody's line waits for that yet.
    let nothing = LimitUse {
        limit: Some(0),
        in_use: 0,
        waiting: 0,
    };
    plane.gateway.use_of(LimitKey::Global, nothing);
    let [foretold, _] = foretold_and_told(&plane, agent, &id).await;
    assert_eq!(
        (&foretold["scope"], &foretold["key"], &foretold["eta_s"]),
        (&json!("limit"), &json!("global all"), &Value::Null),
        "{foretold}"
    );
    // One of its own line waits for it.
    flow.lines = vec![LineFlow {
        server: ServerId(1),
        number: 0,
        line: Line {
            class: Urgency::Normal,
            tenant: "default".to_owned(),
            kind: "exec".to_owned(),
            ..Line::default()
        },
        waiting: 1,
        parked: Some(Parked {
            key: LimitKey::Global,
            limit: 0,
            in_use: 0,
            before: 0,
        }),
    }];
    plane.gateway.flow(agent, flow);
    let [foretold, told] = foretold_and_told(&plane, agent, &id).await;
    for name in ["scope", "key", "limit", "in_use", "advice"] {
        assert_eq!(foretold[name], told[name], "{foretold} {told}");
    }
    assert_eq!(
        (&foretold["key"], &foretold["position"]),
        (&json!("global all"), &json!(2))
    );
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_says_what_would_be_met() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let body = json!({"agent": "hv-1", "kind": "three", "input": {"thing": "a"}});
    let dry = |body: Value| {
        let request = plane
            .request(Method::POST, "/v1/processes?dry_run=true")
            .json(&body);
        async move { read(request.send().await.unwrap()).await }
    };
    let by_id = |mut body: Value| {
        body["agent"] = json!(agent);
        body
    };
    let (status, run) = dry(by_id(body.clone())).await;
    assert_eq!(status, 200, "{run}");
    assert_eq!(run["state"], "ready");
    assert_eq!(run["waiting_on"]["scope"], "agent", "it has no session");
    let permits = run["permits"].as_array().unwrap();
    for permit in [
        json!({"scope": "agent", "key": agent}),
        json!({"scope": "work", "key": "light"}),
        json!({"scope": "global", "key": "all"}),
        json!({"scope": "resource", "key": "pool/a"}),
        json!({"scope": "tenant", "key": "default"}),
    ] {
        assert!(permits.contains(&permit), "{permit} is not in {permits:?}");
    }
    assert_eq!(run["steps"].as_array().unwrap().len(), 3);
    let (_, list) = plane.get("/v1/processes").await;
    assert!(
        list["items"].as_array().unwrap().is_empty(),
        "nothing was written"
    );
    // With one that waits: the same kind makes it needless; another kind waits for it.
    let id = made(&plane, "k", by_id(body.clone())).await;
    let (_, run) = dry(by_id(body)).await;
    assert_eq!(run["supersedes"], json!([id]));
    let holder = json!({"kind": "doomed", "input": {"thing": "a"}});
    let (_, run) = dry(by_id(holder)).await;
    assert_eq!(
        (run["state"].as_str(), &run["waiting_on"]["held_by"]),
        (Some("blocked"), &json!(id))
    );
    let (status, problem) = dry(json!({"agent": uuid::Uuid::nil(), "kind": "exec"})).await;
    assert_eq!(status, 422, "{problem}");
    let (status, problem) = dry(by_id(json!({"kind": "three", "input": {}}))).await;
    assert_eq!(status, 400, "{problem}");
}

#[tokio::test]
async fn a_newer_wish_makes_the_older_one_needless() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let wish = |kind: &str| json!({"agent": agent, "kind": kind, "input": {"vm": "web-1"}});
    let mut ids = Vec::new();
    for (n, kind) in ["vm-start", "vm-stop", "vm-start"].into_iter().enumerate() {
        ids.push(made(&plane, &n.to_string(), wish(kind)).await);
    }
    for id in &ids[..2] {
        let process = shown(&plane, id).await;
        assert_eq!(process["state"], "cancelled");
        let message = process["outcome"]["message"].as_str().unwrap();
        assert!(message.starts_with("superseded by "), "{message}");
    }
    until(&plane, &ids[2], "ready").await;
}
