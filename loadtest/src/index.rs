//! The table of all runs in the README of a folder of results, made of what the runs wrote.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::compare::model::{Comparison, Row, is_drover};
use crate::compare::targets::Verdict;
use crate::report::grouped;

mod flow;
mod scenario;

/// The table is between these two lines.
const BEGIN: &str = "<!-- made by drover-loadtest index -->";
const END: &str = "<!-- end -->";

/// One run as the table has it.
struct Line {
    name: String,
    command: String,
    commit: String,
    verdict: String,
    result: String,
}

/// Writes the table into `README.md` of the folder; how many runs it has.
///
/// # Errors
/// When a run's summary or the README cannot be read, or the README has no place for the table.
pub fn write(results: &Path) -> anyhow::Result<usize> {
    let readme = results.join("README.md");
    let text =
        fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let mut lines = Vec::new();
    for entry in fs::read_dir(results)? {
        let folder = entry?.path();
        if folder.is_dir() {
            lines.extend(line_of(&folder)?);
        }
    }
    // Names begin with the date: the newest comes first.
    lines.sort_by(|one, other| other.name.cmp(&one.name));
    let text = with_table(&text, &table(&lines))?;
    fs::write(&readme, text).with_context(|| format!("cannot write {}", readme.display()))?;
    Ok(lines.len())
}

/// The text with the table between its two marks.
fn with_table(text: &str, table: &str) -> anyhow::Result<String> {
    let place = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = place else {
        bail!("the README needs the lines `{BEGIN}` and `{END}`");
    };
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

fn table(lines: &[Line]) -> String {
    let mut table =
        String::from("| run | command, commit | verdict | result |\n|---|---|---|---|\n");
    for line in lines {
        let Line {
            name,
            command,
            commit,
            verdict,
            result,
        } = line;
        table.push_str(&format!(
            "| [{name}]({name}/) | `{}`, {} | {} | {} |\n",
            cell(command),
            cell(commit),
            cell(verdict),
            cell(result)
        ));
    }
    table
}

/// Text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '`'], " ")
}

/// A run's line; nothing of a folder that holds none.
fn line_of(folder: &Path) -> anyhow::Result<Option<Line>> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let read = |file: &str| fs::read(folder.join(file));
    let (verdict, result) = if let Ok(bytes) = read("comparison.json") {
        let mut comparison: Comparison = serde_json::from_slice(&bytes)
            .with_context(|| format!("{name}/comparison.json is no comparison"))?;
        comparison.summarise();
        told_comparison(&comparison)
    } else if let Ok(bytes) = read("summary.json") {
        let summary: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{name}/summary.json is not JSON"))?;
        match summary["scenario"].is_string() {
            true => scenario::told(&summary),
            false => told_summary(&summary),
        }
    } else if let Ok(bytes) = read("flow.json") {
        let json = |bytes: &[u8], file: &str| -> anyhow::Result<Value> {
            serde_json::from_slice(bytes).with_context(|| format!("{name}/{file} is not JSON"))
        };
        let rows = json(&bytes, "flow.json")?;
        let targets = match read("targets.json") {
            Ok(bytes) => json(&bytes, "targets.json")?,
            Err(_) => Value::Null,
        };
        flow::told(&rows, &targets)
    } else if let Ok(bytes) = read("kill.json") {
        let found: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{name}/kill.json is not JSON"))?;
        flow::told_deaths(&found)
    } else if let Ok(bytes) = read("failover.json") {
        let found: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{name}/failover.json is not JSON"))?;
        flow::told_failover(&found)
    } else {
        return Ok(None);
    };
    let machine = fs::read_to_string(folder.join("machine.txt")).unwrap_or_default();
    let after = |key: &str| {
        let line = machine.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or("?").trim().to_owned()
    };
    let commit = after("commit:");
    let short = commit.get(..12).unwrap_or(&commit).to_owned();
    Ok(Some(Line {
        name: name.into_owned(),
        command: after("command:"),
        commit: match commit.contains(' ') {
            true => format!("{short} and changes"),
            false => short,
        },
        verdict,
        result,
    }))
}

fn told_comparison(comparison: &Comparison) -> (String, String) {
    let count = |wanted: &[Verdict]| {
        let all = comparison.targets.iter();
        all.filter(|judged| wanted.contains(&judged.found.verdict))
            .count()
    };
    let verdict = match comparison.targets.is_empty() {
        true => "not judged: another size of fleet".to_owned(),
        false => format!(
            "{} targets met, {} MISSED, {} not measured",
            count(&[Verdict::Met, Verdict::Stretch]),
            count(&[Verdict::Missed]),
            count(&[Verdict::NotMeasured])
        ),
    };
    let measures = comparison.measures.iter().zip(&comparison.summary);
    let worse: Vec<_> = measures
        .filter(|(measure, _)| measure.part_of.is_none())
        .filter_map(|(measure, row)| Some(format!("{}: {}", measure.label, worse(row)?)))
        .collect();
    let plan = &comparison.plan;
    let mut result = format!(
        "{} peers, {} sessions, {} rounds.",
        comparison.peers.len(),
        grouped(plan.sessions as u64),
        plan.rounds
    );
    match worse.is_empty() {
        true => result.push_str(" Drover needs no more than any peer in any measure"),
        false => result.push_str(&format!(" Drover needs more: {}", worse.join("; "))),
    }
    (verdict, result)
}

/// The peers beside which Drover needs more, with the medians of its ratios.
fn worse(row: &Row) -> Option<String> {
    let peers = row
        .ratios
        .iter()
        .filter(|(name, ratio)| {
            row.peers.contains_key(*name) && !is_drover(name) && ratio.median > 1.0
        })
        .map(|(name, ratio)| format!("{:.2} × {name}", ratio.median));
    let peers: Vec<_> = peers.collect();
    (!peers.is_empty()).then(|| peers.join(", "))
}

/// `hold`, `siege` and `api`, of older versions too: a figure that is missing is left out.
fn told_summary(summary: &Value) -> (String, String) {
    let number = |path: &str| summary.pointer(path).and_then(Value::as_f64);
    let count = |path: &str| summary.pointer(path).and_then(Value::as_u64);
    let mut said = Vec::new();
    let mut say = |text: Option<String>| said.extend(text);
    if let Some(agents) = count("/agents") {
        say(Some(format!("{} agents", grouped(agents))));
        say(count("/sessions_lost").map(|lost| format!("{lost} sessions lost")));
        say(told_processes(summary));
        say(number("/server/rss_bytes_idle").map(|b| format!("{:.0} MiB idle", b / 1_048_576.0)));
        let idle = number("/server/gateway_idle_cores");
        say(idle.map(|cores| format!("gateway idle {:.1} % of a core", cores * 100.0)));
        let micros = number("/server/gateway_cpu_us_per_handshake");
        say(micros.map(|micros| format!("{micros:.0} µs gateway CPU a set-up")));
        let micros = number("/server/gateway_cpu_us_per_process").filter(|_| has_work(summary));
        say(micros.map(|micros| format!("{micros:.0} µs a process")));
        let rtt = ["p50", "p99", "p999"].map(|p| number(&format!("/rtt_us/{p}")));
        if let [Some(p50), Some(p99), Some(p999)] = rtt.map(|p| p.filter(|_| has_work(summary))) {
            let ms = |micros: f64| micros / 1e3;
            let (p50, p99, p999) = (ms(p50), ms(p99), ms(p999));
            say(Some(format!(
                "p50 {p50:.1}, p99 {p99:.1}, p99.9 {p999:.1} ms"
            )));
        }
        for fault in summary
            .pointer("/faults")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            say(Some(told_fault(fault)));
        }
    } else if let Some(ratio) = number("/p99_ratio") {
        say(Some(format!("UI's p99 {ratio:.2} × its quiet one")));
        let refused = count("/flood/refused").zip(count("/flood/served"));
        say(refused.map(|(refused, served)| {
            let all = grouped(refused + served);
            format!("{} of the flood's {all} requests refused", grouped(refused))
        }));
    } else {
        let attempts = count("/storm/attempts");
        say(attempts.map(|n| format!("{} first flights", grouped(n))));
        let worst = number("/storm/worst_ratio");
        say(worst.map(|ratio| format!("at most {ratio:.2} × the bytes received")));
        let newcomers = count("/newcomers_in").zip(count("/newcomers"));
        say(newcomers.map(|(came, all)| format!("{came} of {all} newcomers in")));
        let slowest = number("/connect_ms/max");
        say(slowest.map(|ms| format!("the slowest after {ms:.0} ms")));
    }
    let violations = summary.pointer("/violations").and_then(Value::as_array);
    let violations = violations.into_iter().flatten().filter_map(Value::as_str);
    let violations: Vec<_> = violations.collect();
    let verdict = match summary.pointer("/passed").and_then(Value::as_bool) {
        Some(true) => "passed".to_owned(),
        Some(false) => format!("FAILED: {}", violations.join("; ")),
        None => "?".to_owned(),
    };
    (verdict, said.join(", "))
}

fn has_work(summary: &Value) -> bool {
    let submitted = summary.pointer("/processes/submitted");
    submitted.and_then(Value::as_u64).is_some_and(|n| n > 0)
}

fn told_processes(summary: &Value) -> Option<String> {
    let count = |path: &str| summary.pointer(path).and_then(Value::as_u64);
    let submitted = count("/processes/submitted").filter(|n| *n > 0)?;
    let succeeded = grouped(count("/processes/succeeded")?);
    let (lost, doubled) = (count("/processes/lost")?, count("/duplicate_effects")?);
    let submitted = grouped(submitted);
    Some(format!(
        "{succeeded} of {submitted} processes, {lost} lost, {doubled} doubled"
    ))
}

fn told_fault(fault: &Value) -> String {
    let what = fault
        .pointer("/what")
        .and_then(Value::as_str)
        .unwrap_or("fault");
    // The rest says how it was done.
    let what = what.split(',').next().unwrap_or(what);
    let back = fault.pointer("/all_back_s").and_then(Value::as_f64);
    let back = back.map_or("NEVER all back".to_owned(), |s| {
        format!("all back in {s:.1} s")
    });
    let allowed = fault
        .pointer("/came_back/allowed_s")
        .and_then(Value::as_f64);
    let allowed = allowed.map(|s| format!(" ({s:.1} s allowed)"));
    format!("{what}: {back}{}", allowed.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::compare::made_up;
    use crate::compare::model::DROVER;

    #[test]
    fn a_hold_is_told_with_its_faults_and_what_failed() {
        let (verdict, result) = told_summary(&json!({
            "agents": 10_000, "sessions_lost": 3, "duplicate_effects": 0,
            "processes": { "submitted": 3000, "succeeded": 2999, "lost": 1 },
            "rtt_us": { "p50": 48_031, "p99": 100_000, "p999": 200_000 },
            "server": { "rss_bytes_idle": 204_414_976, "gateway_cpu_us_per_process": 324.6 },
            "faults": [{ "what": "server killed (SIGKILL), started again", "all_back_s": 31.26,
                "came_back": { "allowed_s": 40.0 } }],
            "passed": false, "violations": ["1 processes lost"]
        }));
        assert_eq!(verdict, "FAILED: 1 processes lost");
        let expected = "10,000 agents, 3 sessions lost, 2,999 of 3,000 processes, 1 lost, 0 doubled, \
                        195 MiB idle, 325 µs a process, p50 48.0, p99 100.0, p99.9 200.0 ms, \
                        server killed (SIGKILL): all back in 31.3 s (40.0 s allowed)";
        assert_eq!(result, expected);
    }

    #[test]
    fn a_siege_is_told() {
        let (verdict, result) = told_summary(&json!({
            "storm": { "attempts": 60_000, "worst_ratio": 2.829 }, "newcomers_in": 100,
            "newcomers": 100, "connect_ms": { "max": 17.4 }, "passed": true, "violations": []
        }));
        assert_eq!(verdict, "passed");
        let expected = "60,000 first flights, at most 2.83 × the bytes received, \
                        100 of 100 newcomers in, the slowest after 17 ms";
        assert_eq!(result, expected);
    }

    #[test]
    fn a_flood_of_the_api_is_told() {
        let (verdict, result) = told_summary(&json!({
            "limit": 500, "p99_ratio": 1.182, "flood": { "served": 19_499, "refused": 160_501 },
            "passed": true, "violations": []
        }));
        assert_eq!(verdict, "passed");
        let expected =
            "UI's p99 1.18 × its quiet one, 160,501 of the flood's 180,000 requests refused";
        assert_eq!(result, expected);
    }

    #[test]
    fn a_comparison_tells_what_drover_loses() {
        let mut comparison = made_up::empty(10_000, 1);
        comparison.measures = crate::compare::measures::infos(10_000, &[10_000]);
        comparison.runs = vec![
            made_up::run(DROVER, 1, &[("session_rss", 15.0), ("rtt_p50", 2.0)]),
            made_up::run("quinn", 1, &[("session_rss", 40.0), ("rtt_p50", 1.0)]),
        ];
        comparison.summarise();
        let (verdict, result) = told_comparison(&comparison);
        // 15 KiB are too much, 0.375 × quinn is not; quinn's median round-trip is half.
        assert!(verdict.starts_with("1 targets met, 2 MISSED"), "{verdict}");
        let expected = "2 peers, 10,000 sessions, 1 rounds. Drover needs more: \
                        command round-trip, median: 2.00 × quinn";
        assert_eq!(result, expected);
    }

    #[test]
    fn the_table_replaces_the_one_before_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let readme = place.path().join("README.md");
        let begin = format!("before\n{BEGIN}\nan old row\n{END}\nafter\n");
        fs::write(&readme, begin).unwrap();
        for (name, agents) in [("2026-01-01-000000-hold", 1), ("2026-02-01-000000-hold", 2)] {
            let folder = place.path().join(name);
            fs::create_dir(&folder).unwrap();
            let summary = json!({ "agents": agents, "passed": true }).to_string();
            fs::write(folder.join("summary.json"), summary).unwrap();
            let machine = "command: a | b\ncommit: 0123456789abcdef (with local changes)\n";
            fs::write(folder.join("machine.txt"), machine).unwrap();
        }
        fs::create_dir(place.path().join("no-run")).unwrap();
        assert_eq!(write(place.path()).unwrap(), 2);
        let text = fs::read_to_string(&readme).unwrap();
        let row = "| [2026-02-01-000000-hold](2026-02-01-000000-hold/) | `a \\| b`, \
                   0123456789ab and changes | passed | 2 agents |\n";
        assert!(text.contains(row), "{text}");
        assert!(text.find("2026-02").unwrap() < text.find("2026-01").unwrap());
        assert!(text.starts_with("before\n") && text.ends_with("\nafter\n"));
        assert!(!text.contains("an old row"));
        assert_eq!(write(place.path()).unwrap(), 2);
        assert_eq!(fs::read_to_string(&readme).unwrap(), text);
        fs::write(&readme, "no marks").unwrap();
        assert!(write(place.path()).is_err());
    }
}
