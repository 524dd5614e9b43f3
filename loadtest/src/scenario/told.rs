//! What a scenario found, as people read it.

use super::Account;
use std::time::Duration;

use super::drill::Drilled;
use super::grow::Grew;
use super::outage::OutageFound;
use crate::report::grouped;

/// Lines of a table: what, and how much.
pub(super) type Table = Vec<(String, String)>;

/// Prints a table, and what did not hold.
pub(super) fn print(table: &Table, violations: &[String], examples: &[serde_json::Value]) {
    for (what, value) in table {
        println!("{what:<58} {value:>14}");
    }
    for violation in violations {
        println!("FAILED: {violation}");
    }
    for example in examples {
        println!("failed or not ended: {example}");
    }
}

fn line(what: &str, value: impl ToString) -> (String, String) {
    (what.to_owned(), value.to_string())
}

pub(super) fn verdict(passed: bool) -> (String, String) {
    line("verdict", if passed { "passed" } else { "FAILED" })
}

/// A time in whole seconds and a tenth.
pub(super) fn seconds(what: &str, seconds: f64) -> (String, String) {
    line(what, format!("{seconds:.1}"))
}

/// A count.
pub(super) fn count(what: &str, count: u64) -> (String, String) {
    line(what, grouped(count))
}

/// The lines that all scenarios have.
pub(super) fn account(account: &Account) -> Table {
    vec![
        count("processes accepted", account.processes.submitted),
        count("succeeded", account.processes.succeeded),
        count("failed", account.processes.failed),
        count("refused", account.refused),
        count("lost", account.processes.lost),
        count("effects beyond the first", account.duplicate_effects),
        count(
            "permits and active operations counted when nothing was",
            account.leaked,
        ),
        count("processes in the store", account.store.stored),
        count("of these never accepted", account.store.unasked),
        count("accepted and not in the store", account.store.missing),
        count("ended otherwise than told", account.store.otherwise),
        count("agents that did not come back", account.missing as u64),
    ]
}

pub(super) fn drill(found: &Drilled) -> Table {
    let mut table = vec![verdict(found.passed), line("site", found.site)];
    table.push(count("agents", found.agents as u64));
    for (profile, deaths) in &found.deaths {
        let what = format!("deaths of processes, {profile}");
        table.push((what, deaths.to_string()));
    }
    table.push(count("standstills", found.standstills.into()));
    table.push(count("deaths of agents", found.agent_deaths as u64));
    table.extend(account(&found.account));
    table.push(seconds("seconds, all in all", found.seconds));
    table.push(seconds(
        "seconds from the last death to the end",
        found.settled_s,
    ));
    let reconnect = found.reconnect_ms.p99 / 1e3;
    table.push(seconds("seconds until an agent was back, p99", reconnect));
    table
}

pub(super) fn outage(found: &OutageFound) -> Table {
    let what = format!("seconds for which the {} {}", found.service, found.how);
    let p99 = |micros: u64| Duration::from_micros(micros).as_secs_f64();
    let mut table = vec![
        verdict(found.passed),
        line("site", found.site),
        seconds(&what, found.outage_s),
        count("agents", found.agents as u64),
        count("sessions lost", found.sessions_lost),
    ];
    table.extend(account(&found.account));
    table.push(match found.normal_s {
        Some(normal) => seconds("seconds until all was normal again", normal),
        None => line("seconds until all was normal again", "never"),
    });
    let after = found.after_us.map(|after| after.p99);
    for (what, micros) in [
        (
            "p99 of what was over before, seconds",
            Some(found.before_us.p99),
        ),
        (
            "p99 of what was due meanwhile",
            Some(found.meanwhile_us.p99),
        ),
        ("p99 of what was due after that", after),
    ] {
        let value = micros.map(|micros| format!("{:.2}", p99(micros)));
        table.push(line(what, value.unwrap_or_else(|| "-".to_owned())));
    }
    table
}

pub(super) fn grow(found: &Grew) -> Table {
    let mut table = vec![
        verdict(found.passed),
        line("one process on SQLite became", found.site),
        count("agents", found.agents as u64),
        count("of these known by their old id", found.agents_known as u64),
        count("agents that joined anew", found.strangers as u64),
        count(
            "processes in hand when it was stopped",
            found.in_hand as u64,
        ),
    ];
    table.extend(account(&found.account));
    let times = &found.downtime;
    for (what, time) in [
        (
            "restart to tell the new addresses: all agents back, s",
            found.announced_s,
        ),
        ("downtime: stopped after, seconds", times.stopped_s),
        ("store copied and compared after", times.copied_s),
        ("all processes ready after", times.started_s),
        ("the first process ended after", times.working_s),
        ("all agents back after", times.agents_back_s),
    ] {
        table.push(seconds(what, time));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::drill::tests::drilled;
    use super::*;

    #[test]
    fn an_outage_is_told_with_what_it_cost_and_how_soon_it_was_over() {
        let found = super::super::outage::tests::found();
        let table = outage(&found);
        for line in [
            ("seconds for which the store dies", "300.0"),
            ("sessions lost", "0"),
            ("seconds until all was normal again", "15.0"),
            ("p99 of what was over before, seconds", "0.15"),
            ("p99 of what was due meanwhile", "300.00"),
        ] {
            let line = (line.0.to_owned(), line.1.to_owned());
            assert!(table.contains(&line), "{line:?} is not in {table:?}");
        }
        let never = OutageFound {
            normal_s: None,
            after_us: None,
            ..found
        };
        let line = ("seconds until all was normal again", "never");
        let line = (line.0.to_owned(), line.1.to_owned());
        assert!(outage(&never).contains(&line));
    }

    #[test]
    fn growth_is_told_with_its_downtime() {
        let table = grow(&super::super::grow::tests::grew());
        for (what, value) in [
            ("one process on SQLite became", "distributed"),
            ("agents that joined anew", "0"),
            ("store copied and compared after", "3.0"),
            ("all agents back after", "21.0"),
        ] {
            let line = (what.to_owned(), value.to_owned());
            assert!(table.contains(&line), "{line:?} is not in {table:?}");
        }
    }

    #[test]
    fn a_drill_is_told_with_every_kind_of_death_and_its_account() {
        let table = drill(&drilled());
        let value = |what: &str| {
            let line = table.iter().find(|(name, _)| name == what);
            line.map(|(_, value)| value.as_str())
        };
        assert_eq!(value("verdict"), Some("passed"));
        assert_eq!(value("deaths of processes, api-server"), Some("2"));
        assert_eq!(value("processes accepted"), Some("5,000"));
        assert_eq!(value("lost"), Some("0"));
        let failed = Drilled {
            passed: false,
            ..drilled()
        };
        assert_eq!(drill(&failed)[0].1, "FAILED");
    }
}
