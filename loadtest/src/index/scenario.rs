//! What runs of `scenario` say in the table: verdict and result.

use serde_json::Value;

use crate::report::grouped;

/// Of a drill.
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
}
