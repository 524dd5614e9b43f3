//! Keepers, on a store and a gateway that takes everything and says nothing.

use std::future::ready;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard};

use protocol::ids::{AgentId, GatewayId, ServerId};
use protocol::link::{Event, Request};
use uuid::Uuid;

use super::*;
use crate::downlink::{Link, LinkFull, Wake};
use crate::process::Input;
use crate::store::processes::{Batch, Creation, Happened, NewProcess};
use crate::store::workers::{BEAT_EVERY, TAKE_OVER_STEP};

#[derive(Clone, Default)]
struct Gateway {
    next: Arc<AtomicU32>,
    /// How each of those that have joined is cut off, in order.
    joined: Arc<Mutex<Vec<CancellationToken>>>,
}

struct Port(CancellationToken);

impl Link for Port {
    fn gateway(&self) -> GatewayId {
        GatewayId(Uuid::from_u128(1))
    }

    fn cut_off(&self) -> CancellationToken {
        self.0.clone()
    }

    fn send(&self, _: Request) -> Result<(), LinkFull> {
        Ok(())
    }

    fn receive(&self, _: &mut Vec<Event>, _: usize) -> usize {
        0
    }
}

impl Gateway {
    fn join(&self) -> End {
        let cut_off = CancellationToken::new();
        self.joined().push(cut_off.clone());
        End {
            server: ServerId(self.next.fetch_add(1, Ordering::Relaxed)),
            link: Arc::new(Port(cut_off)),
            wake: Wake::new(),
        }
    }

    fn joined(&self) -> MutexGuard<'_, Vec<CancellationToken>> {
        self.joined.lock().unwrap()
    }

    fn several(&self, servers: u32) -> Ends {
        let gateway = self.clone();
        let join: Join = Arc::new(move || Box::pin(ready(gateway.join())));
        Ends::Several { servers, join }
    }
}

struct World {
    _directory: tempfile::TempDir,
    store: Store,
    front: Front,
    servers: Servers,
}

impl World {
    async fn new(ends: Ends) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open("sqlite:", directory.path()).await.unwrap();
        let (front, servers) = start(&store, ends, Services::default()).await.unwrap();
        Self {
            _directory: directory,
            store,
            front,
            servers,
        }
    }

    fn deaths(&self) -> (u64, u64) {
        let deaths = &self.servers.deaths;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&deaths.ended), count(&deaths.cut_off))
    }

    async fn answers(&self) -> bool {
        self.front.engine.connected().await.is_ok()
    }

    /// All end, within a second.
    async fn drain(self) {
        let began = clock::monotonic();
        self.servers
            .drain(self.front.keepers, Duration::from_secs(10))
            .await;
        assert!(clock::monotonic() - began < Duration::from_secs(5));
    }
}

async fn eventually(what: &str, look: impl Fn() -> bool) {
    for _ in 0..400 {
        if look() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited in vain for: {what}");
}

#[tokio::test]
async fn whoever_crashes_is_followed_under_a_new_number_and_the_door_leads_to_the_others() {
    let gateway = Gateway::default();
    let world = World::new(gateway.several(2)).await;
    for dead in 1..=3 {
        eventually("both", || world.servers.mishaps.living() == 2).await;
        world.servers.mishaps.crash_any();
        eventually("its death", || world.deaths().0 == dead).await;
        assert!(world.answers().await, "the other one does");
        let joined = 2 + usize::try_from(dead).unwrap();
        eventually("another one", || gateway.joined().len() == joined).await;
    }
    eventually("both", || world.servers.mishaps.living() == 2).await;
    assert_eq!(world.deaths(), (3, 0));
    world.drain().await;
}

#[tokio::test]
async fn without_a_gateway_the_rest_begins_and_they_follow_when_it_is_there() {
    let gateway = Gateway::default();
    let there = CancellationToken::new();
    let (far, comes) = (gateway.clone(), there.clone());
    let join: Join = Arc::new(move || {
        let (far, comes) = (far.clone(), comes.clone());
        Box::pin(async move {
            comes.cancelled().await;
            far.join()
        })
    });
    let world = World::new(Ends::Several { servers: 2, join }).await;
    assert!(!world.answers().await, "nobody is there to answer");
    assert_eq!((gateway.joined().len(), world.deaths()), (0, (0, 0)));
    there.cancel();
    eventually("both", || world.servers.mishaps.living() == 2).await;
    assert!(world.answers().await);
    world.drain().await;
}

#[tokio::test]
async fn whoever_still_waits_for_a_gateway_ends_when_it_is_told() {
    let join: Join = Arc::new(|| Box::pin(std::future::pending()));
    let world = World::new(Ends::Several { servers: 2, join }).await;
    world.drain().await;
}

#[tokio::test]
async fn what_one_leaves_is_taken_over_step_after_step_without_a_pause() {
    let world = World::new(Gateway::default().several(1)).await;
    let dead = Uuid::from_u128(7);
    world.store.begin_worker(dead, clock::now()).await.unwrap();
    let count = 3 * TAKE_OVER_STEP as usize + 1;
    let deadline = clock::now().plus(Duration::from_secs(600));
    for seed in 0..count as u64 {
        let agent = AgentId(Uuid::from_u128(9));
        let batch = Batch {
            at: clock::now(),
            seed,
            creates: vec![NewProcess::of_driver(agent, "exec", "{}", deadline)],
            ..Batch::default()
        };
        let made = world.store.apply(batch).await.unwrap().creations;
        let [Creation::Created(record)] = &made[..] else {
            panic!("{made:?}");
        };
        let batch = Batch {
            at: clock::now(),
            worker: Some(dead),
            inputs: vec![Happened::new(record.id, Input::Claim)],
            ..Batch::default()
        };
        world.store.apply(batch).await.unwrap();
    }
    let began = clock::monotonic();
    world.store.end_worker(dead, clock::now()).await.unwrap();
    while !world.store.leases(dead).await.unwrap().is_empty() {
        assert!(
            clock::monotonic() - began < BEAT_EVERY * 2,
            "its beats wait for each other"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.drain().await;
}

#[tokio::test]
async fn one_that_is_to_stay_dead_is_not_followed() {
    let gateway = Gateway::default();
    let world = World::new(gateway.several(2)).await;
    eventually("both", || world.servers.mishaps.living() == 2).await;
    world.servers.mishaps.crash_last_for_good();
    eventually("its death", || world.deaths().0 == 1).await;
    tokio::time::sleep(PAUSE_FIRST * 2).await;
    assert_eq!(gateway.joined().len(), 2);
    assert!(world.answers().await);
    world.drain().await;
}

#[tokio::test]
async fn one_that_hangs_is_followed_when_it_is_cut_off_though_it_does_not_end_by_itself() {
    let gateway = Gateway::default();
    let world = World::new(gateway.several(2)).await;
    eventually("both", || world.servers.mishaps.living() == 2).await;
    world.servers.mishaps.hang_last(Duration::from_secs(3600));
    tokio::time::sleep(PAUSE_FIRST * 2).await;
    assert_eq!((world.deaths(), gateway.joined().len()), ((0, 0), 2));
    let last = gateway.joined()[1].clone();
    last.cancel();
    eventually("another one", || gateway.joined().len() == 3).await;
    eventually("both", || world.servers.mishaps.living() == 2).await;
    assert_eq!(world.deaths(), (0, 1));
    world.drain().await;
}

#[tokio::test]
async fn without_its_only_process_server_the_program_is_to_end() {
    let mut world = World::new(Ends::One(Gateway::default().join())).await;
    eventually("it", || world.servers.mishaps.living() == 1).await;
    world.servers.mishaps.crash_any();
    let keeper = world.front.keepers.remove(0);
    timeout(Duration::from_secs(20), keeper)
        .await
        .unwrap()
        .unwrap();
    assert!(!world.answers().await);
    assert_eq!(world.deaths(), (1, 0));
}

#[tokio::test]
async fn where_none_lives_and_none_can_be_started_the_program_is_to_end() {
    let mut world = World::new(Gateway::default().several(2)).await;
    eventually("both", || world.servers.mishaps.living() == 2).await;
    world.store.clone().close().await;
    for left in [1, 0] {
        world.servers.mishaps.crash_any();
        eventually("a death", || world.servers.mishaps.living() == left).await;
    }
    let keeper = world.front.keepers.remove(0);
    timeout(Duration::from_secs(20), keeper)
        .await
        .unwrap()
        .unwrap();
}
