//! Whole fleets against a home: agents with journals that lose sessions, crash and come back, and
//! a control plane that is slow, forgets nothing and asks when it does not know.
//!
//! What must hold in every schedule: no agent is ever sent more than it can take, every process is
//! done in the end, each had its effect once, and no permit is missing afterwards.

use std::collections::{BTreeMap, VecDeque};

use protocol::ids::{Fence, OperationId};
use protocol::link::NotDelivered;
use protocol::operation::{Command, OpenOperation, OperationState, Phase, Refusal};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::tests::{
    SHARD, assign, command, demand, location, operation, outcome, outputs, target, up,
};
use super::*;
use crate::group::OperationEvent;
use crate::runtime::clock;

const AGENTS: u8 = 3;
const OPERATIONS: u8 = 12;

/// What the control plane knows of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    Ready,
    Sent,
    Unknown,
    Done,
}

/// A process in the store, of one operation.
#[derive(Clone, Copy)]
struct Process {
    agent: u8,
    fence: u64,
    known: Known,
}

/// A line of an agent's journal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Running,
    Finished,
    /// Asked for before it came: refused up to this fence.
    Tombstone,
}

#[derive(Default)]
struct Agent {
    capacity: u32,
    sessions: u64,
    journal: BTreeMap<OperationId, (Fence, Line)>,
    /// How often each operation was started.
    effects: BTreeMap<OperationId, u32>,
    wire: Option<Wire>,
}

/// A session, as two ends of it see it.
struct Wire {
    location: Location,
    to_agent: VecDeque<SessionCommand>,
    /// Words on command streams and on the control stream: in order each, in none together.
    to_home: [VecDeque<OperationEvent>; 2],
    /// Operations that came by this session.
    given: Vec<OperationId>,
}

struct Fleet {
    rng: SmallRng,
    now: Instant,
    home: Home,
    agents: BTreeMap<u8, Agent>,
    processes: BTreeMap<OperationId, Process>,
    grants: VecDeque<(Target, GrantId, Epoch, u32)>,
    sessions: u64,
    epoch: u64,
    /// Replaced sessions whose end has not been said.
    ghosts: Vec<(u8, Wire)>,
}

fn number(agent: AgentId) -> u8 {
    agent.to_bytes()[0]
}

impl Fleet {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let now = clock::now();
        let config = HomeConfig {
            adaptive: false,
            ..HomeConfig::default()
        };
        let mut home = Home::new(clock::now(), SHARD, 1, config);
        home.handle_request(now, assign(1));
        let agents = (0..AGENTS).map(|agent| {
            let capacity = rng.random_range(1..4);
            (
                agent,
                Agent {
                    capacity,
                    ..Agent::default()
                },
            )
        });
        let agents = agents.collect();
        let processes = (0..OPERATIONS).map(|id| {
            let process = Process {
                agent: id % AGENTS,
                fence: 0,
                known: Known::Ready,
            };
            (operation(id), process)
        });
        Self {
            rng,
            now,
            home,
            agents,
            processes: processes.collect(),
            grants: VecDeque::new(),
            sessions: 0,
            epoch: 1,
            ghosts: Vec::new(),
        }
    }

    fn run(mut self, seed: u64) {
        for _ in 0..600 {
            let dice = self.rng.random_range(0..100);
            self.step(dice, true);
        }
        // Calm seas: now everything must come to its end.
        for round in 0.. {
            if self
                .processes
                .values()
                .all(|process| process.known == Known::Done)
            {
                break;
            }
            assert!(round < 20_000, "seed {seed}: {} never ended", self.stuck());
            let dice = self.rng.random_range(0..100);
            self.step(dice, false);
        }
        for (id, process) in &self.processes {
            let effects = self.agents[&process.agent].effects.get(id);
            assert_eq!(effects, Some(&1), "seed {seed}: effects of {id}");
        }
        self.all_permits_are_free(seed);
    }

    fn stuck(&self) -> String {
        let open = self
            .processes
            .iter()
            .filter(|(_, process)| process.known != Known::Done);
        let open = open.map(|(id, process)| format!("{id} is {:?}", process.known));
        open.collect::<Vec<_>>().join(", ")
    }

    fn step(&mut self, dice: u32, rough: bool) {
        let agent = self.rng.random_range(0..AGENTS);
        match dice {
            0..4 => self.connect(agent),
            4..6 if rough => self.lose_session(agent),
            6..8 if rough => self.crash(agent),
            8..10 if rough => self.new_epoch(),
            10..16 => self.wait(),
            16..18 => self.end_a_ghost(),
            18..30 => self.demand(agent),
            30..40 => self.use_a_grant(),
            40..60 => self.agent_reads(agent),
            60..70 => self.agent_finishes(agent),
            _ => self.home_reads(agent),
        }
        self.control_reads();
    }

    fn connect(&mut self, id: u8) {
        self.sessions += 1;
        let new = location(self.sessions);
        let agent = self.agents.get_mut(&id).unwrap();
        agent.sessions += 1;
        let inventory: Vec<_> = agent
            .journal
            .iter()
            .filter_map(|(operation, (fence, line))| {
                let phase = match line {
                    Line::Running => Phase::Running,
                    Line::Finished => Phase::Finished,
                    Line::Tombstone => return None,
                };
                Some(OpenOperation {
                    operation: *operation,
                    fence: *fence,
                    phase,
                })
            })
            .collect();
        let reports = inventory
            .iter()
            .filter(|open| open.phase == Phase::Finished)
            .map(|open| {
                let state = OperationState::Finished(outcome());
                OperationEvent::Report {
                    operation: open.operation,
                    fence: open.fence,
                    state,
                }
            });
        let wire = Wire {
            location: new,
            to_agent: VecDeque::new(),
            to_home: [VecDeque::new(), reports.collect()],
            given: Vec::new(),
        };
        if let Some(old) = agent.wire.replace(wire) {
            self.ghosts.push((id, old));
        }
        let session = up(id, new.session.0, agent.capacity, inventory);
        let count = agent.sessions;
        self.home.handle_session_up(self.now, new, session, count);
    }

    fn lose_session(&mut self, id: u8) {
        if let Some(wire) = self.agents.get_mut(&id).unwrap().wire.take() {
            self.ghosts.push((id, wire));
            if self.rng.random() {
                self.end_a_ghost();
            }
        }
    }

    /// The gateway notices that a session is over: before or after the agent has come back.
    fn end_a_ghost(&mut self) {
        let Some((id, wire)) = self.ghosts.pop() else {
            return;
        };
        let agent = target(id).agent;
        for queue in wire.to_home {
            for event in queue {
                if self.rng.random() {
                    self.home
                        .handle_operation(self.now, wire.location, agent, event);
                }
            }
        }
        for unsent in wire.to_agent {
            if let SessionCommand::Dispatch { command, .. } = unsent
                && self.rng.random()
            {
                let event = not_delivered(&command);
                self.home
                    .handle_operation(self.now, wire.location, agent, event);
            }
        }
        let reason = DownReason::TimedOut;
        self.home
            .handle_session_down(self.now, wire.location, agent, reason);
    }

    /// Nothing runs any more; what was running is known to have been interrupted.
    fn crash(&mut self, id: u8) {
        self.lose_session(id);
        let journal = &mut self.agents.get_mut(&id).unwrap().journal;
        for (_, line) in journal.values_mut() {
            if *line == Line::Running {
                *line = Line::Finished;
            }
        }
    }

    fn new_epoch(&mut self) {
        self.epoch += 1;
        self.home.handle_request(self.now, assign(self.epoch));
    }

    fn wait(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..900));
        self.home.handle_timeout(self.now);
    }

    fn demand(&mut self, id: u8) {
        let of_agent = self
            .processes
            .values()
            .filter(|process| process.agent == id);
        let ready = of_agent
            .filter(|process| process.known == Known::Ready)
            .count();
        let ready = u32::try_from(ready).unwrap();
        self.ask(demand(target(id), ready));
        let unknown = self
            .processes
            .iter()
            .filter(|(_, process)| process.agent == id && process.known == Known::Unknown);
        let operations = unknown
            .map(|(id, process)| (*id, Fence(process.fence)))
            .collect();
        self.ask(Request::Query {
            target: target(id),
            operations,
        });
    }

    /// Claims and dispatches, at once or too late.
    fn use_a_grant(&mut self) {
        let Some((target, grant, epoch, permits)) = self.grants.pop_front() else {
            return;
        };
        let mut unused = permits;
        for _ in 0..permits {
            let of_agent = |process: &Process| process.agent == number(target.agent);
            let ready = self
                .processes
                .iter_mut()
                .find(|(_, process)| of_agent(process) && process.known == Known::Ready);
            let Some((id, process)) = ready else { break };
            process.fence += 1;
            process.known = Known::Sent;
            unused -= 1;
            let mut command = command(0, process.fence);
            command.operation = *id;
            self.ask(Request::Dispatch {
                target,
                grant,
                epoch,
                command,
            });
        }
        if unused > 0 && self.rng.random() {
            self.ask(Request::ReturnPermits {
                target,
                grant,
                unused,
            });
        }
    }

    fn agent_reads(&mut self, id: u8) {
        let agent = self.agents.get_mut(&id).unwrap();
        let Some(wire) = &mut agent.wire else { return };
        match wire.to_agent.pop_front() {
            Some(SessionCommand::Dispatch { command, .. }) => agent.take(&command),
            Some(SessionCommand::Query(operations)) => {
                for (operation, fence) in operations {
                    agent.answer(operation, fence);
                }
            }
            Some(SessionCommand::Forget(operations)) => {
                for operation in operations {
                    agent.journal.remove(&operation);
                }
            }
            _ => {}
        }
    }

    fn agent_finishes(&mut self, id: u8) {
        let agent = self.agents.get_mut(&id).unwrap();
        let running = agent
            .journal
            .iter_mut()
            .find(|(_, (_, line))| *line == Line::Running);
        if let Some((operation, (fence, line))) = running {
            *line = Line::Finished;
            let (operation, fence) = (*operation, *fence);
            if let Some(wire) = &mut agent.wire {
                wire.finish(operation, fence);
            }
        }
    }

    fn home_reads(&mut self, id: u8) {
        let Some(wire) = &mut self.agents.get_mut(&id).unwrap().wire else {
            return;
        };
        let stream = usize::from(self.rng.random::<bool>());
        if let Some(event) = wire.to_home[stream].pop_front() {
            let location = wire.location;
            self.home
                .handle_operation(self.now, location, target(id).agent, event);
        }
    }

    fn ask(&mut self, request: Request) {
        self.home.handle_request(self.now, request);
        self.control_reads();
    }

    fn control_reads(&mut self) {
        for output in outputs(&mut self.home) {
            match output {
                HomeOutput::ToSession(to, SessionCommand::Close(_)) => {
                    let newest = |agent: &Agent| agent.wire.as_ref().map(|wire| wire.location);
                    let current = self.agents.values().any(|agent| newest(agent) == Some(to));
                    assert!(!current, "the newest session was closed");
                }
                HomeOutput::ToSession(to, command) => self.send(to, command),
                HomeOutput::Event(event) => self.hear(event),
            }
        }
    }

    /// A command for a session that has gone meanwhile is lost with it.
    fn send(&mut self, to: Location, command: SessionCommand) {
        let live = self
            .agents
            .values_mut()
            .filter_map(|agent| agent.wire.as_mut());
        let gone = self.ghosts.iter_mut().map(|(_, wire)| wire);
        if let Some(wire) = live.chain(gone).find(|wire| wire.location == to) {
            wire.to_agent.push_back(command);
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Granted {
                target,
                grant,
                epoch,
                permits,
                ..
            } => {
                self.grants.push_back((target, grant, epoch, permits));
            }
            Event::Offered {
                target,
                grant,
                epoch,
            } => self.grants.push_back((target, grant, epoch, 1)),
            Event::Withdrawn { grant, .. } => self.grants.retain(|(_, id, ..)| *id != grant),
            Event::NotDelivered {
                operation, fence, ..
            } => {
                self.learn(operation, fence, Known::Ready, |known| known == Known::Sent);
            }
            Event::Refused {
                operation,
                fence,
                refusal,
                ..
            } => {
                assert!(
                    !matches!(refusal, Refusal::Busy { .. }),
                    "{operation} was over-issued"
                );
                self.learn(operation, fence, Known::Ready, |known| known == Known::Sent);
            }
            Event::Uncertain {
                operation, fence, ..
            } => {
                self.learn(operation, fence, Known::Unknown, |known| {
                    known == Known::Sent
                });
            }
            Event::Report {
                operation,
                fence,
                state: OperationState::NeverSeen,
                ..
            } => {
                self.learn(operation, fence, Known::Ready, |known| {
                    known == Known::Unknown
                });
            }
            Event::Report {
                target,
                operation,
                state: OperationState::Finished(_),
                ..
            }
            | Event::Finished {
                target, operation, ..
            } => {
                if let Some(process) = self.processes.get_mut(&operation) {
                    process.known = Known::Done;
                }
                let operations = vec![operation];
                self.home
                    .handle_request(self.now, Request::Forget { target, operations });
            }
            _ => {}
        }
    }

    fn learn(&mut self, id: OperationId, fence: Fence, known: Known, from: fn(Known) -> bool) {
        let process = self.processes.get_mut(&id).unwrap();
        if Fence(process.fence) == fence && from(process.known) {
            process.known = known;
        }
    }

    fn all_permits_are_free(mut self, seed: u64) {
        for id in 0..AGENTS {
            self.connect(id);
            while self.agents[&id]
                .wire
                .as_ref()
                .is_some_and(|wire| !wire.to_home[1].is_empty())
            {
                self.home_reads(id);
            }
        }
        let mut offered = BTreeMap::new();
        for output in outputs(&mut self.home) {
            match output {
                HomeOutput::Event(Event::Offered { target, .. }) => offered.insert(target.agent, 1),
                HomeOutput::Event(Event::Withdrawn { target, .. }) => offered.remove(&target.agent),
                _ => None,
            };
        }
        for id in 0..AGENTS {
            let (target, ready) = (target(id), u32::MAX);
            self.home.handle_request(self.now, demand(target, ready));
            let granted = outputs(&mut self.home)
                .into_iter()
                .find_map(|output| match output {
                    HomeOutput::Event(Event::Granted { permits, .. }) => Some(permits),
                    _ => None,
                });
            let offered = offered.get(&target.agent).copied().unwrap_or(0);
            assert_eq!(
                granted.unwrap_or(0) + offered,
                self.agents[&id].capacity,
                "seed {seed}: agent {id}"
            );
        }
    }
}

impl Agent {
    fn take(&mut self, command: &Command) {
        let (operation, fence) = (command.operation, command.fence);
        let lines = self.journal.values();
        let running = lines.filter(|(_, line)| *line == Line::Running).count();
        let wire = self.wire.as_mut().unwrap();
        let refuse = |refusal| OperationEvent::Refused {
            operation,
            fence,
            refusal,
        };
        match self.journal.get_mut(&operation) {
            Some((seen, Line::Tombstone)) if fence <= *seen => {
                let seen = *seen;
                wire.to_home[0].push_back(refuse(Refusal::StaleFence { seen }));
            }
            Some((seen, line @ (Line::Running | Line::Finished))) => {
                *seen = fence.max(*seen);
                let finished = *line == Line::Finished;
                wire.given.push(operation);
                wire.to_home[0].push_back(OperationEvent::Accepted { operation, fence });
                if finished {
                    wire.finish(operation, fence);
                }
            }
            _ if running >= self.capacity as usize => {
                let retry_after = Duration::ZERO;
                wire.to_home[0].push_back(refuse(Refusal::Busy { retry_after }));
            }
            _ => {
                self.journal.insert(operation, (fence, Line::Running));
                *self.effects.entry(operation).or_default() += 1;
                wire.given.push(operation);
                wire.to_home[0].push_back(OperationEvent::Accepted { operation, fence });
            }
        }
    }

    fn answer(&mut self, operation: OperationId, fence: Fence) {
        let entry = self.journal.entry(operation);
        let (seen, line) = entry.or_insert((fence, Line::Tombstone));
        *seen = fence.max(*seen);
        let state = match line {
            Line::Running => OperationState::Running,
            Line::Finished => OperationState::Finished(outcome()),
            Line::Tombstone => OperationState::NeverSeen,
        };
        let report = OperationEvent::Report {
            operation,
            fence: *seen,
            state,
        };
        self.wire.as_mut().unwrap().to_home[1].push_back(report);
    }
}

impl Wire {
    fn finish(&mut self, operation: OperationId, fence: Fence) {
        let outcome = outcome();
        if self.given.contains(&operation) {
            let event = OperationEvent::Finished {
                operation,
                fence,
                outcome,
            };
            self.to_home[0].push_back(event);
        } else {
            let state = OperationState::Finished(outcome);
            let event = OperationEvent::Report {
                operation,
                fence,
                state,
            };
            self.to_home[1].push_back(event);
        }
    }
}

fn not_delivered(command: &Command) -> OperationEvent {
    OperationEvent::NotDelivered {
        operation: command.operation,
        fence: command.fence,
        reason: NotDelivered::NoSession,
    }
}

#[test]
fn a_fleet_that_crashes_and_comes_back_loses_and_doubles_nothing() {
    for seed in 0..400 {
        Fleet::new(seed).run(seed);
    }
}
