//! What the real server reached: a table, JSON, CSV, and a dated folder, all of them as it goes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Found, Options, Peak, Row, Target, peak};
use crate::clock;
use crate::report;

/// T1: of the best at fewer servers.
const NEVER_LOWER: f64 = 0.99;
/// T3.
const WASTE_MAX: f64 = 0.001;
/// T5.
const JAIN_MIN: f64 = 0.99;
/// T8, seconds.
const RESUMED_MAX_S: f64 = 12.0;
/// T9: what others keep of their rate.
const KEPT_MIN: f64 = 0.95;
/// T10.
const TRANSACTIONS_MAX: f64 = 0.5;
const IDLE_QUERIES_MAX: f64 = 1.0;
const LEFT_MIN: f64 = 0.98;

/// T2: of the capacity, by how hosts thrash.
fn goodput_min(gamma: f64) -> f64 {
    match gamma <= 0.05 {
        true => 0.97,
        false => 0.93,
    }
}

/// Says how long it will take, and what the columns are.
pub(super) fn print_head(options: &Options) {
    println!(
        "rows: {}, about {} minutes in all",
        options.gammas.len() * options.servers.len(),
        options.expected().as_secs().div_ceil(60)
    );
    println!(
        "{:>6} {:>8} {:>9} {:>8} {:>7} {:>6} {:>8} {:>8} {:>9} {:>8} {:>7} {:>6}",
        "γ",
        "servers",
        "goodput",
        "waste",
        "jain",
        "over",
        "ops/s",
        "txn/op",
        "idle q/s",
        "back/op",
        "ms/op",
        "cores"
    );
}

pub(super) fn print_row(row: &Row) {
    println!(
        "{:>6} {:>8} {:>7.1} % {:>8.4} {:>7.3} {:>6} {:>8.1} {:>8.3} {:>9.2} {:>8.3} {:>7.2} {:>4.0} %",
        row.row.gamma,
        row.row.servers,
        100.0 * row.row.goodput_ratio,
        row.row.waste,
        row.row.jain,
        row.row.over_issue.unwrap_or(0),
        row.rate,
        row.transactions_per_operation,
        row.idle_queries_per_second,
        row.permits_returned_per_operation,
        row.server_cpu_ms_per_operation + row.fleet_cpu_ms_per_operation,
        100.0 * row.cores_busy,
    );
    if !row.is_sound() {
        println!(
            "       NOT SOUND: {} lost, {} doubled, {} failed, {} leaked, {:?} issued beyond the capacity",
            row.lost, row.duplicate_effects, row.failed, row.leaked, row.row.over_issue
        );
    }
}

pub(super) fn print_targets(targets: &[Target]) {
    for target in targets {
        let met = if target.met { "met   " } else { "MISSED" };
        println!(
            "{:<4} {met} {}: {}",
            target.name, target.target, target.found
        );
    }
}

/// Holds what was found against the targets.
pub(super) fn judge(found: &Found) -> Vec<Target> {
    let mut by_gamma: BTreeMap<u64, Vec<&Row>> = BTreeMap::new();
    for row in &found.rows {
        let of_gamma = by_gamma.entry(row.row.gamma.to_bits()).or_default();
        of_gamma.push(row);
    }
    let mut targets = Vec::new();
    for (gamma, rows) in by_gamma {
        targets.extend(judge_goodput(f64::from_bits(gamma), rows));
    }
    targets.extend(judge_rows(&found.rows));
    targets.extend(judge_faults(found));
    targets.extend(judge_peaks(&found.peaks));
    targets
}

pub(super) fn target(name: &'static str, target: String, found: String, met: bool) -> Target {
    Target {
        name,
        target,
        found,
        met,
    }
}

/// T1 and T2, of the rows of one thrash factor.
fn judge_goodput(gamma: f64, mut rows: Vec<&Row>) -> Vec<Target> {
    rows.sort_by_key(|row| row.row.servers);
    let mut targets = Vec::new();
    if let Some(least) = never_lower(&rows) {
        let aim = format!("goodput(N) ≥ {NEVER_LOWER} × the best at fewer, γ = {gamma}");
        let found = format!("{least:.4} at worst");
        targets.push(target("T1", aim, found, least >= NEVER_LOWER));
    }
    let lowest = rows.iter().map(|row| row.row.goodput_ratio);
    let lowest = lowest.fold(f64::INFINITY, f64::min);
    let min = goodput_min(gamma);
    let aim = format!("goodput ≥ {:.0} %, γ = {gamma}", 100.0 * min);
    let found = format!("{:.1} %", 100.0 * lowest);
    targets.push(target("T2", aim, found, lowest >= min));
    targets
}

/// What holds for every row: T3, T5, T10.
fn judge_rows(rows: &[Row]) -> Vec<Target> {
    if rows.is_empty() {
        return Vec::new();
    }
    let worst = |of: fn(&Row) -> f64| rows.iter().map(of).fold(0.0, f64::max);
    let waste = worst(|row| row.row.waste);
    let jain = 1.0 - worst(|row| 1.0 - row.row.jain);
    let transactions = worst(|row| row.transactions_per_operation);
    let idle = worst(|row| row.idle_queries_per_second);
    vec![
        target(
            "T3",
            format!("waste ≤ {WASTE_MAX}"),
            format!("{waste:.5}"),
            waste <= WASTE_MAX,
        ),
        target(
            "T5",
            format!("Jain ≥ {JAIN_MIN}"),
            format!("{jain:.4}"),
            jain >= JAIN_MIN,
        ),
        target(
            "T10",
            format!("≤ {TRANSACTIONS_MAX} transactions an operation"),
            format!("{transactions:.3}"),
            transactions <= TRANSACTIONS_MAX,
        ),
        target(
            "T10",
            format!("an idle server ≤ {IDLE_QUERIES_MAX} query a second"),
            format!("{idle:.2}"),
            idle <= IDLE_QUERIES_MAX,
        ),
    ]
}

/// T10, where it was tried.
fn judge_peaks(peaks: &[Peak]) -> Option<Target> {
    let left = peak::left_beyond(peaks);
    let rates: Vec<String> = peaks
        .iter()
        .map(|peak| format!("{}: {}", peak.servers, rates(&peak.rates)))
        .collect();
    (peaks.len() > 1).then(|| {
        target(
            "T10",
            "past the peak more servers cost ≤ 2 %".to_owned(),
            format!(
                "{:.1} % left at worst; operations a second by servers: {}",
                100.0 * left,
                rates.join("; ")
            ),
            left >= LEFT_MIN,
        )
    })
}

/// T8 and T9, where they were tried.
fn judge_faults(found: &Found) -> Vec<Target> {
    let dead = found.dead_server.as_ref().map(|dead| {
        target(
            "T8",
            format!("a dead server's work resumes ≤ {RESUMED_MAX_S} s"),
            format!(
                "{:.1} s for what waited, {:.1} s for {} claims that were taken over",
                dead.resumed_s, dead.taken_over_s, dead.taken_over
            ),
            dead.resumed_s.max(dead.taken_over_s) <= RESUMED_MAX_S
                && dead.taken_over > 0
                && dead.lost == 0
                && dead.duplicate_effects == 0,
        )
    });
    let stuck = found.stuck.as_ref().map(|stuck| {
        target(
            "T9",
            format!("{} stuck processes slow others ≤ 5 %", stuck.stuck),
            format!(
                "{:.1} % kept; operations a second without {}, with {}",
                100.0 * stuck.kept,
                rates(&stuck.rates_without),
                rates(&stuck.rates_with)
            ),
            stuck.kept >= KEPT_MIN,
        )
    });
    dead.into_iter().chain(stuck).collect()
}

fn rates(rates: &[f64]) -> String {
    let rates: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    rates.join(", ")
}

/// The least goodput over the best at fewer servers; nothing with one number of servers.
fn never_lower(rows: &[&Row]) -> Option<f64> {
    let (first, rest) = rows.split_first()?;
    let mut best = first.row.goodput_ratio;
    let mut least: Option<f64> = None;
    for row in rest {
        let ratio = row.row.goodput_ratio / best.max(f64::MIN_POSITIVE);
        least = Some(least.map_or(ratio, |least| least.min(ratio)));
        best = best.max(row.row.goodput_ratio);
    }
    least
}

/// Where a run's results go. Each writing replaces the one before.
pub(super) struct Output<'a> {
    options: &'a Options,
    folder: Option<PathBuf>,
}

impl<'a> Output<'a> {
    /// Names a folder with the time at which the run began, where one is asked for; nothing is made yet.
    pub(super) fn new(options: &'a Options) -> Self {
        let stamp = clock::stamp(clock::unix_seconds());
        let name = format!("{stamp}-flow-real-{}", options.site.name());
        let folder = options.results.as_ref().map(|results| results.join(name));
        Self { options, folder }
    }

    /// Holds what was found so far against the targets, and writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, found: &mut Found) -> anyhow::Result<()> {
        found.targets = judge(found);
        if let Some(path) = &self.options.json {
            report::replace(path, &serde_json::to_vec_pretty(found)?)?;
        }
        match &self.folder {
            Some(folder) => write_folder(found, self.options, folder),
            None => Ok(()),
        }
    }

    /// Says where the folder is.
    pub(super) fn print_place(&self) {
        if let Some(folder) = &self.folder {
            println!("written: {}", folder.display());
        }
    }
}

fn write_folder(found: &Found, options: &Options, folder: &Path) -> anyhow::Result<()> {
    let machine = folder.join("machine.txt");
    // What the run began with: the tree may have changed since.
    if !machine.exists() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        report::replace(&machine, report::machine().as_bytes())?;
    }
    let put = |name: &str, content: &[u8]| report::replace(&folder.join(name), content);
    put("flow.json", &serde_json::to_vec_pretty(&found.rows)?)?;
    put("flow.csv", csv(&found.rows).as_bytes())?;
    let probes = serde_json::json!({
        "targets": found.targets,
        "dead_server": found.dead_server,
        "stuck": found.stuck,
        "peaks": found.peaks,
    });
    put("targets.json", &serde_json::to_vec_pretty(&probes)?)?;
    let mut pictures: Vec<String> = Vec::new();
    #[cfg(feature = "peers")]
    {
        let rows: Vec<_> = found.rows.iter().map(|row| row.row.clone()).collect();
        for (name, drawing) in crate::flow::report::plots::goodput_and_waste(&rows) {
            let file = format!("{name}.png");
            put(&file, &drawing.png()?)?;
            pictures.push(file);
        }
    }
    pictures.sort();
    put("report.md", text(found, options, &pictures)?.as_bytes())
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "gamma,servers,goodput_ratio,waste,jain,over_issue,rate,transactions_per_operation,\
         reads_per_operation,permits_returned_per_operation,idle_queries_per_second,cores_busy\n",
    );
    for row in rows {
        text.push_str(&format!(
            "{},{},{:.5},{:.6},{:.5},{},{:.2},{:.4},{:.4},{:.4},{:.3},{:.3}\n",
            row.row.gamma,
            row.row.servers,
            row.row.goodput_ratio,
            row.row.waste,
            row.row.jain,
            row.row.over_issue.unwrap_or(0),
            row.rate,
            row.transactions_per_operation,
            row.reads_per_operation,
            row.permits_returned_per_operation,
            row.idle_queries_per_second,
            row.cores_busy,
        ));
    }
    text
}

fn text(found: &Found, options: &Options, pictures: &[String]) -> Result<String, std::fmt::Error> {
    let mut text = String::from("# Flow on the real server\n\n");
    writeln!(text, "`{}`\n", report::command().join(" "))?;
    let hosts = &options.fleet;
    writeln!(
        text,
        "{} agents of {} slots (refusing beyond {}), operations of {:.1} s in the mean, {} outstanding on each; {} s of \
         warm-up, {} s counted. Process servers, gateway, store, fleet and load share the machine of `machine.txt`.\n",
        hosts.agents,
        hosts.slots,
        hosts.capacity,
        hosts.mean.as_secs_f64(),
        hosts.outstanding,
        options.warm_up.as_secs(),
        options.measured.as_secs()
    )?;
    writeln!(
        text,
        "| γ | N | goodput % | waste | Jain | over-issue | operations/s | transactions/op | idle queries/s | permits back/op | CPU ms/op, server + fleet | cores busy |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for row in &found.rows {
        writeln!(
            text,
            "| {} | {} | {:.1} | {:.5} | {:.4} | {} | {:.0} | {:.3} | {:.2} | {:.3} | {:.2} + {:.2} | {:.0} % |",
            row.row.gamma,
            row.row.servers,
            100.0 * row.row.goodput_ratio,
            row.row.waste,
            row.row.jain,
            row.row.over_issue.unwrap_or(0),
            row.rate,
            row.transactions_per_operation,
            row.idle_queries_per_second,
            row.permits_returned_per_operation,
            row.server_cpu_ms_per_operation,
            row.fleet_cpu_ms_per_operation,
            100.0 * row.cores_busy,
        )?;
    }
    writeln!(text, "\n| target | found | |\n|---|---|---|")?;
    for target in &found.targets {
        writeln!(text, "{}", target.line())?;
    }
    for picture in pictures {
        writeln!(text, "\n![{picture}]({picture})")?;
    }
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::flow::matrix;
    use crate::flow::real::{DeadServer, Hosts, Stuck};

    fn row(servers: usize, goodput_ratio: f64) -> Row {
        Row {
            row: matrix::Row {
                rule: "drover",
                servers,
                gamma: 0.25,
                goodput_ratio,
                waste: 0.0,
                jain: 0.995,
                over_issue: Some(0),
            },
            real: true,
            agents: 200,
            slots: 4,
            mean_s: 1.0,
            operations: 1,
            rate: 800.0,
            transactions_per_operation: 0.2,
            reads_per_operation: 0.1,
            permits_returned_per_operation: 0.0,
            idle_queries_per_second: 0.5,
            lost: 0,
            duplicate_effects: 0,
            failed: 0,
            leaked: 0,
            server_cpu_ms_per_operation: 1.0,
            fleet_cpu_ms_per_operation: 0.5,
            cores_busy: 0.6,
        }
    }

    fn met(found: &Found) -> Vec<(&'static str, bool)> {
        let targets = judge(found);
        targets.iter().map(|one| (one.name, one.met)).collect()
    }

    #[test]
    fn each_number_of_servers_is_held_against_the_best_at_fewer() {
        let (one, four, eight) = (row(1, 0.90), row(4, 0.96), row(8, 0.948));
        assert_eq!(never_lower(&[&one]), None);
        let least = never_lower(&[&one, &four, &eight]).unwrap();
        assert!((least - 0.948 / 0.96).abs() < 1e-12);
        assert!(least < NEVER_LOWER);
    }

    #[test]
    fn targets_are_met_at_their_bounds_and_missed_beyond() {
        let mut found = Found {
            rows: vec![row(1, 0.93), row(2, 0.9208)],
            dead_server: Some(DeadServer {
                servers: 4,
                resumed_s: 5.0,
                taken_over: 3,
                taken_over_s: 12.0,
                lost: 0,
                duplicate_effects: 0,
            }),
            stuck: Some(Stuck {
                stuck: 100_000,
                rates_without: vec![1000.0, 900.0],
                rates_with: vec![902.5],
                kept: 0.95,
            }),
            peaks: [(4, 100.0), (8, 98.0)]
                .map(|(servers, rate)| Peak {
                    servers,
                    rates: vec![rate],
                })
                .into(),
            targets: Vec::new(),
        };
        assert_eq!(
            met(&found),
            [
                ("T1", true),
                ("T2", false),
                ("T3", true),
                ("T5", true),
                ("T10", true),
                ("T10", true),
                ("T8", true),
                ("T9", true),
                ("T10", true)
            ]
        );
        found.rows[1].row.goodput_ratio = 0.92;
        found.rows[1].row.waste = 0.0011;
        found.rows[1].row.jain = 0.98;
        found.rows[1].transactions_per_operation = 0.51;
        found.rows[0].idle_queries_per_second = 1.01;
        found.dead_server.as_mut().unwrap().taken_over_s = 12.1;
        found.stuck.as_mut().unwrap().kept = 0.949;
        found.peaks[1].rates.push(97.9);
        assert!(met(&found).iter().all(|(_, met)| !met), "{:?}", met(&found));
        let nothing_to_take = DeadServer {
            taken_over: 0,
            taken_over_s: 0.0,
            ..found.dead_server.unwrap()
        };
        found.dead_server = Some(nothing_to_take);
        assert!(met(&found).contains(&("T8", false)));
    }

    pub(in super::super) fn hosts() -> Hosts {
        Hosts {
            agents: 200,
            slots: 4,
            capacity: 16,
            mean: Duration::from_secs(1),
            outstanding: 20,
        }
    }

    pub(in super::super) fn options(place: Option<&Path>) -> Options {
        Options {
            servers: vec![1, 8],
            gammas: vec![0.25],
            fleet: hosts(),
            warm_up: Duration::from_secs(60),
            measured: Duration::from_secs(60),
            idle: Duration::from_secs(5),
            dead_server: false,
            stuck: 0,
            peak: 0,
            seed: 1,
            server: crate::server::ServerSpec {
                binary: "drover".into(),
                data_dir: "d".into(),
                arguments: Vec::new(),
                log: "l".into(),
            },
            site: crate::flow::real::Site::One,
            work_dir: "w".into(),
            json: place.map(|place| place.join("real.json")),
            results: place.map(Path::to_owned),
        }
    }

    fn read(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn each_row_is_in_the_file_and_in_the_folder_before_the_next_is_measured() {
        let place = tempfile::tempdir().unwrap();
        let options = options(Some(place.path()));
        let output = Output::new(&options);
        let folder = output.folder.clone().unwrap();
        assert!(!folder.exists(), "nothing was found yet");
        let mut found = Found::default();
        for (done, servers) in [(1, 1), (2, 8)] {
            found.rows.push(row(servers, 0.95));
            output.write(&mut found).unwrap();
            let json = read(&place.path().join("real.json"));
            assert_eq!(json["rows"].as_array().unwrap().len(), done);
            assert_eq!(json["rows"][done - 1]["servers"], servers);
            assert_eq!(json["targets"].as_array().unwrap().len(), 4 + done);
            assert_eq!(read(&folder.join("flow.json")), json["rows"]);
        }
        found.stuck = Some(Stuck {
            stuck: 9,
            rates_without: vec![100.0, 90.0],
            rates_with: vec![94.0],
            kept: 0.989,
        });
        output.write(&mut found).unwrap();
        let json = read(&place.path().join("real.json"));
        assert_eq!(
            json["stuck"]["rates_without"],
            serde_json::json!([100.0, 90.0])
        );
        assert_eq!(json["stuck"]["kept"], 0.989);
        let t9 = json["targets"].as_array().unwrap().last().unwrap();
        assert_eq!(
            t9["found"],
            "98.9 % kept; operations a second without 100, 90, with 94"
        );
    }

    #[test]
    fn the_folder_has_rows_targets_and_a_report() {
        let place = tempfile::tempdir().unwrap();
        let mut found = Found {
            rows: vec![row(1, 0.95), row(8, 0.951)],
            ..Found::default()
        };
        let options = options(Some(place.path()));
        let output = Output::new(&options);
        output.write(&mut found).unwrap();
        let folder = output.folder.unwrap();
        let rows = read(&folder.join("flow.json"));
        assert_eq!(
            (&rows[1]["servers"], &rows[1]["real"]),
            (&8.into(), &true.into())
        );
        assert_eq!(rows[0]["over_issue"], 0);
        let text = fs::read_to_string(folder.join("report.md")).unwrap();
        assert!(
            text.contains("| 0.25 | 8 | 95.1 | 0.00000 | 0.9950 | 0 | 800 |"),
            "{text}"
        );
        assert!(
            text.contains("| T2: goodput ≥ 93 %, γ = 0.25 | 95.0 % | met |"),
            "{text}"
        );
        assert!(folder.join("flow.csv").exists() && folder.join("targets.json").exists());
        #[cfg(feature = "peers")]
        assert!(folder.join("goodput_25.png").exists());
    }
}
