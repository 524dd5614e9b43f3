//! What was found, against what is asked: a table, JSON, and a dated folder.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde::Serialize;

use super::{Failover, Found, Service};
use crate::clock;
use crate::report::{self, grouped};

/// Groups are owned elsewhere within this, by the store alone, seconds.
const ELSEWHERE_SLOW_S: f64 = 20.0;
/// The same where a lock service watches.
const ELSEWHERE_QUICK_S: f64 = 5.0;
/// All agents are back within this, seconds.
const BACK_S: f64 = 60.0;
/// During a drain a command takes no longer than this, of a hundred the slowest, milliseconds.
const BLACKOUT_MS: f64 = 1000.0;
/// Moves beyond those that are needed, in hundredths of these.
const SPARE_MOVES: u64 = 10;

/// Something that is asked for, and what was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Target {
    /// What is asked.
    pub target: String,
    /// What was found.
    pub found: String,
    /// Whether it is met.
    pub met: bool,
}

/// Holds what was found against what is asked.
pub(super) fn judge(found: &Found) -> Vec<Target> {
    let mut targets: Vec<Target> = found.services.iter().flat_map(judge_service).collect();
    if let Some(resized) = &found.resized {
        for step in &resized.steps {
            let moves = step.needed + step.needed * SPARE_MOVES / 100;
            targets.push(target(
                format!(
                    "{} groups to {} agent servers: sessions within {:.0} % of even, at most {moves} moves",
                    resized.groups,
                    step.servers,
                    super::scene::UNEVEN * 100.0
                ),
                format!(
                    "{:?}, {:.1} %, {} moves",
                    step.sessions,
                    step.uneven * 100.0,
                    step.moves
                ),
                step.uneven <= super::scene::UNEVEN && step.moves <= moves,
            ));
        }
    }
    targets
}

fn judge_service(service: &Service) -> Vec<Target> {
    let locks = service.locks;
    let mut targets = Vec::new();
    let within = match locks {
        "sql" => ELSEWHERE_SLOW_S,
        _ => ELSEWHERE_QUICK_S,
    };
    if !service.kills.is_empty() {
        let worst =
            |of: fn(&super::Killed) -> f64| service.kills.iter().map(of).fold(0.0, f64::max);
        let elsewhere = worst(|one| one.owned_elsewhere_s);
        let back = worst(|one| one.agents_back_s);
        targets.push(target(
            format!("{locks}: groups of a killed agent server owned elsewhere ≤ {within} s"),
            format!("{elsewhere:.1} s at worst of {}", service.kills.len()),
            elsewhere <= within,
        ));
        targets.push(target(
            format!(
                "{locks}: {} agents back ≤ {BACK_S} s",
                grouped(service.agents as u64)
            ),
            format!("{back:.1} s at worst"),
            back <= BACK_S,
        ));
    }
    if let Some(drained) = &service.drained {
        targets.push(target(
            format!("{locks}: commands during a drain, p99 ≤ {BLACKOUT_MS} ms"),
            format!(
                "{:.0} ms of {}; p50 {:.0}, max {:.0}",
                drained.p99_ms,
                grouped(drained.processes),
                drained.p50_ms,
                drained.max_ms
            ),
            drained.p99_ms <= BLACKOUT_MS && drained.processes > 0,
        ));
    }
    let paused = &service.paused;
    if paused.times > 0 {
        targets.push(target(
            format!("{locks}: no effect under a stale epoch, an attempt fenced at least"),
            format!(
                "{} in {} standstills; fenced: {} by agent servers, {} by agents",
                paused.stale_effects,
                paused.times,
                paused.fenced_by_server,
                paused.fenced_by_agents
            ),
            paused.stale_effects == 0 && paused.fenced_by_server + paused.fenced_by_agents > 0,
        ));
    }
    let sums = &service.processes;
    targets.push(target(
        format!("{locks}: no process lost, none done twice"),
        format!(
            "{} of {} succeeded, {} lost, {} effects beyond the first",
            grouped(sums.succeeded),
            grouped(sums.submitted),
            sums.lost,
            sums.duplicate_effects
        ),
        sums.lost == 0 && sums.duplicate_effects == 0 && sums.succeeded == sums.submitted,
    ));
    targets
}

fn target(target: String, found: String, met: bool) -> Target {
    Target { target, found, met }
}

/// Prints the table.
pub(super) fn print(found: &Found) {
    for target in &found.targets {
        let met = if target.met { "met   " } else { "MISSED" };
        println!("{met} {}: {}", target.target, target.found);
    }
}

/// Writes everything to the file that was asked for.
///
/// # Errors
/// It cannot be written.
pub(super) fn write_json(failover: &Failover, found: &Found) -> anyhow::Result<()> {
    match &failover.json {
        Some(path) => report::replace(path, &serde_json::to_vec_pretty(found)?),
        None => Ok(()),
    }
}

/// Writes a dated folder, if one was asked for.
///
/// # Errors
/// It cannot be written.
pub(super) fn write_folder(failover: &Failover, found: &Found) -> anyhow::Result<()> {
    let Some(results) = &failover.results else {
        return Ok(());
    };
    let stamp = clock::stamp(clock::unix_seconds());
    let locks: Vec<&str> = failover.locks.iter().map(|locks| locks.name()).collect();
    let folder = results.join(format!("{stamp}-failover-{}", locks.join("-")));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let json = serde_json::to_vec_pretty(found)?;
    report::replace(&folder.join("failover.json"), &json)?;
    report::replace(&folder.join("machine.txt"), report::machine().as_bytes())?;
    report::replace(&folder.join("report.md"), text(found)?.as_bytes())?;
    println!("written: {}", folder.display());
    Ok(())
}

fn text(found: &Found) -> Result<String, std::fmt::Error> {
    let mut text = String::from("# Agent servers that die, drain, stand still, come and go\n\n");
    writeln!(text, "`{}`\n", report::command().join(" "))?;
    writeln!(text, "| asked | found | |\n|---|---|---|")?;
    for Target { target, found, met } in &found.targets {
        let met = if *met { "met" } else { "**missed**" };
        writeln!(text, "| {target} | {found} | {met} |")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::resize::Step;
    use super::super::{Drained, Killed, Paused, Resized};
    use super::*;
    use crate::ledger::Totals;

    fn found() -> Found {
        let killed = |elsewhere| Killed {
            owned_elsewhere_s: elsewhere,
            agents_back_s: 31.0,
        };
        let service = |locks, elsewhere| Service {
            locks,
            agents: 5000,
            kills: vec![killed(elsewhere), killed(2.0)],
            drained: Some(Drained {
                seconds: 16.0,
                processes: 900,
                p50_ms: 30.0,
                p99_ms: 400.0,
                max_ms: 1300.0,
            }),
            paused: Paused {
                times: 50,
                owned_elsewhere_max_s: elsewhere,
                stale_effects: 0,
                fenced_by_server: 0,
                fenced_by_agents: 1,
            },
            processes: Totals {
                submitted: 9,
                succeeded: 9,
                ..Totals::default()
            },
        };
        Found {
            services: vec![service("sql", 19.0), service("zookeeper", 4.5)],
            resized: Some(Resized {
                groups: 64,
                agents: 640,
                steps: vec![Step {
                    servers: 2,
                    sessions: vec![320, 320],
                    uneven: 0.0,
                    moves: 35,
                    needed: 32,
                    seconds: 40.0,
                }],
            }),
            ..Found::default()
        }
    }

    #[test]
    fn each_target_can_be_missed() {
        let missed = |change: fn(&mut Found)| {
            let mut found = found();
            change(&mut found);
            let targets = judge(&found);
            targets.iter().filter(|target| !target.met).count()
        };
        assert_eq!(missed(|_| ()), 0);
        assert_eq!(
            missed(|found| found.services[0].kills[0].owned_elsewhere_s = 20.1),
            1
        );
        assert_eq!(
            missed(|found| found.services[1].kills[0].owned_elsewhere_s = 5.1),
            1
        );
        assert_eq!(
            missed(|found| found.services[1].kills[1].agents_back_s = 60.1),
            1
        );
        assert_eq!(
            missed(|found| found.services[0].paused.stale_effects = 1),
            1
        );
        assert_eq!(
            missed(|found| found.services[0].paused.fenced_by_agents = 0),
            1
        );
        assert_eq!(missed(|found| found.services[0].processes.lost = 1), 1);
        assert_eq!(
            missed(|found| found.services[0].processes.duplicate_effects = 1),
            1
        );
        assert_eq!(missed(|found| found.services[0].processes.succeeded = 8), 1);
        let drained = |found: &mut Found, p99_ms| {
            if let Some(drained) = &mut found.services[0].drained {
                drained.p99_ms = p99_ms;
            }
        };
        let mut slow = found();
        drained(&mut slow, 1000.1);
        assert!(judge(&slow).iter().any(|target| !target.met));
        let step = |found: &mut Found, moves, uneven| {
            let resized = found.resized.as_mut();
            let step = &mut resized.unwrap().steps[0];
            (step.moves, step.uneven) = (moves, uneven);
        };
        for (moves, uneven) in [(36, 0.0), (35, 0.11)] {
            let mut other = found();
            step(&mut other, moves, uneven);
            assert_eq!(judge(&other).iter().filter(|target| !target.met).count(), 1);
        }
    }

    #[test]
    fn the_report_has_every_target() {
        let mut found = found();
        found.targets = judge(&found);
        let text = text(&found).unwrap();
        assert_eq!(text.matches("| met |").count(), found.targets.len());
        assert!(text.contains("| sql: groups of a killed agent server owned elsewhere ≤ 20 s | 19.0 s at worst of 2 | met |"), "{text}");
    }
}
