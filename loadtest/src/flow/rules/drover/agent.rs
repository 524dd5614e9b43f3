//! An agent: a journal that outlives sessions, fences, and the judge of what is over-issued.

use super::super::super::events::Nanos;
use super::{DroverWorld, FromAgent, Message, Op, SESSION_DELAY, Start, Terms};

/// A line of the journal.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) op: Op,
    pub(super) fence: u64,
    pub(super) server: usize,
    pub(super) running: bool,
    /// Seconds that it ran, once it ended.
    pub(super) service: f64,
    started_at: Nanos,
    terms: Terms,
}

impl Entry {
    fn ended(&self) -> FromAgent {
        FromAgent::Ended {
            op: self.op,
            fence: self.fence,
            service: self.service,
        }
    }
}

pub(super) struct Agent {
    linked: bool,
    session: u32,
    /// The highest epoch that it has seen.
    epoch: u64,
    journal: Vec<Entry>,
    /// The last run of each place that it started, and one: nothing runs twice.
    started: Vec<u32>,
}

impl Agent {
    pub(super) fn new() -> Self {
        Self {
            linked: false,
            session: 0,
            epoch: 0,
            journal: Vec::new(),
            started: Vec::new(),
        }
    }

    pub(super) fn session(&self) -> Option<u32> {
        self.linked.then_some(self.session)
    }

    pub(super) fn journal(&self) -> &[Entry] {
        &self.journal
    }

    /// A session begins; its number.
    pub(super) fn connect(&mut self, epoch: u64) -> u32 {
        self.linked = true;
        self.session += 1;
        self.epoch = self.epoch.max(epoch);
        self.session
    }

    /// The session ends; which one it was.
    pub(super) fn disconnect(&mut self) -> u32 {
        self.linked = false;
        self.session
    }

    pub(super) fn handle_start(
        &mut self,
        world: &mut DroverWorld,
        host: usize,
        session: u32,
        start: &Start,
        owner: u64,
    ) {
        if self.session() != Some(session) {
            return;
        }
        if start.epoch < self.epoch {
            world.score.fence(world.now);
            return;
        }
        let known = self.journal.iter_mut().find(|entry| entry.op == start.op);
        if let Some(entry) = known {
            if start.fence > entry.fence {
                entry.fence = start.fence;
                entry.server = start.server;
                entry.terms = start.terms;
            }
            if !entry.running {
                let ended = entry.ended();
                self.say(world, host, owner, ended);
            }
            return;
        }
        let place = start.op.place as usize;
        let (work, class, ready_at) = {
            let process = &world.processes[place];
            (process.work, process.class, process.ready_at)
        };
        if world
            .plant
            .start(world.now, host, start.op.token(), work)
            .is_err()
        {
            world.score.refuse(world.now);
            let (op, fence) = (start.op, start.fence);
            self.say(world, host, owner, FromAgent::Busy { op, fence });
            return;
        }
        world.score.start(world.now, class, ready_at);
        self.journal.push(Entry {
            op: start.op,
            fence: start.fence,
            server: start.server,
            running: true,
            service: 0.0,
            started_at: world.now,
            terms: start.terms,
        });
        self.judge(world, start.op);
    }

    /// At every start: what runs must have fitted under the limit of the last grant among it.
    fn judge(&mut self, world: &mut DroverWorld, op: Op) {
        let running = || self.journal.iter().filter(|entry| entry.running);
        let count = u32::try_from(running().count()).unwrap_or(u32::MAX);
        let last = running().max_by_key(|entry| entry.terms.order);
        let limit = last.map_or(0, |entry| entry.terms.limit);
        let over = count.saturating_sub(limit);
        world.score.over_issue = world.score.over_issue.max(over);
        let place = op.place as usize;
        if self.started.len() <= place {
            self.started.resize(place + 1, 0);
        }
        world.score.repeated += u64::from(self.started[place] > op.run);
        self.started[place] = op.run + 1;
    }

    pub(super) fn handle_ended(
        &mut self,
        world: &mut DroverWorld,
        host: usize,
        op: Op,
        owner: u64,
    ) {
        let Some(entry) = self.journal.iter_mut().find(|entry| entry.op == op) else {
            return;
        };
        entry.running = false;
        entry.service = world.since(entry.started_at);
        let ended = entry.ended();
        self.say(world, host, owner, ended);
    }

    pub(super) fn forget(&mut self, op: Op) {
        self.journal.retain(|entry| entry.op != op || entry.running);
    }

    fn say(&self, world: &mut DroverWorld, host: usize, owner: u64, said: FromAgent) {
        if let Some(session) = self.session() {
            let delay = world.random.between(SESSION_DELAY.0, SESSION_DELAY.1);
            world.send_after(delay, Message::FromAgent(owner, host, session, said));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::scenario::Scenario;
    use crate::flow::world;

    fn start(place: u32, fence: u64, order: u64, limit: u32) -> Start {
        Start {
            op: Op { place, run: 0 },
            fence,
            epoch: 1,
            server: 0,
            terms: Terms { order, limit },
        }
    }

    /// A judge that never finds anything would prove nothing.
    #[test]
    fn what_is_over_issued_repeated_or_stale_is_noticed() {
        let scenario = Scenario {
            warm_up: 0.0,
            ..Scenario::default()
        };
        let mut world: DroverWorld = world::World::new(&scenario);
        let mut agent = Agent::new();
        let session = agent.connect(1);
        agent.handle_start(&mut world, 0, session, &start(0, 1, 1, 2), 1);
        agent.handle_start(&mut world, 0, session, &start(16, 1, 2, 2), 1);
        assert_eq!(world.score.over_issue, 0);
        // Granted under a limit of two, with two running.
        agent.handle_start(&mut world, 0, session, &start(32, 1, 3, 2), 1);
        assert_eq!(world.score.over_issue, 1);
        // Sent again: it runs already.
        agent.handle_start(&mut world, 0, session, &start(32, 2, 4, 9), 1);
        assert_eq!((agent.journal().len(), world.score.repeated), (3, 0));
        // Forgotten too early, and sent again.
        agent.journal.clear();
        agent.handle_start(&mut world, 0, session, &start(32, 3, 5, 9), 1);
        assert_eq!(world.score.repeated, 1);
        // A session that is over, and an owner that was replaced.
        agent.handle_start(&mut world, 0, session + 1, &start(48, 1, 6, 9), 1);
        agent.connect(2);
        let late = start(64, 1, 7, 9);
        agent.handle_start(&mut world, 0, session + 1, &late, 1);
        assert_eq!((agent.journal().len(), world.score.fenced), (1, 1));
    }
}
