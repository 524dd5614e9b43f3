//! Servers on machines of their own: what an agent server is given, and what a process server shows it.
//!
//! ```text
//!   identity/             0700   of an agent server: no key of an authority is in it
//!     agent-server.json   0600   format, trust domain
//!     agent-server.pem           its certificate, the gateway intermediate, the root
//!     agent-server.key           the certificate's key
//!     agent-ca.pem               what agents' certificates must lead to
//!     process-ca.pem             what process servers' certificates must lead to
//!     secrets.json               what gateways keep across restarts
//! ```

use std::path::Path;
use std::time::Duration;

use protocol::identity::{Role, SpiffeId};
use protocol::ids::GatewayId;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use uuid::Uuid;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::authority::{self, Leaf, Purpose};
use super::files::{self, AGENT_CA, PROCESS_CA};
use super::{
    GATEWAY_CERTIFICATE_LIFE, GatewaySecrets, GatewayTls, Identity, IdentityError, IssueError,
};
use crate::clock::{self, UnixMs};

const MANIFEST: &str = "agent-server.json";
const CHAIN: &str = "agent-server.pem";
const KEY: &str = "agent-server.key";
/// A certificate with less than this left is warned of at every start.
const WARN_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a process server shows an agent server on another machine, and whom it believes.
pub struct ProcessServerTls {
    /// Leaf and intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key (PKCS #8). Never written to disk.
    pub key: PrivateKeyDer<'static>,
    /// Trust anchors for agent servers: the gateway intermediate alone.
    pub gateway_roots: Vec<CertificateDer<'static>>,
}

/// The identity of an agent server on a machine of its own.
pub struct AgentServerIdentity {
    /// For agents. The instance is a new one at each load: it is what epochs follow.
    pub tls: GatewayTls,
    /// Trust anchors for process servers: their intermediate alone.
    pub process_roots: Vec<CertificateDer<'static>>,
    /// The keys that gateways keep across restarts.
    pub secrets: GatewaySecrets,
    /// When the certificate ends.
    pub not_after: UnixMs,
}

impl Identity {
    /// Makes a key and a certificate for one connection of a process server. They are cheap, and live for
    /// a year, so that every connection has new ones.
    ///
    /// # Errors
    /// [`IssueError`]: the cryptographic library refused, or the intermediate has ended.
    pub fn process_server_tls(&self) -> Result<ProcessServerTls, IssueError> {
        self.process_server_tls_at(clock::now())
    }

    pub(super) fn process_server_tls_at(
        &self,
        now: UnixMs,
    ) -> Result<ProcessServerTls, IssueError> {
        let id = Uuid::new_v4();
        let key = authority::generate_key()?;
        let leaf = Leaf {
            purpose: Purpose::ProcessServer,
            common_name: format!("process server {id}"),
            uri: SpiffeId {
                domain: self.domain.clone(),
                role: Role::ProcessServer(id),
            }
            .to_string(),
            life: GATEWAY_CERTIFICATE_LIFE,
        };
        let (certificate, _) = self.process_servers.issue(&leaf, &key, now)?;
        Ok(ProcessServerTls {
            chain: vec![certificate, self.process_servers.certificate().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            gateway_roots: vec![self.gateways.certificate().clone()],
        })
    }

    /// Makes the identity of an agent server that starts now in the process that has the authorities. Its key is
    /// never written to disk.
    ///
    /// # Errors
    /// [`IssueError`]: the cryptographic library refused, or the intermediate has ended.
    pub fn agent_server(&self) -> Result<AgentServerIdentity, IssueError> {
        self.agent_server_at(clock::now())
    }

    pub(super) fn agent_server_at(&self, now: UnixMs) -> Result<AgentServerIdentity, IssueError> {
        let tls = self.gateway_tls_at(now)?;
        let not_after = end(&tls.chain).ok_or(IssueError::Dates)?;
        Ok(AgentServerIdentity {
            tls,
            process_roots: vec![self.process_servers.certificate().clone()],
            secrets: self.secrets.clone(),
            not_after,
        })
    }

    /// Makes the identity of an agent server in `dir`, which must not exist yet; it appears whole or not at
    /// all. Its certificate lives for a year.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn make_agent_server(&self, dir: &Path) -> Result<(), IdentityError> {
        self.make_agent_server_at(dir, clock::now())
    }

    pub(super) fn make_agent_server_at(
        &self,
        dir: &Path,
        now: UnixMs,
    ) -> Result<(), IdentityError> {
        if dir.symlink_metadata().is_ok() {
            return Err(IdentityError::Exists(dir.to_owned()));
        }
        let tls = self.gateway_tls_at(now)?;
        files::place(dir, |draft| {
            let chain = tls.chain.iter().map(|der| files::pem("CERTIFICATE", der));
            let chain: String = chain.collect();
            files::write_file(&draft.join(CHAIN), chain.as_bytes())?;
            let key = files::pem("PRIVATE KEY", tls.key.secret_der());
            files::write_file(&draft.join(KEY), key.as_bytes())?;
            files::write_certificate(draft, AGENT_CA, self.agents.certificate())?;
            files::write_certificate(draft, PROCESS_CA, self.process_servers.certificate())?;
            files::write_secrets(draft, &self.secrets)?;
            files::write_manifest(draft, MANIFEST, &self.domain)
        })
    }
}

impl AgentServerIdentity {
    /// Loads what [`Identity::make_agent_server`] made.
    ///
    /// # Errors
    /// [`IdentityError`]: it is not there, damaged, readable by others, of another domain, or its
    /// certificate has ended.
    pub fn load(dir: &Path, domain: &str) -> Result<Self, IdentityError> {
        Self::load_at(dir, domain, clock::now())
    }

    pub(super) fn load_at(dir: &Path, domain: &str, now: UnixMs) -> Result<Self, IdentityError> {
        if !dir.join(MANIFEST).exists() {
            return Err(IdentityError::NotExported(dir.to_owned()));
        }
        files::check_mode(dir)?;
        let stored = files::load_manifest(dir, MANIFEST)?;
        if stored != domain {
            return Err(IdentityError::OtherDomain {
                dir: dir.to_owned(),
                stored,
                asked: domain.to_owned(),
            });
        }
        let chain = certificates(dir, CHAIN)?;
        let not_after = check_life(dir, &chain, now)?;
        let key = PrivateKeyDer::from_pem_slice(&files::read(dir, KEY)?)
            .map_err(|_| damaged(dir, KEY, "it is not a PEM private key"))?;
        Ok(Self {
            tls: GatewayTls {
                gateway: GatewayId(Uuid::new_v4()),
                chain,
                key,
                agent_roots: certificates(dir, &format!("{AGENT_CA}.pem"))?,
            },
            process_roots: certificates(dir, &format!("{PROCESS_CA}.pem"))?,
            secrets: files::load_secrets(dir)?,
            not_after,
        })
    }
}

/// The certificates of a file: at least one.
fn certificates(dir: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = files::read(dir, name)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err(damaged(dir, name, "it is not PEM certificates")),
    }
}

/// When the certificate ends, which is not yet.
fn check_life(
    dir: &Path,
    chain: &[CertificateDer<'_>],
    now: UnixMs,
) -> Result<UnixMs, IdentityError> {
    let end = end(chain).ok_or_else(|| damaged(dir, CHAIN, "it is not an X.509 certificate"))?;
    if now >= end {
        return Err(IdentityError::Ended(dir.to_owned()));
    }
    if now.plus(WARN_BEFORE) > end {
        tracing::warn!(
            dir = %dir.display(),
            "the agent server's certificate ends within 30 days: make another identity with `drover identity agent-server`"
        );
    }
    Ok(end)
}

/// When the first certificate of a chain ends.
fn end(chain: &[CertificateDer<'_>]) -> Option<UnixMs> {
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let end = leaf.validity().not_after.timestamp();
    Some(authority::from_seconds(end))
}

fn damaged(dir: &Path, name: &str, problem: &str) -> IdentityError {
    IdentityError::Damaged {
        path: dir.join(name),
        problem: problem.to_owned(),
    }
}
