//! `hold`: a fleet holds its sessions, a workload runs over them, faults happen, and in the end every
//! effect is accounted for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::clock;
use crate::fleet::{Fleet, FleetSpec};
use crate::ledger::Ledger;
use crate::report::{self, ConnectMs, Fault, Raw, RoundTripUs, ServerUse, Summary};
use crate::server::{Subject, Target, Usage};
use crate::workload::{self, Workload};

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

/// How long the outage of a killed server or agent is.
const OUTAGE: Duration = Duration::from_secs(5);
/// Sessions must all be back this long after an outage.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// The whole fleet must be up this long after the last agent was started.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// Accepted processes must all have ended this long after the workload.
const END_WITHIN: Duration = Duration::from_secs(120);
/// Everything is quiet for this long before idle memory is read.
const SETTLE: Duration = Duration::from_secs(5);
/// A process of the workload is over after this long.
const PROCESS_DEADLINE: Duration = Duration::from_secs(600);

struct Run {
    hold: Hold,
    subject: Subject,
    api: Api,
    fleet: Fleet,
    ledger: Arc<Ledger>,
    watching: CancellationToken,
    bar: ProgressBar,
    samples: Vec<(f64, Usage)>,
    faults: Vec<Fault>,
    violations: Vec<String>,
    start: Instant,
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
        let before = run.subject.usage();
        let connected = run.connect().await?;
        let up = run.subject.usage();
        tokio::time::sleep(SETTLE).await;
        let settled = run.subject.usage();
        run.rest().await;
        let idle = run.subject.usage();
        let refused = run.work().await?;
        run.settle().await;
        let loaded = run.subject.usage();
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
                round_trips: &run.ledger.round_trips(),
                connects: &run.fleet.connect_times(),
                reconnects: &run.fleet.reconnect_times(),
                samples: &run.samples,
                duration,
            };
            let folder = report::write_folder(results, &run.hold.name, &summary, &raw)?;
            println!("  written to  {}", folder.display());
        }
        run.finish().await?;
        Ok(summary)
    }
}

impl Run {
    async fn prepare(hold: Hold, bar: ProgressBar) -> anyhow::Result<Self> {
        let opened = hold.server.open().await?;
        let api = Api::new(&opened.api, &opened.token)?;
        let ledger = Arc::new(Ledger::default());
        let spec = FleetSpec {
            agents: hold.agents,
            server: opened.agents,
            work_dir: hold.work_dir.clone(),
            steering_hint: hold.steering_hint,
        };
        bar.set_prefix("enrolled");
        bar.set_length(hold.agents as u64);
        let fleet = Fleet::enrol(spec, &api, Arc::clone(&ledger), |n| {
            bar.set_position(n as u64)
        })
        .await?;
        let watching = CancellationToken::new();
        tokio::spawn(workload::watch(
            api.clone(),
            Arc::clone(&ledger),
            watching.clone(),
        ));
        Ok(Self {
            hold,
            subject: opened.subject,
            api,
            fleet,
            ledger,
            watching,
            bar,
            samples: Vec::new(),
            faults: Vec::new(),
            violations: Vec::new(),
            start: clock::now(),
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
                    due.min(kill_end)
                } else {
                    due
                };
                self.fleet.start(started..end);
                started = end;
                last_start = clock::now();
            }
            let up = self.fleet.up();
            self.bar.set_position(up as u64);
            self.sample();
            if up == self.hold.agents {
                break;
            }
            if clock::now().duration_since(last_start) > UP_WITHIN {
                self.violations.push(format!(
                    "only {up} of {} sessions came up",
                    self.hold.agents
                ));
                break;
            }
        }
        Ok(self.fleet.up())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of agents"
    )]
    fn due(&self, elapsed: Duration) -> usize {
        (self.hold.connect_rate * elapsed.as_secs_f64()).ceil() as usize
    }

    fn sample(&mut self) {
        let second = clock::now().duration_since(self.start).as_secs_f64();
        if self
            .samples
            .last()
            .is_none_or(|(last, _)| second - last >= 1.0)
        {
            self.samples.push((second, self.subject.usage()));
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
        let running = (self.hold.rate > 0.0).then(|| {
            let (api, ledger) = (self.api.clone(), Arc::clone(&self.ledger));
            let (agents, seed) = (self.fleet.ids(), self.hold.seed);
            tokio::spawn(async move { workload.run(api, ledger, agents, seed).await })
        });
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
        let totals = self.ledger.totals_quick();
        self.bar.set_length(totals.submitted.max(1));
        self.bar.set_position(totals.succeeded + totals.failed);
        self.bar.set_message(format!(
            "{} sessions, {} failed, {} s",
            self.fleet.up(),
            totals.failed,
            clock::now().duration_since(self.start).as_secs()
        ));
        self.sample();
    }

    async fn kill_server(&mut self) -> anyhow::Result<()> {
        let at_s = clock::now().duration_since(self.start).as_secs_f64();
        self.fleet.expect_losses(true);
        let Subject::Ours(server) = &mut self.subject else {
            anyhow::bail!("--kill-server needs a server that this test started");
        };
        self.bar.println("SIGKILL to the server");
        server.kill().await?;
        tokio::time::sleep(OUTAGE).await;
        server.restart().await?;
        self.bar.println("the server is started again");
        self.wait_back(
            "server killed (SIGKILL), started again after 5 s",
            at_s,
            true,
        )
        .await;
        self.fleet.expect_losses(false);
        Ok(())
    }

    async fn kill_agents(&mut self) {
        let at_s = clock::now().duration_since(self.start).as_secs_f64();
        let count = self.hold.kill_agents.min(self.hold.agents);
        self.bar.println(format!("killing {count} agents"));
        self.fleet.kill(0..count).await;
        tokio::time::sleep(OUTAGE).await;
        self.fleet.start(0..count);
        let what = format!("{count} agents killed, started again from their journals after 5 s");
        self.wait_back(&what, at_s, false).await;
    }

    async fn wait_back(&mut self, what: &str, at_s: f64, renewed: bool) {
        let restarted = clock::now();
        let all_back_s = loop {
            let waited = clock::now().duration_since(restarted);
            // A session that has not noticed the outage yet still counts itself as up.
            if self.fleet.up() == self.hold.agents && (!renewed || self.fleet.renewed()) {
                break Some(waited.as_secs_f64());
            }
            if waited > BACK_WITHIN * 2 {
                break None;
            }
            self.progress();
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        if all_back_s.is_none_or(|s| s > BACK_WITHIN.as_secs_f64()) {
            self.violations.push(format!(
                "{what}: not all sessions were back within {BACK_WITHIN:?}"
            ));
        }
        self.faults.push(Fault {
            what: what.to_owned(),
            at_s,
            all_back_s,
        });
    }

    /// Waits until every accepted process has ended; asks the API about those whose end the stream
    /// has not told.
    async fn settle(&mut self) {
        let since = clock::now();
        let mut asked = since;
        while self.ledger.open_count() > 0 && clock::now().duration_since(since) < END_WITHIN {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.progress();
            if clock::now().duration_since(asked) > SETTLE {
                for process in self.ledger.open() {
                    if let Ok(Some(end)) = self.api.end_of(process).await {
                        self.ledger.ended(process, end, clock::now());
                    }
                }
                asked = clock::now();
            }
        }
        for process in self.ledger.open().into_iter().take(3) {
            if let Ok(json) = self.api.process(process).await {
                self.violations.push(format!("never ended: {json}"));
            }
        }
    }

    async fn judge(&mut self, server: ServerUse) -> Summary {
        let totals = self.ledger.totals();
        let sessions_up = self.fleet.up() as u64;
        let sessions_lost = self.fleet.lost();
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
            connect_ms: ConnectMs::of(&self.fleet.connect_times()),
            rtt_us: RoundTripUs::of(&self.ledger.round_trips()),
            server,
            faults: std::mem::take(&mut self.faults),
            passed: violations.is_empty(),
            violations,
        }
    }

    async fn home_shard_ratio(&self) -> Option<f64> {
        let sessions = self.api.metric("drover_gateway_sessions").await.ok()??;
        let at_home = self
            .api
            .metric("drover_gateway_sessions_at_home")
            .await
            .ok()??;
        (sessions > 0.0).then(|| at_home / sessions)
    }

    async fn finish(self) -> anyhow::Result<()> {
        self.watching.cancel();
        self.fleet.stop().await;
        self.subject.stop().await
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts well below 2^53")]
fn server_use(
    run: &Run,
    [before, up, settled, idle, loaded]: [Usage; 5],
    connected: usize,
) -> ServerUse {
    let totals = run.ledger.totals_quick();
    let processes = (totals.succeeded + totals.failed).max(1) as f64;
    ServerUse {
        rss_bytes: loaded.rss_bytes,
        rss_bytes_max: run
            .samples
            .iter()
            .map(|(_, usage)| usage.rss_bytes)
            .max()
            .unwrap_or(0),
        rss_bytes_idle: idle.rss_bytes,
        gateway_idle_cores: (!run.hold.idle.is_zero()).then(|| {
            (idle.gateway_cpu_seconds - settled.gateway_cpu_seconds) / run.hold.idle.as_secs_f64()
        }),
        cpu_seconds: loaded.cpu_seconds,
        gateway_cpu_seconds: loaded.gateway_cpu_seconds,
        gateway_cpu_us_per_handshake: (up.gateway_cpu_seconds - before.gateway_cpu_seconds) * 1e6
            / connected.max(1) as f64,
        gateway_cpu_us_per_process: (loaded.gateway_cpu_seconds - idle.gateway_cpu_seconds) * 1e6
            / processes,
        cpu_us_per_process: (loaded.cpu_seconds - idle.cpu_seconds) * 1e6 / processes,
    }
}
