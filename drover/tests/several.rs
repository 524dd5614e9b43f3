//! Two agent servers in processes of their own: the groups are spread over both; when one dies as the power does it
//! the other one has its groups within the lease and its agents soon after, everything is done once, and whoever comes
//! back is given its share again.

#[path = "support/apart.rs"]
mod apart;
#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::time::Duration;

use apart::{AGENTS, Apart};
use control::clock::monotonic;

/// Groups are another's after so long: 6 s of silence, 12 s of lease, a look a second, and a busy
/// machine.
const TAKEN_OVER: Duration = Duration::from_secs(20);
/// The least that one of two agent servers has when the agents are spread: a third, and not half, since there
/// are few, and a group is moved whole.
const SHARE: usize = AGENTS / 3;

/// Waits until both have their share of the agents.
async fn until_spread(apart: &Apart) {
    let spread = || {
        let sessions = apart.agents.iter().map(|server| server.sessions());
        let sessions: Vec<usize> = sessions.collect();
        sessions.iter().sum::<usize>() == AGENTS && sessions.iter().all(|one| *one >= SHARE)
    };
    apart.until("agents on both", spread).await;
}

async fn whoever_dies(process_servers: u32) {
    let mut apart = Box::pin(Apart::start(2, process_servers)).await;
    let work = apart.work.clone();
    apart.fleet.expect_losses(true);
    until_spread(&apart).await;
    apart.create().await;
    apart.check().await;

    apart.create().await;
    apart.until_half_done().await;
    let before = apart.epochs();
    let died = monotonic();
    apart.agents[0].running.kill();
    let raised = |before: &[u64], now: &[u64]| {
        let pairs = before.iter().zip(now);
        pairs.filter(|(before, now)| now > before).count()
    };
    apart
        .until("groups of the dead one in other hands", || {
            raised(&before, &apart.epochs()) > before.len() / 3
        })
        .await;
    assert!(died.elapsed() <= TAKEN_OVER, "{:?}", died.elapsed());
    apart
        .until("all agents on the other one", || {
            apart.agents[1].sessions() == AGENTS
        })
        .await;
    apart.check().await;

    apart.agents[0].start_again(&work);
    apart.create().await;
    until_spread(&apart).await;
    apart.create().await;
    apart.check().await;
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_agent_servers_dies_and_all_processes_are_done_once() {
    whoever_dies(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_several_process_servers() {
    whoever_dies(2).await;
}
