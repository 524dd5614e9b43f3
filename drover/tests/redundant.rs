//! Servers on one database, two that have everything, two of each kind, or two with half of it: one of each dies as the power does it, the
//! others have all agents and all work, everything is done once, and whoever comes back is given its share again. And
//! what would get into each other's way there is not started.

#[expect(dead_code, reason = "several.rs uses the rest")]
#[path = "support/apart.rs"]
mod apart;
#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use apart::{AGENTS, Apart, Server};
use deployment::{command, said};
use testkit::{MariaDb, Postgres, Redis, ZooKeeper};

/// Both have sessions and an API; the first dies with work under way, and comes back.
async fn one_of_two_dies(store: &str, settings: &[(&str, String)]) {
    let mut pair = Box::pin(Apart::start_redundant(store, settings)).await;
    let work = pair.work.clone();
    pair.fleet.expect_losses(true);
    pair.until_spread().await;
    for server in [&pair.control, &pair.others[0]] {
        until_ready(&pair, server, "2 are here").await;
    }
    // Through one API, and through the other.
    pair.create().await;
    pair.create().await;
    pair.check().await;

    pair.create().await;
    pair.until_half_done().await;
    pair.control.running.kill();
    pair.until("all agents on the other one", || {
        pair.others[0].sessions() == AGENTS
    })
    .await;
    pair.check().await;
    until_ready(&pair, &pair.others[0], "it holds").await;

    pair.control.start_again(&work);
    pair.create().await;
    pair.until_spread().await;
    pair.create().await;
    pair.check().await;
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_servers_dies_on_mariadb_with_zookeeper() {
    let (database, locks) = tokio::join!(MariaDb::start(), ZooKeeper::start());
    let (database, locks) = (database.expect("MariaDB"), locks.expect("ZooKeeper"));
    let store = database.database("pair").await.expect("a database");
    one_of_two_dies(&store, &[("locks.url", locks.url())]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_servers_dies_on_postgresql_with_redis() {
    let (database, redis) = tokio::join!(Postgres::start(), Redis::start());
    let (database, redis) = (database.expect("PostgreSQL"), redis.expect("Redis"));
    let store = database.database("pair").await.expect("a database");
    let settings = [("locks.url", redis.url()), ("events.url", redis.url())];
    one_of_two_dies(&store, &settings).await;
}

/// Waits until a server says that it can work, and says this: what it tells may be some seconds old.
async fn until_ready(of: &Apart, server: &Server, words: &str) {
    let what = format!("{} is ready, and says: {words}", server.name);
    let ready = || {
        let ready = server.asks("/readyz");
        ready.starts_with("HTTP/1.0 200") && ready.contains(words)
    };
    of.until(&what, ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_each_kind_dies_of_two_agent_servers_two_process_servers_and_two_api_servers() {
    let (database, locks, redis) =
        tokio::join!(MariaDb::start(), ZooKeeper::start(), Redis::start());
    let (database, locks) = (database.expect("MariaDB"), locks.expect("ZooKeeper"));
    let store = database.database("six").await.expect("a database");
    let events = redis.expect("Redis").url();
    let settings = [("locks.url", locks.url()), ("events.url", events)];
    let mut six = Box::pin(Apart::start_distributed(&store, &settings)).await;
    let work = six.work.clone();
    six.fleet.expect_losses(true);
    six.until_spread().await;
    for server in &six.agents {
        // API servers look, and are no process servers.
        until_ready(&six, server, "2 are here").await;
    }
    for api in [&six.control, &six.others[0]] {
        until_ready(&six, api, "2 are alive on the store").await;
    }
    for processes in &six.others[1..] {
        until_ready(&six, processes, "agents connected").await;
        let page = processes.asks("/metrics");
        assert!(page.contains("drover_processes_claimed_total"), "{page}");
    }
    // Through one API, and through the other.
    six.create().await;
    six.create().await;
    six.check().await;
    let claimed = |server: &Server| server.metric("drover_processes_claimed_total");
    assert_eq!(claimed(&six.control) + claimed(&six.others[0]), 0);
    assert!(claimed(&six.others[1]) > 0 && claimed(&six.others[2]) > 0);

    six.create().await;
    six.until_half_done().await;
    six.control.running.kill();
    six.others[1].running.kill();
    six.agents[0].running.kill();
    six.until("all agents on the other one", || {
        six.agents[1].sessions() == AGENTS
    })
    .await;
    six.check().await;

    six.agents[0].start_again(&work);
    six.others[1].start_again(&work);
    six.control.start_again(&work);
    six.create().await;
    six.until_spread().await;
    six.create().await;
    six.check().await;
    six.end().await;
}

/// Both have sessions, one of them the API and the other one the process server: whichever drains, its agents go to the
/// other one with what they have to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_server_with_the_api_and_one_with_the_process_server_are_a_deployment() {
    let database = Postgres::start().await.expect("PostgreSQL");
    let store = database.database("halves").await.expect("a database");
    let mut halves = Box::pin(Apart::start_halves(&store)).await;
    halves.fleet.expect_losses(true);
    halves.until_spread().await;
    for server in [&halves.control, &halves.others[0]] {
        // An API looks, and is no process server.
        until_ready(&halves, server, "1 are here").await;
        until_ready(&halves, server, "it holds").await;
        let health = server.asks("/healthz");
        assert!(health.starts_with("HTTP/1.0 200"), "{health}");
        let figures = server.asks("/metrics");
        assert!(figures.contains("drover_gateway_sessions"), "{figures}");
    }
    halves.create().await;
    halves.check().await;
    let claimed = |server: &Server| server.metric("drover_processes_claimed_total");
    assert_eq!(claimed(&halves.control), 0);
    assert!(claimed(&halves.others[0]) > 0);

    for leaves in 0..2 {
        let both = [&halves.control, &halves.others[0]];
        let link = both[leaves].link();
        halves.create().await;
        halves.until_half_done().await;
        halves.drover(&["servers", "drain", &link]);
        let both = [&halves.control, &halves.others[0]];
        let moved = || both[leaves].sessions() == 0 && both[1 - leaves].sessions() == AGENTS;
        halves.until("all agents on the other one", moved).await;
        halves.create().await;
        halves.check().await;
        halves.drover(&["servers", "undrain", &link]);
        halves.until_spread().await;
    }
    halves.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_would_take_all_groups_from_another_one_is_not_started() {
    let database = Postgres::start().await.expect("PostgreSQL");
    let store = database.database("lone").await.expect("a database");
    let work = tempfile::tempdir().expect("a folder");
    let start_on = |store: &str, name: &str, more: &[&str]| {
        let mut command = command(work.path());
        command
            .args(["serve", "--output", "json", "--shards", "1", "--data-dir"])
            .arg(work.path().join(name))
            .args(["--gateway-listen", "127.0.0.1:0"])
            .args(["--api-listen", "127.0.0.1:0"])
            .args(["--set", "admin.listen=off"])
            .args(["--set", "link.listen=127.0.0.1:0"])
            .args(["--set", &format!("store={store}")])
            .args(more);
        command
    };
    let start = |name: &str, more: &[&str]| start_on(&store, name, more);
    let among_others = ["--set", "link.connect=127.0.0.1:9"];
    let first = apart::started(start("first", &[]));
    for (more, advice) in [
        (&[][..], "a store of its own"),
        (&among_others, "start both"),
    ] {
        let strange = start("second", more).output().expect("drover runs");
        assert_eq!(strange.status.code(), Some(2));
        let words = said(&strange);
        assert!(words.contains("identity is not here"), "{words}");
        apart::copy_identity(work.path(), "first", "second");
        let refused = start("second", more).output().expect("drover runs");
        assert_eq!(refused.status.code(), Some(2));
        let words = said(&refused);
        assert!(
            words.contains(advice) && words.contains("link.connect"),
            "{words}"
        );
        std::fs::remove_dir_all(work.path().join("second")).expect("it is ours");
    }
    // One whose identity is that of another deployment.
    drop(apart::started(start_on("sqlite:", "strange", &[])));
    let refused = start("strange", &among_others).output();
    let refused = refused.expect("drover runs");
    assert_eq!(refused.status.code(), Some(2));
    let words = said(&refused);
    assert!(words.contains("another identity"), "{words}");
    // It goes on, and whoever follows a dead one waits until nobody beats any more.
    drop(first);
    drop(apart::started(start("first", &[])));
}
