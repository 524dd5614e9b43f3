//! The certificates of a deployment.

use protocol::identity::{GATEWAY_SERVER_NAME, KeyHash, Role, SpiffeId};
use protocol::ids::AgentId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub(crate) const DOMAIN: &str = "cloud.test";

pub(crate) struct Credentials {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) key_hash: KeyHash,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            key_hash: self.key_hash,
        }
    }
}

/// One intermediate for gateways, one for agents; a root is not needed here.
pub(crate) struct Authority {
    pub(crate) gateways: CertifiedIssuer<'static, KeyPair>,
    pub(crate) agents: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self {
            gateways: issuer("gateways of test"),
            agents: issuer("agents of test"),
        }
    }

    pub(crate) fn gateway_root(&self) -> CertificateDer<'static> {
        self.gateways.der().clone()
    }

    pub(crate) fn agent_root(&self) -> CertificateDer<'static> {
        self.agents.der().clone()
    }

    pub(crate) fn gateway(&self) -> Credentials {
        let mut params = leaf("gateway", ExtendedKeyUsagePurpose::ServerAuth);
        let name = GATEWAY_SERVER_NAME.try_into().unwrap();
        params.subject_alt_names.push(SanType::DnsName(name));
        sign(params, &self.gateways)
    }

    pub(crate) fn agent(&self, agent: AgentId) -> Credentials {
        let id = SpiffeId {
            domain: DOMAIN.to_owned(),
            role: Role::Agent(agent),
        };
        self.agent_named(&id.to_string())
    }

    pub(crate) fn agent_named(&self, uri: &str) -> Credentials {
        let mut params = leaf("agent", ExtendedKeyUsagePurpose::ClientAuth);
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        sign(params, &self.agents)
    }
}

fn issuer(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub(crate) fn leaf(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params
}

pub(crate) fn sign(
    params: CertificateParams,
    issuer: &CertifiedIssuer<'static, KeyPair>,
) -> Credentials {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    Credentials {
        chain: vec![certificate.der().clone(), issuer.der().clone()],
        key_hash: KeyHash::of_spki(&key.subject_public_key_info()),
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    }
}
