//! The world that a rule acts in: time, processes, hosts, a network that delays, and what changes.

use std::time::{Duration, Instant};

use gateway::flow::fair::Class;

use super::events::{Events, Nanos, nanos, seconds};
use super::plant::Plant;
use super::random::Random;
use super::scenario::{Change, Fault, Scenario};
use super::score::Score;
use crate::clock;

/// A rule by which process servers send work to hosts.
pub(super) trait Rule {
    /// What its parts tell each other, and its timers.
    type Message;

    /// The simulation begins: all processes are ready.
    fn begin(&mut self, world: &mut World<Self::Message>);

    /// A message arrives, or a timer is due.
    fn handle(&mut self, world: &mut World<Self::Message>, message: Self::Message);

    /// An operation ended on a host.
    fn handle_ended(&mut self, world: &mut World<Self::Message>, host: usize, token: u64);

    /// Something breaks. A rule that has no part that could break ignores it.
    fn handle_fault(&mut self, _world: &mut World<Self::Message>, _fault: Fault) {}

    /// Whether there is nothing left to do, in a world that ends.
    fn is_over(&self) -> bool {
        false
    }

    /// What may be in flight on a host now, of all servers, if the rule knows such a number.
    fn limit(&self, host: usize) -> Option<f64>;
}

/// A process. When it ends, another takes its place.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) host: usize,
    pub(super) tenant: usize,
    pub(super) class: Class,
    pub(super) kind: usize,
    /// Seconds of work of its operation.
    pub(super) work: f64,
    pub(super) ready_at: Nanos,
    /// How many processes have had this place before.
    pub(super) run: u32,
}

enum Event<M> {
    /// A host has something to say, unless it changed meanwhile.
    Due(usize, u32),
    Change(Change),
    Second,
    Message(M),
}

/// Everything but the rule.
pub(super) struct World<M> {
    pub(super) now: Nanos,
    pub(super) scenario: Scenario,
    pub(super) random: Random,
    pub(super) plant: Plant,
    pub(super) processes: Vec<Process>,
    pub(super) score: Score,
    /// The share of attempts that fails in passing.
    failing: f64,
    /// The work of operations, apart from everything else that is random: the same for each rule.
    draws: Random,
    events: Events<Event<M>>,
    epoch: Instant,
}

impl<M> World<M> {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let mut world = Self {
            now: 0,
            scenario: scenario.clone(),
            random: Random::new(scenario.seed ^ 0x5eed),
            plant: Plant::new(scenario),
            processes: Vec::new(),
            score: Score::new(scenario),
            failing: 0.0,
            draws: Random::new(scenario.seed),
            events: Events::new(),
            epoch: clock::now(),
        };
        let tenants: Vec<f64> = scenario.tenants.iter().map(|tenant| tenant.share).collect();
        let classes: Vec<f64> = scenario.classes.iter().map(|(_, share)| *share).collect();
        for place in 0..scenario.outstanding {
            let process = Process {
                host: place % scenario.hosts,
                tenant: world.draws.choose(&tenants),
                class: scenario.classes[world.draws.choose(&classes)].0,
                kind: 0,
                work: 0.0,
                ready_at: 0,
                run: 0,
            };
            world.processes.push(process);
            world.draw(place);
        }
        for (at, change) in &scenario.changes {
            // Just after the second that it ends.
            world.events.push(nanos(*at) + 1, Event::Change(*change));
        }
        world.events.push(nanos(1.0), Event::Second);
        world
    }

    fn draw(&mut self, place: usize) {
        let kinds = &self.scenario.kinds;
        let shares: Vec<f64> = kinds.iter().map(|kind| kind.share).collect();
        let kind = self.draws.choose(&shares);
        let (mean, variation) = (kinds[kind].mean, self.scenario.variation);
        let process = &mut self.processes[place];
        process.kind = kind;
        process.work = self.draws.log_normal(mean, variation);
    }

    /// A process ended: another of the same tenant, class and host takes its place and is ready.
    pub(super) fn renew(&mut self, place: usize) {
        self.draw(place);
        let process = &mut self.processes[place];
        process.ready_at = self.now;
        process.run += 1;
    }

    /// Whether an attempt that ends has failed in passing. Nothing is drawn while none does.
    pub(super) fn fails(&mut self) -> bool {
        self.failing > 0.0 && self.random.unit() < self.failing
    }

    /// A message after so many seconds.
    pub(super) fn send_after(&mut self, seconds: f64, message: M) {
        self.send_at(self.now + nanos(seconds), message);
    }

    /// A message at a time, which is not before now.
    pub(super) fn send_at(&mut self, at: Nanos, message: M) {
        self.events.push(at.max(self.now), Event::Message(message));
    }

    /// A message over the network.
    pub(super) fn send(&mut self, message: M) {
        let (least, most) = self.scenario.delay;
        let delay = self.random.between(least, most);
        self.send_after(delay, message);
    }

    /// Now, as the production rules want it.
    pub(super) fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now)
    }

    /// Seconds since a time.
    pub(super) fn since(&self, at: Nanos) -> f64 {
        seconds(self.now.saturating_sub(at))
    }

    fn schedule_hosts(&mut self) {
        while let Some((host, at, generation)) = self.plant.poll_due() {
            self.events.push(at, Event::Due(host, generation));
        }
    }
}

/// Runs a rule in a scenario to its end, and gives both back.
pub(super) fn run<R: Rule>(scenario: &Scenario, mut rule: R) -> (R, World<R::Message>) {
    let mut world = World::new(scenario);
    rule.begin(&mut world);
    world.schedule_hosts();
    let until = nanos(scenario.end());
    let last_change = scenario
        .changes
        .iter()
        .map(|(at, _)| *at)
        .fold(0.0, f64::max);
    while let Some((now, event)) = world.events.pop(until) {
        world.now = now;
        match event {
            Event::Message(message) => rule.handle(&mut world, message),
            Event::Due(host, generation) => {
                for token in world.plant.handle_due(now, host, generation) {
                    rule.handle_ended(&mut world, host, token);
                }
            }
            Event::Change(Change::Slots(slots)) => world.plant.set_slots(now, slots),
            Event::Change(Change::Slow(slow)) => world.plant.set_slow(now, slow),
            Event::Change(Change::Failing(share)) => world.failing = share,
            Event::Change(Change::Fault(fault)) => rule.handle_fault(&mut world, fault),
            Event::Second => {
                #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
                let running = world.plant.running(0) as f64;
                let limit = rule.limit(0).unwrap_or(f64::NAN);
                let host = [limit, running, world.plant.slots()];
                world.score.sample(now, world.plant.capacity(), host);
                world.events.push(now + nanos(1.0), Event::Second);
                let may_end = !scenario.endless && seconds(now) > last_change;
                if may_end && rule.is_over() {
                    break;
                }
            }
        }
        world.schedule_hosts();
    }
    (rule, world)
}
