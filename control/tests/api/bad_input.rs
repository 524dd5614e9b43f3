//! What a person sees for input that is wrong: status, problem, field, and words.

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Value, json};

use crate::plane::{Plane, plane, read};

/// Method, path, body; then status, problem type, field, and a part of the detail.
type Case = (
    &'static str,
    String,
    Body,
    u16,
    &'static str,
    &'static str,
    &'static str,
);

enum Body {
    None,
    Json(Value),
    Raw(&'static str, Vec<u8>),
}

/// A refusal that needs no body comes before the body was read, and then the connection is closed: a client that
/// is still writing may not hear of it (RFC 9112, section 9.6). So it asks again.
async fn send(plane: &Plane, method: &str, path: &str, body: &Body) -> (u16, Value) {
    let request = || {
        let request = plane
            .request(method.parse().unwrap(), path)
            .header("Idempotency-Key", "a-key");
        match body {
            Body::None => request,
            Body::Json(value) => request.json(value),
            Body::Raw(kind, bytes) => request.header(CONTENT_TYPE, *kind).body(bytes.clone()),
        }
    };
    let mut answer = request().send().await;
    for _ in 0..10 {
        if !answer.as_ref().is_err_and(reqwest::Error::is_request) {
            break;
        }
        answer = request().send().await;
    }
    let response = answer.unwrap();
    if response.status().as_u16() >= 400 {
        assert_eq!(
            response.headers()[CONTENT_TYPE],
            "application/problem+json",
            "{path}"
        );
    }
    read(response).await
}

fn process(change: impl FnOnce(&mut Value)) -> Body {
    let mut body = json!({ "agent": uuid::Uuid::nil(), "kind": "exec" });
    change(&mut body);
    Body::Json(body)
}

const JSON: &str = "application/json";

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let nil = uuid::Uuid::nil();
    let p = || "/v1/processes".to_owned();
    vec![
        ("POST", p(), Body::None, 415, "unsupported-media-type", "", "no Content-Type"),
        ("POST", p(), Body::Raw("text/plain", b"{}".to_vec()), 415, "unsupported-media-type", "", "`text/plain`"),
        ("POST", p(), Body::Raw(JSON, Vec::new()), 400, "invalid-json", "", "empty"),
        ("POST", p(), Body::Raw(JSON, b"{\"agent\":".to_vec()), 400, "invalid-json", "", "EOF"),
        ("POST", p(), Body::Raw(JSON, b"{} trailing".to_vec()), 400, "invalid-json", "agent", "missing field"),
        ("POST", p(), Body::Raw(JSON, vec![b'['; 100_000]), 400, "invalid-json", "", "not a JSON object"),
        ("POST", p(), Body::Raw(JSON, [b"{\"agent\":\"a\",\"kind\":\"k\",\"input\":".to_vec(), vec![b'['; 100_000]].concat()), 400, "invalid-json", "", "recursion limit"),
        ("POST", p(), Body::Raw(JSON, vec![0xff, 0xfe]), 400, "invalid-json", "", "not JSON"),
        ("POST", p(), Body::Raw(JSON, vec![b' '; 600 << 10]), 413, "body-too-large", "", "524288"),
        ("POST", p(), Body::Json(json!(["hv-1", "exec"])), 400, "invalid-json", "", "not a JSON object"),
        ("POST", p(), Body::Json(json!("x")), 400, "invalid-json", "", "not a JSON object"),
        ("POST", p(), process(|b| b["colour"] = json!(1)), 400, "invalid-json", "colour", "unknown field `colour`"),
        ("POST", p(), process(|b| b["kind"] = json!(7)), 400, "invalid-json", "kind", "expected a string"),
        ("POST", p(), process(|b| b["kind"] = json!("Exec")), 400, "invalid-request", "kind", "a-z"),
        ("POST", p(), process(|b| b["kind"] = json!("")), 400, "invalid-request", "kind", "1 to 64"),
        ("POST", p(), process(|b| b["kind"] = json!("x".repeat(65))), 400, "invalid-request", "kind", "1 to 64"),
        ("POST", p(), process(|b| b["agent"] = json!("")), 400, "invalid-request", "agent", "id or its hostname"),
        ("POST", p(), process(|b| b["agent"] = json!("a\nb")), 400, "invalid-request", "agent", "id or its hostname"),
        ("POST", p(), process(|b| b["agent"] = json!("nowhere")), 422, "unprocessable", "agent", "no agent with the hostname `nowhere`"),
        ("POST", p(), process(|_| ()), 422, "unprocessable", "agent", "GET /v1/agents"),
        ("POST", p(), process(|b| b["input"] = json!("x".repeat(100_000))), 400, "invalid-request", "input", "98304"),
        ("POST", p(), process(|b| b["deadline_seconds"] = json!(0)), 400, "invalid-request", "deadline_seconds", "1 to 2592000"),
        ("POST", p(), process(|b| b["deadline_seconds"] = json!(-1)), 400, "invalid-json", "deadline_seconds", "u64"),
        ("POST", p(), process(|b| b["deadline_at"] = json!("tomorrow")), 400, "invalid-json", "deadline_at", "RFC 3339"),
        ("POST", p(), process(|b| b["deadline_at"] = json!("2020-01-01T00:00:00Z")), 400, "invalid-request", "deadline_at", "future"),
        ("POST", p(), process(|b| { b["deadline_at"] = json!("2030-01-01T00:00:00Z"); b["deadline_seconds"] = json!(5); }), 400, "invalid-request", "deadline_at", "leave one out"),
        ("POST", p(), process(|b| b["max_attempts"] = json!(101)), 400, "invalid-request", "max_attempts", "1 to 100"),
        ("POST", p(), process(|b| b["class"] = json!("urgent")), 400, "invalid-json", "class", "unknown variant `urgent`"),
        ("POST", p(), process(|b| b["resource"] = json!("a\u{0}b")), 400, "invalid-request", "resource", "control characters"),
        ("GET", "/v1/processes?page_size=501".into(), Body::None, 400, "invalid-request", "page_size", "1 to 500"),
        ("GET", "/v1/processes?page_size=x".into(), Body::None, 400, "invalid-request", "page_size", "invalid digit"),
        ("GET", "/v1/processes?page_token=x".into(), Body::None, 400, "invalid-request", "page_token", "next_page_token"),
        ("GET", "/v1/processes?colour=red".into(), Body::None, 400, "invalid-request", "colour", "unknown field"),
        ("GET", "/v1/processes?state=done".into(), Body::None, 400, "invalid-request", "state", "unknown variant"),
        ("GET", "/v1/processes/17".into(), Body::None, 400, "invalid-request", "id", "`17` is not a UUID"),
        ("GET", "/v1/processes/%FF".into(), Body::None, 400, "invalid-request", "id", "UTF-8"),
        ("GET", format!("/v1/processes/{nil}"), Body::None, 404, "not-found", "", "no process"),
        ("POST", format!("/v1/processes/{nil}/cancel"), Body::None, 404, "not-found", "", "no process"),
        ("POST", "/v1/process-batches".into(), Body::Json(json!({ "processes": [] })), 400, "invalid-request", "processes", "1 to 1000"),
        ("POST", "/v1/process-batches".into(), Body::Json(json!({ "processes": [{ "idempotency_key": "k", "process": { "agent": "a", "kind": "k", "colour": 1 } }] })), 400, "invalid-json", "processes[0].process.colour", "unknown field"),
        ("POST", "/v1/groups".into(), Body::Json(json!({ "name": "Rack 7" })), 400, "invalid-request", "name", "a-z"),
        ("POST", "/v1/groups".into(), Body::Json(json!({ "name": nil })), 400, "invalid-request", "name", "look like an id"),
        ("GET", format!("/v1/groups/{nil}"), Body::None, 404, "not-found", "", "no group"),
        ("POST", "/v1/tokens".into(), Body::Json(json!({ "count": 0 })), 400, "invalid-request", "count", "1 to 1000"),
        ("POST", "/v1/tokens".into(), Body::Json(json!({ "ttl_seconds": 604_801 })), 400, "invalid-request", "ttl_seconds", "7 days"),
        ("POST", "/v1/tokens".into(), Body::Json(json!({ "group": "nowhere" })), 422, "unprocessable", "group", "`nowhere`"),
        ("POST", "/v1/api-tokens".into(), Body::Json(json!({ "name": " ", "role": "viewer" })), 400, "invalid-request", "name", "1 to 128"),
        ("POST", "/v1/api-tokens".into(), Body::Json(json!({ "name": "x", "role": "root" })), 400, "invalid-json", "role", "unknown variant `root`"),
        ("GET", format!("/v1/agents/{nil}"), Body::None, 404, "not-found", "", "GET /v1/agents"),
        ("GET", "/v1/agents?state=dead".into(), Body::None, 400, "invalid-request", "state", "unknown variant"),
        ("GET", "/v1/events?after=x".into(), Body::None, 400, "invalid-request", "after", "invalid digit"),
        ("GET", "/v1/histograms/latency".into(), Body::None, 404, "not-found", "", "there are handshake, "),
        ("GET", "/v1/histograms/%FF".into(), Body::None, 400, "invalid-request", "name", "UTF-8"),
        ("GET", "/v1/histograms/api?from=yesterday".into(), Body::None, 400, "invalid-request", "from", "RFC 3339"),
        ("GET", "/v1/histograms/api?from=2030-01-01T00:00:00Z&to=2029-01-01T00:00:00Z".into(), Body::None, 400, "invalid-request", "from", "must be before"),
        ("GET", "/v1/histograms/api?step=0".into(), Body::None, 400, "invalid-request", "step", "1 to 3600"),
        ("GET", "/v1/histograms/api?step=10&format=v2".into(), Body::None, 400, "invalid-request", "step", "no steps"),
        ("GET", "/v1/histograms/api?route=GET%20/v1/nothing".into(), Body::None, 400, "invalid-request", "route", "no route `GET /v1/nothing`"),
        ("GET", "/v1/histograms/handshake?route=other".into(), Body::None, 400, "invalid-request", "route", "only `api`"),
        ("GET", "/v1/histograms/api?format=xml".into(), Body::None, 400, "invalid-request", "format", "unknown variant"),
        ("GET", "/v1/nothing".into(), Body::None, 404, "not-found", "", "/v1/openapi.json"),
        ("GET", "/nothing".into(), Body::None, 404, "not-found", "", "/v1/openapi.json"),
        ("DELETE", p(), Body::None, 405, "method-not-allowed", "", "takes GET, POST, not DELETE"),
        ("PUT", "/v1/agents".into(), Body::None, 405, "method-not-allowed", "", "takes GET, not PUT"),
    ]
}

#[tokio::test]
async fn every_wrong_input_is_a_problem_that_says_what_to_do() {
    let plane = plane().await;
    for (method, path, body, status, kind, field, words) in cases() {
        let (got, problem) = send(&plane, method, &path, &body).await;
        let at = format!("{method} {path}: {problem}");
        assert_eq!(got, status, "{at}");
        assert_eq!(
            problem["type"],
            format!("urn:drover:problem:{kind}"),
            "{at}"
        );
        assert_eq!(problem["status"], status, "{at}");
        assert!(
            problem["title"].is_string() && problem["retryable"].is_boolean(),
            "{at}"
        );
        let named = problem["errors"][0]["field"].as_str().unwrap_or("");
        assert_eq!(named, field, "{at}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{at} lacks `{words}`");
        assert!(detail.len() < 600, "{at}");
    }
    assert_eq!(plane.get("/healthz").await.0, 200);
    let (_, page) = plane.get("/v1/processes").await;
    assert_eq!(page["items"], json!([]), "nothing was made by any of it");
}

#[tokio::test]
async fn a_process_without_a_key_is_asked_for_one() {
    let plane = plane().await;
    let body = json!({ "agent": uuid::Uuid::nil(), "kind": "exec" });
    let (status, problem) = plane.post("/v1/processes", body.clone()).await;
    assert_eq!(status, 400);
    assert_eq!(
        problem["type"],
        "urn:drover:problem:idempotency-key-missing"
    );
    assert_eq!(problem["errors"][0]["field"], "Idempotency-Key");
    for key in ["", "\"\"", "with space", &"x".repeat(256)] {
        let (status, problem) = plane.start(key, body.clone()).await;
        assert_eq!(status, 400, "{key}: {problem}");
        assert_eq!(problem["errors"][0]["field"], "Idempotency-Key", "{key}");
    }
    let twice = plane
        .request(Method::POST, "/v1/processes")
        .header("Idempotency-Key", "a")
        .header("Idempotency-Key", "b")
        .json(&body);
    let (status, problem) = read(twice.send().await.unwrap()).await;
    assert_eq!(status, 400, "{problem}");
    let wait = plane
        .request(Method::POST, "/v1/processes")
        .header("Idempotency-Key", "a")
        .header("Prefer", "wait=soon")
        .json(&body);
    let (status, problem) = read(wait.send().await.unwrap()).await;
    assert_eq!(
        (status, &problem["errors"][0]["field"]),
        (400, &json!("Prefer"))
    );
}

#[tokio::test]
async fn wrong_credentials_say_what_is_wrong_with_them() {
    let plane = plane().await;
    for (header, words) in [
        ("Basic YTpi", "not `Bearer drvapi_…`"),
        ("Bearer", "not `Bearer drvapi_…`"),
        ("Bearer sesame", "not `Bearer drvapi_…`"),
        ("Bearer drvapi_AAAA", "not known here"),
    ] {
        let request = plane.client.get(format!("{}/v1/agents", plane.base));
        let (status, problem) =
            read(request.header(AUTHORIZATION, header).send().await.unwrap()).await;
        assert_eq!(status, 401, "{header}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{header}: {detail}");
    }
}

#[tokio::test]
async fn an_endless_head_is_refused() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let plane = plane().await;
    let mut stream = tokio::net::TcpStream::connect(plane.control.api().unwrap().address().address)
        .await
        .unwrap();
    let mut head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n".to_vec();
    for n in 0..100 {
        head.extend_from_slice(format!("X-{n}: {}\r\n", "y".repeat(2000)).as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    // The server may answer and close before it has read everything.
    drop(stream.write_all(&head).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(plane.get("/healthz").await.0, 200);
}

/// Valid bodies with random bytes changed, cut or doubled: whatever comes out, the answer is a
/// verdict on the request, never a fault of the server.
#[tokio::test]
async fn no_bytes_make_the_server_fail() {
    use rand::{Rng as _, SeedableRng as _};
    let plane = plane().await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let bodies = [
        (
            "/v1/processes",
            json!({ "agent": "hv-1", "kind": "exec", "input": { "a": [1, -2.5e3, null, "\u{1f600}"] },
                    "deadline_at": "2026-12-01T00:00:00Z", "class": "normal" }),
        ),
        (
            "/v1/process-batches",
            json!({ "processes": [{ "idempotency_key": "k",
                                    "process": { "agent": "hv-1", "kind": "exec" } }] }),
        ),
        (
            "/v1/tokens",
            json!({ "count": 2, "ttl_seconds": 60, "group": "auto-00" }),
        ),
        (
            "/v1/api-tokens",
            json!({ "name": "x", "role": "viewer", "ttl_seconds": 9 }),
        ),
        ("/v1/groups", json!({ "name": "rack-7" })),
    ];
    for round in 0..400 {
        let (path, body) = &bodies[round % bodies.len()];
        let mut bytes = body.to_string().into_bytes();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, rng.random()),
                _ => bytes.extend_from_within(at..),
            }
        }
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let (status, answer) = send(&plane, "POST", path, &Body::Raw(JSON, bytes)).await;
        assert!(
            (200..500).contains(&status),
            "{path} {shown}: {status} {answer}"
        );
    }
    assert_eq!(plane.get("/readyz").await.0, 200);
}
