//! The scenario of `drover-loadtest scenario`, small: every part of a deployment dies, and the ledger of effects and the
//! store agree that nothing was lost or done twice.

use std::path::PathBuf;
use std::time::Duration;

use loadtest::scenario::{Drill, Setup, Site};
use loadtest::server::ServerSpec;

async fn everybody_dies(site: Site) {
    let work = tempfile::tempdir().expect("a temporary directory");
    let arguments = ["--shards", "2", "--set", "gateway.reconnect_spread=1s"];
    let drill = Drill {
        setup: Setup {
            site,
            agents: 40,
            service_ms: 500,
            seed: 7,
            server: ServerSpec {
                binary: PathBuf::from(env!("CARGO_BIN_EXE_drover")),
                data_dir: work.path().join("server"),
                arguments: arguments.map(str::to_owned).to_vec(),
                log: work.path().join("server.log"),
            },
            work_dir: work.path().to_owned(),
            results: None,
        },
        processes: 300,
        every: Duration::from_secs(1),
        stays_dead: Duration::from_secs(2),
        standstill: Duration::from_secs(3),
        agents_die_percent: 25,
    };
    let found = drill.run().await.expect("the drill is carried out");
    assert!(found.passed, "{found:#?}");
    assert_eq!(found.account.processes.succeeded, 300);
    assert_eq!(found.account.store.stored, 300);
    assert_eq!(found.agent_deaths, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_dies_on_one_process_with_sqlite() {
    everybody_dies(Site::Single).await;
}

/// Two agent servers, two API servers and two process servers on MariaDB, with locks in ZooKeeper and events in Redis.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_dies_on_two_servers_of_each_kind() {
    everybody_dies(Site::Distributed).await;
}
