//! The listeners over real sockets: what each serves, how each refuses, and TLS.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use control::api::model::access::Role;
use control::api::{ApiConfig, ListenerConfig};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::plane::{Plane, eventually, per_token, plane_on, read};

const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn all_three() -> ApiConfig {
    ApiConfig {
        public_listen: Some(FREE),
        admin_listen: Some(FREE),
        ..per_token(10_000)
    }
}

fn many(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn public(plane: &Plane) -> String {
    let served = plane.control.api().unwrap().public_address().unwrap();
    format!("http://{}", served.address)
}

fn admin(plane: &Plane) -> String {
    let served = plane.control.api().unwrap().admin_address().unwrap();
    format!("http://{}", served.address)
}

/// Asks anywhere, with a token or without.
async fn ask(plane: &Plane, url: &str, token: Option<&str>) -> reqwest::Response {
    let mut request = plane.client.get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request.send().await.unwrap()
}

/// A figure of `/metrics`.
async fn figure(plane: &Plane, name: &str) -> u64 {
    let page = ask(plane, &format!("{}/metrics", admin(plane)), None).await;
    let page = page.text().await.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{page}"));
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn the_admin_listener_tells_health_and_figures_without_a_token_and_nothing_else() {
    let plane = plane_on(all_three()).await.unwrap();
    let base = admin(&plane);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let response = ask(&plane, &format!("{base}{path}"), None).await;
        assert_eq!(response.status(), 200, "{path}");
    }
    for path in ["/v1/agents", "/v1/openapi.json", "/", "/ui/"] {
        let url = format!("{base}{path}");
        let (status, body) = read(ask(&plane, &url, Some(&plane.admin)).await).await;
        assert_eq!(status, 404, "{path}");
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains("/healthz, /readyz and /metrics"), "{body}");
    }
    let response = ask(&plane, &format!("{}/metrics", plane.base), None).await;
    assert_eq!(response.status(), 401, "elsewhere figures need a token");
}

#[tokio::test]
async fn the_public_listener_serves_programs_and_nothing_that_admins_do() {
    let plane = plane_on(all_three()).await.unwrap();
    let base = public(&plane);
    let operator = plane.token(Role::Operator).await.token;
    for path in ["/v1/agents", "/v1/processes", "/v1/overview"] {
        let response = ask(&plane, &format!("{base}{path}"), Some(&operator)).await;
        assert_eq!(response.status(), 200, "{path}");
    }
    for path in ["/healthz", "/readyz", "/v1/openapi.json"] {
        let response = ask(&plane, &format!("{base}{path}"), None).await;
        assert_eq!(response.status(), 200, "{path}");
    }
    for path in ["/v1/tokens", "/v1/api-tokens", "/metrics"] {
        let url = format!("{base}{path}");
        let (status, body) = read(ask(&plane, &url, Some(&plane.admin)).await).await;
        assert_eq!(status, 404, "{path}: {body}");
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains("not served to the public"), "{body}");
    }
    for path in ["/", "/ui/"] {
        let response = ask(&plane, &format!("{base}{path}"), None).await;
        assert_eq!(response.status(), 404, "{path}");
    }
    let open = ApiConfig {
        public_admin_routes: true,
        ..all_three()
    };
    let plane = plane_on(open).await.unwrap();
    let url = format!("{}/v1/tokens", public(&plane));
    assert_eq!(ask(&plane, &url, Some(&plane.admin)).await.status(), 200);
}

#[tokio::test]
async fn a_listener_over_its_rate_refuses_by_name_and_the_others_do_not() {
    let plane = plane_on(ApiConfig {
        public: ListenerConfig {
            requests_per_second: Some(many(1)),
            burst: Some(many(2)),
            ..ListenerConfig::public()
        },
        ..all_three()
    })
    .await
    .unwrap();
    let url = format!("{}/v1/agents", public(&plane));
    let mut refused = None;
    for _ in 0..5 {
        let response = ask(&plane, &url, Some(&plane.admin)).await;
        if response.status() == 429 {
            refused = Some(response);
        }
    }
    let refused = refused.expect("five at once are more than two");
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.headers()["cache-control"], "no-store");
    let (_, body) = read(refused).await;
    assert_eq!(body["type"], "urn:drover:problem:too-many-requests");
    assert_eq!(body["limit"], "api.public.requests_per_second");
    assert_eq!(body["retryable"], json!(true));
    let health = format!("{}/readyz", public(&plane));
    for _ in 0..20 {
        assert_eq!(plane.get("/v1/agents").await.0, 200, "ui is another one");
        assert_eq!(ask(&plane, &health, None).await.status(), 200, "a probe");
    }
    let refusals =
        "drover_api_listener_refused_total{listener=\"public\",limit=\"requests_per_second\"} ";
    let refusals = figure(&plane, refusals).await;
    assert!((1..=3).contains(&refusals), "{refusals}");
    let came = figure(
        &plane,
        "drover_api_listener_requests_total{listener=\"public\"} ",
    )
    .await;
    assert_eq!(came, 5, "probes do not count");
}

#[tokio::test]
async fn a_token_over_its_rate_is_told_by_the_same_member() {
    let plane = plane_on(per_token(1)).await.unwrap();
    let body = eventually("a refusal", async || {
        let (status, body) = plane.get("/v1/agents").await;
        (status == 429).then_some(body)
    })
    .await;
    assert_eq!(body["limit"], "api.requests_per_second");
}

#[tokio::test]
async fn requests_at_once_are_limited_and_one_that_ends_makes_room() {
    let plane = plane_on(ApiConfig {
        public: ListenerConfig {
            concurrent_requests: many(1),
            ..ListenerConfig::public()
        },
        ..all_three()
    })
    .await
    .unwrap();
    let agent = plane.agent(1, true).await;
    let wait = |key: &'static str| {
        plane
            .client
            .post(format!("{}/v1/processes", public(&plane)))
            .bearer_auth(&plane.admin)
            .header("Idempotency-Key", key)
            .header("Prefer", "wait=3")
            .json(&json!({ "agent": agent, "kind": "hang" }))
    };
    let waiting = tokio::spawn(wait("one").send());
    let under_way = "drover_api_listener_requests_under_way{listener=\"public\"} ";
    eventually("the request under way", async || {
        (figure(&plane, under_way).await == 1).then_some(())
    })
    .await;
    let (status, body) = read(wait("two").send().await.unwrap()).await;
    assert_eq!(status, 429, "{body}");
    assert_eq!(body["limit"], "api.public.concurrent_requests");
    assert_eq!(plane.get("/v1/agents").await.0, 200, "ui is another one");
    assert!(waiting.await.unwrap().unwrap().status().is_success());
    let url = format!("{}/v1/agents", public(&plane));
    assert_eq!(ask(&plane, &url, Some(&plane.admin)).await.status(), 200);
}

#[tokio::test]
async fn event_streams_of_the_public_take_none_of_the_places_of_the_ui() {
    let plane = plane_on(all_three()).await.unwrap();
    let url = format!("{}/v1/overview/events", public(&plane));
    let mut streams = Vec::new();
    loop {
        let response = ask(&plane, &url, Some(&plane.admin)).await;
        match response.status().as_u16() {
            200 => streams.push(response),
            503 => break,
            other => panic!("{other}"),
        }
        assert!(streams.len() <= 256);
    }
    assert_eq!(streams.len(), 256);
    let url = format!("{}/v1/overview/events", plane.base);
    assert_eq!(ask(&plane, &url, Some(&plane.admin)).await.status(), 200);
    let open = figure(
        &plane,
        "drover_api_listener_connections{listener=\"public\"} ",
    )
    .await;
    assert!(open >= 256, "{open}");
}

#[tokio::test]
async fn a_port_that_somebody_has_is_told_with_the_listener_that_wants_it() {
    let taken = TcpListener::bind(FREE).unwrap();
    let address = taken.local_addr().unwrap();
    let each = [
        (
            "ui",
            ApiConfig {
                listen: address,
                ..all_three()
            },
        ),
        (
            "public",
            ApiConfig {
                public_listen: Some(address),
                ..all_three()
            },
        ),
        (
            "admin",
            ApiConfig {
                admin_listen: Some(address),
                ..all_three()
            },
        ),
    ];
    for (listener, config) in each {
        let Err(error) = plane_on(config).await else {
            panic!("{listener} started");
        };
        let error = error.to_string();
        let words =
            format!("the listener `{listener}` cannot listen on {address}: Address already in use");
        assert!(error.contains(&words), "{error}");
    }
}

#[tokio::test]
async fn half_of_tls_and_the_key_of_another_certificate_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    issue(dir.path());
    let ui = ListenerConfig {
        key: None,
        ..with_tls(dir.path())
    };
    let Err(error) = plane_on(ApiConfig { ui, ..all_three() }).await else {
        panic!("it started");
    };
    let error = error.to_string();
    assert!(
        error.contains("there is no `api.ui.key`; set both"),
        "{error}"
    );
    let key = KeyPair::generate().unwrap();
    std::fs::write(dir.path().join("tls.key"), key.serialize_pem()).unwrap();
    let public = with_tls(dir.path());
    let Err(error) = plane_on(ApiConfig {
        public,
        ..all_three()
    })
    .await
    else {
        panic!("it started");
    };
    let error = error.to_string();
    assert!(
        error.contains("`public` cannot speak TLS: the key in"),
        "{error}"
    );
}

/// Writes a new certificate and its key.
fn issue(dir: &Path) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
    certificate.der().clone()
}

fn with_tls(dir: &Path) -> ListenerConfig {
    ListenerConfig {
        certificate: Some(dir.join("tls.crt")),
        key: Some(dir.join("tls.key")),
        ..ListenerConfig::default()
    }
}

/// A session with a server that shows exactly this certificate.
async fn session(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// One request on a session that stays open; the status of the answer.
async fn status(stream: &mut TlsStream<TcpStream>, token: &str) -> u16 {
    let request = format!(
        "GET /v1/kinds HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ends = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))?;
        (body.len() >= length.parse().unwrap()).then(|| head[9..12].parse().unwrap())
    };
    loop {
        if let Some(status) = ends(&answer) {
            return status;
        }
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "it ended");
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_who_comes_and_cuts_nobody_off() {
    let dir = tempfile::tempdir().unwrap();
    let first = issue(dir.path());
    let ui = with_tls(dir.path());
    let plane = plane_on(ApiConfig { ui, ..all_three() }).await.unwrap();
    let served = plane.control.api().unwrap().address();
    assert!(served.tls);
    let mut early = session(served.address, &first).await.unwrap();
    assert_eq!(status(&mut early, &plane.admin).await, 200);

    let second = issue(dir.path());
    plane.control.api().unwrap().reload_certificates();
    let mut late = eventually("the new certificate", async || {
        session(served.address, &second).await.ok()
    })
    .await;
    assert_eq!(status(&mut late, &plane.admin).await, 200);
    assert_eq!(status(&mut early, &plane.admin).await, 200, "it lives on");
    assert!(session(served.address, &first).await.is_err());

    std::fs::write(dir.path().join("tls.crt"), "no certificate").unwrap();
    plane.control.api().unwrap().reload_certificates();
    let refused = "drover_api_certificate_changes_total{listener=\"ui\",result=\"refused\"} ";
    eventually("the refusal of a bad file", async || {
        (figure(&plane, refused).await == 1).then_some(())
    })
    .await;
    let mut after = session(served.address, &second).await.unwrap();
    assert_eq!(status(&mut after, &plane.admin).await, 200);
    let taken = "drover_api_certificate_changes_total{listener=\"ui\",result=\"taken\"} ";
    assert_eq!(figure(&plane, taken).await, 1);
    let failed = "drover_api_tls_handshakes_failed_total{listener=\"ui\"} ";
    assert!(figure(&plane, failed).await >= 1, "who trusts another one");
}

#[tokio::test]
async fn who_speaks_plain_http_to_tls_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    issue(dir.path());
    let ui = with_tls(dir.path());
    let plane = plane_on(ApiConfig { ui, ..all_three() }).await.unwrap();
    let (status, body): (u16, Value) = plane.get("/v1/agents").await;
    assert_eq!(status, 400);
    assert!(
        body["detail"].as_str().unwrap().contains("https://"),
        "{body}"
    );
    // Neither TLS nor HTTP: the connection ends.
    let address = plane.control.api().unwrap().address().address;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(&[0x16, 3, 1, 0, 4, 9, 9, 9, 9])
        .await
        .unwrap();
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
    assert!(!rest.starts_with(b"HTTP"));
    let failed = "drover_api_tls_handshakes_failed_total{listener=\"ui\"} ";
    eventually("both are counted", async || {
        (figure(&plane, failed).await == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_admin_listener_tells_that_the_server_drains() {
    let plane = plane_on(all_three()).await.unwrap();
    // A request whose body is on its way holds the drain up.
    let ui = plane.control.api().unwrap().address().address;
    let mut slow = TcpStream::connect(ui).await.unwrap();
    let (body, token) = ("{\"name\":\"rack-7\"}", &plane.admin);
    let head = format!(
        "POST /v1/groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let under_way = "drover_api_listener_requests_under_way{listener=\"ui\"} ";
    eventually("the request under way", async || {
        (figure(&plane, under_way).await == 1).then_some(())
    })
    .await;
    let (url, client) = (format!("{}/readyz", admin(&plane)), plane.client.clone());
    let draining = tokio::spawn(plane.control.drain(Duration::from_secs(20)));
    let told = eventually("the word that it drains", async || {
        let (status, body) = read(client.get(&url).send().await.ok()?).await;
        (status == 503).then_some(body)
    })
    .await;
    let checks = told["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] == false).collect();
    assert_eq!(failed.len(), 1, "{told}");
    assert_eq!(failed[0]["detail"], "the server is draining");

    slow.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    draining.await.unwrap();
    assert!(client.get(&url).send().await.is_err(), "it has ended too");
}
