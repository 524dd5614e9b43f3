//! A small fleet through both kinds of death, on both datapaths: the load test's own judgement, in CI.

use std::path::{Path, PathBuf};
use std::time::Duration;

use loadtest::flow::real::{self, Hosts};
use loadtest::hold::Hold;
use loadtest::server::{ServerSpec, Target};

const AGENTS: usize = 60;

async fn hold(datapath: &str) -> loadtest::report::Summary {
    let work = tempfile::tempdir().expect("a temporary directory");
    let arguments = [
        "--shards",
        "2",
        "--datapath",
        datapath,
        "--set",
        "gateway.reconnect_spread=1s",
    ];
    let server = ServerSpec {
        binary: PathBuf::from(env!("CARGO_BIN_EXE_drover")),
        data_dir: work.path().join("server"),
        arguments: arguments.map(str::to_owned).to_vec(),
        log: work.path().join("server.log"),
    };
    let hold = Hold {
        agents: AGENTS,
        duration: Duration::from_secs(10),
        idle: Duration::ZERO,
        rate: 40.0,
        service_ms: 20,
        kill_server: Some(Duration::from_secs(2)),
        kill_agents: AGENTS / 3,
        steering_hint: true,
        connect_rate: 100.0,
        server: Target::Start(server),
        results: None,
        name: "ci".to_owned(),
        work_dir: work.path().to_owned(),
        seed: 7,
    };
    hold.run().await.expect("the run is carried out")
}

async fn nothing_is_lost_or_doubled(datapath: &str) {
    let summary = hold(datapath).await;
    assert!(summary.passed, "{:?}", summary.violations);
    assert_eq!(summary.processes.submitted, 400);
    assert_eq!(summary.faults.len(), 2, "both faults happened");
    // After the death of the server and of agents, every session found its home again.
    assert!(summary.home_shard_ratio.is_some_and(|ratio| ratio >= 0.99));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_server_and_agents_die() {
    nothing_is_lost_or_doubled("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_they_die_on_the_poll_datapath() {
    nothing_is_lost_or_doubled("poll").await;
}

/// A few hosts with a fixed service rate, in real time.
fn hosts(agents: usize) -> Hosts {
    Hosts {
        agents,
        slots: 2,
        capacity: 8,
        mean: Duration::from_millis(100),
        outstanding: 8,
    }
}

fn spec(work: &Path) -> ServerSpec {
    let arguments = ["--shards", "2", "--set", "gateway.reconnect_spread=1s"];
    ServerSpec {
        binary: PathBuf::from(env!("CARGO_BIN_EXE_drover")),
        data_dir: work.join("server"),
        arguments: arguments.map(str::to_owned).to_vec(),
        log: work.join("server.log"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_process_servers_share_a_gateway_and_nothing_is_lost_or_doubled() {
    let work = tempfile::tempdir().expect("a temporary directory");
    let options = real::Options {
        servers: vec![1, 3],
        gammas: vec![0.05],
        fleet: hosts(8),
        warm_up: Duration::from_secs(3),
        measured: Duration::from_secs(6),
        idle: Duration::from_secs(2),
        dead_server: false,
        stuck: 0,
        peak: 0,
        seed: 7,
        server: spec(work.path()),
        site: real::Site::One,
        work_dir: work.path().to_owned(),
        json: None,
        results: None,
    };
    let found = real::run(&options).await.expect("the run is carried out");
    assert!(found.is_sound(), "{:#?}", found.rows);
    let counts: Vec<usize> = found.rows.iter().map(|row| row.row.servers).collect();
    assert_eq!(counts, [1, 3]);
    for row in &found.rows {
        assert!(
            row.operations > 0 && row.row.goodput_ratio > 0.0,
            "{row:#?}"
        );
        assert!(row.transactions_per_operation > 0.0, "{row:#?}");
    }
}

/// Lets servers and agents die, and servers stand still, and looks for what was lost, doubled or leaked.
async fn let_die(site: real::Site, seed: u64) {
    let work = tempfile::tempdir().expect("a temporary directory");
    let kill = real::Kill {
        every: Duration::from_secs(2),
        process_servers_die: None,
        duration: Duration::from_secs(15),
        servers: 3,
        fleet: hosts(40),
        seed,
        server: spec(work.path()),
        site,
        work_dir: work.path().to_owned(),
        json: None,
        results: None,
    };
    let found = kill.run().await.expect("the run is carried out");
    assert!(found.passed, "{found:#?}");
    assert!(found.succeeded > 0, "{found:#?}");
    assert!(
        found.server_deaths > 0 && found.agent_deaths > 0 && found.server_pauses > 0,
        "{found:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_nothing_is_lost_or_doubled_and_no_permit_leaks() {
    let_die(real::Site::One, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_process_of_a_deployment_dies_nothing_is_lost_or_doubled() {
    let_die(real::Site::Apart, 3).await;
}

/// Three process servers, each in a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn whichever_process_dies_on_postgresql_nothing_is_lost_or_doubled() {
    let_die(real::Site::Postgres, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_process_dies_on_mariadb_nothing_is_lost_or_doubled() {
    let_die(real::Site::Mariadb, 3).await;
}
