//! What a run found: on the screen, as JSON, and as a dated folder under `bench-results/`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;

use crate::clock;
use crate::ledger::Totals;
use crate::server::Usage;

/// The summary of one `hold`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Agents simulated.
    pub agents: u64,
    /// Sessions up at the end.
    pub sessions_up: u64,
    /// Sessions that ended without having been asked to (kills by the test not counted).
    pub sessions_lost: u64,
    /// Sessions on the home shard of their group, of all.
    pub home_shard_ratio: Option<f64>,
    /// Processes by fate.
    pub processes: Processes,
    /// Effects beyond the first of an operation.
    pub duplicate_effects: u64,
    /// How long the whole fleet took to join, seconds.
    pub enrol_seconds: f64,
    /// First connection attempt to `Welcome`, milliseconds.
    pub connect_ms: ConnectMs,
    /// Intended submission to the end seen on the event stream, microseconds.
    pub rtt_us: RoundTripUs,
    /// What the server used.
    pub server: ServerUse,
    /// Resident set of the whole fleet's process at the end.
    pub fleet_rss_bytes: u64,
    /// What the faults did, where there were any.
    pub faults: Vec<Fault>,
    /// Whether everything held.
    pub passed: bool,
    /// What did not hold.
    pub violations: Vec<String>,
}

/// Processes by fate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Processes {
    /// Accepted by the API.
    pub submitted: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Never ended, or succeeded without an effect.
    pub lost: u64,
}

impl From<Totals> for Processes {
    fn from(totals: Totals) -> Self {
        Self {
            submitted: totals.submitted,
            succeeded: totals.succeeded,
            failed: totals.failed,
            lost: totals.lost,
        }
    }
}

/// Percentiles of the first connection.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ConnectMs {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Longest.
    pub max: f64,
}

impl ConnectMs {
    /// From microseconds.
    pub fn of(micros: &Histogram<u64>) -> Self {
        let ms = |value: u64| Duration::from_micros(value).as_secs_f64() * 1e3;
        Self {
            p50: ms(micros.value_at_quantile(0.5)),
            p99: ms(micros.value_at_quantile(0.99)),
            max: ms(micros.max()),
        }
    }
}

/// Percentiles of the round trip.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RoundTripUs {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Longest.
    pub max: u64,
}

impl RoundTripUs {
    /// From microseconds.
    pub fn of(micros: &Histogram<u64>) -> Self {
        Self {
            p50: micros.value_at_quantile(0.5),
            p99: micros.value_at_quantile(0.99),
            p999: micros.value_at_quantile(0.999),
            max: micros.max(),
        }
    }
}

/// What the server used, and when.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ServerUse {
    /// Resident set at the end.
    pub rss_bytes: u64,
    /// Largest resident set seen (sampled each second).
    pub rss_bytes_max: u64,
    /// Resident set when every session was up and idle.
    pub rss_bytes_idle: u64,
    /// Resident set when every agent had joined and none had a session yet.
    pub rss_bytes_before: u64,
    /// Cores that the whole server used while the whole fleet was idle; none: the fleet was not
    /// watched idle.
    pub idle_cores: Option<f64>,
    /// Cores that the gateway's shard threads used while the whole fleet was idle, heartbeats
    /// included; none: the fleet was not watched idle.
    pub gateway_idle_cores: Option<f64>,
    /// CPU of the whole run.
    pub cpu_seconds: f64,
    /// CPU of the gateway's shard threads in the whole run.
    pub gateway_cpu_seconds: f64,
    /// The gateway's CPU for one session set up (handshake, Hello, Welcome), microseconds.
    pub gateway_cpu_us_per_handshake: f64,
    /// The gateway's CPU for one process under load, keep-alives included, microseconds.
    pub gateway_cpu_us_per_process: f64,
    /// The server's CPU for one process under load: API, store, engine and gateway, microseconds.
    pub cpu_us_per_process: f64,
}

/// One fault and how the fleet came back from it.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// What was done.
    pub what: String,
    /// From the run's start, seconds.
    pub at_s: f64,
    /// From the end of the fault (server started again, agents started again) until every session
    /// was up, seconds; none: they never all were.
    pub all_back_s: Option<f64>,
    /// What a whole fleet's return may take; none: only some agents were gone.
    pub came_back: Option<Return>,
}

/// The measure of a whole fleet's return: what both sides used from the server's restart until
/// every session was up, and what the door takes.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Return {
    /// CPU of the server, seconds.
    pub server_cpu_s: f64,
    /// CPU of the fleet, seconds.
    pub fleet_cpu_s: f64,
    /// Cores that both share.
    pub cores: usize,
    /// The CPU of both on all cores at once: no return on this machine is shorter, seconds.
    pub cpu_floor_s: f64,
    /// Agents ÷ (handshakes a second and shard × shards), seconds.
    pub admission_s: f64,
    /// What may come on top of the admission, seconds.
    pub slack_s: f64,
    /// 1.3 × the CPU's floor, or admission and slack where that is longer, seconds.
    pub allowed_s: f64,
}

/// The raw material next to the summary.
pub struct Raw<'a> {
    /// Intended submission to end, microseconds.
    pub round_trips: &'a Histogram<u64>,
    /// Start of the agent to its first `Welcome`, microseconds.
    pub connects: &'a Histogram<u64>,
    /// Loss of a session to the next `Welcome`, microseconds.
    pub reconnects: &'a Histogram<u64>,
    /// Server usage each second.
    pub samples: &'a [(f64, Usage)],
    /// How long the run was.
    pub duration: Duration,
}

/// Writes `summary.json`, `machine.txt`, `latencies.hlog` and `server.csv` into a new dated folder
/// under `root`; returns the folder.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_folder(
    root: &Path,
    name: &str,
    summary: &impl Serialize,
    raw: &Raw<'_>,
) -> anyhow::Result<PathBuf> {
    let all = [
        ("rtt", raw.round_trips),
        ("connect", raw.connects),
        ("reconnect", raw.reconnects),
    ];
    let comment = "microseconds; rtt counts from the intended submission";
    let folder = write_summary(root, name, summary, comment, &all, raw.duration)?;
    let mut csv = String::from("second,rss_bytes,cpu_seconds,gateway_cpu_seconds\n");
    for (second, usage) in raw.samples {
        csv.push_str(&format!(
            "{second:.1},{},{:.2},{:.2}\n",
            usage.rss_bytes, usage.cpu_seconds, usage.gateway_cpu_seconds
        ));
    }
    fs::write(folder.join("server.csv"), csv)?;
    Ok(folder)
}

/// Writes a file over what it was before. Never leaves half of one, whenever it is killed.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    fs::write(&unfinished, content)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes `summary.json`, `machine.txt` and `latencies.hlog` into a new dated folder under `root`; returns the
/// folder. The log has the histograms that are not empty, by their tags; `comment` says what they count, and `duration`
/// how long they did.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn write_summary(
    root: &Path,
    name: &str,
    summary: &impl Serialize,
    comment: &str,
    histograms: &[(&str, &Histogram<u64>)],
    duration: Duration,
) -> anyhow::Result<PathBuf> {
    let folder = root.join(format!("{}-{name}", clock::stamp(clock::unix_seconds())));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(
        folder.join("summary.json"),
        serde_json::to_vec_pretty(summary)?,
    )?;
    fs::write(folder.join("machine.txt"), machine())?;
    let mut file = std::io::BufWriter::new(fs::File::create(folder.join("latencies.hlog"))?);
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(comment)
        .begin_log_with(&mut file, &mut serializer)?;
    for (tag, histogram) in histograms
        .iter()
        .filter(|(_, histogram)| !histogram.is_empty())
    {
        log.write_histogram(histogram, Duration::ZERO, duration, Tag::new(tag))
            .map_err(|error| anyhow::anyhow!("cannot write the histogram {tag}: {error:?}"))?;
    }
    file.flush()?;
    Ok(folder)
}

/// `10000` is `10,000`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The command line. The folders of absolute paths say where somebody's checkout is, not what was
/// run: they are left out, as is the program's.
pub(crate) fn command() -> Vec<String> {
    let words = std::env::args().enumerate();
    words
        .map(|(place, word)| shown(place == 0, &word))
        .collect()
}

fn shown(is_program: bool, word: &str) -> String {
    let name = |path: &str| {
        let name = Path::new(path).file_name();
        name.map_or_else(
            || path.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    match word.split_once('=') {
        _ if is_program || word.starts_with('/') => name(word),
        Some((key, value)) if value.starts_with('/') => format!("{key}={}", name(value)),
        _ => word.to_owned(),
    }
}

/// Machine, kernel, commit and command: what a reader needs to run it again.
pub(crate) fn machine() -> String {
    let output = |program: &str, arguments: &[&str]| {
        Command::new(program)
            .args(arguments)
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let dirty = if output("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() {
        ""
    } else {
        " (with local changes)"
    };
    format!(
        "command: {}\ncommit: {}{dirty}\nkernel: {}\ncpu: {} x {}\nmemory: {}\nrustc: {}\n",
        command().join(" "),
        output("git", &["rev-parse", "HEAD"]),
        output("uname", &["-sr"]),
        cores,
        model.map_or("unknown", |(_, name)| name),
        fs::read_to_string("/proc/meminfo")
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or_default(),
        output("rustc", &["--version"]),
    )
}

fn print_fault(fault: &Fault) {
    let back = fault
        .all_back_s
        .map_or("NEVER all".to_owned(), |s| format!("all within {s:.1} s"));
    println!(
        "  fault       {} at {:.0} s: sessions back {back}",
        fault.what, fault.at_s
    );
    if let Some(floor) = &fault.came_back {
        println!(
            "  floor       {:.1} s: {:.1} s CPU of the server and {:.1} s of the fleet on {} cores",
            floor.cpu_floor_s, floor.server_cpu_s, floor.fleet_cpu_s, floor.cores
        );
        println!(
            "  allowed     {:.1} s: 1.3 x that, or {:.1} s at the door and {:.0} s of slack",
            floor.allowed_s, floor.admission_s, floor.slack_s
        );
    }
}

/// The summary for a screen.
pub fn print(summary: &Summary) {
    let verdict = if summary.passed { "PASSED" } else { "FAILED" };
    let processes = &summary.processes;
    let server = &summary.server;
    let mib = |bytes: u64| bytes >> 20;
    println!("\n{verdict}");
    println!(
        "  sessions    {} of {} up, {} lost, {} on their home shard",
        summary.sessions_up,
        summary.agents,
        summary.sessions_lost,
        summary
            .home_shard_ratio
            .map_or("?".to_owned(), |ratio| format!("{:.2} %", ratio * 100.0)),
    );
    println!(
        "  processes   {} submitted, {} succeeded, {} failed, {} lost; {} duplicate effects",
        processes.submitted,
        processes.succeeded,
        processes.failed,
        processes.lost,
        summary.duplicate_effects
    );
    println!(
        "  fleet       joined in {:.1} s, {} MiB RSS",
        summary.enrol_seconds,
        mib(summary.fleet_rss_bytes)
    );
    println!(
        "  connect     p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        summary.connect_ms.p50, summary.connect_ms.p99, summary.connect_ms.max
    );
    println!(
        "  round trip  p50 {} µs, p99 {} µs, p99.9 {} µs, max {} µs",
        summary.rtt_us.p50, summary.rtt_us.p99, summary.rtt_us.p999, summary.rtt_us.max
    );
    println!(
        "  server      {} MiB RSS ({} idle, {} at most), {:.1} s CPU of which gateway {:.1} s",
        mib(server.rss_bytes),
        mib(server.rss_bytes_idle),
        mib(server.rss_bytes_max),
        server.cpu_seconds,
        server.gateway_cpu_seconds
    );
    println!(
        "  gateway     {:.0} µs CPU a handshake, {:.1} µs a process (whole server {:.0} µs)",
        server.gateway_cpu_us_per_handshake,
        server.gateway_cpu_us_per_process,
        server.cpu_us_per_process
    );
    if let (Some(all), Some(gateway)) = (server.idle_cores, server.gateway_idle_cores) {
        println!(
            "  idle        {:.1} % of one core with {} sessions, of which gateway {:.1} %",
            all * 100.0,
            summary.sessions_up,
            gateway * 100.0
        );
    }
    for fault in &summary.faults {
        print_fault(fault);
    }
    for violation in &summary.violations {
        println!("  VIOLATION   {violation}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_tells_no_folder_of_the_machine() {
        assert_eq!(
            shown(true, "target/release/drover-loadtest"),
            "drover-loadtest"
        );
        assert_eq!(shown(false, "/home/a/b.json"), "b.json");
        assert_eq!(shown(false, "--json=/home/a/b.json"), "--json=b.json");
        assert_eq!(shown(false, "bench-results"), "bench-results");
        assert_eq!(
            shown(false, "http://127.0.0.1:7440/"),
            "http://127.0.0.1:7440/"
        );
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(100), "100");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
