//! How many there are of what: kept up with every change, so that looking costs no scan.

use std::collections::BTreeMap;

use protocol::ids::{GroupId, ShardId};

use crate::process::State;

/// A copy of the process server's counts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Census {
    /// Processes that are not over, by state; states without any are left out.
    pub processes: BTreeMap<State, u64>,
    /// Of those that are ready: how many wait for an agent without a session.
    pub ready_without_session: u64,
    /// Agents with a session, by group; groups without one may be left out.
    pub by_group: BTreeMap<GroupId, u64>,
    /// Sessions by the shard that holds the connection.
    pub by_shard: BTreeMap<ShardId, ShardSessions>,
    /// Sessions that began, since the start.
    pub sessions_begun: u64,
    /// Sessions that ended, since the start.
    pub sessions_ended: u64,
}

/// What one shard holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ShardSessions {
    /// Sessions.
    pub sessions: u64,
    /// Those whose group is at home on this shard.
    pub at_home: u64,
}

/// Processes that are not over, by state.
#[derive(Default, Debug)]
pub(super) struct Living(BTreeMap<State, u64>);

impl Living {
    /// So many are in these states.
    pub(super) fn of(counts: impl Iterator<Item = (State, u64)>) -> Self {
        let mut living = Self::default();
        counts.for_each(|(state, count)| living.add(state, count));
        living
    }

    /// So many are in this state.
    pub(super) fn add(&mut self, state: State, count: u64) {
        if !state.is_terminal() {
            *self.0.entry(state).or_default() += count;
        }
    }

    /// One went from a state to another.
    pub(super) fn moved(&mut self, before: Option<State>, after: State) {
        if let Some(before) = before
            && let Some(count) = self.0.get_mut(&before)
        {
            *count = count.saturating_sub(1);
        }
        self.add(after, 1);
    }

    /// By state.
    pub(super) fn counts(&self) -> &BTreeMap<State, u64> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_counted_where_it_is_and_no_longer_when_it_is_over() {
        let mut living = Living::default();
        living.add(State::Ready, 2);
        living.moved(Some(State::Ready), State::Leased);
        living.moved(Some(State::Leased), State::Running);
        assert_eq!(living.counts()[&State::Ready], 1);
        assert_eq!(living.counts()[&State::Running], 1);
        living.moved(Some(State::Running), State::Succeeded);
        living.moved(Some(State::Ready), State::Cancelled);
        assert_eq!(living.counts().values().sum::<u64>(), 0);
    }
}
