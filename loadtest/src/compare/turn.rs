//! One peer's turn: a fresh server, a fleet that grows, every measure on the way.
//!
//! ```text
//!   100 sessions ─ commands ─▶ 1,000 ─ commands ─▶ half ─ RSS ─▶ all ─ RSS ─ idle ─ commands ─ round-trips
//!                                        └── CPU of the handshakes ──┘
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;

use super::model::{HistogramBlob, Run};
use super::process::{self, Follower, Killed, Start};
use super::{Measure, Options};
use crate::clock;
use crate::peers::load::{LoadReport, LoadSpec};
use crate::peers::orders::{Answer, Order};
use crate::peers::{Part, Peer, Server};

/// Before the first command that counts, at each size.
const WARM_UP: Duration = Duration::from_secs(1);
/// Until a fleet that has grown is at rest: delayed ACKs, lost packets, freed memory.
const SETTLE: Duration = Duration::from_secs(3);

/// A turn under way.
pub(super) struct Turn<'a> {
    options: &'a Options,
    peer: &'static Peer,
    measured: u32,
    /// Ends before the server, or every client would complain.
    clients: Follower,
    server: Follower,
    _broker: Option<Killed>,
    sessions: usize,
    run: Run,
    /// Of the idle fleet, per second.
    idle: Option<Idle>,
}

/// What an idle fleet costs a second.
#[derive(Clone, Copy)]
struct Idle {
    cpu_ns: f64,
    shards_ns: f64,
    packets: f64,
    sleeps: f64,
}

/// What the server used while something happened.
struct Watched {
    cpu_ns: f64,
    shards_ns: f64,
    sleeps: f64,
    packets: f64,
    seconds: f64,
}

/// The server's handshakes between two sizes of the fleet.
#[derive(Clone, Copy, Default)]
struct Ramp {
    cpu_ns: f64,
    shards_ns: f64,
    sessions: f64,
    /// Sessions × seconds that were held meanwhile.
    held: f64,
}

impl<'a> Turn<'a> {
    /// Starts the processes.
    ///
    /// # Errors
    /// When one does not start.
    pub(super) fn start(
        peer: &'static Peer,
        round: u32,
        turn: u32,
        options: &'a Options,
        dir: &'a Path,
    ) -> anyhow::Result<Self> {
        let start = |part, address, wrapper| {
            Follower::start(&Start {
                peer: peer.name,
                part,
                dir,
                address,
                wrapper,
            })
        };
        let (broker, measured, server, address) = match &peer.server {
            Server::Library(_) => {
                let any = ([127, 0, 0, 1], 0).into();
                let (server, address) = start(Part::Server, any, &options.server_wrapper[..])?;
                (None, server.pid(), server, address)
            }
            Server::Broker { program, .. } => {
                let address = process::free_address()?;
                let broker = process::start_broker(&mut program(dir, address)?, address)?;
                let (commander, _) = start(Part::Commander, address, &[])?;
                let pid = broker.pid();
                (Some(broker), pid, commander, address)
            }
        };
        let (clients, _) = start(Part::Clients, address, &[])?;
        Ok(Self {
            options,
            peer,
            measured,
            server,
            clients,
            _broker: broker,
            sessions: 0,
            run: Run {
                peer: peer.name.to_owned(),
                round,
                turn,
                took_seconds: 0.0,
                values: BTreeMap::new(),
                histograms: BTreeMap::new(),
                notes: Vec::new(),
            },
            idle: None,
        })
    }

    /// Takes every measure that was asked for.
    ///
    /// # Errors
    /// When a process fails; what was measured before is lost.
    pub(super) fn take(mut self) -> anyhow::Result<Run> {
        let begin = clock::now();
        let options = self.options;
        for &size in &options.command_sizes() {
            if size < options.sessions && options.wants(Measure::CommandCpu) {
                self.grow(size)?;
                self.command_cpu(size, options.load_seconds / 2.0)?;
            }
        }
        let ramp = self.ramp()?;
        if options.wants(Measure::IdleCpu) || options.wants(Measure::CommandCpu) {
            self.idle()?;
        }
        if options.wants(Measure::HandshakeCpu) {
            self.handshake_cpu(ramp);
        }
        if options.wants(Measure::CommandCpu) {
            self.command_cpu(options.sessions, options.load_seconds)?;
        }
        if options.wants(Measure::RoundTrip) {
            self.round_trip()?;
        }
        self.run.took_seconds = (clock::now() - begin).as_secs_f64();
        Ok(self.run)
    }

    fn put(&mut self, measure: impl Into<String>, value: f64) {
        self.run.values.insert(measure.into(), value);
    }

    /// Lets the fleet grow.
    fn grow(&mut self, to: usize) -> anyhow::Result<Ramp> {
        if to <= self.sessions {
            return Ok(Ramp::default());
        }
        self.server.order(&Order::Expect { sessions: to })?;
        let (begin, before) = (clock::now(), process::cpu_of(self.measured)?);
        let rate = self.options.connect_rate;
        let answer = self.clients.order(&Order::Grow { to, rate })?;
        let Answer::Grown { sessions, failed } = answer else {
            bail!("clients said {answer:?}");
        };
        if failed > 0 || sessions < to {
            bail!("{failed} clients could not connect; {sessions} of {to} are there");
        }
        self.server.order(&Order::Await { sessions: to })?;
        let after = process::cpu_of(self.measured)?;
        let seconds = (clock::now() - begin).as_secs_f64();
        let ramp = Ramp {
            cpu_ns: difference(after.all_ns, before.all_ns),
            shards_ns: difference(after.shards_ns, before.shards_ns),
            sessions: float(to - self.sessions),
            held: float(self.sessions + to) / 2.0 * seconds,
        };
        self.sessions = to;
        Ok(ramp)
    }

    /// Grows to the full size in two steps, and measures memory at both.
    fn ramp(&mut self) -> anyhow::Result<Ramp> {
        let half = (self.options.sessions / 2).max(self.sessions);
        let first = self.grow(half)?;
        process::pause(SETTLE);
        let before = process::rss_of(self.measured)?;
        let second = self.grow(self.options.sessions)?;
        process::pause(SETTLE);
        let after = process::rss_of(self.measured)?;
        if self.options.wants(Measure::SessionRss) {
            let grown = difference(after, before) / 1024.0;
            self.put("session_rss", grown / float(self.options.sessions - half));
            self.put("server_rss", difference(after, 0) / 1024.0 / 1024.0);
        }
        Ok(Ramp {
            cpu_ns: first.cpu_ns + second.cpu_ns,
            shards_ns: first.shards_ns + second.shards_ns,
            sessions: first.sessions + second.sessions,
            held: first.held + second.held,
        })
    }

    /// As it was, and without what the sessions that were held meanwhile cost.
    fn handshake_cpu(&mut self, ramp: Ramp) {
        let each = |ns: f64| ns / ramp.sessions / 1e3;
        let held = |idle_ns: f64| idle_ns / float(self.sessions) * ramp.held;
        let idle = self.idle;
        let net = idle.map(|idle| each(ramp.cpu_ns - held(idle.cpu_ns)));
        let shard_net = idle.map(|idle| each(ramp.shards_ns - held(idle.shards_ns)));
        self.put("handshake_cpu", each(ramp.cpu_ns));
        if let Some(net) = net {
            self.put("handshake_cpu_net", net);
        }
        if ramp.shards_ns > 0.0 {
            self.put("handshake_cpu_shard", each(ramp.shards_ns));
            if let Some(net) = shard_net {
                self.put("handshake_cpu_shard_net", net);
            }
        }
    }

    fn idle(&mut self) -> anyhow::Result<()> {
        let used = self.watch(|turn| {
            process::pause(Duration::from_secs_f64(turn.options.idle_seconds));
            Ok(())
        })?;
        let idle = Idle {
            cpu_ns: used.cpu_ns / used.seconds,
            shards_ns: used.shards_ns / used.seconds,
            packets: used.packets / used.seconds,
            sleeps: used.sleeps / used.seconds,
        };
        self.idle = Some(idle);
        let percent = |ns: f64| ns / 1e9 * 100.0;
        self.put("idle_cpu", percent(idle.cpu_ns));
        if idle.shards_ns > 0.0 {
            self.put("idle_cpu_shard", percent(idle.shards_ns));
        }
        self.put("idle_packets", idle.packets);
        Ok(())
    }

    /// What the server uses while something happens.
    fn watch(
        &mut self,
        something: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Watched> {
        let packets = process::packets_sent()?;
        let (begin, before) = (clock::now(), process::cpu_of(self.measured)?);
        something(self)?;
        let after = process::cpu_of(self.measured)?;
        Ok(Watched {
            cpu_ns: difference(after.all_ns, before.all_ns),
            shards_ns: difference(after.shards_ns, before.shards_ns),
            sleeps: difference(after.sleeps, before.sleeps),
            seconds: (clock::now() - begin).as_secs_f64(),
            packets: difference(process::packets_sent()?, packets),
        })
    }

    fn load(&mut self, rate: f64, seconds: f64) -> anyhow::Result<LoadReport> {
        let order = Order::Load(LoadSpec {
            rate,
            seconds,
            sessions: self.sessions,
            seed: u64::from(self.run.round),
        });
        match self.server.order(&order)? {
            Answer::Loaded(report) => {
                let lost = report.sent - report.answered;
                if lost > 0 {
                    let note = format!("{lost} of {} commands had no answer in time", report.sent);
                    self.run.notes.push(note);
                }
                Ok(report)
            }
            other => bail!("the server said {other:?}"),
        }
    }

    fn command_cpu(&mut self, size: usize, seconds: f64) -> anyhow::Result<()> {
        let rate = self.options.command_rate;
        self.load(rate, WARM_UP.as_secs_f64())?;
        let profile = self.profile(&format!("command-{size}"), seconds)?;
        let mut answered = 0;
        let used = self.watch(|turn| {
            answered = turn.load(rate, seconds)?.answered;
            Ok(())
        })?;
        if let Some(mut perf) = profile {
            perf.wait()?;
        }
        let commands = float(usize::try_from(answered)?);
        let each = |ns: f64| ns / commands / 1e3;
        let (idle, seconds) = (self.idle, used.seconds);
        self.put(format!("command_cpu_{size}"), each(used.cpu_ns));
        self.put(format!("command_sleeps_{size}"), used.sleeps / commands);
        if used.shards_ns > 0.0 {
            self.put(format!("command_cpu_{size}_shard"), each(used.shards_ns));
        }
        let Some(idle) = idle else {
            return Ok(());
        };
        let net = |used: f64, idle: f64| used - idle * seconds;
        let cpu = each(net(used.cpu_ns, idle.cpu_ns));
        self.put(format!("command_cpu_{size}_net"), cpu);
        if used.shards_ns > 0.0 {
            let shards = each(net(used.shards_ns, idle.shards_ns));
            self.put(format!("command_cpu_{size}_shard_net"), shards);
        }
        let packets = net(used.packets, idle.packets) / commands;
        self.put(format!("command_packets_{size}"), packets);
        let sleeps = net(used.sleeps, idle.sleeps) / commands;
        self.put(format!("command_sleeps_{size}"), sleeps);
        Ok(())
    }

    fn round_trip(&mut self) -> anyhow::Result<()> {
        let options = self.options;
        let report = self.load(options.round_trip_rate, options.round_trip_seconds)?;
        let blob = BASE64_STANDARD.decode(&report.histogram)?;
        let histogram: Histogram<u64> =
            hdrhistogram::serialization::Deserializer::new().deserialize(&mut blob.as_slice())?;
        for (id, quantile) in [("rtt_p50", 0.5), ("rtt_p99", 0.99), ("rtt_p999", 0.999)] {
            let value = difference(histogram.value_at_quantile(quantile), 0);
            self.put(id, value / 1e6);
        }
        let blob = HistogramBlob {
            unit: "ns".to_owned(),
            v2_base64: report.histogram,
            sent: report.sent,
            answered: report.answered,
        };
        self.run.histograms.insert("round_trip".to_owned(), blob);
        Ok(())
    }

    /// Starts `perf record` on the server where profiles were asked for.
    fn profile(&self, what: &str, seconds: f64) -> anyhow::Result<Option<Child>> {
        let Some(folder) = &self.options.profile else {
            return Ok(None);
        };
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let file = folder.join(format!("{}-{what}.perf", self.peer.name));
        let mut command = Command::new("perf");
        command
            .args(["record", "-q", "-e", "cpu-clock", "-F", "1999", "-g", "-o"])
            .arg(file)
            .args(["-p", &self.measured.to_string()])
            .args(["--", "sleep", &(seconds - 0.5).to_string()])
            .stdout(Stdio::null());
        process::start_on(process::CLIENT_CPU, &mut command).map(Some)
    }
}

fn difference(after: u64, before: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "nanoseconds and bytes of one run are below 2^52"
    )]
    let difference = after.saturating_sub(before) as f64;
    difference
}

fn float(number: usize) -> f64 {
    difference(number as u64, 0)
}
