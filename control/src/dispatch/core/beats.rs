//! What a heartbeat brings: claims of servers that are gone, and what the others have changed.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::ids::AgentId;

use super::{Core, Living, Moment};
use crate::process::State;
use crate::store::workers::{BEAT_EXPIRY, Beat, Shared};

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
            self.take_shared(shared);
        }
    }

    fn take_shared(&mut self, shared: Shared) {
        self.take_pauses(&shared.pauses);
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
