//! Two agent servers in processes of their own: the groups are spread over both; when one dies as the power does it
//! the other one has its groups within the lease and its agents soon after, everything is done once, and whoever comes
//! back is given its share again.

#[expect(dead_code, reason = "redundant.rs uses the rest")]
#[path = "support/apart.rs"]
mod apart;
#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::time::Duration;

use apart::{AGENTS, Apart};
use control::clock::monotonic;
use rustix::process::Signal;

/// Groups are another's after so long: 6 s of silence, 12 s of lease, a look a second, and a busy
/// machine.
const TAKEN_OVER: Duration = Duration::from_secs(20);
/// The same where a lock service says that it is gone, and a busy machine.
const TAKEN_OVER_EARLY: Duration = Duration::from_secs(5);
/// More than twice the lease.
const STILL: Duration = Duration::from_secs(25);
/// How the first agent server goes, and comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    /// As the power goes; it is started again.
    Dies,
    /// It stands still for more than twice the lease, with all that it had to do in its queues, and goes on.
    StandsStill,
}

/// `locks`: the lock service's URL.
async fn whoever_goes(goes: Goes, process_servers: u32, locks: &str) {
    let settings = [format!("locks.url={locks}")];
    let mut apart = Box::pin(Apart::start_with(2, process_servers, &settings)).await;
    let taken_over = match locks {
        "sql:" => TAKEN_OVER,
        _ => TAKEN_OVER_EARLY,
    };
    let work = apart.work.clone();
    apart.fleet.expect_losses(true);
    apart.until_spread().await;
    apart.create().await;
    apart.check().await;

    apart.create().await;
    apart.until_half_done().await;
    let before = apart.epochs();
    let went = monotonic();
    match goes {
        Goes::Dies => apart.agents[0].running.kill(),
        Goes::StandsStill => apart.agents[0].running.signal(Signal::STOP),
    }
    let raised = |before: &[u64], now: &[u64]| {
        let pairs = before.iter().zip(now);
        pairs.filter(|(before, now)| now > before).count()
    };
    apart
        .until("groups of the dead one in other hands", || {
            raised(&before, &apart.epochs()) > before.len() / 3
        })
        .await;
    assert!(went.elapsed() <= taken_over, "{:?}", went.elapsed());
    apart
        .until("all agents on the other one", || {
            apart.agents[1].sessions() == AGENTS
        })
        .await;
    apart.check().await;

    match goes {
        Goes::Dies => apart.agents[0].start_again(&work),
        Goes::StandsStill => {
            tokio::time::sleep(STILL.saturating_sub(went.elapsed())).await;
            apart.agents[0].running.signal(Signal::CONT);
        }
    }
    apart.create().await;
    apart.until_spread().await;
    apart.create().await;
    apart.check().await;
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_agent_servers_dies_and_all_processes_are_done_once() {
    whoever_goes(Goes::Dies, 2, "sql:").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stood_still_does_nothing_twice_when_it_goes_on() {
    whoever_goes(Goes::StandsStill, 1, "sql:").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_zookeeper_the_groups_of_a_dead_one_are_another_s_within_five_seconds() {
    let zookeeper = testkit::ZooKeeper::start().await.expect("a ZooKeeper");
    whoever_goes(Goes::Dies, 1, &zookeeper.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_the_groups_of_a_dead_one_are_another_s_within_five_seconds() {
    let redis = testkit::Redis::start().await.expect("a Redis");
    whoever_goes(Goes::Dies, 2, &redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stood_still_does_nothing_twice_when_it_was_given_up_early() {
    let redis = testkit::Redis::start().await.expect("a Redis");
    whoever_goes(Goes::StandsStill, 1, &redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_agent_server_gives_its_groups_away_and_can_be_stopped() {
    let mut apart = Box::pin(Apart::start(2, 1)).await;
    apart.fleet.expect_losses(true);
    apart.until_spread().await;
    let link = apart.agents[0].link();
    let groups = |apart: &Apart| {
        let servers = apart.drover(&["servers", "ls"]);
        let servers = servers.as_array().expect("a list").clone();
        let of_it = servers.into_iter().find(|server| server["link"] == link);
        of_it.expect("it is listed")["groups"].as_u64()
    };
    assert!(groups(&apart) > Some(0));
    apart.create().await;
    let drained = apart.drover(&["servers", "drain", &link]);
    assert_eq!(drained["draining"], true);
    apart
        .until("a drained agent server", || groups(&apart) == Some(0))
        .await;
    apart
        .until("all agents on the other one", || {
            apart.agents[1].sessions() == AGENTS
        })
        .await;
    apart.agents[0].running.signal(Signal::TERM);
    assert!(apart.agents[0].running.wait().success());
    apart.create().await;
    apart.check().await;
    let work = apart.work.clone();
    apart.agents[0].start_again(&work);
    apart.until_spread().await;
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_told_to_stop_gives_its_groups_away_before_it_goes() {
    let mut apart = Box::pin(Apart::start(2, 1)).await;
    apart.fleet.expect_losses(true);
    apart.until_spread().await;
    apart.create().await;
    apart.check().await;

    apart.create().await;
    apart.agents[0].running.signal(Signal::TERM);
    let other = |apart: &Apart| apart.agents[1].sessions();
    apart
        .until("its groups with the other one", || {
            let servers = apart.drover(&["servers", "ls"]);
            let servers = servers.as_array().expect("a list").clone();
            servers.iter().any(|one| one["draining"] == true) || other(&apart) == AGENTS
        })
        .await;
    // Each has a session there before it ends the one here.
    while !apart.agents[0].running.has_ended() {
        assert!(apart.fleet.up() >= AGENTS, "{}", apart.fleet.up());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((other(&apart), apart.fleet.up()), (AGENTS, AGENTS));
    assert!(apart.agents[0].running.wait().success());
    assert!(!apart.log(&apart.agents[0]).contains("do not have all"));
    apart.check().await;

    // What was so ends with the run.
    let work = apart.work.clone();
    apart.agents[0].start_again(&work);
    let servers = apart.drover(&["servers", "ls"]);
    let draining = |one: &serde_json::Value| one["draining"] == true;
    assert!(
        !servers.as_array().expect("a list").iter().any(draining),
        "{servers}"
    );
    apart.until_spread().await;

    // Told twice, it goes at once; the last one has nobody to wait for.
    apart.agents[0].running.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(200)).await;
    apart.agents[0].running.signal(Signal::TERM);
    assert_eq!(apart.agents[0].running.wait().code(), Some(128 + 15));
    apart
        .until("all agents on the other one", || other(&apart) == AGENTS)
        .await;
    let began = monotonic();
    apart.agents[1].running.signal(Signal::TERM);
    assert!(apart.agents[1].running.wait().success());
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    apart.agents[0].start_again(&work);
    apart.agents[1].start_again(&work);
    apart.create().await;
    apart.check().await;
    apart.end().await;
}
