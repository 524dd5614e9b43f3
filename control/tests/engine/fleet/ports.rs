//! The simulated gateway's ends: one for each process server. What happens to operations and
//! sessions is told to all of them, which is more than a real gateway does; grants go to who asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use control::downlink::{Link, LinkFull, Wake};
use protocol::ids::{GatewayId, GrantId, ServerId, ShardId};
use protocol::limits::GRANT_TTL;
use protocol::link::{Event, Request, SessionUp};
use protocol::operation::{OpenOperation, Phase};
use rand::Rng as _;

use super::{Body, CAPACITY, Fleet, Grant, QUEUE, World};

/// What waits for one process server.
#[derive(Default)]
pub(super) struct Queue {
    /// While the server is there.
    pub(super) wake: Option<Wake>,
    events: VecDeque<Event>,
    /// Commands from this server are lost on their way.
    loses_commands: bool,
    /// The server stands still for so long when it asks next.
    hangs: Option<Duration>,
}

/// How the gateway tells a process server from others.
pub(crate) fn server(port: usize) -> ServerId {
    ServerId(1 + u32::try_from(port).unwrap())
}

/// One process server's end.
pub(crate) struct Port(pub(crate) Arc<Fleet>, pub(crate) usize);

impl Link for Port {
    fn gateway(&self) -> GatewayId {
        GatewayId(uuid::Uuid::from_u128(self.0.world().run))
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        let mut world = self.0.world();
        if world.ports[self.1].loses_commands && matches!(request, Request::Dispatch { .. }) {
            return Ok(());
        }
        if world.requests.len() >= QUEUE {
            return Err(LinkFull(Box::new(request)));
        }
        world.requests.push_back((self.1, request));
        Ok(())
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let hangs = self.0.world().ports[self.1].hangs.take();
        if let Some(time) = hangs {
            // Nobody says anything: the whole time passes, on this very thread.
            let (_says, never) = std::sync::mpsc::channel::<()>();
            never.recv_timeout(time).ok();
        }
        let mut world = self.0.world();
        let queue = &mut world.ports[self.1].events;
        let count = max.min(queue.len());
        out.extend(queue.drain(..count));
        count
    }
}

impl Fleet {
    /// The server at this end stands still for so long.
    pub(crate) fn hang_port(&self, port: usize, time: Duration) {
        self.world().ports[port].hangs = Some(time);
    }

    /// A process server is there; it hears of every session that is up.
    pub(crate) fn power_on(&self, port: usize, wake: &Wake) {
        let mut world = self.world();
        if world.ports.is_empty() {
            world.run += 1;
            world.epoch.0 += 1;
        }
        world.tell_all();
        let up: Vec<Event> = (0..world.agents.len())
            .filter(|at| world.agents[*at].session.is_some())
            .map(|at| {
                let open = world.open(at);
                world.session_up(at, open)
            })
            .collect();
        while world.ports.len() <= port {
            world.ports.push(Queue::default());
        }
        world.ports[port] = Queue {
            wake: Some(wake.clone()),
            events: up.into(),
            loses_commands: false,
            hangs: None,
        };
    }

    /// From now on a process server's commands are lost on their way.
    pub(crate) fn lose_commands_of(&self, port: usize) {
        self.world().ports[port].loses_commands = true;
    }

    /// From now on they arrive again.
    pub(crate) fn deliver_commands_of(&self, port: usize) {
        self.world().ports[port].loses_commands = false;
    }

    /// A process server is gone: what was in its queues is lost, its grants run out.
    pub(crate) fn power_off_port(&self, port: usize) {
        let mut world = self.world();
        world.ports[port] = Queue::default();
        world.requests.retain(|(from, _)| *from != port);
        for agent in &mut world.agents {
            if let Some(session) = &mut agent.session {
                session.demand.retain(|(of, _), _| *of != port);
                session.grants.retain(|_, grant| grant.port != port);
                session.offer.take_if(|(_, to)| *to == port);
            }
        }
    }

    /// The gateway is gone with its servers: what was in its queues is lost, agents go on.
    pub(crate) fn power_off(&self) {
        let mut world = self.world();
        world.ports.clear();
        world.requests.clear();
        world.events.clear();
        for agent in &mut world.agents {
            agent.session = None;
        }
    }
}

impl World {
    /// Gives every server what has happened in this turn.
    pub(super) fn tell_all(&mut self) {
        let events = std::mem::take(&mut self.events);
        for port in self.ports.iter_mut().filter(|port| port.wake.is_some()) {
            port.events.extend(events.iter().cloned());
        }
    }

    /// Wakes every server that has something to read.
    pub(super) fn ring(&self) {
        for port in self.ports.iter().filter(|port| !port.events.is_empty()) {
            if let Some(wake) = &port.wake {
                wake.ring();
            }
        }
    }

    /// Grants what is wanted, and offers one permit where there is room and nobody waits.
    pub(super) fn grant(&mut self, at: usize) {
        let alive: Vec<usize> = (0..self.ports.len())
            .filter(|port| self.ports[*port].wake.is_some())
            .collect();
        let first = self.rng.random_range(0..alive.len());
        for turn in 0..alive.len() {
            let port = alive[(first + turn) % alive.len()];
            self.grant_to(at, port);
        }
    }

    fn grant_to(&mut self, at: usize, port: usize) {
        let (granted, offered, epoch) =
            (GrantId(self.number()), GrantId(self.number()), self.epoch);
        let withdraw = self.fault(20);
        let luck: usize = self.rng.random_range(0..1 << 16);
        let agent = &mut self.agents[at];
        let (target, Some(session)) = (agent.target, &mut agent.session) else {
            return;
        };
        let events = &mut self.ports[port].events;
        let unused: u32 = session.grants.values().map(|grant| grant.permits).sum();
        let charged = u32::try_from(session.charged.len()).unwrap();
        if let Some((grant, _)) = session.offer.take_if(|(_, to)| withdraw && *to == port) {
            events.push_back(Event::Withdrawn { target, grant });
        }
        let offers = u32::from(session.offer.is_some());
        let free = CAPACITY.saturating_sub(charged + unused + offers);
        // Of one of its lines that wait; which one is a matter of luck.
        let waits = session.demand.iter().filter_map(|((of, line), ready)| {
            let own = session.grants.values();
            let own = own.filter(|grant| (grant.port, grant.line) == (port, *line));
            let own: u32 = own.map(|grant| grant.permits).sum();
            (*of == port && *ready > own).then(|| (*line, *ready - own))
        });
        let waits: Vec<_> = waits.collect();
        let turn = waits.get(luck % waits.len().max(1)).copied();
        let permits = turn.map_or(0, |(_, waiting)| free.min(waiting));
        if let Some((line, _)) = turn.filter(|_| permits > 0) {
            let grant = Grant {
                port,
                line,
                permits,
            };
            session.grants.insert(granted, grant);
            events.push_back(Event::Granted {
                target,
                server: server(port),
                line,
                grant: granted,
                epoch,
                permits,
                ttl: GRANT_TTL,
            });
        }
        if free > permits && session.offer.is_none() {
            session.offer = Some((offered, port));
            events.push_back(Event::Offered {
                target,
                grant: offered,
                epoch,
            });
        }
    }

    /// What an agent's journal holds, as it says when it connects.
    fn open(&self, at: usize) -> Vec<OpenOperation> {
        let lines = self.agents[at].journal.iter();
        let lines = lines.filter_map(|(operation, entry)| {
            let phase = match entry.body {
                Body::Open { .. } => Phase::Running,
                Body::Finished(_) => Phase::Finished,
                Body::Tombstone { .. } => return None,
            };
            Some(OpenOperation {
                operation: *operation,
                fence: entry.fence,
                phase,
            })
        });
        lines.collect()
    }

    pub(super) fn session_up(&self, at: usize, open: Vec<OpenOperation>) -> Event {
        let agent = &self.agents[at];
        let session = agent.session.as_ref().unwrap();
        Event::SessionUp(Box::new(SessionUp {
            target: agent.target,
            session: session.id,
            shard: ShardId(0),
            at_home: true,
            remote: ([127, 0, 0, 1], 1).into(),
            capacity: CAPACITY,
            kinds: vec!["simulated".to_owned()],
            open,
            hostname: format!("host-{at}"),
            software: "test".to_owned(),
            labels: Vec::new(),
        }))
    }
}
