//! What runs of `flow` say in the table: verdict and result.

use serde_json::Value;

use crate::report::grouped;

/// Rows of the simulator or of the real server; the latter with its targets.
pub(super) fn told(rows: &Value, targets: &Value) -> (String, String) {
    let rows: Vec<&Value> = rows.as_array().into_iter().flatten().collect();
    let over = rows.iter().filter_map(|row| row["over_issue"].as_u64());
    let over: u64 = over.sum();
    let targets = targets["targets"].as_array();
    let mut verdict = match targets {
        Some(targets) => judged(targets),
        None if over == 0 => "no permit issued twice".to_owned(),
        None => String::new(),
    };
    if over > 0 {
        verdict = format!("FAILED: {over} issued beyond a limit {verdict}");
    }
    let mut said: Vec<String> = Vec::new();
    if rows.iter().any(|row| row["real"] == true) {
        said.push("real server".to_owned());
    }
    for (rule, gamma) in curves(&rows) {
        let of = |row: &&&Value| row["rule"] == rule.as_str() && row["gamma"] == gamma;
        let points = rows.iter().filter(of).filter_map(|row| {
            let goodput = 100.0 * row["goodput_ratio"].as_f64()?;
            Some(format!("{goodput:.1} % ({})", row["servers"]))
        });
        let points: Vec<String> = points.collect();
        said.push(format!("{rule} γ {gamma}: {}", points.join(" ")));
    }
    let missed = targets
        .into_iter()
        .flatten()
        .filter(|one| one["met"] == false);
    for one in missed {
        let text = |key: &str| one[key].as_str().unwrap_or("?").to_owned();
        said.push(format!("missed {}: {}", text("target"), text("found")));
    }
    (verdict.trim().to_owned(), said.join("; "))
}

/// Rules and thrash factors, each pair once, in order.
fn curves(rows: &[&Value]) -> Vec<(String, Value)> {
    let mut curves: Vec<(String, Value)> = Vec::new();
    for row in rows {
        let rule = row["rule"].as_str().unwrap_or("?").to_owned();
        let curve = (rule, row["gamma"].clone());
        if !curves.contains(&curve) {
            curves.push(curve);
        }
    }
    curves
}

fn judged(targets: &[Value]) -> String {
    let met = targets.iter().filter(|one| one["met"] == true).count();
    match targets.len() - met {
        0 => format!("{} met", targets_of(met)),
        missed => format!("{} met, {missed} MISSED", targets_of(met)),
    }
}

fn targets_of(count: usize) -> String {
    match count {
        1 => "1 target".to_owned(),
        _ => format!("{count} targets"),
    }
}

/// A run with deaths.
pub(super) fn told_deaths(found: &Value) -> (String, String) {
    let count = |key: &str| found[key].as_u64().unwrap_or(0);
    let mut verdict = match found["passed"].as_bool() {
        Some(true) => "passed".to_owned(),
        _ => "FAILED".to_owned(),
    };
    if let Some(targets) = found["targets"].as_array() {
        verdict.push_str(&format!(", {}", judged(targets)));
    }
    // Earlier runs had fewer sorts of deaths.
    let also = |key: &str, what: &str| match found[key].as_u64() {
        Some(times) => format!(", {} {what}", grouped(times)),
        None => String::new(),
    };
    let result = format!(
        "{} deaths of the server, {} of agents{}{} in {:.0} s: {} of {} processes, {} lost, {} doubled, {} failed, \
         {} permits leaked",
        count("server_deaths"),
        grouped(count("agent_deaths")),
        also("process_server_deaths", "of process servers"),
        also("server_pauses", "standstills of the server"),
        found["seconds"].as_f64().unwrap_or(0.0),
        grouped(count("succeeded")),
        grouped(count("submitted")),
        count("lost"),
        count("duplicate_effects"),
        count("failed"),
        count("leaked"),
    );
    (verdict, result)
}

/// A run in which agent servers die, drain, stand still, come and go.
pub(super) fn told_failover(found: &Value) -> (String, String) {
    let targets = found["targets"].as_array().into_iter().flatten();
    let targets: Vec<Value> = targets.cloned().collect();
    let said = targets.iter().filter_map(|one| {
        let text = format!("{}: {}", one["target"].as_str()?, one["found"].as_str()?);
        Some(match one["met"] == true {
            true => text,
            false => format!("missed {text}"),
        })
    });
    let said: Vec<String> = said.collect();
    (judged(&targets), said.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_simulator_is_told_curve_by_curve() {
        let row = |rule: &str, servers: u32, goodput: f64| {
            json!({ "rule": rule, "servers": servers, "gamma": 0.25, "goodput_ratio": goodput,
                "over_issue": if rule == "drover" { json!(0) } else { Value::Null } })
        };
        let rows = json!([
            row("drover", 4, 0.955),
            row("drover", 8, 0.945),
            row("cattle", 8, 0.704)
        ]);
        let (verdict, result) = told(&rows, &Value::Null);
        assert_eq!(verdict, "no permit issued twice");
        assert_eq!(
            result,
            "drover γ 0.25: 95.5 % (4) 94.5 % (8); cattle γ 0.25: 70.4 % (8)"
        );
    }

    #[test]
    fn the_real_server_is_told_with_what_it_missed() {
        let rows = json!([{ "rule": "drover", "servers": 1, "gamma": 0.05, "goodput_ratio": 0.96, "over_issue": 2,
            "real": true }]);
        let targets = json!({ "targets": [
            { "name": "T2", "target": "goodput ≥ 97 %", "found": "96.0 %", "met": false },
            { "name": "T3", "target": "waste ≤ 0.001", "found": "0", "met": true }] });
        let (verdict, result) = told(&rows, &targets);
        assert_eq!(
            verdict,
            "FAILED: 2 issued beyond a limit 1 target met, 1 MISSED"
        );
        assert_eq!(
            result,
            "real server; drover γ 0.05: 96.0 % (1); missed goodput ≥ 97 %: 96.0 %"
        );
    }

    #[test]
    fn deaths_are_told_with_what_they_cost() {
        let found = json!({ "server_deaths": 3, "agent_deaths": 1200, "seconds": 61.2, "submitted": 5000,
            "succeeded": 4999, "failed": 0, "lost": 1, "duplicate_effects": 0, "leaked": 0, "passed": false });
        let (verdict, result) = told_deaths(&found);
        assert_eq!(verdict, "FAILED");
        assert_eq!(
            result,
            "3 deaths of the server, 1,200 of agents in 61 s: 4,999 of 5,000 processes, 1 lost, 0 doubled, 0 failed, \
             0 permits leaked",
            "as runs were written that had two sorts of deaths"
        );
        let mut found = found;
        found["passed"] = true.into();
        found["server_pauses"] = 40.into();
        found["process_server_deaths"] = 1211.into();
        found["targets"] =
            json!([{ "name": "T7", "target": "many", "found": "5,000", "met": false }]);
        let (verdict, result) = told_deaths(&found);
        assert_eq!(verdict, "passed, 0 targets met, 1 MISSED");
        let more =
            "1,200 of agents, 1,211 of process servers, 40 standstills of the server in 61 s";
        assert!(result.contains(more), "{result}");
    }

    #[test]
    fn a_failover_is_told_target_by_target() {
        let (verdict, result) = told_failover(&json!({ "targets": [
            { "target": "sql: owned elsewhere ≤ 20 s", "found": "17.2 s", "met": true },
            { "target": "redis: owned elsewhere ≤ 5 s", "found": "6.1 s", "met": false },
        ]}));
        assert_eq!(verdict, "1 target met, 1 MISSED");
        let expected =
            "sql: owned elsewhere ≤ 20 s: 17.2 s; missed redis: owned elsewhere ≤ 5 s: 6.1 s";
        assert_eq!(result, expected);
    }
}
