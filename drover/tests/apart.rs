//! The agent server in one process, API and process servers in another, on real sockets: each of them dies
//! as the power does it while work is under way, and everything is done once.

#[path = "support/apart.rs"]
#[expect(dead_code, reason = "several.rs and redundant.rs use the rest")]
mod apart;
#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use apart::{AGENTS, Apart};
use control::clock;
use control::store::Store;

async fn whichever_dies(process_servers: u32) {
    let mut apart = Box::pin(Apart::start(1, process_servers)).await;
    let work = apart.work.clone();
    let first = apart.epochs().into_iter().max();

    let ready = apart.agents[0].asks("/readyz");
    let words = format!("{process_servers} are here");
    assert!(
        ready.starts_with("HTTP/1.0 200") && ready.contains(&words),
        "{ready}"
    );
    let figures = apart.agents[0].asks("/metrics");
    assert!(figures.contains("drover_gateway_sessions"), "{figures}");

    apart.create().await;
    apart.until_half_done().await;
    apart.control.running.kill();
    // Once it is started again before the agent server knows, and once after.
    if process_servers > 1 {
        let alone = || {
            let ready = apart.agents[0].asks("/readyz");
            ready.starts_with("HTTP/1.0 503") && ready.contains("none is here")
        };
        apart.until("the agent server knows", alone).await;
    }
    apart.control.start_again(&work);
    apart.check().await;
    assert_eq!(
        apart.fleet.lost(),
        0,
        "no session ended with the control side"
    );
    assert_eq!(
        apart.epochs().into_iter().max(),
        first,
        "it is the same run of the gateway"
    );

    apart.create().await;
    apart.until_half_done().await;
    apart.fleet.expect_losses(true);
    apart.agents[0].running.kill();
    apart.agents[0].start_again(&work);
    apart.check().await;
    assert_eq!(
        apart.epochs().into_iter().max(),
        first.map(|epoch| epoch + 1),
        "another run, another epoch"
    );
    apart.until("sessions anew", || apart.fleet.renewed()).await;
    assert!(
        apart
            .log(&apart.control)
            .contains("the agent server is gone")
    );

    apart.create().await;
    apart.check().await;
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_side_dies_all_processes_are_done_once() {
    whichever_dies(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_several_process_servers() {
    whichever_dies(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_side_begins_without_an_agent_server_and_says_that_it_waits() {
    let mut apart = Box::pin(Apart::start(1, 2)).await;
    let work = apart.work.clone();
    apart.create().await;
    apart.check().await;
    apart.fleet.expect_losses(true);
    apart.agents[0].running.kill();
    apart.control.running.kill();
    apart.control.start_again(&work);
    let health = apart.control.asks("/healthz");
    assert!(health.starts_with("HTTP/1.0 200"), "{health}");
    let ready = apart.control.asks("/readyz");
    assert!(
        ready.starts_with("HTTP/1.0 503") && ready.contains("waits for an agent server"),
        "{ready}"
    );
    let page = apart.drover(&["processes", "list"]);
    assert!(
        page.to_string().contains("succeeded"),
        "what the store has is told: {page}"
    );

    apart.agents[0].start_again(&work);
    apart.create().await;
    apart.check().await;
    let ready = apart.control.asks("/readyz");
    assert!(ready.starts_with("HTTP/1.0 200"), "{ready}");
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_revoked_while_the_agent_server_could_not_be_told_is_out() {
    let mut apart = Box::pin(Apart::start(1, 1)).await;
    let work = apart.work.clone();
    // The store has it, and nobody has told the gateway: as when the control side dies in between.
    apart.control.running.kill();
    let agent = apart.fleet.ids()[0];
    let store = Store::open("sqlite:", &work.join("control")).await;
    let store = store.expect("the control side's store");
    let revoked = store.revoke_agent(agent, "ann".to_owned(), clock::now());
    revoked.await.expect("it is written");
    store.close().await;
    apart.fleet.expect_losses(true);
    apart.control.start_again(&work);
    apart
        .until("its session's end", || apart.fleet.up() == AGENTS - 1)
        .await;
    apart.end().await;
}
