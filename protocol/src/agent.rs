//! The messages between an agent and its gateway.
//!
//! Control stream (the agent's first bidirectional stream): the agent speaks first with `Hello`,
//! the gateway answers `Welcome` or `Redirect`; afterwards either side sends what it has.
//!
//! Command streams (opened by the gateway, one per operation and attempt): the gateway sends one
//! `Command` and ends its side. The agent answers `Refused`, or `Accepted`, any number of
//! `Progress`, and `Finished`, and ends its side. A cancel goes over the control stream.

use std::time::Duration;

use crate::ids::{AgentId, Epoch, Fence, GroupId, OperationId, SessionId, Slot};
use crate::operation::{Command, OpenOperation, OperationState, Outcome, Progress, Refusal};
use crate::version::VersionRange;

/// ALPN of agent sessions.
pub const ALPN_SESSION: &[u8] = b"drover-session";
/// ALPN of enrolment.
pub const ALPN_ENROL: &[u8] = b"drover-enrol";

/// From an agent to its gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AgentMessage {
    /// Control stream, first and once.
    Hello(Box<Hello>),
    /// Control stream: the agent's capacity changed.
    Status {
        /// Operations at once from now on; 0 pauses the agent. At most `CAPACITY_MAX`.
        capacity: u32,
    },
    /// Control stream: what the agent knows about an operation; asked for with `Query`, or
    /// unasked for when the command stream is gone.
    Report {
        /// Which operation.
        operation: OperationId,
        /// The highest fence seen for it.
        fence: Fence,
        /// How far it is.
        state: OperationState,
    },
    /// Command stream: durably accepted.
    Accepted {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
    },
    /// Command stream: not taken; nothing was started.
    Refused {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// Why.
        refusal: Refusal,
    },
    /// Command stream: output or progress.
    Progress {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// The report.
        progress: Progress,
    },
    /// Command stream, last: ended, and the outcome is durable.
    Finished {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// How it ended.
        outcome: Outcome,
    },
}

/// How an agent introduces itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The protocol versions that it speaks.
    pub versions: VersionRange,
    /// Who it is; must be the identity of its certificate.
    pub agent: AgentId,
    /// Counts the agent's sessions, durably; of two sessions the higher wins.
    pub session_count: u64,
    /// Operations that it runs at once, at most `CAPACITY_MAX`.
    pub capacity: u32,
    /// The highest epoch that it has seen.
    pub epoch_seen: Epoch,
    /// Names of its drivers.
    pub kinds: Vec<String>,
    /// What its journal holds.
    pub open: Vec<OpenOperation>,
    /// For people: the host's name.
    pub hostname: String,
    /// For people: the agent's software version.
    pub software: String,
    /// For people and selection: `name=value`.
    pub labels: Vec<(String, String)>,
}

/// From a gateway to an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GatewayMessage {
    /// Control stream, first: the session is up.
    Welcome(Box<Welcome>),
    /// Control stream, first: another gateway owns the agent's group. The session closes.
    Redirect {
        /// `host:port` of the owner; try in order.
        addresses: Vec<String>,
        /// Not before this.
        retry_after: Duration,
    },
    /// Control stream: say what you know about these.
    Query {
        /// Which operations, and the highest fence under which each was sent.
        operations: Vec<(OperationId, Fence)>,
    },
    /// Control stream: cancel an operation whose command stream is gone, or that never arrived
    /// (the agent journals a tombstone).
    Cancel {
        /// Which operation.
        operation: OperationId,
        /// The highest fence under which it was sent.
        fence: Fence,
        /// The owner's epoch.
        epoch: Epoch,
    },
    /// Control stream: these outcomes are durable; the journal may drop them.
    Forget {
        /// Which operations.
        operations: Vec<OperationId>,
    },
    /// Control stream: the gateway is draining. Open a session elsewhere after `delay`, then close
    /// this one; it is closed at `deadline`.
    GoAway {
        /// `host:port` to go to; empty: the ones already known.
        addresses: Vec<String>,
        /// Wait this long first (already spread by the gateway).
        delay: Duration,
        /// The session ends then.
        deadline: Duration,
    },
    /// Control stream: the group has a new epoch under the same gateway.
    NewEpoch {
        /// The epoch.
        epoch: Epoch,
    },
    /// Command stream, first and once.
    Command {
        /// The owner's epoch.
        epoch: Epoch,
        /// What to do.
        command: Command,
    },
}

/// How a gateway accepts a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The protocol version of this session.
    pub version: u16,
    /// The session's name, for logs on both sides.
    pub session: SessionId,
    /// The agent's group.
    pub group: GroupId,
    /// The group's slot: byte 0 of the agent's next first destination connection id.
    pub slot: Slot,
    /// The group's epoch.
    pub epoch: Epoch,
    /// PING after this long without a packet from the gateway, ± 20 %.
    pub keep_alive: Duration,
    /// After losing the session wait a random part of this before the first reconnect.
    pub reconnect_spread: Duration,
    /// `host:port` of gateways to try, in order, next to the configured ones.
    pub addresses: Vec<String>,
}
