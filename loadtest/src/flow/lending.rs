//! How much of a limit that spans groups is used while demand moves from group to group.

use std::time::{Duration, Instant};

use gateway::flow::escrow::{Child, Incarnation, Lease, Parent, Report, Term};

use super::events::{Events, Nanos, nanos, seconds};
use super::random::Random;
use crate::clock;

/// What is tried.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Lending {
    /// Seed of everything random.
    pub seed: u64,
    /// Groups that share the limit.
    pub groups: u32,
    /// Permits of all groups together.
    pub limit: u32,
    /// So many groups have more work than the limit, the others none.
    pub busy: u32,
    /// After so many seconds other groups are busy.
    pub moves_every: f64,
    /// Mean seconds of an operation (log-normal, variation 0.5).
    pub mean: f64,
    /// One in so many messages is lost; 0 for none.
    pub loses_one_in: usize,
}

/// What was found in ten minutes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Lent {
    /// Permits in use over the limit, in the mean.
    pub used: f64,
    /// Permits in use at most.
    pub most: u32,
}

enum Event {
    Report(u32, Report),
    Lease(u32, Lease),
    End(usize),
    /// Timers of all are looked at.
    Look,
    Move,
}

const LASTS: f64 = 600.0;
/// Before anything is counted: the first leases are written after the longest one could have ended.
const WARM_UP: f64 = 10.0;
const LOOK: f64 = 0.02;

struct World {
    now: Nanos,
    epoch: Instant,
    setting: Lending,
    random: Random,
    events: Events<Event>,
    parent: Parent,
    children: Vec<Child>,
    busy: Vec<bool>,
    in_use: u32,
    most: u32,
    /// Permits in use, times seconds.
    used: f64,
    counted_to: Nanos,
}

/// Runs ten minutes.
pub fn lend(setting: &Lending) -> Lent {
    let epoch = clock::now();
    let mut parent = Parent::new(epoch, Term(1), setting.limit, []);
    (0..setting.groups).for_each(|group| parent.add_child(group));
    let child = |_| Child::new(epoch, Incarnation(1), 0);
    let mut world = World {
        now: 0,
        epoch,
        setting: *setting,
        random: Random::new(setting.seed),
        events: Events::new(),
        parent,
        children: (0..setting.groups).map(child).collect(),
        busy: Vec::new(),
        in_use: 0,
        most: 0,
        used: 0.0,
        counted_to: nanos(WARM_UP),
    };
    world.events.push(0, Event::Move);
    world.events.push(0, Event::Look);
    while let Some((now, event)) = world.events.pop(nanos(WARM_UP + LASTS)) {
        world.now = now;
        world.handle(event);
    }
    Lent {
        used: world.used / (LASTS * f64::from(setting.limit)),
        most: world.most,
    }
}

impl World {
    fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now)
    }

    fn send(&mut self, event: Event) {
        let lost =
            self.setting.loses_one_in > 0 && self.random.below(self.setting.loses_one_in) == 0;
        if !lost {
            let delay = self.random.between(0.001, 0.05);
            self.events.push(self.now + nanos(delay), event);
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Report(group, report) => {
                let known = self.parent.handle_report(now, group, &report);
                debug_assert_eq!(known, Ok(()));
            }
            Event::Lease(group, lease) => {
                self.children[group as usize].handle_lease(now, &lease);
                self.fill(group as usize);
            }
            Event::End(group) => {
                self.count();
                self.children[group].release();
                self.in_use -= 1;
                self.fill(group);
            }
            Event::Move => self.shift(),
            Event::Look => self.look(),
        }
    }

    /// Other groups are busy from now on.
    fn shift(&mut self) {
        let groups = self.children.len();
        let first = self.random.below(groups);
        let busy = |group: usize| (group + groups - first) % groups < self.setting.busy as usize;
        self.busy = (0..groups).map(busy).collect();
        for group in 0..groups {
            let wants = if self.busy[group] {
                self.setting.limit
            } else {
                0
            };
            self.children[group].set_wants(wants);
            self.fill(group);
        }
        let next = self.now + nanos(self.setting.moves_every);
        self.events.push(next, Event::Move);
    }

    fn look(&mut self) {
        let now = self.instant();
        for group in 0..self.setting.groups {
            if let Some(report) = self.children[group as usize].poll_report(now) {
                self.send(Event::Report(group, report));
            }
        }
        self.parent.handle_timeout(now);
        while let Some((group, lease)) = self.parent.poll_lease() {
            self.send(Event::Lease(group, lease));
        }
        self.events.push(self.now + nanos(LOOK), Event::Look);
    }

    /// A busy group uses what it may.
    fn fill(&mut self, group: usize) {
        let now = self.instant();
        while self.busy[group] && self.children[group].acquire(now) {
            self.count();
            self.in_use += 1;
            self.most = self.most.max(self.in_use);
            let service = self.random.log_normal(self.setting.mean, 0.5);
            self.events
                .push(self.now + nanos(service), Event::End(group));
        }
    }

    fn count(&mut self) {
        if self.now > self.counted_to {
            let since = seconds(self.now - self.counted_to);
            self.used += f64::from(self.in_use) * since;
            self.counted_to = self.now;
        }
    }
}
