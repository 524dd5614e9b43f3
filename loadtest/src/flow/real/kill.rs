//! A random component dies every few seconds, for long: nothing is lost, nothing happens twice, no permit
//! leaks.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Hosts;
use super::bed::{Bed, Plan};
use crate::clock;
use crate::flow::random::Random;
use crate::report;
use crate::server::{ServerSpec, Subject};

/// Agents that die together.
const TOGETHER: usize = 10;
/// One death in so many is the server's: its agents need some time to come back.
const SERVER_ONE_IN: usize = 4;
/// Killed agents stay dead for so long.
const OUTAGE: Duration = Duration::from_secs(2);

/// What to run.
#[derive(Clone, Debug)]
pub struct Kill {
    /// A death so often.
    pub every: Duration,
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
    /// How long it took, seconds.
    pub seconds: f64,
    /// How often the server was killed.
    pub server_deaths: u32,
    /// How many agents were killed.
    pub agent_deaths: usize,
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
    /// Whether everything held.
    pub passed: bool,
    /// A few of the processes that failed or did not end, as the API tells them.
    pub examples: Vec<serde_json::Value>,
}

impl Kill {
    /// Runs it, prints and writes what was found.
    ///
    /// # Errors
    /// When the server or the fleet does not start, or a file cannot be written.
    pub async fn run(&self) -> anyhow::Result<Killed> {
        let plan = Plan {
            server: &self.server,
            folder: &self.work_dir,
            servers: self.servers,
            settings: vec!["gateway.reconnect_spread=1s".to_owned()],
            hosts: self.fleet,
            scenario: self.fleet.scenario(0.05, self.servers, self.seed),
            agents_apart: TOGETHER,
        };
        let mut bed = Bed::prepare(&plan).await?;
        bed.fleet.expect_losses(true);
        bed.load();
        let began = clock::now();
        let mut deaths = Deaths {
            random: Random::new(self.seed),
            dead: Vec::new(),
            server: 0,
            agents: 0,
        };
        let mut next = began + self.every;
        while clock::now().duration_since(began) < self.duration {
            tokio::time::sleep_until(next.into()).await;
            next += self.every;
            deaths.one(&mut bed, self.fleet.agents).await?;
            tracing::info!(
                ended = bed.ledger.totals_quick().succeeded,
                "{} deaths of the server, {} of agents",
                deaths.server,
                deaths.agents
            );
        }
        bed.stop_load().await;
        deaths.raise(&bed, None);
        let all_up = bed.wait_up(self.fleet.agents).await;
        bed.settle().await;
        let seconds = clock::now().duration_since(began).as_secs_f64();
        let missing = all_up.map_or_else(|_| self.fleet.agents - bed.fleet.up(), |()| 0);
        let found = self.judge(&bed, &deaths, seconds, missing).await;
        bed.finish().await?;
        self.tell(&found)?;
        Ok(found)
    }

    async fn judge(&self, bed: &Bed, deaths: &Deaths, seconds: f64, missing: usize) -> Killed {
        let totals = bed.ledger.totals();
        let refused = bed.not_taken.load(Ordering::Relaxed);
        let over_issue = bed.refusals.load(Ordering::Relaxed);
        let (permits, permits_told) = bed.leaked_permits().await;
        let leaked = bed
            .active()
            .await
            .unwrap_or(u64::MAX)
            .saturating_add(permits);
        let violations = [
            totals.lost,
            totals.duplicate_effects,
            totals.failed,
            refused,
            over_issue,
            leaked,
            missing as u64,
        ];
        Killed {
            agents: self.fleet.agents,
            servers: self.servers,
            seconds,
            server_deaths: deaths.server,
            agent_deaths: deaths.agents,
            submitted: totals.submitted,
            succeeded: totals.succeeded,
            failed: totals.failed,
            refused,
            lost: totals.lost,
            duplicate_effects: totals.duplicate_effects,
            over_issue,
            leaked,
            permits_told,
            missing,
            passed: violations.iter().all(|count| *count == 0),
            examples: bed.examples().await,
        }
    }

    fn tell(&self, found: &Killed) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(found)?;
        println!("{}", String::from_utf8_lossy(&json));
        if let Some(path) = &self.json {
            std::fs::write(path, &json)?;
        }
        if let Some(results) = &self.results {
            let stamp = clock::stamp(clock::unix_seconds());
            let folder = results.join(format!("{stamp}-flow-kill"));
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("kill.json"), &json)?;
            std::fs::write(folder.join("machine.txt"), report::machine())?;
            println!("written: {}", folder.display());
        }
        Ok(())
    }
}

/// Who has died so far.
struct Deaths {
    random: Random,
    /// The first of each group that is dead, and since when.
    dead: Vec<(usize, Instant)>,
    server: u32,
    agents: usize,
}

impl Deaths {
    /// Somebody dies; those who have been dead for long enough live again.
    async fn one(&mut self, bed: &mut Bed, agents: usize) -> anyhow::Result<()> {
        self.raise(bed, Some(OUTAGE));
        if self.random.below(SERVER_ONE_IN) == 0 {
            if let Subject::Ours(server) = &mut bed.subject {
                server.kill().await?;
                server.restart().await?;
                self.server += 1;
            }
            return Ok(());
        }
        let first = self.random.below(agents.div_ceil(TOGETHER)) * TOGETHER;
        if self.dead.iter().all(|(dead, _)| *dead != first) {
            let group = first..(first + TOGETHER).min(agents);
            self.agents += group.len();
            bed.fleet.kill(group).await;
            self.dead.push((first, clock::now()));
        }
        Ok(())
    }

    /// Starts those again that have been dead for so long; all, without a time.
    fn raise(&mut self, bed: &Bed, after: Option<Duration>) {
        let now = clock::now();
        let agents = bed.fleet.ids().len();
        self.dead.retain(|(first, since)| {
            let stays = after.is_some_and(|after| now.duration_since(*since) < after);
            if !stays {
                bed.fleet
                    .start_apart(*first..(*first + TOGETHER).min(agents));
            }
            stays
        });
    }
}
