//! Who is let in on either side, on real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use control::clock;
use control::identity::{AgentServerIdentity, Identity};
use protocol::identity::GATEWAY_SERVER_NAME;
use protocol::ids::AgentId;
use quinn::Endpoint;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;

/// A deployment with an agent server elsewhere.
pub(crate) struct Deployment {
    pub(crate) identity: Identity,
    pub(crate) agent_server: AgentServerIdentity,
    _folder: tempfile::TempDir,
}

impl Deployment {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let domain = "cloud.example";
        let identity = Identity::open_or_create(&folder.path().join("identity"), domain).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        identity.make_agent_server(&elsewhere).unwrap();
        Self {
            agent_server: AgentServerIdentity::load(&elsewhere, domain).unwrap(),
            identity,
            _folder: folder,
        }
    }

    pub(crate) fn server(&self) -> ServerConfig {
        server_config(&self.agent_server.tls, &self.agent_server.process_roots).unwrap()
    }

    pub(crate) fn process_server(&self) -> ProcessServerTls {
        self.identity.process_server_tls().unwrap()
    }

    /// An agent that pretends to be a process server.
    fn agent(&self) -> ProcessServerTls {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let request = rcgen::CertificateParams::default();
        let request = request.serialize_request(&key).unwrap();
        let life = Duration::from_secs(3600);
        let agent = AgentId::from_bytes([1; 16]);
        let issued = self
            .identity
            .issue_agent(agent, request.der(), life, clock::now());
        let chain = issued.unwrap().chain.into_iter();
        ProcessServerTls {
            chain: chain.map(CertificateDer::from).collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            gateway_roots: self.process_server().gateway_roots,
        }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Both sides' view of one connection, and the endpoints that it lives on.
pub(crate) struct Met {
    pub(crate) server: Result<Connection, ConnectionError>,
    pub(crate) client: Result<Connection, ConnectionError>,
    _endpoints: [Endpoint; 2],
}

/// Lets two sides meet.
pub(crate) async fn meet(server: ServerConfig, client: ProcessServerTls) -> Met {
    let server = Endpoint::server(server, loopback()).unwrap();
    let dialling = Endpoint::client(loopback()).unwrap();
    let config = client_config(client).unwrap();
    let address = server.local_addr().unwrap();
    let connecting = dialling.connect_with(config, address, GATEWAY_SERVER_NAME);
    let accepting = async { server.accept().await.unwrap().await };
    let (accepted, connected) = tokio::join!(accepting, connecting.unwrap());
    Met {
        server: accepted,
        client: connected,
        _endpoints: [server, dialling],
    }
}

#[tokio::test]
async fn a_process_server_is_let_in_and_an_agent_or_a_stranger_is_not() {
    let (ours, theirs) = (Deployment::new(), Deployment::new());
    let met = meet(ours.server(), ours.process_server()).await;
    assert!(met.server.is_ok() && met.client.is_ok());

    let met = meet(ours.server(), ours.agent()).await;
    let error = met.server.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");

    let mut stranger = theirs.process_server();
    stranger.gateway_roots = ours.process_server().gateway_roots;
    let met = meet(ours.server(), stranger).await;
    let error = met.server.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_process_server_speaks_to_gateways_of_its_deployment_alone() {
    let (ours, theirs) = (Deployment::new(), Deployment::new());
    let met = meet(theirs.server(), ours.process_server()).await;
    let error = met.client.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");

    // An agent that pretends to be an agent server.
    let agent = ours.agent();
    let tls = GatewayTls {
        gateway: ours.agent_server.tls.gateway,
        chain: agent.chain,
        key: agent.key,
        agent_roots: Vec::new(),
    };
    let server = server_config(&tls, &ours.agent_server.process_roots).unwrap();
    let met = meet(server, ours.process_server()).await;
    let error = met.client.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn a_frame_that_is_cut_is_not_the_end_in_order() {
    let ours = Deployment::new();
    let met = meet(ours.server(), ours.process_server()).await;
    let (server, client) = (met.server.unwrap(), met.client.unwrap());
    for (sent, whole) in [(&[2, 0, 0, 0, 7, 7][..], true), (&[2, 0, 0, 0, 7], false)] {
        let (mut stream, _) = client.open_bi().await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream.finish().unwrap();
        let mut frames = Frames::of(server.accept_bi().await.unwrap().1);
        if whole {
            assert_eq!(&frames.next().await.unwrap().unwrap()[..], [7, 7]);
            assert!(frames.next().await.unwrap().is_none());
        } else {
            assert!(matches!(frames.next().await, Err(Broken::Ended)));
        }
    }
    let (mut stream, _) = client.open_bi().await.unwrap();
    stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let mut frames = Frames::of(server.accept_bi().await.unwrap().1);
    let huge = frames.next().await.unwrap_err();
    assert_eq!(huge.code(), CloseCode::BadFrame, "{huge}");
}
