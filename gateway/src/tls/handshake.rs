//! TLS inside QUIC (RFC 9001), by rustls, for a server with a hundred thousand idle sessions.
//!
//! ```text
//!   Handshaking (rustls' connection, certificates) ──client's Finished──▶ Done (secrets, facts)
//! ```
//!
//! quinn-proto's own wrapper keeps rustls' connection and the client's certificates for the life of
//! the session, about 4.5 KB of it. Here only two things stay: the secrets from which the next keys
//! are made (rustls' own type, its derivation), and who the peer is. There is no cryptography of
//! our own. Not here: 0-RTT, resumption, key export.

use std::any::Any;
use std::sync::Arc;

use protocol::agent::ALPN_ENROL;
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::crypto::{
    self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::quic::{KeyChange, Secrets, ServerConnection, Suite, Version};

use super::parameters;
use crate::endpoint::identity::{Identity, IdentityError, identify};

/// A ClientHello for a server of this name makes TLS panic.
#[cfg(test)]
pub(crate) const PANIC_SERVER_NAME: &str = "panic.test.invalid";
/// The alert for a message that must not come now (RFC 8446 §6.2).
const UNEXPECTED_MESSAGE: u8 = 10;
/// The alert for a fault of our own.
const INTERNAL_ERROR: u8 = 80;

/// What the peer came for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// A session of an agent.
    Session,
    /// An enrolment.
    Enrolment,
}

/// What is known of a peer after its handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PeerFacts {
    /// By its ALPN.
    pub purpose: Purpose,
    /// By its certificate, if it showed one.
    pub identity: Option<Result<Identity, IdentityError>>,
}

/// Makes server sessions.
pub(super) struct HandshakeConfig {
    rustls: Arc<rustls::ServerConfig>,
    quinn: QuicServerConfig,
    suite: Suite,
    domain: Arc<str>,
}

impl HandshakeConfig {
    /// `suite` is the one that QUIC starts with.
    pub(super) fn new(
        rustls: Arc<rustls::ServerConfig>,
        quinn: QuicServerConfig,
        suite: Suite,
        domain: Arc<str>,
    ) -> Self {
        Self {
            rustls,
            quinn,
            suite,
            domain,
        }
    }
}

impl crypto::ServerConfig for HandshakeConfig {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        self.quinn.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.quinn.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let bytes = parameters::write(params);
        let stage = match ServerConnection::new(Arc::clone(&self.rustls), Version::V1, bytes) {
            Ok(connection) => Stage::Handshaking(Box::new(Running {
                connection,
                next: None,
            })),
            Err(error) => Stage::Broken(Box::new(error)),
        };
        Box::new(Handshake {
            config: self,
            stage,
        })
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "every session is done but for a moment, and a handshake is in a box of its own"
)]
enum Stage {
    Handshaking(Box<Running>),
    Done {
        next: Secrets,
        facts: PeerFacts,
    },
    /// rustls could not begin: its settings are checked at the start, so this does not happen.
    Broken(Box<rustls::Error>),
}

struct Running {
    connection: ServerConnection,
    next: Option<Secrets>,
}

struct Handshake {
    config: Arc<HandshakeConfig>,
    stage: Stage,
}

impl Handshake {
    /// Lets rustls go once nothing more will be asked of it.
    fn settle(&mut self) -> bool {
        let Stage::Handshaking(running) = &mut self.stage else {
            return false;
        };
        let Running { connection, next } = &mut **running;
        if connection.is_handshaking() {
            return false;
        }
        let Some(next) = next.take() else {
            return false;
        };
        let purpose = match connection.alpn_protocol() {
            Some(ALPN_ENROL) => Purpose::Enrolment,
            _ => Purpose::Session,
        };
        let chain = connection.peer_certificates();
        let identity = chain.map(|chain| identify(chain, &self.config.domain));
        let facts = PeerFacts { purpose, identity };
        self.stage = Stage::Done { next, facts };
        true
    }
}

impl crypto::Session for Handshake {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        keys(self.config.suite.keys(dst_cid, side.into(), Version::V1))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        match &self.stage {
            Stage::Done { facts, .. } => Some(Box::new(facts.clone())),
            Stage::Handshaking(_) | Stage::Broken(_) => None,
        }
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        !matches!(self.stage, Stage::Done { .. })
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        #[cfg(test)]
        assert!(
            !bytes
                .windows(PANIC_SERVER_NAME.len())
                .any(|name| name == PANIC_SERVER_NAME.as_bytes()),
            "a test asked for this"
        );
        match &mut self.stage {
            Stage::Handshaking(running) => {
                let connection = &mut running.connection;
                connection
                    .read_hs(bytes)
                    .map_err(|error| match connection.alert() {
                        Some(alert) => failure(alert.into(), error.to_string()),
                        None => failure(INTERNAL_ERROR, error.to_string()),
                    })?;
            }
            // A client has nothing to say after its Finished (RFC 9001 §4.4, §6).
            Stage::Done { .. } => {
                let reason = "TLS bytes after the handshake".to_owned();
                return Err(failure(UNEXPECTED_MESSAGE, reason));
            }
            Stage::Broken(error) => {
                return Err(failure(INTERNAL_ERROR, error.to_string()));
            }
        }
        Ok(self.settle())
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Stage::Handshaking(running) = &self.stage else {
            return Ok(None);
        };
        let Some(bytes) = running.connection.quic_transport_parameters() else {
            return Ok(None);
        };
        Ok(Some(parameters::read(bytes)?))
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        let Stage::Handshaking(running) = &mut self.stage else {
            return None;
        };
        match running.connection.write_hs(buffer)? {
            KeyChange::Handshake { keys: new } => Some(keys(new)),
            KeyChange::OneRtt {
                keys: new,
                next: secrets,
            } => {
                running.next = Some(secrets);
                Some(keys(new))
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let secrets = match &mut self.stage {
            Stage::Handshaking(running) => running.next.as_mut()?,
            Stage::Done { next, .. } => next,
            Stage::Broken(_) => return None,
        };
        let next = secrets.next_packet_keys();
        Some(KeyPair {
            local: Box::new(next.local),
            remote: Box::new(next.remote),
        })
    }

    /// Clients alone are sent Retry packets.
    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

fn failure(alert: u8, reason: String) -> TransportError {
    TransportError {
        code: TransportErrorCode::crypto(alert),
        frame: None,
        reason,
    }
}

fn keys(keys: rustls::quic::Keys) -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(keys.local.header),
            remote: Box::new(keys.remote.header),
        },
        packet: KeyPair {
            local: Box::new(keys.local.packet),
            remote: Box::new(keys.remote.packet),
        },
    }
}
