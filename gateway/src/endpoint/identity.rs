//! From a verified certificate chain to the agent that it speaks for.
//!
//! TLS has checked that the chain leads to the agents' intermediate, is in date and that the peer
//! holds the key. What remains: the name in it, its use, and the key's hash for pinning.

use std::time::{Duration, Instant};

use protocol::identity::{KeyHash, Role, SpiffeId};
use protocol::ids::AgentId;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who is at the other end, by certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// The agent named in the certificate.
    pub agent: AgentId,
    /// The certificate's key.
    pub key: KeyHash,
    /// The certificate's end, since the Unix epoch.
    pub not_after: Duration,
}

/// The certificate names no agent of this deployment.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// No certificate, or not one.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// None, or more than one, URI in the subject's alternative names.
    #[error("the certificate must name exactly one URI, spiffe://{0}/agent/UUID")]
    NotOneName(String),
    /// Another domain or another role.
    #[error("the certificate speaks for {0}, which is not an agent of this deployment")]
    NotAnAgent(String),
    /// Not meant for clients.
    #[error("the certificate is not for clients (extended key usage clientAuth)")]
    NotForClients,
}

impl Identity {
    /// The certificate's end on the monotonic clock. `now` and `unix_now` are the same moment.
    pub(crate) fn expires(&self, now: Instant, unix_now: Duration) -> Instant {
        now.checked_add(self.not_after.saturating_sub(unix_now))
            .unwrap_or(now)
    }
}

/// Reads the identity from a chain, leaf first.
pub(crate) fn identify(
    chain: &[CertificateDer<'_>],
    domain: &str,
) -> Result<Identity, IdentityError> {
    let leaf = chain.first().ok_or(IdentityError::Unreadable)?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Unreadable)?;
    let usage = leaf
        .extended_key_usage()
        .map_err(|_| IdentityError::Unreadable)?;
    if !usage.is_some_and(|usage| usage.value.client_auth) {
        return Err(IdentityError::NotForClients);
    }
    let name = only_uri(&leaf).ok_or_else(|| IdentityError::NotOneName(domain.to_owned()))?;
    let foreign = || IdentityError::NotAnAgent(name.chars().take(300).collect());
    let id: SpiffeId = name.parse().map_err(|_| foreign())?;
    let Role::Agent(agent) = id.role else {
        return Err(foreign());
    };
    if id.domain != domain {
        return Err(foreign());
    }
    let end = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Identity {
        agent,
        key: KeyHash::of_spki(leaf.public_key().raw),
        not_after: Duration::from_secs(end),
    })
}

fn only_uri<'a>(leaf: &'a X509Certificate<'_>) -> Option<&'a str> {
    let names = &leaf.subject_alternative_name().ok()??.value.general_names;
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next()?;
    uris.next().is_none().then_some(uri)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};

    use super::*;

    const AGENT: &str = "spiffe://cloud.test/agent/0190b6b8-0000-7000-8000-000000000001";

    fn identify_with(
        uris: &[&str],
        usage: &[ExtendedKeyUsagePurpose],
    ) -> Result<Identity, IdentityError> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.extended_key_usages = usage.to_vec();
        let certificate = params.self_signed(&key).unwrap();
        identify(&[certificate.der().clone()], "cloud.test")
    }

    #[test]
    fn an_agent_is_known_by_its_one_uri() {
        let identity = identify_with(&[AGENT], &[ExtendedKeyUsagePurpose::ClientAuth]).unwrap();
        assert_eq!(
            identity.agent.to_string(),
            "0190b6b8-0000-7000-8000-000000000001"
        );
    }

    #[test]
    fn other_names_and_uses_are_refused() {
        let client = [ExtendedKeyUsagePurpose::ClientAuth];
        let gateway = AGENT.replace("agent", "gateway");
        let elsewhere = AGENT.replace("cloud.test", "evil.test");
        assert!(matches!(
            identify_with(&[], &client),
            Err(IdentityError::NotOneName(_))
        ));
        assert!(matches!(
            identify_with(&[AGENT, AGENT], &client),
            Err(IdentityError::NotOneName(_))
        ));
        for name in [gateway.as_str(), elsewhere.as_str(), "https://cloud.test/"] {
            assert!(matches!(
                identify_with(&[name], &client),
                Err(IdentityError::NotAnAgent(_))
            ));
        }
        let server = [ExtendedKeyUsagePurpose::ServerAuth];
        assert_eq!(
            identify_with(&[AGENT], &server),
            Err(IdentityError::NotForClients)
        );
        assert_eq!(
            identify_with(&[AGENT], &[]),
            Err(IdentityError::NotForClients)
        );
    }

    #[test]
    fn no_certificate_and_no_der_are_unreadable() {
        let garbage = [CertificateDer::from(vec![1, 2, 3])];
        for chain in [&[][..], &garbage[..]] {
            let result = identify(chain, "cloud.test");
            assert_eq!(result, Err(IdentityError::Unreadable));
        }
    }
}
