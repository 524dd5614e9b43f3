//! One connection: quinn's state, and what it is for us.
//!
//! ```text
//!   Handshake ──Connected, ALPN──▶ Session, until its Hello is accepted: half-open
//!       │                     └──▶ Enrolment, until its request is whole: half-open
//!       └─ deadline ─▶ dropped without lingering
//! ```

use std::time::Instant;

use protocol::close::CloseCode;
use protocol::identity::KeyHash;
use protocol::ids::{AgentId, SessionId};
use protocol::limits::{ENROLMENT_DEADLINE, HANDSHAKE_DEADLINE};
use protocol::link::{DownReason, SecurityEvent, Target};
use quinn_proto::{Connection, ConnectionError, Event, TransportErrorCode, VarInt};

use super::budget::Budget;
use crate::group::SessionCommand;
use crate::lease::Lease;
use crate::session::enrolment::Enrolment;
use crate::session::{Output, Session, Surroundings, Violation};
use crate::tls::{PeerFacts, Purpose};

/// What a connection is for.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every peer is a session, and a peer is in a box of its own"
)]
#[derive(Debug)]
pub(crate) enum Stage {
    /// TLS is not finished.
    Handshake,
    /// An agent.
    Session(Session),
    /// A newcomer with a token.
    Enrolment(Box<Enrolment>),
    /// Nothing more: what remains is QUIC's own goodbye.
    Over,
}

/// How a connection that is over is let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Farewell {
    /// It is not over.
    NotYet,
    /// As quinn has it: it answers stray packets for a while.
    Full,
    /// At once, when its last packet is sent.
    Brief,
}

/// See the module.
pub(crate) struct Peer {
    /// quinn's part.
    pub connection: Connection,
    /// Ours.
    pub stage: Stage,
    /// Whose session its home shard was told of, and not yet told that it is down.
    pub up: Option<(Target, SessionId)>,
    /// What may be sent.
    pub budget: Budget,
    /// The connection is dropped then unless it is more than half-open.
    pub half_open_until: Option<Instant>,
    /// The first packet came then.
    pub since: Instant,
    /// What the timer wheel was last told.
    pub armed: Option<Instant>,
    /// In the list of connections with work.
    pub dirty: bool,
    /// In the list of connections that may not read for now.
    pub stalled: bool,
    /// Whether and how it is being let go.
    pub farewell: Farewell,
    /// Counted among the enrolments that were taken to the control plane.
    pub asked: bool,
    /// Names an enrolment on this connection.
    pub ticket: u64,
}

impl Peer {
    /// A connection whose first datagram had so many bytes. `proved`: its address is (Retry).
    pub(crate) fn new(
        connection: Connection,
        since: Instant,
        received: usize,
        proved: bool,
        ticket: u64,
    ) -> Self {
        let mut budget = Budget::Unproved {
            received: 0,
            sent: 0,
        };
        budget.credit(received);
        Self {
            connection,
            stage: Stage::Handshake,
            up: None,
            budget: if proved { Budget::Proved } else { budget },
            half_open_until: Some(since + HANDSHAKE_DEADLINE),
            since,
            armed: None,
            dirty: false,
            stalled: false,
            farewell: Farewell::NotYet,
            asked: false,
            ticket,
        }
    }

    /// The agent of the certificate, once there is one.
    pub(crate) fn agent(&self) -> Option<AgentId> {
        match &self.stage {
            Stage::Session(session) => Some(session.agent()),
            _ => None,
        }
    }

    /// The key of that certificate.
    pub(crate) fn key(&self) -> Option<KeyHash> {
        self.facts()?.identity?.ok().map(|identity| identity.key)
    }

    /// The session that lives on this connection.
    pub(crate) fn session_id(&self) -> Option<SessionId> {
        match &self.stage {
            Stage::Session(session) => Some(session.id()),
            _ => None,
        }
    }

    /// Does what the home shard, or the shard itself, says.
    pub(crate) fn handle_command(
        &mut self,
        now: Instant,
        command: SessionCommand,
        out: &mut Vec<Output>,
    ) {
        match (&mut self.stage, command) {
            (Stage::Session(session), command) => {
                session.handle_command(now, command, &mut self.connection, out);
            }
            (Stage::Handshake | Stage::Enrolment(_), SessionCommand::Close(code)) => {
                out.push(Violation::new(code, "").into());
            }
            _ => {}
        }
    }

    /// Before packets are made: see [`Session::fence`].
    pub(crate) fn fence(&mut self, lease: &dyn Lease, out: &mut Vec<Output>) {
        if let Stage::Session(session) = &mut self.stage {
            session.fence(lease, &mut self.connection, out);
        }
    }

    /// Whether a command is on its way that its agent may not have yet.
    pub(crate) fn has_commands_under_way(&self) -> bool {
        matches!(&self.stage, Stage::Session(session) if session.has_commands_under_way())
    }

    /// A handler panicked: ends the session in order. `false`: there is nothing left to end.
    pub(crate) fn fail(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        let before = out.len();
        self.handle_command(now, SessionCommand::Close(CloseCode::InternalError), out);
        out.len() > before
    }

    /// Handles what quinn has to say, and reads frames unless the shard is `paused`.
    pub(crate) fn work(&mut self, around: &Surroundings<'_>, paused: bool, out: &mut Vec<Output>) {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => self.begin(around, out),
                Event::ConnectionLost { reason } => self.lose(&reason, out),
                Event::Stream(event) => match &mut self.stage {
                    Stage::Session(session) => {
                        session.handle_stream_event(event, &mut self.connection, out);
                    }
                    Stage::Enrolment(enrolment) => {
                        let output = enrolment.handle_stream_event(event, &mut self.connection);
                        out.extend(output);
                    }
                    Stage::Handshake | Stage::Over => {}
                },
                Event::HandshakeDataReady | Event::DatagramReceived | Event::DatagramsUnblocked => {
                }
            }
        }
        if let (Stage::Session(session), false) = (&mut self.stage, paused) {
            session.read(around, &mut self.connection, out);
        }
    }

    /// Handles what is due of its timers.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.connection.handle_timeout(now);
        }
        match &mut self.stage {
            Stage::Session(session) => session.handle_timeout(now, &mut self.connection, out),
            Stage::Enrolment(enrolment) => {
                let output = enrolment.handle_timeout(now, &mut self.connection);
                out.extend(output);
            }
            Stage::Handshake | Stage::Over => {}
        }
    }

    /// The next moment at which something is due.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        let ours = match &self.stage {
            Stage::Session(session) => session.poll_timeout(),
            Stage::Enrolment(enrolment) => enrolment.poll_timeout(),
            Stage::Handshake | Stage::Over => None,
        };
        [self.connection.poll_timeout(), ours, self.half_open_until]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether frames wait to be read.
    pub(crate) fn is_readable(&self) -> bool {
        matches!(&self.stage, Stage::Session(session) if session.is_readable())
    }

    /// Says goodbye with a code; nothing of ours happens on the connection afterwards.
    pub(crate) fn close(&mut self, now: Instant, code: CloseCode, detail: &str) {
        let reason = if detail.is_empty() {
            code.to_string()
        } else {
            detail.to_owned()
        };
        self.connection
            .close(now, VarInt::from_u32(code.to_wire()), reason.into());
        self.stage = Stage::Over;
    }

    /// TLS is finished: who is it, and what for?
    fn begin(&mut self, around: &Surroundings<'_>, out: &mut Vec<Output>) {
        self.budget = Budget::Proved;
        let Some(facts) = self.facts() else {
            return out.push(Violation::new(CloseCode::InternalError, "").into());
        };
        if facts.purpose == Purpose::Enrolment {
            self.stage = Stage::Enrolment(Box::new(Enrolment::new(
                self.ticket,
                self.since + ENROLMENT_DEADLINE,
            )));
            return;
        }
        match facts.identity {
            None => out.push(Violation::new(CloseCode::CertificateRequired, "").into()),
            Some(Ok(identity)) => {
                let end = identity.expires(around.now, (around.unix_now)());
                let mut session = Session::new(around.new_session(), Box::new(identity), end);
                session.check_admission(around, out);
                self.stage = Stage::Session(session);
            }
            Some(Err(error)) => {
                let detail = error.to_string().into();
                out.push(
                    Violation {
                        code: CloseCode::BadIdentity,
                        detail,
                    }
                    .into(),
                );
            }
        }
    }

    fn facts(&self) -> Option<PeerFacts> {
        let data = self.connection.crypto_session().handshake_data()?;
        data.downcast().ok().map(|facts| *facts)
    }

    fn lose(&mut self, reason: &ConnectionError, out: &mut Vec<Output>) {
        let refused = matches!(self.stage, Stage::Handshake) && is_certificate_alert(reason);
        if refused {
            out.push(Output::Security(SecurityEvent::ForeignCertificate));
        }
        if let Stage::Session(session) = &mut self.stage {
            session.handle_lost(out);
        }
        tracing::debug!(remote = %self.connection.remote_address(), %reason, "connection lost");
        out.push(Output::Lost(down_reason(reason)));
    }
}

/// Whether TLS here refused the peer's certificate: the alerts of RFC 8446 §6.2 about certificates
/// (bad, unsupported, revoked, expired, unknown, unknown CA), and a signature that is not the key's.
fn is_certificate_alert(reason: &ConnectionError) -> bool {
    const ALERTS: [u8; 7] = [42, 43, 44, 45, 46, 48, 51];
    let ConnectionError::TransportError(error) = reason else {
        return false;
    };
    ALERTS
        .iter()
        .any(|alert| error.code == TransportErrorCode::crypto(*alert))
}

fn down_reason(reason: &ConnectionError) -> DownReason {
    match reason {
        ConnectionError::ApplicationClosed(close) => {
            DownReason::ClosedByAgent(close.error_code.into_inner())
        }
        ConnectionError::TimedOut => DownReason::TimedOut,
        _ => DownReason::TransportError,
    }
}
