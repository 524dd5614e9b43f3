//! What the control plane and the other shards ask a shard to do.

use std::time::Instant;

use protocol::close::CloseCode;
use protocol::enrol::EnrolReply;
use protocol::ids::AgentId;
use protocol::link::Request;

use super::message::ShardMessage;
use super::{WORDS_PER_TURN, Worker};
use crate::endpoint::{Panicked, Stage};
use crate::group::{Admission, SessionCommand};
use crate::telemetry::Measure;

impl Worker {
    /// Takes words from the mailbox, while what follows from them has somewhere to go.
    pub(super) fn take_words(&mut self, now: Instant) {
        if !self.uplink.has_room() {
            self.held_back = true;
            return;
        }
        let mut words = std::mem::take(&mut self.words);
        words.extend(self.mailbox.drain(WORDS_PER_TURN));
        for word in words.drain(..) {
            self.handle_word(now, word);
            self.pump_home(now);
        }
        self.words = words;
    }

    fn handle_word(&mut self, now: Instant, word: ShardMessage) {
        match word {
            ShardMessage::Request(request, sent) => {
                // A forget waits for company: that is no figure of how busy the shard is.
                if !matches!(*request, Request::Forget { .. }) {
                    self.recorder
                        .measure(Measure::Mailbox, now.saturating_duration_since(sent));
                }
                self.handle_request(now, *request);
            }
            ShardMessage::Open => self.endpoint.open(),
            ShardMessage::SessionUp {
                location,
                up,
                session_count,
            } => {
                self.home
                    .handle_session_up(now, location, up, session_count);
            }
            ShardMessage::SessionDown {
                location,
                agent,
                reason,
            } => {
                self.home.handle_session_down(now, location, agent, reason);
            }
            ShardMessage::Operation {
                location,
                agent,
                event,
            } => {
                self.outbound.landed(&event);
                self.home.handle_operation(now, location, agent, event);
            }
            ShardMessage::ToSession(location, command) => self.deliver(now, location, command),
        }
    }

    fn handle_request(&mut self, now: Instant, request: Request) {
        let unpinned = self.directory.unpins(&request);
        if let Err(full) = self.directory.handle_request(&request) {
            tracing::error!(shard = %self.shard, %full, "the directory is full");
        }
        match &request {
            Request::RevokeAgent { agent } => self.revoke(now, *agent),
            Request::EnrolReply { ticket, reply, .. } => self.enrol_reply(now, *ticket, reply),
            Request::Drain {
                addresses,
                spread,
                deadline,
            } => {
                self.begin_drain(now, addresses, *spread, *deadline);
            }
            _ => {}
        }
        self.home.handle_request(now, request);
        if let Some(agent) = unpinned {
            self.close_unpinned(now, agent);
        }
    }

    /// Closes every connection of an agent here, also one that has not said Hello yet.
    fn revoke(&mut self, now: Instant, agent: AgentId) {
        for index in self.connections_of(agent) {
            self.command(now, index, SessionCommand::Close(CloseCode::Revoked));
        }
    }

    /// Closes what an agent has here on keys that no longer open the door: whoever lost a key must
    /// not keep the session that was made with it.
    fn close_unpinned(&mut self, now: Instant, agent: AgentId) {
        for index in self.connections_of(agent) {
            let key = self.endpoint.get(index).and_then(|peer| peer.key());
            if key.is_some_and(|key| self.directory.admit(agent, &key) == Admission::NotPinned) {
                self.command(now, index, SessionCommand::Close(CloseCode::KeyNotPinned));
            }
        }
    }

    /// A look at every connection: for what is rare.
    fn connections_of(&mut self, agent: AgentId) -> Vec<u32> {
        let mut all: Vec<u32> = self.endpoint.indices().collect();
        all.retain(|index| self.endpoint.get(*index).and_then(|peer| peer.agent()) == Some(agent));
        all
    }

    /// Answers an enrolment that still waits.
    pub(super) fn enrol_reply(&mut self, now: Instant, ticket: u64, reply: &EnrolReply) {
        let index = u32::try_from(ticket & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let answered = self.endpoint.attempt(index, |peer| match &mut peer.stage {
            Stage::Enrolment(enrolment) if enrolment.ticket() == ticket => {
                enrolment.handle_reply(reply, &mut peer.connection);
            }
            _ => {}
        });
        if matches!(answered, Some(Err(Panicked))) {
            self.bury(now, index);
        }
        self.endpoint.mark_dirty(index);
    }
}
