//! What `docs/ops` asks Prometheus for is what the server serves: names, labels and their values. The example
//! configuration is one, and the units fit it.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/apart.rs"]
mod apart;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use apart::Apart;
use deployment::{Deployment, command, eventually, said};

const DASHBOARD: &str = include_str!("../../docs/ops/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../docs/ops/alerts.yml");

const CONFIGURATION: &str = include_str!("../../docs/ops/drover.toml");
const REDUNDANT: &str = include_str!("../../docs/ops/redundant.toml");
const CONTROL: &str = include_str!("../../docs/ops/distributed-control.toml");
const PROCESS_SERVER: &str = include_str!("../../docs/ops/distributed-process-server.toml");
const API_SERVER: &str = include_str!("../../docs/ops/distributed-api-server.toml");
const AGENT_SERVER: &str = include_str!("../../docs/ops/distributed-agent-server.toml");
const EXAMPLES: [&str; 6] = [
    CONFIGURATION,
    REDUNDANT,
    CONTROL,
    PROCESS_SERVER,
    API_SERVER,
    AGENT_SERVER,
];
const PAGE: &str = include_str!("../../docs/ops/README.md");
const SERVER_UNIT: &str = include_str!("../../docs/ops/drover.service");
const TEMPLATE_UNIT: &str = include_str!("../../docs/ops/drover@.service");
const AGENT_UNIT: &str = include_str!("../../docs/ops/drover-agent.service");

/// How the words end that are said of a figure which every server has of all of them together.
const OF_ALL: &str = ", of the whole deployment.";
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

/// What a page of metrics has. No value of ours holds a quote or a brace that is not a pair.
fn labels(page: &str) -> Labels<'_> {
    let mut served = Labels::new();
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

/// Names of figures that every server has of the whole deployment, by what a page says of them.
fn of_all(page: &str) -> BTreeSet<&str> {
    let told = page.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let of_all = told.filter(|told| told.ends_with(OF_ALL));
    of_all.filter_map(|told| told.split(' ').next()).collect()
}

/// Whether an expression takes what every server has of the whole deployment for what each has of its own: it adds it
/// up, or looks at it server by server.
fn counts_again(expression: &str, of_all: &BTreeSet<&str>) -> bool {
    let asked = names(expression);
    let once = ["max(", "max by (job) ("];
    let again = ["sum", "avg", "count", "by (instance"];
    let has = |words: &[&str]| words.iter().any(|word| expression.contains(word));
    !asked.is_disjoint(of_all) && (has(&again) || !has(&once))
}

/// What the dashboard's variables ask for: their names and questions.
fn variables(dashboard: &serde_json::Value) -> Vec<(String, String)> {
    let variables = dashboard["templating"]["list"].as_array();
    let asked = variables.expect("variables").iter();
    let asked = asked.filter(|variable| variable["type"] == "query");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let told = asked.map(|variable| {
        let question = text(&variable["query"]["query"]);
        assert_eq!(question, text(&variable["definition"]));
        // Also without a single value, as in the moment of the import, everything is shown.
        assert_eq!(variable["allValue"], ".*", "{question}");
        (text(&variable["name"]), question)
    });
    told.collect()
}

/// A page must have what the dashboard finds its server by.
#[track_caller]
fn assert_is_found(page: &str) {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let served = labels(page);
    let variables = variables(&dashboard);
    let known: Vec<&str> = variables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(known, ["job", "instance"]);
    for (_, question) in &variables {
        let asked = names(question);
        assert_eq!(asked.len(), 1, "{question}");
        let is_served = |name: &&str| served.contains_key(*name);
        assert!(asked.iter().all(is_served), "{question}: {page}");
    }
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

/// A new certificate and its key, as settings of the listener `public`.
fn public_tls(dir: &Path) -> [String; 2] {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]);
    let certificate = params.expect("a name").self_signed(&key);
    let certificate = certificate.expect("a certificate").pem();
    [("certificate", certificate), ("key", key.serialize_pem())].map(|(name, pem)| {
        let file = dir.join(name);
        std::fs::write(&file, pem).expect("it can be written");
        format!("api.public.{name}={}", file.display())
    })
}

/// What a server shows that has everything there can be: a replica, agent servers to be shared with others, a lock and
/// an event service, a listener with TLS.
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
    let certificates = tempfile::tempdir().expect("a temporary directory");
    let [certificate, key] = public_tls(certificates.path());
    let settings = [
        certificate,
        key,
        "api.public.listen=127.0.0.1:0".to_owned(),
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
    let served: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split([' ', '{']).next())
        .collect();
    for (file, text) in [("dashboard", DASHBOARD), ("alerts", ALERTS)] {
        let asked = names(text);
        assert!(asked.len() > 8, "{file} asks for {asked:?}");
        assert_eq!(missing(&asked, &served), Vec::<&str>::new(), "{file}");
    }
    assert_is_found(&page);
    let (labels, of_all) = (labels(&page), of_all(&page));
    for name in ["drover_agents_connected", "drover_processes_ready"] {
        assert!(of_all.contains(name), "{of_all:?}");
    }
    let expressions = expressions();
    assert!(expressions.len() > 30, "{expressions:#?}");
    for expression in expressions {
        assert_eq!(
            wrong_labels(&expression, &labels),
            Vec::<String>::new(),
            "{expression}"
        );
        assert!(!counts_again(&expression, &of_all), "{expression}");
    }
}

/// Where servers are apart the dashboard finds each of them, also those that have no API and no store.
#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_finds_servers_of_every_profile() {
    let database = testkit::Postgres::start().await.expect("PostgreSQL");
    let store = database.database("apart").await.expect("a database");
    let apart = Box::pin(Apart::start_distributed(&store, &[])).await;
    let mut found = BTreeSet::new();
    let with_store = [&apart.control].into_iter().chain(&apart.others);
    for server in with_store.chain(&apart.agents) {
        let answer = server.asks("/metrics");
        let (head, page) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(head.contains(" 200 "), "{answer}");
        assert_is_found(page);
        let labels = labels(page);
        let profiles = labels["drover_build_info"]["profile"].iter();
        found.extend(profiles.map(|profile| (*profile).to_owned()));
        let certificate = "drover_agent_server_certificate_expiry_timestamp_seconds";
        let has = |name: &str| labels.contains_key(name);
        let has_agents = has("drover_gateway_sessions");
        assert_eq!(has(certificate), has_agents, "{}", server.name);
    }
    let profiles = ["agent-server", "api-server", "process-server"];
    assert_eq!(found, BTreeSet::from(profiles.map(str::to_owned)));
    apart.end().await;
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
}

#[test]
fn a_figure_of_the_whole_deployment_that_is_added_up_is_found() {
    let page = "# HELP drover_a Things, of the whole deployment.\n# HELP drover_b Things here.\n";
    let of_all = of_all(page);
    assert_eq!(of_all, BTreeSet::from(["drover_a"]));
    for wrong in [
        "sum(drover_a)",
        "max by (instance) (drover_a)",
        "min_over_time(drover_a[15m]) > 3",
        "sum by (job) (drover_b) < drover_a",
    ] {
        assert!(counts_again(wrong, &of_all), "{wrong}");
    }
    for right in [
        "max(drover_a{job=~\"$job\",instance=~\"$instance\"})",
        "max by (job) (min_over_time(drover_a[15m])) > 3",
        "sum by (instance) (drover_b)",
    ] {
        assert!(!counts_again(right, &of_all), "{right}");
    }
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

/// How many keys a table has, with those of the tables in it.
fn keys(table: &toml::Table) -> usize {
    let of = |value: &toml::Value| value.as_table().map_or(1, keys);
    table.values().map(of).sum()
}

#[test]
fn the_example_configuration_is_read_by_what_the_unit_starts() {
    let server = unit(SERVER_UNIT);
    let home = format!("/var/lib/{}", server["StateDirectory"]);
    for configuration in EXAMPLES {
        let output = asked(server["ExecStart"], configuration, &["--print-config"]);
        assert!(output.status.success(), "{}", said(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!printed.contains("secret@"), "{printed}");
        let written: toml::Table = configuration.parse().expect("TOML");
        let from_file = printed.matches("(drover.toml line ").count();
        assert_eq!(from_file, keys(&written), "every key counts: {printed}");
        assert_eq!(written["data_dir"].as_str(), Some(home.as_str()));
    }
    let written: toml::Table = CONFIGURATION.parse().expect("TOML");
    assert_eq!(server["WorkingDirectory"], home);
    let drain = written["drain"]["deadline"].as_str().expect("a duration");
    // What follows the drain takes 6 s at most.
    assert!(seconds(server["TimeoutStopSec"]) > seconds(drain) + 6);
}

/// What an operator finds out too late otherwise: whoever scrapes from elsewhere reaches them, and nothing renews
/// agents' certificates.
#[test]
fn the_examples_can_be_scraped_and_let_agents_certificates_live_for_a_year() {
    let mut scraped = BTreeSet::new();
    for configuration in EXAMPLES {
        let written: toml::Table = configuration.parse().expect("TOML");
        let text = |section: &str, key: &str| written.get(section)?.get(key)?.as_str();
        let profile = written.get("profile").map(toml::Value::as_str);
        let profile = profile.map_or("all", |profile| profile.expect("a text"));
        // Whoever runs process servers makes the certificates.
        let life = text("agents", "certificate_life");
        let makes = profile == "all" || profile.contains("process-server");
        assert_eq!(life, makes.then_some("8760h"), "{configuration}");
        let Some(listen) = text("admin", "listen") else {
            continue;
        };
        let listen: std::net::SocketAddr = listen.parse().expect("an address");
        assert!(!listen.ip().is_loopback(), "{configuration}");
        assert!(PAGE.contains(&format!("\"{listen}\"")), "{listen}");
        scraped.insert(profile.to_owned());
    }
    for apart in ["agent-server", "process-server", "api-server"] {
        assert!(scraped.contains(apart), "{scraped:?}");
    }
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
    // Nothing stands between them and /dev or the file system. ProtectClock does: it implies DeviceAllow, and with that
    // only the devices that are named can be opened, so no /dev/kvm, /dev/net/tun, /dev/mapper.
    for shut in ["Private", "Protect", "Device", "Inaccessible", "ReadOnly"] {
        let mut keys = agent.keys();
        assert!(!keys.any(|key| key.starts_with(shut)), "{shut}: {agent:?}");
    }
    let forbidden = agent.get("CapabilityBoundingSet");
    assert_eq!(forbidden, Some(&"~CAP_SYS_TIME CAP_WAKE_ALARM"));
    let output = asked(agent["ExecStart"], CONFIGURATION, &["--help"]);
    assert!(output.status.success(), "{}", said(&output));
}
