//! Kinds, steps, undoing, pauses and orders with the real binary, a real agent and real programs.

#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use deployment::{Deployment, eventually, said};
use serde_json::{Value, json};

/// A house is dug, built and roofed; building waits for a file, and the roof ends as it is told.
const KINDS: &str = r#"
[kinds.house]
description = "Builds a house."
fields.name = { type = "name" }
fields.log = { type = "string" }
fields.roof = { type = "integer", default = 0 }
resource = "house/${name}"
deadline = "5m"

[[kinds.house.steps]]
name = "dig"
operation = "exec"
input = { program = "sh", args = ["-c", "echo dig ${name} >> ${log}"] }
compensate = { operation = "exec", input = { program = "sh", args = ["-c", "echo fill ${name} >> ${log}"] } }

[[kinds.house.steps]]
name = "build"
operation = "exec"
input = { program = "sh", args = ["-c", "echo build >> ${log}; until [ -e ${log}.go ]; do sleep 0.1; done"] }
compensate = { operation = "exec", input = { program = "sh", args = ["-c", "echo tear down >> ${log}"] } }

[[kinds.house.steps]]
name = "roof"
operation = "exec"
input = { program = "sh", args = ["-c", "echo roof >> ${log}; exit ${roof}"] }
"#;

/// Work of the sort `build`, until a file is there.
const COMPILE: &str = r#"
[kinds.compile]
description = "Builds a program."
fields.go = { type = "string" }
deadline = "5m"

[[kinds.compile.steps]]
name = "compile"
operation = "exec"
class = "build"
input = { program = "sh", args = ["-c", "until [ -e ${go} ]; do sleep 0.1; done"] }
"#;

/// A deployment with these kinds. The folder of its configuration must live as long.
fn deployment() -> (tempfile::TempDir, Deployment) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("drover.toml");
    std::fs::write(&file, format!("{KINDS}{COMPILE}")).expect("a file");
    let deployment = Deployment::start_with(&["--config", &file.to_string_lossy()]);
    (folder, deployment)
}

fn house(deployment: &Deployment, roof: u8) -> (String, std::path::PathBuf) {
    let log = deployment.path("log");
    let input = json!({"name": "mill", "log": log, "roof": roof}).to_string();
    let words = ["processes", "create", "hv-1", "house", "--input", &input];
    let process = deployment.json(&words);
    let id = process["id"].as_str().expect("an id").to_owned();
    (id, log)
}

fn lines(log: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn until(deployment: &Deployment, id: &str, state: &str) -> Value {
    eventually(state, || deployment.process_state(id) == state);
    deployment.json(&["processes", "show", id])
}

#[test]
fn a_process_goes_on_with_its_own_plan_when_the_server_dies_and_its_kind_is_gone() {
    let (_folder, mut deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    let (id, log) = house(&deployment, 0);
    eventually("the second step", || lines(&log).len() == 2);
    deployment.server.kill();
    // This start knows of no such kind.
    deployment.start_again();
    let kinds = deployment.json(&["kinds", "list"]);
    let names: Vec<&Value> = kinds
        .as_array()
        .expect("a list")
        .iter()
        .map(|kind| &kind["name"])
        .collect();
    assert!(!names.contains(&&json!("house")), "{names:?}");
    std::fs::write(log.with_extension("go"), "").expect("a file");
    let process = until(&deployment, &id, "succeeded");
    assert_eq!(lines(&log), ["dig mill", "build", "roof"], "each once");
    assert_eq!(process["steps"][1]["state"], "done");
}

#[test]
fn what_cannot_be_finished_is_undone_and_can_be_tried_again() {
    let (_folder, deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    std::fs::write(deployment.path("log.go"), "").expect("a file");
    let (id, log) = house(&deployment, 3);
    let process = until(&deployment, &id, "failed");
    let all = ["dig mill", "build", "roof", "tear down", "fill mill"];
    assert_eq!(lines(&log), all);
    assert_eq!(process["outcome"]["exit_code"], 3);
    assert_eq!(process["steps"][0]["state"], "undone");
    let message = process["outcome"]["message"].as_str().expect("a message");
    assert!(message.ends_with("undone: steps 2, 1"), "{message}");

    let why = deployment.drover(&["processes", "why", &id]);
    assert!(said(&why).contains("try: mend the cause"), "{}", said(&why));
    deployment.json(&["processes", "retry", &id, "--reason", "it was the wind"]);
    eventually("its second end", || lines(&log).len() == 10);
    until(&deployment, &id, "failed");
    assert_eq!(lines(&log)[5..], all);
    let history = deployment.drover(&["processes", "history", &id]);
    assert!(said(&history).contains("it was the wind (started over at step 1)"));

    let refused = deployment.drover(&["processes", "replay", &id, "--step", "attic"]);
    assert!(
        said(&refused).contains("its steps are dig, build, roof"),
        "{}",
        said(&refused)
    );
    let missing = deployment.drover(&["processes", "create", "hv-1", "house"]);
    assert!(said(&missing).contains("input.log"), "{}", said(&missing));
}

#[test]
fn a_cancel_in_the_middle_undoes_what_was_done() {
    let (_folder, deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    let (id, log) = house(&deployment, 0);
    eventually("the second step", || lines(&log).len() == 2);
    deployment.json(&["processes", "cancel", &id, "--reason", "no money"]);
    let process = until(&deployment, &id, "cancelled");
    assert_eq!(lines(&log), ["dig mill", "build", "fill mill"]);
    assert_eq!(process["needs_attention"], false);
}

#[test]
fn a_paused_agent_finishes_what_runs_and_starts_nothing() {
    let (_folder, deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    let (running, log) = house(&deployment, 0);
    eventually("the second step", || lines(&log).len() == 2);
    let words = ["pauses", "add", "agent", "hv-1", "--reason", "new disks"];
    deployment.json(&words);
    let echo = ["processes", "create", "hv-1", "exec", "--", "echo", "x"];
    let waiting = deployment.json(&echo);
    let waiting = waiting["id"].as_str().expect("an id");
    until(&deployment, waiting, "paused");
    let why = said(&deployment.drover(&["processes", "why", waiting]));
    assert!(
        why.contains("new disks") && why.contains("try: drover pauses remove agent"),
        "{why}"
    );
    std::fs::write(log.with_extension("go"), "").expect("a file");
    // Its present step ends; the next one is not started.
    until(&deployment, &running, "paused");
    assert_eq!(lines(&log).len(), 2);
    let dry = [&echo[..4], &["--dry-run", "--", "echo", "x"]].concat();
    let dry = said(&deployment.drover(&dry));
    assert!(
        dry.contains("paused the agent") && dry.contains("nothing was written"),
        "{dry}"
    );
    let removed = deployment.drover(&["pauses", "remove", "agent", "hv-1"]);
    assert!(removed.status.success(), "{}", said(&removed));
    until(&deployment, waiting, "succeeded");
    until(&deployment, &running, "succeeded");
    assert_eq!(lines(&log), ["dig mill", "build", "roof"]);
}

/// `drover limits` with these words and, where there is one, a reason.
fn limits(deployment: &Deployment, words: &str, reason: Option<&str>) -> Value {
    let words = std::iter::once("limits").chain(words.split(' '));
    let reason = reason.into_iter().flat_map(|reason| ["--reason", reason]);
    deployment.json(&words.chain(reason).collect::<Vec<_>>())
}

/// Makes a process that runs until there is such a file.
fn create_until(deployment: &Deployment, go: &std::path::Path) -> String {
    let script = format!("until [ -e {} ]; do sleep 0.1; done", go.display());
    let words = "processes create hv-1 exec -- sh -c";
    let words = words.split(' ').chain([script.as_str()]);
    let process = deployment.json(&words.collect::<Vec<_>>());
    process["id"].as_str().expect("an id").to_owned()
}

/// What the command line says of why a process waits, once that contains these words.
fn why(deployment: &Deployment, id: &str, words: &str) -> String {
    let ask = || said(&deployment.drover(&["processes", "why", id]));
    eventually("the reason", || ask().contains(words));
    ask()
}

#[test]
fn a_limit_of_an_agent_holds_work_back_and_what_waits_names_it() {
    let (_folder, deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    let set = limits(&deployment, "set agent hv-1 --pin 1", Some("slow disks"));
    assert_eq!((&set["name"], &set["pin"]), (&json!("hv-1"), &json!(1)));
    let go = deployment.path("go");
    let first = create_until(&deployment, &go);
    until(&deployment, &first, "running");
    let second = create_until(&deployment, &go);
    let said = why(&deployment, &second, "1 of 1 places are taken");
    assert!(
        said.contains("slow disks") && said.contains("drover limits get agent hv-1"),
        "{said}"
    );
    let live = &limits(&deployment, "get agent hv-1", None)["live"];
    assert_eq!(
        (&live["limit"], &live["in_use"]),
        (&json!(1), &json!(1)),
        "{live}"
    );
    limits(&deployment, "set agent hv-1 --pin 3", Some("new disks"));
    until(&deployment, &second, "running");
    std::fs::write(&go, "").expect("a file");
    for id in [&first, &second] {
        until(&deployment, id, "succeeded");
    }
}

#[test]
fn a_limit_of_a_group_holds_work_back_and_what_waits_names_it() {
    let (_folder, deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    let agent = deployment.json(&["agents", "show", "hv-1"]);
    let group = agent["group"]["name"].as_str().expect("a name");
    let set = format!("set group {group} --max 1");
    limits(&deployment, &set, Some("one switch"));
    let go = deployment.path("go");
    let first = create_until(&deployment, &go);
    until(&deployment, &first, "running");
    let second = create_until(&deployment, &go);
    let reason = format!("1 of the 1 permits of group {group} are in use");
    let said = why(&deployment, &second, &reason);
    assert!(said.contains("one switch"), "{said}");
    let live = &limits(&deployment, &format!("get group {group}"), None)["live"];
    assert_eq!(
        (&live["limit"], &live["in_use"], &live["parked_lines"]),
        (&json!(1), &json!(1), &json!(1)),
        "{live}"
    );
    let listed = limits(&deployment, "ls", None);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    let remove = format!("rm group {group}");
    limits(&deployment, &remove, Some("two switches"));
    until(&deployment, &second, "running");
    std::fs::write(&go, "").expect("a file");
    for id in [&first, &second] {
        until(&deployment, id, "succeeded");
    }
}

#[test]
fn a_limit_outlives_the_server_and_zero_stops_what_it_counts() {
    let (_folder, mut deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    let words = [
        "limits",
        "set",
        "agent",
        "hv-1",
        "--max",
        "0",
        "--reason",
        "the array is down",
    ];
    let set = deployment.json(&words);
    assert!(
        set["warnings"][0]
            .as_str()
            .is_some_and(|text| text.contains("nothing new")),
        "{set}"
    );
    deployment.server.kill();
    deployment.start_again();
    let echo = ["processes", "create", "hv-1", "exec", "--", "echo", "x"];
    let id = deployment.json(&echo);
    let id = id["id"].as_str().expect("an id");
    eventually("the reason", || {
        said(&deployment.drover(&["processes", "why", id])).contains("the agent's limit is 0")
    });
    let refused = deployment.drover(&[
        "limits", "set", "agent", "hv-1", "--min", "3", "--max", "2", "--reason", "x",
    ]);
    assert!(
        !refused.status.success() && said(&refused).contains("above `max`"),
        "{}",
        said(&refused)
    );
    let removed = deployment.drover(&["limits", "rm", "agent", "hv-1"]);
    assert!(removed.status.success(), "{}", said(&removed));
    until(&deployment, id, "succeeded");
}

#[test]
fn a_sort_of_work_has_a_limit_of_its_own_and_other_work_goes_past_it() {
    let (_folder, deployment) = deployment();
    let _agent = deployment.agent("hv-1");
    let limits = |words: &[&str]| deployment.json(&[&["limits"], words].concat());
    limits(&[
        "set",
        "agent",
        "hv-1",
        "--pin",
        "3",
        "--reason",
        "new disks",
    ]);
    limits(&[
        "set",
        "work",
        "build",
        "--max",
        "1",
        "--reason",
        "builds are heavy",
    ]);
    let go = deployment.path("go");
    let input = json!({ "go": go }).to_string();
    let create = || {
        let words = ["processes", "create", "hv-1", "compile", "--input", &input];
        let process = deployment.json(&words);
        process["id"].as_str().expect("an id").to_owned()
    };
    let first = create();
    until(&deployment, &first, "running");
    let second = create();
    eventually("the reason", || {
        let why = said(&deployment.drover(&["processes", "why", &second]));
        why.contains("1 of the 1 permits of work build are in use")
            && why.contains("builds are heavy")
    });
    let live = &limits(&["get", "agent", "hv-1"])["live"];
    let parked = &live["lines"][0]["parked"];
    assert_eq!(
        (&parked["scope"], &parked["key"]),
        (&json!("work"), &json!("build")),
        "{live}"
    );
    assert_eq!(live["lines"][0]["kind"], "compile.compile");
    let echo = deployment.json(&["processes", "create", "hv-1", "exec", "--", "echo", "x"]);
    until(
        &deployment,
        echo["id"].as_str().expect("an id"),
        "succeeded",
    );
    assert_eq!(deployment.process_state(&second), "ready");
    std::fs::write(&go, "").expect("a file");
    for id in [&first, &second] {
        until(&deployment, id, "succeeded");
    }
}
