//! A deployment on SQLite becomes one on a database server, with its agents and its work: docs/STORES.md, on real
//! servers and a real agent.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::time::Duration;

use deployment::{Deployment, command, eventually, said};
use rustix::process::Signal;

/// A runtime for a database server that lives as long as the test.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

fn stop(deployment: &mut Deployment) {
    deployment.server.signal(Signal::TERM);
    assert!(deployment.server.wait().success());
}

fn back(deployment: &Deployment) {
    eventually("the agent's session", || {
        deployment.agent_state("hv-1") == "connected"
    });
}

/// Runs a command on the agent; how many processes there are then.
fn run(deployment: &Deployment) -> usize {
    let run = deployment.drover(&["run", "-q", "hv-1", "exec", "--", "echo", "x"]);
    assert!(run.status.success(), "{}", said(&run));
    let all = deployment.json(&["processes", "list"]);
    all.as_array().map_or(0, Vec::len)
}

/// Moves a deployment to the store at `url`, which is empty.
fn moves_to(url: &str) {
    let mut deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    assert_eq!(run(&deployment), 1);
    let copy = ["store", "copy", "--from", "sqlite:", "--to", url];
    let refused = deployment.drover(&copy);
    is_told(&refused, "is locked", "try: end what holds it");
    stop(&mut deployment);

    let copied = deployment.drover(&copy);
    assert!(copied.status.success(), "{}", said(&copied));
    assert!(said(&copied).contains("process: 1 the same on both sides"));
    let again = deployment.drover(&copy);
    is_told(&again, "holds a store already", "set `store` to it");

    std::fs::write(
        deployment.path("drover.toml"),
        format!("store = \"{url}\"\n"),
    )
    .expect("it is ours");
    deployment.start_again();
    back(&deployment);
    assert_eq!(run(&deployment), 2, "it goes on where it was");
    let check = deployment.drover(&["store", "check"]);
    assert!(check.status.success(), "{}", said(&check));
    assert!(
        said(&check).contains("1 process server is alive on it"),
        "{}",
        said(&check)
    );

    // Nobody says goodbye: the next server takes over what this one had.
    deployment.server.kill();
    deployment.start_again();
    back(&deployment);
    assert_eq!(run(&deployment), 3);
    stop(&mut deployment);
    let migrated = deployment.drover(&["store", "migrate"]);
    assert!(migrated.status.success(), "{}", said(&migrated));
    goes_back_from(url, &mut deployment);
}

/// The way back of docs/OPERATIONS.md, with the old file still where it was.
fn goes_back_from(url: &str, deployment: &mut Deployment) {
    let copy = ["store", "copy", "--from", url, "--to", "sqlite:"];
    // The server that was killed counts as alive until its last heartbeat is 10 s old.
    eventually("the end of the heartbeats", || {
        let refused = deployment.drover(&copy);
        !said(&refused).contains("process servers use")
    });
    let refused = deployment.drover(&copy);
    is_told(&refused, "holds a store already", "drover.db.before`");
    let old = deployment.data_dir().join("drover.db");
    std::fs::rename(&old, old.with_extension("db.before")).expect("it is there");
    let copied = deployment.drover(&copy);
    assert!(copied.status.success(), "{}", said(&copied));
    std::fs::remove_file(deployment.path("drover.toml")).expect("it is ours");
    deployment.start_again();
    back(deployment);
    assert_eq!(run(deployment), 4, "it has what was done on the database");
    stop(deployment);
}

/// A command failed, and says in one line what and in the next what to do.
#[track_caller]
fn is_told(output: &std::process::Output, what: &str, advice: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let [.., first, second] = lines.as_slice() else {
        panic!("{}", said(output));
    };
    assert!(
        first.starts_with("error: ") && first.contains(what),
        "{}",
        said(output)
    );
    assert!(
        second.starts_with("  try: ") && second.contains(advice),
        "{}",
        said(output)
    );
}

#[test]
fn a_copy_that_cannot_be_made_says_what_to_do_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("it is not there");
    let copy = |from: &str, to: &str| {
        let mut command = command(folder.path());
        command.arg("--data-dir").arg(&data);
        command.args(["store", "copy", "--from", from, "--to", to]);
        command.output().expect("drover runs")
    };
    let typo = copy("sqlite:typo.db", "sqlite:new.db");
    is_told(&typo, "data/typo.db", "mend --from");
    let elsewhere = copy("sqlite:", "sqlite:new.db");
    is_told(&elsewhere, "data/drover.db", "--data-dir");
    // Nobody listens there.
    let unreachable = copy("postgres://drover@127.0.0.1:1/drover", "sqlite:new.db");
    is_told(
        &unreachable,
        "cannot reach the store",
        "start the database server",
    );
    let left = std::fs::read_dir(&data).expect("it is a folder").count();
    assert_eq!(left, 0);
}

#[test]
fn a_deployment_moves_to_postgres_with_its_agents() {
    let runtime = runtime();
    let server = runtime.block_on(testkit::Postgres::start());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let url = runtime.block_on(server.database("drover"));
    moves_to(&url.unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn a_deployment_moves_to_mariadb_with_its_agents() {
    let runtime = runtime();
    let server = runtime.block_on(testkit::MariaDb::start());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let url = runtime.block_on(server.database("drover"));
    moves_to(&url.unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn a_server_that_may_lose_work_is_refused_unless_the_url_takes_it() {
    let runtime = runtime();
    let weak = [("synchronous_commit", "off")];
    let server = runtime.block_on(testkit::Postgres::start_with(&weak));
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let url = runtime.block_on(server.database("drover"));
    let url = url.unwrap_or_else(|error| panic!("{error}"));
    let mut deployment = Deployment::start();
    stop(&mut deployment);
    let config = |url: &str| {
        let text = format!("store = \"{url}\"\n");
        std::fs::write(deployment.path("drover.toml"), text).expect("it is ours");
    };
    config(&url);
    let refused = deployment.drover(&["store", "migrate"]);
    assert!(!refused.status.success());
    assert!(
        said(&refused).contains("synchronous_commit = off"),
        "{}",
        said(&refused)
    );
    let check = deployment.drover(&["store", "check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(
        said(&check).contains("set synchronous_commit = on"),
        "{}",
        said(&check)
    );
    config(&format!("{url}?durability=unsafe"));
    let taken = deployment.drover(&["store", "migrate"]);
    assert!(taken.status.success(), "{}", said(&taken));
}

/// A read while the database does not answer: told as such, and soon enough.
#[track_caller]
fn is_unavailable(deployment: &Deployment, within: Duration) {
    let asked = control::clock::monotonic();
    let reply = deployment.reply("/v1/agents");
    let took = asked.elapsed();
    let head = reply.to_lowercase();
    assert!(head.starts_with("http/1.0 503"), "{reply}");
    assert!(head.contains("\r\nretry-after: "), "{reply}");
    assert!(reply.contains("does not answer"), "{reply}");
    assert!(took < within, "{took:?}");
}

fn is_back(deployment: &Deployment) {
    eventually("an answer", || {
        deployment.reply("/v1/agents").starts_with("HTTP/1.0 200")
    });
}

/// A database that is killed refuses connections; one that stands still says nothing.
fn reads_are_told_that_it_is_gone(server: &testkit::Server, url: &str) {
    let deployment = Deployment::start_with(&["--set", &format!("store={url}")]);
    let runtime = runtime();
    let done = |done: Result<(), testkit::KitError>| done.unwrap_or_else(|error| panic!("{error}"));
    is_back(&deployment);
    done(runtime.block_on(server.kill()));
    // None waits until the pool gives up; how soon it is on a busy machine is not the point.
    for _ in 0..3 {
        is_unavailable(&deployment, Duration::from_secs(4));
    }
    let written = deployment.drover(&["groups", "create", "new"]);
    assert!(
        said(&written).contains("does not answer"),
        "{}",
        said(&written)
    );
    done(runtime.block_on(server.restart()));
    is_back(&deployment);

    server.pause();
    is_unavailable(&deployment, Duration::from_secs(8));
    server.resume();
    is_back(&deployment);
}

#[test]
fn reads_are_told_that_postgres_is_gone() {
    let runtime = runtime();
    let server = runtime.block_on(testkit::Postgres::start());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let url = runtime.block_on(server.database("drover"));
    let url = url.unwrap_or_else(|error| panic!("{error}"));
    reads_are_told_that_it_is_gone(&server, &url);
}

#[test]
fn reads_are_told_that_mariadb_is_gone() {
    let runtime = runtime();
    let server = runtime.block_on(testkit::MariaDb::start());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let url = runtime.block_on(server.database("drover"));
    let url = url.unwrap_or_else(|error| panic!("{error}"));
    reads_are_told_that_it_is_gone(&server, &url);
}

/// Somebody who reads through the command line, with a position or without.
fn shows(deployment: &Deployment, group: &str) -> bool {
    let shown = deployment.drover(&["groups", "show", group]);
    shown.status.success()
}

#[test]
fn the_next_command_reads_what_the_last_one_wrote_also_from_a_replica_that_stands_still() {
    let runtime = runtime();
    let server = runtime.block_on(testkit::Postgres::start());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let replica = runtime.block_on(server.replica());
    let replica = replica.unwrap_or_else(|error| panic!("{error}"));
    let url = runtime.block_on(server.database("drover"));
    let url = url.unwrap_or_else(|error| panic!("{error}"));
    let told = |server: &testkit::Postgres, sql: &str| {
        let done = runtime.block_on(server.execute(sql));
        done.unwrap_or_else(|error| panic!("{error}"));
    };
    let mut deployment = Deployment::start();
    stop(&mut deployment);
    let file = deployment.path("drover.toml");
    let config = |replicas: &str| {
        let text = format!(
            "store = \"{url}\"\nstore_read_urls = [{replicas}]\nstore_read_max_age = \"10m\"\n"
        );
        std::fs::write(&file, text).expect("it is ours");
    };
    config(&format!("\"{}\"", replica.url_like(&url)));
    deployment.start_again();
    eventually("reads from the replica", || {
        let lists = deployment.drover(&["groups", "list"]);
        assert!(lists.status.success(), "{}", said(&lists));
        let page = deployment.metrics();
        let mut reads = page
            .lines()
            .filter(|line| line.starts_with("drover_api_reads_total"));
        reads.any(|line| !line.contains("primary") && !line.ends_with(" 0"))
    });
    let check = deployment.drover(&["store", "check"]);
    assert!(
        said(&check).contains("has all that the store has"),
        "{}",
        said(&check)
    );

    told(&replica, "SELECT pg_wal_replay_pause()");
    let made = deployment.drover(&["groups", "create", "new"]);
    assert!(made.status.success(), "{}", said(&made));
    assert!(shows(&deployment, "new"), "the next command knows of it");
    std::fs::remove_dir_all(deployment.path("state")).expect("the command line has kept it");
    assert!(
        !shows(&deployment, "new"),
        "whoever says nothing reads the replica"
    );
    let check = deployment.drover(&["doctor"]);
    assert!(
        said(&check).contains("did not come further in 2 s"),
        "{}",
        said(&check)
    );
    told(&replica, "SELECT pg_wal_replay_resume()");

    // The primary, and a database without a store, are no replicas.
    let other = runtime.block_on(server.database("other"));
    let other = other.unwrap_or_else(|error| panic!("{error}"));
    config(&format!("\"{url}\", \"{other}\""));
    let check = deployment.drover(&["store", "check"]);
    assert!(check.status.success(), "{}", said(&check));
    for words in ["takes writes", "has schema version 0"] {
        assert!(said(&check).contains(words), "{}", said(&check));
    }
    config("\"mysql://127.0.0.1/x\"");
    let refused = deployment.drover(&["store", "check"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("cannot be a replica"),
        "{}",
        said(&refused)
    );
}
