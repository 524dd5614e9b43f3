//! A tiny gateway on stock quinn: says what a test tells it to, and checks nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::agent::{ALPN_ENROL, ALPN_SESSION, AgentMessage, GatewayMessage, Hello, Welcome};
use protocol::close::CloseCode;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest, Enrolment, JoinToken};
use protocol::frame::{self, FrameBuffer};
use protocol::identity::{GATEWAY_SERVER_NAME, KeyHash};
use protocol::ids::{AgentId, Epoch, Fence, GroupId, OperationId, ProcessId, SessionId, Slot};
use protocol::limits;
use protocol::operation::Command;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::rustls;
use quinn::{Connection, ConnectionId, Endpoint, RecvStream, SendStream, ServerConfig, VarInt};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData, SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use uuid::Uuid;

pub(crate) const SLOT: Slot = Slot(77);
pub(crate) const SECRET: [u8; 32] = [9; 32];

/// A deployment's certificates: a root, and leaves straight under it.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) key: KeyHash,
}

impl Authority {
    pub(crate) fn new() -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        let root = params.self_signed(&key).unwrap().der().clone();
        let hash = KeyHash::of_spki(&key.subject_public_key_info());
        Arc::new(Self {
            issuer: Issuer::new(params, key),
            root,
            key: hash,
        })
    }

    pub(crate) fn token(&self) -> JoinToken {
        JoinToken {
            ca_key: self.key,
            secret: SECRET,
        }
    }

    fn gateway(&self) -> (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([GATEWAY_SERVER_NAME.to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "test gateway");
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![leaf, self.root.clone()], key.serialize_der().into())
    }

    fn enrol(&self, csr: &[u8]) -> Enrolment {
        let csr = CertificateSigningRequestDer::from(csr);
        let mut csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let agent = AgentId(Uuid::from_u128(rand::random()));
        let name = format!("spiffe://test/agent/{agent}");
        csr.params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        csr.params
            .distinguished_name
            .push(DnType::CommonName, "test agent");
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = csr.signed_by(&self.issuer).unwrap();
        Enrolment {
            agent,
            group: GroupId(Uuid::from_u128(4)),
            slot: SLOT,
            domain: "test".into(),
            chain: vec![leaf.der().to_vec()],
            roots: vec![self.root.to_vec()],
            addresses: vec![],
        }
    }
}

pub(crate) struct Gateway {
    authority: Arc<Authority>,
    endpoint: Endpoint,
    pub(crate) address: String,
}

impl Gateway {
    pub(crate) fn new(authority: &Arc<Authority>) -> Self {
        let (chain, key) = authority.gateway();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.root.clone()).unwrap();
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key.into())
            .unwrap();
        tls.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_ENROL.to_vec()];
        let tls = QuicServerConfig::try_from(tls).unwrap();
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        let mut transport = quinn::TransportConfig::default();
        // Short, so that a test of sudden death does not take half a minute. Agents ping at 10 s.
        transport.max_idle_timeout(Some(Duration::from_secs(3).try_into().unwrap()));
        transport.keep_alive_interval(Some(Duration::from_secs(1)));
        config.transport_config(Arc::new(transport));
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let endpoint = Endpoint::server(config, local).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        Self {
            authority: Arc::clone(authority),
            endpoint,
            address,
        }
    }

    /// Serves one enrolment.
    pub(crate) async fn enrol(&self, refusal: Option<EnrolRefusal>) -> EnrolRequest {
        let connection = self.endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, receive) = connection.accept_bi().await.unwrap();
        let mut frames = Frames::new(receive);
        let request = frame::decode_enrol_request(&frames.next().await.unwrap()).unwrap();
        let reply = match refusal {
            Some(refusal) => EnrolReply::Refused(refusal),
            None => EnrolReply::Enrolled(Box::new(self.authority.enrol(&request.csr))),
        };
        let mut bytes = Vec::new();
        frame::encode_enrol_reply(&reply, &mut bytes).unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
        request
    }

    /// Accepts one connection that fails in TLS.
    pub(crate) async fn fail(&self) {
        assert!(self.endpoint.accept().await.unwrap().await.is_err());
    }

    /// Accepts one session up to its Hello.
    pub(crate) async fn hello(&self) -> (Session, Hello) {
        let incoming = self.endpoint.accept().await.unwrap();
        let first_id = incoming.orig_dst_cid();
        let connection = incoming.await.unwrap();
        let (send, receive) = connection.accept_bi().await.unwrap();
        let mut session = Session {
            connection,
            first_id,
            send,
            frames: Frames::new(receive),
        };
        let AgentMessage::Hello(hello) = session.next().await else {
            panic!("no Hello");
        };
        (session, *hello)
    }

    /// Accepts one session and welcomes it.
    pub(crate) async fn session(&self) -> (Session, Hello) {
        let (mut session, hello) = self.hello().await;
        session.welcome(Epoch(1)).await;
        (session, hello)
    }
}

pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) first_id: ConnectionId,
    send: SendStream,
    frames: Frames,
}

impl Session {
    pub(crate) async fn welcome(&mut self, epoch: Epoch) {
        let welcome = self.welcome_words(epoch);
        self.say(&GatewayMessage::Welcome(Box::new(welcome))).await;
    }

    pub(crate) fn welcome_words(&self, epoch: Epoch) -> Welcome {
        Welcome {
            version: 1,
            session: SessionId(1),
            group: GroupId(Uuid::from_u128(4)),
            slot: SLOT,
            epoch,
            keep_alive: Duration::from_secs(10),
            reconnect_spread: Duration::from_millis(1),
            addresses: vec![],
        }
    }

    pub(crate) async fn say(&mut self, message: &GatewayMessage) {
        let mut bytes = Vec::new();
        frame::encode_gateway_message(message, &mut bytes).unwrap();
        self.write(&bytes).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    /// The next message on the control stream.
    pub(crate) async fn next(&mut self) -> AgentMessage {
        frame::decode_agent_message(&self.frames.next().await.unwrap()).unwrap()
    }

    pub(crate) async fn command(&self, command: Command) -> Lane {
        let (mut send, receive) = self.connection.open_bi().await.unwrap();
        let epoch = Epoch(1);
        let mut bytes = Vec::new();
        let message = GatewayMessage::Command { epoch, command };
        frame::encode_gateway_message(&message, &mut bytes).unwrap();
        send.write_all(&bytes).await.unwrap();
        Lane {
            send,
            frames: Frames::new(receive),
        }
    }

    pub(crate) fn close(&self, code: CloseCode) {
        self.connection.close(VarInt::from_u32(code.to_wire()), b"");
    }

    /// Waits for the end, and returns the agent's code; `None` if it ended otherwise.
    pub(crate) async fn closed(&self) -> Option<CloseCode> {
        match self.connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                CloseCode::from_wire(close.error_code.into_inner())
            }
            _ => None,
        }
    }
}

pub(crate) struct Lane {
    pub(crate) send: SendStream,
    frames: Frames,
}

impl Lane {
    pub(crate) async fn next(&mut self) -> AgentMessage {
        frame::decode_agent_message(&self.frames.next().await.unwrap()).unwrap()
    }

    /// Everything up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<AgentMessage> {
        let mut all = Vec::new();
        while let Some(frame) = self.frames.next().await {
            all.push(frame::decode_agent_message(&frame).unwrap());
        }
        all
    }
}

struct Frames {
    receive: RecvStream,
    buffer: FrameBuffer,
}

impl Frames {
    fn new(receive: RecvStream) -> Self {
        let buffer = FrameBuffer::default();
        Self { receive, buffer }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.buffer.next_frame(limits::FRAME_BYTES_MAX).unwrap() {
                return Some(frame);
            }
            let chunk = self.receive.read_chunk(1 << 16, true).await.unwrap()?;
            self.buffer.push(&chunk.bytes);
        }
    }
}

pub(crate) fn operation(n: u128) -> OperationId {
    OperationId::new(ProcessId(Uuid::from_u128(n)), 0)
}

pub(crate) fn command(n: u128, kind: &str, input: &serde_json::Value) -> Command {
    Command {
        operation: operation(n),
        fence: Fence(1),
        kind: kind.into(),
        input: input.to_string().into(),
        // Far in the future: the year 2286.
        deadline_ms: 10_000_000_000_000,
    }
}
