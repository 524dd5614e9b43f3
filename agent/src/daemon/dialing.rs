//! The one connection that is planned, being made, or waiting for its Welcome.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use quinn::{Connection, RecvStream, SendStream};

use super::Agent;
use crate::connection::dial;
use crate::reconnect::around;
use crate::session::Link;
use crate::transport::{self, DialError};

/// A connection attempt's result.
pub(super) struct Dialed {
    pub(super) address: String,
    pub(super) began: Instant,
    pub(super) result: Result<(Connection, SendStream, RecvStream), DialError>,
}

#[derive(Default)]
pub(super) struct Dialing {
    step: Step,
}

#[derive(Default)]
enum Step {
    /// Nothing: a session stands.
    #[default]
    Idle,
    Planned {
        at: Instant,
        address: String,
    },
    Running(BoxFuture<'static, Dialed>),
    /// Connected; the Welcome is due.
    Greeting {
        link: Link,
        due: Instant,
        began: Instant,
    },
}

impl Dialing {
    /// Whether a session may come of it.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.step, Step::Idle)
    }

    /// Plans an attempt, in the place of an earlier plan.
    pub(super) fn plan(&mut self, at: Instant, address: String) {
        if !matches!(self.step, Step::Running(_) | Step::Greeting { .. }) {
            self.step = Step::Planned { at, address };
        }
    }

    /// The address that is due to be dialled.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        match &mut self.step {
            Step::Planned { at, address } if *at <= now => Some(std::mem::take(address)),
            _ => None,
        }
    }

    /// Begins an attempt.
    pub(super) fn begin(&mut self, now: Instant, agent: &Agent, address: String, random: f64) {
        let config = transport::session_config(
            Arc::clone(&agent.tls),
            agent.parts.trust.tokens(),
            agent.slot,
            around(agent.keep_alive, random).max(Duration::from_secs(1)),
        );
        let attempt = dial(agent.parts.endpoint.clone(), address.clone(), config);
        self.step = Step::Running(Box::pin(async move {
            Dialed {
                address,
                began: now,
                result: attempt.await,
            }
        }));
    }

    /// The attempt's result; forever without an attempt.
    pub(super) async fn next(&mut self) -> Dialed {
        let Step::Running(attempt) = &mut self.step else {
            return std::future::pending().await;
        };
        let dialed = attempt.await;
        self.step = Step::Idle;
        dialed
    }

    /// The attempt became a connection.
    pub(super) fn await_welcome(&mut self, link: Link, due: Instant, began: Instant) {
        self.step = Step::Greeting { link, due, began };
    }

    /// The Welcome of a link came. Returns when its attempt began.
    pub(super) fn welcomed(&mut self, welcomed: Link) -> Option<Instant> {
        match self.step {
            Step::Greeting { link, began, .. } if link == welcomed => {
                self.step = Step::Idle;
                Some(began)
            }
            _ => None,
        }
    }

    /// A link is gone.
    pub(super) fn forget(&mut self, gone: Link) {
        if matches!(self.step, Step::Greeting { link, .. } if link == gone) {
            self.step = Step::Idle;
        }
    }

    /// The link whose Welcome is overdue.
    pub(super) fn overdue_welcome(&self, now: Instant) -> Option<Link> {
        match self.step {
            Step::Greeting { link, due, .. } if due <= now => Some(link),
            _ => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.step {
            Step::Planned { at, .. } => Some(at),
            Step::Greeting { due, .. } => Some(due),
            Step::Idle | Step::Running(_) => None,
        }
    }
}
