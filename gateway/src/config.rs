//! What a gateway is started with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use protocol::ids::GatewayId;
use protocol::limits;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::runtime::{DatapathKind, ParkKind};

/// Everything that a gateway must be told. Nothing in it is read from the environment or a file.
#[derive(Debug)]
pub struct Config {
    /// The UDP address of every shard's socket. Port 0 chooses one.
    pub listen: SocketAddr,
    /// Threads, each with its own socket and sessions: 1 to [`limits::SHARDS_MAX`].
    pub shards: u16,
    /// How datagrams reach the kernel.
    pub datapath: DatapathKind,
    /// How a shard sleeps.
    pub park: ParkKind,
    /// Pin shard n to core n.
    pub pin_threads: bool,
    /// The gateway's certificate and the roots of its agents.
    pub tls: TlsMaterial,
    /// Keys that must survive a restart.
    pub secrets: Secrets,
    /// The trust domain: the host part of every SPIFFE id.
    pub domain: String,
    /// This run of the gateway.
    pub gateway: GatewayId,
    /// Held exclusively while the gateway runs: a second process on the same port would silently
    /// take a share of the packets.
    pub lock_file: PathBuf,
    /// How fast newcomers are let in.
    pub admission: AdmissionConfig,
    /// `host:port` of gateways, told to agents in `Welcome`. May be empty.
    pub advertise: Vec<String>,
    /// Agents that lose their session wait a random part of this before they come back. `None`: as
    /// long as the admission takes to let all known agents in.
    pub reconnect_spread: Option<Duration>,
    /// Whether an agent's limit follows what it can take; if not, it is the agent's own capacity.
    pub adaptive_limits: bool,
}

/// The gateway's own certificate, and whom it believes.
pub struct TlsMaterial {
    /// The server certificate and its intermediates, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// What agents' certificates must lead to: the agents' intermediate and nothing else, so that
    /// no other certificate of the deployment can stand in for an agent's.
    pub agent_roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("chain", &self.chain.len())
            .field("agent_roots", &self.agent_roots.len())
            .finish_non_exhaustive()
    }
}

/// Random keys that the caller keeps across restarts, so that a restarted gateway can tell old
/// sessions that they are over (stateless reset) and accept tokens which it gave out before.
#[derive(Clone)]
pub struct Secrets {
    /// Marks connection ids as ours.
    pub connection_ids: [u8; 32],
    /// Makes stateless reset tokens (RFC 9000 §10.3).
    pub stateless_reset: [u8; 32],
    /// Seals Retry tokens (RFC 9000 §8.1.2).
    pub tokens: [u8; 32],
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets { [hidden] }")
    }
}

/// How fast one shard lets newcomers in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdmissionConfig {
    /// TLS handshakes started a second, in the long run.
    pub handshakes_per_second: u32,
    /// Handshakes started at once after a pause.
    pub handshake_burst: u32,
    /// Unfinished handshakes held at once; more are dropped without an answer.
    pub half_open_max: usize,
    /// Above so many unfinished handshakes newcomers must prove their address first (Retry).
    pub half_open_retry: usize,
    /// Enrolments a second, in the long run.
    pub enrolments_per_second: u32,
    /// Enrolments at once after a pause.
    pub enrolment_burst: u32,
    /// Enrolments that wait for the control plane's answer at once.
    pub enrolments_pending_max: usize,
    /// Newcomers are dropped without an answer (QUIC asks again after a second) until
    /// [`Handle::open`](crate::Handle::open): for a control plane that has yet to say who may
    /// connect. An agent that met a shard too early would be told that it is unknown.
    pub shut_at_start: bool,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            handshakes_per_second: 500,
            handshake_burst: 250,
            half_open_max: limits::HALF_OPEN_MAX,
            half_open_retry: limits::HALF_OPEN_RETRY,
            enrolments_per_second: 10,
            enrolment_burst: 20,
            enrolments_pending_max: limits::ENROLMENTS_PENDING_MAX,
            shut_at_start: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_a_log() {
        let secrets = Secrets {
            connection_ids: [0xab; 32],
            stateless_reset: [0xab; 32],
            tokens: [0xab; 32],
        };
        let text = format!("{secrets:?}");
        assert!(!text.contains("171") && !text.to_lowercase().contains("ab,"));
    }
}
