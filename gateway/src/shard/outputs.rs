//! What connections ask their shard to do.

use std::net::SocketAddr;
use std::time::Instant;

use protocol::close::CloseCode;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest};
use protocol::ids::AgentId;
use protocol::link::{DownReason, Event, SecurityEvent, SessionUp, Target};

use super::Worker;
use super::message::ShardMessage;
use crate::endpoint::Stage;
use crate::group::{Location, OperationEvent};
use crate::session::{Output, security_event};
use crate::telemetry::{Counter, Measure};

impl Worker {
    /// Does what a connection asked for, in order, and keeps the list's memory.
    pub(super) fn handle_outputs(&mut self, now: Instant, index: u32, mut outputs: Vec<Output>) {
        for output in outputs.drain(..) {
            match output {
                Output::Up { up, session_count } => self.session_up(now, index, up, session_count),
                Output::Operation(event) => self.operation(now, index, event),
                Output::Ask(request) => self.ask(now, index, request),
                Output::Answered {
                    since,
                    service_time,
                } => {
                    self.recorder
                        .answered(now.saturating_duration_since(since), service_time);
                }
                Output::Security(kind) => self.report_peer(now, kind, index),
                Output::Close(code, detail) => self.close(now, index, code, &detail),
                Output::Lost(reason) => self.lost(now, index, reason),
            }
        }
        self.outputs = outputs;
    }

    /// Counts the frames of a session since the last call.
    pub(super) fn count_frames(&mut self, index: u32) {
        if let Some(Stage::Session(session)) = self.endpoint.get(index).map(|peer| &mut peer.stage)
        {
            let frames = session.take_frames();
            self.recorder
                .count_many(Counter::FramesIn, frames.heard.into());
            self.recorder
                .count_many(Counter::FramesOut, frames.said.into());
        }
    }

    fn session_up(&mut self, now: Instant, index: u32, up: Box<SessionUp>, session_count: u64) {
        self.endpoint.settle(index);
        let location = Location {
            shard: self.shard,
            index,
            session: up.session,
        };
        if let Some(peer) = self.endpoint.get(index) {
            peer.up = Some((up.target, up.session));
            let time = now.saturating_duration_since(peer.since);
            self.recorder.measure(Measure::Handshake, time);
        }
        self.recorder.count(Counter::HandshakesCompleted);
        self.recorder.count(Counter::SessionsOpened);
        self.sessions += 1;
        self.at_home += usize::from(up.at_home);
        tracing::debug!(agent = %up.target.agent, session = %up.session, remote = %up.remote, "session up");
        let home = up.target.slot.home(self.shards);
        if home == self.shard {
            self.home
                .handle_session_up(now, location, up, session_count);
        } else {
            let message = ShardMessage::SessionUp {
                location,
                up,
                session_count,
            };
            self.outbound.send(home, message);
        }
    }

    fn operation(&mut self, now: Instant, index: u32, event: OperationEvent) {
        let Some((location, target)) = self.whereabouts(index) else {
            return;
        };
        if let Some(counter) = counter_of(&event) {
            self.recorder.count(counter);
        }
        let (home, agent) = (target.slot.home(self.shards), target.agent);
        if home == self.shard {
            self.home.handle_operation(now, location, agent, event);
        } else {
            self.outbound.send(
                home,
                ShardMessage::Operation {
                    location,
                    agent,
                    event,
                },
            );
        }
    }

    /// Tells the home shard that a session is down, if it was told that it is up.
    pub(super) fn end_session(&mut self, now: Instant, index: u32, reason: DownReason) {
        let Some((location, target)) = self.whereabouts(index) else {
            return;
        };
        if let Some(peer) = self.endpoint.get(index) {
            peer.up = None;
        }
        self.recorder.count(Counter::SessionsClosed);
        self.sessions -= 1;
        self.at_home -= usize::from(target.slot.home(self.shards) == self.shard);
        let (home, agent) = (target.slot.home(self.shards), target.agent);
        tracing::debug!(%agent, session = %location.session, ?reason, "session down");
        if home == self.shard {
            self.home.handle_session_down(now, location, agent, reason);
        } else {
            self.outbound.send(
                home,
                ShardMessage::SessionDown {
                    location,
                    agent,
                    reason,
                },
            );
        }
    }

    fn whereabouts(&mut self, index: u32) -> Option<(Location, Target)> {
        let (target, session) = self.endpoint.get(index)?.up?;
        Some((
            Location {
                shard: self.shard,
                index,
                session,
            },
            target,
        ))
    }

    fn close(&mut self, now: Instant, index: u32, code: CloseCode, detail: &str) {
        if let Some(kind) = security_event(code) {
            self.report_peer(now, kind, index);
        }
        let Some(peer) = self.endpoint.get(index) else {
            return;
        };
        let (remote, agent) = (peer.connection.remote_address(), peer.agent());
        if self.log.take(now) {
            tracing::info!(%remote, ?agent, %code, detail, "closing a connection");
        }
        self.fail_if_half_open(index);
        let Some(peer) = self.endpoint.get(index) else {
            return;
        };
        peer.close(now, code, detail);
        self.release(index);
        self.end_session(now, index, DownReason::ClosedHere(code));
        self.endpoint.mark_dirty(index);
    }

    fn lost(&mut self, now: Instant, index: u32, reason: DownReason) {
        self.fail_if_half_open(index);
        if let Some(peer) = self.endpoint.get(index) {
            peer.stage = Stage::Over;
        }
        self.release(index);
        self.end_session(now, index, reason);
    }

    /// Takes an enrolment's request to the control plane, or refuses it for lack of room.
    fn ask(&mut self, now: Instant, index: u32, request: Box<EnrolRequest>) {
        self.endpoint.settle(index);
        let pending = self.enrolments_pending;
        let Some(peer) = self.endpoint.get(index) else {
            return;
        };
        peer.asked = true;
        let (ticket, remote) = (peer.ticket, peer.connection.remote_address());
        self.recorder.count(Counter::HandshakesCompleted);
        let allowed =
            self.drain.is_none() && self.uplink.has_room() && self.endpoint.may_enrol(now, pending);
        self.enrolments_pending += 1;
        if allowed {
            self.send_up(Event::Enrol {
                shard: self.shard,
                ticket,
                remote,
                request,
            });
        } else {
            self.report(now, SecurityEvent::LimitExceeded, None, remote);
            self.enrol_reply(now, ticket, &EnrolReply::Refused(EnrolRefusal::Busy));
        }
    }

    fn fail_if_half_open(&mut self, index: u32) {
        if self
            .endpoint
            .get(index)
            .is_some_and(|peer| peer.half_open_until.is_some())
        {
            self.recorder.count(Counter::HandshakesFailed);
        }
    }

    /// A connection no longer counts where there are few places.
    pub(super) fn release(&mut self, index: u32) {
        self.endpoint.settle(index);
        self.endpoint.begin_farewell(index);
        if let Some(peer) = self.endpoint.get(index)
            && std::mem::take(&mut peer.asked)
        {
            self.enrolments_pending -= 1;
        }
    }

    pub(super) fn report_peer(&mut self, now: Instant, kind: SecurityEvent, index: u32) {
        if let Some(peer) = self.endpoint.get(index) {
            let (agent, remote) = (peer.agent(), peer.connection.remote_address());
            self.report(now, kind, agent, remote);
        }
    }

    /// QUIC's endpoint panicked on somebody's bytes: they are dropped, and everybody else goes on.
    pub(super) fn report_panics(&mut self, now: Instant) {
        for remote in self.endpoint.take_panics() {
            self.recorder.count(Counter::Panics);
            self.report(now, SecurityEvent::HandlerPanicked, None, remote);
        }
    }

    /// Tells people of something that was refused. These words alone may be dropped when there is
    /// no room: they are counted, and a flood of them must not stop the work.
    fn report(
        &mut self,
        now: Instant,
        kind: SecurityEvent,
        agent: Option<AgentId>,
        remote: SocketAddr,
    ) {
        self.recorder.security(kind);
        if self.log.take(now) {
            tracing::warn!(?kind, ?agent, %remote, "refused");
        }
        self.uplink.push(Event::Security {
            kind,
            agent,
            remote,
        });
    }
}

fn counter_of(event: &OperationEvent) -> Option<Counter> {
    Some(match event {
        OperationEvent::Accepted { .. } => Counter::CommandsAccepted,
        OperationEvent::Finished { .. } => Counter::CommandsFinished,
        OperationEvent::Refused { .. } => Counter::CommandsRefused,
        OperationEvent::NotDelivered { .. } => Counter::CommandsNotDelivered,
        OperationEvent::Uncertain { .. } => Counter::CommandsUncertain,
        OperationEvent::Progress { .. }
        | OperationEvent::Report { .. }
        | OperationEvent::Capacity(_) => return None,
    })
}
