//! Becoming an agent: one request over the enrolment ALPN, with a one-time token.
//!
//! ```text
//!   key made here ─▶ TLS: server must lead to the token's root ─▶ secret + CSR ─▶ certificate ─▶ identity.json
//! ```
//!
//! The private key never leaves the machine, and the secret never goes to a server that has not
//! shown the right certificate authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::close::CloseCode;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest, Enrolment, JoinToken};
use protocol::frame::{self, DecodeError, FrameBuffer};
use protocol::identity::KeyHash;
use protocol::ids::AgentId;
use protocol::limits;
use quinn::{ConnectionError, Endpoint, VarInt};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;

use crate::SOFTWARE;
use crate::identity::{Identity, IdentityError};
use crate::session::clip;
use crate::tls::{self, TlsError};
use crate::transport::{self, AddressError, DialError};

/// How long one server may take, from the first packet to its reply.
const SERVER_TIMEOUT: Duration = Duration::from_secs(15);

/// What is needed to join.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The one-time token.
    pub token: JoinToken,
    /// `host:port` of gateways, tried in order.
    pub servers: Vec<String>,
    /// Where the identity is kept.
    pub state_dir: PathBuf,
    /// For people: this host's name; `None`: the operating system's.
    pub hostname: Option<String>,
    /// Replace an identity that is already there.
    pub force: bool,
}

/// The machine could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is an agent already.
    #[error(
        "{} already holds the identity of agent {agent}. Run it with `drover agent run`, or use \
         --force to replace it (its key is lost; a token from `drover agents rekey {agent}` keeps \
         the agent, any other token makes a new one)",
        dir.display()
    )]
    AlreadyJoined {
        /// The state directory.
        dir: PathBuf,
        /// Who it is.
        agent: AgentId,
    },
    /// No server was named.
    #[error("name at least one server: --server HOST:PORT")]
    NoServer,
    /// The state directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The key or the request could not be made.
    #[error("the key or the certificate request could not be made: {0}")]
    Key(String),
    /// The socket could not be opened.
    #[error("no UDP socket could be opened: {0}")]
    Socket(std::io::Error),
    /// No server answered; the last attempt's reason for each.
    #[error("no server could be used for joining:{}", list(.0))]
    Unreachable(Vec<(String, EnrolError)>),
    /// The control plane said no.
    #[error(transparent)]
    Refused(#[from] EnrolRefusal),
}

fn list(tried: &[(String, EnrolError)]) -> String {
    tried
        .iter()
        .map(|(server, error)| format!("\n  {server}: {error}"))
        .collect()
}

/// One server could not be used for an enrolment.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Its address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It is not the deployment that the token is for. The secret was not sent.
    #[error(
        "this is not the deployment that made the token: {0}. The token's secret was not sent; \
         check the address, or whether somebody answers in its place"
    )]
    WrongAuthority(String),
    /// Nothing came back.
    #[error("no answer within {} s: is the address right, and UDP let through?", SERVER_TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke.
    #[error("the connection failed: {0}")]
    Connection(String),
    /// The reply made no sense.
    #[error("the reply could not be read: {0}")]
    Reply(#[from] DecodeError),
    /// The reply does not belong to the request.
    #[error("the reply is not usable: {0}")]
    Unusable(&'static str),
    /// The control plane said no.
    #[error(transparent)]
    Refused(#[from] EnrolRefusal),
}

/// Joins: makes a key, gets a certificate for it, and writes the identity into the state directory.
///
/// # Errors
/// [`JoinError`]. The token is used up only if an identity was returned or a
/// [`EnrolRefusal::UsedToken`] says so.
pub async fn join(options: JoinOptions) -> Result<AgentId, JoinError> {
    if Identity::exists(&options.state_dir) && !options.force {
        return Err(match Identity::load(&options.state_dir) {
            Ok(identity) => JoinError::AlreadyJoined {
                dir: options.state_dir,
                agent: identity.agent,
            },
            Err(error) => error.into(),
        });
    }
    if options.servers.is_empty() {
        return Err(JoinError::NoServer);
    }
    check_writable(&options.state_dir)?;
    let hostname = options.hostname.unwrap_or_else(crate::config::hostname);
    let endpoint = transport::endpoint().map_err(JoinError::Socket)?;
    let mut tried = Vec::new();
    for server in options.servers {
        match enrol(&endpoint, &server, &options.token, &hostname).await {
            Ok(identity) => {
                identity.save(&options.state_dir)?;
                endpoint.wait_idle().await;
                return Ok(identity.agent);
            }
            // Another server would say the same, or the token may be used up.
            Err(EnrolError::Refused(refusal)) if !may_pass(refusal) => return Err(refusal.into()),
            Err(error) => tried.push((server, error)),
        }
    }
    match tried.pop() {
        Some((_, EnrolError::Refused(refusal))) if tried.is_empty() => Err(refusal.into()),
        last => {
            tried.extend(last);
            Err(JoinError::Unreachable(tried))
        }
    }
}

fn may_pass(refusal: EnrolRefusal) -> bool {
    matches!(refusal, EnrolRefusal::Busy | EnrolRefusal::Unavailable)
}

/// A one-time token must not be spent on a directory that cannot keep the result.
fn check_writable(dir: &Path) -> Result<(), IdentityError> {
    let probe = dir.join(".probe");
    crate::files::private_dir(dir)
        .and_then(|()| crate::files::replace(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|source| IdentityError::Io {
            path: dir.to_owned(),
            source,
        })
}

/// Enrols over an endpoint and keeps nothing: for fleets, and the heart of [`join`].
///
/// # Errors
/// [`EnrolError`].
pub async fn enrol(
    endpoint: &Endpoint,
    server: &str,
    token: &JoinToken,
    hostname: &str,
) -> Result<Identity, EnrolError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| EnrolError::Connection(error.to_string()))?;
    let csr = request(&key).map_err(|error| EnrolError::Connection(error.to_string()))?;
    let mut hostname = hostname.replace(char::is_control, "");
    clip(&mut hostname, limits::NAME_BYTES_MAX);
    let request = EnrolRequest {
        secret: token.secret,
        csr,
        hostname,
        software: SOFTWARE.to_owned(),
    };
    let exchange = exchange(endpoint, server, token.ca_key, &request);
    let exchanged = tokio::time::timeout(SERVER_TIMEOUT, exchange).await;
    match exchanged.map_err(|_| EnrolError::Timeout)?? {
        EnrolReply::Enrolled(enrolment) => accept(*enrolment, &key, token.ca_key, server),
        EnrolReply::Refused(refusal) => Err(refusal.into()),
    }
}

/// A certificate request that says nothing but the key: the names are the server's to give.
fn request(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

async fn exchange(
    endpoint: &Endpoint,
    server: &str,
    pin: KeyHash,
    request: &EnrolRequest,
) -> Result<EnrolReply, EnrolError> {
    let broken = |error: &dyn std::error::Error| EnrolError::Connection(error.to_string());
    let (tls, verdict) = tls::enrolment(pin)?;
    let config = transport::enrolment_config(tls);
    let connected = transport::connect(endpoint, server, &config, SERVER_TIMEOUT).await;
    let connection = connected.map_err(|error| match (verdict.complaint(), error) {
        (Some(complaint), _) => EnrolError::WrongAuthority(complaint.to_owned()),
        (None, DialError::TimedOut | DialError::Broken(ConnectionError::TimedOut)) => {
            EnrolError::Timeout
        }
        (None, DialError::Address(error)) => error.into(),
        (None, error) => broken(&error),
    })?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| broken(&error))?;
    let mut bytes = Vec::new();
    frame::encode_enrol_request(request, &mut bytes).map_err(|error| broken(&error))?;
    send.write_all(&bytes)
        .await
        .map_err(|error| broken(&error))?;
    send.finish().map_err(|error| broken(&error))?;
    let mut frames = FrameBuffer::default();
    loop {
        if let Some(reply) = frames.next_frame(limits::ENROL_FRAME_BYTES_MAX)? {
            let code = VarInt::from_u32(CloseCode::EnrolmentDone.to_wire());
            connection.close(code, b"");
            return Ok(frame::decode_enrol_reply(&reply)?);
        }
        let chunk = receive
            .read_chunk(limits::ENROL_FRAME_BYTES_MAX, true)
            .await;
        match chunk.map_err(|error| broken(&error))? {
            Some(chunk) => frames.push(&chunk.bytes),
            None => return Err(EnrolError::Unusable("it ended before it was whole")),
        }
    }
}

/// Checks an enrolment against what was asked for.
fn accept(
    enrolment: Enrolment,
    key: &KeyPair,
    pin: KeyHash,
    server: &str,
) -> Result<Identity, EnrolError> {
    let leaf = enrolment.chain.first().and_then(|leaf| tls::key_hash(leaf));
    let ours = KeyHash::of_spki(&rcgen::PublicKeyData::subject_public_key_info(key));
    if leaf != Some(ours) {
        return Err(EnrolError::Unusable("its certificate is for another key"));
    }
    if !enrolment
        .roots
        .iter()
        .any(|root| tls::key_hash(root) == Some(pin))
    {
        return Err(EnrolError::Unusable(
            "its roots lack the one that the token names",
        ));
    }
    let addresses = match enrolment.addresses.is_empty() {
        true => vec![server.to_owned()],
        false => enrolment.addresses,
    };
    let certificates = |ders: Vec<Vec<u8>>| ders.into_iter().map(CertificateDer::from).collect();
    let identity = Identity {
        agent: enrolment.agent,
        group: enrolment.group,
        slot: enrolment.slot,
        domain: enrolment.domain,
        key: key.serialize_der().into(),
        chain: certificates(enrolment.chain),
        roots: certificates(enrolment.roots),
        addresses,
    };
    // Unusable material must show now, not at the first session.
    let trust = Arc::new(tls::Trust::new(&identity.roots)?);
    trust.session(identity.chain.clone(), identity.tls_key())?;
    Ok(identity)
}
