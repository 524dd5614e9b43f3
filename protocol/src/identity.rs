//! Names in certificates (SPIFFE ids, RFC 3986 URIs) and key pins.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::ids::{AgentId, GatewayId};

/// The DNS name in every gateway certificate; agents verify against it, whatever address they dial.
pub const GATEWAY_SERVER_NAME: &str = "gateway.drover.internal";

/// SHA-256 of a DER SubjectPublicKeyInfo: names a key independent of certificates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of a DER SubjectPublicKeyInfo.
    pub fn of_spki(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// Who a certificate speaks for: `spiffe://<domain>/agent/<uuid>`, `…/gateway/<uuid>` or
/// `…/process-server/<uuid>`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SpiffeId {
    /// The trust domain of the deployment.
    pub domain: String,
    /// Who, within it.
    pub role: Role,
}

/// Who, within a trust domain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// A hypervisor's agent.
    Agent(AgentId),
    /// An agent server.
    Gateway(GatewayId),
    /// One connection of a process server to an agent server.
    ProcessServer(Uuid),
}

/// The text is not a SPIFFE id of Drover.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` is not a Drover identity: expected spiffe://DOMAIN/agent/UUID, …/gateway/UUID or …/process-server/UUID"
)]
pub struct ParseSpiffeIdError(pub String);

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Agent(id) => write!(f, "spiffe://{}/agent/{id}", self.domain),
            Role::Gateway(id) => write!(f, "spiffe://{}/gateway/{id}", self.domain),
            Role::ProcessServer(id) => write!(f, "spiffe://{}/process-server/{id}", self.domain),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
            if domain.is_empty() || domain.len() > 255 || !domain.chars().all(valid) {
                return None;
            }
            // Only the canonical text form of a UUID: one name per identity.
            let canonical = |id: Uuid, text: &str| (id.to_string() == text).then_some(id);
            let (kind, id) = path.split_once('/')?;
            let uuid = canonical(id.parse().ok()?, id)?;
            let role = match kind {
                "agent" => Role::Agent(AgentId(uuid)),
                "gateway" => Role::Gateway(GatewayId(uuid)),
                "process-server" => Role::ProcessServer(uuid),
                _ => return None,
            };
            Some(Self {
                domain: domain.to_owned(),
                role,
            })
        };
        parse().ok_or_else(|| ParseSpiffeIdError(text.chars().take(300).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_an_identity() {
        for role in ["agent", "gateway", "process-server"] {
            let text =
                format!("spiffe://cloud.example/{role}/0190b6b8-0000-7000-8000-000000000001");
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
        for bad in [
            "spiffe://cloud.example/agent/0190B6B8-0000-7000-8000-000000000001",
            "spiffe://cloud.example/agent/0190b6b8000070008000000000000001",
            "spiffe://cloud.example/agent/0190b6b8-0000-7000-8000-000000000001/x",
            "spiffe:///agent/0190b6b8-0000-7000-8000-000000000001",
            "spiffe://Cloud/agent/0190b6b8-0000-7000-8000-000000000001",
            "https://cloud.example/agent/0190b6b8-0000-7000-8000-000000000001",
            "spiffe://cloud.example/root/0190b6b8-0000-7000-8000-000000000001",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
