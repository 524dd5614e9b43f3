//! Agent groups: who is a member, where its session is, and how many operations it may be given.
//!
//! ```text
//!   control ─ Request ─▶ ┌──────────────── home shard ────────────────┐ ─ Event ─▶ control
//!                        │ Home: group (slot, epoch) → member →       │
//!   session ─ Operation ▶│       Ledger (grants, operations charged)  │ ─ SessionCommand ─▶ session
//!                        └────────────────────────────────────────────┘
//!   every shard: Directory (agent → keys and group), read when a session begins
//! ```
//!
//! Everything here is a pure state machine: the time is an argument, `handle_*` takes something in,
//! `poll_*` gives something out. Nothing here knows QUIC, mailboxes or threads. A group has one
//! home shard, so one thread counts its permits and no lock is needed; a session may live on any
//! shard and is reached through its [`Location`].

use std::time::Duration;

use protocol::close::CloseCode;
use protocol::ids::{Epoch, Fence, OperationId, SessionId, ShardId};
use protocol::link::{Event, NotDelivered};
use protocol::operation::{Command, OperationState, Outcome, Progress, Refusal};

mod directory;
mod home;
mod permits;

pub(crate) use directory::{Admission, Directory};
pub(crate) use home::{Home, HomeConfig, PermitCounts};

/// Where a session is: which shard, which entry of that shard's session table, and the session's
/// name, which tells a re-used entry from the one that was meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Location {
    /// The shard that holds the connection.
    pub shard: ShardId,
    /// The entry in that shard's table.
    pub index: u32,
    /// The session.
    pub session: SessionId,
}

/// What a home shard gives out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum HomeOutput {
    /// For the session at a location. A [`SessionCommand::Dispatch`] that cannot be handed over
    /// must come back as [`OperationEvent::NotDelivered`]; the others may be lost with the session.
    ToSession(Location, SessionCommand),
    /// For the control plane.
    Event(Event),
}

/// What a home shard tells a session to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SessionCommand {
    /// Send a command on a stream of its own.
    Dispatch {
        /// The group's epoch.
        epoch: Epoch,
        /// What to do.
        command: Box<Command>,
    },
    /// Cancel: reset the command's stream, or send `Cancel` when there is none.
    Cancel {
        /// Which operation.
        operation: OperationId,
        /// The highest fence under which it was sent.
        fence: Fence,
        /// The group's epoch.
        epoch: Epoch,
    },
    /// Ask what the agent knows of these.
    Query(Vec<(OperationId, Fence)>),
    /// These outcomes are durable.
    Forget(Vec<OperationId>),
    /// The group has a new epoch.
    NewEpoch(Epoch),
    /// Ask the agent to open a session elsewhere.
    GoAway {
        /// `host:port` to go to; empty: the ones already known.
        addresses: Vec<String>,
        /// Not before this, from now.
        delay: Duration,
        /// The session is closed then, from now.
        deadline: Duration,
    },
    /// Close the session.
    Close(CloseCode),
}

/// What a session says to its agent's home shard about operations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum OperationEvent {
    /// The agent has durably accepted it.
    Accepted {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
    },
    /// Output or progress.
    Progress {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// The report.
        progress: Progress,
    },
    /// It ended.
    Finished {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// How.
        outcome: Outcome,
    },
    /// The agent did not take it.
    Refused {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// Why.
        refusal: Refusal,
    },
    /// Not a byte of it was sent.
    NotDelivered {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
        /// Why.
        reason: NotDelivered,
    },
    /// Its stream broke after it may have been sent.
    Uncertain {
        /// Which operation.
        operation: OperationId,
        /// From the command.
        fence: Fence,
    },
    /// The agent's answer to a query, or an unasked report.
    Report {
        /// Which operation.
        operation: OperationId,
        /// The highest fence that the agent has seen for it.
        fence: Fence,
        /// How far it is.
        state: OperationState,
    },
    /// The agent's capacity changed.
    Capacity(u32),
}

impl OperationEvent {
    /// The dispatch that it is about.
    fn dispatch(&self) -> Option<(OperationId, Fence)> {
        match self {
            Self::Accepted { operation, fence }
            | Self::Progress {
                operation, fence, ..
            }
            | Self::Finished {
                operation, fence, ..
            }
            | Self::Refused {
                operation, fence, ..
            }
            | Self::NotDelivered {
                operation, fence, ..
            }
            | Self::Uncertain { operation, fence }
            | Self::Report {
                operation, fence, ..
            } => Some((*operation, *fence)),
            Self::Capacity(_) => None,
        }
    }
}
