//! Words between shards, and from the control plane to a shard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use protocol::ids::{AgentId, ShardId};
use protocol::limits::MAILBOX_BYTES_MAX;
use protocol::link::{DownReason, Request, SessionUp};
use protocol::operation::OperationState;

use crate::group::{Location, OperationEvent, SessionCommand};
use crate::runtime::mailbox::Sender;
use crate::uplink::{outcome_bytes, progress_bytes};

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
/// waits here, or too much is on its way to a shard, this one reads no sessions, so that no more
/// than what one turn made can wait.
pub(crate) struct Outbound {
    own: ShardId,
    mailboxes: Arc<[Sender<ShardMessage>]>,
    waiting: VecDeque<(ShardId, ShardMessage)>,
    /// Bytes about operations that were sent to each shard and not handled there yet.
    afloat: Arc<[AtomicUsize]>,
}

impl Outbound {
    /// From shard `own` to the shards with these mailboxes. All shards share `afloat`.
    pub(crate) fn new(
        own: ShardId,
        mailboxes: Arc<[Sender<ShardMessage>]>,
        afloat: Arc<[AtomicUsize]>,
    ) -> Self {
        Self {
            own,
            mailboxes,
            waiting: VecDeque::new(),
            afloat,
        }
    }

    /// Sends a word, now or as soon as there is room, in order.
    pub(crate) fn send(&mut self, to: ShardId, message: ShardMessage) {
        if let (ShardMessage::Operation { event, .. }, Some(afloat)) = (&message, self.to(to)) {
            afloat.fetch_add(weight(event), Ordering::Relaxed);
        }
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

    /// Words about an operation that another shard sent have been taken out of our mailbox.
    pub(crate) fn landed(&self, event: &OperationEvent) {
        if let Some(afloat) = self.to(self.own) {
            afloat.fetch_sub(weight(event), Ordering::Relaxed);
        }
    }

    /// Whether something waits, or so much is on its way to a shard that it should.
    pub(crate) fn is_stuck(&self) -> bool {
        let heavy = |afloat: &AtomicUsize| afloat.load(Ordering::Relaxed) >= MAILBOX_BYTES_MAX;
        let others = (0u16..)
            .zip(&*self.afloat)
            .filter(|(shard, _)| *shard != self.own.0);
        !self.waiting.is_empty() || others.map(|(_, afloat)| afloat).any(heavy)
    }

    fn to(&self, shard: ShardId) -> Option<&AtomicUsize> {
        self.afloat.get(usize::from(shard.0))
    }
}

/// Bytes that an agent made an event hold, besides the event itself.
fn weight(event: &OperationEvent) -> usize {
    match event {
        OperationEvent::Progress { progress, .. } => progress_bytes(progress),
        OperationEvent::Finished { outcome, .. } => outcome_bytes(outcome),
        OperationEvent::Report {
            state: OperationState::Finished(outcome),
            ..
        } => outcome_bytes(outcome),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::ids::{Fence, OperationId, ProcessId, SessionId};
    use protocol::operation::{Channel, Progress};

    use super::*;
    use crate::runtime::mailbox::{Receiver, Waker, channel};

    fn pair(capacity: usize) -> (Outbound, Outbound, Receiver<ShardMessage>) {
        let (own, _) = channel(capacity, Waker::new().unwrap());
        let (other, receiver) = channel(capacity, Waker::new().unwrap());
        let mailboxes: Arc<[_]> = Arc::from([own, other]);
        let afloat: Arc<[_]> = Arc::from([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let outbound = |shard| Outbound::new(shard, Arc::clone(&mailboxes), Arc::clone(&afloat));
        (outbound(ShardId(0)), outbound(ShardId(1)), receiver)
    }

    fn progress(sequence: u32, bytes: usize) -> OperationEvent {
        OperationEvent::Progress {
            operation: OperationId::new(ProcessId::from_bytes([1; 16]), 0),
            fence: Fence(1),
            progress: Progress {
                sequence,
                percent: None,
                message: String::new(),
                channel: Channel::Stdout,
                output: Bytes::from(vec![0; bytes]),
            },
        }
    }

    fn word(event: OperationEvent) -> ShardMessage {
        let location = Location {
            shard: ShardId(0),
            index: 0,
            session: SessionId(1),
        };
        ShardMessage::Operation {
            location,
            agent: AgentId::from_bytes([1; 16]),
            event,
        }
    }

    fn sequences(receiver: &mut Receiver<ShardMessage>) -> Vec<u32> {
        let words = receiver.drain(100).map(|word| match word {
            ShardMessage::Operation {
                event: OperationEvent::Progress { progress, .. },
                ..
            } => progress.sequence,
            other => panic!("{other:?}"),
        });
        words.collect()
    }

    #[test]
    fn what_does_not_fit_waits_and_keeps_its_order() {
        let (mut outbound, _, mut receiver) = pair(2);
        (0..5).for_each(|n| outbound.send(ShardId(1), word(progress(n, 1))));
        assert!(outbound.is_stuck());
        let mut seen = Vec::new();
        while seen.len() < 5 {
            seen.extend(sequences(&mut receiver));
            outbound.flush();
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(!outbound.is_stuck());
    }

    #[test]
    fn too_many_bytes_on_their_way_count_as_full_until_they_land() {
        let (mut outbound, there, _receiver) = pair(100);
        let event = progress(0, MAILBOX_BYTES_MAX);
        outbound.send(ShardId(1), word(event.clone()));
        assert!(outbound.is_stuck());
        assert!(
            !there.is_stuck(),
            "what comes in does not stop what goes out"
        );
        there.landed(&event);
        assert!(!outbound.is_stuck());
    }
}
