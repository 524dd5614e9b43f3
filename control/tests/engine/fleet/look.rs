//! What a test sees of the simulated world, and what it may change.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::ids::{OperationId, ProcessId};

use super::{Body, Faults, Fleet};

impl Fleet {
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    pub(crate) fn faults_made(&self) -> usize {
        self.world().faults_made
    }

    pub(crate) fn effects(&self) -> BTreeMap<ProcessId, usize> {
        self.world().effects.clone()
    }

    pub(crate) fn journals_are_empty(&self) -> bool {
        self.world().agents.iter().all(|agent| {
            agent
                .journal
                .values()
                .all(|entry| matches!(entry.body, Body::Tombstone { .. }))
        })
    }

    /// Waits until every journal is empty.
    pub(crate) async fn idle(&self) {
        while !self.journals_are_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many of these ran at once, at most.
    pub(crate) fn most_at_once(&self, of: &[ProcessId]) -> usize {
        let (mut now, mut most) = (0_usize, 0);
        for (process, start) in &self.world().timeline {
            if of.contains(process) {
                now = if *start { now + 1 } else { now - 1 };
                most = most.max(now);
            }
        }
        most
    }

    /// How many started before this one.
    pub(crate) fn start_order(&self, process: ProcessId) -> usize {
        let world = self.world();
        let mut starts = world.timeline.iter().filter(|(_, start)| *start);
        starts.position(|(id, _)| *id == process).unwrap()
    }

    pub(crate) fn describe(&self) -> String {
        let world = self.world();
        let open: usize = world.agents.iter().map(|agent| agent.journal.len()).sum();
        format!(
            "{} faults, {open} journal entries, {} requests, {} events",
            world.faults_made,
            world.requests.len(),
            world.events.len()
        )
    }

    /// Effects by operation.
    pub(crate) fn step_effects(&self) -> BTreeMap<OperationId, usize> {
        self.world().step_effects.clone()
    }
}
