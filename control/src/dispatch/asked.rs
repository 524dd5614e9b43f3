//! Questions to gateways about flow: who waits for which answer.
//!
//! ```text
//!   Engine::flow_of ─▶ ticket ─▶ AskFlow  ─▶ home shard ─▶ FlowTold
//!   Engine::use_of  ─▶ ticket ─▶ AskLimit ─▶ every shard ─▶ LimitTold, one from each
//! ```
//!
//! At most [`WAITING_MAX`] wait at once, and nobody longer than [`PATIENCE`] and a tick: an answer that is
//! lost is asked for again by whoever wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use protocol::flow::{AgentFlow, LimitUse};
use protocol::ids::ShardId;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::handle::FlowError;

/// Questions that may be open at once.
const WAITING_MAX: usize = 1024;
/// An answer takes a round-trip to a shard; without one for so long there is none.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) type FlowAnswer = oneshot::Sender<Result<AgentFlow, FlowError>>;
pub(super) type UseAnswer = oneshot::Sender<Result<LimitUse, FlowError>>;

enum Waiting {
    Flow(FlowAnswer),
    Use {
        heard: BTreeSet<ShardId>,
        sum: LimitUse,
        answer: UseAnswer,
    },
}

impl Waiting {
    fn fail(self, error: FlowError) {
        // A caller that has gone away no longer wants its answer.
        match self {
            Self::Flow(answer) => drop(answer.send(Err(error))),
            Self::Use { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

/// See the module.
pub(super) struct Asked {
    next: u64,
    waiting: BTreeMap<u64, (Instant, Waiting)>,
}

impl Asked {
    /// Of a process server. Several may hear each other's answers: their tickets differ.
    pub(super) fn new(worker: Uuid) -> Self {
        let (high, low) = worker.as_u64_pair();
        Self {
            next: high ^ low,
            waiting: BTreeMap::new(),
        }
    }

    /// The ticket of a question about an agent; nothing where too many wait: the caller is told.
    pub(super) fn flow(&mut self, now: Instant, answer: FlowAnswer) -> Option<u64> {
        self.add(now, Waiting::Flow(answer))
    }

    /// The ticket of a question about a shared limit.
    pub(super) fn used(&mut self, now: Instant, answer: UseAnswer) -> Option<u64> {
        let sum = LimitUse {
            limit: None,
            in_use: 0,
            waiting: 0,
        };
        let heard = BTreeSet::new();
        self.add(now, Waiting::Use { heard, sum, answer })
    }

    fn add(&mut self, now: Instant, waiting: Waiting) -> Option<u64> {
        if self.waiting.len() >= WAITING_MAX {
            waiting.fail(FlowError::Busy);
            return None;
        }
        let ticket = self.next;
        self.next = self.next.wrapping_add(1);
        self.waiting.insert(ticket, (now + PATIENCE, waiting));
        Some(ticket)
    }

    /// The answer about an agent. One that nobody waits for is dropped.
    pub(super) fn handle_flow(&mut self, ticket: u64, flow: Option<Box<AgentFlow>>) {
        if !matches!(self.waiting.get(&ticket), Some((_, Waiting::Flow(_)))) {
            return;
        }
        if let Some((_, Waiting::Flow(answer))) = self.waiting.remove(&ticket) {
            drop(answer.send(flow.map(|flow| *flow).ok_or(FlowError::NoSession)));
        }
    }

    /// One shard's answer about a limit, of `shards`.
    pub(super) fn handle_use(&mut self, ticket: u64, shard: ShardId, shards: u16, told: LimitUse) {
        let Some((_, Waiting::Use { heard, sum, .. })) = self.waiting.get_mut(&ticket) else {
            return;
        };
        if heard.insert(shard) {
            sum.limit = sum.limit.max(told.limit);
            sum.in_use = sum.in_use.saturating_add(told.in_use);
            sum.waiting = sum.waiting.saturating_add(told.waiting);
        }
        let whole = heard.len() >= usize::from(shards);
        if whole && let Some((_, Waiting::Use { sum, answer, .. })) = self.waiting.remove(&ticket) {
            drop(answer.send(Ok(sum)));
        }
    }

    /// Time passed: who has waited too long is told so.
    pub(super) fn handle_tick(&mut self, now: Instant) {
        let late = self.waiting.extract_if(.., |_, (until, _)| *until <= now);
        for (_, (_, waiting)) in late {
            waiting.fail(FlowError::Silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(limit: Option<u32>, in_use: u32) -> LimitUse {
        LimitUse {
            limit,
            in_use,
            waiting: 1,
        }
    }

    fn flow() -> AgentFlow {
        AgentFlow {
            capacity: 8,
            limit: 2,
            running: 2,
            granted: 0,
            lines: Vec::new(),
            decision: None,
        }
    }

    #[test]
    fn an_answer_goes_to_who_asked_and_once() {
        let mut asked = Asked::new(Uuid::from_u128(1));
        let now = crate::clock::monotonic();
        let (first, mut first_answer) = oneshot::channel();
        let (second, mut second_answer) = oneshot::channel();
        let first = asked.flow(now, first).unwrap();
        let second = asked.flow(now, second).unwrap();
        asked.handle_flow(second, None);
        assert_eq!(second_answer.try_recv().unwrap(), Err(FlowError::NoSession));
        assert!(first_answer.try_recv().is_err());
        // Nobody's, and one for a question of the other sort.
        asked.handle_flow(second, Some(Box::new(flow())));
        asked.handle_use(first, ShardId(0), 1, told(None, 0));
        asked.handle_flow(first, Some(Box::new(flow())));
        assert_eq!(first_answer.try_recv().unwrap(), Ok(flow()));
    }

    #[test]
    fn a_limit_is_known_when_every_shard_has_answered() {
        let mut asked = Asked::new(Uuid::from_u128(1));
        let (answer, mut answered) = oneshot::channel();
        let ticket = asked.used(crate::clock::monotonic(), answer).unwrap();
        asked.handle_use(ticket, ShardId(0), 2, told(None, 3));
        // The same one again does not count twice.
        asked.handle_use(ticket, ShardId(0), 2, told(None, 3));
        assert!(answered.try_recv().is_err());
        asked.handle_use(ticket, ShardId(1), 2, told(Some(9), 4));
        let sum = answered.try_recv().unwrap().unwrap();
        assert_eq!((sum.limit, sum.in_use, sum.waiting), (Some(9), 7, 2));
    }

    #[test]
    fn who_waits_too_long_is_told_and_the_table_has_an_end() {
        let mut asked = Asked::new(Uuid::from_u128(1));
        let now = crate::clock::monotonic();
        let mut answers: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let (answer, answered) = oneshot::channel();
                asked.flow(now, answer).unwrap();
                answered
            })
            .collect();
        let (answer, mut too_many) = oneshot::channel();
        assert_eq!(asked.used(now, answer), None);
        assert_eq!(too_many.try_recv().unwrap(), Err(FlowError::Busy));
        asked.handle_tick(now + PATIENCE / 2);
        assert!(answers[0].try_recv().is_err());
        asked.handle_tick(now + PATIENCE);
        for answer in &mut answers {
            assert_eq!(answer.try_recv().unwrap(), Err(FlowError::Silent));
        }
        let (answer, _answered) = oneshot::channel();
        assert!(asked.flow(now, answer).is_some(), "there is room again");
    }
}
