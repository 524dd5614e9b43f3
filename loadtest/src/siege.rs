//! `siege`: a storm of first flights at the gateway's door while honest agents want in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use quinn_proto::ClientConfig;
use quinn_proto::crypto::rustls::QuicClientConfig;
use serde::Serialize;

use crate::api::Api;
use crate::clock;
use crate::fleet::{Fleet, FleetSpec};
use crate::ledger::Ledger;
use crate::report::{self, ConnectMs, Raw};
use crate::server::{Target, Usage};
use crate::storm::{Storm, StormReport};

/// What to send, and who else comes.
#[derive(Clone, Debug)]
pub struct Siege {
    /// First flights a second.
    pub rate: u32,
    /// How long.
    pub duration: Duration,
    /// Source addresses.
    pub sources: usize,
    /// Honest agents, evenly spread over the storm.
    pub newcomers: usize,
    /// The server under test.
    pub server: Target,
    /// Journals and the started server's data go here.
    pub work_dir: PathBuf,
    /// Result folders go here; `None`: no folder.
    pub results: Option<PathBuf>,
}

/// What a siege found.
#[derive(Clone, Debug, Serialize)]
pub struct SiegeSummary {
    /// The storm's own account.
    pub storm: StormReport,
    /// Honest agents that came in, of all.
    pub newcomers_in: usize,
    /// Honest agents.
    pub newcomers: usize,
    /// First attempt to `Welcome`.
    pub connect_ms: ConnectMs,
    /// Resident set before the storm.
    pub rss_bytes_before: u64,
    /// Largest resident set during and after it.
    pub rss_bytes_max: u64,
    /// Most half-open handshakes seen.
    pub half_open_max: f64,
    /// Half-open handshakes left once their deadline had passed after the storm.
    pub half_open_after: f64,
    /// Server CPU during the storm.
    pub cpu_seconds: f64,
    /// Whether everything held.
    pub passed: bool,
    /// What did not hold.
    pub violations: Vec<String>,
}

const RSS_GROWTH_MAX: u64 = 64 << 20;
const NEWCOMER_WITHIN_MS: f64 = 5000.0;
const RATIO_MAX: f64 = 3.0;
const HALF_OPEN_METRIC: &str = "drover_gateway_half_open";
/// Retransmissions of an honest client may need a moment after the storm.
const AFTERMATH: Duration = Duration::from_millis(6500);

struct Watch {
    rss_max: u64,
    half_open_max: f64,
}

impl Siege {
    /// Runs it and prints the summary.
    ///
    /// # Errors
    /// When the siege could not be carried out.
    pub async fn run(self) -> anyhow::Result<SiegeSummary> {
        let opened = self.server.open().await?;
        let api = Api::new(&opened.api, &opened.token)?;
        let spec = FleetSpec {
            agents: self.newcomers,
            server: opened.agents.clone(),
            work_dir: self.work_dir.clone(),
            steering_hint: true,
        };
        let fleet = Fleet::enrol(spec, &api, Arc::new(Ledger::default()), |_| ()).await?;
        let usage = || opened.subject.usage();
        let before = usage();
        let storm = Storm {
            target: opened
                .agents
                .parse()
                .context("the storm needs an IP address and a port")?,
            rate: self.rate,
            duration: self.duration,
            sources: self.sources,
            drip_every: 20,
        };
        let config = storm_config()?;
        let storming = tokio::task::spawn_blocking(move || storm.run(&config));
        let mut watch = Watch {
            rss_max: before.rss_bytes,
            half_open_max: 0.0,
        };
        self.admit(&fleet, &api, &usage, &mut watch).await;
        let report = storming.await??;
        let after_storm = usage();
        tokio::time::sleep(AFTERMATH).await;
        watch.rss_max = watch.rss_max.max(usage().rss_bytes);
        let half_open_after = api
            .metric(HALF_OPEN_METRIC)
            .await?
            .context("no metric of half-open handshakes")?;
        let mut summary = SiegeSummary {
            storm: report,
            newcomers_in: fleet.up(),
            newcomers: self.newcomers,
            connect_ms: ConnectMs::of(&fleet.connect_times()),
            rss_bytes_before: before.rss_bytes,
            rss_bytes_max: watch.rss_max,
            half_open_max: watch.half_open_max,
            half_open_after,
            cpu_seconds: after_storm.cpu_seconds - before.cpu_seconds,
            passed: false,
            violations: Vec::new(),
        };
        summary.judge();
        summary.print();
        self.write(&summary, &fleet)?;
        fleet.stop().await;
        opened.subject.stop().await?;
        Ok(summary)
    }

    fn write(&self, summary: &SiegeSummary, fleet: &Fleet) -> anyhow::Result<()> {
        if let Some(results) = &self.results {
            let nothing = Histogram::<u64>::new(1)?;
            let raw = Raw {
                round_trips: &nothing,
                connects: &fleet.connect_times(),
                reconnects: &nothing,
                samples: &[],
                duration: self.duration,
            };
            let folder = report::write_folder(results, "siege", summary, &raw)?;
            println!("  written to  {}", folder.display());
        }
        Ok(())
    }

    /// Lets the newcomers come, evenly spread, and watches the server meanwhile.
    async fn admit(&self, fleet: &Fleet, api: &Api, usage: &impl Fn() -> Usage, watch: &mut Watch) {
        let start = clock::now();
        let mut started = 0;
        while clock::now().duration_since(start) < self.duration {
            let elapsed = clock::now().duration_since(start).as_secs_f64();
            // The last newcomer comes well before the storm ends.
            let share = (elapsed / (self.duration.as_secs_f64() * 0.9)).min(1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of a small count"
            )]
            let due = (share * self.newcomers as f64) as usize;
            if due > started {
                fleet.start_apart(started..due);
                started = due;
            }
            watch.rss_max = watch.rss_max.max(usage().rss_bytes);
            if let Ok(Some(half_open)) = api.metric(HALF_OPEN_METRIC).await {
                watch.half_open_max = watch.half_open_max.max(half_open);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        fleet.start_apart(started..self.newcomers);
    }
}

/// The TLS of an attacker: it never gets far enough to verify anything.
fn storm_config() -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol::agent::ALPN_SESSION.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(
        tls,
    )?)))
}

impl SiegeSummary {
    fn judge(&mut self) {
        let mut check = |held: bool, what: String| {
            if !held {
                self.violations.push(what);
            }
        };
        check(
            self.storm.worst_ratio <= RATIO_MAX,
            format!(
                "{:.3} x the bytes received were sent to an unvalidated address",
                self.storm.worst_ratio
            ),
        );
        check(
            self.newcomers_in == self.newcomers,
            format!(
                "{} of {} newcomers came in",
                self.newcomers_in, self.newcomers
            ),
        );
        check(
            self.connect_ms.max <= NEWCOMER_WITHIN_MS,
            format!("a newcomer waited {:.0} ms", self.connect_ms.max),
        );
        let growth = self.rss_bytes_max.saturating_sub(self.rss_bytes_before);
        check(
            growth <= RSS_GROWTH_MAX,
            format!("RSS grew by {} MiB", growth >> 20),
        );
        check(
            self.half_open_after == 0.0,
            format!(
                "{} handshakes were half-open after their deadline",
                self.half_open_after
            ),
        );
        self.passed = self.violations.is_empty();
    }

    fn print(&self) {
        println!("\n{}", if self.passed { "PASSED" } else { "FAILED" });
        println!(
            "  storm       {} first flights, {} bytes sent, {} received; at worst {:.3} x",
            self.storm.attempts,
            self.storm.bytes_sent,
            self.storm.bytes_received,
            self.storm.worst_ratio
        );
        println!(
            "  newcomers   {} of {} in; p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            self.newcomers_in,
            self.newcomers,
            self.connect_ms.p50,
            self.connect_ms.p99,
            self.connect_ms.max
        );
        println!(
            "  server      {} MiB RSS before, {} MiB at most; {:.1} s CPU; half-open {} at most, {} after",
            self.rss_bytes_before >> 20,
            self.rss_bytes_max >> 20,
            self.cpu_seconds,
            self.half_open_max,
            self.half_open_after
        );
        for violation in &self.violations {
            println!("  VIOLATION   {violation}");
        }
    }
}
