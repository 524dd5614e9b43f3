//! Process servers whose store's server dies and comes back under them.

use testkit::MariaDb;

use super::hints::taken_for_gone;
use super::servers::end;
use super::*;

/// Longer than any server believes in its last beat, and than any is waited for.
const AWAY: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn when_the_store_is_back_all_goes_on_at_once_and_meanwhile_nothing_spins() {
    let mariadb = MariaDb::start().await.unwrap();
    let url = mariadb.database("outage").await.unwrap();
    let mut world = World {
        company: Company::default(),
        directory: tempfile::tempdir().unwrap(),
        fleet: Fleet::new(6, 61, Faults::NONE),
        server: None,
    };
    // Each on an opening of its own, as two programs.
    let store = Store::open(&url, world.directory.path()).await.unwrap();
    enrol(&store, &world.fleet).await;
    let first = world.start_server(&store, 0).await;
    world.server = Some((store, first));
    let beside = Store::open(&url, world.directory.path()).await.unwrap();
    let other = world.start_server(&beside, 1).await;
    world.fleet.set_faults(Faults {
        stuck: true,
        ..Faults::NONE
    });
    let total = 60;
    for n in 0..total {
        let engine = [world.engine(), &other.engine][n % 2];
        let process = world.new_process(n % 6, &format!("o{n}"));
        engine.create(vec![process]).await.unwrap();
    }
    while world.count(State::Running).await < 24 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    mariadb.kill().await.unwrap();
    // From here on agents have room, and nobody may claim anything for them.
    world.fleet.set_faults(Faults::NONE);
    tokio::time::sleep(AWAY - Duration::from_secs(3)).await;
    let returned = || {
        let engines = [world.engine(), &other.engine].into_iter();
        let stats = engines.map(|engine| engine.stats().permits_returned);
        stats.sum::<u64>()
    };
    let before = returned();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let given = returned() - before;
    mariadb.restart().await.unwrap();
    let began = clock::monotonic();
    world.settle().await;
    let took = clock::monotonic() - began;
    world.check(total).await;
    assert!(given < 30, "{given} permits in 3 s for nothing");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(taken_for_gone(&world).await, 0, "both live");
    println!("{given} permits while it was away; all done after {took:?}");
    end(vec![other]).await;
}
