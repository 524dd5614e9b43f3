//! `api`: floods the API's public listener at many times its limit, and asks the UI's meanwhile.
//!
//! ```text
//!   a round:  UI asked, quiet ─▶ flood begins ─▶ its burst is spent ─▶ UI asked under the flood ─▶ flood ends
//! ```
//!
//! Both phases of all rounds are in one run on one server. Each side asks from a thread of its own, at a
//! fixed pace whatever the server does: a time counts from when the request was due, if its connection was
//! still busy then. The clients share the cores with the server, so the flood costs the UI more here than
//! it does where floods come from elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::clock;
use crate::report::{self, RoundTripUs};
use crate::server::{Server, ServerSpec};

/// What the UI asks for, in turn; the flood asks for the same.
const PATHS: [&str; 4] = [
    "/v1/overview",
    "/v1/agents",
    "/v1/processes?page_size=50",
    "/v1/groups",
];
/// Connections of the UI: about what a browser opens.
const UI_CONNECTIONS: u32 = 6;
/// The flood's burst is spent within this, and its end is over.
const SETTLE: Duration = Duration::from_secs(2);
/// An answer that takes longer has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The UI's p99 under the flood is at most so many times its quiet one.
const RATIO_MAX: f64 = 2.0;
/// A flood slower than this share of what was meant proves nothing.
const FLOOD_MIN: f64 = 0.9;

/// What is asked of a server.
#[derive(Clone, Debug)]
pub struct Hammer {
    /// Requests a second that the public listener takes.
    pub limit: u32,
    /// It is asked so many times as often.
    pub times: u32,
    /// Connections of the flood.
    pub connections: u32,
    /// Requests a second to the UI.
    pub ui_rate: u32,
    /// How long each phase of a round is.
    pub duration: Duration,
    /// Rounds.
    pub rounds: u32,
    /// The server to start.
    pub server: ServerSpec,
    /// Where the folder with the results goes; `None`: nowhere.
    pub results: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct HammerSummary {
    /// The public listener's limit, in requests a second.
    pub limit: u32,
    /// The UI without a flood.
    pub quiet: Answers,
    /// The UI under the flood.
    pub flooded: Answers,
    /// The UI's p99 under the flood over its quiet one.
    pub p99_ratio: f64,
    /// The same in each round.
    pub p99_ratios: Vec<f64>,
    /// The flood itself.
    pub flood: Answers,
    /// Requests a second that the flood reached.
    pub flood_rate: f64,
    /// Whether everything held.
    pub passed: bool,
    /// What did not hold.
    pub violations: Vec<String>,
}

/// What became of requests.
#[derive(Clone, Debug, Serialize)]
pub struct Answers {
    /// 2xx.
    pub served: u64,
    /// 429.
    pub refused: u64,
    /// Anything else, or nothing.
    pub failed: u64,
    /// How long the answers took.
    pub us: RoundTripUs,
}

struct Tally {
    times: Histogram<u64>,
    served: u64,
    refused: u64,
    failed: u64,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            times: Histogram::new(3)?,
            served: 0,
            refused: 0,
            failed: 0,
        })
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.times.add(&other.times)?;
        self.served += other.served;
        self.refused += other.refused;
        self.failed += other.failed;
        Ok(())
    }

    fn answers(&self) -> Answers {
        Answers {
            served: self.served,
            refused: self.refused,
            failed: self.failed,
            us: RoundTripUs::of(&self.times),
        }
    }

    fn sent(&self) -> u64 {
        self.served + self.refused + self.failed
    }

    fn note(&mut self, answer: &anyhow::Result<u16>, took: Duration) {
        match answer {
            Ok(200..=299) => self.served += 1,
            Ok(429) => self.refused += 1,
            Ok(_) | Err(_) => self.failed += 1,
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.times.saturating_record(micros);
    }
}

impl Hammer {
    /// Runs it on a server of its own.
    ///
    /// # Errors
    /// When the server cannot be started or ends, a thread cannot be, or the results cannot be written.
    pub async fn run(&self) -> anyhow::Result<HammerSummary> {
        let mut spec = self.server.clone();
        for setting in [
            "api.public.listen=127.0.0.1:0".to_owned(),
            format!("api.public.requests_per_second={}", self.limit),
            // One token asks on both listeners: it is the listener's limit that is to refuse.
            "api.requests_per_second=100000".to_owned(),
        ] {
            spec.arguments.extend(["--set".to_owned(), setting]);
        }
        let server = Server::start(spec).await?;
        let ready = server.ready().clone();
        let token = std::fs::read_to_string(&ready.admin_token_file)
            .with_context(|| format!("no admin token in {}", ready.admin_token_file.display()))?;
        let public = ready.public.context("the server has no public listener")?;
        let ui = Asker::new(&ready.api, &token, self.ui_rate, UI_CONNECTIONS)?;
        let flood = Asker::new(&public, &token, self.limit * self.times, self.connections)?;
        let hammer = self.clone();
        let found = tokio::task::spawn_blocking(move || hammer.rounds(&ui, &flood)).await?;
        server.stop().await?;
        found
    }

    fn rounds(&self, ui: &Asker, flood: &Asker) -> anyhow::Result<HammerSummary> {
        let (mut quiet, mut flooded, mut flooding) = (Tally::new()?, Tally::new()?, Tally::new()?);
        let mut ratios = Vec::new();
        let mut flood_time = Duration::ZERO;
        // The first answers of a server are slower: connections to the store are opened.
        ui.ask_for(SETTLE)?;
        for _ in 0..self.rounds {
            let before = ui.ask_for(self.duration)?;
            let lasts = SETTLE + self.duration;
            let (during, flood) = std::thread::scope(|scope| {
                let flood = scope.spawn(|| flood.ask_for(lasts));
                std::thread::park_timeout(SETTLE);
                let during = ui.ask_for(self.duration);
                (during, flood.join())
            });
            let (during, flood) = (
                during?,
                flood.map_err(|_| anyhow::anyhow!("the flood died"))??,
            );
            ratios.push(ratio(&before, &during));
            quiet.add(&before)?;
            flooded.add(&during)?;
            flooding.add(&flood)?;
            flood_time += lasts;
            std::thread::park_timeout(SETTLE);
        }
        let flood_rate = flooding.sent() as f64 / flood_time.as_secs_f64();
        let mut summary = HammerSummary {
            limit: self.limit,
            quiet: quiet.answers(),
            flooded: flooded.answers(),
            p99_ratio: ratio(&quiet, &flooded),
            p99_ratios: ratios,
            flood: flooding.answers(),
            flood_rate,
            passed: false,
            violations: Vec::new(),
        };
        summary.violations = self.violations(&summary);
        summary.passed = summary.violations.is_empty();
        if let Some(root) = &self.results {
            let all = [
                ("ui_quiet", &quiet.times),
                ("ui_flooded", &flooded.times),
                ("flood", &flooding.times),
            ];
            let comment = "microseconds from when a request was due; ui_flooded beside the flood";
            let asked = self.duration * self.rounds;
            let folder = report::write_summary(root, "api", &summary, comment, &all, asked)?;
            println!("written: {}", folder.display());
        }
        Ok(summary)
    }

    fn violations(&self, found: &HammerSummary) -> Vec<String> {
        let mut violations = Vec::new();
        if found.p99_ratio > RATIO_MAX {
            violations.push(format!(
                "the UI's p99 under the flood is {:.2} times its quiet one, {RATIO_MAX} at most are wanted",
                found.p99_ratio
            ));
        }
        let ui = [&found.quiet, &found.flooded];
        let lost: u64 = ui
            .map(|answers| answers.refused + answers.failed)
            .iter()
            .sum();
        if lost > 0 {
            violations.push(format!("{lost} requests of the UI were refused or failed"));
        }
        let meant = f64::from(self.limit * self.times);
        if found.flood_rate < FLOOD_MIN * meant {
            violations.push(format!(
                "the flood reached {:.0} requests a second of {meant:.0} that were meant: it proves nothing",
                found.flood_rate
            ));
        }
        if self.times > 1 && found.flood.refused <= found.flood.served {
            violations.push("most of the flood was served: it met no limit".to_owned());
        }
        violations
    }
}

fn ratio(quiet: &Tally, flooded: &Tally) -> f64 {
    let p99 = |tally: &Tally| tally.times.value_at_quantile(0.99) as f64;
    p99(flooded) / p99(quiet).max(1.0)
}

/// Asks one listener at a fixed pace.
struct Asker {
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    /// Between two requests of one connection.
    every: Duration,
    connections: u32,
}

impl Asker {
    fn new(base: &str, token: &str, rate: u32, connections: u32) -> anyhow::Result<Self> {
        let host = base.trim_start_matches("http://");
        let address = host.parse();
        let token = token.trim();
        let request = |path: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n")
                .into_bytes()
        };
        Ok(Self {
            address: address.with_context(|| format!("{base} is not plain HTTP on an address"))?,
            requests: PATHS.map(request).into(),
            every: Duration::from_secs_f64(f64::from(connections) / f64::from(rate.max(1))),
            connections,
        })
    }

    /// Asks for so long, on a thread that has nothing else to do.
    fn ask_for(&self, time: Duration) -> anyhow::Result<Tally> {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(self.ask_until(clock::now() + time))
            });
            let asked = asking.join();
            asked.map_err(|_| anyhow::anyhow!("the thread that asks has died"))?
        })
    }

    async fn ask_until(&self, end: Instant) -> anyhow::Result<Tally> {
        let begin = clock::now();
        let each = (0..self.connections).map(|number| {
            // They begin one after the other, so that requests are evenly spread.
            let first = begin + self.every * number / self.connections;
            self.connection(number as usize, first, end)
        });
        let mut all = Tally::new()?;
        for tally in futures_util::future::join_all(each).await {
            all.add(&tally?)?;
        }
        Ok(all)
    }

    async fn connection(
        &self,
        number: usize,
        first: Instant,
        end: Instant,
    ) -> anyhow::Result<Tally> {
        let mut tally = Tally::new()?;
        let mut wire = None;
        let (mut due, mut turn) = (first, number);
        while due < end {
            // A timer wakes up to a millisecond late, which is not the server's doing.
            let from = if clock::now() < due {
                tokio::time::sleep_until(due.into()).await;
                clock::now()
            } else {
                due
            };
            let request = &self.requests[turn % self.requests.len()];
            let answer =
                tokio::time::timeout(ANSWER_WITHIN, exchange(&mut wire, self.address, request));
            let answer = answer.await.unwrap_or_else(|_| bail_late());
            if answer.is_err() {
                wire = None;
            }
            tally.note(&answer, clock::now() - from);
            due += self.every;
            turn += 1;
        }
        Ok(tally)
    }
}

fn bail_late() -> anyhow::Result<u16> {
    bail!("no answer within {} s", ANSWER_WITHIN.as_secs())
}

/// A request and the status of its answer, on a connection that is opened where there is none.
async fn exchange(
    wire: &mut Option<TcpStream>,
    address: SocketAddr,
    request: &[u8],
) -> anyhow::Result<u16> {
    let stream = match wire {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            wire.insert(stream)
        }
    };
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(4096);
    loop {
        if let Some(status) = status_of(&answer) {
            return Ok(status);
        }
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("the connection ended within an answer");
        }
    }
}

/// The status of an answer that has arrived whole; its body's length is in its head.
fn status_of(answer: &[u8]) -> Option<u16> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    })?;
    let whole = answer.len() >= head + 4 + length;
    whole.then(|| text.split(' ').nth(1)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hammer() -> Hammer {
        Hammer {
            limit: 100,
            times: 10,
            connections: 4,
            ui_rate: 10,
            duration: Duration::from_secs(1),
            rounds: 1,
            server: ServerSpec {
                binary: "drover".into(),
                data_dir: "data".into(),
                arguments: Vec::new(),
                log: "log".into(),
            },
            results: None,
        }
    }

    fn tally(served: u64, refused: u64, failed: u64) -> Answers {
        let mut tally = Tally::new().unwrap();
        (tally.served, tally.refused, tally.failed) = (served, refused, failed);
        tally.answers()
    }

    fn found() -> HammerSummary {
        HammerSummary {
            limit: 100,
            quiet: tally(10, 0, 0),
            flooded: tally(10, 0, 0),
            p99_ratio: 1.9,
            p99_ratios: vec![1.9],
            flood: tally(100, 900, 0),
            flood_rate: 1000.0,
            passed: false,
            violations: Vec::new(),
        }
    }

    /// What is done to a summary that passes, and the words about it.
    type Breach = (fn(&mut HammerSummary), &'static str);

    #[test]
    fn a_flood_that_is_none_or_an_answer_that_is_late_does_not_pass() {
        assert_eq!(hammer().violations(&found()), Vec::<String>::new());
        let breaches: [Breach; 5] = [
            (|found| found.p99_ratio = 2.1, "2.10 times"),
            (|found| found.flooded.failed = 1, "1 requests of the UI"),
            (|found| found.quiet.refused = 2, "2 requests of the UI"),
            (|found| found.flood_rate = 899.0, "proves nothing"),
            (|found| found.flood = tally(600, 400, 0), "met no limit"),
        ];
        for (breach, words) in breaches {
            let mut found = found();
            breach(&mut found);
            let violations = hammer().violations(&found);
            assert_eq!(violations.len(), 1, "{violations:?}");
            assert!(violations[0].contains(words), "{violations:?}");
        }
    }

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let whole = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(status_of(whole), Some(429));
        for end in 0..whole.len() {
            assert_eq!(status_of(&whole[..end]), None, "{end}");
        }
    }
}
