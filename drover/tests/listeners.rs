//! The listeners of the API in the real binary: certificates that are read again on SIGHUP, mistakes in
//! their configuration, and the admin listener.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

#[path = "support/deployment.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod deployment;

use deployment::{Deployment, command, eventually, said};

/// Writes a new certificate and its key.
fn issue(dir: &Path) -> CertificateDer<'static> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(dir.join("tls.crt"), certificate.pem()).expect("it can be written");
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).expect("it can be written");
    certificate.der().clone()
}

/// A server one of whose listeners speaks TLS, with its first certificate.
fn deployment(dir: &Path, listener: &str) -> (Deployment, CertificateDer<'static>) {
    let certificate = issue(dir);
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let flags = [
        "api.public.listen=127.0.0.1:0".to_owned(),
        format!("api.{listener}.certificate={}", path("tls.crt")),
        format!("api.{listener}.key={}", path("tls.key")),
    ];
    let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", flag]).collect();
    (Deployment::start_with(&flags), certificate)
}

/// What the server wrote about where it is.
fn ready(deployment: &Deployment, name: &str) -> String {
    let text = std::fs::read(deployment.data_dir().join("ready.json")).expect("it is ready");
    let ready: Value = serde_json::from_slice(&text).expect("it is JSON");
    ready[name].as_str().expect("it is told").to_owned()
}

type Session = StreamOwned<ClientConnection, TcpStream>;

/// A session with a server that shows exactly this certificate.
fn session(address: SocketAddr, trusted: &CertificateDer<'static>) -> std::io::Result<Session> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("it is a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("they are known")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("it is a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("it can begin");
    let mut stream = TcpStream::connect(address)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// One request; the first line of the answer. The session stays open.
fn ask(session: &mut Session) -> String {
    session
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("it takes a request");
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut byte = [0];
        session.read_exact(&mut byte).expect("it answers");
        answer.push(byte[0]);
    }
    let text = String::from_utf8(answer).expect("it is text");
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn on_sighup_new_certificates_are_shown_and_bad_ones_are_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut deployment, first) = deployment(dir.path(), "public");
    let url = ready(&deployment, "public");
    let address = url.strip_prefix("https://").expect("it speaks TLS");
    let address: SocketAddr = address.parse().expect("it is an address");
    let mut early = session(address, &first).expect("a session");
    assert_eq!(ask(&mut early), "HTTP/1.1 200 OK");

    let second = issue(dir.path());
    deployment.server.signal(Signal::HUP);
    eventually("the new certificate", || session(address, &second).is_ok());
    assert_eq!(ask(&mut early), "HTTP/1.1 200 OK", "nobody is cut off");

    std::fs::write(dir.path().join("tls.key"), "no key").expect("it can be written");
    deployment.server.signal(Signal::HUP);
    let log = || std::fs::read_to_string(deployment.path("server.log")).unwrap_or_default();
    eventually("a word about the bad key", || {
        log().contains("tls.key holds no private key in PEM")
    });
    let mut late = session(address, &second).expect("the old one is still shown");
    assert_eq!(ask(&mut late), "HTTP/1.1 200 OK");
    assert!(deployment.metric("drover_api_certificate_expiry_timestamp_seconds") > 1.7e9);

    deployment.server.signal(Signal::TERM);
    assert!(deployment.server.wait().success());
}

#[test]
fn the_command_line_speaks_tls_and_knows_whom_to_trust() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (deployment, _) = deployment(dir.path(), "ui");
    // On the server's own machine: by its certificate. `run` follows a stream to its end.
    let _agent = deployment.agent("hv-1");
    let run = deployment.drover(&["run", "hv-1", "exec", "--", "echo", "over TLS"]);
    assert!(run.status.success(), "{}", said(&run));
    assert!(said(&run).contains("over TLS"), "{}", said(&run));

    // From elsewhere: by its authority, and only under its name.
    let token = std::fs::read_to_string(deployment.data_dir().join("admin.token"));
    let token = token.expect("a token");
    let port = deployment.addresses.api.rsplit(':').next();
    let port = port.expect("it has a port");
    let list = |host: &str, more: &[&str]| {
        let api = format!("https://{host}:{port}");
        let all = ["agents", "list", "--api", &api, "--token", token.trim()];
        let mut command = command(dir.path());
        command.args(all).args(more).output().expect("it runs")
    };
    let listed = list("localhost", &["--ca-file", "tls.crt"]);
    assert!(listed.status.success(), "{}", said(&listed));
    for (host, more) in [
        ("localhost", &[][..]),
        ("127.0.0.1", &["--ca-file", "tls.crt"]),
    ] {
        let refused = list(host, more);
        assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
        let words = String::from_utf8_lossy(&refused.stderr);
        assert!(words.contains("is not trusted: "), "{words}");
        assert!(words.contains("--ca-file"), "{words}");
    }
}

#[test]
fn without_certificates_a_hang_up_means_what_it_means_everywhere() {
    let mut deployment = Deployment::start();
    deployment.server.signal(Signal::HUP);
    assert_eq!(deployment.server.wait().signal(), Some(1));
}

#[test]
fn the_admin_listener_needs_no_token_and_its_address_is_told() {
    let deployment = Deployment::start();
    let url = ready(&deployment, "admin");
    let address = url.strip_prefix("http://").expect("plain HTTP");
    for (path, words) in [
        ("/healthz", "\"ok\""),
        ("/readyz", "agents connected: 0"),
        (
            "/metrics",
            "drover_api_listener_connections{listener=\"admin\"}",
        ),
    ] {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(answer.contains(words), "{answer}");
    }
}

#[test]
fn listeners_that_cannot_be_meant_stop_the_start_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    issue(dir.path());
    let other = KeyPair::generate().expect("a key").serialize_pem();
    std::fs::write(dir.path().join("other.key"), other).expect("it can be written");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it has one").port();
    let port = format!("admin.listen=127.0.0.1:{port}");
    for (settings, code, what, advice) in [
        (
            &["api.ui.certificate=tls.crt"][..],
            2,
            "there is no api.ui.key",
            "or neither",
        ),
        (
            &["api.ui.certificate=tls.crt", "api.ui.key=other.key"],
            2,
            "api.ui: the key in other.key is not that of the first certificate in tls.crt",
            "give the key that this certificate was made for",
        ),
        (
            &["api.ui.certificate=gone.crt", "api.ui.key=tls.key"],
            2,
            "api.ui: gone.crt cannot be read: No such file",
            "name a file",
        ),
        (
            &[&*port],
            1,
            "the listener admin of the API cannot listen on",
            "admin.listen=IP:PORT",
        ),
    ] {
        let mut all = vec!["serve", "--data-dir", "data"];
        all.extend([
            "--api-listen",
            "127.0.0.1:0",
            "--gateway-listen",
            "127.0.0.1:0",
        ]);
        all.extend(["--set", "admin.listen=off"]);
        all.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let output = command(dir.path()).args(all).output().expect("it runs");
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(words.contains(what) && words.contains(advice), "{words}");
    }
}
