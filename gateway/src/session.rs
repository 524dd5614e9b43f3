//! One agent's session, from its first frame to its last. Pure rules: streams, time and the
//! directory are arguments, what follows goes into a list of outputs.
//!
//! ```text
//!   AwaitHello ──Hello──▶ Up ──GoAway──▶ Up, with an end ──▶ Over
//!       │                 │
//!       └─ Redirect ──────┴──▶ Leaving: last frame on its way ──▶ Over
//! ```
//!
//! A session that is idle holds no heap memory besides its control stream's place. What it does not
//! know: QUIC packets, TLS, shards' mailboxes, permits.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::agent::{AgentMessage, GatewayMessage};
use protocol::close::CloseCode;
use protocol::enrol::EnrolRequest;
use protocol::frame::{DecodeError, FrameBuffer, decode_agent_message, encode_gateway_message};
use protocol::ids::{AgentId, SessionId, ShardId};
use protocol::limits::CONTROL_FRAME_BYTES_MAX;
use protocol::link::{DownReason, NotDelivered, SecurityEvent, SessionUp};
use protocol::operation::OperationState;
use quinn_proto::{Dir, StreamEvent, StreamId};

use crate::endpoint::identity::Identity;
use crate::group::{Admission, Directory, OperationEvent, SessionCommand};
use crate::lease::Lease;

pub(crate) mod enrolment;
#[cfg(test)]
pub(crate) mod fake;
mod flights;
mod given;
mod held;
mod hello;
mod outbox;
pub(crate) mod streams;
#[cfg(test)]
mod tests;

use flights::Flights;
use given::Given;
use held::Held;
use outbox::Outbox;
use streams::{Read, Streams};

/// Bytes moved from QUIC to a frame buffer at once.
const READ_CHUNK_BYTES: usize = 16 << 10;
/// Bytes that one session may have read in one turn of its shard.
const READ_TURN_BYTES: usize = 64 << 10;
/// How long a last frame may take to be acknowledged before the session is closed anyway.
const LINGER: Duration = Duration::from_secs(1);

/// What a session asks its shard to do.
#[derive(Debug)]
pub(crate) enum Output {
    /// The Hello was accepted: the session is up.
    Up {
        /// Its facts.
        up: Box<SessionUp>,
        /// From the Hello.
        session_count: u64,
    },
    /// For the home shard.
    Operation(OperationEvent),
    /// An enrolment's request, for the control plane.
    Ask(Box<EnrolRequest>),
    /// A command that was dispatched then has ended.
    Answered {
        /// When the session took it.
        since: Instant,
        /// What the agent says that it worked on it.
        service_time: Duration,
    },
    /// Something that people should know of; [`Output::Close`] implies its own.
    Security(SecurityEvent),
    /// Close the connection; the session is over.
    Close(CloseCode, Cow<'static, str>),
    /// The connection is gone without us.
    Lost(DownReason),
}

impl From<Violation> for Output {
    fn from(violation: Violation) -> Self {
        Self::Close(violation.code, violation.detail)
    }
}

/// Something that a peer must not do.
#[derive(Debug)]
pub(crate) struct Violation {
    /// What the session is closed with.
    pub code: CloseCode,
    /// For people, here and there.
    pub detail: Cow<'static, str>,
}

impl Violation {
    pub(crate) fn new(code: CloseCode, detail: &'static str) -> Self {
        Self {
            code,
            detail: Cow::Borrowed(detail),
        }
    }
}

impl From<DecodeError> for Violation {
    fn from(error: DecodeError) -> Self {
        Self {
            code: CloseCode::BadFrame,
            detail: Cow::Owned(error.to_string()),
        }
    }
}

/// The agent ended its control stream, in either direction: that ends the session, as it does when
/// an agent's process lets go of everything at once.
const AGENT_LEFT: Violation = Violation {
    code: CloseCode::Normal,
    detail: Cow::Borrowed("the agent ended its control stream"),
};

/// What people should know of when a session is closed with this code.
pub(crate) fn security_event(code: CloseCode) -> Option<SecurityEvent> {
    Some(match code {
        CloseCode::CertificateRequired => SecurityEvent::NoCertificate,
        CloseCode::BadIdentity => SecurityEvent::ForeignCertificate,
        CloseCode::KeyNotPinned => SecurityEvent::KeyNotPinned,
        CloseCode::Revoked => SecurityEvent::RevokedAgent,
        CloseCode::IdentityMismatch => SecurityEvent::IdentityMismatch,
        CloseCode::ForeignOperation => SecurityEvent::ForeignOperation,
        CloseCode::BadFrame | CloseCode::UnexpectedFrame => SecurityEvent::ProtocolViolation,
        CloseCode::LimitExceeded => SecurityEvent::LimitExceeded,
        CloseCode::InternalError => SecurityEvent::HandlerPanicked,
        _ => return None,
    })
}

/// What a session must know of its gateway.
pub(crate) struct Surroundings<'a> {
    /// The time.
    pub now: Instant,
    /// The shard that holds the connection.
    pub shard: ShardId,
    /// Shards in all.
    pub shards: u16,
    /// Where the agent is.
    pub remote: SocketAddr,
    /// Who may connect.
    pub directory: &'a Directory,
    /// `host:port` of gateways for Welcome.
    pub advertise: &'a [String],
    /// For Welcome.
    pub reconnect_spread: Duration,
    /// No new session is taken.
    pub draining: bool,
    /// The time since the Unix epoch, asked for once a handshake.
    pub unix_now: fn() -> Duration,
    /// Counts sessions of all shards.
    pub sessions: &'a AtomicU64,
}

impl Surroundings<'_> {
    /// A name for a new session: higher than every earlier one of this gateway.
    pub(crate) fn new_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug)]
enum State {
    AwaitHello(Box<Identity>),
    Up,
    /// The last frame is on its way.
    Leaving(CloseCode),
    Over,
}

/// Frames of one session.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Frames {
    /// From the agent.
    pub heard: u32,
    /// To the agent.
    pub said: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    agent: AgentId,
    state: State,
    control: Option<StreamId>,
    control_readable: bool,
    input: FrameBuffer,
    outbox: Outbox,
    flights: Flights,
    given: Given,
    held: Held,
    /// Frames since the last look.
    frames: Frames,
    /// The session ends then, whatever happens.
    end: Instant,
    end_code: CloseCode,
}

impl Session {
    /// A session that waits for its Hello, and whose certificate ends at `end`.
    pub(crate) fn new(id: SessionId, identity: Box<Identity>, end: Instant) -> Self {
        Self {
            id,
            agent: identity.agent,
            control: None,
            control_readable: false,
            input: FrameBuffer::default(),
            outbox: Outbox::default(),
            flights: Flights::default(),
            given: Given::default(),
            held: Held::default(),
            frames: Frames::default(),
            end,
            end_code: CloseCode::CertificateExpired,
            state: State::AwaitHello(identity),
        }
    }

    /// Closes the session at the door if its key is not welcome. A redirect waits for the Hello.
    pub(crate) fn check_admission(&mut self, around: &Surroundings<'_>, out: &mut Vec<Output>) {
        let State::AwaitHello(identity) = &self.state else {
            return;
        };
        let code = match around.directory.admit(identity.agent, &identity.key) {
            Admission::NotPinned => CloseCode::KeyNotPinned,
            Admission::Revoked => CloseCode::Revoked,
            Admission::Admit { .. } | Admission::Redirect(_) => return,
        };
        self.close(Violation::new(code, ""), out);
    }

    /// Its name.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Frames since the last call.
    pub(crate) fn take_frames(&mut self) -> Frames {
        std::mem::take(&mut self.frames)
    }

    /// Whose it is.
    pub(crate) fn agent(&self) -> AgentId {
        self.agent
    }

    /// QUIC says that something changed on a stream.
    pub(crate) fn handle_stream_event(
        &mut self,
        event: StreamEvent,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) {
        match event {
            StreamEvent::Opened { dir: Dir::Bi } => {
                if self.control.is_none() {
                    self.control = streams.accept();
                    self.control_readable = true;
                }
            }
            StreamEvent::Readable { id } if self.control == Some(id) => {
                self.control_readable = true
            }
            StreamEvent::Readable { id } => self.flights.mark_readable(id),
            StreamEvent::Finished { id } if self.control == Some(id) => self.leave_now(out),
            StreamEvent::Stopped { id, .. } if self.control == Some(id) => {
                self.leave_now(out);
                self.close(AGENT_LEFT, out);
            }
            StreamEvent::Writable { .. }
            | StreamEvent::Available { .. }
            | StreamEvent::Stopped { .. } => self.write(streams, out),
            StreamEvent::Finished { id } => self.flights.mark_arrived(id),
            StreamEvent::Opened { .. } => {}
        }
    }

    /// Whether [`read`](Self::read) has something to do.
    pub(crate) fn is_readable(&self) -> bool {
        self.control_readable || self.flights.is_readable()
    }

    /// Reads frames, up to a fair share of bytes; what is left waits for the next turn.
    pub(crate) fn read(
        &mut self,
        around: &Surroundings<'_>,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) {
        let mut budget = READ_TURN_BYTES;
        // Commands' answers first: a Hello only ever comes when there are none.
        let result = match self
            .flights
            .read(streams, &mut budget, &mut self.frames.heard, out)
        {
            Ok(()) => self.read_control(around, &mut budget, streams, out),
            violation => violation,
        };
        if let Err(violation) = result {
            self.close(violation, out);
        }
    }

    /// Does what its home shard, or the shard itself, says.
    pub(crate) fn handle_command(
        &mut self,
        now: Instant,
        command: SessionCommand,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) {
        let State::Up = self.state else {
            return self.handle_command_while_not_up(command, out);
        };
        match command {
            SessionCommand::Forget(operations) => {
                self.given.retire(&operations);
                if self.held.add(now, operations) {
                    self.say_held(out);
                }
            }
            command => {
                self.held.take_out(&command);
                // Whatever is said takes along what has waited.
                self.say_held(out);
                self.do_now(now, command, streams, out);
            }
        }
        self.write(streams, out);
    }

    /// Whether a command is on its way that the agent may not have yet.
    pub(crate) fn has_commands_under_way(&self) -> bool {
        self.flights.are_under_way()
    }

    /// Right before packets are made, for a gateway under a lease: while that holds, what is written may leave. If not,
    /// no byte of a command does, not even again: all that have not arrived are taken back.
    pub(crate) fn fence(
        &mut self,
        lease: &dyn Lease,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) {
        if !self.flights.are_under_way() {
            return;
        }
        if lease.holds() {
            return self.flights.let_go();
        }
        for _ in 0..self.flights.take_back_all(streams, out) {
            lease.fenced();
        }
    }

    fn say_held(&mut self, out: &mut Vec<Output>) {
        if let Some(operations) = self.held.take() {
            self.say(&GatewayMessage::Forget { operations }, out);
        }
    }

    fn do_now(
        &mut self,
        now: Instant,
        command: SessionCommand,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) {
        match command {
            SessionCommand::Dispatch { epoch, command } => {
                let (operation, fence) = (command.operation, command.fence);
                let message = GatewayMessage::Command {
                    epoch,
                    command: *command,
                };
                let taken = encode(&message)
                    .ok_or(NotDelivered::TooLarge)
                    .and_then(|frame| self.flights.push(now, operation, fence, frame));
                match taken {
                    Ok(()) => {
                        self.frames.said += 1;
                        self.given.insert(operation);
                    }
                    Err(reason) => out.push(not_delivered(operation, fence, reason)),
                }
            }
            SessionCommand::Cancel {
                operation,
                fence,
                epoch,
            } => {
                self.given.insert(operation);
                self.flights.take_back(operation, fence, streams, out);
                let cancel = GatewayMessage::Cancel {
                    operation,
                    fence,
                    epoch,
                };
                self.say(&cancel, out);
            }
            SessionCommand::Query(operations) => {
                operations
                    .iter()
                    .for_each(|(operation, _)| self.given.insert(*operation));
                self.say(&GatewayMessage::Query { operations }, out);
            }
            // The caller has kept it.
            SessionCommand::Forget(_) => {}
            SessionCommand::NewEpoch(epoch) => self.say(&GatewayMessage::NewEpoch { epoch }, out),
            SessionCommand::GoAway {
                addresses,
                delay,
                deadline,
            } => {
                self.end_by(now + deadline, CloseCode::Draining);
                self.say(
                    &GatewayMessage::GoAway {
                        addresses,
                        delay,
                        deadline,
                    },
                    out,
                );
            }
            SessionCommand::Close(code) => self.close(Violation::new(code, ""), out),
        }
    }

    /// The time has come.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) {
        if now >= self.end {
            self.close(Violation::new(self.end_code, ""), out);
        } else if self.held.poll_timeout().is_some_and(|at| at <= now) {
            self.say_held(out);
            self.write(streams, out);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let end = match self.held.poll_timeout() {
            Some(at) => at.min(self.end),
            None => self.end,
        };
        (!matches!(self.state, State::Over)).then_some(end)
    }

    /// The connection is gone: says what became of every command.
    pub(crate) fn handle_lost(&mut self, out: &mut Vec<Output>) {
        self.state = State::Over;
        self.control_readable = false;
        self.flights.lose(out);
    }

    fn handle_command_while_not_up(&mut self, command: SessionCommand, out: &mut Vec<Output>) {
        match command {
            SessionCommand::Dispatch { command, .. } => {
                out.push(not_delivered(
                    command.operation,
                    command.fence,
                    NotDelivered::NoSession,
                ));
            }
            SessionCommand::Close(code) => self.close(Violation::new(code, ""), out),
            _ => {}
        }
    }

    fn read_control(
        &mut self,
        around: &Surroundings<'_>,
        budget: &mut usize,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) -> Result<(), Violation> {
        while let (true, Some(stream)) = (self.control_readable && *budget > 0, self.control) {
            let before = self.input.buffered();
            let read = streams.read(stream, &mut self.input, READ_CHUNK_BYTES);
            *budget = budget.saturating_sub(1 + self.input.buffered().saturating_sub(before));
            while let Some(frame) = self.input.next_frame(CONTROL_FRAME_BYTES_MAX)? {
                self.frames.heard += 1;
                self.handle_control(decode_agent_message(&frame)?, around, out)?;
            }
            match read {
                Read::More => {}
                Read::Blocked => self.control_readable = false,
                Read::Finished if self.input.buffered() > 0 => {
                    let detail = "the control stream ended within a frame";
                    return Err(Violation::new(CloseCode::BadFrame, detail));
                }
                Read::Finished | Read::Reset => {
                    self.control_readable = false;
                    if !matches!(self.state, State::Leaving(_) | State::Over) {
                        return Err(AGENT_LEFT);
                    }
                }
            }
        }
        self.write(streams, out);
        Ok(())
    }

    fn handle_control(
        &mut self,
        message: AgentMessage,
        around: &Surroundings<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), Violation> {
        let event = match (&self.state, message) {
            (State::AwaitHello(_), AgentMessage::Hello(hello)) => {
                return self.handle_hello(*hello, around, out);
            }
            (State::Up, AgentMessage::Status { capacity }) => OperationEvent::Capacity(capacity),
            (
                State::Up,
                AgentMessage::Report {
                    operation,
                    fence,
                    state,
                },
            ) => {
                if !self.given.contains(operation) {
                    return Err(Violation::new(
                        CloseCode::ForeignOperation,
                        "the report is about an operation that this agent was not given",
                    ));
                }
                if state == OperationState::NeverSeen {
                    self.given.retire(&[operation]);
                }
                OperationEvent::Report {
                    operation,
                    fence,
                    state,
                }
            }
            (State::Leaving(_) | State::Over, _) => return Ok(()),
            _ => {
                return Err(Violation::new(
                    CloseCode::UnexpectedFrame,
                    "the control stream carries one Hello, then Status and Report",
                ));
            }
        };
        out.push(Output::Operation(event));
        Ok(())
    }

    /// Queues a message for the control stream. An agent that does not read is let go: its next
    /// Hello says everything again.
    fn say(&mut self, message: &GatewayMessage, out: &mut Vec<Output>) {
        self.frames.said += 1;
        let queued = encode(message).is_some_and(|frame| self.outbox.push(frame).is_ok());
        if !queued {
            let detail = "the agent does not read its control stream";
            self.close(Violation::new(CloseCode::LimitExceeded, detail), out);
        }
    }

    fn write(&mut self, streams: &mut impl Streams, out: &mut Vec<Output>) {
        if let (Some(stream), false) = (self.control, matches!(self.state, State::Over)) {
            let empty = self.outbox.write(stream, streams);
            if empty && matches!(self.state, State::Leaving(_)) {
                streams.finish(stream);
            }
            self.flights.write(streams, out);
        }
    }

    fn end_by(&mut self, end: Instant, code: CloseCode) {
        if end < self.end {
            (self.end, self.end_code) = (end, code);
        }
    }

    /// The last frame has arrived at the agent.
    fn leave_now(&mut self, out: &mut Vec<Output>) {
        if let State::Leaving(code) = self.state {
            self.close(Violation::new(code, ""), out);
        }
    }

    fn close(&mut self, violation: Violation, out: &mut Vec<Output>) {
        if !matches!(self.state, State::Over) {
            self.handle_lost(out);
            out.push(violation.into());
        }
    }
}

fn encode(message: &GatewayMessage) -> Option<Bytes> {
    let mut frame = Vec::new();
    encode_gateway_message(message, &mut frame).ok()?;
    Some(Bytes::from(frame))
}

fn not_delivered(
    operation: protocol::ids::OperationId,
    fence: protocol::ids::Fence,
    reason: NotDelivered,
) -> Output {
    Output::Operation(OperationEvent::NotDelivered {
        operation,
        fence,
        reason,
    })
}
