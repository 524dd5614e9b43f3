//! Drover's rule: permits are counted where the work is, by the production code.
//!
//! ```text
//!   server ── Demand ──▶ owner (controller, queues, ledger) ── Granted ──▶ server: claims a row
//!   server ── Dispatch{grant} ──▶ owner ── Start ──▶ agent (journal, fences) ── Ended ──▶ owner
//!                                   permit free, next grant ◀──────────────────────────────┘
//! ```
//!
//! Whatever can break does, where a scenario says so: servers, the owner and the links to agents
//! die, stand still and come back; messages over a session that has ended are lost.

mod agent;
mod faults;
mod owner;
mod retries;
mod store;

use agent::Agent;
use gateway::flow::fair::Flow;
use owner::Owner;
use retries::Retries;
use store::Store;

use super::super::scenario::{Fault, Scenario};
use super::super::score::place;
use super::super::world::{Rule, World};

/// Seconds between two statements of all that a server has ready.
const RESTATE: f64 = 2.0;
/// Seconds that a message between owner and agent takes.
const SESSION_DELAY: (f64, f64) = (0.001, 0.01);

/// A process and how many had its place before: the operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::flow) struct Op {
    place: u32,
    run: u32,
}

impl Op {
    fn token(self) -> u64 {
        u64::from(self.run) << 32 | u64::from(self.place)
    }

    fn of_token(token: u64) -> Self {
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self {
            place: low(token),
            run: low(token >> 32),
        }
    }
}

/// What a permit was granted under, for the judge at the agent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(in crate::flow) struct Terms {
    /// Later grants have a higher one.
    order: u64,
    /// The limit at the time.
    limit: u32,
}

/// To an owner.
#[derive(Clone, Debug)]
pub(in crate::flow) enum ToOwner {
    /// Host, flow, processes that are ready.
    Demand(usize, Vec<(usize, usize, u32)>),
    Dispatch {
        server: usize,
        host: usize,
        grant: u64,
        epoch: u64,
        op: Op,
        fence: u64,
    },
    GiveBack {
        host: usize,
        grant: u64,
    },
    /// What became of an operation that was sent under another owner?
    Query {
        server: usize,
        host: usize,
        op: Op,
        fence: u64,
    },
    ServerGone(usize),
    /// A session was not heard of for too long.
    Silence(usize, u32),
    /// A grant is old.
    Expire(usize, u64),
    Tick,
}

/// To a process server.
#[derive(Clone, Copy, Debug)]
pub(in crate::flow) enum ToServer {
    Granted {
        host: usize,
        flow: usize,
        grant: u64,
        epoch: u64,
    },
    /// The operation did not begin, and will not under this fence.
    NotBegun(Op, u64),
    /// It ended, as the agent knows it under this fence.
    Done(Op, u64),
    NewOwner(u64),
    Restate,
}

/// From an agent.
#[derive(Clone, Debug)]
pub(in crate::flow) enum FromAgent {
    Ended {
        op: Op,
        fence: u64,
        service: f64,
    },
    Busy {
        op: Op,
        fence: u64,
    },
    /// A new session begins: what the journal holds when this arrives.
    Inventory,
}

/// An operation goes to an agent.
#[derive(Clone, Copy, Debug)]
pub(in crate::flow) struct Start {
    op: Op,
    fence: u64,
    epoch: u64,
    server: usize,
    terms: Terms,
}

pub(in crate::flow) enum Message {
    ToOwner(u64, ToOwner),
    /// Server, and which life of it.
    ToServer(usize, u32, ToServer),
    /// Server, whichever life it is in when this arrives.
    ToAnyLife(usize, ToServer),
    /// Host, session.
    ToAgent(usize, u32, Start),
    /// Epoch of the owner, host, session.
    FromAgent(u64, usize, u32, FromAgent),
    Forget(usize, Op),
    /// The time of a process's next attempt has come.
    Retry(usize),
    Repair(faults::Repair),
}

pub(super) type DroverWorld = World<Message>;

/// A process server. What it knows is in the store; this is whether it can act.
pub(super) struct Server {
    up: bool,
    life: u32,
    paused_until: u64,
    /// The owner that it knows.
    epoch: u64,
    /// What it stated more than nothing for: host, flow.
    stated: Vec<Vec<bool>>,
}

/// The whole rule.
pub(in crate::flow) struct Drover {
    /// By epoch, from 1; the last is the current one.
    owners: Vec<Owner>,
    servers: Vec<Server>,
    agents: Vec<Agent>,
    store: Store,
    retries: Retries,
    flows: Vec<Flow>,
    failing_over: bool,
}

/// What is left when all should be over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Processes that did not end.
    pub unfinished: usize,
    /// Permits that are granted or charged, and not free.
    pub leaked: usize,
    /// Keys of the ledger that are not idle.
    pub counted: bool,
}

/// Numbers of all flows: class, tenant, kind.
fn flows(scenario: &Scenario) -> Vec<Flow> {
    let mut flows = Vec::new();
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    for class in gateway::flow::fair::Class::ALL {
        for tenant in 0..scenario.tenants.len() {
            for kind in 0..scenario.kinds.len() {
                flows.push(Flow {
                    class,
                    tenant: small(tenant),
                    kind: small(kind),
                    resources: 0,
                });
            }
        }
    }
    flows
}

/// The flow that a process belongs to.
fn flow_of(world: &DroverWorld, place_of: usize) -> usize {
    let process = &world.processes[place_of];
    let (tenants, kinds) = (world.scenario.tenants.len(), world.scenario.kinds.len());
    (place(process.class) * tenants + process.tenant) * kinds + process.kind
}

impl Drover {
    pub(in crate::flow) fn new(scenario: &Scenario) -> Self {
        let flows = flows(scenario);
        let server = |_| Server {
            up: true,
            life: 0,
            paused_until: 0,
            epoch: 1,
            stated: vec![vec![false; flows.len()]; scenario.hosts],
        };
        Self {
            owners: vec![Owner::new(scenario, 1, &flows, None)],
            servers: (0..scenario.servers).map(server).collect(),
            agents: (0..scenario.hosts).map(|_| Agent::new()).collect(),
            store: Store::new(scenario, flows.len()),
            retries: Retries::new(scenario),
            flows,
            failing_over: false,
        }
    }

    fn owner(&mut self) -> &mut Owner {
        let last = self.owners.len() - 1;
        &mut self.owners[last]
    }

    /// What is left over.
    pub(in crate::flow) fn audit(&self) -> Audit {
        let owner = &self.owners[self.owners.len() - 1];
        Audit {
            unfinished: self.store.unfinished(),
            leaked: owner.permits(),
            counted: !owner.is_idle(),
        }
    }

    /// A process is ready: whoever thought there were none is told.
    fn ready(&mut self, world: &mut DroverWorld, place: usize) {
        let (host, flow) = (world.processes[place].host, flow_of(world, place));
        let count = self.store.ready(host, flow, place);
        if count > 1 {
            return;
        }
        for server in 0..self.servers.len() {
            if self.servers[server].up && self.servers[server].paused_until <= world.now {
                self.servers[server].stated[host][flow] = true;
                let demand = ToOwner::Demand(server, vec![(host, flow, count)]);
                world.send(Message::ToOwner(self.servers[server].epoch, demand));
            }
        }
    }

    fn handle_server(&mut self, world: &mut DroverWorld, server: usize, message: ToServer) {
        match message {
            ToServer::Granted {
                host,
                flow,
                grant,
                epoch,
            } => self.granted(world, server, (host, flow, grant), epoch),
            ToServer::NotBegun(op, fence) => {
                if self.store.is_claimed(op, fence) {
                    self.ready(world, op.place as usize);
                }
            }
            ToServer::Done(op, fence) => self.done(world, op, fence),
            ToServer::NewOwner(epoch) => self.new_owner(world, server, epoch),
            ToServer::Restate => {
                self.restate(world, server);
                let again = Message::ToServer(server, self.servers[server].life, message);
                world.send_after(RESTATE, again);
            }
        }
    }

    /// Permit first, then the claim, then the dispatch.
    fn granted(
        &mut self,
        world: &mut DroverWorld,
        server: usize,
        (host, flow, grant): (usize, usize, u64),
        epoch: u64,
    ) {
        if epoch < self.servers[server].epoch {
            return;
        }
        let life = self.servers[server].life;
        let claimed = self.store.claim(world, host, flow, (server, life), epoch);
        let message = match claimed {
            Some((op, fence)) => ToOwner::Dispatch {
                server,
                host,
                grant,
                epoch,
                op,
                fence,
            },
            None => ToOwner::GiveBack { host, grant },
        };
        world.send(Message::ToOwner(epoch, message));
    }

    fn done(&mut self, world: &mut DroverWorld, op: Op, fence: u64) {
        let Some(sent_at) = self.store.finish(op, fence) else {
            return;
        };
        let place = op.place as usize;
        if world.fails() {
            let host = world.processes[place].host;
            world.send(Message::Forget(host, op));
            self.failed(world, place);
            return;
        }
        let (host, tenant, work) = {
            let process = &world.processes[place];
            (process.host, process.tenant, process.work)
        };
        let took = world.since(sent_at);
        world.score.succeed(world.now, tenant, work, took);
        self.retries.succeeded(world, place);
        world.send(Message::Forget(host, op));
        self.replace(world, place);
    }

    /// A process is over: another one takes its place, in a world that does not end.
    fn replace(&mut self, world: &mut DroverWorld, place: usize) {
        if world.scenario.endless {
            world.renew(place);
            self.store.renew(place);
            self.ready(world, place);
        }
    }

    /// Another owner: it knows no demand, and may know nothing of what was sent to the one before.
    fn new_owner(&mut self, world: &mut DroverWorld, server: usize, epoch: u64) {
        if epoch <= self.servers[server].epoch {
            return;
        }
        self.servers[server].epoch = epoch;
        for stated in &mut self.servers[server].stated {
            stated.fill(false);
        }
        self.restate(world, server);
        for (op, fence) in self.store.leased_before(server, epoch) {
            let host = world.processes[op.place as usize].host;
            let query = ToOwner::Query {
                server,
                host,
                op,
                fence,
            };
            world.send(Message::ToOwner(epoch, query));
        }
    }

    fn restate(&mut self, world: &mut DroverWorld, server: usize) {
        let mut demand = Vec::new();
        for host in 0..self.agents.len() {
            for flow in 0..self.flows.len() {
                let count = self.store.count(host, flow);
                let stated = &mut self.servers[server].stated[host][flow];
                if count > 0 || *stated {
                    demand.push((host, flow, count));
                }
                *stated = count > 0;
            }
        }
        let epoch = self.servers[server].epoch;
        world.send(Message::ToOwner(epoch, ToOwner::Demand(server, demand)));
    }

    /// Whether a part that stands still gets a message later.
    fn is_deferred(
        world: &mut DroverWorld,
        paused_until: u64,
        message: Message,
    ) -> Option<Message> {
        if paused_until <= world.now {
            return Some(message);
        }
        world.send_at(paused_until, message);
        None
    }
}

impl Rule for Drover {
    type Message = Message;

    fn begin(&mut self, world: &mut DroverWorld) {
        for place in 0..world.processes.len() {
            let (host, flow) = (world.processes[place].host, flow_of(world, place));
            self.store.ready(host, flow, place);
        }
        for server in 0..self.servers.len() {
            self.restate(world, server);
            let later = world.random.between(0.0, RESTATE);
            world.send_after(later, Message::ToServer(server, 0, ToServer::Restate));
        }
        for host in 0..self.agents.len() {
            self.connect(world, host);
        }
        world.send_after(1.0, Message::ToOwner(1, ToOwner::Tick));
    }

    fn handle(&mut self, world: &mut DroverWorld, message: Message) {
        match message {
            Message::ToOwner(epoch, ref inner) => {
                let Some(owner) = self.owners.get_mut(owner::index(epoch)) else {
                    return;
                };
                if !owner.is_up() {
                    return;
                }
                let (paused_until, inner) = (owner.paused_until(), inner.clone());
                if Self::is_deferred(world, paused_until, message).is_some() {
                    owner.handle(world, inner);
                }
            }
            Message::ToServer(server, life, inner) => {
                let here = &self.servers[server];
                if here.up
                    && here.life == life
                    && Self::is_deferred(world, here.paused_until, message).is_some()
                {
                    self.handle_server(world, server, inner);
                }
            }
            Message::ToAnyLife(server, inner) => {
                let life = self.servers[server].life;
                self.handle(world, Message::ToServer(server, life, inner));
            }
            Message::ToAgent(host, session, start) => {
                let epoch = self.owners.len() as u64;
                self.agents[host].handle_start(world, host, session, &start, epoch);
            }
            Message::FromAgent(epoch, host, session, inner) => {
                if self.agents[host].session() != Some(session) {
                    return;
                }
                let Some(owner) = self.owners.get_mut(owner::index(epoch)) else {
                    return;
                };
                if !owner.is_up() {
                    return;
                }
                if owner.paused_until() > world.now {
                    let later = Message::FromAgent(epoch, host, session, inner);
                    world.send_at(owner.paused_until(), later);
                    return;
                }
                let journal = self.agents[host].journal();
                owner.handle_agent(world, host, session, inner, journal);
            }
            Message::Retry(place) => self.retry(world, place),
            Message::Forget(host, op) => self.agents[host].forget(op),
            Message::Repair(repair) => self.repair(world, repair),
        }
    }

    fn handle_ended(&mut self, world: &mut DroverWorld, host: usize, token: u64) {
        let epoch = self.owners.len() as u64;
        self.agents[host].handle_ended(world, host, Op::of_token(token), epoch);
    }

    fn handle_fault(&mut self, world: &mut DroverWorld, fault: Fault) {
        self.fault(world, fault);
    }

    fn is_over(&self) -> bool {
        let over = Audit::default();
        !self.failing_over && self.audit() == over
    }

    fn limit(&self, host: usize) -> Option<f64> {
        let owner = &self.owners[self.owners.len() - 1];
        Some(f64::from(owner.limit(host)))
    }
}
