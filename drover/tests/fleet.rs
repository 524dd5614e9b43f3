//! A small fleet through both kinds of death, on both datapaths: the load test's own judgement, in CI.

use std::path::PathBuf;
use std::time::Duration;

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
