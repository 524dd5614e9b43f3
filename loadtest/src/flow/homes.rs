//! Two homes, agents of both, and whoever lends them limits that span homes, while all of them crash and
//! words between them are lost, late and repeated: is a limit ever passed, and does all work end?
//!
//! The homes, the lender and what both say are the production code; agents and the control plane's
//! processes are made up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use control::lending::{Duty, Lender};
use gateway::model::{HomeModel, Said};
use protocol::flow::{Demand, Limit, LimitKey, Line};
use protocol::ids::{
    AgentId, Epoch, Fence, GrantId, GroupId, OperationId, ProcessId, ServerId, SessionId, ShardId,
    Slot,
};
use protocol::link::{Event, Request, SessionUp, Target};
use protocol::operation::{Command, OpenOperation, Outcome, OutcomeStatus, Phase};

use super::random::Random;
use crate::clock;

const HOMES: usize = 2;
const AGENTS: usize = 4;
/// Operations that an agent takes at once.
const CAPACITY: u32 = 4;
const STEP: Duration = Duration::from_millis(20);
/// Things break for so long.
const ROUGH: Duration = Duration::from_secs(30);
/// Then everything must have ended.
const PATIENCE: Duration = Duration::from_secs(300);

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Spanned {
    /// Permits that were granted beyond a limit.
    pub over_issue: u32,
    /// Processes that had not ended.
    pub unfinished: u32,
    /// Permits that were still lent when nobody had used any for a while.
    pub leaked: u32,
    /// Crashes of homes and of lenders, and sessions lost.
    pub faults: u32,
}

struct Agent {
    target: Target,
    home: usize,
    session: Option<SessionId>,
    /// Line, and when it ends.
    running: BTreeMap<OperationId, (usize, Instant)>,
    /// Processes that are ready, by line.
    ready: Vec<u32>,
}

/// A grant, or an offer.
struct Permit {
    agent: usize,
    /// Nothing where it was offered.
    line: Option<usize>,
    grant: GrantId,
    epoch: Epoch,
    left: u32,
    until: Option<Instant>,
}

enum Word {
    ToHome(usize, Request),
    ToLender(Event),
}

struct World {
    now: Instant,
    began: Instant,
    random: Random,
    homes: Vec<HomeModel>,
    agents: Vec<Agent>,
    permits: Vec<Permit>,
    lender: Lender,
    term: u32,
    runs: u64,
    sessions: u64,
    operations: u128,
    sent: BTreeMap<OperationId, (usize, usize)>,
    words: Vec<(Instant, Word)>,
    limits: Vec<Limit>,
    /// Whether the operator has set them.
    are_set: bool,
    lines: Vec<Line>,
    found: Spanned,
}

/// Runs the schedule of a seed.
pub fn span(seed: u64) -> Spanned {
    let mut world = World::new(seed);
    let late = (seed.is_multiple_of(3)).then_some(Duration::from_secs(4));
    if late.is_none() {
        world.set_limits();
    }
    (0..AGENTS).for_each(|agent| world.connect(agent));
    let mut steps = 0_u32;
    while !world.is_done() && world.now < world.began + ROUGH + PATIENCE {
        if late.is_some_and(|late| world.began + late == world.now) {
            world.set_limits();
        }
        world.step(steps);
        steps += 1;
    }
    world.found.unfinished = world.unfinished();
    for _ in 0..500 {
        world.step(steps);
        steps += 1;
    }
    let lent = world.limits.iter();
    let lent = lent.filter_map(|limit| world.lender.lent(&limit.key));
    world.found.leaked = lent.sum();
    world.found
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5_0a11);
        let now = clock::now();
        let model = |home: usize| HomeModel::new(now, shard(home), shards(), 1);
        let agents = (0..AGENTS).map(|agent| Agent {
            target: target(agent),
            home: agent % HOMES,
            session: None,
            running: BTreeMap::new(),
            ready: (0..4).map(|_| small(&mut random, 5)).collect(),
        });
        let agents = agents.collect();
        let limits = [
            (LimitKey::Resource("pool/fast".to_owned()), 3),
            (LimitKey::Tenant("acme".to_owned()), 4),
            (LimitKey::Global, 6),
        ];
        let limits = limits.map(|(key, most)| Limit {
            key,
            min: 0,
            max: 1 + small(&mut random, most),
            pin: None,
        });
        let mut world = Self {
            now,
            began: now,
            random,
            homes: (0..HOMES).map(model).collect(),
            agents,
            permits: Vec::new(),
            lender: Lender::new(),
            term: 1,
            runs: 1,
            sessions: 0,
            operations: 0,
            sent: BTreeMap::new(),
            words: Vec::new(),
            limits: limits.to_vec(),
            are_set: false,
            lines: lines(),
            found: Spanned::default(),
        };
        (0..HOMES).for_each(|home| world.assign(home));
        world
    }

    fn is_rough(&self) -> bool {
        self.now < self.began + ROUGH
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.random.below(one_in) == 0
    }

    fn unfinished(&self) -> u32 {
        let of = |agent: &Agent| {
            let running = u32::try_from(agent.running.len()).unwrap_or(u32::MAX);
            agent.ready.iter().sum::<u32>() + running
        };
        self.agents.iter().map(of).sum()
    }

    fn is_done(&self) -> bool {
        !self.is_rough() && self.unfinished() == 0
    }

    fn step(&mut self, steps: u32) {
        self.now += STEP;
        let now = self.now;
        self.permits
            .retain(|permit| permit.until.is_none_or(|until| now < until));
        for home in 0..HOMES {
            if self.homes[home].poll_timeout().is_some_and(|at| at <= now) {
                self.homes[home].handle_timeout(now);
                self.listen(home);
            }
        }
        self.deliver();
        if steps.is_multiple_of(50) {
            self.prolong();
            self.lender.handle_tick(now);
            self.lend();
        }
        if steps.is_multiple_of(10) {
            (0..AGENTS).for_each(|agent| self.demand(agent));
        }
        (0..AGENTS).for_each(|agent| self.work(agent));
        if self.chance(4) {
            self.dispatch();
        }
        if self.is_rough() && self.chance(60) {
            self.fault();
        }
    }

    fn fault(&mut self) {
        self.found.faults += 1;
        let agent = self.random.below(AGENTS);
        match self.random.below(8) {
            0 => self.restart_home(agent % HOMES),
            1 => {
                self.term += 1;
                self.lender = Lender::new();
                if self.are_set {
                    self.lender.set_limits(self.now, &self.limits);
                }
                self.words
                    .retain(|(_, word)| matches!(word, Word::ToHome(..)));
                self.prolong();
            }
            2..5 => self.disconnect(agent),
            _ => self.connect(agent),
        }
    }

    fn prolong(&mut self) {
        let duty = Duty {
            term: self.term,
            until: self.now + Duration::from_secs(8),
        };
        self.lender.handle_duty(self.now, Some(duty));
    }

    /// What an operator does: whatever runs is told with its line first, so that it counts.
    fn set_limits(&mut self) {
        self.are_set = true;
        self.lender.set_limits(self.now, &self.limits);
        self.prolong();
        for home in 0..HOMES {
            self.charge(home);
            let limits = self.limits.clone();
            self.ask(home, Request::SetLimits { limits });
        }
    }

    fn assign(&mut self, home: usize) {
        let request = Request::AssignGroup {
            group: target(home).group,
            slot: target(home).slot,
            epoch: Epoch(self.runs),
        };
        self.ask(home, request);
    }

    fn charge(&mut self, home: usize) {
        for agent in (home..AGENTS).step_by(HOMES) {
            let agent = &self.agents[agent];
            let running = agent.running.iter();
            let line = |line: usize| self.lines[line].clone();
            let operations = running.map(|(operation, (at, _))| (*operation, line(*at)));
            let request = Request::Charge {
                target: agent.target,
                operations: operations.collect(),
            };
            self.ask(home, request);
        }
    }

    /// Everything that the home knew is lost; what runs on its agents goes on.
    fn restart_home(&mut self, home: usize) {
        self.runs += 1;
        self.homes[home] = HomeModel::new(self.now, shard(home), shards(), self.runs);
        self.words
            .retain(|(_, word)| !matches!(word, Word::ToHome(to, _) if *to == home));
        for agent in (home..AGENTS).step_by(HOMES) {
            self.agents[agent].session = None;
            self.permits.retain(|permit| permit.agent != agent);
        }
        if self.are_set {
            let limits = self.limits.clone();
            self.ask(home, Request::SetLimits { limits });
        }
        self.charge(home);
        self.assign(home);
    }

    fn connect(&mut self, agent: usize) {
        if self.agents[agent].session.is_some() {
            return;
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let one = &mut self.agents[agent];
        one.session = Some(session);
        let open = one.running.keys().map(|operation| OpenOperation {
            operation: *operation,
            fence: Fence(1),
            phase: Phase::Running,
        });
        let up = SessionUp {
            target: one.target,
            session,
            shard: ShardId(0),
            at_home: true,
            remote: ([127, 0, 0, 1], 9).into(),
            capacity: CAPACITY,
            kinds: Vec::new(),
            open: open.collect(),
            hostname: String::new(),
            software: String::new(),
            labels: Vec::new(),
        };
        let home = one.home;
        self.homes[home].handle_session_up(self.now, up);
        self.listen(home);
    }

    fn disconnect(&mut self, agent: usize) {
        let one = &mut self.agents[agent];
        let (home, id) = (one.home, one.target.agent);
        if let Some(session) = one.session.take() {
            self.permits.retain(|permit| permit.agent != agent);
            self.homes[home].handle_session_down(self.now, id, session);
            self.listen(home);
        }
    }

    fn demand(&mut self, agent: usize) {
        let one = &self.agents[agent];
        if one.session.is_none() {
            if !self.is_rough() {
                self.connect(agent);
            }
            return;
        }
        let lines = (0..).zip(&self.lines).zip(&one.ready);
        let lines = lines.map(|((number, line), ready)| Demand {
            number,
            line: line.clone(),
            ..Demand::of("exec", *ready)
        });
        let request = Request::Demand {
            target: one.target,
            server: ServerId(1),
            lines: lines.collect(),
        };
        self.ask(one.home, request);
    }

    /// Uses one permit, or lets it lie.
    fn dispatch(&mut self) {
        if self.permits.is_empty() {
            return;
        }
        let place = self.random.below(self.permits.len());
        let permit = &mut self.permits[place];
        let one = &mut self.agents[permit.agent];
        // What was offered may be used for anything.
        let line = permit
            .line
            .or_else(|| one.ready.iter().position(|ready| *ready > 0));
        let Some(line) = line.filter(|line| one.ready[*line] > 0) else {
            return;
        };
        one.ready[line] -= 1;
        permit.left -= 1;
        self.operations += 1;
        let process = ProcessId::from_bytes(self.operations.to_be_bytes());
        let operation = OperationId::new(process, 0);
        self.sent.insert(operation, (permit.agent, line));
        let (home, request) = (
            one.home,
            Request::Dispatch {
                target: one.target,
                grant: permit.grant,
                epoch: permit.epoch,
                command: Box::new(Command {
                    operation,
                    fence: Fence(1),
                    kind: "exec".to_owned(),
                    input: bytes_of_nothing(),
                    deadline_ms: 0,
                }),
            },
        );
        self.permits.retain(|permit| permit.left > 0);
        self.ask(home, request);
    }

    /// What runs comes to its end, with or without a session.
    fn work(&mut self, agent: usize) {
        let now = self.now;
        let one = &mut self.agents[agent];
        let ended = one.running.iter().filter(|(_, (_, end))| *end <= now);
        let ended: Vec<OperationId> = ended.map(|(operation, _)| *operation).collect();
        for operation in ended {
            let one = &mut self.agents[agent];
            one.running.remove(&operation);
            let (home, id) = (one.home, one.target.agent);
            if let Some(session) = one.session {
                let about = (operation, Fence(1));
                self.homes[home].handle_finished(now, (id, session), about, outcome());
                self.listen(home);
            }
        }
    }

    fn ask(&mut self, home: usize, request: Request) {
        self.homes[home].handle_request(self.now, request);
        self.listen(home);
    }

    fn listen(&mut self, home: usize) {
        while let Some(said) = self.homes[home].poll() {
            match said {
                Said::Dispatched { operation, .. } => {
                    let (agent, line) = self.sent[&operation];
                    let service = self.random.log_normal(0.4, 2.0);
                    let end = self.now + Duration::from_secs_f64(service.min(8.0));
                    self.agents[agent].running.insert(operation, (line, end));
                }
                Said::Event(event) => self.hear(*event),
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Granted {
                target,
                line,
                grant,
                epoch,
                permits,
                ttl,
                ..
            } => {
                let line = usize::try_from(line).unwrap_or(usize::MAX);
                self.permits.push(Permit {
                    agent: agent_of(target),
                    line: Some(line),
                    grant,
                    epoch,
                    left: permits,
                    until: Some(self.now + ttl),
                });
                self.count(line);
            }
            Event::Offered {
                target,
                grant,
                epoch,
            } => self.permits.push(Permit {
                agent: agent_of(target),
                line: None,
                grant,
                epoch,
                left: 1,
                until: None,
            }),
            Event::Withdrawn { grant, .. } => self.permits.retain(|permit| permit.grant != grant),
            Event::NotDelivered { operation, .. } => {
                if let Some((agent, line)) = self.sent.remove(&operation) {
                    self.agents[agent].ready[line] += 1;
                }
            }
            Event::Reported { .. } => self.post(Word::ToLender(event)),
            _ => {}
        }
    }

    /// Whether the last grant, to this line, was more than there was.
    fn count(&mut self, line: usize) {
        if !self.are_set {
            return;
        }
        let granted = &self.lines[line];
        for limit in &self.limits {
            if !counts(&limit.key, granted) {
                continue;
            }
            let is_of = |line: usize| counts(&limit.key, &self.lines[line]);
            let running = self.agents.iter().flat_map(|agent| agent.running.values());
            let running = running.filter(|(line, _)| is_of(*line)).count();
            let unused = self.permits.iter();
            let unused = unused.filter(|permit| permit.line.is_some_and(is_of));
            let unused: u32 = unused.map(|permit| permit.left).sum();
            let used = u32::try_from(running).unwrap_or(u32::MAX) + unused;
            self.found.over_issue += used.saturating_sub(limit.max);
        }
    }

    /// Puts a word on its way: it may be lost, late or repeated.
    fn post(&mut self, word: Word) {
        let delay = match self.is_rough() && self.chance(10) {
            true => self.random.between(0.0, 7.0),
            false => self.random.between(0.0, 0.03),
        };
        if !(self.is_rough() && self.chance(12)) {
            self.words
                .push((self.now + Duration::from_secs_f64(delay), word));
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.words)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.words = later;
        let due: Vec<(Instant, Word)> = due;
        for (_, word) in due {
            match word {
                Word::ToHome(home, request) => {
                    if self.is_rough() && self.chance(12) {
                        self.post(Word::ToHome(home, request.clone()));
                    }
                    self.ask(home, request);
                }
                Word::ToLender(event) => {
                    if let Event::Reported {
                        shard,
                        shards,
                        reports,
                    } = event
                    {
                        self.lender.handle_reported(now, shard, shards, &reports);
                        self.lend();
                    }
                }
            }
        }
    }

    fn lend(&mut self) {
        while let Some(request) = self.lender.poll_request() {
            match &request {
                Request::Lend { shard, .. } => {
                    let home = usize::from(shard.0);
                    self.post(Word::ToHome(home, request));
                }
                _ => (0..HOMES).for_each(|home| self.post(Word::ToHome(home, request.clone()))),
            }
        }
    }
}

fn lines() -> Vec<Line> {
    let line = |tenant: &str, pool: bool| Line {
        tenant: tenant.to_owned(),
        kind: "exec".to_owned(),
        resources: pool.then(|| "pool/fast".to_owned()).into_iter().collect(),
        ..Line::default()
    };
    vec![
        line("acme", true),
        line("acme", false),
        line("other", true),
        line("other", false),
    ]
}

fn counts(key: &LimitKey, line: &Line) -> bool {
    match key {
        LimitKey::Resource(name) => line.resources.contains(name),
        LimitKey::Tenant(name) => line.tenant == *name,
        _ => true,
    }
}

fn target(agent: usize) -> Target {
    let home = u8::try_from(agent % HOMES).unwrap_or(0);
    Target {
        agent: AgentId::from_bytes([u8::try_from(agent).unwrap_or(u8::MAX); 16]),
        group: GroupId::from_bytes([home; 16]),
        slot: Slot(home),
    }
}

fn agent_of(target: Target) -> usize {
    usize::from(target.agent.to_bytes()[0])
}

fn shard(home: usize) -> ShardId {
    ShardId(u16::try_from(home).unwrap_or(0))
}

fn shards() -> u16 {
    u16::try_from(HOMES).unwrap_or(1)
}

fn small(random: &mut Random, below: usize) -> u32 {
    u32::try_from(random.below(below)).unwrap_or(0)
}

fn outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Succeeded,
        exit_code: Some(0),
        message: String::new(),
        output: bytes_of_nothing(),
        service_time: Duration::ZERO,
    }
}

/// An empty payload, whatever its type is called.
fn bytes_of_nothing<T: Default>() -> T {
    T::default()
}
