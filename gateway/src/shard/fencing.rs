//! A gateway under a lease: no command leaves once it has run out, however long ago it came in.
//!
//! ```text
//!   Dispatch ─▶ hub ─▶ mailbox ─▶ home ─▶ session ─▶ QUIC stream ─▶ fence: does it hold NOW? ─▶ packets
//!                        queued at the datapath: does it still? ◀── yes ──┤
//!                           no: all of it is lost, as in a network        └─ no: reset, NotDelivered(NotOwner)
//! ```
//!
//! The time of the turn is of no use here: the program may have stood still (SIGSTOP, a paused machine) after that was
//! read. So the lease is asked, and reads its clock, between the last write and the first packet of each connection
//! that has a command under way, and once before the packets of a turn are submitted. A gateway without a lease pays
//! nothing.

use std::time::Instant;

use super::Worker;
use crate::endpoint::Panicked;
use crate::runtime::Datapath;

impl Worker {
    /// When the lease has run out, every connection is looked at once: commands may wait there for the agent's credit,
    /// or to be sent again, until the lease holds anew and their epoch is another's.
    pub(super) fn follow_lease(&mut self, datapath: &mut impl Datapath) {
        let Some(lease) = &self.config.lease else {
            return;
        };
        let lapsed = !lease.holds();
        if std::mem::replace(&mut self.lapsed, lapsed) || !lapsed {
            return;
        }
        // What could not leave in an earlier turn, such as for a full socket.
        datapath.discard();
        let all: Vec<u32> = self.endpoint.indices().collect();
        for index in all {
            let peer = self.endpoint.get(index);
            if peer.is_some_and(|peer| peer.has_commands_under_way()) {
                self.endpoint.mark_dirty(index);
            }
        }
    }

    /// Right before the packets of a turn are submitted: if the lease ran out since the turn began, none leaves. QUIC
    /// takes them for lost, and sends them again as far as [`fence`](Self::fence) lets it.
    pub(super) fn discard_late(&self, datapath: &mut impl Datapath) {
        let lease = self.config.lease.as_ref().filter(|_| !self.lapsed);
        if lease.is_some_and(|lease| !lease.holds()) {
            datapath.discard();
        }
    }

    /// Lets what a connection has written leave, if it may.
    pub(super) fn fence(&mut self, now: Instant, index: u32) -> Result<(), Panicked> {
        let Some(lease) = self.config.lease.as_deref() else {
            return Ok(());
        };
        let mut outputs = std::mem::take(&mut self.outputs);
        let fenced = self
            .endpoint
            .attempt(index, |peer| peer.fence(lease, &mut outputs));
        if !outputs.is_empty() {
            // What is told waits at home for the next turn, which begins at once.
            self.endpoint.mark_dirty(index);
        }
        self.handle_outputs(now, index, outputs);
        fenced.unwrap_or(Ok(()))
    }
}
