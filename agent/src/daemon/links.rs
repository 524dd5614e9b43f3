//! Connections of a running agent: made, welcomed, moved, lost.

use std::time::{Duration, Instant};

use protocol::agent::Welcome;
use protocol::close::{CloseCode, Retry};
use protocol::limits;

use super::dialing::Dialed;
use super::{AgentError, Daemon, SessionEnd, WELCOME_TIMEOUT};
use crate::clock;
use crate::connection::Wire;
use crate::reconnect::{Down, Next};
use crate::session::Link;
use crate::transport::DialError;

impl Daemon {
    /// Does what the policy says. `end`: the session whose loss it answers.
    pub(super) fn connect_next(
        &mut self,
        next: Next,
        end: Option<SessionEnd>,
    ) -> Result<(), AgentError> {
        match (next, end) {
            (Next::Connect { after, address }, _) => {
                self.dialing.plan(clock::now() + after, address);
                Ok(())
            }
            (Next::Never, Some(end)) => Err(AgentError::Superseded(end)),
            (Next::Never, None) => Err(AgentError::NoServer),
        }
    }

    pub(super) fn begin_dial(&mut self, now: Instant) {
        if self.stop_at.is_none()
            && let Some(address) = self.dialing.due(now)
        {
            let random = rand::random();
            self.dialing.begin(now, &self.agent, address, random);
        }
    }

    pub(super) fn on_dialed(&mut self, dialed: Dialed) -> Result<(), AgentError> {
        match dialed.result {
            Ok(streams) => {
                let link = Link(self.next_link);
                self.next_link = self.next_link.wrapping_add(1);
                let events = self.lane_sender.clone();
                self.wires
                    .push(Wire::new(link, dialed.address, streams, events));
                self.dialing
                    .await_welcome(link, clock::now() + WELCOME_TIMEOUT, dialed.began);
                self.session.handle_connected(link);
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::info!(agent = %self.agent.id, address = dialed.address, %reason,
                    "could not connect");
                self.agent
                    .parts
                    .observer
                    .connect_failed(self.agent.id, &reason);
                let end = match &error {
                    DialError::Broken(error) => SessionEnd::of(error),
                    _ => SessionEnd::Failed(reason),
                };
                self.plan_after(end, None)
            }
        }
    }

    pub(super) fn on_up(&mut self, link: Link, welcome: &Welcome) {
        let now = clock::now();
        let agent = self.agent.id;
        let took = self
            .dialing
            .welcomed(link)
            .map_or(Duration::ZERO, |began| now - began);
        self.agent.slot = welcome.slot;
        if !welcome.keep_alive.is_zero() {
            // Counts from the next connection on: quinn fixes it when a connection begins.
            self.agent.keep_alive = welcome.keep_alive.min(limits::IDLE_TIMEOUT / 2);
        }
        let Some(wire) = self.wires.iter().find(|wire| wire.link == link) else {
            return;
        };
        tracing::info!(%agent, session = %welcome.session, gateway = wire.address, ?took, "session up");
        let (spread, addresses) = (welcome.reconnect_spread, &welcome.addresses);
        self.reconnect
            .handle_up(now, &wire.address, spread, addresses);
        self.agent.parts.observer.session_up(agent, welcome, took);
        // Make before break: the new session stands, the old one can go.
        let olds: Vec<Link> = self
            .wires
            .iter()
            .map(|w| w.link)
            .filter(|l| *l != link)
            .collect();
        for old in olds {
            self.remove_wire(old, &SessionEnd::ClosedHere(CloseCode::Normal));
        }
    }

    /// Takes a connection out.
    pub(super) fn remove_wire(&mut self, link: Link, end: &SessionEnd) {
        let Some(at) = self.wires.iter().position(|wire| wire.link == link) else {
            return;
        };
        let wire = self.wires.remove(at);
        if let SessionEnd::ClosedHere(code) = end {
            wire.close(*code);
        }
        self.dialing.forget(link);
        let (observer, agent) = (&self.agent.parts.observer, self.agent.id);
        if self.session.is_up(link) {
            tracing::info!(%agent, gateway = wire.address, %end, "session down");
            observer.session_down(agent, end);
        } else {
            tracing::info!(%agent, gateway = wire.address, %end, "no session");
            observer.connect_failed(agent, &end.to_string());
        }
        self.session.handle_disconnected(link);
    }

    /// A connection is over: plan the next one, unless another stands or is on its way.
    pub(super) fn drop_wire(
        &mut self,
        link: Link,
        end: SessionEnd,
        down: Option<Down>,
    ) -> Result<(), AgentError> {
        let newest = self.wires.last().is_some_and(|wire| wire.link == link);
        if !self.wires.iter().any(|wire| wire.link == link) {
            return Ok(());
        }
        self.remove_wire(link, &end);
        // The old session of a move may be superseded by the new one: that is as it should be.
        if !newest || self.dialing.is_busy() {
            return Ok(());
        }
        self.plan_after(end, down)
    }

    pub(super) fn plan_after(
        &mut self,
        end: SessionEnd,
        down: Option<Down>,
    ) -> Result<(), AgentError> {
        if self.stop_at.is_some() {
            return Ok(());
        }
        if end.retry() == Retry::Slowly {
            let agent = self.agent.id;
            if end == SessionEnd::ClosedByGateway(Some(CloseCode::Revoked)) {
                tracing::warn!(%agent, "this agent was revoked and gets no work any more; to take the \
                    machine in again, join it as a new agent (`drover agent join --force` with a token \
                    from `drover tokens create`) and restart this process");
            } else {
                tracing::warn!(%agent, %end, "the agent tries again in some minutes");
            }
        }
        let down = down.unwrap_or(match end {
            SessionEnd::TimedOut => Down::Silent,
            _ => Down::Lost(end.retry()),
        });
        let next = self
            .reconnect
            .handle_down(clock::now(), down, rand::random());
        self.connect_next(next, Some(end))
    }
}
