//! Several process servers in the real binary, of which one hangs or any of them die again and again: the
//! others go on, the API does, and every process is done once.

#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::collections::BTreeMap;
use std::path::PathBuf;

use deployment::{Deployment, Running, eventually};
use serde_json::{Value, json};

/// What it does is written down.
const CONFIG: &str = r#"
process_servers = 3

[kinds.note]
description = "Notes that it was done."
fields.log = { type = "string" }
fields.name = { type = "string" }
deadline = "5m"

[[kinds.note.steps]]
name = "note"
operation = "exec"
input = { program = "sh", args = ["-c", "sleep 0.2; echo ${name} >> ${log}"] }
"#;

struct House {
    deployment: Deployment,
    _agents: [Running; 2],
    log: PathBuf,
    /// Of all processes, with what each writes down.
    made: BTreeMap<String, String>,
    _folder: tempfile::TempDir,
}

impl House {
    /// With this fault.
    fn new(fault: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("drover.toml");
        std::fs::write(&file, CONFIG).expect("a file");
        let flags = ["--config", &file.to_string_lossy(), "--set", fault];
        let deployment = Deployment::start_with(&flags);
        Self {
            _agents: ["hv-1", "hv-2"].map(|name| deployment.agent(name)),
            log: deployment.path("log"),
            deployment,
            made: BTreeMap::new(),
            _folder: folder,
        }
    }

    /// Makes a process as a careful client does: with the same key until there is an answer.
    fn create(&mut self) {
        let number = self.made.len();
        let (name, agent) = (format!("n{number}"), ["hv-1", "hv-2"][number % 2]);
        let input = json!({"log": self.log, "name": name}).to_string();
        let words = ["--output", "json", "processes", "create", agent, "note"];
        let more = ["--input", &input, "--idempotency-key", &name];
        let mut id = None;
        eventually("an answer", || {
            let output = self.deployment.drover(&[&words[..], &more].concat());
            let process: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            id = process["id"].as_str().map(str::to_owned);
            id.is_some()
        });
        self.made.insert(id.expect("an id"), name);
    }

    fn deaths(&self, how: &str) -> f64 {
        let name = format!("drover_process_server_deaths_total{{how=\"{how}\"}}");
        let page = self.deployment.metrics();
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.and_then(|count| count.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {name} in\n{page}"))
    }

    /// All have succeeded, and each was done once.
    fn check(&self) {
        for id in self.made.keys() {
            eventually("its success", || {
                self.deployment.process_state(id) == "succeeded"
            });
        }
        let text = std::fs::read_to_string(&self.log).expect("they have written");
        let mut done: Vec<&str> = text.lines().collect();
        let mut expected: Vec<&str> = self.made.values().map(String::as_str).collect();
        done.sort_unstable();
        expected.sort_unstable();
        assert_eq!(done, expected);
    }
}

#[test]
fn one_that_hangs_is_cut_off_and_the_others_finish_its_work() {
    let mut house = House::new("faults.process_server_hangs_after=3s");
    while house.deaths("cut_off") == 0.0 {
        house.create();
    }
    eventually("another one in its place", || {
        house.create();
        let log = std::fs::read_to_string(house.deployment.path("server.log"));
        let log = log.expect("the server's log");
        log.contains("a process server has taken its place")
            && house.deployment.metric("drover_process_servers") == 3.0
    });
    house.check();
    assert_eq!((house.deaths("cut_off"), house.deaths("ended")), (1.0, 0.0));
}

#[test]
fn whichever_die_all_processes_are_done_once_and_others_take_their_place() {
    let mut house = House::new("faults.process_servers_die_every=2s");
    // More than there were at the beginning, so those in their place die as well.
    while house.deaths("ended") < 5.0 {
        house.create();
    }
    house.check();
    assert_eq!(house.deaths("cut_off"), 0.0);
}
