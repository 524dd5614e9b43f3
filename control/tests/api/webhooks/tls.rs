//! TLS to receivers, and where the server may not be sent.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use control::webhooks::WebhooksConfig;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;

use super::{plane, quick, webhook};
use crate::plane::{Plane, plane_with};
use crate::receiver::{Answer, Receiver};

/// An authority (PEM) and the configuration of a server for `localhost`.
fn authority() -> (String, ServerConfig) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
    let params = CertificateParams::new(names).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    (issuer.pem(), config)
}

/// Serves a router over TLS.
fn serve(listener: TcpListener, config: ServerConfig, router: Router) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = TowerToHyperService::new(router);
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                drop(served.await);
            });
        }
    });
}

async fn tested(plane: &Plane, url: &str) -> Value {
    let (id, _) = webhook(
        plane,
        json!({ "url": url, "events": ["*"], "disabled": true }),
    )
    .await;
    let (status, tested) = plane
        .post(&format!("/v1/webhooks/{id}/test"), json!({}))
        .await;
    assert_eq!(status, 200, "{tested}");
    tested
}

#[tokio::test]
async fn a_receiver_with_a_certificate_of_a_trusted_authority_is_told_and_others_are_not() {
    let (receiver, router, listener) = Receiver::new(|_| Answer::Status(200)).await;
    let (trusted, config) = authority();
    serve(listener, config, router);
    let (stranger, router, listener) = Receiver::new(|_| Answer::Status(200)).await;
    let (_, config) = authority();
    serve(listener, config, router);

    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, trusted).unwrap();
    let config = WebhooksConfig {
        allow_insecure: true,
        ca_file: Some(ca_file),
        timing: quick(),
    };
    let plane = plane_with(tempfile::tempdir().unwrap(), 10_000, config).await;
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{}/x", receiver.address.port());
        let tested = tested(&plane, &url).await;
        assert_eq!(tested["delivered"], true, "{host}: {tested}");
    }
    assert_eq!(receiver.got().len(), 2);
    let tested = tested(
        &plane,
        &format!("https://localhost:{}/", stranger.address.port()),
    )
    .await;
    let words = tested["error"].as_str().unwrap();
    assert!(
        words.contains("no TLS 1.3 session with `localhost`"),
        "{words}"
    );
    assert!(words.contains("certificate"), "{words}");
    assert!(stranger.got().is_empty());
}

#[tokio::test]
async fn a_server_without_tls_is_not_told_over_https() {
    let plane = plane(quick()).await;
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let tested = tested(&plane, &format!("https://{}/", receiver.address)).await;
    let words = tested["error"].as_str().unwrap();
    assert!(words.contains("no TLS 1.3 session"), "{words}");
    assert!(receiver.got().is_empty());
}

#[tokio::test]
async fn a_ca_file_that_is_none_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("missing", None),
        ("empty", Some("")),
        ("text", Some("not PEM\n")),
    ] {
        let path = dir.path().join(name);
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let config = WebhooksConfig {
            ca_file: Some(path),
            ..WebhooksConfig::default()
        };
        let error = crate::plane::start_error(config).await;
        assert!(
            error.contains("`webhooks.ca_file`") && error.contains(name),
            "{error}"
        );
    }
}

/// Everything that leads to this machine or to private networks, by name, by number, in version 6
/// and in odd spellings: refused when it is made, or not connected to.
#[tokio::test]
async fn the_server_is_not_sent_to_itself_or_to_private_networks() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let port = receiver.address.port();
    let config = WebhooksConfig {
        timing: quick(),
        ..WebhooksConfig::default()
    };
    let plane = plane_with(tempfile::tempdir().unwrap(), 10_000, config).await;
    for host in [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.1.2.3",
        "169.254.169.254",
        "[fe80::1]",
    ] {
        let body = json!({ "url": format!("https://{host}:{port}/"), "events": ["*"] });
        let (status, problem) = plane.post("/v1/webhooks", body).await;
        assert_eq!(status, 400, "{host}: {problem}");
        assert_eq!(problem["errors"][0]["field"], "url");
        let words = problem["detail"].as_str().unwrap();
        assert!(words.contains("public addresses only"), "{words}");
    }
    // Names are looked up before each connection, and so are numbers that only the resolver reads.
    for host in ["localhost", "127.1", "0x7f.0.0.1", "2130706433"] {
        let tested = tested(&plane, &format!("https://{host}:{port}/")).await;
        assert_eq!(tested["delivered"], false, "{host}");
        let words = tested["error"].as_str().unwrap();
        let refused = words.contains("not connected") || words.contains("cannot be resolved");
        assert!(refused, "{host}: {words}");
        if host == "localhost" {
            assert!(words.contains("a loopback address"), "{words}");
        }
    }
    assert!(receiver.got().is_empty());
}
