//! A gateway and its agents, simulated: the contract of the link with every permitted fault.

#[path = "fleet/look.rs"]
mod look;
#[path = "fleet/ports.rs"]
mod ports;

pub(crate) use ports::{Port, server};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use protocol::ids::{
    AgentId, Epoch, Fence, GrantId, GroupId, OperationId, ProcessId, SessionId, Slot,
};
use protocol::link::{DownReason, Event, NotDelivered, Request, Target};
use protocol::operation::{
    Channel, Command, OpenOperation, OperationState, Outcome, OutcomeStatus, Phase, Progress,
    Refusal,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

/// Operations that one agent runs at once.
pub(crate) const CAPACITY: u32 = 4;
/// Requests that fit into the gateway's queue.
const QUEUE: usize = 48;

/// Which faults happen.
#[derive(Clone, Copy)]
pub(crate) struct Faults {
    /// Chances per mille.
    pub(crate) rate: u32,
    /// Agents have no session.
    pub(crate) offline: bool,
    /// Operations do not end by themselves.
    pub(crate) stuck: bool,
    /// Operations fail in passing.
    pub(crate) flaky: bool,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        rate: 0,
        offline: false,
        stuck: false,
        flaky: false,
    };
    pub(crate) const ALL: Self = Self {
        rate: 1,
        offline: false,
        stuck: false,
        flaky: false,
    };
}

enum Body {
    Open {
        left: u32,
        cancelled: bool,
        /// It fails for good.
        doomed: bool,
    },
    Finished(Outcome),
    Tombstone {
        cancelled: bool,
    },
}

struct Entry {
    fence: Fence,
    body: Body,
}

struct Session {
    id: SessionId,
    /// By port and its number of the line.
    demand: BTreeMap<(usize, u32), u32>,
    grants: BTreeMap<GrantId, Grant>,
    offer: Option<(GrantId, usize)>,
    charged: BTreeMap<OperationId, Fence>,
    /// Operations whose command stream is open.
    lanes: BTreeSet<OperationId>,
}

struct Agent {
    target: Target,
    journal: BTreeMap<OperationId, Entry>,
    session: Option<Session>,
    away: u32,
}

/// Permits of a line that a port has.
#[derive(Clone, Copy)]
struct Grant {
    port: usize,
    line: u32,
    permits: u32,
}

impl Session {
    /// Up to so many permits of a grant are used, or not needed.
    fn use_up(&mut self, id: GrantId, permits: u32) -> Option<Grant> {
        let grant = self.grants.remove(&id)?;
        let left = grant.permits.saturating_sub(permits);
        if left > 0 {
            let permits = left;
            self.grants.insert(id, Grant { permits, ..grant });
        }
        if let Some(ready) = self.demand.get_mut(&(grant.port, grant.line)) {
            *ready = ready.saturating_sub(permits);
        }
        Some(grant)
    }
}

/// What an agent does with a command.
enum Verdict {
    New,
    Join,
    Answer(Outcome),
    Refuse(Refusal),
}

const BUSY: Refusal = Refusal::Busy {
    retry_after: Duration::from_millis(5),
};

impl Agent {
    /// As the agent's journal judges it.
    fn judge(&mut self, operation: OperationId, fence: Fence) -> Verdict {
        let open = |entry: &&Entry| matches!(entry.body, Body::Open { .. });
        let full = self.journal.values().filter(open).count() >= CAPACITY as usize;
        let new = || {
            if full {
                Verdict::Refuse(BUSY)
            } else {
                Verdict::New
            }
        };
        let Some(entry) = self.journal.get_mut(&operation) else {
            return new();
        };
        let seen = entry.fence;
        match &entry.body {
            Body::Tombstone { cancelled: true } if fence <= seen => {
                Verdict::Refuse(Refusal::Cancelled)
            }
            Body::Tombstone { .. } if fence <= seen => {
                Verdict::Refuse(Refusal::StaleFence { seen })
            }
            Body::Tombstone { .. } => new(),
            _ if fence < seen => Verdict::Refuse(Refusal::StaleFence { seen }),
            Body::Finished(outcome)
                if fence > seen && outcome.status == OutcomeStatus::FailedTransient =>
            {
                new()
            }
            Body::Finished(outcome) => {
                let outcome = outcome.clone();
                entry.fence = fence;
                Verdict::Answer(outcome)
            }
            Body::Open { .. } => {
                entry.fence = fence;
                Verdict::Join
            }
        }
    }
}

struct World {
    rng: StdRng,
    faults: Faults,
    faults_made: usize,
    ports: Vec<ports::Queue>,
    /// How often the gateway was started.
    run: u128,
    epoch: Epoch,
    /// The highest epoch that agents have seen.
    seen: Epoch,
    numbers: u64,
    agents: Vec<Agent>,
    /// With the port that each came from.
    requests: VecDeque<(usize, Request)>,
    /// Of this turn: for every port.
    events: VecDeque<Event>,
    /// Words that will be said once more, much later.
    late: Vec<Event>,
    effects: BTreeMap<ProcessId, usize>,
    step_effects: BTreeMap<OperationId, usize>,
    /// Starts (true) and ends (false), in order.
    timeline: Vec<(ProcessId, bool)>,
}

/// The simulated gateway with its agents.
pub(crate) struct Fleet(Mutex<World>);

impl Fleet {
    pub(crate) fn new(agents: usize, seed: u64, faults: Faults) -> Arc<Self> {
        let agents = (0..agents)
            .map(|n| Agent {
                target: Target {
                    agent: AgentId(Uuid::from_u128(1000 + n as u128)),
                    group: GroupId(Uuid::from_u128(1)),
                    slot: Slot(0),
                },
                journal: BTreeMap::new(),
                session: None,
                away: 0,
            })
            .collect();
        let other = std::env::var("DROVER_TEST_SEED").ok();
        let other: u64 = other.map_or(0, |text| text.parse().unwrap());
        let fleet = Arc::new(Self(Mutex::new(World {
            rng: StdRng::seed_from_u64(seed ^ (other << 8)),
            faults,
            faults_made: 0,
            ports: Vec::new(),
            run: 0,
            epoch: Epoch(0),
            seen: Epoch(0),
            numbers: 0,
            agents,
            requests: VecDeque::new(),
            events: VecDeque::new(),
            late: Vec::new(),
            effects: BTreeMap::new(),
            step_effects: BTreeMap::new(),
            timeline: Vec::new(),
        })));
        let weak = Arc::downgrade(&fleet);
        tokio::spawn(async move {
            while let Some(fleet) = weak.upgrade() {
                fleet.world().turn();
                drop(fleet);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        fleet
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    pub(crate) fn targets(&self) -> Vec<Target> {
        self.world()
            .agents
            .iter()
            .map(|agent| agent.target)
            .collect()
    }

    pub(crate) fn put_into(&self, group: GroupId, slot: Slot) {
        for agent in &mut self.world().agents {
            agent.target.group = group;
            agent.target.slot = slot;
        }
    }

    /// Agents have met an owner of this epoch before.
    pub(crate) fn remember(&self, seen: Epoch) {
        self.world().seen = seen;
    }
}

impl World {
    fn turn(&mut self) {
        if self.ports.iter().all(|port| port.wake.is_none()) {
            self.agents_work();
            return;
        }
        for _ in 0..self.rng.random_range(0..QUEUE) {
            match self.requests.pop_front() {
                Some((port, request)) => self.request(port, request),
                None => break,
            }
        }
        self.sessions();
        self.agents_work();
        self.repeat_late();
        self.tell_all();
        for at in 0..self.agents.len() {
            self.grant(at);
        }
        self.ring();
    }

    /// Whether a fault happens here; `weight` times as often as the rarest.
    fn fault(&mut self, weight: u32) -> bool {
        let happens = self.rng.random_range(0..1000) < self.faults.rate * weight;
        self.faults_made += usize::from(happens);
        happens
    }

    /// Keeps some of the words of this turn and says an older one again.
    fn repeat_late(&mut self) {
        let about_operation = |event: &&Event| {
            !matches!(
                event,
                Event::SessionUp(_)
                    | Event::SessionDown { .. }
                    | Event::Granted { .. }
                    | Event::Offered { .. }
                    | Event::Withdrawn { .. }
            )
        };
        if self.late.len() < 64
            && let Some(event) = self.events.iter().rfind(about_operation).cloned()
            && self.fault(40)
        {
            self.late.push(event);
        }
        if self.late.len() > 8 && self.fault(40) {
            let at = self.rng.random_range(0..self.late.len());
            let event = self.late.swap_remove(at);
            self.events.push_back(event);
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn at(&self, target: Target) -> usize {
        self.agents
            .iter()
            .position(|agent| agent.target == target)
            .unwrap()
    }

    fn request(&mut self, port: usize, request: Request) {
        match request {
            Request::AssignGroup { group, epoch, .. }
                if self.agents.iter().any(|agent| agent.target.group == group) =>
            {
                self.epoch = self.epoch.max(epoch);
            }
            Request::Demand { target, lines, .. } => {
                let at = self.at(target);
                if let Some(session) = &mut self.agents[at].session {
                    session.demand.retain(|(of, _), _| *of != port);
                    let lines = lines.iter().map(|line| ((port, line.number), line.ready));
                    session.demand.extend(lines);
                }
            }
            Request::ReturnPermits {
                target,
                grant,
                unused,
            } => {
                let at = self.at(target);
                if let Some(session) = &mut self.agents[at].session
                    && session.offer.take_if(|offer| offer.0 == grant).is_none()
                {
                    session.use_up(grant, unused);
                }
            }
            Request::Dispatch {
                target,
                grant,
                epoch,
                command,
            } => {
                self.dispatch(port, (target, grant, epoch), *command);
            }
            Request::Cancel {
                target,
                operation,
                fence,
            } => self.cancel(target, operation, fence),
            Request::Query { target, operations } => {
                let at = self.at(target);
                if self.agents[at].session.is_some() {
                    for (operation, fence) in operations {
                        self.mark(at, operation, fence, false);
                        self.report(at, operation);
                    }
                }
            }
            Request::Forget { target, operations } => {
                let at = self.at(target);
                let agent = &mut self.agents[at];
                if agent.session.is_some() {
                    for operation in operations {
                        let entry = agent.journal.get(&operation);
                        if entry.is_some_and(|entry| !matches!(entry.body, Body::Open { .. })) {
                            agent.journal.remove(&operation);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn dispatch(
        &mut self,
        port: usize,
        (target, grant, epoch): (Target, GrantId, Epoch),
        command: Command,
    ) {
        let at = self.at(target);
        let (operation, fence) = (command.operation, command.fence);
        let busy = self.fault(20);
        let epoch_now = self.epoch;
        let not_delivered = |reason| Event::NotDelivered {
            target,
            operation,
            fence,
            reason,
        };
        let Some(session) = &mut self.agents[at].session else {
            self.events
                .push_back(not_delivered(NotDelivered::NoSession));
            return;
        };
        let offered = session.offer.take_if(|offer| offer.0 == grant).is_some();
        let granted = session.use_up(grant, 1);
        assert!(
            granted.is_none_or(|grant| grant.port == port),
            "not its own"
        );
        if epoch != epoch_now || !(offered || granted.is_some()) {
            self.events.push_back(not_delivered(NotDelivered::NoGrant));
            return;
        }
        if busy {
            self.events.push_back(not_delivered(NotDelivered::Busy));
            return;
        }
        session.charged.insert(operation, fence);
        session.lanes.insert(operation);
        assert!(
            session.charged.len() <= CAPACITY as usize,
            "more than the permits"
        );
        // The session may be lost with the command on its way: it arrived, or it did not.
        let lost = self.fault(30);
        if !lost || self.rng.random() {
            self.command(at, &command);
        }
        if lost {
            self.lose(at);
        }
    }

    /// The agent takes a command; one of the kind `fails` fails for good.
    fn command(&mut self, at: usize, command: &Command) {
        let (operation, fence) = (command.operation, command.fence);
        let refuse = self.fault(30);
        let left = self.rng.random_range(1..8);
        let (epoch, seen) = (self.epoch, self.seen);
        let agent = &mut self.agents[at];
        let target = agent.target;
        let verdict = match epoch < seen {
            true => Verdict::Refuse(Refusal::StaleEpoch { seen }),
            false => agent.judge(operation, fence),
        };
        let refusal = match verdict {
            Verdict::Join => {
                let accepted = Event::Accepted {
                    target,
                    operation,
                    fence,
                };
                self.events.push_back(accepted);
                return;
            }
            Verdict::Answer(outcome) => return self.end(at, operation, fence, outcome),
            Verdict::Refuse(refusal) => Some(refusal),
            Verdict::New => refuse.then_some(BUSY),
        };
        if let Some(refusal) = refusal {
            if let Some(session) = &mut agent.session {
                session.charged.remove(&operation);
                session.lanes.remove(&operation);
            }
            self.events.push_back(Event::Refused {
                target,
                operation,
                fence,
                refusal,
            });
            return;
        }
        let body = Body::Open {
            left,
            cancelled: false,
            doomed: command.kind == "fails",
        };
        agent.journal.insert(operation, Entry { fence, body });
        self.timeline.push((operation.process, true));
        self.events.push_back(Event::Accepted {
            target,
            operation,
            fence,
        });
        let progress = Progress {
            sequence: 0,
            percent: Some(10),
            message: String::new(),
            channel: Channel::Stdout,
            output: Bytes::from_static(b"hello\n"),
        };
        self.events.push_back(Event::Progress {
            target,
            operation,
            fence,
            progress,
        });
    }

    fn cancel(&mut self, target: Target, operation: OperationId, fence: Fence) {
        let at = self.at(target);
        if self.agents[at].session.is_none() {
            return;
        }
        self.mark(at, operation, fence, true);
        match &mut self.agents[at].journal.get_mut(&operation).unwrap().body {
            Body::Open {
                cancelled, left, ..
            } => {
                *cancelled = true;
                *left = (*left).min(2);
            }
            _ => self.report(at, operation),
        }
    }

    /// From now on the agent knows this operation under this fence at least.
    fn mark(&mut self, at: usize, operation: OperationId, fence: Fence, cancel: bool) {
        let tombstone = Entry {
            fence,
            body: Body::Tombstone { cancelled: cancel },
        };
        let entry = self.agents[at]
            .journal
            .entry(operation)
            .or_insert(tombstone);
        entry.fence = entry.fence.max(fence);
        if let Body::Tombstone { cancelled } = &mut entry.body {
            *cancelled |= cancel;
        }
    }

    fn report(&mut self, at: usize, operation: OperationId) {
        let agent = &self.agents[at];
        let entry = &agent.journal[&operation];
        let state = match &entry.body {
            Body::Open { .. } => OperationState::Running,
            Body::Finished(outcome) => OperationState::Finished(outcome.clone()),
            Body::Tombstone { .. } => OperationState::NeverSeen,
        };
        let (target, fence) = (agent.target, entry.fence);
        self.events.push_back(Event::Report {
            target,
            operation,
            fence,
            state,
        });
    }

    fn agents_work(&mut self) {
        for at in 0..self.agents.len() {
            let mut ended = Vec::new();
            for (operation, entry) in &mut self.agents[at].journal {
                if let Body::Open {
                    left,
                    cancelled,
                    doomed,
                } = &mut entry.body
                {
                    if self.faults.stuck && !*cancelled {
                        continue;
                    }
                    *left -= 1;
                    if *left == 0 {
                        ended.push((*operation, entry.fence, *cancelled, *doomed));
                    }
                }
            }
            for (operation, fence, cancelled, doomed) in ended {
                self.timeline.push((operation.process, false));
                let status = if cancelled {
                    OutcomeStatus::Cancelled
                } else if self.faults.flaky || self.fault(20) {
                    OutcomeStatus::FailedTransient
                } else if doomed {
                    OutcomeStatus::FailedPermanent
                } else {
                    *self.step_effects.entry(operation).or_default() += 1;
                    *self.effects.entry(operation.process).or_default() += 1;
                    OutcomeStatus::Succeeded
                };
                let outcome = Outcome {
                    status,
                    exit_code: Some(0),
                    message: String::new(),
                    output: Bytes::from_static(b"\xff\x00binary"),
                    service_time: Duration::from_millis(1),
                };
                let body = Body::Finished(outcome.clone());
                self.agents[at]
                    .journal
                    .insert(operation, Entry { fence, body });
                self.end(at, operation, fence, outcome);
            }
        }
    }

    /// Tells that an operation is over, on its stream or in a report.
    fn end(&mut self, at: usize, operation: OperationId, fence: Fence, outcome: Outcome) {
        let twice = self.fault(50);
        let agent = &mut self.agents[at];
        let target = agent.target;
        let Some(session) = &mut agent.session else {
            return;
        };
        session.charged.remove(&operation);
        if !session.lanes.remove(&operation) {
            self.report(at, operation);
            return;
        }
        let event = Event::Finished {
            target,
            operation,
            fence,
            outcome,
        };
        if twice {
            self.events.push_back(event.clone());
        }
        self.events.push_back(event);
    }

    fn sessions(&mut self) {
        for at in 0..self.agents.len() {
            let connected = self.agents[at].session.is_some();
            if connected && (self.faults.offline || self.fault(5)) {
                self.lose(at);
            } else if !connected && !self.faults.offline {
                let agent = &mut self.agents[at];
                agent.away = agent.away.saturating_sub(1);
                if agent.away == 0 {
                    self.connect(at);
                }
            }
        }
    }

    fn connect(&mut self, at: usize) {
        let id = SessionId(self.number());
        let agent = &mut self.agents[at];
        let mut open = Vec::new();
        let mut finished = Vec::new();
        let mut charged = BTreeMap::new();
        for (operation, entry) in &agent.journal {
            let phase = match entry.body {
                Body::Open { .. } => {
                    charged.insert(*operation, entry.fence);
                    Phase::Running
                }
                Body::Finished(_) => {
                    finished.push(*operation);
                    Phase::Finished
                }
                Body::Tombstone { .. } => continue,
            };
            open.push(OpenOperation {
                operation: *operation,
                fence: entry.fence,
                phase,
            });
        }
        agent.session = Some(Session {
            id,
            demand: BTreeMap::new(),
            grants: BTreeMap::new(),
            offer: None,
            charged,
            lanes: BTreeSet::new(),
        });
        let up = self.session_up(at, open);
        self.events.push_back(up);
        for operation in finished {
            self.report(at, operation);
        }
    }

    fn lose(&mut self, at: usize) {
        let away = self.rng.random_range(1..15);
        let agent = &mut self.agents[at];
        agent.away = away;
        let Some(session) = agent.session.take() else {
            return;
        };
        let target = agent.target;
        self.events.push_back(Event::SessionDown {
            target,
            session: session.id,
            reason: DownReason::TimedOut,
        });
        for (operation, fence) in session.charged {
            self.events.push_back(Event::Uncertain {
                target,
                operation,
                fence,
            });
        }
    }
}
