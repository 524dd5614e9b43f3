//! What `docs/ops` asks Prometheus for is what the server serves.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::collections::BTreeSet;

use deployment::Deployment;

const DASHBOARD: &str = include_str!("../../docs/ops/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../docs/ops/alerts.yml");

/// Every word that begins like one of our metrics.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .filter(|word| word.starts_with("drover_"))
        .collect()
}

/// Those of `asked` that have no sample among `served`.
fn missing<'a>(asked: &BTreeSet<&'a str>, served: &BTreeSet<&str>) -> Vec<&'a str> {
    let names = asked.iter().filter(|name| !served.contains(**name));
    names.copied().collect()
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_are_served() {
    let deployment = Deployment::start();
    // Routes of the API have samples once they were asked for.
    deployment.metrics();
    let page = deployment.metrics();
    let samples: Vec<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split([' ', '{']).next())
        .collect();
    let mut served: BTreeSet<&str> = samples.into_iter().collect();
    // Has samples only once a peer was refused.
    assert!(page.contains("# TYPE drover_security_events_total counter"));
    served.insert("drover_security_events_total");
    for (file, text) in [("dashboard", DASHBOARD), ("alerts", ALERTS)] {
        let asked = names(text);
        assert!(asked.len() > 8, "{file} asks for {asked:?}");
        assert_eq!(missing(&asked, &served), Vec::<&str>::new(), "{file}");
    }
}

#[test]
fn the_dashboard_is_json_and_none_of_its_panels_is_empty() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 10);
    for panel in panels {
        let asks = panel["targets"].as_array().is_some_and(|asked| {
            let told = asked.iter().filter_map(|target| target["expr"].as_str());
            told.filter(|expression| !names(expression).is_empty())
                .count()
                == asked.len()
                && !asked.is_empty()
        });
        assert!(asks, "{}", panel["title"]);
    }
}

#[test]
fn a_metric_that_is_not_served_is_found() {
    let served = BTreeSet::from(["drover_a", "drover_b_total"]);
    let asked = names("sum(rate(drover_b_total{x=\"y\"}[5m])) > drover_c or drover_a");
    assert_eq!(missing(&asked, &served), ["drover_c"]);
}
