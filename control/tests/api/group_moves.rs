//! Groups that people move between agent servers.

use control::clock;
use control::gateways::AgentServer;
use protocol::ids::GatewayId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, plane, read};

const A: &str = "a.example:7444";
const B: &str = "b.example:7444";

fn run(number: u8) -> GatewayId {
    GatewayId::from_bytes([number; 16])
}

/// Two agent servers that somebody reaches; the first owns all groups.
async fn two(plane: &Plane) {
    let server = |number, link: &str| AgentServer {
        run: run(number),
        link: link.to_owned(),
        addresses: vec![link.replace("7444", "7443")],
        shards: 2,
        capacity: 10_000,
    };
    let reached = vec![server(1, A), server(2, B)];
    let renewed = plane.store.renew_agent_servers(reached, clock::now());
    renewed.await.unwrap();
    plane.store.take_groups(run(1).0).await.unwrap();
}

/// The path of some group.
async fn group(plane: &Plane) -> String {
    let (_, groups) = plane.get("/v1/groups?page_size=1").await;
    format!("/v1/groups/{}", groups["items"][0]["id"].as_str().unwrap())
}

fn detail(problem: &Value) -> &str {
    problem["detail"].as_str().unwrap()
}

#[tokio::test]
async fn without_several_agent_servers_there_is_nowhere_to_go() {
    let plane = plane().await;
    let group = group(&plane).await;
    let to = json!({ "agent_server": A });
    let (status, error) = plane.post(&format!("{group}/assign"), to).await;
    assert_eq!(
        (status, &error["errors"][0]["field"]),
        (422, &json!("agent_server"))
    );
    assert!(detail(&error).contains("GET /v1/agent-servers"), "{error}");
    for path in [format!("{group}/drain"), "/v1/groups/rebalance".to_owned()] {
        let (status, error) = plane.post(&path, json!({})).await;
        assert_eq!(status, 409, "{path}");
        assert!(detail(&error).contains("only one"), "{error}");
    }
    let nobody = "/v1/groups/00000000-0000-4000-8000-000000000000/drain";
    assert_eq!(plane.post(nobody, json!({})).await.0, 404);
}

#[tokio::test]
async fn a_group_goes_where_it_is_assigned_and_stays_for_a_while() {
    let plane = plane().await;
    two(&plane).await;
    let group = group(&plane).await;
    let assign = async |link: &str| {
        let to = json!({ "agent_server": link });
        plane.post(&format!("{group}/assign"), to).await
    };
    let (status, assigned) = assign(B).await;
    assert_eq!((status, &assigned["assigned"]), (200, &json!(B)));
    assert!(assigned["assigned_until"].is_string(), "{assigned}");
    assert_eq!(
        (&assigned["agent_server"], &assigned["pin"]),
        (&json!(A), &Value::Null)
    );

    // One that drains is given nothing, and the other one is alone then.
    let (_, drains) = plane
        .post(&format!("/v1/agent-servers/{B}/drain"), json!({}))
        .await;
    assert_eq!(drains["draining"], true);
    let (status, error) = assign(B).await;
    assert_eq!(status, 409);
    assert!(detail(&error).contains("undrain"), "{error}");
    let drain = format!("{group}/drain");
    assert_eq!(plane.post(&drain, json!({})).await.0, 409);
    let (status, error) = plane
        .post(&format!("/v1/agent-servers/{A}/drain"), json!({}))
        .await;
    assert_eq!(status, 409);
    assert!(detail(&error).contains("No other agent server"), "{error}");
    let (status, again) = plane
        .post(&format!("/v1/agent-servers/{B}/drain"), json!({}))
        .await;
    assert_eq!((status, &again["draining"]), (200, &json!(true)));
    plane
        .post(&format!("/v1/agent-servers/{B}/undrain"), json!({}))
        .await;

    // A pin for good goes before, and says so.
    let pin = plane.request(Method::PUT, &format!("{group}/pin"));
    let (status, pinned) = read(
        pin.json(&json!({ "agent_server": A }))
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(
        (status, &pinned["assigned"]),
        (200, &Value::Null),
        "{pinned}"
    );
    for refused in [assign(B).await, plane.post(&drain, json!({})).await] {
        assert_eq!(refused.0, 409);
        assert!(
            detail(&refused.1).contains("is pinned to `a.example:7444`"),
            "{}",
            refused.1
        );
    }
    plane.delete(&format!("{group}/pin")).await;
    let (status, given) = plane.post(&drain, json!({})).await;
    assert_eq!((status, &given["assigned"]), (200, &json!(B)));
}

#[tokio::test]
async fn a_rebalance_says_what_it_would_do_and_does_it() {
    let plane = plane().await;
    two(&plane).await;
    let path = "/v1/groups/rebalance";
    let assigned = async || {
        let (_, groups) = plane.get("/v1/groups?page_size=500").await;
        let groups = groups["items"].as_array().unwrap().clone();
        groups.iter().filter(|group| group["assigned"] == B).count()
    };
    let (status, plan) = plane.post(path, json!({ "dry_run": true })).await;
    let moves = plan["moves"].as_array().unwrap();
    assert_eq!(
        (status, &plan["dry_run"], moves.len()),
        (200, &json!(true), 32)
    );
    assert!(
        moves.iter().all(|one| one["from"] == A && one["to"] == B),
        "{plan}"
    );
    assert_eq!(assigned().await, 0);
    let (status, done) = plane.post(path, json!({})).await;
    assert_eq!((status, &done["moves"]), (200, &plan["moves"]));
    assert_eq!(assigned().await, 32);
    let (status, _) = plane.post(path, json!({ "dry": true })).await;
    assert_eq!(status, 400);
}
