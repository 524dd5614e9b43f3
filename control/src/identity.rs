//! The deployment's identity: who may call itself a gateway, who an agent.
//!
//! ```text
//!                         root (20 years, P-256)      its key's hash is in every join token
//!                        ╱          │           ╲
//!        gateway intermediate       │      agent intermediate       10 years, path length 0
//!                 │                 │              │
//!   gateway certificate             │     agent certificate
//!   serverAuth only, made anew      │     clientAuth only, CA:FALSE,
//!   at every start, 1 year          │     30 days unless configured
//!   DNS gateway.drover.internal     │     URI spiffe://DOMAIN/agent/UUID
//!   URI spiffe://DOMAIN/gateway/UUID│
//!                     process server intermediate
//!                                   │
//!                     process server certificate
//!                     clientAuth only, for each connection
//!                     to an agent server elsewhere, 1 year
//!                     URI spiffe://DOMAIN/process-server/UUID
//! ```
//!
//! The intermediates carry the use of their leaves (serverAuth or clientAuth). A gateway trusts for agents
//! the agent intermediate alone and for process servers theirs alone, so no kind can stand in for another.
//! Every certificate has a subject and a serial of its own.
//!
//! Agent certificates live for 30 days by default: long, because renewal within a session does not
//! exist yet; with it they will live for one day. An agent whose certificate ended joins again with
//! a re-key token.
//!
//! Not here: who is enrolled with which key (the store), and who hears of it ([`crate::enrol`]).

mod authority;
mod csr;
mod files;
mod servers;

use std::path::Path;
use std::time::Duration;

use protocol::identity::{KeyHash, Role, SpiffeId};
use protocol::ids::{AgentId, GatewayId};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use uuid::Uuid;

pub use self::authority::IssueError;
pub(crate) use self::authority::fill_random;
use self::authority::{Authority, Leaf, Purpose};
pub use self::csr::CsrError;
use self::csr::P256PublicKey;
pub use self::files::IdentityError;
use self::files::Stored;
pub use self::servers::{AgentServerIdentity, ProcessServerTls};
use crate::clock::{self, UnixMs};

/// How long an agent certificate lives unless configured otherwise.
pub const AGENT_CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a gateway certificate lives; one is made at every start.
pub const GATEWAY_CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The certificate authority of a deployment and the secrets that its gateways share.
pub struct Identity {
    domain: String,
    root: CertificateDer<'static>,
    root_key: KeyHash,
    gateways: Authority,
    agents: Authority,
    process_servers: Authority,
    secrets: GatewaySecrets,
}

/// Keys that must outlive a restart: connection ids, stateless resets and tokens that a gateway
/// gave out earlier stay recognisable.
#[derive(Clone, PartialEq, Eq)]
pub struct GatewaySecrets {
    /// Keys the MAC in connection ids (SipHash, 128 bit).
    pub cid_key: [u8; 16],
    /// Keys stateless reset tokens (HMAC-SHA256).
    pub reset_key: [u8; 64],
    /// Keys address validation tokens (HKDF input).
    pub token_key: [u8; 64],
}

/// What a gateway needs for TLS.
pub struct GatewayTls {
    /// One running instance of a gateway.
    pub gateway: GatewayId,
    /// Leaf, intermediate and root: a joining agent finds its token's CA key in the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key (PKCS #8). Never written to disk.
    pub key: PrivateKeyDer<'static>,
    /// Trust anchors for agents: the agent intermediate alone.
    pub agent_roots: Vec<CertificateDer<'static>>,
}

/// An agent's new certificate.
pub struct AgentCertificate {
    /// Leaf and intermediate, DER.
    pub chain: Vec<Vec<u8>>,
    /// The key that it is for: what to pin.
    pub key: KeyHash,
    /// When it ends.
    pub not_after: UnixMs,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("domain", &self.domain)
            .field("root_key", &self.root_key)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for GatewaySecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GatewaySecrets([hidden])")
    }
}

impl Identity {
    /// Loads the identity in `dir`, or makes one there where nothing exists yet.
    ///
    /// `dir` is the identity's own directory (by convention `<data_dir>/identity`); it appears whole
    /// or not at all. `domain` is the trust domain, such as `cloud.example`.
    ///
    /// # Errors
    /// [`IdentityError`]: the directory is half there, damaged, readable by others or belongs to
    /// another domain. Nothing is ever mended by making new keys: that would lock out every agent.
    pub fn open_or_create(dir: &Path, domain: &str) -> Result<Self, IdentityError> {
        Self::open_or_create_at(dir, domain, clock::now())
    }

    fn open_or_create_at(dir: &Path, domain: &str, now: UnixMs) -> Result<Self, IdentityError> {
        check_domain(domain)?;
        let stored = match files::load(dir)? {
            Some(stored) => stored,
            None => files::create(dir, domain, now)?,
        };
        check_same_domain(dir, &stored, domain)?;
        Self::from_stored(dir, stored, now)
    }

    /// Loads the identity in `dir`, whatever its domain.
    ///
    /// # Errors
    /// [`IdentityError`]: there is none, or as [`open_or_create`](Self::open_or_create).
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        let now = clock::now();
        match files::load(dir)? {
            Some(stored) => Self::from_stored(dir, stored, now),
            None => Err(IdentityError::Missing(dir.to_owned())),
        }
    }

    fn from_stored(dir: &Path, stored: Stored, now: UnixMs) -> Result<Self, IdentityError> {
        let root = &stored.root;
        let renew = |purpose, authority: Authority, name| -> Result<Authority, IdentityError> {
            if !authority.near_end(now) {
                return Ok(authority);
            }
            let renewed = root.renew_intermediate(purpose, &authority, now)?;
            files::replace_certificate(dir, name, renewed.certificate())?;
            tracing::info!(
                name,
                "the intermediate certificate was near its end; renewed"
            );
            Ok(renewed)
        };
        let gateways = renew(Purpose::Gateway, stored.gateways, files::GATEWAY_CA)?;
        let agents = renew(Purpose::Agent, stored.agents, files::AGENT_CA)?;
        let process_servers = match stored.process_servers {
            Some(authority) => authority,
            None => files::add_process_servers(dir, root, now)?,
        };
        let process_servers = renew(Purpose::ProcessServer, process_servers, files::PROCESS_CA)?;
        if root.near_end(now) {
            tracing::warn!(
                "the root certificate has less than a year to live: plan a new deployment"
            );
        }
        Ok(Self {
            domain: stored.domain,
            root: root.certificate().clone(),
            root_key: root.key_hash(),
            gateways,
            agents,
            process_servers,
            secrets: stored.secrets,
        })
    }

    /// The trust domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// SHA-256 of the root's key: goes into join tokens.
    pub fn root_key(&self) -> KeyHash {
        self.root_key
    }

    /// The root certificate, DER: what agents trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The keys that gateways keep across restarts.
    pub fn gateway_secrets(&self) -> &GatewaySecrets {
        &self.secrets
    }

    /// Makes a key and a certificate for a gateway that starts now.
    ///
    /// # Errors
    /// [`IssueError`]: the cryptographic library refused, or the intermediate has ended.
    pub fn gateway_tls(&self) -> Result<GatewayTls, IssueError> {
        self.gateway_tls_at(clock::now())
    }

    fn gateway_tls_at(&self, now: UnixMs) -> Result<GatewayTls, IssueError> {
        let gateway = GatewayId(Uuid::new_v4());
        let key = authority::generate_key()?;
        let leaf = Leaf {
            purpose: Purpose::Gateway,
            common_name: format!("gateway {gateway}"),
            uri: SpiffeId {
                domain: self.domain.clone(),
                role: Role::Gateway(gateway),
            }
            .to_string(),
            life: GATEWAY_CERTIFICATE_LIFE,
        };
        let (certificate, _) = self.gateways.issue(&leaf, &key, now)?;
        Ok(GatewayTls {
            gateway,
            chain: vec![
                certificate,
                self.gateways.certificate().clone(),
                self.root.clone(),
            ],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            agent_roots: vec![self.agents.certificate().clone()],
        })
    }

    /// Makes an agent's certificate for the key in `csr` (PKCS #10, DER). Names, extensions and
    /// attributes in the request are ignored; its signature proves possession of the key.
    ///
    /// # Errors
    /// [`IssueError::Csr`] when the request cannot be used.
    pub fn issue_agent(
        &self,
        agent: AgentId,
        csr: &[u8],
        life: Duration,
        now: UnixMs,
    ) -> Result<AgentCertificate, IssueError> {
        let public = P256PublicKey::from_csr(csr)?;
        let leaf = Leaf {
            purpose: Purpose::Agent,
            common_name: format!("agent {agent}"),
            uri: SpiffeId {
                domain: self.domain.clone(),
                role: Role::Agent(agent),
            }
            .to_string(),
            life,
        };
        let (certificate, not_after) = self.agents.issue(&leaf, &public, now)?;
        Ok(AgentCertificate {
            chain: vec![
                certificate.to_vec(),
                self.agents.certificate().as_ref().to_vec(),
            ],
            key: public.hash(),
            not_after,
        })
    }
}

/// When a certificate of an authority ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// `root`, `gateway-ca`, `agent-ca` or `process-ca`.
    pub name: &'static str,
    /// When it ends.
    pub not_after: UnixMs,
    /// It has less than a year left: the next start renews an intermediate; a root is not renewed.
    pub near_end: bool,
}

/// Looks at the identity in `dir` as [`Identity::open_or_create`] would, and makes and renews nothing;
/// `None` where there is none yet.
///
/// # Errors
/// [`IdentityError`]: what would keep a server from starting.
pub fn inspect(
    dir: &Path,
    domain: &str,
    now: UnixMs,
) -> Result<Option<Vec<Validity>>, IdentityError> {
    check_domain(domain)?;
    let Some(stored) = files::load(dir)? else {
        return Ok(None);
    };
    check_same_domain(dir, &stored, domain)?;
    let authorities = [
        (files::ROOT, Some(&stored.root)),
        (files::GATEWAY_CA, Some(&stored.gateways)),
        (files::AGENT_CA, Some(&stored.agents)),
        (files::PROCESS_CA, stored.process_servers.as_ref()),
    ];
    let of = |(name, authority): (_, Option<&Authority>)| {
        authority.map(|authority| Validity {
            name,
            not_after: authority.not_after(),
            near_end: authority.near_end(now),
        })
    };
    Ok(Some(authorities.into_iter().filter_map(of).collect()))
}

fn check_same_domain(dir: &Path, stored: &Stored, asked: &str) -> Result<(), IdentityError> {
    if stored.domain == asked {
        return Ok(());
    }
    Err(IdentityError::OtherDomain {
        dir: dir.to_owned(),
        stored: stored.domain.clone(),
        asked: asked.to_owned(),
    })
}

fn check_domain(domain: &str) -> Result<(), IdentityError> {
    let probe = format!("spiffe://{domain}/gateway/{}", Uuid::nil());
    match probe.parse::<SpiffeId>() {
        Ok(id) if id.domain == domain => Ok(()),
        _ => Err(IdentityError::Domain(domain.chars().take(300).collect())),
    }
}

#[cfg(test)]
mod tests;
