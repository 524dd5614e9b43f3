//! The owner of all groups: the production controller, queues and ledger, and what binds them.

use std::time::Duration;

use gateway::flow::controller::{Bounds, Controller, End, Sample};
use gateway::flow::fair::{Class, Cost, Demand, Fit, Flow, Queues, Room};
use gateway::flow::ledger::{Denied, Key, Ledger, Scope, Vector};

use super::super::super::events::Nanos;
use super::super::super::scenario::Scenario;
use super::agent::Entry;
use super::{DroverWorld, FromAgent, Message, Op, SESSION_DELAY, Start, Terms, ToOwner, ToServer};

/// Seconds after which a grant that was not used is free again.
const GRANT_LIFE: f64 = 2.0;
/// Seconds between two looks at timers of controllers.
const TICK: f64 = 5.0;

/// The place of an owner in the list of all.
pub(super) fn index(epoch: u64) -> usize {
    usize::try_from(epoch).unwrap_or(usize::MAX).wrapping_sub(1)
}

struct Granted {
    id: u64,
    server: usize,
    flow: usize,
    cost: Cost,
    terms: Terms,
}

struct Charged {
    op: Op,
    fence: u64,
    server: usize,
    /// What it was charged with, where this owner granted it.
    paid: Option<(usize, Cost)>,
}

struct Target {
    controller: Controller,
    queues: Queues,
    session: u32,
    /// The agent's inventory of this session is known; nothing is granted before.
    synced: bool,
    granted: Vec<Granted>,
    charged: Vec<Charged>,
    agent: Vector,
    /// What an operation needs besides its agent.
    others: Vector,
}

type Asker = (usize, usize);

pub(super) struct Owner {
    epoch: u64,
    up: bool,
    paused_until: Nanos,
    bounds: Bounds,
    flows: Vec<Flow>,
    weights: Vec<u32>,
    targets: Vec<Target>,
    ledger: Ledger<Asker>,
    /// One for each storage device: its key, and who is behind it.
    devices: Vec<(Key, Controller)>,
    behind: usize,
    device_bounds: Bounds,
    /// Permits that each server has out, and how many it may have.
    out: Vec<u32>,
    workers: u32,
    orders: u64,
}

#[expect(
    clippy::expect_used,
    reason = "a simulated fleet has a few hundred keys, three in a vector"
)]
fn vector(keys: &[Option<Key>]) -> Vector {
    Vector::new(keys.iter().copied().flatten()).expect("three keys")
}

fn key(scope: Scope, number: usize) -> Option<Key> {
    Key::new(scope, u32::try_from(number).ok()?)
}

impl Owner {
    /// A new owner; it knows the last limits of the one before, from the store.
    pub(super) fn new(
        scenario: &Scenario,
        epoch: u64,
        flows: &[Flow],
        before: Option<&Self>,
    ) -> Self {
        let behind = scenario.storage.map_or(usize::MAX, |(behind, _)| behind);
        let warm = |controller: Option<&Controller>| {
            let limit = controller.and_then(Controller::known_limit);
            limit.map_or_else(Controller::new, Controller::warm)
        };
        let target = |host: usize| Target {
            controller: warm(before.map(|owner| &owner.targets[host].controller)),
            queues: Queues::new(),
            session: 0,
            synced: false,
            granted: Vec::new(),
            charged: Vec::new(),
            agent: vector(&[key(Scope::Agent, host)]),
            others: match behind {
                usize::MAX => vector(&[]),
                _ => vector(&[key(Scope::Resource, host / behind)]),
            },
        };
        let devices = match behind {
            usize::MAX => 0,
            _ => scenario.hosts.div_ceil(behind),
        };
        let device = |number| {
            let known = before.and_then(|owner| owner.devices.get(number));
            let controller = warm(known.map(|(_, controller)| controller));
            Some((key(Scope::Resource, number)?, controller))
        };
        let refuse_at = u32::try_from(scenario.refuse_at).unwrap_or(u32::MAX);
        let mut owner = Self {
            epoch,
            up: true,
            paused_until: 0,
            bounds: Bounds::up_to(refuse_at),
            flows: flows.to_vec(),
            weights: scenario.tenants.iter().map(|t| t.weight).collect(),
            targets: (0..scenario.hosts).map(target).collect(),
            ledger: Ledger::default(),
            devices: (0..devices).filter_map(device).collect(),
            behind,
            device_bounds: Bounds::up_to(refuse_at.saturating_mul(4)),
            out: vec![0; scenario.servers],
            workers: scenario.workers,
            orders: epoch << 40,
        };
        owner.set_device_limits();
        owner
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    pub(super) fn paused_until(&self) -> Nanos {
        self.paused_until
    }

    pub(super) fn stop(&mut self) {
        self.up = false;
    }

    pub(super) fn pause(&mut self, until: Nanos) {
        self.paused_until = self.paused_until.max(until);
    }

    pub(super) fn limit(&self, host: usize) -> u32 {
        self.targets[host].controller.limit(&self.bounds)
    }

    /// Permits that are not free.
    pub(super) fn permits(&self) -> usize {
        let targets = self.targets.iter();
        targets.map(|t| t.granted.len() + t.charged.len()).sum()
    }

    /// Whether nothing is counted anywhere.
    pub(super) fn is_idle(&self) -> bool {
        self.ledger.is_idle() && self.out.iter().all(|out| *out == 0)
    }

    pub(super) fn handle(&mut self, world: &mut DroverWorld, message: ToOwner) {
        match message {
            ToOwner::Demand(server, statements) => self.demand(world, server, &statements),
            ToOwner::Dispatch {
                server,
                host,
                grant,
                epoch,
                op,
                fence,
            } => {
                let sent = epoch == self.epoch && self.dispatch(world, host, grant, op, fence);
                if !sent {
                    self.tell(world, server, ToServer::NotBegun(op, fence));
                }
            }
            ToOwner::GiveBack { host, grant } | ToOwner::Expire(host, grant) => {
                self.give_back(world, host, grant);
            }
            ToOwner::Query {
                server,
                host,
                op,
                fence,
            } => self.query(world, server, host, op, fence),
            ToOwner::ServerGone(server) => {
                let server = u32::try_from(server).unwrap_or(u32::MAX);
                for target in &mut self.targets {
                    target.queues.handle_server_gone(server);
                }
            }
            ToOwner::Silence(host, session) => {
                let target = &mut self.targets[host];
                target.synced &= target.session != session;
            }
            ToOwner::Tick => self.tick(world),
        }
    }

    fn demand(
        &mut self,
        world: &mut DroverWorld,
        server: usize,
        statements: &[(usize, usize, u32)],
    ) {
        let id = u32::try_from(server).unwrap_or(u32::MAX);
        for (host, flow, count) in statements {
            let flow = self.flows[*flow];
            let weight = self.weights.get(flow.tenant as usize).copied().unwrap_or(1);
            let demand = Demand {
                weight,
                ..Demand::of(*count)
            };
            let queues = &mut self.targets[*host].queues;
            // A full target takes it at the next statement.
            let taken = queues.handle_demand(world.instant(), id, &flow, &demand);
            debug_assert_eq!(taken, Ok(()));
        }
        let mut hosts: Vec<usize> = statements.iter().map(|(host, ..)| *host).collect();
        hosts.dedup();
        // Not always from the first: a server with few workers would serve the first hosts only.
        let first = world.random.below(hosts.len()).min(hosts.len());
        hosts.rotate_left(first);
        for host in hosts {
            self.pump(world, host);
        }
    }

    /// Grants what can be granted on a host.
    fn pump(&mut self, world: &mut DroverWorld, host: usize) {
        while let Some(grant) = self.next(world, host) {
            let flow = self.flows.iter().position(|flow| *flow == grant.flow);
            let flow = flow.unwrap_or(0);
            self.orders += 1;
            let id = self.orders;
            let reserve = u32::from(grant.flow.class == Class::System);
            let target = &mut self.targets[host];
            let limit = target.controller.limit(&self.bounds) + reserve;
            let server = grant.server as usize;
            self.ledger.charge(&target.agent);
            self.out[server] += 1;
            target.granted.push(Granted {
                id,
                server,
                flow,
                cost: grant.cost,
                terms: Terms { order: id, limit },
            });
            let granted = ToServer::Granted {
                host,
                flow,
                grant: id,
                epoch: self.epoch,
            };
            self.tell(world, server, granted);
            let expire = Message::ToOwner(self.epoch, ToOwner::Expire(host, id));
            world.send_after(GRANT_LIFE, expire);
        }
    }

    fn next(&mut self, world: &DroverWorld, host: usize) -> Option<gateway::flow::fair::Grant> {
        let target = &mut self.targets[host];
        if !target.synced {
            return None;
        }
        let limit = target.controller.limit(&self.bounds);
        let used = target.granted.len() + target.charged.len();
        let used = u32::try_from(used).unwrap_or(u32::MAX);
        let room = Room {
            free: limit.saturating_sub(used),
            reserve: (limit + 1).saturating_sub(used).min(1),
        };
        let (out, workers, others) = (&self.out, self.workers, target.others);
        let (ledger, flows) = (&mut self.ledger, &self.flows);
        target.queues.next(world.instant(), room, |flow, server| {
            if out[server as usize] >= workers {
                return Fit::OtherServer;
            }
            let number = flows.iter().position(|known| known == flow).unwrap_or(0);
            match ledger.acquire((host, number), 0, &others) {
                Ok(()) => Fit::Take,
                Err(Denied::Parked(_)) => Fit::Park,
                Err(Denied::Full(_)) => Fit::OtherServer,
            }
        })
    }

    /// Permits became free on a host, of a server: whoever waited for either is next.
    fn freed(&mut self, world: &mut DroverWorld, host: usize, server: usize) {
        if self.out[server] + 1 == self.workers {
            // All hosts may have waited for this server: the emptiest is first.
            let mut hosts: Vec<usize> = (0..self.targets.len()).collect();
            hosts.sort_by(|one, other| self.load(*one).total_cmp(&self.load(*other)));
            for host in hosts {
                self.pump(world, host);
            }
        } else {
            self.pump(world, host);
        }
        self.wake(world);
    }

    /// What part of a host's limit is used.
    fn load(&self, host: usize) -> f64 {
        let target = &self.targets[host];
        let used = u32::try_from(target.granted.len() + target.charged.len()).unwrap_or(u32::MAX);
        let limit = target.controller.limit(&self.bounds);
        f64::from(used) / f64::from(limit.max(1))
    }

    fn wake(&mut self, world: &mut DroverWorld) {
        while let Some((host, flow)) = self.ledger.poll_wake() {
            let flow_here = self.flows[flow];
            self.targets[host].queues.handle_wake(&flow_here);
            self.pump(world, host);
            self.ledger.decline((host, flow));
        }
    }

    fn release(&mut self, host: usize, server: usize) {
        let target = &self.targets[host];
        self.ledger.release(&target.agent);
        self.ledger.release(&target.others);
        self.out[server] = self.out[server].saturating_sub(1);
    }

    fn give_back(&mut self, world: &mut DroverWorld, host: usize, grant: u64) {
        let target = &mut self.targets[host];
        let Some(place) = target.granted.iter().position(|g| g.id == grant) else {
            return;
        };
        let granted = target.granted.swap_remove(place);
        let flow = self.flows[granted.flow];
        target
            .queues
            .handle_end(&flow, granted.cost, Duration::ZERO);
        self.release(host, granted.server);
        self.freed(world, host, granted.server);
    }

    /// The permit moves to the operation. Whether it is on its way.
    fn dispatch(
        &mut self,
        world: &mut DroverWorld,
        host: usize,
        grant: u64,
        op: Op,
        fence: u64,
    ) -> bool {
        let target = &mut self.targets[host];
        let Some(place) = target.granted.iter().position(|g| g.id == grant) else {
            return false;
        };
        if !target.synced {
            return false;
        }
        let granted = target.granted.swap_remove(place);
        let server = granted.server;
        let start = Start {
            op,
            fence,
            epoch: self.epoch,
            server,
            terms: granted.terms,
        };
        let session = target.session;
        match target.charged.iter_mut().find(|charge| charge.op == op) {
            // One operation takes one permit, however often it is sent.
            Some(charge) => {
                charge.fence = fence.max(charge.fence);
                let before = std::mem::replace(&mut charge.server, server);
                self.release(host, before);
            }
            None => target.charged.push(Charged {
                op,
                fence,
                server,
                paid: Some((granted.flow, granted.cost)),
            }),
        }
        let delay = world.random.between(SESSION_DELAY.0, SESSION_DELAY.1);
        world.send_after(delay, Message::ToAgent(host, session, start));
        true
    }

    fn query(&mut self, world: &mut DroverWorld, server: usize, host: usize, op: Op, fence: u64) {
        let target = &mut self.targets[host];
        if !target.synced {
            // Nobody can say until the agent is back.
            let again = ToOwner::Query {
                server,
                host,
                op,
                fence,
            };
            world.send_after(0.5, Message::ToOwner(self.epoch, again));
            return;
        }
        // Under an earlier fence it may run, but its end would not be taken.
        let known = |charge: &Charged| charge.op == op && charge.fence >= fence;
        if !target.charged.iter().any(known) {
            self.tell(world, server, ToServer::NotBegun(op, fence));
        }
    }

    pub(super) fn handle_agent(
        &mut self,
        world: &mut DroverWorld,
        host: usize,
        session: u32,
        said: FromAgent,
        journal: &[Entry],
    ) {
        match said {
            FromAgent::Inventory => self.resync(world, host, session, journal),
            _ if self.targets[host].session != session => {}
            FromAgent::Ended { op, fence, service } => {
                let service = Duration::from_secs_f64(service);
                if let Some(charge) = self.end(world, host, (op, fence), End::Ran, service) {
                    self.tell(world, charge.server, ToServer::Done(op, fence));
                    self.freed(world, host, charge.server);
                }
            }
            FromAgent::Busy { op, fence } => {
                if let Some(charge) = self.end(world, host, (op, fence), End::Busy, Duration::ZERO)
                {
                    self.tell(world, charge.server, ToServer::NotBegun(op, fence));
                    self.freed(world, host, charge.server);
                }
            }
        }
    }

    /// An operation is known to be over: its permit is free, and the controllers hear of it. An end
    /// under an earlier fence says nothing of the dispatch that is on its way.
    fn end(
        &mut self,
        world: &DroverWorld,
        host: usize,
        (op, fence): (Op, u64),
        end: End,
        service: Duration,
    ) -> Option<Charged> {
        let target = &mut self.targets[host];
        let is_it = |charge: &Charged| charge.op == op && charge.fence <= fence;
        let place = target.charged.iter().position(is_it)?;
        let in_flight = target.granted.len() + target.charged.len();
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        let charge = target.charged.swap_remove(place);
        let kind = u32::try_from(world.processes[op.place as usize].kind).unwrap_or(u32::MAX);
        let mut sample = Sample {
            kind,
            service,
            end,
            in_flight,
        };
        let now = world.instant();
        target.controller.handle_end(now, &self.bounds, &sample);
        if let Some((flow, cost)) = charge.paid {
            target.queues.handle_end(&self.flows[flow], cost, service);
        }
        if let Some((key, controller)) = self.devices.get_mut(host / self.behind) {
            sample.in_flight = self.ledger.used(*key);
            controller.handle_end(now, &self.device_bounds, &sample);
            let limit = controller.limit(&self.device_bounds);
            if self.ledger.limit(*key) != Some(limit) {
                self.ledger.set_limit(*key, Some(limit));
            }
        }
        self.release(host, charge.server);
        Some(charge)
    }

    fn set_device_limits(&mut self) {
        for (key, controller) in &self.devices {
            let limit = controller.limit(&self.device_bounds);
            self.ledger.set_limit(*key, Some(limit));
        }
    }

    /// The count of an agent is made anew, of what its journal holds.
    fn resync(&mut self, world: &mut DroverWorld, host: usize, session: u32, entries: &[Entry]) {
        if self.targets[host].session > session {
            return;
        }
        let before = std::mem::take(&mut self.targets[host].charged);
        for mut charge in before {
            let entry = entries.iter().find(|entry| entry.op == charge.op);
            let fence = entry.map_or(0, |entry| entry.fence);
            if fence < charge.fence {
                // This dispatch was never seen, and the session that it was sent on is over.
                let not_begun = ToServer::NotBegun(charge.op, charge.fence);
                self.tell(world, charge.server, not_begun);
            }
            if entry.is_some_and(|entry| entry.running) {
                charge.fence = fence;
                self.targets[host].charged.push(charge);
            } else {
                self.release(host, charge.server);
            }
        }
        for entry in entries {
            let target = &mut self.targets[host];
            if !entry.running {
                let done = ToServer::Done(entry.op, entry.fence);
                self.tell(world, entry.server, done);
            } else if !target.charged.iter().any(|charge| charge.op == entry.op) {
                target.charged.push(Charged {
                    op: entry.op,
                    fence: entry.fence,
                    server: entry.server,
                    paid: None,
                });
                self.ledger.charge(&target.agent);
                self.ledger.charge(&target.others);
                self.out[entry.server] += 1;
            }
        }
        let target = &mut self.targets[host];
        target.session = session;
        target.synced = true;
        self.pump(world, host);
        self.wake(world);
    }

    fn tick(&mut self, world: &mut DroverWorld) {
        let now = world.instant();
        for target in &mut self.targets {
            let due = target.controller.poll_timeout();
            if due.is_some_and(|due| due <= now) {
                target.controller.handle_timeout(now, &self.bounds);
            }
        }
        for (_, controller) in &mut self.devices {
            if controller.poll_timeout().is_some_and(|due| due <= now) {
                controller.handle_timeout(now, &self.device_bounds);
            }
        }
        self.set_device_limits();
        for host in 0..self.targets.len() {
            self.pump(world, host);
        }
        self.wake(world);
        world.send_after(TICK, Message::ToOwner(self.epoch, ToOwner::Tick));
    }

    /// A server is told, whichever life it is in: what it cannot use any more it ignores.
    fn tell(&self, world: &mut DroverWorld, server: usize, message: ToServer) {
        let (least, most) = world.scenario.delay;
        let delay = world.random.between(least, most);
        world.send_after(delay, Message::ToAnyLife(server, message));
    }
}
