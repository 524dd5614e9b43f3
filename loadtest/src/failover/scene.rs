//! Several agent servers, a control process and a fleet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use protocol::ids::AgentId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Failover;
use super::watch::Watch;
use crate::api::{Api, GroupState, Item, NewProcess};
use crate::clock;
use crate::fleet::FleetSpec;
use crate::ledger::Ledger;
use crate::server::{ApartSpec, Role, Server};
use crate::stand::Stand;
use crate::workload::{self, Workload};

/// Whatever is waited for comes within this.
const PATIENCE: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Sessions of each agent server may differ from their even share by so much.
pub(super) const UNEVEN: f64 = 0.10;
/// Groups that have not moved for so long are where they are to be: while some are not, two move each second.
const STILL: Duration = Duration::from_secs(4);
/// An operation's work, milliseconds.
const SERVICE_MS: u64 = 20;
const DEADLINE: Duration = Duration::from_secs(300);
/// Processes of a burst: more than are sent at once.
const BURST: usize = 2000;
/// In one request.
const AT_ONCE: usize = 500;

/// Everything that runs.
pub(super) struct Scene {
    stand: Stand,
    pub(super) watch: Arc<Watch>,
    /// Of the agent servers, in their order.
    links: Vec<String>,
    stop: CancellationToken,
    seed: u64,
}

impl Scene {
    /// Starts it all, and waits until every agent has a session.
    pub(super) async fn open(
        failover: &Failover,
        agent_servers: usize,
        locks: Option<String>,
        name: &str,
    ) -> anyhow::Result<Self> {
        let folder = failover.work_dir.join(name);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let mut server = failover.server.clone();
        server.data_dir = folder.join("server");
        server.log = folder.join("server.log");
        let spread = ["--set", "gateway.reconnect_spread=5s"].map(str::to_owned);
        server.arguments.extend(spread);
        let mut roles = vec![Role::Agents; agent_servers];
        roles.push(Role::Control);
        let spec = ApartSpec {
            server,
            roles,
            store: None,
            locks,
            events: None,
            grown: None,
        };
        let opened = spec.open().await?;
        let fleet = FleetSpec {
            agents: failover.agents,
            server: opened.agents.clone(),
            work_dir: folder,
            steering_hint: true,
        };
        let (mut stand, _) = Stand::join(opened, fleet, |_| ()).await?;
        let servers = stand.subject.servers_mut().iter();
        let links = servers.filter_map(link_of).collect();
        stand.fleet.expect_losses(true);
        let watch = Watch::new(stand.fleet.groups());
        stand.fleet.watch_commands(Arc::clone(&watch) as _);
        let scene = Self {
            stand,
            watch,
            links,
            stop: CancellationToken::new(),
            seed: 0,
        };
        scene.stand.start_fleet(0);
        let watching = Arc::clone(&scene.watch);
        let (api, links) = (scene.api().clone(), scene.links.clone());
        tokio::spawn(watching.run(api, links, scene.stop.clone()));
        scene.until_all_back(clock::now()).await?;
        Ok(scene)
    }

    pub(super) fn api(&self) -> &Api {
        &self.stand.api
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.stand.ledger
    }

    fn agents(&self) -> Arc<[AgentId]> {
        self.stand.fleet.ids()
    }

    /// An agent server.
    pub(super) fn server(&mut self, number: usize) -> &mut Server {
        &mut self.stand.subject.servers_mut()[number]
    }

    /// Where process servers reach it.
    pub(super) fn link(&self, number: usize) -> &str {
        &self.links[number]
    }

    /// The groups of each agent server, as the store has it.
    pub(super) async fn owned(&self) -> anyhow::Result<Vec<Vec<GroupState>>> {
        let groups = self.api().groups().await?;
        let of = |link: &String| {
            let own = groups.iter();
            let own = own.filter(|group| group.agent_server.as_ref() == Some(link));
            own.cloned().collect()
        };
        Ok(self.links.iter().map(of).collect())
    }

    /// The agent server with the most groups.
    pub(super) async fn busiest(&self) -> anyhow::Result<usize> {
        let owned = self.owned().await?;
        let most = (0..owned.len()).max_by_key(|number| owned[*number].len());
        most.context("no agent server")
    }

    /// Waits until the first so many agent servers have their share of the sessions.
    pub(super) async fn until_spread(&self, servers: usize) -> anyhow::Result<()> {
        let even = float(self.agents().len()) / float(servers);
        let since = clock::now();
        loop {
            let owned = self.owned().await?;
            let sessions = |groups: &Vec<GroupState>| {
                groups.iter().map(|group| group.connected).sum::<usize>()
            };
            let sessions: Vec<usize> = owned.iter().map(sessions).collect();
            let is_even = |count: &usize| (float(*count) - even).abs() <= even * UNEVEN + 1.0;
            if sessions.iter().take(servers).all(is_even)
                && sessions.iter().sum::<usize>() == self.agents().len()
            {
                return Ok(());
            }
            patient(
                since,
                &format!("agents spread evenly, and not {sessions:?}"),
            )?;
            tokio::time::sleep(LOOK_EVERY * 4).await;
        }
    }

    /// Waits until no group changes hands any more.
    pub(super) async fn until_still(&self) -> anyhow::Result<()> {
        let since = clock::now();
        while self.watch.still_for(clock::now()) < STILL {
            patient(since, "groups to stay where they are")?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until an agent server has no group; how many seconds since `went` that was.
    pub(super) async fn until_owned_elsewhere(
        &self,
        number: usize,
        went: Instant,
    ) -> anyhow::Result<f64> {
        while !self.owned().await?[number].is_empty() {
            patient(went, "its groups to be others'")?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(clock::now().duration_since(went).as_secs_f64())
    }

    /// Waits until every agent has a session with the owner of its group; how many seconds since `went` that was.
    pub(super) async fn until_all_back(&self, went: Instant) -> anyhow::Result<f64> {
        loop {
            let groups = self.api().groups().await?;
            let connected: usize = groups.iter().map(|group| group.connected).sum();
            if connected == self.agents().len() {
                return Ok(clock::now().duration_since(went).as_secs_f64());
            }
            patient(went, &format!("all agents, and not {connected}"))?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Begins to ask for so many processes a second, for so long.
    pub(super) fn load(&mut self, rate: f64, duration: Duration) -> JoinHandle<Vec<String>> {
        let load = Workload {
            rate,
            duration,
            service_ms: SERVICE_MS,
            deadline: DEADLINE,
        };
        self.seed += 1;
        self.stand.begin_work(load, self.seed)
    }

    /// Asks for many processes at once, and waits until some of them are under way.
    pub(super) async fn burst(&mut self, under_way: u64) -> anyhow::Result<JoinHandle<()>> {
        let (before, since) = (self.ledger().totals().effects, clock::now());
        let asking = self.ask_for_many();
        while self.ledger().totals().effects < before + under_way {
            patient(since, "a burst to be under way")?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(asking)
    }

    fn ask_for_many(&mut self) -> JoinHandle<()> {
        self.seed += 1;
        let (ids, seed, now) = (self.agents(), self.seed, clock::now());
        let items = (0..BURST).map(|n| {
            let process = NewProcess {
                agent: ids[n % ids.len()].to_string(),
                kind: "simulated",
                input: serde_json::json!({ "service_ms": SERVICE_MS }),
                deadline_seconds: DEADLINE.as_secs(),
            };
            let item = Item {
                idempotency_key: format!("burst-{seed}-{n}"),
                process,
            };
            (item, now)
        });
        let items: Vec<_> = items.collect();
        let (api, ledger) = (self.api().clone(), Arc::clone(self.ledger()));
        ledger.attempting(BURST as u64);
        tokio::spawn(async move {
            for some in items.chunks(AT_ONCE) {
                workload::submit(&api, &ledger, some.to_vec()).await;
            }
        })
    }

    /// Waits until every process that was accepted has ended.
    pub(super) async fn settle(&self) -> anyhow::Result<()> {
        let settled = self.stand.settle().await;
        ensure!(
            settled,
            "{} processes did not end",
            self.ledger().open_count()
        );
        Ok(())
    }

    /// Commands that an agent server has held back in its life.
    pub(super) async fn fenced(&mut self, number: usize) -> anyhow::Result<u64> {
        let admin = self.server(number).ready().admin.clone();
        let figures = Api::new(&admin.context("no admin listener")?, "")?;
        let fenced = figures.metric("drover_agent_server_dispatches_fenced_total");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        Ok(fenced.await?.context("no count of what was fenced")? as u64)
    }

    /// Takes everything down.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.stand.finish().await
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of agents and servers")]
pub(super) fn float(count: usize) -> f64 {
    count as f64
}

/// The link of an agent server, which it was told.
fn link_of(server: &Server) -> Option<String> {
    let arguments = server.spec().arguments.iter();
    let mut links = arguments.filter_map(|one| one.strip_prefix("link.listen="));
    links.next().map(str::to_owned)
}

fn patient(since: Instant, what: &str) -> anyhow::Result<()> {
    let waited = clock::now().duration_since(since);
    ensure!(waited < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
    Ok(())
}
