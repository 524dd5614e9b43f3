//! Attempts that fail in passing: when they are made again, by the production rules.
//!
//! The timers and the budget are the store's, so it makes no difference which server, or how many, look at them.

use std::sync::Arc;

use control::clock::UnixMs;
use control::process::budget::{Budgets, deferral};
use control::process::retry_delay;
use protocol::ids::AgentId;
use uuid::Uuid;

use super::super::super::scenario::Scenario;
use super::{Drover, DroverWorld, Message};

/// Attempts at a process before it has failed for good.
const ATTEMPTS_MAX: u32 = 3;

/// The retry budget, and what its buckets are called.
pub(super) struct Retries {
    budgets: Budgets,
    kinds: Vec<Arc<str>>,
}

impl Retries {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let kinds = 0..scenario.kinds.len();
        Self {
            budgets: Budgets::default(),
            kinds: kinds.map(|kind| format!("kind-{kind}").into()).collect(),
        }
    }

    fn bucket(&self, world: &DroverWorld, place: usize) -> (AgentId, Arc<str>) {
        let process = &world.processes[place];
        let agent = AgentId(Uuid::from_u128(process.host as u128));
        (agent, Arc::clone(&self.kinds[process.kind]))
    }

    /// A process has succeeded.
    pub(super) fn succeeded(&mut self, world: &DroverWorld, place: usize) {
        let (agent, kind) = self.bucket(world, place);
        self.budgets.succeeded(agent, &kind);
    }

    /// Whether a process whose time has come may be tried again.
    fn try_retry(&mut self, world: &DroverWorld, place: usize) -> bool {
        let (agent, kind) = self.bucket(world, place);
        let now = UnixMs(world.now / 1_000_000);
        self.budgets.try_retry(now, agent, &kind)
    }
}

impl Drover {
    /// An attempt has failed in passing: it is made again after a while, or was the last.
    pub(super) fn failed(&mut self, world: &mut DroverWorld, place: usize) {
        world.score.fail(world.now);
        let attempts = self.store.failed(place);
        if attempts >= ATTEMPTS_MAX {
            self.replace(world, place);
            return;
        }
        let wait = retry_delay(attempts, world.random.unit());
        world.send_after(wait.as_secs_f64(), Message::Retry(place));
    }

    /// The time has come to try again.
    pub(super) fn retry(&mut self, world: &mut DroverWorld, place: usize) {
        if self.retries.try_retry(world, place) {
            world.score.retry(world.now);
            world.processes[place].ready_at = world.now;
            self.ready(world, place);
        } else {
            let wait = deferral(world.random.unit());
            world.send_after(wait.as_secs_f64(), Message::Retry(place));
        }
    }
}
