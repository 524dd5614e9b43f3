//! What a run with deaths found: a table, JSON, and a dated folder.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::super::report::{print_targets, target};
use super::{Kill, Killed, Target};
use crate::clock;
use crate::report::{self, grouped};

/// T7: operations at least.
const OPERATIONS_MIN: u64 = 1_000_000;
/// T7: from one death to the next at most, seconds.
const EVERY_MAX_S: f64 = 5.0;

/// Holds a run against T7.
pub(super) fn judge(found: &Killed) -> Target {
    let otherwise = match found.passed {
        true => "",
        false => "; the run FAILED, see the table",
    };
    target(
        "T7",
        format!(
            "0 duplicate effects in {} operations, a death every {EVERY_MAX_S} s",
            grouped(OPERATIONS_MIN)
        ),
        format!(
            "{} in {} operations, one every {} s{otherwise}",
            grouped(found.duplicate_effects),
            grouped(found.succeeded),
            found.every_s
        ),
        found.passed && found.succeeded >= OPERATIONS_MIN && found.every_s <= EVERY_MAX_S,
    )
}

/// Prints the table, and writes what was asked for.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn tell(kill: &Kill, found: &Killed) -> anyhow::Result<()> {
    for (what, value) in table(found) {
        println!("{what:<58} {value:>14}");
    }
    for example in &found.examples {
        println!("failed or not ended: {example}");
    }
    print_targets(&found.targets);
    let json = serde_json::to_vec_pretty(found)?;
    if let Some(path) = &kill.json {
        report::replace(path, &json)?;
    }
    if let Some(results) = &kill.results {
        let stamp = clock::stamp(clock::unix_seconds());
        let folder = results.join(format!("{stamp}-flow-kill"));
        write_folder(&folder, kill, found, &json)?;
        println!("written: {}", folder.display());
    }
    Ok(())
}

fn write_folder(folder: &Path, kill: &Kill, found: &Killed, json: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    report::replace(&folder.join("kill.json"), json)?;
    report::replace(&folder.join("machine.txt"), report::machine().as_bytes())?;
    report::replace(&folder.join("report.md"), text(kill, found)?.as_bytes())
}

/// What is told, line by line.
fn table(found: &Killed) -> Vec<(&'static str, String)> {
    let process_servers = found.process_server_deaths;
    let passed = if found.passed { "passed" } else { "FAILED" };
    vec![
        ("verdict", passed.to_owned()),
        ("the server died", grouped(found.server_deaths.into())),
        (
            "the server stood still for 3 s",
            grouped(found.server_pauses.into()),
        ),
        (
            "agents that died, ten at a time",
            grouped(found.agent_deaths as u64),
        ),
        (
            "one of the process servers died",
            process_servers.map_or("not asked for".to_owned(), |n| grouped(n as u64)),
        ),
        ("seconds, all in all", format!("{:.0}", found.seconds)),
        (
            "seconds from the last death to the end",
            format!("{:.0}", found.settled_s),
        ),
        ("processes accepted", grouped(found.submitted)),
        ("succeeded", grouped(found.succeeded)),
        ("failed", grouped(found.failed)),
        ("refused", grouped(found.refused)),
        ("lost", grouped(found.lost)),
        ("effects beyond the first", grouped(found.duplicate_effects)),
        (
            "commands to an agent without room",
            grouped(found.over_issue),
        ),
        (
            "permits and active operations counted when nothing was",
            grouped(found.leaked),
        ),
        (
            "agents of which the permits are known",
            grouped(found.permits_told as u64),
        ),
        (
            "agents that did not come back",
            grouped(found.missing as u64),
        ),
    ]
}

fn text(kill: &Kill, found: &Killed) -> Result<String, std::fmt::Error> {
    let mut text = String::from("# Deaths on the real server\n\n");
    writeln!(text, "`{}`\n", report::command().join(" "))?;
    let hosts = &kill.fleet;
    writeln!(
        text,
        "{} agents of {} slots, operations of {} s in the mean, {} outstanding on each, {} process servers. Every {} s \
         the server dies (two turns in eight), stands still for 3 s (one), or ten agents die (five).\n",
        hosts.agents,
        hosts.slots,
        hosts.mean.as_secs_f64(),
        hosts.outstanding,
        kill.servers,
        found.every_s,
    )?;
    writeln!(text, "| what | |\n|---|---|")?;
    for (what, value) in table(found) {
        writeln!(text, "| {what} | {value} |")?;
    }
    writeln!(text, "\n| target | found | |\n|---|---|---|")?;
    for target in &found.targets {
        writeln!(text, "{}", target.line())?;
    }
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::super::report::tests::{hosts, options};
    use super::*;

    pub(in super::super) fn kill() -> Kill {
        Kill {
            every: Duration::from_secs(5),
            process_servers_die: None,
            duration: Duration::from_secs(1800),
            servers: 4,
            fleet: hosts(),
            seed: 1,
            server: options(None).server,
            site: options(None).site,
            work_dir: "w".into(),
            json: None,
            results: None,
        }
    }

    pub(in super::super) fn found() -> Killed {
        Killed {
            agents: 200,
            servers: 4,
            every_s: 5.0,
            seconds: 1829.1,
            settled_s: 29.2,
            server_deaths: 84,
            server_pauses: 41,
            agent_deaths: 2400,
            process_server_deaths: Some(211),
            submitted: 1_000_000,
            succeeded: 1_000_000,
            failed: 0,
            refused: 0,
            lost: 0,
            duplicate_effects: 0,
            over_issue: 0,
            leaked: 0,
            permits_told: 200,
            missing: 0,
            passed: true,
            targets: Vec::new(),
            examples: Vec::new(),
        }
    }

    #[test]
    fn t7_takes_a_million_operations_a_pass_and_deaths_often_enough() {
        let judged = judge(&found());
        assert!(judged.met);
        assert_eq!(judged.found, "0 in 1,000,000 operations, one every 5 s");
        let missed = |change: fn(&mut Killed)| {
            let mut found = found();
            change(&mut found);
            !judge(&found).met
        };
        let mut failed = found();
        failed.passed = false;
        assert!(
            judge(&failed)
                .found
                .ends_with("; the run FAILED, see the table")
        );
        assert!(missed(|found| found.succeeded -= 1));
        assert!(missed(|found| found.passed = false));
        assert!(missed(|found| found.every_s = 5.1));
    }

    #[test]
    fn the_folder_tells_every_sort_of_death_and_the_target() {
        let place = tempfile::tempdir().unwrap();
        let mut found = found();
        found.targets = vec![judge(&found)];
        let json = place.path().join("kill.json");
        let kill = Kill {
            json: Some(json.clone()),
            results: Some(place.path().join("results")),
            ..kill()
        };
        tell(&kill, &found).unwrap();
        let mut folders = std::fs::read_dir(place.path().join("results")).unwrap();
        let folder = folders.next().unwrap().unwrap().path();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&json), read(&folder.join("kill.json")));
        let json: serde_json::Value = serde_json::from_str(&read(&json)).unwrap();
        assert_eq!(
            [&json["server_pauses"], &json["process_server_deaths"]],
            [41, 211]
        );
        assert_eq!(json["targets"][0]["met"], true);
        let text = read(&folder.join("report.md"));
        for line in [
            "| verdict | passed |",
            "| the server died | 84 |",
            "| the server stood still for 3 s | 41 |",
            "| agents that died, ten at a time | 2,400 |",
            "| one of the process servers died | 211 |",
            "| T7: 0 duplicate effects in 1,000,000 operations, a death every 5 s | 0 in 1,000,000 operations, one \
             every 5 s | met |",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        found.process_server_deaths = None;
        found.passed = false;
        let text = super::text(&kill, &found).unwrap();
        assert!(text.contains("| verdict | FAILED |"));
        assert!(text.contains("| one of the process servers died | not asked for |"));
    }
}
