//! What a process server and an agent server say to each other about their connection, besides
//! requests and events.
//!
//! ```text
//!   process server                                   agent server
//!     Hello{versions}            ─────────────────▶  joins it to the gateway
//!                                ◀─────────────────  Welcome{version, gateway, server, …}
//!     Request …                  ─────────────────▶
//!     Came, each second          ─────────────────▶  tells it what happens from the first one on
//!                                ◀─────────────────  Event …, Leads{…} whenever that changes
//!                                ◀─────────────────  Renew{ticket}, every five seconds
//!     Renewed{ticket}            ─────────────────▶  it may dispatch for ten seconds from its question on
//!                                ◀─────────────────  Renew{ticket, leaves_in}, twice a second: it is told to stop
//!     Renewed{ticket, leave}     ─────────────────▶  stops when others have its groups, or there is nobody else
//!     Draining, end of stream    ─────────────────▶  it has left
//! ```
//!
//! All of it travels on one bidirectional stream, which the process server opens, so what is said
//! first is heard first. A refusal is the close of the connection, with a
//! [`CloseCode`](crate::close::CloseCode) and a reason for people.

use std::time::Duration;

use crate::ids::{GatewayId, ServerId};
use crate::version::VersionRange;

/// ALPN of the link between a process server and an agent server.
pub const ALPN_LINK: &[u8] = b"drover-link";

/// The versions of the link that this build speaks. The rule is that of
/// [`SUPPORTED`](crate::version::SUPPORTED).
pub const LINK_SUPPORTED: VersionRange = VersionRange {
    oldest: 1,
    newest: 1,
};

const _: () = assert!(
    1 <= LINK_SUPPORTED.oldest
        && LINK_SUPPORTED.oldest <= LINK_SUPPORTED.newest
        && LINK_SUPPORTED.newest <= LINK_SUPPORTED.oldest + 1
);

/// From a process server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerWord {
    /// First and once.
    Hello {
        /// The versions of the link that it speaks.
        versions: VersionRange,
        /// For people: its software version, at most
        /// [`NAME_BYTES_MAX`](crate::limits::NAME_BYTES_MAX) bytes.
        software: String,
        /// It belongs to an API server alone: it hears what there is to be seen, and neither claims nor leads.
        observes: bool,
    },
    /// It has come to read: it does not hang. From the first time on it is told what happens.
    Came,
    /// It takes no more events, which are the others' now. What it says is still passed on.
    Draining,
    /// The agent server's lease has been prolonged since it was asked for.
    Renewed {
        /// From the question.
        ticket: u64,
        /// Whether an agent server that has said that it leaves may do so.
        leave: Leave,
    },
}

/// What an agent server that is told to stop hears of its groups.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Leave {
    /// Others are given its groups, or nobody has heard yet that it leaves.
    #[default]
    NotYet,
    /// It owns none any more.
    Empty,
    /// It is the last one: nobody could be given its groups.
    Alone,
}

/// From an agent server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GatewayWord {
    /// First and once.
    Welcome {
        /// The version of this connection.
        version: u16,
        /// This run of the gateway: it owns the groups, so it is what their epochs follow.
        gateway: GatewayId,
        /// The process server, as the gateway tells it from others. No other one of this run has had
        /// the number.
        server: ServerId,
        /// How many shards this gateway has, from 1 to [`SHARDS_MAX`](crate::limits::SHARDS_MAX).
        shards: u16,
        /// The UDP port where agents connect, on the machine that the process server has reached: for
        /// whoever has no other address.
        port: u16,
        /// `host:port` where agents connect, the best first; at most
        /// [`ADDRESSES_MAX`](crate::limits::ADDRESSES_MAX), and none where nobody has said them.
        addresses: Vec<String>,
    },
    /// Whether the process server speaks for all that share the gateway. Before the first of these
    /// it does not.
    Leads {
        /// It does.
        leads: bool,
    },
    /// Prolong the lease of this agent server. It dispatches for
    /// [`LINK_LEASE`](crate::limits::LINK_LEASE) from when it asked, once it is answered.
    Renew {
        /// Comes back in the answer.
        ticket: u64,
        /// It is told to stop, and waits for so long, in whole milliseconds, for others to be given its groups;
        /// `None`: it stays.
        leaves_in: Option<Duration>,
    },
}
