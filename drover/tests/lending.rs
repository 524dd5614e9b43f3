//! Limits that span homes, with the real binary on two shards, two agents in groups of different shards,
//! and real programs: what one agent uses, the other one waits for.

#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::path::PathBuf;
use std::time::Duration;

use deployment::{Deployment, Running, eventually};
use rustix::process::Signal;
use serde_json::json;

/// What it does is written down, and its end waits for a file where one is named.
const CONFIG: &str = r#"
[kinds.copy]
description = "Copies from a storage pool."
fields.log = { type = "string" }
fields.until = { type = "string", default = "/" }
deadline = "5m"

[[kinds.copy.steps]]
name = "copy"
operation = "exec"
input = { program = "sh", args = ["-c", "echo begin >> ${log}; sleep 0.3; until [ -e ${until} ]; do sleep 0.1; done; echo end >> ${log}"] }
resources = ["pool/fast"]
"#;

struct House {
    deployment: Deployment,
    agents: Vec<Running>,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With more flags.
    fn with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("drover.toml");
        std::fs::write(&file, CONFIG).expect("a file");
        let file = file.to_string_lossy();
        let deployment = Deployment::start_with(&[&["--config", &file], more].concat());
        let agents = ["hv-1", "hv-2"].map(|name| deployment.agent(name));
        let slots = ["hv-1", "hv-2"].map(|name| {
            let agent = deployment.json(&["agents", "show", name]);
            let group = &agent["group"]["name"];
            let groups = deployment.json(&["groups", "list"]);
            let groups = groups.as_array().expect("a list");
            let of = groups.iter().find(|one| &one["name"] == group);
            of.expect("its group")["slot"].as_u64().expect("a slot")
        });
        assert_ne!(slots[0] % 2, slots[1] % 2, "two home shards: {slots:?}");
        Self {
            log: deployment.path("log"),
            deployment,
            agents: agents.into(),
            _folder: folder,
        }
    }

    fn set_limit(&self, scope: &str, key: &str) {
        let words = ["limits", "set", scope, key, "--max", "1"];
        let reason = ["--reason", "one at a time"];
        self.deployment.json(&[&words[..], &reason].concat());
    }

    fn create(&self, agent: &str, until: Option<&PathBuf>) -> String {
        let mut input = json!({"log": self.log});
        if let Some(until) = until {
            input["until"] = json!(until);
        }
        let input = input.to_string();
        let process = self.deployment.json(&[
            "processes",
            "create",
            agent,
            "copy",
            "--tenant",
            "acme",
            "--input",
            &input,
        ]);
        process["id"].as_str().expect("an id").to_owned()
    }

    fn until(&self, id: &str, state: &str) {
        eventually(state, || self.deployment.process_state(id) == state);
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn one_at_a_time(house: &House, scope: &str, key: &str) {
    house.set_limit(scope, key);
    let ids: Vec<String> = (0..3)
        .flat_map(|_| ["hv-1", "hv-2"].map(|agent| house.create(agent, None)))
        .collect();
    for id in &ids {
        house.until(id, "succeeded");
    }
    assert_eq!(house.lines(), ["begin", "end"].repeat(ids.len()));
}

#[test]
fn a_pool_is_used_by_one_at_a_time_on_whatever_agent() {
    one_at_a_time(&House::new(), "resource", "pool/fast");
}

#[test]
fn a_tenant_has_one_process_at_a_time_on_whatever_agent() {
    one_at_a_time(&House::new(), "tenant", "acme");
}

/// One of the process servers lends for all, and what each has claimed counts.
#[test]
fn a_tenant_has_one_process_at_a_time_whichever_process_server_starts_it() {
    let house = House::with(&["--set", "process_servers=3"]);
    eventually("three process servers", || {
        house.deployment.metric("drover_process_servers") == 3.0
    });
    one_at_a_time(&house, "tenant", "acme");
}

/// Whoever lends may be the one that dies.
#[test]
fn a_tenant_has_one_process_at_a_time_while_process_servers_die() {
    let dying = ["--set", "faults.process_servers_die_every=3s"];
    let house = House::with(&[&["--set", "process_servers=3"], &dying[..]].concat());
    one_at_a_time(&house, "tenant", "acme");
}

/// The agent that uses the pool is out of reach, and the server knows of it from its store alone.
#[test]
fn what_an_agent_out_of_reach_uses_is_not_given_to_another_after_a_crash() {
    let mut house = House::new();
    house.set_limit("resource", "pool/fast");
    let go = house.deployment.path("go");
    let first = house.create("hv-1", Some(&go));
    house.until(&first, "running");
    eventually("its beginning", || house.lines() == ["begin"]);
    let second = house.create("hv-2", None);
    house.agents[0].signal(Signal::STOP);
    house.deployment.server.kill();
    house.deployment.start_again();
    eventually("the other agent's session", || {
        house.deployment.agent_state("hv-2") == "connected"
    });
    // Longer than the leases of an owner of the limit before.
    for _ in 0..80 {
        std::thread::park_timeout(Duration::from_millis(100));
        assert_eq!(house.lines(), ["begin"]);
    }
    assert_eq!(house.deployment.process_state(&second), "ready");
    house.agents[0].signal(Signal::CONT);
    std::fs::write(&go, "").expect("a file");
    for id in [&first, &second] {
        house.until(id, "succeeded");
    }
    assert_eq!(house.lines(), ["begin", "end", "begin", "end"]);
}
