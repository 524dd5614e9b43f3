//! How much of a limit that spans homes is used while demand moves from home to home.

use std::time::{Duration, Instant};

use control::lending::Parent;
use gateway::flow::escrow::{Child, Use};
use protocol::flow::lending::{Incarnation, Lease, Report, Term};

use super::events::{Events, Nanos, nanos, seconds};
use super::random::Random;
use crate::clock;

/// What is tried.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Lending {
    /// Seed of everything random.
    pub seed: u64,
    /// Homes that share the limit.
    pub homes: u16,
    /// Permits of all homes together.
    pub limit: u32,
    /// So many homes have more work than the limit, the others none.
    pub busy: u16,
    /// After so many seconds other homes are busy.
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
    Report(u16, Report),
    Lease(u16, Lease),
    Ask(u16),
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
    homes: Vec<Home>,
    in_use: u32,
    most: u32,
    /// Permits in use, times seconds.
    used: f64,
    counted_to: Nanos,
}

struct Home {
    child: Child,
    busy: bool,
    in_use: u32,
    reports: u64,
}

/// Runs ten minutes.
pub fn lend(setting: &Lending) -> Lent {
    let epoch = clock::now();
    let home = |_| Home {
        child: Child::new(Incarnation(1)),
        busy: false,
        in_use: 0,
        reports: 0,
    };
    let mut world = World {
        now: 0,
        epoch,
        setting: *setting,
        random: Random::new(setting.seed),
        events: Events::new(),
        parent: Parent::new(epoch, Term(1), setting.limit, epoch, 0..setting.homes),
        homes: (0..setting.homes).map(home).collect(),
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
            Event::Report(home, report) => self.parent.handle_report(now, home, &report),
            Event::Ask(home) => self.homes[usize::from(home)].child.hurry(now),
            Event::Lease(home, lease) => {
                let home = usize::from(home);
                self.homes[home].child.handle_lease(now, &lease);
                self.fill(home);
            }
            Event::End(home) => {
                self.count();
                self.homes[home].in_use -= 1;
                self.in_use -= 1;
                self.fill(home);
            }
            Event::Move => self.shift(),
            Event::Look => self.look(),
        }
    }

    /// Other homes are busy from now on.
    fn shift(&mut self) {
        let homes = self.homes.len();
        let first = self.random.below(homes);
        for home in 0..homes {
            let place = (home + homes - first) % homes;
            self.homes[home].busy = place < usize::from(self.setting.busy);
            self.fill(home);
        }
        let next = self.now + nanos(self.setting.moves_every);
        self.events.push(next, Event::Move);
    }

    fn look(&mut self) {
        let now = self.instant();
        for (id, place) in (0..self.setting.homes).zip(0..) {
            let home: &mut Home = &mut self.homes[place];
            let used = Use {
                in_use: home.in_use,
                wants: if home.busy { self.setting.limit } else { 0 },
                awaited: home.busy,
            };
            if let Some(report) = home.child.poll_report(now, home.reports + 1, used) {
                home.reports += 1;
                self.send(Event::Report(id, report));
            }
        }
        self.parent.handle_timeout(now);
        while let Some((home, lease)) = self.parent.poll_lease() {
            self.send(Event::Lease(home, lease));
        }
        if self.parent.poll_ask(now) {
            (0..self.setting.homes).for_each(|home| self.send(Event::Ask(home)));
        }
        self.events.push(self.now + nanos(LOOK), Event::Look);
    }

    /// A busy home uses what it may.
    fn fill(&mut self, place: usize) {
        let now = self.instant();
        loop {
            let home = &mut self.homes[place];
            if !home.busy {
                return;
            }
            if home.in_use >= home.child.credit(now) {
                home.child.hurry(now);
                return;
            }
            home.in_use += 1;
            self.count();
            self.in_use += 1;
            self.most = self.most.max(self.in_use);
            let service = self.random.log_normal(self.setting.mean, 0.5);
            self.events
                .push(self.now + nanos(service), Event::End(place));
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

#[cfg(test)]
mod tests;
