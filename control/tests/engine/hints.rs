//! Process servers with a lock service: one that helps, one that lies, one that is away. It makes them quicker, and
//! never wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use control::coordination::{CoordinationError, Held, LocalBus, Locks, Name};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::servers::end;
use super::*;

/// Grants every lock to everybody, and says of every lock that nobody has it.
#[derive(Default)]
struct Lying {
    granted: AtomicU64,
    denied: AtomicU64,
}

impl Locks for Lying {
    fn try_acquire<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>> {
        self.granted.fetch_add(1, Ordering::Relaxed);
        // A new bus knows of no other holder.
        async move { LocalBus::default().locks().try_acquire(name).await }.boxed()
    }

    fn vacant<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
        self.denied.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }.boxed()
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        async { Ok("whatever you like".to_owned()) }.boxed()
    }
}

/// A service that can be away: whoever asks then is told so.
#[derive(Default)]
struct Moody {
    bus: LocalBus,
    away: AtomicBool,
}

impl Moody {
    fn ask<T: Send + 'static>(
        &self,
        answer: BoxFuture<'static, Result<T, CoordinationError>>,
    ) -> BoxFuture<'static, Result<T, CoordinationError>> {
        match self.away.load(Ordering::Relaxed) {
            false => answer,
            true => async {
                Err(CoordinationError::Service {
                    service: "test",
                    place: "nowhere".to_owned(),
                    detail: "away".to_owned(),
                })
            }
            .boxed(),
        }
    }
}

impl Locks for Moody {
    fn try_acquire<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>> {
        let (locks, name) = (self.bus.locks(), name.clone());
        self.ask(async move { locks.try_acquire(&name).await }.boxed())
    }

    fn vacant<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
        let (locks, name) = (self.bus.locks(), name.clone());
        self.ask(async move { locks.vacant(&name).await }.boxed())
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        self.ask(async { Ok("moody".to_owned()) }.boxed())
    }
}

fn watched(locks: &Arc<impl Locks + 'static>) -> Company {
    Company {
        locks: Some(Arc::clone(locks) as Arc<dyn Locks>),
        ..Company::default()
    }
}

/// What was written about servers that were taken for gone.
pub(crate) async fn taken_for_gone(world: &World) -> usize {
    let rows = world.store().events_after(0, None, 10_000).await.unwrap();
    rows.iter().filter(|row| row.kind == "server.gone").count()
}

/// Lets a second server die that has claimed something, with its lock; how long until the first has finished it all.
pub(crate) async fn dies_and_is_followed(world: &World, total: usize, key: &str) -> Duration {
    let dead = world.beside(1).await.remove(0);
    // Each hears of the other with its next beat, and looks at its lock.
    tokio::time::sleep(Duration::from_secs(4)).await;
    // What it claims never arrives anywhere: nobody but its successor can find that out.
    world.fleet.lose_commands_of(1);
    for n in 0..total {
        let process = world.new_process(n % 2, &format!("{key}{n}"));
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
    assert!(world.count(State::Leased).await > 0);
    world.settle().await;
    clock::monotonic() - began
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_is_followed_sooner_where_a_lock_service_tells() {
    let locks = Arc::new(Moody::default());
    let world = World::among(watched(&locks), 2, 41, Faults::NONE).await;
    let took = dies_and_is_followed(&world, 30, "a").await;
    // Two beats were missed, and no more: by the store alone it is 10 s.
    assert!(took > Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(taken_for_gone(&world).await, 1);
    world.check(30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_service_is_away_it_takes_longer_and_nothing_is_lost() {
    let locks = Arc::new(Moody::default());
    locks.away.store(true, Ordering::Relaxed);
    let world = World::among(watched(&locks), 2, 42, Faults::NONE).await;
    let took = dies_and_is_followed(&world, 30, "a").await;
    assert!(took > Duration::from_secs(7), "{took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    // It is back, and is of use again.
    locks.away.store(false, Ordering::Relaxed);
    let took = dies_and_is_followed(&world, 30, "b").await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    world.check(60).await;
}

/// Makes processes at all servers, while everything fails that can.
pub(crate) async fn make(world: &World, others: &[Started], total: usize, key: &str) {
    for n in 0..total {
        let engine = others
            .get(n % 3)
            .map_or(world.engine(), |other| &other.engine);
        let process = world.new_process(n % 6, &format!("{key}{n}"));
        engine.create(vec![process]).await.unwrap();
        if n % 30 == 0 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_grants_everything_to_everybody_takes_nothing_from_whoever_beats() {
    let locks = Arc::new(Lying::default());
    let world = World::among(watched(&locks), 6, 43, Faults::ALL).await;
    let others = world.beside(2).await;
    make(&world, &others, 180, "l").await;
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    world.check(180).await;
    assert!(locks.granted.load(Ordering::Relaxed) >= 3);
    let lies = locks.denied.load(Ordering::Relaxed);
    assert!(lies > 6, "each was said to be gone: {lies}");
    assert_eq!(taken_for_gone(&world).await, 0);
    end(others).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_hangs_while_the_service_lies_is_taken_for_gone_and_nothing_is_done_twice() {
    let locks = Arc::new(Lying::default());
    let world = World::among(watched(&locks), 6, 44, Faults::ALL).await;
    let others = world.beside(2).await;
    for port in [1, 2] {
        world.fleet.lose_commands_of(port);
    }
    make(&world, &others, 90, "l").await;
    // What these have claimed goes nowhere, so more and more of it is theirs.
    while world.count(State::Leased).await < 6 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for port in [1, 2] {
        world.fleet.hang_port(port, Duration::from_secs(7));
        world.fleet.deliver_commands_of(port);
    }
    for n in 0..90 {
        let process = world.new_process(n % 6, &format!("m{n}"));
        world.engine().create(vec![process]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(9)).await;
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    world.check(180).await;
    let gone = taken_for_gone(&world).await;
    assert!(gone >= 1, "they had claimed something: {gone}");
    end(others).await;
}
