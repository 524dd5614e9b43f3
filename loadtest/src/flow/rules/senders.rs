//! Process servers that decide for themselves what they send: workers, attempts, time-outs.
//!
//! A worker holds a process from sending to reply, refusal or time-out. A host knows nothing of
//! time-outs: what nobody waits for any more runs to its end and takes its share. What the servers
//! do differently is a [`Policy`].

use std::collections::VecDeque;

use super::super::events::{Nanos, nanos};
use super::super::random::Random;
use super::super::scenario::Scenario;
use super::super::world::{Rule, World};

/// How an attempt ended for its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    Well,
    Refused,
    TimedOut,
}

/// What distinguishes the servers of a rule.
pub(super) trait Policy {
    /// Whether a server may send one more operation to a host now; it does so if it may.
    fn may_send(&mut self, now: Nanos, server: usize, host: usize) -> bool;

    /// An attempt of a server ended after so many seconds.
    fn handle_ended(&mut self, _server: usize, _host: usize, _took: f64, _ended: Ended) {}

    /// Seconds until a process is tried again after so many failures.
    fn retry_after(&mut self, failures: u32, random: &mut Random) -> f64 {
        let most = 2_f64
            .powi(i32::try_from(failures.min(16)).unwrap_or(16))
            .min(120.0);
        random.between(0.0, most)
    }

    /// When a server that was not allowed to send should look again, besides at replies.
    fn look_again_at(&self, _now: Nanos) -> Option<Nanos> {
        None
    }

    /// How often an attempt is repeated at once after a time-out.
    fn resends(&self) -> u32 {
        0
    }

    /// Seconds between two looks at everything that is due, where a server does not know what is
    /// ready at once.
    fn replays(&self) -> Option<f64> {
        None
    }

    /// What all servers together may have in flight on a host.
    fn limit(&self, _host: usize) -> Option<f64> {
        None
    }
}

/// What a replaying server takes into its queue at most.
const QUEUE_MAX: usize = 1000;

pub(super) enum Message {
    Arrive(usize),
    Reply(usize, Ended),
    TimeOut(usize),
    Ready(usize),
    Look(usize),
    Replay(usize),
}

struct Attempt {
    process: usize,
    server: usize,
    sent_at: Nanos,
    /// Its sender still waits.
    live: bool,
    resends: u32,
}

struct Server {
    idle: u32,
    /// Processes that a replay found.
    queue: Vec<usize>,
}

#[derive(Clone, Default)]
struct State {
    busy: bool,
    failures: u32,
    run_at: Nanos,
}

/// Servers with a policy.
pub(super) struct Senders {
    policy: Box<dyn Policy>,
    servers: Vec<Server>,
    states: Vec<State>,
    attempts: Vec<Attempt>,
    /// Ready processes of each host, where servers know them at once.
    ready: Vec<VecDeque<usize>>,
    looking: bool,
}

type SendersWorld = World<Message>;

impl Senders {
    pub(super) fn new(scenario: &Scenario, policy: Box<dyn Policy>) -> Self {
        let server = |_| Server {
            idle: scenario.workers,
            queue: Vec::new(),
        };
        Self {
            policy,
            servers: (0..scenario.servers).map(server).collect(),
            states: vec![State::default(); scenario.outstanding],
            attempts: Vec::new(),
            ready: vec![VecDeque::new(); scenario.hosts],
            looking: false,
        }
    }

    /// A process is ready: to whom it may concern.
    fn ready(&mut self, world: &mut SendersWorld, process: usize) {
        let server = world.random.below(self.servers.len());
        if self.policy.replays().is_some() {
            let queue = &mut self.servers[server].queue;
            if queue.len() < QUEUE_MAX {
                queue.push(process);
            }
            self.fill(world, server);
            return;
        }
        self.ready[world.processes[process].host].push_back(process);
        for step in 0..self.servers.len() {
            let server = (server + step) % self.servers.len();
            if self.servers[server].idle > 0 {
                self.fill(world, server);
                return;
            }
        }
    }

    /// Gives idle workers something to do.
    fn fill(&mut self, world: &mut SendersWorld, server: usize) {
        while self.servers[server].idle > 0 {
            let Some(process) = self.pick(world, server) else {
                return;
            };
            self.servers[server].idle -= 1;
            self.states[process].busy = true;
            let resends = self.policy.resends();
            self.attempt(world, server, process, resends);
        }
    }

    fn pick(&mut self, world: &mut SendersWorld, server: usize) -> Option<usize> {
        if self.policy.replays().is_some() {
            loop {
                let queue = &mut self.servers[server].queue;
                let place = world.random.below(queue.len());
                let process = (!queue.is_empty()).then(|| queue.swap_remove(place))?;
                // The lock: another server may have it, or may have had it.
                let state = &self.states[process];
                if !state.busy && state.run_at <= world.now {
                    return Some(process);
                }
            }
        }
        let hosts = self.ready.len();
        let first = world.random.below(hosts);
        for step in 0..hosts {
            let host = (first + step) % hosts;
            if !self.ready[host].is_empty() && self.policy.may_send(world.now, server, host) {
                return self.ready[host].pop_front();
            }
        }
        if !self.looking
            && let Some(at) = self.policy.look_again_at(world.now)
        {
            self.looking = true;
            let server = world.random.below(self.servers.len());
            world.send_at(at, Message::Look(server));
        }
        None
    }

    fn attempt(&mut self, world: &mut SendersWorld, server: usize, process: usize, resends: u32) {
        let number = self.attempts.len();
        self.attempts.push(Attempt {
            process,
            server,
            sent_at: world.now,
            live: true,
            resends,
        });
        world.send(Message::Arrive(number));
        let timeout = world.scenario.timeout;
        world.send_after(timeout, Message::TimeOut(number));
    }

    fn arrive(&mut self, world: &mut SendersWorld, number: usize) {
        let process = &world.processes[self.attempts[number].process];
        let (host, work) = (process.host, process.work);
        let (class, ready_at) = (process.class, process.ready_at);
        let token = u64::try_from(number).unwrap_or(u64::MAX);
        match world.plant.start(world.now, host, token, work) {
            Ok(()) => world.score.start(world.now, class, ready_at),
            Err(_) => {
                world.score.refuse(world.now);
                world.send(Message::Reply(number, Ended::Refused));
            }
        }
    }

    /// The sender learns how its attempt ended.
    fn end(&mut self, world: &mut SendersWorld, number: usize, ended: Ended) {
        let attempt = &mut self.attempts[number];
        if !attempt.live {
            return;
        }
        attempt.live = false;
        let (process, server, resends) = (attempt.process, attempt.server, attempt.resends);
        let took = world.since(attempt.sent_at);
        let host = world.processes[process].host;
        self.policy.handle_ended(server, host, took, ended);
        if ended == Ended::TimedOut {
            world.score.time_out(world.now);
            if resends > 0 {
                self.attempt(world, server, process, resends - 1);
                return;
            }
        }
        let state = &mut self.states[process];
        state.busy = false;
        if ended == Ended::Well {
            *state = State::default();
            let (tenant, work) = {
                let process = &world.processes[process];
                (process.tenant, process.work)
            };
            world.score.succeed(world.now, tenant, work, took);
            world.renew(process);
            self.ready(world, process);
        } else {
            state.failures += 1;
            let wait = self.policy.retry_after(state.failures, &mut world.random);
            state.run_at = world.now + nanos(wait);
            if self.policy.replays().is_none() {
                world.send_after(wait, Message::Ready(process));
            }
        }
        self.servers[server].idle += 1;
        self.fill(world, server);
    }

    /// Everything that is due and not being worked on, in no order.
    fn replay(&mut self, world: &mut SendersWorld, server: usize) {
        let is_due = |state: &State| !state.busy && state.run_at <= world.now;
        let due = self.states.iter().enumerate();
        let mut due: Vec<usize> = due
            .filter(|(_, state)| is_due(state))
            .map(|(process, _)| process)
            .collect();
        let queue = &mut self.servers[server].queue;
        queue.clear();
        while queue.len() < QUEUE_MAX && !due.is_empty() {
            let place = world.random.below(due.len());
            queue.push(due.swap_remove(place));
        }
        self.fill(world, server);
        if let Some(pause) = self.policy.replays() {
            world.send_after(pause, Message::Replay(server));
        }
    }
}

impl Rule for Senders {
    type Message = Message;

    fn begin(&mut self, world: &mut SendersWorld) {
        if let Some(pause) = self.policy.replays() {
            for server in 0..self.servers.len() {
                let first = world.random.between(0.0, pause);
                world.send_after(first, Message::Replay(server));
            }
            return;
        }
        for process in 0..world.processes.len() {
            self.ready[world.processes[process].host].push_back(process);
        }
        for server in 0..self.servers.len() {
            self.fill(world, server);
        }
    }

    fn handle(&mut self, world: &mut SendersWorld, message: Message) {
        match message {
            Message::Arrive(attempt) => self.arrive(world, attempt),
            Message::Reply(attempt, ended) => self.end(world, attempt, ended),
            Message::TimeOut(attempt) => self.end(world, attempt, Ended::TimedOut),
            Message::Ready(process) => self.ready(world, process),
            Message::Replay(server) => self.replay(world, server),
            Message::Look(server) => {
                self.looking = false;
                for step in 0..self.servers.len() {
                    let server = (server + step) % self.servers.len();
                    if self.servers[server].idle > 0 {
                        self.fill(world, server);
                        return;
                    }
                }
            }
        }
    }

    fn handle_ended(&mut self, world: &mut SendersWorld, _host: usize, token: u64) {
        let attempt = usize::try_from(token).unwrap_or(usize::MAX);
        world.send(Message::Reply(attempt, Ended::Well));
    }

    fn limit(&self, host: usize) -> Option<f64> {
        self.policy.limit(host)
    }
}
