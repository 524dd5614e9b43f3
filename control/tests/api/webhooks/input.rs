//! What a person sees for a webhook that cannot be; and that a stranger's verifier agrees.

use std::io::Write as _;
use std::process::{Command, Stdio};

use control::api::model::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

use super::{patch, plane, processes, quick, webhook};
use crate::plane::{Plane, read};
use crate::receiver::{Answer, Receiver};

fn refused(answer: &(u16, Value), status: u16, field: &str, words: &str) {
    let (got, problem) = answer;
    assert_eq!(*got, status, "{problem}");
    assert_eq!(
        problem["errors"][0]["field"].as_str().unwrap_or(""),
        field,
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(words), "{detail} lacks `{words}`");
    assert!(detail.len() < 700, "{detail}");
}

fn hook(change: impl FnOnce(&mut Value)) -> Value {
    let mut body = json!({ "url": "https://example.com/", "events": ["process.*"] });
    change(&mut body);
    body
}

/// A field and its value; then the field and the words of the answer.
#[rustfmt::skip]
fn mistakes() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let long = format!("https://example.com/{}", "x".repeat(3000));
    vec![
        ("url", json!("example.com"), "url", "not a URL"),
        ("url", json!("http://example.com/"), "url", "webhooks.allow_insecure"),
        ("url", json!("ftp://example.com/"), "url", "must begin with https://"),
        ("url", json!("https://u:p@example.com/"), "url", "user name or password"),
        ("url", json!(long), "url", "2048 bytes"),
        ("url", json!("https://127.0.0.1/"), "url", "a loopback address"),
        ("events", json!([]), "events", "1 to 32"),
        ("events", json!(vec!["*"; 33]), "events", "1 to 32"),
        ("events", json!(["*", "process.suceeded"]), "events[1]", "`process.suceeded` is no event"),
        ("events", json!(["proc*"]), "events[0]", "process.created"),
        ("filter", json!({ "kind": "Exec" }), "filter.kind", "a-z"),
        ("filter", json!({ "tenant": "A b" }), "filter.tenant", "a-z"),
        ("filter", json!({ "group": "a" }), "filter.group", "unknown field"),
        ("description", json!("x".repeat(257)), "description", "256 bytes"),
        ("description", json!("a\nb"), "description", "control characters"),
        ("secret", json!("sesame"), "secret", "`whsec_` and the base64 of 24 to 64 bytes"),
        ("secret", json!("whsec_c2hvcnQ="), "secret", "24 to 64 bytes"),
        ("after", json!(1_000_000), "after", "the newest event is"),
        ("colour", json!("red"), "colour", "unknown field"),
    ]
}

#[tokio::test]
async fn a_webhook_that_cannot_be_is_refused_by_name() {
    let plane = crate::plane::plane().await;
    for (field, value, at, words) in mistakes() {
        let body = hook(|body| body[field] = value.clone());
        let answer = plane.post("/v1/webhooks", body).await;
        refused(&answer, 400, at, words);
        assert!(
            !answer.1.to_string().contains("sesame"),
            "secrets are not repeated"
        );
    }
    let body = hook(|body| body["filter"] = json!({ "agent": "nowhere" }));
    let answer = plane.post("/v1/webhooks", body).await;
    refused(
        &answer,
        422,
        "filter.agent",
        "no agent with the hostname `nowhere`",
    );
    let answer = plane
        .post("/v1/webhooks", json!({ "url": "https://example.com/" }))
        .await;
    refused(&answer, 400, "events", "missing field");
    let (_, page) = plane.get("/v1/webhooks").await;
    assert_eq!(page["items"], json!([]), "nothing was made by any of it");
}

#[tokio::test]
async fn a_change_is_checked_like_a_new_one_and_ids_must_be_there() {
    let plane = crate::plane::plane().await;
    let (id, _) = webhook(&plane, hook(|_| {})).await;
    refused(
        &patch(&plane, &id, json!({ "url": "x" })).await,
        400,
        "url",
        "not a URL",
    );
    refused(
        &patch(&plane, &id, json!({ "events": [] })).await,
        400,
        "events",
        "1 to 32",
    );
    refused(
        &patch(&plane, &id, json!({ "secret": "x" })).await,
        400,
        "secret",
        "unknown field",
    );
    let rotate = format!("/v1/webhooks/{id}/rotate");
    let answer = plane
        .post(&rotate, json!({ "overlap_seconds": 604_801 }))
        .await;
    refused(&answer, 400, "overlap_seconds", "7 days");
    let answer = plane.post(&rotate, json!({ "secret": "x" })).await;
    refused(&answer, 400, "secret", "24 to 64 bytes");
    let (status, shown) = patch(
        &plane,
        &id,
        json!({ "description": "ci", "disabled": true }),
    )
    .await;
    assert_eq!(
        (status, &shown["description"], &shown["disabled"]),
        (200, &json!("ci"), &json!(true))
    );
    assert_eq!(shown["disabled_reason"], "disabled by an admin");
    assert_eq!(shown["events"], json!(["process.*"]));

    let (_, on) = patch(&plane, &id, json!({ "disabled": false })).await;
    assert_eq!(on["disabled"], false);
}

#[tokio::test]
async fn webhooks_and_deliveries_that_are_not_there_are_not_found() {
    let plane = crate::plane::plane().await;
    let (id, _) = webhook(&plane, hook(|_| {})).await;
    let nil = uuid::Uuid::nil();
    for (method, path) in [
        (Method::GET, format!("/v1/webhooks/{nil}")),
        (Method::DELETE, format!("/v1/webhooks/{nil}")),
        (Method::POST, format!("/v1/webhooks/{nil}/test")),
        (Method::POST, format!("/v1/webhooks/{nil}/rotate")),
        (Method::GET, format!("/v1/webhooks/{nil}/deliveries")),
        (
            Method::POST,
            format!("/v1/webhooks/{nil}/deliveries/1/redeliver"),
        ),
    ] {
        let answer = read(plane.request(method, &path).send().await.unwrap()).await;
        refused(&answer, 404, "", "GET /v1/webhooks lists");
    }
    refused(
        &patch(&plane, &nil.to_string(), json!({})).await,
        404,
        "",
        "no webhook",
    );
    for (path, status, field, words) in [
        (
            "deliveries/x/redeliver",
            400,
            "sequence",
            "`x` is not an event's sequence",
        ),
        ("deliveries/7/redeliver", 404, "", "no delivery `7`"),
    ] {
        let answer = plane
            .post(&format!("/v1/webhooks/{id}/{path}"), json!({}))
            .await;
        refused(&answer, status, field, words);
    }
    let answer = plane
        .get(&format!("/v1/webhooks/{id}/deliveries?state=lost"))
        .await;
    refused(&answer, 400, "state", "unknown variant");
}

#[tokio::test]
async fn events_that_are_no_longer_kept_cannot_be_asked_for() {
    let plane = crate::plane::plane().await;
    plane.agent(1, false).await;
    plane.agent(2, false).await;
    let retention = control::store::log::Retention {
        events: 1,
        ..Default::default()
    };
    while plane
        .store
        .trim(retention, control::clock::now())
        .await
        .unwrap()
    {}
    let answer = plane
        .post("/v1/webhooks", hook(|body| body["after"] = json!(0)))
        .await;
    refused(&answer, 410, "after", "no longer kept");
}

#[tokio::test]
async fn there_are_not_more_than_the_limit() {
    let plane = crate::plane::plane().await;
    for _ in 0..control::store::webhooks::WEBHOOKS_MAX {
        webhook(&plane, hook(|_| {})).await;
    }
    let answer = plane.post("/v1/webhooks", hook(|_| {})).await;
    refused(&answer, 409, "", "200 webhooks already");
    let mut seen = 0;
    let mut query = String::new();
    loop {
        let (_, page) = plane.get(&format!("/v1/webhooks{query}")).await;
        seen += page["items"].as_array().unwrap().len();
        match page["next_page_token"].as_str() {
            Some(token) => query = format!("?page_token={token}"),
            None => break,
        }
    }
    assert_eq!(seen, 200);
}

#[tokio::test]
async fn an_operator_reads_and_a_viewer_does_not() {
    let plane = crate::plane::plane().await;
    let (id, _) = webhook(&plane, hook(|_| {})).await;
    for (role, status) in [(Role::Viewer, 403), (Role::Operator, 200)] {
        let token = plane.token(role).await.token;
        let get = plane.client.get(format!("{}/v1/webhooks/{id}", plane.base));
        let answer = read(get.bearer_auth(token).send().await.unwrap()).await;
        assert_eq!(answer.0, status, "{answer:?}");
    }
}

/// The example of `docs/WEBHOOKS.md`, as people copy it.
fn example() -> String {
    let page = include_str!("../../../../docs/WEBHOOKS.md");
    let (_, rest) = page
        .split_once("```python\n")
        .expect("the page has an example");
    let (code, _) = rest.split_once("```").expect("the example ends");
    code.to_owned()
}

/// What the example says about a request; `None`: there is no python3 here.
fn ask_python(secret: &str, headers: &Value, body: &str) -> Option<String> {
    let code = format!(
        "{}\nimport json, sys\n\
         q = json.load(sys.stdin)\n\
         print(verify(q['secret'], q['headers'], q['body'].encode()))\n",
        example()
    );
    let mut python = Command::new("python3")
        .args(["-c", &code])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let question = json!({ "secret": secret, "headers": headers, "body": body });
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(question.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

async fn one_message(plane: &Plane) -> (crate::receiver::Got, String) {
    let agent = plane.agent(1, false).await.to_string();
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let body = json!({ "url": receiver.url("/"), "events": ["process.created"] });
    let (_, secret) = webhook(plane, body).await;
    processes(plane, &agent, "a", 1).await;
    (receiver.wait(1).await.remove(0), secret)
}

#[tokio::test]
async fn the_documented_example_verifies_a_delivery_and_nothing_else() {
    let plane = plane(quick()).await;
    let (got, secret) = one_message(&plane).await;
    let body = std::str::from_utf8(&got.bytes).unwrap();
    let headers = json!(got.headers);
    let Some(said) = ask_python(&secret, &headers, body) else {
        eprintln!("there is no python3 here: the example was not run");
        return;
    };
    assert_eq!(said, "True");
    let said = ask_python(&secret, &headers, &body.replace("created", "deleted"));
    assert_eq!(said.as_deref(), Some("False"), "another body");
    let other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    assert_eq!(
        ask_python(other, &headers, body).as_deref(),
        Some("False"),
        "another secret"
    );
    let mut late = headers;
    late["webhook-timestamp"] = json!("1614265330");
    assert_eq!(
        ask_python(&secret, &late, body).as_deref(),
        Some("False"),
        "years ago"
    );
}
