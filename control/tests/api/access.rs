//! Who may do what: the table of roles, and the life of a token.

use control::api::model::access::Role;
use reqwest::Method;
use serde_json::json;

use crate::plane::{eventually, plane, plane_in, read};

/// Every route, and whether viewer, operator and admin may use it.
const TABLE: &[(&str, &str, [bool; 3])] = &[
    ("GET", "/metrics", [true, true, true]),
    ("GET", "/v1/agents", [true, true, true]),
    ("GET", "/v1/agents/ID", [true, true, true]),
    ("POST", "/v1/agents/ID/revoke", [false, false, true]),
    ("POST", "/v1/agents/ID/rekey", [false, false, true]),
    ("GET", "/v1/groups", [true, true, true]),
    ("POST", "/v1/groups", [false, false, true]),
    ("GET", "/v1/groups/ID", [true, true, true]),
    ("GET", "/v1/tokens", [false, false, true]),
    ("POST", "/v1/tokens", [false, false, true]),
    ("DELETE", "/v1/tokens/ID", [false, false, true]),
    ("GET", "/v1/api-tokens", [false, false, true]),
    ("POST", "/v1/api-tokens", [false, false, true]),
    ("DELETE", "/v1/api-tokens/ID", [false, false, true]),
    ("GET", "/v1/processes", [true, true, true]),
    ("POST", "/v1/processes", [false, true, true]),
    ("GET", "/v1/processes/ID", [true, true, true]),
    ("GET", "/v1/processes/ID/events", [true, true, true]),
    ("POST", "/v1/processes/ID/cancel", [false, true, true]),
    ("POST", "/v1/process-batches", [false, true, true]),
    ("GET", "/v1/events", [true, true, true]),
    ("GET", "/v1/webhooks", [false, true, true]),
    ("POST", "/v1/webhooks", [false, false, true]),
    ("GET", "/v1/webhooks/ID", [false, true, true]),
    ("PATCH", "/v1/webhooks/ID", [false, false, true]),
    ("DELETE", "/v1/webhooks/ID", [false, false, true]),
    ("POST", "/v1/webhooks/ID/rotate", [false, false, true]),
    ("POST", "/v1/webhooks/ID/test", [false, false, true]),
    ("GET", "/v1/webhooks/ID/deliveries", [false, true, true]),
    (
        "POST",
        "/v1/webhooks/ID/deliveries/7/redeliver",
        [false, false, true],
    ),
    ("GET", "/v1/batches", [true, true, true]),
    ("POST", "/v1/batches", [false, true, true]),
    ("GET", "/v1/batches/ID", [true, true, true]),
    ("POST", "/v1/batches/ID/cancel", [false, true, true]),
];

#[tokio::test]
async fn each_role_may_do_what_the_table_says_and_nobody_without_a_token() {
    let plane = plane().await;
    let mut tokens = Vec::new();
    for role in [Role::Viewer, Role::Operator, Role::Admin] {
        tokens.push(plane.token(role).await.token);
    }
    for (method, path, allowed) in TABLE {
        let method: Method = method.parse().unwrap();
        let url = format!(
            "{}{}",
            plane.base,
            path.replace("ID", &uuid::Uuid::nil().to_string())
        );
        let anonymous = plane
            .client
            .request(method.clone(), &url)
            .send()
            .await
            .unwrap();
        assert_eq!(
            anonymous.headers()["www-authenticate"],
            "Bearer realm=\"drover\""
        );
        assert_eq!(anonymous.status(), 401, "{method} {path}");
        for (token, allowed) in tokens.iter().zip(allowed) {
            let request = plane
                .client
                .request(method.clone(), &url)
                .bearer_auth(token);
            let status = request.send().await.unwrap().status().as_u16();
            assert_eq!(status != 403, *allowed, "{method} {path}: {status}");
            assert_ne!(status, 401, "{method} {path}");
        }
    }
    for path in ["/healthz", "/readyz", "/v1/openapi.json"] {
        let response = plane
            .client
            .get(format!("{}{path}", plane.base))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn a_deleted_token_stops_working_at_once() {
    let plane = plane().await;
    let token = plane.token(Role::Viewer).await;
    let url = format!("{}/v1/agents", plane.base);
    let get = || plane.client.get(&url).bearer_auth(&token.token).send();
    assert_eq!(get().await.unwrap().status(), 200);
    let path = format!("/v1/api-tokens/{}", token.info.id);
    assert_eq!(plane.delete(&path).await.0, 204);
    assert_eq!(get().await.unwrap().status(), 401);
    assert_eq!(plane.delete(&path).await.0, 404);
}

#[tokio::test]
async fn the_last_admin_token_cannot_be_deleted() {
    let plane = plane().await;
    let (_, list) = plane.get("/v1/api-tokens").await;
    let first = list["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/api-tokens/{first}");
    let (status, error) = plane.delete(&path).await;
    assert_eq!(status, 409, "{error}");
    plane.token(Role::Admin).await;
    assert_eq!(plane.delete(&path).await.0, 204);
}

#[tokio::test]
async fn an_expired_token_is_told_that_it_expired() {
    let plane = plane().await;
    let body = json!({ "name": "brief", "role": "viewer", "ttl_seconds": 1 });
    let (status, made) = plane.post("/v1/api-tokens", body).await;
    assert_eq!(status, 201, "{made}");
    let token = made["token"].as_str().unwrap();
    assert!(token.starts_with("drvapi_") && token.len() == 50);
    let url = format!("{}/v1/agents", plane.base);
    let error = eventually("the token's end", async || {
        let response = plane
            .client
            .get(&url)
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        (response.status() == 401).then_some(response)
    })
    .await;
    let (_, error) = read(error).await;
    assert!(
        error["detail"].as_str().unwrap().contains("expired"),
        "{error}"
    );
}

#[tokio::test]
async fn secrets_of_tokens_are_not_in_the_store_and_use_is_noted() {
    let plane = plane().await;
    let token = plane.token(Role::Viewer).await;
    assert!(token.info.last_used_at.is_none());
    let request = plane.client.get(format!("{}/v1/agents", plane.base));
    request.bearer_auth(&token.token).send().await.unwrap();
    let (join, dir) = (plane.join_tokens(json!({})).await.pop().unwrap(), plane.dir);
    plane
        .control
        .drain(std::time::Duration::from_secs(10))
        .await;
    drop(plane.store);
    let file = std::fs::read(dir.path().join("drover.db")).unwrap();
    let holds = |needle: &[u8]| file.windows(needle.len()).any(|window| window == needle);
    assert!(holds(b"a viewer"), "the file is the one that holds tokens");
    assert!(!holds(token.token.as_bytes()));
    assert!(!holds(&token.token.as_bytes()["drvapi_".len()..]));
    assert!(!holds(&join.secret));
    let plane = plane_in(dir, 10_000).await;
    let (_, list) = plane.get("/v1/api-tokens").await;
    let viewer = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["name"] == "a viewer");
    assert!(viewer.unwrap()["last_used_at"].is_string(), "{list}");
}

#[tokio::test]
async fn a_token_over_its_rate_is_told_when_to_come_back() {
    let plane = plane_in(tempfile::tempdir().unwrap(), 5).await;
    let refused = eventually("a refusal", async || {
        let response = plane
            .request(Method::GET, "/v1/agents")
            .send()
            .await
            .unwrap();
        (response.status() == 429).then_some(response)
    })
    .await;
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(wait >= 1);
    let (_, problem) = read(refused).await;
    assert_eq!(problem["retryable"], true);
}

#[tokio::test]
async fn guessing_tokens_is_slowed_down() {
    let plane = plane().await;
    let url = format!("{}/v1/agents", plane.base);
    let mut guess = 0;
    let refused = eventually("a refusal", async || {
        guess += 1;
        let token = format!("drvapi_{guess}");
        let response = plane
            .client
            .get(&url)
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        (response.status() == 429).then_some(response)
    })
    .await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(
        plane.get("/v1/agents").await.0,
        200,
        "honest tokens still work"
    );
}
