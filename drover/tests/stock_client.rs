//! A client that knows `docs/PROTOCOL.md` and nothing else: stock quinn, its own TLS set-up, no
//! steering hint, no code of the agent crate. Its sessions live on whatever shard they land on.

#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use deployment::{Deployment, eventually};
use protocol::agent::{ALPN_ENROL, ALPN_SESSION, AgentMessage, GatewayMessage, Hello};
use protocol::enrol::{EnrolReply, EnrolRequest, Enrolment, JoinToken};
use protocol::frame::{self, FrameBuffer};
use protocol::identity::GATEWAY_SERVER_NAME;
use protocol::ids::Epoch;
use protocol::limits::GATEWAY_FRAME_BYTES_MAX;
use protocol::operation::{Outcome, OutcomeStatus};
use protocol::version::SUPPORTED;
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// With two shards and random connection ids all of them being at home is one in 32,768.
const CLIENTS: usize = 16;

#[test]
fn a_stock_client_without_the_hint_gets_its_commands_wherever_it_lands() {
    for datapath in ["uring", "poll"] {
        let deployment = Deployment::start_with(&["--datapath", datapath]);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let server = deployment.addresses.agents.parse().expect("an address");
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let token = deployment.token().parse().expect("a token");
                let name = format!("stock-{n}");
                let enrolment = runtime.block_on(enrol(server, token, &name));
                let connection = runtime.block_on(session(server, enrolment, &name));
                (name, connection)
            })
            .map(|(name, connection)| {
                runtime.spawn(serve(connection));
                name
            })
            .collect();
        for name in &clients {
            eventually("the session", || {
                deployment.agent_state(name) == "connected"
            });
            let process = deployment.json(&["processes", "create", name, "stock", "--input", "{}"]);
            let id = process["id"].as_str().expect("an id").to_owned();
            eventually("the end", || deployment.process_state(&id) == "succeeded");
        }
        let at_home = deployment.metric("drover_gateway_sessions_at_home");
        assert!(
            at_home < CLIENTS as f64,
            "no session was away from home: nothing was proved"
        );
    }
}

/// The client's TLS for one ALPN, with or without a certificate.
fn tls(alpn: &[u8], identity: Option<(&Enrolment, PrivateKeyDer<'static>)>) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3");
    let mut config = match identity {
        Some((enrolment, key)) => {
            let mut roots = RootCertStore::empty();
            for root in &enrolment.roots {
                roots
                    .add(CertificateDer::from(root.clone()))
                    .expect("a root");
            }
            let chain = enrolment
                .chain
                .iter()
                .cloned()
                .map(CertificateDer::from)
                .collect();
            builder
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .expect("a key")
        }
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(anybody::Anybody))
            .with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let mut config =
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).expect("QUIC")));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(5)));
    config.transport_config(Arc::new(transport));
    config
}

async fn connect(server: SocketAddr, config: quinn::ClientConfig) -> quinn::Connection {
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a socket");
    let connecting = endpoint
        .connect_with(config, server, GATEWAY_SERVER_NAME)
        .expect("a start");
    connecting.await.expect("a connection")
}

async fn next(stream: &mut quinn::RecvStream, buffer: &mut FrameBuffer) -> bytes::Bytes {
    loop {
        if let Some(frame) = buffer.next_frame(GATEWAY_FRAME_BYTES_MAX).expect("a frame") {
            return frame;
        }
        let chunk = stream
            .read_chunk(4096, true)
            .await
            .expect("bytes")
            .expect("more of them");
        buffer.push(&chunk.bytes);
    }
}

/// Enrols with a fresh key; keeps the key in the enrolment's place of the tuple.
async fn enrol(
    server: SocketAddr,
    token: JoinToken,
    name: &str,
) -> (Enrolment, PrivateKeyDer<'static>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    let request = EnrolRequest {
        secret: token.secret,
        csr: csr.der().to_vec(),
        hostname: name.to_owned(),
        software: "stock".to_owned(),
    };
    let connection = connect(server, tls(ALPN_ENROL, None)).await;
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let mut out = Vec::new();
    frame::encode_enrol_request(&request, &mut out).expect("it fits");
    send.write_all(&out).await.expect("it is sent");
    let reply = next(&mut receive, &mut FrameBuffer::default()).await;
    match frame::decode_enrol_reply(&reply).expect("a reply") {
        EnrolReply::Enrolled(enrolment) => (
            *enrolment,
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        ),
        EnrolReply::Refused(why) => panic!("{why}"),
    }
}

/// Both sides of a control stream; dropping either is an end of the session.
type Control = (quinn::SendStream, quinn::RecvStream);

/// Opens a session: Hello, Welcome.
async fn session(
    server: SocketAddr,
    (enrolment, key): (Enrolment, PrivateKeyDer<'static>),
    name: &str,
) -> (quinn::Connection, Control) {
    let connection = connect(server, tls(ALPN_SESSION, Some((&enrolment, key)))).await;
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let hello = AgentMessage::Hello(Box::new(Hello {
        versions: SUPPORTED,
        agent: enrolment.agent,
        session_count: 1,
        capacity: 1,
        epoch_seen: Epoch(0),
        kinds: vec!["stock".to_owned()],
        open: Vec::new(),
        hostname: name.to_owned(),
        software: "stock".to_owned(),
        labels: Vec::new(),
    }));
    let mut out = Vec::new();
    frame::encode_agent_message(&hello, &mut out).expect("it fits");
    send.write_all(&out).await.expect("it is sent");
    let first = next(&mut receive, &mut FrameBuffer::default()).await;
    let GatewayMessage::Welcome(welcome) = frame::decode_gateway_message(&first).expect("a frame")
    else {
        panic!("not welcome");
    };
    assert_eq!(welcome.group, enrolment.group);
    // The control stream stays open as long as the session.
    (connection, (send, receive))
}

/// Takes every command and succeeds at once.
async fn serve((connection, _control): (quinn::Connection, Control)) {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let bytes = next(&mut receive, &mut FrameBuffer::default()).await;
        let GatewayMessage::Command { command, .. } =
            frame::decode_gateway_message(&bytes).expect("a frame")
        else {
            panic!("not a command");
        };
        let (operation, fence) = (command.operation, command.fence);
        let outcome = Outcome {
            status: OutcomeStatus::Succeeded,
            exit_code: None,
            message: String::new(),
            output: bytes::Bytes::new(),
            service_time: Duration::ZERO,
        };
        let mut out = Vec::new();
        for message in [
            AgentMessage::Accepted { operation, fence },
            AgentMessage::Finished {
                operation,
                fence,
                outcome,
            },
        ] {
            frame::encode_agent_message(&message, &mut out).expect("it fits");
        }
        send.write_all(&out).await.expect("it is sent");
        send.finish().expect("it was open");
    }
}

/// For the enrolment of a test only: real agents compare the token's CA key hash first.
mod anybody {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    #[derive(Debug)]
    pub(super) struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
