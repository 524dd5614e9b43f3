//! Every route's happy path, lists and health.

use reqwest::Method;
use serde_json::json;

use crate::plane::{DRIVERS, eventually, plane, plane_in, read};

#[tokio::test]
async fn health_readiness_and_metrics_answer() {
    let plane = plane().await;
    let (status, body) = plane.get("/healthz").await;
    assert_eq!((status, &body["status"]), (200, &json!("ok")));
    let (status, body) = plane.get("/readyz").await;
    assert_eq!(status, 200, "{body}");
    let names: Vec<_> = body["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["store", "processes", "serving"]);
    let detail = |check: usize| body["checks"][check]["detail"].as_str().unwrap();
    assert!(detail(0).contains("committed"), "{body}");
    assert!(detail(1).contains("agents connected: 0"), "{body}");
    assert!(detail(2).contains("takes requests"), "{body}");
    let (status, text) = plane.get("/metrics").await;
    let text = text.as_str().unwrap();
    assert_eq!(status, 200);
    for name in [
        "fake_gateway 1",
        "drover_api_requests_total{status=\"2xx\"}",
        "drover_store_commits_total",
        "drover_processes_created_total 0",
        "drover_enrolments_total{result=\"used_token\"} 0",
        "# TYPE drover_store_commit_seconds histogram",
        "drover_store_clock_offset_milliseconds{way=\"ahead\"} 0",
        "drover_store_commit_seconds_bucket{le=\"+Inf\"} ",
        "drover_command_queue_seconds_count 0",
        "drover_process_total_seconds_sum 0.000000",
        "drover_api_answer_seconds_count{route=\"GET /healthz\"} 1",
        "# TYPE drover_security_events_total counter",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
}

#[tokio::test]
async fn the_openapi_document_is_version_3_1_and_whole() {
    let plane = plane().await;
    let response = plane.client.get(format!("{}/v1/openapi.json", plane.base));
    let (status, document) = read(response.send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(document["openapi"], "3.1.0");
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            let at = format!("{method} {path}");
            assert!(operation["operationId"].is_string(), "{at}");
            assert!(operation["summary"].is_string(), "{at}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(response["description"].is_string(), "{at} {status}");
                if status.starts_with('4') {
                    let content = &response["content"]["application/problem+json"];
                    assert_eq!(
                        content["schema"]["$ref"], "#/components/schemas/Problem",
                        "{at} {status}"
                    );
                }
            }
        }
    }
    assert_eq!(operations, 64);
    // No reference leads nowhere.
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
    assert!(document["components"]["securitySchemes"]["token"].is_object());
    let create = &document["paths"]["/v1/processes"]["post"];
    assert_eq!(create["security"], json!([{ "token": [] }]));
    assert!(
        create["description"]
            .as_str()
            .unwrap()
            .contains("role `operator`")
    );
}

#[tokio::test]
async fn agent_servers_are_listed_and_drained_until_they_are_started_again() {
    let plane = plane().await;
    let (status, none) = plane.get("/v1/agent-servers").await;
    assert_eq!((status, &none["items"]), (200, &json!([])));
    let (status, _) = plane
        .post("/v1/agent-servers/a.example:7444/drain", json!({}))
        .await;
    assert_eq!(status, 404);
    let server = |run: u8, name: &str| control::gateways::AgentServer {
        run: protocol::ids::GatewayId::from_bytes([run; 16]),
        link: format!("{name}.example:7444"),
        addresses: vec![format!("{name}.example:7443")],
        shards: 2,
        capacity: 10_000,
    };
    let renew = async |run| {
        let other = server(9, "b");
        let renewed = plane
            .store
            .renew_agent_servers(vec![server(run, "a"), other], control::clock::now());
        renewed.await.unwrap();
    };
    renew(1).await;
    let (status, drained) = plane
        .post("/v1/agent-servers/a.example:7444/drain", json!({}))
        .await;
    assert_eq!((status, &drained["draining"]), (200, &json!(true)));
    renew(1).await;
    let first = async || {
        let (_, page) = plane.get("/v1/agent-servers").await;
        page["items"][0].clone()
    };
    let listed = first().await;
    assert_eq!(
        (&listed["draining"], &listed["alive"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(
        (&listed["groups"], &listed["agents"]),
        (&json!(0), &json!(0))
    );
    let (_, again) = plane
        .post("/v1/agent-servers/a.example:7444/undrain", json!({}))
        .await;
    assert_eq!(again["draining"], false);
    plane
        .post("/v1/agent-servers/a.example:7444/drain", json!({}))
        .await;
    renew(2).await;
    assert_eq!(first().await["draining"], false, "another run");

    let (_, groups) = plane.get("/v1/groups?page_size=1").await;
    let pin = format!(
        "/v1/groups/{}/pin",
        groups["items"][0]["id"].as_str().unwrap()
    );
    let put = async |server: &str| {
        let body = json!({ "agent_server": server });
        let put = plane.request(Method::PUT, &pin).json(&body);
        read(put.send().await.unwrap()).await
    };
    let (status, error) = put("c.example:7444").await;
    assert_eq!(status, 422, "{error}");
    let (status, group) = put("a.example:7444").await;
    assert_eq!((status, &group["pin"]), (200, &json!("a.example:7444")));
    let (status, _) = plane.delete(&pin).await;
    assert_eq!(status, 204);
}

#[tokio::test]
async fn groups_can_be_made_listed_and_shown() {
    let plane = plane().await;
    let (status, made) = plane.post("/v1/groups", json!({ "name": "rack-7" })).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(
        (&made["automatic"], &made["epoch"]),
        (&json!(false), &json!(1))
    );
    let id = made["id"].as_str().unwrap();
    let (status, shown) = plane.get(&format!("/v1/groups/{id}")).await;
    assert_eq!((status, &shown), (200, &made));
    let (status, error) = plane.post("/v1/groups", json!({ "name": "rack-7" })).await;
    assert_eq!(
        (status, &error["errors"][0]["field"]),
        (409, &json!("name"))
    );
    let (_, list) = plane.get("/v1/groups?page_size=500").await;
    assert_eq!(
        list["items"].as_array().unwrap().len(),
        65,
        "64 automatic ones and ours"
    );
}

#[tokio::test]
async fn every_page_of_a_list_is_different_and_together_they_are_all() {
    let plane = plane().await;
    plane.join_tokens(json!({ "count": 7 })).await;
    for (path, expected) in [("/v1/groups", 64), ("/v1/tokens", 7)] {
        let mut seen = std::collections::BTreeSet::new();
        let mut query = "?page_size=3".to_owned();
        loop {
            let (status, page) = plane.get(&format!("{path}{query}")).await;
            assert_eq!(status, 200, "{page}");
            for item in page["items"].as_array().unwrap() {
                assert!(
                    seen.insert(item["id"].as_str().unwrap().to_owned()),
                    "twice"
                );
            }
            match page["next_page_token"].as_str() {
                Some(token) => query = format!("?page_size=3&page_token={token}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), expected, "{path}");
    }
}

#[tokio::test]
async fn agents_show_what_they_say_and_can_be_found_by_state_and_group() {
    let plane = plane().await;
    let up = plane.agent(1, true).await;
    let down = plane.agent(2, false).await;
    let (_, agent) = plane.get(&format!("/v1/agents/{up}")).await;
    assert_eq!(agent["hostname"], "hv-1");
    assert_eq!(agent["capacity"], 4);
    assert_eq!(agent["kinds"], json!(DRIVERS));
    assert_eq!(agent["labels"], json!({ "rack": "7" }));
    assert_eq!(agent["keys"].as_array().unwrap().len(), 1);
    for (query, expected) in [
        ("state=connected".to_owned(), vec![up]),
        ("state=disconnected".to_owned(), vec![down]),
        ("state=revoked".to_owned(), vec![]),
        (
            format!("group={}", agent["group"]["name"].as_str().unwrap()),
            vec![up],
        ),
        ("page_size=1".to_owned(), vec![up]),
        (String::new(), vec![up, down]),
    ] {
        let (status, page) = plane.get(&format!("/v1/agents?{query}")).await;
        assert_eq!(status, 200, "{query}: {page}");
        let items = page["items"].as_array().unwrap();
        let ids: Vec<String> = items
            .iter()
            .map(|agent| agent["id"].as_str().unwrap().to_owned())
            .collect();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(ids, expected, "{query}");
    }
}

#[tokio::test]
async fn join_tokens_show_their_text_once_and_can_be_deleted() {
    let plane = plane().await;
    let (_, made) = plane.post("/v1/tokens", json!({ "ttl_seconds": 60 })).await;
    let token = &made["tokens"][0];
    assert!(token["token"].as_str().unwrap().starts_with("drover1."));
    assert_eq!(token["state"], "valid");
    let (_, list) = plane.get("/v1/tokens").await;
    assert_eq!(list["items"][0]["id"], token["id"]);
    assert!(
        !list.to_string().contains("drover1."),
        "secrets are shown once"
    );
    let path = format!("/v1/tokens/{}", token["id"].as_str().unwrap());
    assert_eq!(plane.delete(&path).await.0, 204);
    assert_eq!(plane.delete(&path).await.0, 404);
}

#[tokio::test]
async fn the_admin_token_of_the_first_start_works_after_a_restart() {
    let plane = plane().await;
    let mode = {
        use std::os::unix::fs::PermissionsExt as _;
        let file = std::fs::metadata(plane.dir.path().join("admin.token")).unwrap();
        file.permissions().mode() & 0o777
    };
    assert_eq!(mode, 0o600);
    let (admin, dir) = (plane.admin.clone(), plane.dir);
    plane
        .control
        .drain(std::time::Duration::from_secs(10))
        .await;
    drop(plane.store);
    let plane = plane_in(dir, 10_000).await;
    assert_eq!(plane.admin, admin);
    assert_eq!(plane.get("/v1/api-tokens").await.0, 200);
}

#[tokio::test]
async fn a_drained_api_takes_no_connection() {
    let plane = plane().await;
    assert_eq!(plane.get("/healthz").await.0, 200);
    let (base, client) = (plane.base.clone(), reqwest::Client::new());
    plane
        .control
        .drain(std::time::Duration::from_secs(10))
        .await;
    assert!(client.get(format!("{base}/healthz")).send().await.is_err());
}

#[tokio::test]
async fn a_request_that_is_under_way_survives_the_drain() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    // Waits on a process that never ends.
    let request = plane
        .request(Method::POST, "/v1/processes")
        .header("Idempotency-Key", "slow")
        .header("Prefer", "wait=60")
        .json(&json!({ "agent": agent, "kind": "hang" }));
    let waiting = tokio::spawn(async move { read(request.send().await.unwrap()).await });
    eventually("the process", async || {
        let (_, page) = plane.get("/v1/processes").await;
        (page["items"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    plane
        .control
        .drain(std::time::Duration::from_secs(20))
        .await;
    let (status, body) = waiting.await.unwrap();
    assert_eq!(status, 201, "{body}");
}
