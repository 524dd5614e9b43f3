//! Words between shards, and from the control plane to a shard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use protocol::ids::{AgentId, ShardId};
use protocol::link::{DownReason, Request, SessionUp};

use crate::group::{Location, OperationEvent, SessionCommand};
use crate::runtime::mailbox::Sender;

/// What a shard's mailbox carries.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    /// From the control plane, and when it was sent.
    Request(Box<Request>, Instant),
    /// From the control plane: it has said who may connect; let newcomers in.
    Open,
    /// To the home shard: a session of one of its agents is up elsewhere.
    SessionUp {
        /// Where it is.
        location: Location,
        /// Its facts.
        up: Box<SessionUp>,
        /// From the Hello.
        session_count: u64,
    },
    /// To the home shard: that session is down.
    SessionDown {
        /// Where it was.
        location: Location,
        /// Whose it was.
        agent: AgentId,
        /// Why.
        reason: DownReason,
    },
    /// To the home shard: words about an operation.
    Operation {
        /// Where the session is.
        location: Location,
        /// Whose it is.
        agent: AgentId,
        /// The words.
        event: OperationEvent,
    },
    /// From the home shard, to a session.
    ToSession(Location, SessionCommand),
}

/// Mailboxes of the other shards, with what did not fit yet. Nothing is lost: while something
/// waits here the shard reads no sessions, so that no more than what one turn made can wait.
pub(crate) struct Outbound {
    mailboxes: Arc<[Sender<ShardMessage>]>,
    waiting: VecDeque<(ShardId, ShardMessage)>,
}

impl Outbound {
    /// To the shards with these mailboxes.
    pub(crate) fn new(mailboxes: Arc<[Sender<ShardMessage>]>) -> Self {
        Self {
            mailboxes,
            waiting: VecDeque::new(),
        }
    }

    /// Sends a word, now or as soon as there is room, in order.
    pub(crate) fn send(&mut self, to: ShardId, message: ShardMessage) {
        self.waiting.push_back((to, message));
        if self.waiting.len() == 1 {
            self.flush();
        }
    }

    /// Sends what waits, until a mailbox is full.
    pub(crate) fn flush(&mut self) {
        while let Some((to, message)) = self.waiting.pop_front() {
            let Some(mailbox) = self.mailboxes.get(usize::from(to.0)) else {
                continue;
            };
            if let Err(full) = mailbox.try_send(message) {
                self.waiting.push_front((to, full.0));
                return;
            }
        }
    }

    /// Whether something waits.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.waiting.is_empty()
    }
}
