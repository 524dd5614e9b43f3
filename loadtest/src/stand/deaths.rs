//! Who dies or stands still on a stand, and comes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::Stand;
use crate::clock;
use crate::flow::random::Random;

/// Agents that die together.
pub(crate) const TOGETHER: usize = 10;
/// Of so many turns …
const TURNS: usize = 8;
/// … this many are a server's death: its agents need some time to come back.
const SERVER_DIES: usize = 2;
/// … and this many are its standstill.
const SERVER_PAUSES: usize = 1;
/// How long it stands still: too short for anybody to take it for dead.
const PAUSE: Duration = Duration::from_secs(3);
/// Killed agents stay dead for so long.
const OUTAGE: Duration = Duration::from_secs(2);

/// Whose turn it is. Processes of the deployment are known by their place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// SIGKILL, and started again after so long.
    ServerDies(usize, Duration),
    /// SIGSTOP for so long.
    ServerPauses(usize, Duration),
    /// Ten agents from this one on.
    AgentsDie(usize),
}

impl Turn {
    /// Any, of so many servers and agents.
    pub(crate) fn draw(random: &mut Random, servers: usize, agents: usize) -> Self {
        match random.below(TURNS) {
            turn if turn < SERVER_DIES => Self::ServerDies(random.below(servers), Duration::ZERO),
            turn if turn < SERVER_DIES + SERVER_PAUSES => {
                Self::ServerPauses(random.below(servers), PAUSE)
            }
            _ => Self::AgentsDie(random.below(agents.div_ceil(TOGETHER)) * TOGETHER),
        }
    }
}

/// Who has died so far.
#[derive(Default)]
pub(crate) struct Deaths {
    /// The first of each group that is dead, and since when.
    dead: Vec<(usize, Instant)>,
    /// How often a process was killed, by its profile.
    pub(crate) servers: BTreeMap<&'static str, u32>,
    /// How often one stood still.
    pub(crate) pauses: u32,
    /// How many agents were killed.
    pub(crate) agents: usize,
}

impl Deaths {
    /// How often a process was killed, whichever it was.
    pub(crate) fn of_servers(&self) -> u32 {
        self.servers.values().sum()
    }

    /// Somebody dies or stands still; agents that have been dead for long enough live again.
    ///
    /// # Errors
    /// When a process cannot be killed, or started again.
    pub(crate) async fn one(&mut self, stand: &mut Stand, turn: Turn) -> anyhow::Result<()> {
        self.raise(stand, Some(OUTAGE));
        match turn {
            Turn::ServerDies(place, stays_dead) => {
                let server = stand.subject.servers_mut().get_mut(place);
                let server = server.context("no such process")?;
                server.kill().await?;
                tokio::time::sleep(stays_dead).await;
                server.restart().await?;
                *self.servers.entry(server.role().profile()).or_default() += 1;
            }
            Turn::ServerPauses(place, time) => {
                let server = stand.subject.servers_mut().get_mut(place);
                server.context("no such process")?.pause(time).await?;
                self.pauses += 1;
            }
            Turn::AgentsDie(first) => {
                if self.dead.iter().all(|(dead, _)| *dead != first) {
                    let agents = stand.fleet.ids().len();
                    let group = first..(first + TOGETHER).min(agents);
                    self.agents += group.len();
                    stand.fleet.kill(group).await;
                    self.dead.push((first, clock::now()));
                }
            }
        }
        Ok(())
    }

    /// How far it is, in one line.
    pub(crate) fn progress(&self, since: Duration, succeeded: u64) -> String {
        format!(
            "{:>3} min: {} processes succeeded; {} deaths and {} standstills of the server, {} deaths of agents",
            since.as_secs() / 60,
            crate::report::grouped(succeeded),
            self.of_servers(),
            self.pauses,
            crate::report::grouped(self.agents as u64)
        )
    }

    /// Starts those agents again that have been dead for so long; all, without a time.
    pub(crate) fn raise(&mut self, stand: &Stand, after: Option<Duration>) {
        let now = clock::now();
        let agents = stand.fleet.ids().len();
        self.dead.retain(|(first, since)| {
            let stays = after.is_some_and(|after| now.duration_since(*since) < after);
            if !stays {
                let group = *first..(*first + TOGETHER).min(agents);
                stand.fleet.start_apart(group);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_shared_as_told_and_everybody_has_its() {
        let mut random = Random::new(1);
        let turns: Vec<Turn> = (0..8000).map(|_| Turn::draw(&mut random, 2, 25)).collect();
        let count = |wanted| turns.iter().filter(|turn| **turn == wanted).count();
        let about = |wanted, count: usize| count.abs_diff(wanted) < wanted / 8;
        for place in [0, 1] {
            let dies = Turn::ServerDies(place, Duration::ZERO);
            assert!(about(1000, count(dies)), "{place}");
            assert!(
                about(500, count(Turn::ServerPauses(place, PAUSE))),
                "{place}"
            );
        }
        // Two whole groups, and one of five.
        for first in [0, 10, 20] {
            assert!(about(5000 / 3, count(Turn::AgentsDie(first))), "{first}");
        }
    }
}
