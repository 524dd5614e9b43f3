//! What a scenario found, as people read it.

use super::Account;
use super::drill::Drilled;
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

#[cfg(test)]
mod tests {
    use super::super::drill::tests::drilled;
    use super::*;

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
