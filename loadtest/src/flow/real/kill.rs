//! A random component dies or stands still every few seconds, for long: nothing is lost, nothing happens twice,
//! no permit leaks (T7).
//!
//! | who | how | how often |
//! |---|---|---|
//! | the server | SIGKILL, started again at once | one turn in four |
//! | the server | SIGSTOP for 3 s | one turn in eight |
//! | of a server in several processes: one of them | likewise | likewise |
//! | ten agents | as SIGKILL does it, started again after 2 s | the others |
//! | one of several process servers | the server does it itself, by a setting | as asked for, beside the turns |

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bed::{Bed, Plan};
use super::{Hosts, Site, Target, dead_server};
use crate::clock;
use crate::flow::random::Random;
use crate::server::ServerSpec;
use crate::stand::deaths::{Deaths, TOGETHER, Turn};

mod report;

/// How far it is, is said this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Somebody dies or stands still so often.
    pub every: Duration,
    /// Beside that, so often one of the process servers: the server's own setting
    /// `faults.process_servers_die_every`. It takes two of them at least.
    pub process_servers_die: Option<Duration>,
    /// How long.
    pub duration: Duration,
    /// Process servers in the server.
    pub servers: usize,
    /// The fleet and its hosts.
    pub fleet: Hosts,
    /// Of the deaths and of the operations' work.
    pub seed: u64,
    /// How to start the server.
    pub server: ServerSpec,
    /// In how many processes.
    pub site: Site,
    /// Journals go here.
    pub work_dir: PathBuf,
    /// Write what was found to this file.
    pub json: Option<PathBuf>,
    /// Write a dated folder under this one.
    pub results: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Killed {
    /// Agents.
    pub agents: usize,
    /// Process servers.
    pub servers: usize,
    /// Somebody died or stood still so often, seconds.
    pub every_s: f64,
    /// How long it took until everything had ended, seconds.
    pub seconds: f64,
    /// Of these: from the last death until everything had ended.
    pub settled_s: f64,
    /// How often the server was killed.
    pub server_deaths: u32,
    /// How often it was stopped for 3 s, and went on.
    pub server_pauses: u32,
    /// How many agents were killed.
    pub agent_deaths: usize,
    /// How often one of the process servers died by the server's setting; nothing where that was not asked for.
    pub process_server_deaths: Option<usize>,
    /// Processes that the API accepted.
    pub submitted: u64,
    /// Those that succeeded.
    pub succeeded: u64,
    /// Those that did not.
    pub failed: u64,
    /// Processes that the API refused for good.
    pub refused: u64,
    /// Accepted and never ended, or succeeded without an effect.
    pub lost: u64,
    /// Effects beyond the first of an operation.
    pub duplicate_effects: u64,
    /// Commands that reached an agent that had no room.
    pub over_issue: u64,
    /// Operations that process servers believed to be active, and permits that gateways counted, when nothing
    /// was.
    pub leaked: u64,
    /// Of how many agents the gateways told their permits.
    pub permits_told: usize,
    /// Agents that did not come back.
    pub missing: usize,
    /// Whether everything held, and whoever was to die did.
    pub passed: bool,
    /// T7: whether that was over enough operations.
    pub targets: Vec<Target>,
    /// A few of the processes that failed or did not end, as the API tells them.
    pub examples: Vec<serde_json::Value>,
}

impl Kill {
    /// Runs it, prints and writes what was found.
    ///
    /// # Errors
    /// When the server or the fleet does not start, or a file cannot be written.
    pub async fn run(&self) -> anyhow::Result<Killed> {
        let mut bed = Bed::prepare(&Plan {
            server: &self.server,
            site: self.site,
            folder: &self.work_dir,
            servers: self.servers,
            settings: self.settings(),
            hosts: self.fleet,
            scenario: self.fleet.scenario(0.05, self.servers, self.seed),
            agents_apart: TOGETHER,
        })
        .await?;
        bed.fleet.expect_losses(true);
        bed.load();
        let began = clock::now();
        let mut deaths = Deaths::default();
        self.let_die(&mut bed, &mut deaths, began).await?;
        let last_death = clock::now();
        bed.stop_load().await;
        deaths.raise(&bed, None);
        let all_up = bed.wait_up().await;
        bed.settle().await;
        let missing = all_up.map_or_else(|_| self.fleet.agents - bed.fleet.up(), |()| 0);
        let ended = clock::now();
        let took = [
            ended.duration_since(began),
            ended.duration_since(last_death),
        ];
        let found = self.judge(&bed, &deaths, took, missing).await;
        bed.finish().await?;
        report::tell(self, &found)?;
        Ok(found)
    }

    fn settings(&self) -> Vec<String> {
        let mut settings = vec!["gateway.reconnect_spread=1s".to_owned()];
        let dying = self
            .process_servers_die
            .map(|every| format!("faults.process_servers_die_every={}ms", every.as_millis()));
        settings.extend(dying);
        settings
    }

    /// Somebody dies or stands still in each turn, until the time is over.
    async fn let_die(
        &self,
        bed: &mut Bed,
        deaths: &mut Deaths,
        began: Instant,
    ) -> anyhow::Result<()> {
        let (mut next, mut told) = (began + self.every, began);
        let mut random = Random::new(self.seed);
        let servers = bed.subject.servers_mut().len();
        while clock::now().duration_since(began) < self.duration {
            tokio::time::sleep_until(next.into()).await;
            next += self.every;
            let turn = Turn::draw(&mut random, servers, self.fleet.agents);
            deaths.one(bed, turn).await?;
            let now = clock::now();
            if now.duration_since(told) >= TELL_EVERY {
                told = now;
                let succeeded = bed.ledger.totals_quick().succeeded;
                println!("{}", deaths.progress(now.duration_since(began), succeeded));
            }
        }
        Ok(())
    }

    async fn judge(
        &self,
        bed: &Bed,
        deaths: &Deaths,
        [took, settled]: [Duration; 2],
        missing: usize,
    ) -> Killed {
        let totals = bed.ledger.totals();
        let (permits, permits_told) = bed.leaked_permits().await;
        let active = bed.active().await.unwrap_or(u64::MAX);
        let counted = || dead_server::deaths_in(&self.work_dir.join(super::bed::SERVER_LOG));
        let mut found = Killed {
            agents: self.fleet.agents,
            servers: self.servers,
            every_s: self.every.as_secs_f64(),
            seconds: took.as_secs_f64(),
            settled_s: settled.as_secs_f64(),
            server_deaths: deaths.of_servers(),
            server_pauses: deaths.pauses,
            agent_deaths: deaths.agents,
            process_server_deaths: self.process_servers_die.map(|_| counted()),
            submitted: totals.submitted,
            succeeded: totals.succeeded,
            failed: totals.failed,
            refused: bed.not_taken.load(Ordering::Relaxed),
            lost: totals.lost,
            duplicate_effects: totals.duplicate_effects,
            over_issue: bed.refusals.load(Ordering::Relaxed),
            leaked: active.saturating_add(permits),
            permits_told,
            missing,
            passed: false,
            targets: Vec::new(),
            examples: bed.examples().await,
        };
        found.passed = found.holds();
        found.targets = vec![report::judge(&found)];
        found
    }
}

impl Killed {
    /// Nothing was lost, doubled, refused or leaked, everybody came back, and whoever was to die did.
    fn holds(&self) -> bool {
        let violations = [
            self.lost,
            self.duplicate_effects,
            self.failed,
            self.refused,
            self.over_issue,
            self.leaked,
            self.missing as u64,
        ];
        violations.iter().all(|count| *count == 0) && self.process_server_deaths != Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_servers_die_only_where_that_is_asked_for() {
        let mut kill = report::tests::kill();
        assert_eq!(kill.settings(), ["gateway.reconnect_spread=1s"]);
        kill.process_servers_die = Some(Duration::from_secs(7));
        let setting = "faults.process_servers_die_every=7000ms";
        assert_eq!(kill.settings(), ["gateway.reconnect_spread=1s", setting]);
    }

    #[test]
    fn a_death_that_was_asked_for_and_did_not_happen_is_no_pass() {
        let mut found = report::tests::found();
        assert!(found.holds());
        found.process_server_deaths = None;
        assert!(found.holds(), "nobody asked");
        found.process_server_deaths = Some(0);
        assert!(!found.holds());
        found.process_server_deaths = Some(1);
        found.leaked = 1;
        assert!(!found.holds());
    }
}
