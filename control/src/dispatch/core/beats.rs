//! What a heartbeat brings: claims of servers that are gone, and what the others have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::ids::AgentId;

use super::{Core, Living, Moment};
use crate::store::tally::News;
use crate::store::workers::{BEAT_EXPIRY, BELIEVED_MAX, Beat, Believed, SUSPECT_EXPIRY, Shared};

/// After a beat nobody takes over the duty to lend for so long, with a reserve for slow clocks.
pub(super) const BELIEF: Duration = Duration::from_secs(BEAT_EXPIRY.as_secs() - 2);
/// After a beat nobody takes over what we claim for so long where a lock service may make us suspected.
pub(super) const BELIEF_IF_WATCHED: Duration = Duration::from_secs(SUSPECT_EXPIRY.as_secs() - 1);

impl Core {
    /// Takes what a beat has found that began at this moment.
    pub(in crate::dispatch) fn handle_beat(&mut self, now: Moment, beat: Beat) {
        let belief = if self.watched {
            BELIEF_IF_WATCHED
        } else {
            BELIEF
        };
        self.believed_until = now.mono + belief;
        self.sweeps = beat.sweeps;
        self.take_duty(now, beat.lends);
        self.stats.servers = u64::from(beat.live);
        let mut about: BTreeMap<AgentId, Vec<_>> = BTreeMap::new();
        for lease in beat.adopted {
            self.stats.unknown += 1;
            self.know(now, &lease);
            about.entry(lease.agent).or_default().push(lease.process);
        }
        for (agent, processes) in about {
            let (Some(target), Some(member)) =
                (self.connected_target(agent), self.fleet.get(agent))
            else {
                continue;
            };
            let active = member.active();
            let asked = processes
                .into_iter()
                .filter_map(|process| Some((process, *active.get(&process)?)));
            let asked: Vec<_> = asked.collect();
            self.ask(target, &asked);
        }
        if let Some(shared) = beat.shared {
            self.take_shared(now, shared);
        }
        self.news_due = true;
    }

    /// A lock service tells others when this server seems to be gone.
    pub(in crate::dispatch) fn be_watched(&mut self) {
        self.watched = true;
    }

    /// From now on nothing is claimed or asked for by it.
    pub(in crate::dispatch) fn observe(&mut self) {
        self.observes = true;
    }

    /// What this server believes to have claimed, a part after the other; nothing while it is alone, when it
    /// cannot be wrong.
    pub(in crate::dispatch) fn believed(&mut self) -> Vec<Believed> {
        match self.stats.servers > 1 {
            true => self.fleet.believed(BELIEVED_MAX),
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
        if let Some((pauses, limits)) = shared.orders {
            self.take_pauses(&pauses);
            self.take_limits(now, limits);
        }
        self.pending.resources.extend(shared.resources);
    }

    /// Whether it is to be asked what others have changed. Answer with [`Core::handle_news`]: only now, while
    /// none of this server's own batches is on its way, does it know what is its own in that.
    pub(in crate::dispatch) fn wants_news(&self) -> bool {
        self.news_due && self.in_flight.is_none()
    }

    /// Takes what others have changed.
    pub(in crate::dispatch) fn handle_news(&mut self, now: Moment, news: Option<News>) {
        self.news_due = false;
        let Some(news) = news else { return };
        self.living = Living::of(news.states.into_iter());
        self.tenants.correct(&news.tenants, now.mono);
        for (agent, total) in news.ended {
            self.fleet.heard_of_ends(agent, total, now.mono);
        }
        let mut agents: BTreeSet<AgentId> = news.agents.into_iter().collect();
        if news.all {
            agents.extend(self.fleet.heard_of());
        }
        for agent in self.fleet.correct_ready(&agents, news.ready) {
            self.wake(agent);
        }
    }

    /// The present. Whoever has not beaten for long must not claim: others may have taken over what it has. So it
    /// takes back what it has asked of gateways, which would grant it again and again, and asks anew as soon as it
    /// may claim.
    pub(in crate::dispatch) fn note_time(&mut self, now: Moment) {
        let overdue = now.mono >= self.believed_until;
        if std::mem::replace(&mut self.overdue, overdue) == overdue {
            return;
        }
        let agents: Vec<AgentId> = match overdue {
            true => self.fleet.stated_agents().collect(),
            false => self.fleet.waiting_agents().collect(),
        };
        for agent in agents {
            self.wake(agent);
        }
    }
}
