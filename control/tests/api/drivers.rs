//! Processes for agents that lack a driver are refused before they are made.

use protocol::ids::AgentId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane, read};

/// An agent that has a session with these drivers.
async fn agent_with(plane: &Plane, ticket: u64, drivers: &[&str]) -> AgentId {
    let agent = plane.agent(ticket, false).await;
    plane
        .gateway
        .connect_with(agent, &format!("hv-{ticket}"), drivers);
    has(plane, agent, drivers).await;
    agent
}

/// Waits until it is known what the agent has.
async fn has(plane: &Plane, agent: AgentId, drivers: &[&str]) {
    let path = format!("/v1/agents/{agent}");
    eventually("the agent's drivers", async || {
        let (_, shown) = plane.get(&path).await;
        (shown["state"] == "connected" && shown["kinds"] == json!(drivers)).then_some(())
    })
    .await;
}

fn assert_lacks(status: u16, problem: &Value, field: &str, words: &[&str]) {
    assert_eq!(status, 422, "{problem}");
    assert_eq!(problem["type"], "urn:drover:problem:unprocessable");
    assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    for words in words {
        assert!(detail.contains(words), "{words} is not in: {detail}");
    }
}

#[tokio::test]
async fn a_process_for_an_agent_without_its_driver_is_refused_with_what_to_do() {
    let plane = plane().await;
    let agent = agent_with(&plane, 1, &["exec", "hang"]).await;
    let shows = format!("drover agents show {agent}");
    let unknown = json!({"agent": "hv-1", "kind": "vm-strat"});
    let (status, problem) = plane.start("a", unknown).await;
    let words = [
        "the agent hv-1 has no driver `vm-strat`",
        "no kind of that name is declared (drover kinds list)",
        "it has `exec`, `hang`",
        "Choose another agent or kind",
        &shows,
    ];
    assert_lacks(status, &problem, "kind", &words);
    // The last step's driver counts, and that of what undoes a step.
    let doomed = json!({"agent": agent, "kind": "doomed", "input": {"thing": "a"}});
    let (status, problem) = plane.start("b", doomed.clone()).await;
    let words = ["no driver `fail`, which the kind `doomed` needs"];
    assert_lacks(status, &problem, "kind", &words);
    let dry = "/v1/processes?dry_run=true";
    let (status, problem) = plane.post(dry, doomed.clone()).await;
    assert_lacks(status, &problem, "kind", &words);
    let item = |key: &str, body: Value| json!({ "idempotency_key": key, "process": body });
    let three = json!({"agent": agent, "kind": "three", "input": {"thing": "b"}});
    let batch = json!({ "processes": [item("c", three), item("d", doomed)] });
    let (status, body) = plane.post("/v1/process-batches", batch).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["results"][0]["status"], 201, "{body}");
    let problem = &body["results"][1]["problem"];
    assert_lacks(422, problem, "processes[1].process.kind", &words);
    let (_, list) = plane.get("/v1/processes").await;
    assert_eq!(
        list["items"].as_array().unwrap().len(),
        1,
        "only the good one"
    );
}

#[tokio::test]
async fn undoing_needs_its_driver_as_well() {
    let plane = plane().await;
    // All steps are `hang` and `exec`, and `exec` undoes the first one.
    let agent = agent_with(&plane, 1, &["hang"]).await;
    let three = json!({"agent": agent, "kind": "three", "input": {"thing": "a"}});
    let (status, problem) = plane.start("a", three).await;
    let words = ["no driver `exec`, which the kind `three` needs", "`hang`"];
    assert_lacks(status, &problem, "kind", &words);
}

#[tokio::test]
async fn an_agent_that_was_never_here_is_believed_and_one_that_has_gone_is_remembered() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let body = |kind: &str| json!({"agent": agent, "kind": kind});
    let (status, process) = plane.start("a", body("disk")).await;
    assert_eq!(status, 201, "nobody knows what it will have: {process}");
    plane.gateway.connect_with(agent, "hv-1", &["exec"]);
    has(&plane, agent, &["exec"]).await;
    plane.gateway.disconnect(agent);
    let path = format!("/v1/agents/{agent}");
    eventually("its end and what it said", async || {
        let (_, shown) = plane.get(&path).await;
        (shown["state"] == "disconnected" && shown["kinds"] == json!(["exec"])).then_some(())
    })
    .await;
    let (status, problem) = plane.start("b", body("disk")).await;
    assert_lacks(status, &problem, "kind", &["no driver `disk`", "`exec`"]);
    assert_eq!(plane.start("c", body("exec")).await.0, 201);
    // It is back with the driver: what it was refused for counts no more, at once.
    plane.gateway.connect_with(agent, "hv-1", &["disk", "exec"]);
    has(&plane, agent, &["disk", "exec"]).await;
    assert_eq!(plane.start("d", body("disk")).await.0, 201);
}

#[tokio::test]
async fn a_repeated_request_gets_its_process_whatever_its_agent_has_lost() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let body = json!({"agent": agent, "kind": "disk"});
    let (status, first) = plane.start("a", body.clone()).await;
    assert_eq!(status, 201, "{first}");
    plane.gateway.connect_with(agent, "hv-1", &["exec"]);
    has(&plane, agent, &["exec"]).await;
    let (status, again) = plane.start("a", body.clone()).await;
    assert_eq!((status, &again["id"]), (200, &first["id"]));
    let (status, problem) = plane.start("b", body).await;
    assert_lacks(status, &problem, "kind", &["no driver `disk`"]);
    // A clone is a new process.
    let path = format!("/v1/processes/{}/clone", first["id"].as_str().unwrap());
    let clone = plane.request(Method::POST, &path);
    let clone = clone.header("Idempotency-Key", "c").send().await.unwrap();
    let (status, problem) = read(clone).await;
    assert_lacks(status, &problem, "kind", &["no driver `disk`"]);
}
