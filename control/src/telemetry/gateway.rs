//! What the overview asks of a gateway. A gateway is not this crate's: whoever starts both fills
//! this in.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::ids::ShardId;

/// A gateway's figures: counts since its start, unless said otherwise.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GatewayFigures {
    /// How packets come and go: `uring` or `poll`; nothing until the gateway has said so.
    pub datapath: Option<&'static str>,
    /// Datagrams that were damaged, found the kernel's buffer full, or that the kernel refused to
    /// send; not those that were turned away.
    pub dropped: u64,
    /// Events that found the way up to the process server full.
    pub uplink_full: u64,
    /// Messages that found another shard's mailbox full.
    pub mailbox_full: u64,
    /// Connections under way now, by shard; every shard has an entry.
    pub half_open: BTreeMap<ShardId, u64>,
    /// Handshakes that were let in.
    pub admitted: u64,
    /// Newcomers that were asked to prove their address first.
    pub retried: u64,
    /// First packets that were dropped without an answer.
    pub turned_away: u64,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: u64,
}

/// Asks a gateway. Called about once a second while somebody looks; must not block.
pub type GatewaySource = Arc<dyn Fn() -> GatewayFigures + Send + Sync>;
