//! TLS and QUIC settings of a gateway.
//!
//! A client certificate is asked for but not demanded by TLS: enrolment has none. One that is shown
//! must lead to the agents' intermediate. There is no resumption and no 0-RTT: either would skip
//! the check of the client's certificate.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use protocol::agent::{ALPN_ENROL, ALPN_SESSION};
use protocol::limits;
use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn_proto::{
    ConnectionIdGenerator, EndpointConfig, ServerConfig, TransportConfig, VarInt,
    VarIntBoundsExceeded,
};
use rustls::quic::Suite;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore};

use crate::config::{Secrets, TlsMaterial};

mod handshake;
mod keys;
mod parameters;

use handshake::HandshakeConfig;
#[cfg(test)]
pub(crate) use handshake::PANIC_SERVER_NAME;
pub(crate) use handshake::{PeerFacts, Purpose};

/// CRYPTO bytes that quinn buffers out of order: two certificates are far below.
const CRYPTO_BUFFER_BYTES: usize = 16 << 10;
/// The smallest datagram that every QUIC path carries. Larger ones are not probed for: commands
/// are small, and every probe would be one more packet per session.
pub(crate) const DATAGRAM_BYTES: u16 = 1200;

/// RFC 9000. Drafts are over.
const QUIC_V1: u32 = 1;
/// Stateless resets need no rest between them: our connection ids carry a keyed check, so that
/// garbage draws none, a reset is shorter than what it answers, and the door counts every answer.
/// With a rest, one packet a turn would be answered, and a fleet would learn of a restart late.
const RESET_INTERVAL: Duration = Duration::ZERO;

/// The TLS material cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate, its key or a root is unusable.
    #[error("the gateway's certificate, its key or the agents' root cannot be used: {0}")]
    Material(#[from] rustls::Error),
    /// No usable root for agents' certificates.
    #[error("the agents' roots cannot be used: {0}")]
    Roots(#[from] VerifierBuilderError),
    /// The TLS library lacks what QUIC needs.
    #[error("the TLS library lacks the cipher suite that QUIC starts with: {0}")]
    Suite(#[from] NoInitialCipherSuite),
    /// The TLS library lacks AES-128-GCM with SHA-256, which QUIC starts with.
    #[error("the TLS library lacks the cipher suite TLS13_AES_128_GCM_SHA256")]
    NoSuite,
    /// A limit of ours does not fit QUIC's integers.
    #[error("a transport limit is out of range: {0}")]
    Limit(#[from] VarIntBoundsExceeded),
}

/// The settings for connections.
pub(crate) fn server_config(
    tls: &TlsMaterial,
    secrets: &Secrets,
    domain: Arc<str>,
) -> Result<ServerConfig, TlsError> {
    let rustls = Arc::new(rustls_config(tls)?);
    let suite = initial_suite(&rustls).ok_or(TlsError::NoSuite)?;
    let quinn = QuicServerConfig::with_initial(Arc::clone(&rustls), suite)?;
    let crypto = HandshakeConfig::new(rustls, quinn, suite, domain);
    let tokens = hkdf::Salt::new(hkdf::HKDF_SHA256, b"drover token key").extract(&secrets.tokens);
    let mut config = ServerConfig::new(Arc::new(crypto), Arc::new(tokens));
    config
        .transport_config(Arc::new(transport_config()?))
        .migration(false)
        .max_incoming(limits::INCOMING_MAX)
        .incoming_buffer_size(limits::INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(limits::INCOMING_BYTES_TOTAL_MAX);
    config.validation_token.sent(0);
    Ok(config)
}

/// The settings for a socket.
pub(crate) fn endpoint_config<G, F>(secrets: &Secrets, connection_ids: F) -> EndpointConfig
where
    G: ConnectionIdGenerator + 'static,
    F: Fn() -> G + Send + Sync + 'static,
{
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secrets.stateless_reset);
    let mut config = EndpointConfig::new(Arc::new(key));
    config.supported_versions(vec![QUIC_V1]);
    config.min_reset_interval(RESET_INTERVAL);
    config.cid_generator(move || Box::new(connection_ids()));
    config
}

fn rustls_config(tls: &TlsMaterial) -> Result<rustls::ServerConfig, TlsError> {
    let provider = Arc::new(keys::provider());
    let mut roots = RootCertStore::empty();
    for root in &tls.agent_roots {
        roots.add(root.clone())?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(tls.chain.clone(), tls.key.clone_key())?;
    config.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_ENROL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ignore_client_order = true;
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn initial_suite(config: &rustls::ServerConfig) -> Option<Suite> {
    let suites = &config.crypto_provider().cipher_suites;
    let found = suites
        .iter()
        .find(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    found?.tls13()?.quic_suite()
}

fn transport_config() -> Result<TransportConfig, TlsError> {
    let size = |bytes: usize| VarInt::try_from(bytes);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(size(limits::AGENT_STREAMS_MAX)?)
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(size(limits::STREAM_WINDOW_BYTES)?)
        .receive_window(size(limits::CONNECTION_WINDOW_BYTES)?)
        .send_window(u64::try_from(limits::SEND_WINDOW_BYTES).unwrap_or(u64::MAX))
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .datagram_receive_buffer_size(None)
        .initial_mtu(DATAGRAM_BYTES)
        .mtu_discovery_config(None)
        .keep_alive_interval(Some(limits::KEEP_ALIVE))
        .allow_spin(false)
        .max_idle_timeout(Some(limits::IDLE_TIMEOUT.try_into()?));
    Ok(config)
}
