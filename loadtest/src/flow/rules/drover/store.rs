//! The store: rows, who leased them, fences, and what is ready. Every call is one transaction.

use std::collections::VecDeque;

use super::super::super::events::Nanos;
use super::super::super::scenario::Scenario;
use super::{DroverWorld, Op};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    Leased {
        /// Server, and which life of it.
        server: (usize, u32),
        epoch: u64,
    },
    /// Its last attempt failed in passing, and the next one is not yet due.
    Backoff,
    Done,
}

struct Row {
    state: State,
    run: u32,
    /// Attempts at this process that have failed.
    failed: u32,
    fence: u64,
    sent_at: Nanos,
}

/// All rows.
pub(super) struct Store {
    rows: Vec<Row>,
    /// By host and flow.
    ready: Vec<Vec<VecDeque<usize>>>,
}

impl Store {
    pub(super) fn new(scenario: &Scenario, flows: usize) -> Self {
        let row = |_| Row {
            state: State::Ready,
            run: 0,
            failed: 0,
            fence: 0,
            sent_at: 0,
        };
        Self {
            rows: (0..scenario.outstanding).map(row).collect(),
            ready: vec![vec![VecDeque::new(); flows]; scenario.hosts],
        }
    }

    /// A row is ready; how many of its flow are now.
    pub(super) fn ready(&mut self, host: usize, flow: usize, place: usize) -> u32 {
        self.rows[place].state = State::Ready;
        self.ready[host][flow].push_back(place);
        self.count(host, flow)
    }

    pub(super) fn count(&self, host: usize, flow: usize) -> u32 {
        u32::try_from(self.ready[host][flow].len()).unwrap_or(u32::MAX)
    }

    /// Claims the next row of a flow, under a new fence.
    pub(super) fn claim(
        &mut self,
        world: &DroverWorld,
        host: usize,
        flow: usize,
        server: (usize, u32),
        epoch: u64,
    ) -> Option<(Op, u64)> {
        let place = self.ready[host][flow].pop_front()?;
        let row = &mut self.rows[place];
        row.fence += 1;
        row.state = State::Leased { server, epoch };
        row.sent_at = world.now;
        let op = Op {
            place: u32::try_from(place).unwrap_or(u32::MAX),
            run: row.run,
        };
        Some((op, row.fence))
    }

    /// Whether the row is claimed, under this fence and no later one.
    pub(super) fn is_claimed(&self, op: Op, fence: u64) -> bool {
        let row = &self.rows[op.place as usize];
        row.run == op.run && row.fence == fence && matches!(row.state, State::Leased { .. })
    }

    /// The operation ended under a fence; when its attempt was sent, if that is the last fence. Of
    /// an earlier one the result must not be taken: the agent would be told to forget it while
    /// another dispatch is on its way.
    pub(super) fn finish(&mut self, op: Op, fence: u64) -> Option<Nanos> {
        if !self.is_claimed(op, fence) {
            return None;
        }
        let row = &mut self.rows[op.place as usize];
        row.state = State::Done;
        Some(row.sent_at)
    }

    /// Another process takes the place.
    pub(super) fn renew(&mut self, place: usize) {
        let row = &mut self.rows[place];
        row.run += 1;
        row.failed = 0;
        row.fence = 0;
    }

    /// An attempt has failed in passing; how many of this process have. The next one is an operation of its own
    /// here: the agent's judge takes an operation that runs twice for a mistake.
    pub(super) fn failed(&mut self, place: usize) -> u32 {
        let row = &mut self.rows[place];
        row.state = State::Backoff;
        row.run += 1;
        row.failed += 1;
        row.fence = 0;
        row.failed
    }

    /// What a server sent under an earlier owner and knows no end of.
    pub(super) fn leased_before(&self, server: usize, epoch: u64) -> Vec<(Op, u64)> {
        let leased = self
            .rows
            .iter()
            .enumerate()
            .filter(|(_, row)| match row.state {
                State::Leased {
                    server: (holder, _),
                    epoch: sent,
                } => holder == server && sent < epoch,
                _ => false,
            });
        leased
            .map(|(place, row)| {
                let place = u32::try_from(place).unwrap_or(u32::MAX);
                (
                    Op {
                        place,
                        run: row.run,
                    },
                    row.fence,
                )
            })
            .collect()
    }

    /// Rows that a life of a server leased.
    pub(super) fn leased_by(&self, server: (usize, u32)) -> Vec<usize> {
        let rows = self.rows.iter().enumerate();
        let leased = rows.filter(|(_, row)| match row.state {
            State::Leased { server: holder, .. } => holder == server,
            _ => false,
        });
        leased.map(|(place, _)| place).collect()
    }

    pub(super) fn unfinished(&self) -> usize {
        let rows = self.rows.iter();
        rows.filter(|row| row.state != State::Done).count()
    }
}
