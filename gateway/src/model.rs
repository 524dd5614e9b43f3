//! A home shard's rules without a shard: for simulators outside of this crate, which drive the very code
//! that the gateway runs on a clock of their own.
//!
//! ```text
//!   simulator ── requests, sessions, ends ──▶ HomeModel ──▶ events, dispatches
//! ```

use std::time::Instant;

use protocol::ids::{AgentId, Fence, OperationId, SessionId, ShardId};
use protocol::link::{DownReason, Event, Request, SessionUp};
use protocol::operation::Outcome;

use crate::group::{Home, HomeConfig, HomeOutput, Location, OperationEvent, SessionCommand};

/// What a home says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// To the control plane.
    Event(Box<Event>),
    /// To the agent of a session: do this.
    Dispatched {
        /// Which session.
        session: SessionId,
        /// Which operation.
        operation: OperationId,
        /// Under which fence.
        fence: Fence,
    },
}

/// One home shard. Agents' limits are their capacities.
pub struct HomeModel(Home);

impl HomeModel {
    /// The home of the groups whose slots lead to `shard` of `shards`; `incarnation` is higher than that
    /// of any before.
    pub fn new(now: Instant, shard: ShardId, shards: u16, incarnation: u64) -> Self {
        let config = HomeConfig {
            adaptive: false,
            incarnation,
            ..HomeConfig::default()
        };
        Self(Home::new(now, shard, shards, config))
    }

    /// Takes a request of the control plane.
    pub fn handle_request(&mut self, now: Instant, request: Request) {
        self.0.handle_request(now, request);
    }

    /// An agent's session is up; a later one has a higher number.
    pub fn handle_session_up(&mut self, now: Instant, up: SessionUp) {
        let count = up.session.0;
        let location = location(up.session);
        self.0.handle_session_up(now, location, Box::new(up), count);
    }

    /// An agent's session is gone.
    pub fn handle_session_down(&mut self, now: Instant, agent: AgentId, session: SessionId) {
        let reason = DownReason::TimedOut;
        self.0
            .handle_session_down(now, location(session), agent, reason);
    }

    /// An agent says that an operation has ended.
    pub fn handle_finished(
        &mut self,
        now: Instant,
        (agent, session): (AgentId, SessionId),
        (operation, fence): (OperationId, Fence),
        outcome: Outcome,
    ) {
        let finished = OperationEvent::Finished {
            operation,
            fence,
            outcome,
        };
        self.0
            .handle_operation(now, location(session), agent, finished);
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.0.handle_timeout(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.0.poll_timeout()
    }

    /// The next word, in order; call until `None` after everything.
    pub fn poll(&mut self) -> Option<Said> {
        loop {
            match self.0.poll_output()? {
                HomeOutput::Event(event) => return Some(Said::Event(Box::new(event))),
                HomeOutput::ToSession(to, SessionCommand::Dispatch { command, .. }) => {
                    return Some(Said::Dispatched {
                        session: to.session,
                        operation: command.operation,
                        fence: command.fence,
                    });
                }
                HomeOutput::ToSession(..) => {}
            }
        }
    }
}

fn location(session: SessionId) -> Location {
    Location {
        shard: ShardId(0),
        index: 0,
        session,
    }
}
