//! Leaving in order: sessions are asked to go one after the other, newcomers are sent away at once,
//! and at the deadline what is left is closed.
//!
//! Where there is nowhere else to go, nobody is asked: agents would come straight back to a gateway
//! that refuses them, a handshake each for nothing. They are closed at the deadline, and come back
//! spread over Welcome's `reconnect_spread`.

use std::time::{Duration, Instant};

use protocol::close::CloseCode;

use super::Worker;
use crate::group::SessionCommand;

/// A drain in progress.
#[derive(Debug)]
pub(super) struct Drain {
    deadline: Option<Instant>,
}

impl Drain {
    /// When everything that is left is to be closed; `None` once that was done.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }
}

impl Worker {
    /// Begins to drain. A second request changes nothing: agents were told already.
    pub(super) fn begin_drain(
        &mut self,
        now: Instant,
        addresses: &[String],
        spread: Duration,
        deadline: Duration,
    ) {
        if self.drain.is_some() {
            return;
        }
        self.drain = Some(Drain {
            deadline: Some(now + deadline),
        });
        if addresses.is_empty() {
            return;
        }
        let sessions: Vec<u32> = self.endpoint.indices().collect();
        let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        for (place, index) in (0u32..).zip(sessions) {
            let command = SessionCommand::GoAway {
                addresses: addresses.to_vec(),
                delay: spread.checked_mul(place).unwrap_or(spread) / count,
                deadline,
            };
            self.command(now, index, command);
        }
    }

    pub(super) fn advance_drain(&mut self, now: Instant) {
        let due = self
            .drain
            .as_ref()
            .and_then(Drain::poll_timeout)
            .is_some_and(|at| at <= now);
        if due {
            self.drain = Some(Drain { deadline: None });
            self.close_all(now, CloseCode::Draining);
        }
    }
}
