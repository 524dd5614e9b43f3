//! Everybody dies: each kind of process twice at least, a share of the agents, and one process stands still.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Account, Setup, say, told};
use crate::clock;
use crate::report::{ConnectMs, RoundTripUs};
use crate::server::{Role, Usage};
use crate::stand::Stand;
use crate::stand::deaths::{Deaths, TOGETHER, Turn};

/// Processes of one profile that are killed at least.
const DEATHS_MIN: usize = 2;
/// About what it takes until a killed process is ready again.
const RESTART: Duration = Duration::from_secs(2);

/// What to run.
#[derive(Clone, Debug)]
pub struct Drill {
    /// On what.
    pub setup: Setup,
    /// Processes in all, evenly spread over the time.
    pub processes: u64,
    /// From one death to the next.
    pub every: Duration,
    /// Of each kind of process the first that is killed comes back at once, and the others after so long: long enough
    /// for others to take over.
    pub stays_dead: Duration,
    /// How long one process with sessions stands still: twice a lease.
    pub standstill: Duration,
    /// Agents that are killed, percent of all.
    pub agents_die_percent: usize,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Drilled {
    /// Always `drill`.
    pub scenario: &'static str,
    /// The shape of the deployment.
    pub site: &'static str,
    /// Agents.
    pub agents: usize,
    /// How often a process was killed, by its profile.
    pub deaths: BTreeMap<&'static str, u32>,
    /// How often one stood still.
    pub standstills: u32,
    /// How many agents were killed.
    pub agent_deaths: usize,
    /// The account.
    #[serde(flatten)]
    pub account: Account,
    /// How long the fleet took to join, seconds.
    pub enrol_seconds: f64,
    /// From the first process to the end of the last, seconds.
    pub seconds: f64,
    /// Of these: from the last death until everything had ended.
    pub settled_s: f64,
    /// Loss of a session, or an agent's new start, to its next session, milliseconds.
    pub reconnect_ms: ConnectMs,
    /// Intended submission to the end as the API told it, microseconds.
    pub rtt_us: RoundTripUs,
    /// Whether everything held.
    pub passed: bool,
    /// What did not.
    pub violations: Vec<String>,
    /// A few of the processes that failed or did not end, as the API tells them.
    pub examples: Vec<serde_json::Value>,
}

impl Drill {
    /// Runs it, prints and writes what was found.
    ///
    /// # Errors
    /// When it could not be carried out; one that was, and found violations, returns them.
    pub async fn run(&self) -> anyhow::Result<Drilled> {
        let began = clock::now();
        let services = self.setup.site.services().await?;
        let opened = self.setup.open(&services).await?;
        say(began, "all processes are ready");
        let (mut stand, enrolled_in) = self.setup.people(opened, TOGETHER).await?;
        say(began, "all agents have a session");
        let found = self.drill(&mut stand, began, enrolled_in).await?;
        stand.finish().await?;
        Ok(found)
    }

    async fn drill(
        &self,
        stand: &mut Stand,
        began: Instant,
        enrolled_in: Duration,
    ) -> anyhow::Result<Drilled> {
        let turns = self.schedule();
        let working = self.work(stand, &turns);
        let (first, mut deaths) = (clock::now(), Deaths::default());
        let mut samples = Vec::new();
        for turn in turns {
            let since = clock::now().duration_since(first).as_secs_f64();
            samples.push((since, stand.subject.usage()));
            tokio::time::sleep(self.every).await;
            say(began, &self.told(turn));
            deaths.one(stand, turn).await?;
        }
        let last = clock::now();
        deaths.raise(stand, None);
        let refused = working.await?.len() as u64;
        // Those who do not come back are counted in the account.
        let up = stand.wait_up().await;
        tracing::debug!(?up, "the fleet after the drill");
        let account = Account::close(stand, refused).await?;
        let ended = clock::now();
        let mut violations = account.violations(self.setup.agents);
        violations.extend(self.unharmed(&deaths));
        let rtt = stand.ledger.round_trips();
        let reconnects = stand.fleet.reconnect_times();
        let found = Drilled {
            scenario: "drill",
            site: self.setup.site.name(),
            agents: self.setup.agents,
            deaths: deaths.servers,
            standstills: deaths.pauses,
            agent_deaths: deaths.agents,
            account,
            enrol_seconds: enrolled_in.as_secs_f64(),
            seconds: ended.duration_since(first).as_secs_f64(),
            settled_s: ended.duration_since(last).as_secs_f64(),
            reconnect_ms: ConnectMs::of(&reconnects),
            rtt_us: RoundTripUs::of(&rtt),
            passed: violations.is_empty(),
            violations,
            examples: stand.examples().await,
        };
        self.tell(&found, stand, &samples)?;
        Ok(found)
    }

    /// Makes all processes while everybody dies; what the API refused for good.
    fn work(&self, stand: &Stand, turns: &[Turn]) -> tokio::task::JoinHandle<Vec<String>> {
        #[expect(clippy::cast_precision_loss, reason = "a count well below 2^53")]
        let processes = self.processes as f64;
        let duration = self.takes(turns);
        let rate = processes / duration.as_secs_f64();
        self.setup.work(stand, rate, duration)
    }

    /// Who dies when: kind by kind, with agents in between and the standstill in the middle.
    fn schedule(&self) -> Vec<Turn> {
        let roles = self.setup.site.roles();
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for (place, role) in roles.iter().enumerate() {
            match kinds.iter_mut().find(|kind| roles[kind[0]] == *role) {
                Some(kind) => kind.push(place),
                None => kinds.push(vec![place]),
            }
        }
        let rounds = kinds.iter().map(Vec::len).max().unwrap_or(0);
        let mut servers = Vec::new();
        for round in 0..rounds.max(DEATHS_MIN) {
            for kind in &kinds {
                let stays_dead = match round {
                    0 => Duration::ZERO,
                    _ => self.stays_dead,
                };
                let place = kind[round % kind.len()];
                servers.push(Turn::ServerDies(place, stays_dead));
            }
        }
        // The gateway's standstill is the hardest: it has sessions, and permits to give.
        let standing = roles.iter().position(|role| role.has_sessions());
        let still = Turn::ServerPauses(standing.unwrap_or(0), self.standstill);
        servers.insert(servers.len() / 2, still);
        let groups = self.setup.agents.div_ceil(TOGETHER);
        let dying = (groups * self.agents_die_percent).div_ceil(100);
        let mut turns = Vec::new();
        let mut dead = 0;
        for (n, turn) in servers.iter().enumerate() {
            let due = dying * (n + 1) / servers.len();
            // Spread over the fleet.
            turns.extend((dead..due).map(|k| Turn::AgentsDie(k * groups / dying * TOGETHER)));
            dead = due;
            turns.push(*turn);
        }
        turns
    }

    /// About how long a schedule takes.
    fn takes(&self, turns: &[Turn]) -> Duration {
        let takes = |turn: &Turn| match turn {
            Turn::ServerDies(_, dead) => *dead + RESTART,
            Turn::ServerPauses(_, still) => *still,
            Turn::AgentsDie(_) => Duration::ZERO,
        };
        turns.iter().map(|turn| self.every + takes(turn)).sum()
    }

    /// A turn in words.
    fn told(&self, turn: Turn) -> String {
        let name = |place: usize| self.setup.site.roles()[place].profile();
        match turn {
            Turn::ServerDies(place, dead) => {
                let back = match dead.is_zero() {
                    true => "at once".to_owned(),
                    false => format!("after {} s", dead.as_secs_f64()),
                };
                format!("SIGKILL to process {place} ({}), back {back}", name(place))
            }
            Turn::ServerPauses(place, still) => format!(
                "SIGSTOP to process {place} ({}) for {} s",
                name(place),
                still.as_secs_f64()
            ),
            Turn::AgentsDie(first) => format!("SIGKILL to agents from {first} on"),
        }
    }

    /// Whoever was to die and did not.
    fn unharmed(&self, deaths: &Deaths) -> Vec<String> {
        let mut violations: Vec<String> = Vec::new();
        let mut roles: Vec<Role> = self.setup.site.roles().to_vec();
        roles.dedup();
        for role in roles {
            let count = deaths.servers.get(role.profile()).copied().unwrap_or(0);
            if (count as usize) < DEATHS_MIN {
                violations.push(format!("{} was killed {count} times only", role.profile()));
            }
        }
        if deaths.pauses == 0 {
            violations.push("nobody stood still".to_owned());
        }
        violations
    }

    fn tell(&self, found: &Drilled, stand: &Stand, samples: &[(f64, Usage)]) -> anyhow::Result<()> {
        told::print(&told::drill(found), &found.violations, &found.examples);
        let raw = (stand, samples, found.seconds);
        self.setup.write("scenario", found, raw)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Site;
    use super::super::setup::tests::setup;
    use super::super::tests::account;
    use super::*;

    fn drill(site: Site) -> Drill {
        Drill {
            setup: setup(site),
            processes: 5000,
            every: Duration::from_secs(5),
            stays_dead: Duration::from_secs(15),
            standstill: Duration::from_secs(25),
            agents_die_percent: 20,
        }
    }

    pub(in super::super) fn drilled() -> Drilled {
        let quick = ConnectMs {
            p50: 1.0,
            p99: 2.0,
            max: 3.0,
        };
        let rtt = RoundTripUs {
            p50: 1,
            p99: 2,
            p999: 3,
            max: 4,
        };
        Drilled {
            scenario: "drill",
            site: "distributed",
            agents: 500,
            deaths: [("agent-server", 2), ("api-server", 2)].into(),
            standstills: 1,
            agent_deaths: 100,
            account: account(),
            enrol_seconds: 1.0,
            seconds: 200.0,
            settled_s: 12.0,
            reconnect_ms: quick,
            rtt_us: rtt,
            passed: true,
            violations: Vec::new(),
            examples: Vec::new(),
        }
    }

    #[test]
    fn each_kind_dies_twice_and_one_with_sessions_stands_still() {
        for (site, kinds) in [
            (Site::Single, 1),
            (Site::RedundantMariadbZookeeper, 1),
            (Site::Control, 2),
            (Site::Distributed, 3),
        ] {
            let drill = drill(site);
            let turns = drill.schedule();
            let mut deaths = Deaths::default();
            for turn in &turns {
                match turn {
                    Turn::ServerDies(place, _) => {
                        let profile = site.roles()[*place].profile();
                        *deaths.servers.entry(profile).or_default() += 1;
                    }
                    Turn::ServerPauses(place, _) => {
                        assert!(site.roles()[*place].has_sessions());
                        deaths.pauses += 1;
                    }
                    Turn::AgentsDie(_) => deaths.agents += TOGETHER,
                }
            }
            assert_eq!(deaths.servers.len(), kinds);
            assert_eq!(drill.unharmed(&deaths), [""; 0]);
            assert_eq!((deaths.pauses, deaths.agents), (1, 100));
            let stay_dead = turns
                .iter()
                .filter(|turn| matches!(turn, Turn::ServerDies(_, dead) if !dead.is_zero()));
            assert_eq!(stay_dead.count(), kinds, "others must take over once");
        }
    }

    #[test]
    fn agents_die_all_over_the_fleet_and_nobody_twice() {
        let turns = drill(Site::Distributed).schedule();
        let first = turns.iter().filter_map(|turn| match turn {
            Turn::AgentsDie(first) => Some(*first),
            _ => None,
        });
        let first: Vec<usize> = first.collect();
        assert_eq!(first, [0, 50, 100, 150, 200, 250, 300, 350, 400, 450]);
        let nobody = Drill {
            agents_die_percent: 0,
            ..drill(Site::Single)
        };
        assert_eq!(nobody.schedule().len(), 3);
    }

    #[test]
    fn a_drill_in_which_somebody_was_spared_is_no_pass() {
        let mut deaths = Deaths::default();
        deaths.servers.insert("all", 1);
        let spared = drill(Site::Single).unharmed(&deaths);
        assert_eq!(
            spared,
            ["all was killed 1 times only", "nobody stood still"]
        );
    }

    #[test]
    fn the_work_lasts_as_long_as_the_deaths() {
        let drill = drill(Site::Single);
        let turns = drill.schedule();
        // Ten groups of agents, two deaths, one of them long, and a standstill.
        let expected = 13 * 5 + 2 + 17 + 25;
        assert_eq!(drill.takes(&turns), Duration::from_secs(expected));
    }
}
