//! TLS of an agent: what it shows and whom it believes.
//!
//! Sessions: TLS 1.3, aws-lc-rs, the agent's own certificate, gateways that lead to the stored roots
//! (server name [`protocol::identity::GATEWAY_SERVER_NAME`], `serverAuth`), no tickets, no early data: a
//! resumed session would skip the check of certificates. Enrolment: no certificate of one's own, and the
//! server must lead to the root whose key the join token names; the secret is only sent after that.

use std::fmt;
use std::sync::{Arc, OnceLock};

use protocol::agent::{ALPN_ENROL, ALPN_SESSION};
use protocol::identity::KeyHash;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, danger};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// A TLS configuration could not be made from what is stored.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A root certificate cannot be used.
    #[error("a stored root certificate cannot be used: {0}; join again with --force")]
    Root(String),
    /// The agent's certificate or key cannot be used.
    #[error("the stored certificate and key cannot be used: {0}; join again with --force")]
    Certificate(String),
}

/// Whom an agent believes. One value serves a whole fleet.
pub struct Trust {
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    /// Address-validation tokens of gateways (RFC 9000 §8.1.3): they save a Retry after a restart
    /// of the session. Shared, so that a fleet of agents has one small store.
    tokens: Arc<dyn quinn::TokenStore>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

impl Trust {
    /// Believes gateways that lead to one of these roots.
    ///
    /// # Errors
    /// [`TlsError::Root`].
    pub fn new(roots: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let verifier = verifier(roots, &provider).map_err(TlsError::Root)?;
        Ok(Self {
            provider,
            verifier,
            tokens: Arc::new(quinn::TokenMemoryCache::default()),
        })
    }

    /// The TLS side of one agent's sessions: made once, used for every connection.
    ///
    /// # Errors
    /// [`TlsError::Certificate`].
    pub fn session(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<QuicClientConfig>, TlsError> {
        let failed = |error: rustls::Error| TlsError::Certificate(error.to_string());
        let verifier = Arc::clone(&self.verifier) as Arc<dyn ServerCertVerifier>;
        let config = builder(&self.provider)
            .map_err(failed)?
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(failed)?;
        finish(config, ALPN_SESSION).map_err(TlsError::Certificate)
    }

    /// Where address-validation tokens are kept.
    pub(crate) fn tokens(&self) -> Arc<dyn quinn::TokenStore> {
        Arc::clone(&self.tokens)
    }
}

/// The TLS side of an enrolment, and what it will say about the server.
pub(crate) fn enrolment(
    pin: KeyHash,
) -> Result<(Arc<QuicClientConfig>, Arc<PinnedRoot>), TlsError> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(PinnedRoot {
        pin,
        provider: Arc::clone(&provider),
        complaint: OnceLock::new(),
    });
    let shared = Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>;
    let config = builder(&provider)
        .map_err(|error| TlsError::Certificate(error.to_string()))?
        .with_custom_certificate_verifier(shared)
        .with_no_client_auth();
    let config = finish(config, ALPN_ENROL).map_err(TlsError::Certificate)?;
    Ok((config, verifier))
}

/// The first group is sent with the first packet, so its order is named: a feature of rustls that another crate may
/// turn on puts the large post-quantum one first.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
            kx_group::X25519MLKEM768,
        ],
        ..default_provider()
    }
}

fn builder(
    provider: &Arc<CryptoProvider>,
) -> Result<danger::DangerousClientConfigBuilder, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    // "Dangerous" is only that the verifier is named: it is webpki's, here and below.
    Ok(builder.dangerous())
}

fn finish(mut config: ClientConfig, alpn: &[u8]) -> Result<Arc<QuicClientConfig>, String> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    QuicClientConfig::try_from(config)
        .map(Arc::new)
        .map_err(|error| error.to_string())
}

fn verifier(
    roots: &[CertificateDer<'_>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone().into_owned())
            .map_err(|error| error.to_string())?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .build()
        .map_err(|error| error.to_string())
}

/// The hash of a certificate's key.
pub(crate) fn key_hash(certificate: &[u8]) -> Option<KeyHash> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(KeyHash::of_spki(
        certificate.tbs_certificate.subject_pki.raw,
    ))
}

/// Believes a server whose certificate leads to the root with one known key. The server shows that
/// root at the end of its chain: the agent has nothing but the key's hash yet.
#[derive(Debug)]
pub(crate) struct PinnedRoot {
    pin: KeyHash,
    provider: Arc<CryptoProvider>,
    complaint: OnceLock<String>,
}

impl PinnedRoot {
    /// Why the server was not believed, if it was not.
    pub(crate) fn complaint(&self) -> Option<&str> {
        self.complaint.get().map(String::as_str)
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, String> {
        let root = chain
            .iter()
            .find(|certificate| key_hash(certificate) == Some(self.pin));
        let root = root.ok_or("it does not show the certificate authority that the token names")?;
        let verifier = verifier(std::slice::from_ref(root), &self.provider)?;
        verifier
            .verify_server_cert(leaf, chain, name, &[], now)
            .map_err(|error| error.to_string())
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, chain, name, now).map_err(|complaint| {
            let error = rustls::Error::General(complaint.clone());
            // Only the first complaint is kept.
            self.complaint.get_or_init(|| complaint);
            error
        })
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC speaks TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
