//! A server, a fleet on a mill, and a load: put up, watched and taken down.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::driver::Drivers;
use anyhow::Context as _;
use protocol::operation::Refusal;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Hosts;
use super::load::{self, Load};
use super::mill::{Ended, Mill};
use super::site::Site;
use crate::fleet::{Fleet, FleetSpec, Work};
use crate::flow::scenario::Scenario;
use crate::ledger::Ledger;
use crate::server::{ServerSpec, Usage, usage_of};
use crate::stand::Stand;

/// The server's log, in the folder of its plan.
pub(super) const SERVER_LOG: &str = "server.log";

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

/// A stand on a mill, and a load.
pub(super) struct Bed {
    stand: Stand,
    pub(super) mill: Mill,
    pub(super) refusals: Arc<AtomicU64>,
    ends: Option<mpsc::Receiver<Ended>>,
    outstanding: Vec<usize>,
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
        let api = opened.client()?;
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
        let stand = Stand::new(opened.subject, api, fleet, ledger);
        let turning = tokio::spawn(mill.clone().run());
        stand.start_fleet(plan.agents_apart);
        stand.wait_up().await?;
        Ok(Self {
            stand,
            mill,
            refusals,
            ends: Some(ends),
            outstanding,
            turning,
            loading: None,
            not_taken: Arc::default(),
        })
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

    /// Takes everything down.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        self.stop_load().await;
        let finished = self.stand.finish().await;
        self.turning.abort();
        finished
    }
}

impl Deref for Bed {
    type Target = Stand;

    fn deref(&self) -> &Stand {
        &self.stand
    }
}

impl DerefMut for Bed {
    fn deref_mut(&mut self) -> &mut Stand {
        &mut self.stand
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
