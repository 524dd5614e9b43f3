//! `hold`: a fleet holds its sessions, a workload runs over them, faults happen, and in the end every
//! effect is accounted for.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock;
use crate::door::Door;
use crate::fleet::FleetSpec;
use crate::report::{self, ConnectMs, Fault, Raw, RoundTripUs, ServerUse, Summary};
use crate::server::{Target, Usage, usage_of};
use crate::stand::Stand;
use crate::workload::Workload;

mod faults;

/// What to hold, how long, and what to break.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Hypervisors.
    pub agents: usize,
    /// Of the workload.
    pub duration: Duration,
    /// The fleet is watched this long without a workload first, for its idle CPU and memory.
    pub idle: Duration,
    /// Processes a second; 0: none.
    pub rate: f64,
    /// Service time of each operation, milliseconds.
    pub service_ms: u64,
    /// SIGKILL the server this long after the workload began; it starts again 5 s later.
    pub kill_server: Option<Duration>,
    /// Kill so many agents in the middle of the workload; they start again from their journals
    /// 5 s later.
    pub kill_agents: usize,
    /// Whether agents steer themselves to their home shard.
    pub steering_hint: bool,
    /// New sessions a second while the fleet comes up.
    pub connect_rate: f64,
    /// The server under test.
    pub server: Target,
    /// Result folders go here; `None`: no folder.
    pub results: Option<PathBuf>,
    /// Its name.
    pub name: String,
    /// Journals and the started server's data go here.
    pub work_dir: PathBuf,
    /// Of the workload's choices.
    pub seed: u64,
}

/// The whole fleet must be up, and accepted processes must all have ended, this long after the
/// last agent was started, or the workload was over, and twice what the door takes for the fleet.
const UP_SLACK: Duration = Duration::from_secs(120);
/// Everything is quiet for this long before idle memory is read.
const SETTLE: Duration = Duration::from_secs(5);
/// A process of the workload is over after this long.
const PROCESS_DEADLINE: Duration = Duration::from_secs(600);

struct Run {
    hold: Hold,
    stand: Stand,
    bar: ProgressBar,
    samples: Vec<(f64, Usage)>,
    faults: Vec<Fault>,
    violations: Vec<String>,
    start: Instant,
    door: Door,
    /// How long the fleet took to join.
    enrolled_in: Duration,
}

impl Hold {
    /// Runs it, prints and writes the report.
    ///
    /// # Errors
    /// When the run could not be carried out; a run that was carried out and found violations
    /// returns its summary.
    pub async fn run(self) -> anyhow::Result<Summary> {
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template(
            "{prefix:>10} [{bar:40}] {pos}/{len} {msg}",
        )?);
        let mut run = Run::prepare(self, bar).await?;
        let before = run.stand.subject.usage();
        let connected = run.connect().await?;
        let up = run.stand.subject.usage();
        tokio::time::sleep(SETTLE).await;
        let settled = run.stand.subject.usage();
        run.rest().await;
        let idle = run.stand.subject.usage();
        let refused = run.work().await?;
        run.settle().await;
        let loaded = run.stand.subject.usage();
        let duration = clock::now().duration_since(run.start);
        if let Some(why) = refused.first() {
            run.violations.push(format!(
                "{} processes refused, the first with: {why}",
                refused.len()
            ));
        }
        let usage = server_use(&run, [before, up, settled, idle, loaded], connected);
        let summary = run.judge(usage).await;
        run.bar.finish_and_clear();
        report::print(&summary);
        if let Some(results) = &run.hold.results {
            let raw = Raw {
                round_trips: &run.stand.ledger.round_trips(),
                connects: &run.stand.fleet.connect_times(),
                reconnects: &run.stand.fleet.reconnect_times(),
                samples: &run.samples,
                duration,
            };
            let folder = report::write_folder(results, &run.hold.name, &summary, &raw)?;
            println!("  written to  {}", folder.display());
        }
        run.stand.finish().await?;
        Ok(summary)
    }
}

impl Run {
    async fn prepare(hold: Hold, bar: ProgressBar) -> anyhow::Result<Self> {
        warn_of_small_buffers(hold.agents);
        let opened = hold.server.open().await?;
        let spec = FleetSpec {
            agents: hold.agents,
            server: opened.agents.clone(),
            work_dir: hold.work_dir.clone(),
            steering_hint: hold.steering_hint,
        };
        bar.set_prefix("enrolled");
        bar.set_length(hold.agents as u64);
        let joined = Stand::join(opened, spec, |n| bar.set_position(n as u64));
        let (stand, enrolled_in) = joined.await?;
        let shards = stand.api.samples("drover_gateway_sessions").await?.len();
        let door = Door::of(hold.server.arguments(), shards);
        Ok(Self {
            hold,
            stand,
            bar,
            samples: Vec::new(),
            faults: Vec::new(),
            violations: Vec::new(),
            start: clock::now(),
            door,
            enrolled_in,
        })
    }

    /// Brings the fleet up; how many sessions came.
    async fn connect(&mut self) -> anyhow::Result<usize> {
        self.start = clock::now();
        self.bar.set_prefix("connected");
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let mut started = 0;
        let mut last_start = clock::now();
        loop {
            ticks.tick().await;
            let due = self
                .due(clock::now().duration_since(self.start))
                .min(self.hold.agents);
            while started < due {
                // Those to be killed share no socket with the others: it dies with them.
                let kill_end = self.hold.kill_agents.min(self.hold.agents);
                let end = if started < kill_end {
                    let end = due.min(kill_end);
                    self.stand.fleet.start_apart(started..end);
                    end
                } else {
                    self.stand.fleet.start(started..due);
                    due
                };
                started = end;
                last_start = clock::now();
            }
            let up = self.stand.fleet.up();
            self.bar.set_position(up as u64);
            self.sample();
            if up == self.hold.agents {
                break;
            }
            if clock::now().duration_since(last_start) > self.patience() {
                self.violations.push(format!(
                    "only {up} of {} sessions came up",
                    self.hold.agents
                ));
                break;
            }
        }
        Ok(self.stand.fleet.up())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of agents"
    )]
    fn due(&self, elapsed: Duration) -> usize {
        (self.hold.connect_rate * elapsed.as_secs_f64()).ceil() as usize
    }

    /// How long the fleet, or its last processes, are waited for.
    fn patience(&self) -> Duration {
        UP_SLACK + self.door.admission(self.hold.agents) * 2
    }

    /// Since the run's start.
    fn seconds(&self) -> f64 {
        clock::now().duration_since(self.start).as_secs_f64()
    }

    fn sample(&mut self) {
        let second = self.seconds();
        if self
            .samples
            .last()
            .is_none_or(|(last, _)| second - last >= 1.0)
        {
            self.samples.push((second, self.stand.subject.usage()));
        }
    }

    /// Nothing happens but heartbeats.
    async fn rest(&mut self) {
        self.bar.set_prefix("idle");
        let began = clock::now();
        while clock::now().duration_since(began) < self.hold.idle {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.progress();
        }
    }

    /// Runs the workload and the faults; returns what the API refused for good.
    async fn work(&mut self) -> anyhow::Result<Vec<String>> {
        let began = clock::now();
        let workload = Workload {
            rate: self.hold.rate,
            duration: self.hold.duration,
            service_ms: self.hold.service_ms,
            deadline: PROCESS_DEADLINE,
        };
        let seed = self.hold.seed;
        let running = (self.hold.rate > 0.0).then(|| self.stand.begin_work(workload, seed));
        self.bar.set_prefix("ended");
        let mut kill_server = self.hold.kill_server;
        let mut kill_agents = (self.hold.kill_agents > 0).then(|| self.hold.duration / 2);
        // A fault that was asked for happens, even if the one before took all the time.
        while clock::now().duration_since(began) < self.hold.duration
            || kill_server.is_some()
            || kill_agents.is_some()
        {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let elapsed = clock::now().duration_since(began);
            if kill_server.take_if(|at| *at <= elapsed).is_some() {
                self.kill_server().await?;
            }
            if kill_agents.take_if(|at| *at <= elapsed).is_some() {
                self.kill_agents().await;
            }
            self.progress();
        }
        Ok(match running {
            Some(running) => running.await?,
            None => Vec::new(),
        })
    }

    fn progress(&mut self) {
        let totals = self.stand.ledger.totals_quick();
        self.bar.set_length(totals.submitted.max(1));
        self.bar.set_position(totals.succeeded + totals.failed);
        self.bar.set_message(format!(
            "{} sessions, {} failed, {} s",
            self.stand.fleet.up(),
            totals.failed,
            clock::now().duration_since(self.start).as_secs()
        ));
        self.sample();
    }

    /// Waits until every accepted process has ended; asks the API about those whose end the stream
    /// has not told.
    async fn settle(&mut self) {
        let since = clock::now();
        let mut asked = since;
        let patience = self.patience();
        while self.stand.ledger.open_count() > 0 && clock::now().duration_since(since) < patience {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.progress();
            if clock::now().duration_since(asked) > SETTLE {
                self.stand.ask_for_ends().await;
                asked = clock::now();
            }
        }
        for process in self.stand.ledger.open().into_iter().take(3) {
            if let Ok(json) = self.stand.api.process(process).await {
                self.violations.push(format!("never ended: {json}"));
            }
        }
    }

    async fn judge(&mut self, server: ServerUse) -> Summary {
        let totals = self.stand.ledger.totals();
        let sessions_up = self.stand.fleet.up() as u64;
        let sessions_lost = self.stand.fleet.lost();
        let mut violations = std::mem::take(&mut self.violations);
        let mut check = |held: bool, what: String| {
            if !held {
                violations.push(what);
            }
        };
        check(
            sessions_up == self.hold.agents as u64,
            format!("{sessions_up} sessions up"),
        );
        check(sessions_lost == 0, format!("{sessions_lost} sessions lost"));
        check(totals.lost == 0, format!("{} processes lost", totals.lost));
        check(
            totals.failed == 0,
            format!("{} processes failed", totals.failed),
        );
        check(
            totals.duplicate_effects == 0,
            format!("{} duplicate effects", totals.duplicate_effects),
        );
        Summary {
            agents: self.hold.agents as u64,
            sessions_up,
            sessions_lost,
            home_shard_ratio: self.home_shard_ratio().await,
            processes: totals.into(),
            duplicate_effects: totals.duplicate_effects,
            enrol_seconds: self.enrolled_in.as_secs_f64(),
            connect_ms: ConnectMs::of(&self.stand.fleet.connect_times()),
            rtt_us: RoundTripUs::of(&self.stand.ledger.round_trips()),
            server,
            fleet_rss_bytes: usage_of(std::process::id()).unwrap_or_default().rss_bytes,
            faults: std::mem::take(&mut self.faults),
            passed: violations.is_empty(),
            violations,
        }
    }

    async fn home_shard_ratio(&self) -> Option<f64> {
        let api = &self.stand.api;
        let sessions = api.metric("drover_gateway_sessions").await.ok()??;
        let at_home = api.metric("drover_gateway_sessions_at_home").await.ok()??;
        (sessions > 0.0).then(|| at_home / sessions)
    }
}

/// A socket of the fleet is shared by hundreds of agents; a whole fleet that speaks at once needs
/// room in it.
fn warn_of_small_buffers(agents: usize) {
    const WANTED_BYTES: u64 = 4 << 20;
    const LARGE_FLEET: usize = 20_000;
    let file = "/proc/sys/net/core/rmem_max";
    let limit = std::fs::read_to_string(file).ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(limit) = limit.filter(|limit| *limit < WANTED_BYTES && agents >= LARGE_FLEET) {
        eprintln!(
            "sockets may buffer only {limit} bytes here and will drop datagrams of so large a \
             fleet; allow more: sysctl -w net.core.rmem_max={WANTED_BYTES}"
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts well below 2^53")]
fn server_use(
    run: &Run,
    [before, up, settled, idle, loaded]: [Usage; 5],
    connected: usize,
) -> ServerUse {
    let totals = run.stand.ledger.totals_quick();
    let processes = (totals.succeeded + totals.failed).max(1) as f64;
    let watched_idle = |spent: fn(&Usage) -> f64| {
        let rest = run.hold.idle;
        (!rest.is_zero()).then(|| (spent(&idle) - spent(&settled)) / rest.as_secs_f64())
    };
    ServerUse {
        rss_bytes: loaded.rss_bytes,
        rss_bytes_max: run
            .samples
            .iter()
            .map(|(_, usage)| usage.rss_bytes)
            .max()
            .unwrap_or(0),
        rss_bytes_idle: idle.rss_bytes,
        rss_bytes_before: before.rss_bytes,
        idle_cores: watched_idle(|usage| usage.cpu_seconds),
        gateway_idle_cores: watched_idle(|usage| usage.gateway_cpu_seconds),
        cpu_seconds: loaded.cpu_seconds,
        gateway_cpu_seconds: loaded.gateway_cpu_seconds,
        gateway_cpu_us_per_handshake: (up.gateway_cpu_seconds - before.gateway_cpu_seconds) * 1e6
            / connected.max(1) as f64,
        gateway_cpu_us_per_process: (loaded.gateway_cpu_seconds - idle.gateway_cpu_seconds) * 1e6
            / processes,
        cpu_us_per_process: (loaded.cpu_seconds - idle.cpu_seconds) * 1e6 / processes,
    }
}
