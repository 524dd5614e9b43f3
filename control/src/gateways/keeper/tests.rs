mod away;
mod made;

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use protocol::link::Leave;

use super::super::{AgentServer, Reached};
use super::*;
use crate::clock::UnixMs;
use crate::coordination::{CoordinationError, Held, LocalBus, Name};

/// Grants every lock to everybody, and says of all that they are held, or that none is.
#[derive(Default)]
struct Liar {
    says_vacant: AtomicBool,
}

impl Locks for Liar {
    fn try_acquire<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>> {
        // A new bus knows of no other holder.
        async move { LocalBus::default().locks().try_acquire(name).await }.boxed()
    }

    fn vacant<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>> {
        async {
            while !self.says_vacant.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        }
        .boxed()
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        async { Ok("whatever you like".to_owned()) }.boxed()
    }
}

fn server(number: u8) -> AgentServer {
    AgentServer {
        run: GatewayId::from_bytes([number; 16]),
        link: format!("{number}.example:7444"),
        addresses: vec![format!("{number}.example:7443")],
        shards: 2,
        capacity: 10_000,
    }
}

/// Nothing settles in so short a time: only groups of the dead move.
async fn look(keeper: &mut Keeper, now: Instant) {
    keeper.since = now;
    keeper.look(now).await.unwrap();
}

/// How many groups the first agent server has.
async fn of_the_first(store: &Store) -> usize {
    let placed = store.placed_groups(clock::now()).await.unwrap();
    let of_it = placed.iter().filter(|one| one.owner == Some(server(1).run));
    of_it.count()
}

/// Two agent servers that are reached, of which the first owns all groups.
struct Scene {
    liar: Arc<Liar>,
    keeper: Keeper,
    first: Option<Reached>,
    _second: Reached,
    /// The time of the last look.
    now: Instant,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn begin() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open("sqlite:", folder.path()).await.unwrap();
        store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
        let (gateways, liar) = (Gateways::new(), Arc::<Liar>::default());
        let locks = Arc::<Liar>::clone(&liar);
        let first = gateways.reach(server(1));
        let (engine, watch) = (Engine::of_none(store.clone()), Watch::new(locks));
        let mut keeper = Keeper::new(store, engine, Arc::clone(&gateways), Some(watch));
        keeper.look(clock::monotonic()).await.unwrap();
        let mut scene = Self {
            liar,
            keeper,
            first: Some(first),
            _second: gateways.reach(server(2)),
            now: clock::monotonic(),
            _folder: folder,
        };
        assert_eq!(scene.looks(0).await, 64);
        scene
    }

    /// Looks so much later; how many groups the first one has then.
    async fn looks(&mut self, later_ms: u64) -> usize {
        self.now += Duration::from_millis(later_ms);
        look(&mut self.keeper, self.now).await;
        of_the_first(&self.keeper.store).await
    }

    /// The service says from now on that all locks are vacant, as it had said that they are held.
    async fn lie(&mut self) {
        tokio::time::sleep(Duration::from_millis(600)).await;
        self.liar.says_vacant.store(true, Ordering::Relaxed);
        while self.keeper.suspects().len() < 2 {
            changed(&mut self.keeper.watch).await;
        }
    }
}

#[tokio::test]
async fn nothing_moves_from_one_that_answers_whatever_a_lock_service_says() {
    let mut scene = Scene::begin().await;
    scene.lie().await;
    for _ in 0..4 {
        assert_eq!(scene.looks(4000).await, 64);
    }
    assert!(
        scene.keeper.gateways.is_doubted(server(1).run),
        "it is asked"
    );
}

#[tokio::test]
async fn nothing_moves_from_one_that_answers_somebody_else() {
    let mut scene = Scene::begin().await;
    scene.lie().await;
    scene.first = None;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let prolonged = vec![server(1)];
        let store = &scene.keeper.store;
        store
            .renew_agent_servers(prolonged, clock::now())
            .await
            .unwrap();
        assert_eq!(scene.looks(3400).await, 64);
    }
}

#[tokio::test]
async fn one_that_nobody_reaches_keeps_its_groups_while_its_lock_is_held() {
    let mut scene = Scene::begin().await;
    scene.first = None;
    assert_eq!(scene.looks(4000).await, 64, "until its lease is over");
}

#[tokio::test]
async fn one_that_is_gone_by_all_that_is_known_is_given_up_early() {
    let mut scene = Scene::begin().await;
    scene.lie().await;
    scene.first = None;
    assert_eq!(scene.looks(0).await, 64);
    assert_eq!(scene.looks(3499).await, 64, "it may still dispatch");
    assert_eq!(scene.looks(1).await, 0);
    let placed = scene
        .keeper
        .store
        .placed_groups(clock::now())
        .await
        .unwrap();
    assert!(placed.iter().all(|one| one.group.epoch.0 == 2), "each once");
    // It comes back as the same run, as one that stood still: what it had is another's.
    scene.first = Some(scene.keeper.gateways.reach(server(1)));
    assert_eq!(scene.looks(1000).await, 0);
}

#[tokio::test]
async fn groups_move_two_a_second_however_often_it_looks() {
    let mut scene = Scene::begin().await;
    let mut looks = async |later_ms| {
        scene.now += Duration::from_millis(later_ms);
        scene.keeper.look(scene.now).await.unwrap();
        let store = &scene.keeper.store;
        let placed = store.placed_groups(clock::now()).await.unwrap();
        let second = placed.iter().filter(|one| one.owner == Some(server(2).run));
        second.count()
    };
    assert_eq!(looks(8000).await, 0, "they have not settled");
    assert_eq!(looks(2000).await, 2);
    assert_eq!(looks(250).await, 2);
    assert_eq!(looks(749).await, 2);
    assert_eq!(looks(1).await, 4);
}

#[tokio::test]
async fn groups_move_two_a_second_however_many_programs_look_after_them() {
    let mut scene = Scene::begin().await;
    let store = scene.keeper.store.clone();
    let gateways = Gateways::new();
    let _reached = [server(1), server(2)].map(|server| gateways.reach(server));
    let engine = Engine::of_none(store.clone());
    let mut other = Keeper::new(store.clone(), engine, gateways, None);
    other.look(scene.now).await.unwrap();
    scene.now += SETTLED_AFTER;
    for second in 0..8 {
        scene.keeper.look(scene.now).await.unwrap();
        other
            .look(scene.now + Duration::from_millis(500))
            .await
            .unwrap();
        scene.now += Duration::from_secs(1);
        assert_eq!(of_the_first(&store).await, 62 - 2 * second);
    }
    // The first program is gone: the other goes on.
    scene.now += Duration::from_secs(1);
    other.look(scene.now).await.unwrap();
    assert_eq!(of_the_first(&store).await, 46);
}

#[tokio::test]
async fn one_that_is_told_to_stop_gives_all_away_in_time_and_may_stop_then() {
    let mut scene = Scene::begin().await;
    let gateways = Arc::clone(&scene.keeper.gateways);
    let within = Duration::from_secs(20);
    assert_eq!(gateways.may_leave(server(1).run), Leave::NotYet);
    gateways.leaves(server(1).run, within);
    let mut looks = 0;
    while scene.looks(1000).await > 0 {
        assert_eq!(gateways.may_leave(server(1).run), Leave::NotYet);
        looks += 1;
        assert!(looks < within.as_secs(), "it takes too long");
    }
    assert_eq!(gateways.may_leave(server(1).run), Leave::Empty);
    assert!(looks > 2, "not all at once");

    // People see it, and it is given nothing more.
    let registered = scene.keeper.store.agent_servers(clock::now()).await;
    let draining: Vec<bool> = registered.unwrap().iter().map(|one| one.draining).collect();
    assert_eq!(draining, [true, false]);
    // The next one is the last.
    gateways.leaves(server(2).run, within);
    assert_eq!(scene.looks(1000).await, 0);
    assert_eq!(gateways.may_leave(server(2).run), Leave::Alone);
}

#[tokio::test]
async fn however_many_ask_there_is_some_time_between_looks_and_none_when_one_is_gone() {
    const HOUR: Duration = Duration::from_secs(3600);
    let gateways = Gateways::new();
    let at_once = |apart| due(&gateways, apart, HOUR).now_or_never().is_some();
    let ask = || gateways.ask_lease(server(1).run, Box::new(|| {}));
    ask();
    ask();
    assert!(!at_once(HOUR));
    due(&gateways, Duration::ZERO, HOUR).await;
    due(&gateways, Duration::ZERO, Duration::ZERO).await;
    drop(gateways.reach(server(1)));
    assert!(at_once(HOUR), "its groups wait");
    assert!(!at_once(HOUR));
    gateways.ended(server(1).run);
    assert!(at_once(HOUR));
}
