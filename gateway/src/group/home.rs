//! The home shard of groups.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::ids::{AgentId, ShardId};
use protocol::link::{DownReason, Request, SessionUp};

use super::{HomeOutput, Location, OperationEvent};

/// What a home shard must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HomeConfig {
    /// The life of a grant.
    pub grant_ttl: Duration,
    /// When a group is released, its members leave spread over this.
    pub release_spread: Duration,
    /// When a group is released, its sessions are closed after this.
    pub release_deadline: Duration,
    /// Sessions that this shard can be home to.
    pub members_max: usize,
}

impl Default for HomeConfig {
    fn default() -> Self {
        Self {
            grant_ttl: protocol::limits::GRANT_TTL,
            release_spread: Duration::from_secs(10),
            release_deadline: Duration::from_secs(60),
            members_max: protocol::limits::SESSIONS_MAX,
        }
    }
}

/// The groups whose home is one shard, with their members and permits.
pub(crate) struct Home {
    outputs: VecDeque<HomeOutput>,
}

impl Home {
    pub(crate) fn new(_shard: ShardId, _shards: u16, _config: HomeConfig) -> Self {
        Self {
            outputs: VecDeque::new(),
        }
    }

    pub(crate) fn handle_request(&mut self, _now: Instant, _request: Request) {}

    pub(crate) fn handle_session_up(
        &mut self,
        _now: Instant,
        _location: Location,
        _up: Box<SessionUp>,
        _session_count: u64,
    ) {
    }

    pub(crate) fn handle_session_down(
        &mut self,
        _now: Instant,
        _location: Location,
        _agent: AgentId,
        _reason: DownReason,
    ) {
    }

    pub(crate) fn handle_operation(
        &mut self,
        _now: Instant,
        _location: Location,
        _agent: AgentId,
        _event: OperationEvent,
    ) {
    }

    pub(crate) fn handle_timeout(&mut self, _now: Instant) {}

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    pub(crate) fn poll_output(&mut self) -> Option<HomeOutput> {
        self.outputs.pop_front()
    }
}
