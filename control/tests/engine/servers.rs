//! Several process servers on one store, each with an end of the gateway of its own.

use super::*;

impl World {
    /// Servers beside the first one.
    pub(crate) async fn beside(&self, count: usize) -> Vec<Started> {
        let store = self.store().clone();
        let mut servers = Vec::new();
        for port in 1..=count {
            servers.push(self.start_server(&store, port).await);
        }
        servers
    }
}

pub(crate) async fn end(servers: Vec<Started>) {
    for server in servers {
        server.stop.cancel();
        drop(server.task.await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_share_what_is_ready_and_nothing_is_done_twice() {
    let world = World::new(6, 31, Faults::ALL).await;
    let others = world.beside(2).await;
    let engines = [
        world.engine().clone(),
        others[0].engine.clone(),
        others[1].engine.clone(),
    ];
    let total = 180;
    for n in 0..total {
        let process = world.new_process(n % 6, &format!("m{n}"));
        let made = engines[n % 3].create(vec![process]).await.unwrap();
        assert!(matches!(made[0], Creation::Created(_)), "{made:?}");
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    world.check(total).await;
    let claimed: Vec<u64> = engines
        .iter()
        .map(|engine| engine.stats().claimed)
        .collect();
    assert!(
        claimed.iter().all(|claims| *claims > 0),
        "one did nothing: {claimed:?}"
    );
    end(others).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_server_had_claimed_and_made_is_finished_by_another() {
    let world = World::new(2, 32, Faults::NONE).await;
    let mut others = world.beside(1).await;
    let dead = others.remove(0);
    // What it claims never arrives anywhere: nobody but its successor can find that out.
    world.fleet.lose_commands_of(1);
    let total = 30;
    for n in 0..total {
        let process = world.new_process(n % 2, &format!("d{n}"));
        dead.engine.create(vec![process]).await.unwrap();
    }
    while world.count(State::Leased).await == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // As SIGKILL does it.
    let began = clock::monotonic();
    dead.task.abort();
    drop(dead.task.await);
    world.fleet.power_off_port(1);
    let lost = world.count(State::Leased).await;
    assert!(lost > 0);
    world.settle().await;
    let took = clock::monotonic() - began;
    // Gone after 10 s without a beat, noticed by the next one of the other, asked at once.
    assert!(
        took > Duration::from_secs(7),
        "nobody was taken for dead: {took:?}"
    );
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(world.count(State::Succeeded).await, total);
    world.check(total).await;
}

/// Attempts at `total` processes that all fail in passing, with so many servers beside the first, until the retry
/// budget lets no more through.
async fn attempts(beside: usize, total: usize) -> u64 {
    let flaky = Faults {
        flaky: true,
        ..Faults::NONE
    };
    let world = World::new(1, 34, flaky).await;
    let others = world.beside(beside).await;
    let mut engines = vec![world.engine().clone()];
    engines.extend(others.iter().map(|other| other.engine.clone()));
    for n in 0..total {
        let process = world.new_process(0, &format!("r{n}"));
        engines[n % engines.len()]
            .create(vec![process])
            .await
            .unwrap();
    }
    // Second attempts are due within 2 s, third ones 4 s later; who has no budget waits 10 s and more.
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(world.count(State::Backoff).await, total);
    end(others).await;
    engines.iter().map(|engine| engine.stats().claimed).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_servers_do_not_try_again_more() {
    let total = 40;
    let (alone, four) = tokio::join!(attempts(0, total), attempts(3, total));
    assert_eq!((alone, four), (50, 50), "first attempts, and ten retries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_reaches_every_server() {
    use control::process::pause::{PauseKey, PauseScope};
    let world = World::new(1, 33, Faults::NONE).await;
    let others = world.beside(1).await;
    let key = PauseKey::of_name(PauseScope::Tenant, "default");
    let pause = control::store::pauses::Pause {
        key: key.clone(),
        by: "ann".to_owned(),
        reason: "maintenance".to_owned(),
        at: clock::now(),
    };
    world.engine().pause(pause).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let process = world.new_process(0, "p");
    drop(others[0].engine.create(vec![process]).await.unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        world.count(State::Ready).await,
        1,
        "the other one knows of the pause"
    );
    let resumed = world
        .engine()
        .resume(key, clock::now(), "ann".to_owned(), String::new());
    assert!(resumed.await.unwrap());
    world.settle().await;
    world.check(1).await;
    end(others).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_shows_what_is_in_use_at_all_of_them() {
    let world = World::new(1, 34, Faults::NONE).await;
    let others = world.beside(1).await;
    // What the second one claims stays claimed.
    world.fleet.lose_commands_of(1);
    for n in 0..3 {
        let process = world.new_process(0, &format!("u{n}"));
        others[0].engine.create(vec![process]).await.unwrap();
    }
    let agent = world.fleet.targets()[0].agent;
    let nobody = ProcessId(uuid::Uuid::from_u128(1));
    // After a beat of each it is known that there are two.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let leased = u32::try_from(world.count(State::Leased).await).unwrap();
    assert!(leased > 0);
    for engine in [world.engine(), &others[0].engine] {
        let views = engine.agents(vec![agent]).await.unwrap();
        assert_eq!(views[0].in_use, leased);
        let waits = engine.waiting_on(nobody, agent).await.unwrap();
        let Some(dispatch::WaitingOn::Host(queued)) = waits else {
            panic!("{waits:?}");
        };
        assert_eq!(queued.in_use, leased);
    }
    end(others).await;
}
