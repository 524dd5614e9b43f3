//! Process servers with real lock services that stand still, die and come back under them.

use control::coordination::{self, LocksUrl};
use testkit::{Redis, Server, ZooKeeper};

use super::hints::{dies_and_is_followed, make, taken_for_gone};
use super::servers::end;
use super::*;

/// The service is hurt in every way while all fails that can; then it is of use again.
async fn goes_on_whatever_the_service_does(server: &Server, url: &str, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open("sqlite:", folder.path()).await.unwrap();
    let locks = coordination::locks(&LocksUrl::parse(url).unwrap(), &store).unwrap();
    let company = Company {
        locks: Some(Arc::clone(&locks)),
        ..Company::default()
    };
    let world = World::among(company, 6, seed, Faults::ALL).await;
    let others = world.beside(2).await;
    make(&world, &others, 30, "a").await;
    server.pause();
    make(&world, &others, 30, "b").await;
    // Until its lock is lost, nobody has missed the service.
    tokio::time::sleep(locks.lease() * 2).await;
    server.resume();
    make(&world, &others, 30, "c").await;
    server.kill().await.unwrap();
    make(&world, &others, 30, "d").await;
    tokio::time::sleep(locks.lease() * 2).await;
    server.restart().await.unwrap();
    make(&world, &others, 30, "e").await;
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    world.check(150).await;
    assert_eq!(taken_for_gone(&world).await, 0, "all have beaten");
    end(others).await;

    while locks.check().await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = dies_and_is_followed(&world, 30, "f").await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    world.check(180).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_may_do_what_it_likes() {
    let redis = Redis::start().await.unwrap();
    goes_on_whatever_the_service_does(&redis, &redis.url(), 51).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeeper_may_do_what_it_likes() {
    let zookeeper = ZooKeeper::start().await.unwrap();
    goes_on_whatever_the_service_does(&zookeeper, &zookeeper.url(), 52).await;
}
