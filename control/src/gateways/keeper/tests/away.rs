//! The store is away, and comes back: leases have run out that nobody could prolong.

use super::*;

/// Lets all leases run out.
async fn run_out(store: &Store) {
    let servers = store.agent_servers(clock::now()).await.unwrap();
    let leases = servers.iter().map(|one| (one.server.run, one.renewed_at));
    let ended = store.end_leases(leases.collect()).await.unwrap();
    assert_eq!(ended.len(), servers.len());
}

impl Scene {
    /// The store is away for a minute; the link to the first agent server broke meanwhile, and it is looked at before
    /// anybody has prolonged a lease. How many groups the first one has then.
    async fn looks_after_an_outage(&mut self) -> usize {
        self.first = None;
        run_out(&self.keeper.store).await;
        self.looks(60_000).await
    }
}

#[tokio::test]
async fn the_store_is_away_for_a_minute_and_comes_back_and_no_group_moves() {
    let mut scene = Scene::begin().await;
    let store = scene.keeper.store.clone();
    // Another process server reaches both, and has the store back later.
    let gateways = Gateways::new();
    let _reached = [1, 2].map(|number| gateways.reach(server(number)));
    let engine = Engine::of_none(store.clone());
    let mut other = Keeper::new(store, engine, Arc::clone(&gateways), None);
    look(&mut other, scene.now).await;

    assert_eq!(scene.looks_after_an_outage().await, 64);
    for _ in 0..5 {
        assert_eq!(scene.looks(1000).await, 64);
    }
    for number in [1, 2] {
        gateways.ask_lease(server(number).run, Box::new(|| {}));
    }
    look(&mut other, scene.now).await;
    for _ in 0..10 {
        assert_eq!(scene.looks(1000).await, 64);
    }
    let placed = other.store.placed_groups(clock::now()).await.unwrap();
    assert!(placed.iter().all(|one| one.group.epoch.0 == 1));
}

#[tokio::test]
async fn a_process_that_begins_leaves_those_alone_whom_it_has_not_reached_yet() {
    let scene = Scene::begin().await;
    let store = &scene.keeper.store;
    run_out(store).await;
    let gateways = Gateways::new();
    let _second = gateways.reach(server(2));
    gateways.settle(store).await.unwrap();
    assert_eq!(of_the_first(store).await, 64);
    let group = store.groups().await.unwrap()[0].id;
    assert_eq!(gateways.owner(group), Some(server(1).run));
}

#[tokio::test]
async fn one_that_nobody_reaches_when_the_store_is_back_is_waited_for_as_long_as_a_lease_lasts() {
    let mut scene = Scene::begin().await;
    assert_eq!(scene.looks_after_an_outage().await, 64);
    for _ in 0..11 {
        assert_eq!(scene.looks(1000).await, 64);
    }
    // Looks take some time of their own.
    scene.looks(1000).await;
    assert_eq!(scene.looks(1000).await, 0);
}

#[tokio::test]
async fn one_that_the_lock_service_misses_as_well_is_not_waited_for() {
    let mut scene = Scene::begin().await;
    scene.lie().await;
    assert_eq!(scene.looks_after_an_outage().await, 64);
    assert_eq!(scene.looks(2000).await, 64);
    assert_eq!(scene.looks(1499).await, 64, "it may still dispatch");
    assert_eq!(scene.looks(1).await, 0);
}

#[tokio::test]
async fn one_that_has_ended_in_order_is_not_waited_for() {
    let mut scene = Scene::begin().await;
    assert_eq!(scene.looks_after_an_outage().await, 64);
    scene.keeper.gateways.ended(server(1).run);
    assert_eq!(scene.looks(1000).await, 0);
}

#[tokio::test]
async fn a_lease_that_runs_out_while_the_store_is_there_is_over() {
    let mut scene = Scene::begin().await;
    for _ in 0..13 {
        assert_eq!(scene.looks(1000).await, 64);
    }
    scene.first = None;
    run_out(&scene.keeper.store).await;
    assert_eq!(scene.looks(1000).await, 0);
}
