//! Sessions of agents, and how many there are of what.

use std::collections::BTreeMap;

use protocol::ids::{GroupId, SessionId, ShardId};
use protocol::link::Target;

use super::Fleet;
use crate::clock::UnixMs;
use crate::dispatch::census::Census;
use crate::dispatch::handle::SessionView;
use crate::process::State;

impl Fleet {
    /// A session began; the gateway knows nothing of its agent's demand. The session may be the first word of an
    /// agent: it enrolled at another server, and nobody has passed that on.
    pub(in crate::dispatch) fn connect(
        &mut self,
        target: Target,
        session: SessionView,
        now: UnixMs,
    ) {
        let paused = self.pauses.holds_agent(&target);
        let member = self.member(target);
        member.target = target;
        member.paused = paused;
        member.since = Some(now);
        member.offer = None;
        let (shard, at_home) = (session.shard, session.at_home);
        let ready = u64::from(member.ready_stored);
        match member.session.replace(Box::new(session)) {
            None => {
                *self.connected.entry(target.group).or_default() += 1;
                self.ready_without_session = self.ready_without_session.saturating_sub(ready);
            }
            Some(old) => self.leave(old.shard, old.at_home),
        }
        self.sessions_begun += 1;
        let shard = self.by_shard.entry(shard).or_default();
        shard.sessions += 1;
        shard.at_home += u64::from(at_home);
        self.distrust_demand(target.agent);
        self.meet(target.agent);
    }

    /// A session ended. False: it was not this agent's present one.
    pub(in crate::dispatch) fn disconnect(
        &mut self,
        target: Target,
        session: SessionId,
        now: UnixMs,
    ) -> bool {
        let Some(member) = self.members.get_mut(&target.agent) else {
            return false;
        };
        let Some(old) = member.session.take_if(|old| old.session == session) else {
            return false;
        };
        member.since = Some(now);
        self.ready_without_session += u64::from(member.ready_stored);
        member.offer = None;
        if let Some(count) = self.connected.get_mut(&target.group) {
            *count = count.saturating_sub(1);
        }
        self.leave(old.shard, old.at_home);
        self.distrust_demand(target.agent);
        true
    }

    /// A shard has a session less.
    fn leave(&mut self, shard: ShardId, at_home: bool) {
        self.sessions_ended += 1;
        if let Some(shard) = self.by_shard.get_mut(&shard) {
            shard.sessions = shard.sessions.saturating_sub(1);
            shard.at_home = shard.at_home.saturating_sub(u64::from(at_home));
        }
    }

    /// Who is there and what there is to do.
    pub(in crate::dispatch) fn census(&self, processes: &BTreeMap<State, u64>) -> Census {
        Census {
            processes: processes.clone(),
            ready_without_session: self.ready_without_session,
            by_group: self.connected.clone(),
            by_shard: self.by_shard.clone(),
            sessions_begun: self.sessions_begun,
            sessions_ended: self.sessions_ended,
        }
    }

    /// Sessions by group.
    pub(in crate::dispatch) fn connected(&self) -> &BTreeMap<GroupId, u64> {
        &self.connected
    }
}
