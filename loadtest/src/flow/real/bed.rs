//! A server, a fleet on a mill, and a load: put up, watched and taken down.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::driver::Drivers;
use anyhow::{Context as _, ensure};
use protocol::operation::Refusal;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Hosts;
use super::load::{self, Load};
use super::mill::{Ended, Mill};
use super::site::Site;
use crate::api::Api;
use crate::clock;
use crate::fleet::{Fleet, FleetSpec, Work};
use crate::flow::scenario::Scenario;
use crate::ledger::Ledger;
use crate::server::{ServerSpec, Subject, Usage, usage_of};
use crate::workload;

/// The server's log, in the folder of its plan.
pub(super) const SERVER_LOG: &str = "server.log";
/// The fleet must be up within this.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// All processes must have ended so long after the load has.
const SETTLE_WITHIN: Duration = Duration::from_secs(300);
/// Of each sort of failure.
const EXAMPLES: usize = 3;
/// Ends that the stream has not told are asked for this often.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// What a bed is made of.
pub(super) struct Plan<'a> {
    pub(super) server: &'a ServerSpec,
    pub(super) site: Site,
    /// Its own folder.
    pub(super) folder: &'a Path,
    /// Process servers.
    pub(super) servers: usize,
    /// More settings, as `KEY=VALUE`.
    pub(super) settings: Vec<String>,
    pub(super) hosts: Hosts,
    pub(super) scenario: Scenario,
    /// Agents that die together share a socket with nobody else; 0: none is to die.
    pub(super) agents_apart: usize,
}

/// Everything that runs.
pub(super) struct Bed {
    pub(super) subject: Subject,
    pub(super) api: Api,
    pub(super) fleet: Fleet,
    pub(super) ledger: Arc<Ledger>,
    pub(super) mill: Mill,
    pub(super) refusals: Arc<AtomicU64>,
    ends: Option<mpsc::Receiver<Ended>>,
    outstanding: Vec<usize>,
    watching: CancellationToken,
    turning: JoinHandle<()>,
    loading: Option<(CancellationToken, JoinHandle<()>)>,
    pub(super) not_taken: Arc<AtomicU64>,
}

/// Counters of the server and CPU time at a moment.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Reading {
    pub(super) commits: f64,
    pub(super) reads: f64,
    pub(super) returned: f64,
    pub(super) succeeded: f64,
    pub(super) server: Usage,
    pub(super) fleet: Usage,
}

impl Bed {
    /// Starts the server, lets the fleet join and connects it.
    pub(super) async fn prepare(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let opened = plan.site.target(plan, spec(plan)?).await?.open().await?;
        let api = Api::new(&opened.api, &opened.token)?.with_others(&opened.other_apis);
        let ledger = Arc::new(Ledger::default());
        let refusals = Arc::new(AtomicU64::new(0));
        let outstanding = outstanding(plan);
        let total = plan.hosts.agents * outstanding.iter().sum::<usize>();
        let (ended, ends) = mpsc::channel(total.max(1));
        let mut made = None;
        let work = |agents: &[protocol::ids::AgentId]| {
            let mill = Mill::new(&plan.scenario, agents, Arc::clone(&ledger), ended);
            made = Some(mill.clone());
            Work {
                drivers: Drivers::new().with(load::KIND, mill.clone()),
                capacity: plan.hosts.capacity,
                on_refusal: Some(on_refusal(mill, Arc::clone(&refusals))),
            }
        };
        let fleet_spec = FleetSpec {
            agents: plan.hosts.agents,
            server: opened.agents,
            work_dir: plan.folder.to_owned(),
            steering_hint: true,
        };
        let fleet = Fleet::enrol_for(fleet_spec, &api, work, |_| ()).await?;
        let mill = made.context("a fleet without work")?;
        let watching = CancellationToken::new();
        let watch = workload::watch(api.clone(), Arc::clone(&ledger), watching.clone());
        tokio::spawn(watch);
        let turning = tokio::spawn(mill.clone().run());
        start_fleet(&fleet, plan);
        let bed = Self {
            subject: opened.subject,
            api,
            fleet,
            ledger,
            mill,
            refusals,
            ends: Some(ends),
            outstanding,
            watching,
            turning,
            loading: None,
            not_taken: Arc::default(),
        };
        bed.wait_up(plan.hosts.agents).await?;
        Ok(bed)
    }

    /// Waits until so many agents have a session.
    pub(super) async fn wait_up(&self, agents: usize) -> anyhow::Result<()> {
        let since = clock::now();
        while self.fleet.up() < agents {
            ensure!(
                clock::now().duration_since(since) < UP_WITHIN,
                "only {} of {agents} sessions came up",
                self.fleet.up()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Begins to load all agents; once.
    pub(super) fn load(&mut self) {
        self.load_first(usize::MAX);
    }

    /// The same for the first so many agents.
    pub(super) fn load_first(&mut self, agents: usize) {
        let Some(ends) = self.ends.take() else {
            return;
        };
        let load = Load {
            api: self.api.clone(),
            ledger: Arc::clone(&self.ledger),
            loaded: agents.min(self.fleet.ids().len()),
            agents: self.fleet.ids(),
            outstanding: self.outstanding.clone(),
            refused: Arc::clone(&self.not_taken),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(load.run(ends, stop.clone()));
        self.loading = Some((stop, task));
    }

    /// Nothing new is asked for.
    pub(super) async fn stop_load(&mut self) {
        if let Some((stop, task)) = self.loading.take() {
            stop.cancel();
            drop(task.await);
        }
    }

    /// Waits until every process that was accepted has ended; whether all have.
    pub(super) async fn settle(&self) -> bool {
        let (since, mut asked) = (clock::now(), clock::now());
        while self.ledger.open_count() > 0 {
            let now = clock::now();
            if now.duration_since(since) > SETTLE_WITHIN {
                return false;
            }
            if now.duration_since(asked) > ASK_EVERY {
                asked = now;
                for process in self.ledger.open() {
                    if let Ok(Some(end)) = self.api.end_of(process).await {
                        self.ledger.ended(process, end, now);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    }

    /// A few of the processes that failed or did not end, as the API tells them.
    pub(super) async fn examples(&self) -> Vec<serde_json::Value> {
        let (failed, open) = (self.ledger.failed(), self.ledger.open());
        let mut examples = Vec::new();
        for process in failed
            .iter()
            .take(EXAMPLES)
            .chain(open.iter().take(EXAMPLES))
        {
            examples.extend(self.api.process(*process).await);
        }
        examples
    }

    /// The server's counters now.
    pub(super) async fn read(&self) -> anyhow::Result<Reading> {
        let metrics = self.api.metrics().await?;
        let of = |name| metrics.sum(name).unwrap_or(0.0);
        Ok(Reading {
            commits: of("drover_store_commits_total"),
            reads: of("drover_store_reads_total"),
            returned: of("drover_permits_returned_total"),
            succeeded: of("drover_processes_succeeded_total"),
            server: self.subject.usage(),
            fleet: usage_of(std::process::id()).unwrap_or_default(),
        })
    }

    /// Operations that the server believes to be claimed or running; its figures are a second old.
    pub(super) async fn active(&self) -> Option<u64> {
        let patience = clock::now() + Duration::from_secs(20);
        loop {
            // A server drops a claim that it does not hold with a beat, and says so with a tick.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let active = self.api.metric("drover_operations_active").await.ok()??;
            if active <= 0.0 || clock::now() >= patience {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count"
                )]
                return Some(active as u64);
            }
        }
    }

    /// Permits that gateways count although nothing runs, and of how many agents that is known.
    pub(super) async fn leaked_permits(&self) -> (u64, usize) {
        let (mut leaked, mut known) = (0, 0);
        for agent in self.fleet.ids().iter() {
            if let Some(permits) = self.api.permits_of(*agent).await {
                leaked += permits.iter().sum::<u64>();
                known += 1;
            }
        }
        (leaked, known)
    }

    /// Takes everything down.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        self.stop_load().await;
        self.watching.cancel();
        self.fleet.stop().await;
        self.turning.abort();
        self.subject.stop().await
    }
}

fn spec(plan: &Plan<'_>) -> anyhow::Result<ServerSpec> {
    std::fs::create_dir_all(plan.folder)
        .with_context(|| format!("cannot make {}", plan.folder.display()))?;
    let mut spec = plan.server.clone();
    spec.data_dir = plan.folder.join("server");
    spec.log = plan.folder.join(SERVER_LOG);
    let servers = format!(
        "process_servers={}",
        plan.site.servers_in_each(plan.servers)
    );
    for setting in plan.settings.iter().chain([&servers]) {
        spec.arguments.extend(["--set".to_owned(), setting.clone()]);
    }
    Ok(spec)
}

fn outstanding(plan: &Plan<'_>) -> Vec<usize> {
    let tenants = plan.scenario.tenants.iter();
    let shares: Vec<f64> = tenants.map(|tenant| tenant.share).collect();
    load::by_share(plan.hosts.outstanding, &shares)
}

fn on_refusal(mill: Mill, refusals: Arc<AtomicU64>) -> crate::fleet::Refused {
    Arc::new(move |why| {
        // An agent that stops, or hears an old epoch, refuses for another reason.
        if matches!(why, Refusal::Busy { .. }) {
            refusals.fetch_add(1, Ordering::Relaxed);
            mill.refused();
        }
    })
}

fn start_fleet(fleet: &Fleet, plan: &Plan<'_>) {
    match plan.agents_apart {
        0 => fleet.start(0..plan.hosts.agents),
        apart => {
            for first in (0..plan.hosts.agents).step_by(apart) {
                fleet.start_apart(first..(first + apart).min(plan.hosts.agents));
            }
        }
    }
}
