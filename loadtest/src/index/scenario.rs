//! What runs of `scenario` say in the table: verdict and result.

use serde_json::Value;

use crate::report::grouped;

/// Of a drill, an outage or a growth.
pub(super) fn told(found: &Value) -> (String, String) {
    let count = |path: &str| found.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let verdict = match found["passed"].as_bool() {
        Some(true) => "passed".to_owned(),
        _ => {
            let violations = found["violations"].as_array().into_iter().flatten();
            let violations: Vec<_> = violations.filter_map(Value::as_str).collect();
            format!("FAILED: {}", violations.join("; "))
        }
    };
    let mut said = vec![format!(
        "{}, {} agents",
        found["site"].as_str().unwrap_or("?"),
        grouped(count("/agents"))
    )];
    said.extend(happened(found));
    said.push(format!(
        "{} of {} processes, {} lost, {} doubled, {} failed, {} permits leaked",
        grouped(count("/processes/succeeded")),
        grouped(count("/processes/submitted")),
        count("/processes/lost"),
        count("/duplicate_effects"),
        count("/processes/failed"),
        count("/leaked"),
    ));
    (verdict, said.join(", "))
}

/// What was done to the deployment.
fn happened(found: &Value) -> Vec<String> {
    let deaths = found["deaths"].as_object().into_iter().flatten();
    let mut said: Vec<String> = deaths
        .map(|(profile, count)| format!("{count} deaths of {profile}"))
        .collect();
    if let Some(agents) = found["agent_deaths"].as_u64() {
        said.push(format!("{} of agents", grouped(agents)));
    }
    if let Some(service) = found["service"].as_str() {
        let number = |key: &str| found[key].as_f64();
        let normal = match number("normal_s") {
            Some(normal) => format!("normal {normal:.0} s later"),
            None => "NEVER normal again".to_owned(),
        };
        said.push(format!(
            "the {service} {} for {:.0} s, {normal}, {} sessions lost",
            found["how"].as_str().unwrap_or("is gone"),
            number("outage_s").unwrap_or(0.0),
            found["sessions_lost"].as_u64().unwrap_or(0),
        ));
    }
    if let Some(downtime) = found["downtime"].as_object() {
        let time = |key: &str| downtime.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        said.push(format!(
            "grown of one process with {} processes in hand: store copied after {:.1} s, work goes on after {:.1} s, \
             all agents back after {:.1} s, {} joined anew",
            found["in_hand"].as_u64().unwrap_or(0),
            time("copied_s"),
            time("working_s"),
            time("agents_back_s"),
            found["strangers"].as_u64().unwrap_or(0),
        ));
    }
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_drill_is_told_with_its_deaths_and_its_account() {
        let mut found = json!({ "scenario": "drill", "site": "distributed", "agents": 500,
            "deaths": { "agent-server": 2, "api-server": 3 }, "agent_deaths": 100,
            "processes": { "submitted": 5000, "succeeded": 4999, "failed": 0, "lost": 1 },
            "duplicate_effects": 0, "leaked": 0, "passed": false, "violations": ["1 processes lost"] });
        let (verdict, result) = told(&found);
        assert_eq!(verdict, "FAILED: 1 processes lost");
        assert_eq!(
            result,
            "distributed, 500 agents, 2 deaths of agent-server, 3 deaths of api-server, 100 of agents, \
             4,999 of 5,000 processes, 1 lost, 0 doubled, 0 failed, 0 permits leaked"
        );
        found["passed"] = true.into();
        assert_eq!(told(&found).0, "passed");
    }

    #[test]
    fn a_growth_is_told_with_its_downtime() {
        let found = json!({ "scenario": "grow", "site": "control", "agents": 1000, "in_hand": 98, "strangers": 0,
            "downtime": { "copied_s": 2.04, "working_s": 6.5, "agents_back_s": 19.96 }, "passed": true,
            "processes": { "submitted": 9, "succeeded": 9, "failed": 0, "lost": 0 } });
        let expected = "control, 1,000 agents, grown of one process with 98 processes in hand: store copied after 2.0 s, \
                        work goes on after 6.5 s, all agents back after 20.0 s, 0 joined anew, 9 of 9 processes";
        let (_, result) = told(&found);
        assert!(result.starts_with(expected), "{result}");
    }

    #[test]
    fn an_outage_is_told_with_how_soon_it_was_over() {
        let mut found = json!({ "scenario": "outage", "site": "control", "agents": 40, "service": "store", "how": "dies",
            "outage_s": 300.2, "normal_s": 15.0, "sessions_lost": 0, "passed": true,
            "processes": { "submitted": 9, "succeeded": 9, "failed": 0, "lost": 0 } });
        let what = "control, 40 agents, the store dies for 300 s, ";
        let (_, result) = told(&found);
        let expected = format!("{what}normal 15 s later, 0 sessions lost, 9 of 9 processes");
        assert!(result.starts_with(&expected), "{result}");
        found["normal_s"] = Value::Null;
        let (_, result) = told(&found);
        assert!(
            result.starts_with(&format!("{what}NEVER normal again")),
            "{result}"
        );
    }
}
