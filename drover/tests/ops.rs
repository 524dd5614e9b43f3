//! What `docs/ops` asks Prometheus for is what the server serves: names, labels and their values. The example
//! configuration is one, and the units fit it.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::collections::{BTreeMap, BTreeSet};

use deployment::{Deployment, command, eventually, said};

const DASHBOARD: &str = include_str!("../../docs/ops/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../docs/ops/alerts.yml");

const CONFIGURATION: &str = include_str!("../../docs/ops/drover.toml");
const REDUNDANT: &str = include_str!("../../docs/ops/redundant.toml");
const CONTROL: &str = include_str!("../../docs/ops/distributed-control.toml");
const PROCESS_SERVER: &str = include_str!("../../docs/ops/distributed-process-server.toml");
const API_SERVER: &str = include_str!("../../docs/ops/distributed-api-server.toml");
const AGENT_SERVER: &str = include_str!("../../docs/ops/distributed-agent-server.toml");
const SERVER_UNIT: &str = include_str!("../../docs/ops/drover.service");
const TEMPLATE_UNIT: &str = include_str!("../../docs/ops/drover@.service");
const AGENT_UNIT: &str = include_str!("../../docs/ops/drover-agent.service");

/// Has samples only once a peer was refused.
const REFUSALS: &str = "drover_security_events_total";
/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["job", "instance"];

/// The values of every label, by metric.
type Labels<'a> = BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<&'a str>>>;

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

/// What a page of metrics has. No value of ours holds a quote, a comma or a brace that is not a pair.
fn labels(page: &str) -> Labels<'_> {
    let mut served = Labels::from([(REFUSALS, BTreeMap::from([("kind", BTreeSet::new())]))]);
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (sample, _) = line.rsplit_once(' ').expect("a sample has a value");
        let (name, told) = sample.split_once('{').unwrap_or((sample, ""));
        let known = served.entry(name).or_default();
        for (label, value) in pairs(told.strip_suffix('}').unwrap_or(told)) {
            known.entry(label).or_default().insert(value);
        }
    }
    served
}

/// `a="x",b=~"y"` as names and values.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = text.split("\",").filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('"').expect("a value has quotes");
        let name = name.trim_end_matches(['=', '~', '!']);
        (name, value.strip_suffix('"').unwrap_or(value))
    })
}

/// What an expression says of labels that the server does not have.
fn wrong_labels(expression: &str, served: &Labels<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, _) in expression.match_indices("drover_") {
        let rest = &expression[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
        let empty = BTreeMap::new();
        let known = served.get(name).unwrap_or(&empty);
        let selector = after
            .strip_prefix('{')
            .and_then(|rest| rest.split_once('}'));
        for (label, wanted) in pairs(selector.map_or("", |(selector, _)| selector)) {
            let values = known.get(label);
            let exists = |value| values.is_some_and(|values| values.contains(value));
            let fits = wanted.contains('$') || wanted.split('|').all(exists);
            let is_served = fits && values.is_some();
            if !is_served && !ADDED.contains(&label) {
                wrong.push(format!("{name}: {label}={wanted}"));
            }
        }
        let grouped = expression.split("by (").skip(1);
        for label in grouped.flat_map(|by| by.split(')').next().unwrap_or("").split(", ")) {
            if !ADDED.contains(&label) && !known.contains_key(label) {
                wrong.push(format!("{name} by {label}"));
            }
        }
    }
    wrong
}

/// Every expression of both files.
fn expressions() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let asked = targets
        .flatten()
        .filter_map(|target| target["expr"].as_str());
    let alerts = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    asked.chain(alerts).map(str::to_owned).collect()
}

/// What a server shows that has everything there can be: a replica, agent servers to be shared with others, a lock and
/// an event service.
fn page_of_everything() -> String {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().expect("a runtime");
    let postgres = runtime.block_on(testkit::Postgres::start());
    let postgres = postgres.unwrap_or_else(|error| panic!("{error}"));
    let replica = runtime.block_on(postgres.replica());
    let replica = replica.unwrap_or_else(|error| panic!("{error}"));
    let store = runtime.block_on(postgres.database("drover"));
    let store = store.unwrap_or_else(|error| panic!("{error}"));
    let link = testkit::loopback(&testkit::free_ports(1).expect("a free port"));
    let settings = [
        format!("store={store}"),
        format!("store_read_urls={}", replica.url_like(&store)),
        format!("link.listen={link}"),
        format!("link.connect={link}"),
        "locks.url=local:".to_owned(),
        "events.url=sql:".to_owned(),
    ];
    let flags = settings.iter().flat_map(|setting| ["--set", setting]);
    let deployment = Deployment::start_with(&flags.collect::<Vec<_>>());
    let mut page = String::new();
    eventually("a replica that is young enough", || {
        page = deployment.metrics();
        page.contains("drover_replica_age_milliseconds{")
    });
    page
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_are_served() {
    let deployment = Deployment::start();
    // Routes of the API have samples once they were asked for.
    deployment.metrics();
    let page = format!("{}{}", deployment.metrics(), page_of_everything());
    let samples: Vec<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split([' ', '{']).next())
        .collect();
    let mut served: BTreeSet<&str> = samples.into_iter().collect();
    assert!(page.contains(&format!("# TYPE {REFUSALS} counter")));
    served.insert(REFUSALS);
    for (file, text) in [("dashboard", DASHBOARD), ("alerts", ALERTS)] {
        let asked = names(text);
        assert!(asked.len() > 8, "{file} asks for {asked:?}");
        assert_eq!(missing(&asked, &served), Vec::<&str>::new(), "{file}");
    }
    let labels = labels(&page);
    let expressions = expressions();
    assert!(expressions.len() > 30, "{expressions:#?}");
    for expression in expressions {
        assert_eq!(
            wrong_labels(&expression, &labels),
            Vec::<String>::new(),
            "{expression}"
        );
    }
}

/// What an alert says of its labels is what its expression leaves of them.
#[test]
fn alerts_speak_of_labels_that_they_have() {
    let mut alerts = 0;
    for alert in ALERTS.split("- alert: ").skip(1) {
        alerts += 1;
        let expression = alert
            .lines()
            .find_map(|line| line.trim().strip_prefix("expr: "));
        let expression = expression.expect("an alert has an expression");
        let by = expression
            .split("by (")
            .nth(1)
            .and_then(|by| by.split(')').next());
        // Without a grouping all labels stay.
        let kept = by.unwrap_or("job, instance");
        for spoken in alert.split("$labels.").skip(1) {
            let end = spoken
                .find(|c: char| !c.is_ascii_alphanumeric())
                .expect("an end");
            assert!(
                kept.split(", ").any(|label| label == &spoken[..end]),
                "{alert}"
            );
        }
        for part in ["labels: {severity: ", "summary: ", "action: "] {
            assert!(alert.contains(part), "{part}: {alert}");
        }
    }
    assert!(alerts > 10);
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

#[test]
fn a_label_that_is_not_served_is_found() {
    let page =
        "# TYPE drover_a counter\ndrover_a{x=\"1\",y=\"GET /{id}\"} 3\ndrover_a{x=\"2\"} 4\n";
    let served = labels(page);
    let wrong = |expression: &str| wrong_labels(expression, &served);
    let none = Vec::<String>::new();
    assert_eq!(
        wrong("sum by (instance, x) (rate(drover_a{job=~\"$job\",x=~\"1|2\"}[5m]))"),
        none
    );
    assert_eq!(wrong("drover_a{x=\"3\"}"), ["drover_a: x=3"]);
    assert_eq!(
        wrong("drover_a{x=~\"1|3\",z=\"1\"}"),
        ["drover_a: x=1|3", "drover_a: z=1"]
    );
    assert_eq!(wrong("sum by (z) (drover_a)"), ["drover_a by z"]);
    assert_eq!(wrong("sum by (kind) (drover_security_events_total)"), none);
}

/// `Key=value` of a unit; a key that stands there twice is a mistake here.
fn unit(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with(['#', '[']));
    let mut keys = BTreeMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=').expect("a line is Key=value");
        assert_eq!(keys.insert(key, value), None, "{key} stands there twice");
    }
    keys
}

/// `20s`
fn seconds(text: &str) -> u64 {
    let number = text.strip_suffix('s').expect("seconds");
    number.parse().expect("a whole number")
}

/// What a program of a unit's says to being asked what it would do with a configuration.
fn asked(start: &str, configuration: &str, more: &[&str]) -> std::process::Output {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut words = start.split(' ');
    assert_eq!(words.next(), Some("/usr/local/bin/drover"), "{start}");
    std::fs::write(directory.path().join("drover.toml"), configuration).expect("it is ours");
    let here = |word: &str| word.replace("/etc/drover/drover.toml", "drover.toml");
    let mut program = command(directory.path());
    program.args(words.map(here)).args(more);
    program.output().expect("drover runs")
}

#[test]
fn the_example_configuration_is_read_by_what_the_unit_starts() {
    let server = unit(SERVER_UNIT);
    let home = format!("/var/lib/{}", server["StateDirectory"]);
    for configuration in [
        CONFIGURATION,
        REDUNDANT,
        CONTROL,
        PROCESS_SERVER,
        API_SERVER,
        AGENT_SERVER,
    ] {
        let output = asked(server["ExecStart"], configuration, &["--print-config"]);
        assert!(output.status.success(), "{}", said(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!printed.contains("secret@"), "{printed}");
        let written: toml::Table = configuration.parse().expect("TOML");
        let mut keys = 0;
        for (key, value) in &written {
            keys += value.as_table().map_or(1, toml::Table::len);
            assert!(printed.contains(key.as_str()), "{key}");
        }
        let from_file = printed.matches("(drover.toml line ").count();
        assert_eq!(from_file, keys, "every key counts: {printed}");
        assert_eq!(written["data_dir"].as_str(), Some(home.as_str()));
    }
    let written: toml::Table = CONFIGURATION.parse().expect("TOML");
    assert_eq!(server["WorkingDirectory"], home);
    let drain = written["drain"]["deadline"].as_str().expect("a duration");
    // What follows the drain takes 6 s at most.
    assert!(seconds(server["TimeoutStopSec"]) > seconds(drain) + 6);
}

#[test]
fn the_unit_of_several_servers_on_a_machine_is_that_of_one_with_a_name() {
    let named = |value: &str| {
        value
            .replace("server %i", "server")
            .replace("/%i.toml", "/drover.toml")
            .replace("/%i", "")
    };
    let template = unit(TEMPLATE_UNIT).into_iter();
    let template: BTreeMap<&str, String> =
        template.map(|(key, value)| (key, named(value))).collect();
    let one = unit(SERVER_UNIT).into_iter();
    let one: BTreeMap<&str, String> = one.map(|(key, value)| (key, value.to_owned())).collect();
    assert_eq!(template, one);
    for key in ["ExecStart", "StateDirectory", "WorkingDirectory"] {
        assert!(unit(TEMPLATE_UNIT)[key].contains("%i"), "{key}");
    }
}

#[test]
fn the_units_give_what_the_programs_need_and_no_more() {
    let server = unit(SERVER_UNIT);
    let files: u64 = server["LimitNOFILE"].parse().expect("a number");
    assert!(files > 4 * control::api::ApiConfig::default().connections());
    // @system-service has io_uring and the pinning of threads.
    assert_eq!(server["SystemCallFilter"], "@system-service");
    let families: Vec<&str> = server["RestrictAddressFamilies"].split(' ').collect();
    assert!(families.starts_with(&["AF_INET", "AF_INET6"]));
    for (key, value) in [
        ("User", "drover"),
        // 256 KiB for each of 64 shards, and as much for a doctor beside them.
        ("LimitMEMLOCK", "64M"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
        ("LimitCORE", "0"),
        ("Restart", "always"),
        ("RestartPreventExitStatus", "2"),
        ("StateDirectoryMode", "0700"),
    ] {
        assert_eq!(server.get(key), Some(&value), "{key}");
    }

    let agent = unit(AGENT_UNIT);
    let state = format!("/var/lib/{}", agent["StateDirectory"]);
    assert!(agent["ExecStart"].ends_with(&format!("--state-dir {state}")));
    assert_eq!(
        agent["ConditionPathExists"],
        format!("{state}/identity.json")
    );
    // Its programs have 30 s after SIGTERM, and may do whatever the machine lets them.
    assert_eq!(agent["KillMode"], "mixed");
    assert!(seconds(agent["TimeoutStopSec"]) > 30);
    assert!(!agent.contains_key("NoNewPrivileges") && !agent.contains_key("SystemCallFilter"));
    let output = asked(agent["ExecStart"], CONFIGURATION, &["--help"]);
    assert!(output.status.success(), "{}", said(&output));
}
