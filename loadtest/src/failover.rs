//! What several agent servers do when one dies, drains or stands still, and how groups follow servers that come and go.
//!
//! ```text
//!   for each lock service:  2 agent servers, 1 control process, a fleet, a steady load
//!     kill     SIGKILL, started again    its groups elsewhere after ?    all agents back after ?
//!     drain    `servers drain`           round trips meanwhile
//!     pause    SIGSTOP, SIGCONT          effects under a stale epoch?    attempts that were fenced?
//!   resize:                 1 → 2 → 3 → 2 agent servers     sessions of each, moves
//! ```

mod report;
mod resize;
mod scene;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use testkit::{Redis, ZooKeeper};

pub use self::report::Target;
pub use self::resize::Resized;
use self::scene::Scene;
use crate::clock;
use crate::ledger::Totals;
use crate::server::ServerSpec;

/// Twice the lease in the store.
const STANDSTILL: Duration = Duration::from_secs(24);
/// The load goes on for so long after something was done.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// By what servers hear that one is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum LockService {
    /// The store alone.
    Sql,
    /// A private ZooKeeper.
    Zookeeper,
    /// A private Redis.
    Redis,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Failover {
    /// With these, one after the other.
    pub locks: Vec<LockService>,
    /// Agents.
    pub agents: usize,
    /// Processes a second.
    pub rate: f64,
    /// How often an agent server dies.
    pub kills: u32,
    /// Whether one drains.
    pub drain: bool,
    /// How often one stands still.
    pub pauses: u32,
    /// Whether groups follow 1 → 2 → 3 → 2 agent servers.
    pub resize: bool,
    /// How to start servers.
    pub server: ServerSpec,
    /// Everything of theirs goes here.
    pub work_dir: PathBuf,
    /// Write what was found to this file, anew after each lock service.
    pub json: Option<PathBuf>,
    /// Write a dated folder under this one.
    pub results: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Found {
    /// With each lock service.
    pub services: Vec<Service>,
    /// Where groups were to follow servers.
    pub resized: Option<Resized>,
    /// What was asked, and whether it was met.
    pub targets: Vec<Target>,
    /// Whether all was.
    pub passed: bool,
}

/// With one lock service.
#[derive(Clone, Debug, Serialize)]
pub struct Service {
    /// Its name.
    pub locks: &'static str,
    /// Agents.
    pub agents: usize,
    /// Each death of an agent server.
    pub kills: Vec<Killed>,
    /// The drain of one.
    pub drained: Option<Drained>,
    /// Standstills.
    pub paused: Paused,
    /// The account of all processes, over all of that.
    pub processes: Totals,
}

/// A death.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Killed {
    /// Until no group was its own any more, seconds.
    pub owned_elsewhere_s: f64,
    /// Until every agent had a session again, seconds.
    pub agents_back_s: f64,
}

/// A drain.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Drained {
    /// Until it had no group any more, seconds.
    pub seconds: f64,
    /// Processes that were due from its order until shortly after its end.
    pub processes: u64,
    /// Their median from due to ended, milliseconds.
    pub p50_ms: f64,
    /// Of a hundred the slowest.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// Standstills of twice the lease.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct Paused {
    /// How many.
    pub times: u32,
    /// The longest until no group was its own any more, seconds.
    pub owned_elsewhere_max_s: f64,
    /// Operations that an agent took under an epoch that the store had replaced before.
    pub stale_effects: u64,
    /// Commands that the agent server held back when it went on, because its lease had run out.
    pub fenced_by_server: u64,
    /// Commands that agents refused because of their epoch.
    pub fenced_by_agents: u64,
}

/// A lock service that runs as long as this lives.
enum Running {
    Store,
    ZooKeeper(ZooKeeper),
    Redis(Redis),
}

impl LockService {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Zookeeper => "zookeeper",
            Self::Redis => "redis",
        }
    }

    async fn start(self) -> anyhow::Result<Running> {
        Ok(match self {
            Self::Sql => Running::Store,
            Self::Zookeeper => Running::ZooKeeper(ZooKeeper::start().await?),
            Self::Redis => Running::Redis(Redis::start().await?),
        })
    }
}

impl Running {
    fn url(&self) -> Option<String> {
        match self {
            Self::Store => None,
            Self::ZooKeeper(server) => Some(server.url()),
            Self::Redis(server) => Some(server.url()),
        }
    }
}

impl Failover {
    /// Runs it, prints and writes what was found.
    ///
    /// # Errors
    /// When servers or the fleet do not start or do not settle, or a file cannot be written.
    pub async fn run(&self) -> anyhow::Result<Found> {
        let mut found = Found::default();
        for locks in &self.locks {
            let service = Box::pin(self.with(*locks)).await?;
            found.services.push(service);
            self.tell(&mut found)?;
        }
        if self.resize {
            let resized = Box::pin(resize::run(self)).await?;
            found.resized = Some(resized);
            self.tell(&mut found)?;
        }
        report::print(&found);
        report::write_folder(self, &found)?;
        Ok(found)
    }

    /// Judges what is known by now, and writes it.
    fn tell(&self, found: &mut Found) -> anyhow::Result<()> {
        found.targets = report::judge(found);
        found.passed = found.targets.iter().all(|target| target.met);
        report::write_json(self, found)
    }

    async fn with(&self, locks: LockService) -> anyhow::Result<Service> {
        let running = locks.start().await?;
        let mut scene = Box::pin(Scene::open(self, 2, running.url(), locks.name())).await?;
        scene.until_spread(2).await?;
        println!(
            "{}: {} agents are spread over two agent servers",
            locks.name(),
            self.agents
        );
        let mut kills = Vec::new();
        for _ in 0..self.kills {
            let killed = self.kill(&mut scene).await?;
            println!(
                "{}: killed; its groups elsewhere after {:.1} s, all agents back after {:.1} s",
                locks.name(),
                killed.owned_elsewhere_s,
                killed.agents_back_s
            );
            kills.push(killed);
            scene.until_spread(2).await?;
        }
        let drained = match self.drain {
            true => Some(self.drain(&mut scene).await?),
            false => None,
        };
        let paused = self.pause(&mut scene).await?;
        scene.settle().await?;
        let processes = scene.ledger().totals();
        scene.stop().await?;
        Ok(Service {
            locks: locks.name(),
            agents: self.agents,
            kills,
            drained,
            paused,
            processes,
        })
    }

    /// SIGKILL of the one with the most groups, in the middle of a load.
    async fn kill(&self, scene: &mut Scene) -> anyhow::Result<Killed> {
        let victim = scene.busiest().await?;
        let load = scene.load(self.rate, Duration::from_secs(15));
        tokio::time::sleep(Duration::from_secs(2)).await;
        scene.server(victim).kill().await?;
        let went = clock::now();
        let owned_elsewhere_s = scene.until_owned_elsewhere(victim, went).await?;
        let agents_back_s = scene.until_all_back(went).await?;
        load.await?;
        scene.settle().await?;
        scene.server(victim).restart().await?;
        Ok(Killed {
            owned_elsewhere_s,
            agents_back_s,
        })
    }

    /// The one with the most groups gives them to the other, under a load.
    async fn drain(&self, scene: &mut Scene) -> anyhow::Result<Drained> {
        let leaves = scene.busiest().await?;
        let before = scene.ledger().round_trips();
        // 64 groups at two a second, of which it has half or a little more.
        let load = scene.load(self.rate, Duration::from_secs(25));
        let began = clock::now();
        let link = scene.link(leaves).to_owned();
        scene.api().drain_agent_server(&link).await?;
        let seconds = scene.until_owned_elsewhere(leaves, began).await?;
        load.await?;
        tokio::time::sleep(AFTERWARDS).await;
        scene.settle().await?;
        let trips = since(&before, &scene.ledger().round_trips());
        #[expect(clippy::cast_precision_loss, reason = "microseconds of minutes")]
        let ms = |micros: u64| micros as f64 / 1e3;
        scene.server(leaves).kill().await?;
        scene.server(leaves).restart().await?;
        scene.until_spread(2).await?;
        Ok(Drained {
            seconds,
            processes: trips.len(),
            p50_ms: ms(trips.value_at_quantile(0.5)),
            p99_ms: ms(trips.value_at_quantile(0.99)),
            max_ms: ms(trips.max()),
        })
    }

    /// Whoever owns most stands still for twice the lease, in the middle of a burst; again and again, each time when the
    /// groups are spread again: nothing else moves meanwhile.
    async fn pause(&self, scene: &mut Scene) -> anyhow::Result<Paused> {
        let mut paused = Paused::default();
        let (stale, refused) = (scene.watch.stale_count(), scene.watch.refused_count());
        for time in 0..self.pauses {
            scene.until_spread(2).await?;
            scene.until_still().await?;
            let victim = scene.busiest().await?;
            let fenced = scene.fenced(victim).await?;
            let load = scene.load(self.rate, STANDSTILL + AFTERWARDS);
            // Each time at another moment of the burst.
            let burst = scene.burst(u64::from(20 + 130 * (time % 11))).await?;
            let went = clock::now();
            let standing = scene.server(victim).pause(STANDSTILL);
            standing.await?;
            let elsewhere = scene.watch.owned_elsewhere_s(scene.link(victim), went);
            paused.owned_elsewhere_max_s = paused.owned_elsewhere_max_s.max(elsewhere);
            load.await?;
            burst.await?;
            scene.until_all_back(went).await?;
            scene.settle().await?;
            paused.fenced_by_server += scene.fenced(victim).await?.saturating_sub(fenced);
            paused.times += 1;
            println!(
                "standstill {}: {} fenced by agent servers, {} by agents, {} stale effects",
                paused.times,
                paused.fenced_by_server,
                scene.watch.refused_count() - refused,
                scene.watch.stale_count() - stale
            );
        }
        paused.stale_effects = scene.watch.stale_count() - stale;
        paused.fenced_by_agents = scene.watch.refused_count() - refused;
        Ok(paused)
    }
}

/// What was recorded between two readings of one histogram.
fn since(before: &Histogram<u64>, after: &Histogram<u64>) -> Histogram<u64> {
    let mut between = after.clone();
    if let Err(error) = between.subtract(before) {
        tracing::error!(%error, "round trips before cannot be left out");
    }
    between
}
