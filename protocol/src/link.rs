//! The messages between the control plane and a gateway: values in one process, FlatBuffers frames
//! between machines.
//!
//! ```text
//!   control ── Request ──▶ home shard of the agent's group      control ◀── Event ── shard
//! ```
//!
//! Delivery is at most once and in order per group; a full queue is told to the sender. Nothing
//! here is durable: the store and the agents' journals are. Between machines the two sides also speak
//! of their connection: [`ServerWord`], [`GatewayWord`].

mod joining;

use std::net::SocketAddr;
use std::time::Duration;

pub use self::joining::{ALPN_LINK, GatewayWord, LINK_SUPPORTED, Leave, ServerWord};
use crate::close::CloseCode;
use crate::enrol::{EnrolReply, EnrolRequest};
use crate::flow::lending::{Lease, Report};
use crate::flow::{AgentFlow, Demand, Limit, LimitKey, LimitUse, Line};
use crate::identity::KeyHash;
use crate::ids::{
    AgentId, Epoch, Fence, GrantId, GroupId, OperationId, ServerId, SessionId, ShardId, Slot,
};
use crate::operation::{Command, OpenOperation, OperationState, Outcome, Progress, Refusal};

/// An agent and the group that leads to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// The agent.
    pub agent: AgentId,
    /// Its group.
    pub group: GroupId,
    /// The group's slot, which names the home shard.
    pub slot: Slot,
}

/// From the control plane to a gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Every shard: this gateway owns the group from now on. Repeated with a higher epoch it
    /// replaces; with a lower one it is ignored.
    AssignGroup {
        /// The group.
        group: GroupId,
        /// Its slot.
        slot: Slot,
        /// The new owner's epoch.
        epoch: Epoch,
    },
    /// Every shard: another gateway owns the group; redirect its agents.
    ReleaseGroup {
        /// The group.
        group: GroupId,
        /// The epoch that ends.
        epoch: Epoch,
        /// `host:port` of the new owner.
        addresses: Vec<String>,
    },
    /// Every shard: this agent may connect with any of these keys (at most two). Replaces.
    AdmitAgent {
        /// The agent and its group.
        target: Target,
        /// Its pinned keys.
        keys: Vec<KeyHash>,
    },
    /// Every shard: this agent may not connect; close its session with [`CloseCode::Revoked`].
    RevokeAgent {
        /// The agent.
        agent: AgentId,
    },
    /// Home shard: what is ready for this agent, line by line. Absolute: replaces all that this server
    /// said of the agent before; no line withdraws. Answered with `Granted` whenever permits of a line
    /// are free. A permit that is dispatched, returned or expires lowers the line's figure. It is lost
    /// with the session: say it again after `SessionUp`.
    Demand {
        /// For whom.
        target: Target,
        /// Who asks. Process servers read one store, so they state the same processes: what counts
        /// is the greatest demand of a line, and its grants go to them in turn.
        server: ServerId,
        /// At most [`LINES_MAX`](crate::limits::LINES_MAX).
        lines: Vec<Demand>,
    },
    /// Home shard: say what the agent is given and why no more. Answered with `FlowTold`.
    AskFlow {
        /// Of whom.
        target: Target,
        /// Comes back in the answer.
        ticket: u64,
    },
    /// Every shard: say how much of a limit is in use. Each answers with `LimitTold`.
    AskLimit {
        /// Which limit; an agent's own is told by `AskFlow`.
        key: LimitKey,
        /// Comes back in the answers.
        ticket: u64,
    },
    /// Every shard: the limits that operators set. Replaces all of them.
    SetLimits {
        /// At most [`LIMITS_MAX`](crate::limits::LIMITS_MAX), each key once.
        limits: Vec<Limit>,
    },
    /// Home shard: what operations of an agent that may be under way were granted for. They count
    /// against the limits that their line counts against: on an agent with a session those of its
    /// inventory, on another one all, until its next inventory says what became of them. A gateway
    /// that begins is told all of them before it is assigned a group: from the first group on its
    /// homes report what they use. What is known already stays as it is.
    Charge {
        /// On which agent.
        target: Target,
        /// At most [`CHARGES_PER_FRAME_MAX`](crate::limits::CHARGES_PER_FRAME_MAX).
        operations: Vec<(OperationId, Line)>,
    },
    /// The shard that reported: what it may use of limits that span homes.
    Lend {
        /// Which shard.
        shard: ShardId,
        /// At most [`CREDITS_PER_FRAME_MAX`](crate::limits::CREDITS_PER_FRAME_MAX), each key once.
        leases: Vec<(LimitKey, Lease)>,
    },
    /// Every shard: report what you use of these limits, even if that is nothing.
    AskUse {
        /// At most [`CREDITS_PER_FRAME_MAX`](crate::limits::CREDITS_PER_FRAME_MAX). Those that are
        /// not set are passed over.
        keys: Vec<LimitKey>,
    },
    /// Home shard: these permits of a grant will not be used.
    ReturnPermits {
        /// For whom.
        target: Target,
        /// The grant.
        grant: GrantId,
        /// How many.
        unused: u32,
    },
    /// Home shard: send this command, on one permit of the grant.
    Dispatch {
        /// To whom.
        target: Target,
        /// The grant that covers it.
        grant: GrantId,
        /// The owner's epoch when it was claimed.
        epoch: Epoch,
        /// What to do.
        command: Box<Command>,
    },
    /// Home shard: cancel.
    Cancel {
        /// At whom.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// The highest fence under which it was sent.
        fence: Fence,
    },
    /// Home shard: ask the agent what it knows; each is answered with `Report`.
    Query {
        /// Whom.
        target: Target,
        /// Which operations, and the highest fence under which each was sent.
        operations: Vec<(OperationId, Fence)>,
    },
    /// Home shard: these outcomes are durable; the agent may forget them.
    Forget {
        /// Whom.
        target: Target,
        /// Which operations.
        operations: Vec<OperationId>,
    },
    /// The shard that asked: answer an enrolment.
    EnrolReply {
        /// The shard of the `Enrol` event.
        shard: ShardId,
        /// The ticket of the `Enrol` event.
        ticket: u64,
        /// The answer.
        reply: EnrolReply,
    },
    /// Every shard: take no new session and no new command, send GoAway spread over `spread`, close
    /// what is left at `deadline`.
    Drain {
        /// Where agents should go; empty: nowhere, so no GoAway is sent.
        addresses: Vec<String>,
        /// Departures are spread over this.
        spread: Duration,
        /// From now.
        deadline: Duration,
    },
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// To every shard.
    Every,
    /// To the home shard of a slot.
    Home(Slot),
    /// To one shard.
    Shard(ShardId),
}

impl Request {
    /// Where it goes.
    pub fn route(&self) -> Route {
        match self {
            Self::AssignGroup { .. }
            | Self::ReleaseGroup { .. }
            | Self::AdmitAgent { .. }
            | Self::RevokeAgent { .. }
            | Self::SetLimits { .. }
            | Self::AskLimit { .. }
            | Self::AskUse { .. }
            | Self::Drain { .. } => Route::Every,
            Self::Demand { target, .. }
            | Self::AskFlow { target, .. }
            | Self::Charge { target, .. }
            | Self::ReturnPermits { target, .. }
            | Self::Dispatch { target, .. }
            | Self::Cancel { target, .. }
            | Self::Query { target, .. }
            | Self::Forget { target, .. } => Route::Home(target.slot),
            Self::Lend { shard, .. } | Self::EnrolReply { shard, .. } => Route::Shard(*shard),
        }
    }
}

/// From a gateway to the control plane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An agent's session is up (after its `Welcome`).
    SessionUp(Box<SessionUp>),
    /// An agent's session is gone. Operations in flight follow as `NotDelivered` or `Uncertain`.
    SessionDown {
        /// Whose.
        target: Target,
        /// Which session.
        session: SessionId,
        /// Who ended it and why.
        reason: DownReason,
    },
    /// Permits for a line of an agent: claim at most so many of its operations and dispatch them on
    /// this grant within its life.
    Granted {
        /// For whom.
        target: Target,
        /// To whom.
        server: ServerId,
        /// That server's number of the line.
        line: u32,
        /// The grant.
        grant: GrantId,
        /// The owner's epoch; goes into every dispatch.
        epoch: Epoch,
        /// How many.
        permits: u32,
        /// From the sending of this event.
        ttl: Duration,
    },
    /// A permit ahead of any demand: one operation may be claimed and dispatched on this grant,
    /// whenever there is one, so that an agent with room needs no round-trip first. At most one an
    /// agent. It keeps its place at the agent: whoever has operations takes the offer up before it
    /// states a demand, and does not count the operation in it. It has no life of its own: it ends when
    /// it is used or returned, with the session, or with `Withdrawn`.
    Offered {
        /// For whom.
        target: Target,
        /// The grant.
        grant: GrantId,
        /// The owner's epoch; goes into the dispatch.
        epoch: Epoch,
    },
    /// An offer is void: the agent takes less at once than before, or another epoch has begun.
    Withdrawn {
        /// For whom.
        target: Target,
        /// The grant that it named.
        grant: GrantId,
    },
    /// The agent has durably accepted the operation.
    Accepted {
        /// Who.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
    },
    /// Output or progress.
    Progress {
        /// Who.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// The report.
        progress: Progress,
    },
    /// The operation ended. The permit is free again.
    Finished {
        /// Who.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// How.
        outcome: Outcome,
    },
    /// The agent did not take it; nothing was started. The permit is free again.
    Refused {
        /// Who.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// Why.
        refusal: Refusal,
    },
    /// Certain: the agent has not seen the command. The permit is free again.
    NotDelivered {
        /// Who.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// Why.
        reason: NotDelivered,
    },
    /// The session was lost after the command was sent and before it ended: ask the agent.
    Uncertain {
        /// Who.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
    },
    /// What an agent knows about an operation, asked for or not.
    Report {
        /// Who.
        target: Target,
        /// Which operation.
        operation: OperationId,
        /// The highest fence that the agent has seen.
        fence: Fence,
        /// How far it is.
        state: OperationState,
    },
    /// Somebody with a token asks for a certificate.
    Enrol {
        /// The shard to answer.
        shard: ShardId,
        /// Names the request at that shard.
        ticket: u64,
        /// From where.
        remote: SocketAddr,
        /// What was asked.
        request: Box<EnrolRequest>,
    },
    /// The answer to `AskFlow`.
    FlowTold {
        /// Of whom.
        target: Target,
        /// From the question.
        ticket: u64,
        /// Nothing where the agent has no session here.
        flow: Option<Box<AgentFlow>>,
    },
    /// One shard's answer to `AskLimit`.
    LimitTold {
        /// From the question.
        ticket: u64,
        /// Who answers.
        shard: ShardId,
        /// How many will answer, this one included.
        shards: u16,
        /// What it knows.
        used: LimitUse,
    },
    /// What a shard uses of limits that span homes: each second while it uses or wants any of one, and
    /// at once when a line finds no room.
    Reported {
        /// Which shard.
        shard: ShardId,
        /// How many this gateway has: each is home to some groups.
        shards: u16,
        /// At most [`CREDITS_PER_FRAME_MAX`](crate::limits::CREDITS_PER_FRAME_MAX), each key once.
        reports: Vec<(LimitKey, Report)>,
    },
    /// Something was refused that people should know of.
    Security {
        /// What kind.
        kind: SecurityEvent,
        /// Who, where a certificate said so.
        agent: Option<AgentId>,
        /// From where.
        remote: SocketAddr,
    },
}

/// The facts of a new session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionUp {
    /// Whose.
    pub target: Target,
    /// Which session.
    pub session: SessionId,
    /// The shard that holds the connection.
    pub shard: ShardId,
    /// Whether that is the group's home shard.
    pub at_home: bool,
    /// From where.
    pub remote: SocketAddr,
    /// Operations at once.
    pub capacity: u32,
    /// Names of its drivers.
    pub kinds: Vec<String>,
    /// What its journal holds.
    pub open: Vec<OpenOperation>,
    /// For people: the host's name.
    pub hostname: String,
    /// For people: the agent's software version.
    pub software: String,
    /// For people and selection.
    pub labels: Vec<(String, String)>,
}

/// Who ended a session and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DownReason {
    /// The gateway closed it.
    ClosedHere(CloseCode),
    /// The agent closed it, with this application code.
    ClosedByAgent(u64),
    /// Nothing was heard for the idle time.
    TimedOut,
    /// A QUIC or TLS error.
    TransportError,
}

/// Why a command certainly did not reach its agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum NotDelivered {
    /// The grant is unknown, used up or too old.
    #[error("the grant is unknown, used up or too old")]
    NoGrant,
    /// The dispatch carries another epoch than the group's.
    #[error("the epoch is not the group's")]
    StaleEpoch,
    /// This gateway does not own the group.
    #[error("this gateway does not own the group")]
    NotOwner,
    /// The agent has no session.
    #[error("the agent has no session")]
    NoSession,
    /// The agent's outbox or a queue on the way is full.
    #[error("a queue on the way to the agent is full")]
    Busy,
    /// The command does not fit into a frame.
    #[error("the command does not fit into a frame")]
    TooLarge,
    /// The gateway is draining.
    #[error("the gateway is draining")]
    Draining,
}

/// What was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SecurityEvent {
    /// The session ALPN without a certificate.
    NoCertificate,
    /// A certificate that does not lead to this deployment, has the wrong use or the wrong dates.
    ForeignCertificate,
    /// A certificate of this deployment with a key that is not pinned.
    KeyNotPinned,
    /// A revoked agent.
    RevokedAgent,
    /// A Hello in another agent's name.
    IdentityMismatch,
    /// Words about an operation that the agent was not given.
    ForeignOperation,
    /// A frame that could not be read, or came at the wrong time.
    ProtocolViolation,
    /// A rate or memory limit.
    LimitExceeded,
    /// A handler panicked; the session was closed.
    HandlerPanicked,
}

impl SecurityEvent {
    /// Its name in logs, and the value of its label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::ForeignCertificate => "foreign_certificate",
            Self::KeyNotPinned => "key_not_pinned",
            Self::RevokedAgent => "revoked_agent",
            Self::IdentityMismatch => "identity_mismatch",
            Self::ForeignOperation => "foreign_operation",
            Self::ProtocolViolation => "protocol_violation",
            Self::LimitExceeded => "limit_exceeded",
            Self::HandlerPanicked => "handler_panicked",
        }
    }
}
