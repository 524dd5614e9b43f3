//! `drover doctor` and `drover store check` on real data directories: before the first start, beside a server,
//! after a crash, on damage; and the backup that docs/OPERATIONS.md describes, restored.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use deployment::{Deployment, command, eventually, said};
use rustix::process::Signal;
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/OPERATIONS.md");

/// What `doctor` found, by the names of its checks.
struct Found {
    exit: Option<i32>,
    report: Value,
}

impl Found {
    #[track_caller]
    fn of(output: &Output) -> Self {
        let report = serde_json::from_slice(&output.stdout);
        let report: Value = report.unwrap_or_else(|error| panic!("{error}: {}", said(output)));
        let checks = report["checks"].as_array().expect("checks");
        for name in checks.iter().map(|check| check["name"].as_str()) {
            let name = format!("`{}`", name.expect("a name"));
            assert!(PAGE.contains(&name), "docs/OPERATIONS.md lacks {name}");
        }
        Self {
            exit: output.status.code(),
            report,
        }
    }

    /// The status of a check; empty where there was none.
    fn status(&self, name: &str) -> &str {
        self.check(name)["status"].as_str().unwrap_or_default()
    }

    fn check(&self, name: &str) -> &Value {
        let checks = self.report["checks"].as_array().expect("checks");
        let found = checks.iter().find(|check| check["name"] == name);
        found.unwrap_or(&Value::Null)
    }

    /// The names of failures.
    fn failures(&self) -> Vec<&str> {
        let checks = self.report["checks"].as_array().expect("checks");
        let failed = checks.iter().filter(|check| check["status"] == "failure");
        failed.filter_map(|check| check["name"].as_str()).collect()
    }
}

/// `doctor` with the addresses that the deployment's server has.
fn doctor(deployment: &Deployment) -> Found {
    let api = deployment.addresses.api.replace("http://", "");
    let agents = deployment.addresses.agents.as_str();
    // No port that tests beside this one may look at as well.
    let set = ["--set", "admin.listen=off"];
    let flags = ["--api-listen", &api, "--gateway-listen", agents];
    let mut arguments = vec!["--output", "json", "doctor", "--shards", "2"];
    arguments.extend(flags.into_iter().chain(set));
    Found::of(&deployment.drover(&arguments))
}

/// The same of a server that has just ended: the kernel lets go of its rings, and so of its port, a moment later.
fn doctor_after_the_end(deployment: &Deployment) -> Found {
    let looks = (0..50).map(|_| doctor(deployment));
    let mut looks = looks.skip_while(|found| found.failures() == ["port.agents"]);
    looks.next().expect("the port is held for ever")
}

/// Names of all files below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.insert(path);
    }
    found
}

fn stop(deployment: &mut Deployment) {
    deployment.server.signal(Signal::TERM);
    assert!(deployment.server.wait().success());
}

#[test]
fn before_the_first_start_nothing_is_in_its_way_and_nothing_is_made() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let any = [
        "--api-listen",
        "127.0.0.1:0",
        "--gateway-listen",
        "127.0.0.1:0",
        "--set",
        "admin.listen=off",
    ];
    let mut doctor = command(parent.path());
    let output = doctor
        .args(["doctor", "--output", "json"])
        .args(any)
        .output();
    let found = Found::of(&output.expect("drover runs"));
    assert_eq!(found.failures(), Vec::<&str>::new(), "{}", found.report);
    assert_eq!(found.exit, Some(0));
    for name in [
        "configuration",
        "server",
        "data.directory",
        "store",
        "identity",
        "port.agents",
    ] {
        assert_eq!(found.status(name), "ok", "{name}: {}", found.report);
    }
    for name in [
        "kernel.io_uring",
        "clock.synchronised",
        "limits.files",
        "limits.memory",
    ] {
        assert_ne!(found.status(name), "", "{name}: {}", found.report);
    }
    assert_eq!(files(parent.path()).len(), 0, "it changed something");
}

#[test]
fn beside_a_running_server_it_looks_and_the_server_goes_on() {
    // Without files of histograms the server makes none while this looks.
    let mut deployment = Deployment::start_with(&["--set", "histograms.log_files=0"]);
    let _agent = deployment.agent("hv-1");
    let before = files(&deployment.data_dir());
    let found = doctor(&deployment);
    assert_eq!(found.failures(), Vec::<&str>::new(), "{}", found.report);
    for name in [
        "server",
        "store.pages",
        "store.durability",
        "identity.server",
        "port.api",
        "port.agents",
    ] {
        assert_eq!(found.status(name), "ok", "{name}: {}", found.report);
    }
    let store = found.check("store")["found"].as_str().expect("words");
    assert!(store.contains("a server has it open"), "{store}");
    let memory = found.check("limits.memory")["found"].as_str();
    assert!(
        memory.is_some_and(|memory| memory.starts_with("for 1 agent about")),
        "{memory:?}"
    );

    let check = deployment.drover(&["store", "check", "--deep"]);
    assert_eq!(check.status.code(), Some(0), "{}", said(&check));
    assert_eq!(files(&deployment.data_dir()), before);
    let run = deployment.drover(&["run", "-q", "hv-1", "exec", "--", "echo", "on"]);
    assert_eq!(run.stdout, b"on\n", "{}", said(&run));

    let elsewhere = [
        "--output",
        "json",
        "doctor",
        "--gateway-listen",
        "127.0.0.1:1",
    ];
    let found = Found::of(&deployment.drover(&elsewhere));
    assert_eq!(found.status("port.agents"), "warning", "{}", found.report);
    stop(&mut deployment);
    assert_eq!(doctor(&deployment).status("server"), "ok");
}

#[test]
fn after_a_crash_it_tells_so_and_leaves_all_to_the_next_start() {
    let mut deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    deployment.server.kill();
    let log = deployment.data_dir().join("drover.db-wal");
    let left = std::fs::read(&log).expect("a crash leaves a log");
    let found = doctor_after_the_end(&deployment);
    assert_eq!(found.failures(), Vec::<&str>::new(), "{}", found.report);
    assert_eq!(found.status("server"), "warning");
    let words = found.check("store.log")["found"].as_str().expect("words");
    assert!(words.contains("left by a crash"), "{words}");
    assert_eq!(std::fs::read(&log).expect("the log is there"), left);
    deployment.start_again();
    assert_eq!(doctor(&deployment).status("server"), "ok");
    assert_eq!(
        deployment
            .json(&["agents", "list"])
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}

#[test]
fn each_trouble_is_a_failure_that_names_its_remedy() {
    let mut deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    stop(&mut deployment);
    let data = deployment.data_dir();

    // Another one has the port.
    let other = std::net::UdpSocket::bind(&deployment.addresses.agents).expect("it is free");
    assert_eq!(doctor(&deployment).failures(), ["port.agents"]);
    drop(other);

    // A key that others can read.
    let key = data.join("identity/root.key");
    let mode = |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode));
    mode(0o644).expect("it is ours");
    let found = doctor(&deployment);
    assert_eq!(
        found.failures(),
        ["data.secrets", "identity"],
        "{}",
        found.report
    );
    mode(0o600).expect("it is ours");

    // The identity is gone, and agents are not.
    let (identity, away) = (data.join("identity"), data.join("away"));
    std::fs::rename(&identity, &away).expect("it can be moved");
    let found = doctor(&deployment);
    assert_eq!(found.failures(), ["identity"], "{}", found.report);
    assert!(!identity.exists(), "a new one locks every agent out");
    std::fs::rename(&away, &identity).expect("it can be moved");
    assert_eq!(doctor(&deployment).exit, Some(0));

    // A page of the store is damaged.
    let store = data.join("drover.db");
    let mut bytes = std::fs::read(&store).expect("a store");
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xff);
    std::fs::write(&store, bytes).expect("it is ours");
    let found = doctor(&deployment);
    assert_eq!(found.exit, Some(1), "{}", found.report);
    assert!(
        found
            .failures()
            .iter()
            .all(|name| name.starts_with("store")),
        "{}",
        found.report
    );
    let check = deployment.drover(&["store", "check"]);
    assert_eq!(check.status.code(), Some(1), "{}", said(&check));
    let words = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(words.contains("restore a backup"), "{words}");
}

#[test]
fn slips_are_told_with_what_was_meant() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let mut doctor = command(parent.path());
    let slip = ["doctor", "--output", "json", "--set", "drain.deadlin=5s"];
    let found = Found::of(&doctor.args(slip).output().expect("drover runs"));
    assert_eq!(
        (found.exit, found.failures()),
        (Some(1), vec!["configuration"])
    );
    let advice = found.check("configuration")["advice"].as_str();
    assert_eq!(advice, Some("did you mean `drain.deadline`?"));

    // A slip in the directory must not look like a sound store.
    let mut check = command(parent.path());
    let check = check
        .args(["store", "check", "--data-dir", "bakcup"])
        .output();
    let check = check.expect("drover runs");
    assert_eq!(check.status.code(), Some(2), "{}", said(&check));
    assert!(
        said(&check).contains("there is no store"),
        "{}",
        said(&check)
    );

    let mut doctor = command(parent.path());
    let asked = doctor.args(["doctor", "--print-config"]).output();
    assert_eq!(asked.expect("drover runs").status.code(), Some(2));
}

/// `doctor` of a server that was never started in `parent`, with flags of its own.
fn doctor_in(parent: &Path, flags: &[&str]) -> Found {
    let any = [
        "doctor",
        "--output=json",
        "--api-listen=127.0.0.1:0",
        "--gateway-listen=127.0.0.1:0",
        "--set=admin.listen=off",
        "--set=link.listen=127.0.0.1:0",
    ];
    let output = command(parent).args(any).args(flags).output();
    Found::of(&output.expect("drover runs"))
}

#[test]
fn what_serve_refuses_doctor_does_not_call_sound() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let found = doctor_in(parent.path(), &["--profile=api-server"]);
    assert_eq!(
        found.failures(),
        ["configuration.link", "configuration"],
        "{}",
        found.report
    );
    let words = found.check("configuration")["found"].to_string();
    assert!(words.contains("SQLite"), "{words}");

    let found = doctor_in(parent.path(), &["--profile=agent-server"]);
    let locks = found.check("locks")["found"].to_string();
    assert!(locks.contains("within 20 s"), "{}", found.report);

    let file = parent.path().join("drover.toml");
    std::fs::write(&file, "[events]\nurl = \"redis://:secret@127.0.0.1:1\"\n").expect("ours");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("ours");
    let found = doctor_in(parent.path(), &[]);
    assert_eq!(
        found.status("configuration.file"),
        "warning",
        "{}",
        found.report
    );
    assert!(!found.report.to_string().contains("secret"));
}

/// A database at `url`, as others have left it. `execute` lets its administrator say something; `id` writes an id.
fn before_a_start_on_a_database(url: &str, id: &str, execute: impl Fn(&str)) {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let file = parent.path().join("drover.toml");
    std::fs::write(&file, format!("store = \"{url}\"\n")).expect("it is ours");
    let store = |words: &[&str]| {
        let output = command(parent.path()).arg("store").args(words).output();
        output.expect("drover runs")
    };
    assert_eq!(doctor_in(parent.path(), &[]).failures(), Vec::<&str>::new());
    let migrated = store(&["migrate"]);
    assert!(migrated.status.success(), "{}", said(&migrated));
    let found = doctor_in(parent.path(), &["--deep"]);
    assert_eq!(found.failures(), Vec::<&str>::new(), "{}", found.report);
    assert_eq!(found.status("clock.store"), "ok", "{}", found.report);
    assert_eq!(found.status("store.pages"), "warning", "{}", found.report);
    let deep = store(&["check", "--deep"]);
    assert!(said(&deep).contains("--deep does nothing here"));

    // Another deployment's server has a group, and beats until the year 2100.
    execute(&format!(
        "INSERT INTO agent_group (id, name, slot, automatic, admitted, created_at) VALUES ({id}, 'g', 1, 0, 0, 0);
         INSERT INTO group_owner (group_id, epoch, owner_id, lease_until) VALUES ({id}, 1, {id}, 0);
         INSERT INTO worker (id, instance, epoch, started_at, beat_at) VALUES ({id}, {id}, 1, 0, 4102444800000)"
    ));
    let found = doctor_in(parent.path(), &[]);
    assert_eq!(
        found.failures(),
        ["configuration.link", "identity"],
        "{}",
        found.report
    );

    execute("INSERT INTO worker_duty (name, epoch, until) VALUES ('copy', 0, 0)");
    let half = store(&["check"]);
    assert_eq!(half.status.code(), Some(1), "{}", said(&half));
    assert!(said(&half).contains("half a copy"), "{}", said(&half));
    assert_eq!(doctor_in(parent.path(), &[]).failures(), ["store"]);
}

/// A runtime for a database server that lives as long as the test.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

#[test]
fn before_a_start_on_postgres() {
    let runtime = runtime();
    let server = runtime.block_on(testkit::Postgres::start());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let id = "decode('0102030405060708090a0b0c0d0e0f10', 'hex')";
    before_a_start_on_a_database(&server.url(), id, |sql| {
        let done = runtime.block_on(server.execute(sql));
        done.unwrap_or_else(|error| panic!("{error}"));
    });
}

#[test]
fn before_a_start_on_mariadb() {
    let runtime = runtime();
    let server = runtime.block_on(testkit::MariaDb::start());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let url = runtime.block_on(server.database("drover"));
    let url = url.unwrap_or_else(|error| panic!("{error}"));
    let (_, name) = url.rsplit_once('/').expect("a database");
    let id = "unhex('0102030405060708090a0b0c0d0e0f10')";
    before_a_start_on_a_database(&url, id, |sql| {
        let done = runtime.block_on(server.execute(&format!("USE {name}; {sql}")));
        done.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// docs/OPERATIONS.md, Backup: a copy of a stopped server's directory is a backup, and restoring it is putting
/// it back.
#[test]
fn a_copy_of_the_directory_brings_everything_back_but_what_came_after_it() {
    let mut deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let run = |deployment: &Deployment| {
        let run = deployment.drover(&["run", "-q", "hv-1", "exec", "--", "echo", "x"]);
        assert!(run.status.success(), "{}", said(&run));
        let all = deployment.json(&["processes", "list"]);
        all.as_array().map_or(0, Vec::len)
    };
    assert_eq!(run(&deployment), 1);
    stop(&mut deployment);
    let (data, backup) = (deployment.data_dir(), deployment.path("backup"));
    copy(&data, &backup);

    deployment.start_again();
    back(&deployment);
    assert_eq!(run(&deployment), 2);
    deployment.server.kill();
    std::fs::remove_dir_all(&data).expect("it is ours");
    copy(&backup, &data);
    let found = doctor_after_the_end(&deployment);
    assert_eq!(found.failures(), Vec::<&str>::new(), "{}", found.report);

    deployment.start_again();
    back(&deployment);
    let kept = deployment.json(&["processes", "list"]);
    assert_eq!(kept.as_array().map(Vec::len), Some(1), "{kept}");
    assert_eq!(run(&deployment), 2, "the restored server works");
}

/// Waits until the agent is back by itself.
fn back(deployment: &Deployment) {
    eventually("the agent's session", || {
        deployment.agent_state("hv-1") == "connected"
    });
}

/// As `cp -a` does.
fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(copied.expect("cp runs").success());
}
