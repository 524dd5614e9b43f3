//! Certificates that should not work, or not for long.

use std::time::Duration;

use protocol::identity::{Role, SpiffeId};
use protocol::ids::AgentId;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use rustls_pki_types::UnixTime;

use super::authority::{Authority, Credentials, DOMAIN, leaf, sign};

impl Authority {
    /// From the gateways' intermediate, posing as an agent's.
    pub(crate) fn agent_from_gateways(&self, agent: AgentId) -> Credentials {
        sign(agent_leaf(agent), &self.gateways)
    }

    /// Ends within so many seconds.
    pub(crate) fn agent_until(&self, agent: AgentId, seconds: u64) -> Credentials {
        let now = Duration::from_secs(UnixTime::now().as_secs());
        let now = rcgen::date_time_ymd(1970, 1, 1) + now;
        let mut params = agent_leaf(agent);
        params.not_before = now - Duration::from_secs(3600);
        params.not_after = now + Duration::from_secs(seconds);
        sign(params, &self.agents)
    }
}

fn agent_leaf(agent: AgentId) -> CertificateParams {
    let id = SpiffeId {
        domain: DOMAIN.to_owned(),
        role: Role::Agent(agent),
    };
    let mut params = leaf("agent", ExtendedKeyUsagePurpose::ClientAuth);
    params
        .subject_alt_names
        .push(SanType::URI(id.to_string().try_into().unwrap()));
    params
}
