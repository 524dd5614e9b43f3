//! Certificates and keys: one authority, made once per comparison and used by every peer.
//!
//! ```text
//!   DIR/ca.pem  DIR/server.pem  DIR/server.key  DIR/client-0.pem  DIR/client-0.key  DIR/commander.{pem,key}
//!   DIR/material.json    everything, in DER, with one certificate and key per client
//! ```
//!
//! P-256 keys throughout, leaves signed by the authority itself: the shortest chain that mTLS allows.
//! A client's certificate names a Drover agent (SPIFFE id), which other peers do not look at.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use protocol::identity::{GATEWAY_SERVER_NAME, KeyHash, Role, SpiffeId};
use protocol::ids::AgentId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

/// The server's name in its certificate. `localhost` and 127.0.0.1 are there too.
pub const SERVER_NAME: &str = GATEWAY_SERVER_NAME;
/// The trust domain in the clients' names.
pub const DOMAIN: &str = "compare.test";
/// Everything, in the directory.
const FILE: &str = "material.json";
/// Agents are numbered from here.
const FIRST_AGENT: u128 = 0xd407_e400_0000_0000_0000_0000_0000;

/// All of it.
#[derive(Serialize, Deserialize)]
pub struct Material {
    authority: Der,
    server: Credentials,
    commander: Credentials,
    clients: Vec<Credentials>,
}

/// A certificate and its key.
#[derive(Serialize, Deserialize)]
pub struct Credentials {
    certificate: Der,
    /// PKCS #8.
    key: Der,
    /// SHA-256 of the public key.
    pin: [u8; 32],
}

/// Bytes; base64 in JSON.
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Der(Vec<u8>);

impl From<Der> for String {
    fn from(der: Der) -> Self {
        BASE64_STANDARD.encode(der.0)
    }
}

impl TryFrom<String> for Der {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        BASE64_STANDARD.decode(text).map(Self)
    }
}

impl Credentials {
    /// The chain to show: the leaf alone.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.0.clone().into()]
    }

    /// Its key.
    pub fn key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.key.0.clone().into()
    }

    /// Writes both as PEM files, for libraries that read nothing else.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write_pem(&self, certificate: &Path, key: &Path) -> anyhow::Result<()> {
        for (path, label, der) in [
            (certificate, "CERTIFICATE", &self.certificate),
            (key, "PRIVATE KEY", &self.key),
        ] {
            fs::write(path, pem(label, &der.0))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// What a gateway pins.
    pub fn pin(&self) -> KeyHash {
        KeyHash(self.pin)
    }
}

impl Material {
    /// Makes everything for so many clients and writes it to a directory.
    ///
    /// # Errors
    /// When a key cannot be made or a file cannot be written.
    pub fn make(dir: &Path, clients: usize) -> anyhow::Result<Self> {
        let mut params = named("compare authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut server = leaf("server", ExtendedKeyUsagePurpose::ServerAuth);
        server.subject_alt_names = vec![
            SanType::DnsName(SERVER_NAME.try_into()?),
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
        ];
        let client = |n: usize| {
            let mut params = leaf("client", ExtendedKeyUsagePurpose::ClientAuth);
            let name = SpiffeId {
                domain: DOMAIN.to_owned(),
                role: Role::Agent(agent(n)),
            };
            let name = SanType::URI(name.to_string().try_into()?);
            params.subject_alt_names = vec![name];
            sign(&params, &authority)
        };
        let material = Self {
            authority: Der(authority.der().to_vec()),
            server: sign(&server, &authority)?,
            commander: sign(
                &leaf("commander", ExtendedKeyUsagePurpose::ClientAuth),
                &authority,
            )?,
            clients: (0..clients).map(client).collect::<anyhow::Result<_>>()?,
        };
        material.write(dir, &authority.pem())?;
        Ok(material)
    }

    fn write(&self, dir: &Path, authority: &str) -> anyhow::Result<()> {
        let write = |name: &str, content: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
        };
        write("ca.pem", authority.as_bytes())?;
        let first = self.clients.first().map(|first| ("client-0", first));
        let named = [("server", &self.server), ("commander", &self.commander)];
        for (name, credentials) in named.into_iter().chain(first) {
            let file = |extension| dir.join(format!("{name}.{extension}"));
            credentials.write_pem(&file("pem"), &file("key"))?;
        }
        write(FILE, &serde_json::to_vec(self)?)
    }

    /// Reads what [`Material::make`] wrote.
    ///
    /// # Errors
    /// When it is not there.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not for this build", path.display()))
    }

    /// The authority's certificate.
    pub fn authority(&self) -> CertificateDer<'static> {
        self.authority.0.clone().into()
    }

    /// The server's certificate and key.
    pub fn server(&self) -> &Credentials {
        &self.server
    }

    /// The certificate and key of a broker's commander.
    pub fn commander(&self) -> &Credentials {
        &self.commander
    }

    /// Every client's certificate and key, in the order of their numbers.
    pub fn clients(&self) -> &[Credentials] {
        &self.clients
    }

    /// TLS of a server that demands a certificate of the authority. No tickets, no session cache.
    ///
    /// # Errors
    /// When rustls does not take the material.
    pub fn server_tls(&self, alpn: &[u8]) -> anyhow::Result<ServerConfig> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
                .build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.server.chain(), self.server.key().into())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// TLS of a client with these credentials; no resumption.
    ///
    /// # Errors
    /// When rustls does not take the material.
    pub fn client_tls(
        &self,
        credentials: &Credentials,
        alpn: &[u8],
    ) -> anyhow::Result<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(credentials.chain(), credentials.key().into())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority())?;
        Ok(roots)
    }
}

/// The agent that client number `n` is.
pub fn agent(n: usize) -> AgentId {
    AgentId(uuid::Uuid::from_u128(FIRST_AGENT + n as u128))
}

/// Makes the common cryptography the process's own choice, for libraries that cannot be told.
pub fn install_provider() {
    if CryptoProvider::install_default((*provider()).clone()).is_err() {
        tracing::debug!("this process has chosen already");
    }
}

/// aws-lc-rs with X25519 alone: by default rustls offers a post-quantum exchange first, which not
/// every peer has.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn leaf(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = named(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params
}

fn sign(
    params: &CertificateParams,
    issuer: &CertifiedIssuer<'static, KeyPair>,
) -> anyhow::Result<Credentials> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Credentials {
        certificate: Der(certificate.der().to_vec()),
        pin: KeyHash::of_spki(&key.subject_public_key_info()).0,
        key: Der(key.serialize_der()),
    })
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn what_was_made_can_be_loaded_and_used() {
        let dir = tempfile::tempdir().unwrap();
        Material::make(dir.path(), 2).unwrap();
        let material = Material::load(dir.path()).unwrap();
        assert_eq!(material.clients().len(), 2);
        material.server_tls(b"a").unwrap();
        material.client_tls(&material.clients()[1], b"a").unwrap();
        let read = PrivateKeyDer::from_pem_file(dir.path().join("server.key")).unwrap();
        assert_eq!(
            read.secret_der(),
            material.server().key().secret_pkcs8_der()
        );
    }
}
