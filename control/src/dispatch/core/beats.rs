//! What a heartbeat brings: claims of servers that are gone, and what the others have changed.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::ids::AgentId;

use super::{Core, Living, Moment};
use crate::process::State;
use crate::store::workers::{BEAT_EXPIRY, Beat, Believed, Shared};

/// After a beat nobody takes over what we claim for so long, with a reserve for slow clocks.
pub(super) const BELIEF: Duration = Duration::from_secs(BEAT_EXPIRY.as_secs() - 2);

impl Core {
    /// Takes what a beat has found that began at this moment.
    pub(in crate::dispatch) fn handle_beat(&mut self, now: Moment, beat: Beat) {
        self.believed_until = now.mono + BELIEF;
        self.take_duty(now, beat.lends);
        self.overdue = false;
        self.stats.servers = u64::from(beat.live);
        let mut about: BTreeMap<AgentId, Vec<_>> = BTreeMap::new();
        for lease in beat.adopted {
            self.stats.unknown += 1;
            self.know(now, &lease);
            about.entry(lease.agent).or_default().push(lease.process);
        }
        for (agent, processes) in about {
            if let Some(target) = self.connected_target(agent) {
                let active = self.fleet.get(agent).map(|member| member.active().clone());
                let active = active.unwrap_or_default();
                let asked: Vec<_> = processes
                    .into_iter()
                    .filter_map(|process| Some((process, *active.get(&process)?)))
                    .collect();
                self.ask(target, &asked);
            }
        }
        if let Some(shared) = beat.shared {
            self.take_shared(now, shared);
        }
    }

    /// What this server believes to have claimed; nothing while it is alone, when it cannot be wrong.
    pub(in crate::dispatch) fn believed(&self) -> Vec<Believed> {
        match self.stats.servers > 1 {
            true => self.fleet.believed().collect(),
            false => Vec::new(),
        }
    }

    fn take_shared(&mut self, now: Moment, shared: Shared) {
        for (agent, process, fence) in shared.not_held {
            // Heard of in another server's name, or ended by its word; or claimed anew meanwhile.
            let known = self.fleet.get(agent);
            let known = known.and_then(|member| member.active().get(&process));
            if known.is_some_and(|known| known.fence <= fence) {
                self.fleet.deactivate(agent, process);
            }
        }
        self.take_pauses(&shared.pauses);
        self.take_limits(now, shared.limits);
        self.pending.resources.extend(shared.resources);
        self.note_due(shared.next_due);
        let ready = shared.ready.iter().map(|count| u64::from(count.ready));
        let ready = (State::Ready, ready.sum());
        self.living = Living::of(shared.others.iter().copied().chain([ready]));
        self.tenants.clear_ready();
        for count in &shared.ready {
            self.tenants.add(&count.line.tenant, u64::from(count.ready));
        }
        for agent in self.fleet.correct_ready(&shared.ready) {
            self.wake(agent);
        }
    }
}
