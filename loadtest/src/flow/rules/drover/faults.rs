//! What breaks, and how it comes back.

use super::super::super::events::nanos;
use super::super::super::scenario::Fault;
use super::{Drover, DroverWorld, FromAgent, Message, Owner, SESSION_DELAY, ToOwner, ToServer};

/// Seconds after which a silent owner is replaced.
const OWNER_LEASE: f64 = 5.0;

/// Something comes back, or time runs out for something.
pub(in crate::flow) enum Repair {
    ServerUp(usize),
    /// Nobody heard of this life of a server for too long.
    Lapse(usize, u32),
    OwnerUp,
    LinkUp(usize),
}

impl Drover {
    pub(super) fn fault(&mut self, world: &mut DroverWorld, fault: Fault) {
        let lease = world.scenario.server_lease;
        match fault {
            Fault::ServerCrash(server, seconds) => {
                let here = &mut self.servers[server];
                if !here.up {
                    return;
                }
                here.up = false;
                let (life, epoch) = (here.life, here.epoch);
                world.send(Message::ToOwner(epoch, ToOwner::ServerGone(server)));
                world.send_after(lease, Message::Repair(Repair::Lapse(server, life)));
                world.send_after(seconds, Message::Repair(Repair::ServerUp(server)));
            }
            Fault::ServerPause(server, seconds) => {
                let here = &mut self.servers[server];
                here.paused_until = here.paused_until.max(world.now + nanos(seconds));
                if seconds > lease {
                    let lapse = Repair::Lapse(server, here.life);
                    world.send_after(lease, Message::Repair(lapse));
                }
            }
            Fault::OwnerCrash(seconds) => {
                self.owner().stop();
                self.fail_over_after(world, seconds);
            }
            Fault::OwnerPause(seconds) => {
                let until = world.now + nanos(seconds);
                self.owner().pause(until);
                if seconds > OWNER_LEASE {
                    self.fail_over_after(world, OWNER_LEASE);
                }
            }
            Fault::LinkDown(host, seconds) => {
                if self.agents[host].session().is_none() {
                    return;
                }
                let session = self.agents[host].disconnect();
                let silence = ToOwner::Silence(host, session);
                let epoch = self.owners.len() as u64;
                world.send_after(world.scenario.silence, Message::ToOwner(epoch, silence));
                world.send_after(seconds, Message::Repair(Repair::LinkUp(host)));
            }
        }
    }

    fn fail_over_after(&mut self, world: &mut DroverWorld, seconds: f64) {
        if !self.failing_over {
            self.failing_over = true;
            world.send_after(seconds, Message::Repair(Repair::OwnerUp));
        }
    }

    pub(super) fn repair(&mut self, world: &mut DroverWorld, repair: Repair) {
        match repair {
            Repair::ServerUp(server) => {
                let epoch = self.owners.len() as u64;
                let here = &mut self.servers[server];
                here.up = true;
                here.life += 1;
                here.paused_until = 0;
                here.epoch = epoch;
                for stated in &mut here.stated {
                    stated.fill(false);
                }
                let life = here.life;
                world.send_after(0.0, Message::ToServer(server, life, ToServer::Restate));
            }
            Repair::Lapse(server, life) => {
                for place in self.store.leased_by((server, life)) {
                    self.ready(world, place);
                }
            }
            Repair::OwnerUp => self.replace_owner(world),
            Repair::LinkUp(host) => self.connect(world, host),
        }
    }

    /// Another agent server takes the groups, with an epoch more. The one before may still run.
    fn replace_owner(&mut self, world: &mut DroverWorld) {
        self.failing_over = false;
        let before = &self.owners[self.owners.len() - 1];
        let epoch = self.owners.len() as u64 + 1;
        let owner = Owner::new(&world.scenario, epoch, &self.flows, Some(before));
        self.owners.push(owner);
        world.send_after(1.0, Message::ToOwner(epoch, ToOwner::Tick));
        for server in 0..self.servers.len() {
            let life = self.servers[server].life;
            world.send(Message::ToServer(server, life, ToServer::NewOwner(epoch)));
        }
        for host in 0..self.agents.len() {
            // Who is cut off comes when it can.
            if self.agents[host].session().is_some() {
                self.agents[host].disconnect();
                self.connect(world, host);
            }
        }
    }

    /// An agent begins a session with the current owner.
    pub(super) fn connect(&mut self, world: &mut DroverWorld, host: usize) {
        if self.agents[host].session().is_some() {
            return;
        }
        let epoch = self.owners.len() as u64;
        let session = self.agents[host].connect(epoch);
        let delay = world.random.between(SESSION_DELAY.0, SESSION_DELAY.1);
        let inventory = Message::FromAgent(epoch, host, session, FromAgent::Inventory);
        world.send_after(delay, inventory);
    }
}
