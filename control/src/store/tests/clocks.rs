//! Machines whose clocks differ, on one store. Of the embedded store there is one machine.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::ids::{AgentId, Epoch, GatewayId};
use uuid::Uuid;

use super::super::processes::{Batch, Creation, Happened, NewProcess};
use super::super::workers::{Asks, BEAT_EXPIRY};
use super::super::{Store, inspect_server};
use super::{conformance, open};
use crate::clock::UnixMs;
use crate::gateways::{AgentServer, LEASE, Pin};
use crate::process::Input;

const AGENT: AgentId = AgentId(Uuid::from_u128(7));
/// So far each clock is from the database's, one ahead and one behind.
const OFF_MS: i64 = 30_000;
/// For what takes time.
const SLACK_MS: u64 = 2000;

/// A server: its store, its process server, and the agent server beside it.
struct Machine {
    store: Store,
    worker: Uuid,
    agents: AgentServer,
}

impl Machine {
    async fn new(directory: &std::path::Path, number: u8, ahead: i64) -> Self {
        let store = open(directory).await.unwrap();
        store.set_clock_ahead(ahead).await;
        let off = store.clock_offset().saturating_add(ahead);
        assert!(off.unsigned_abs() < SLACK_MS, "it was measured: {off}");
        Self {
            store,
            worker: Uuid::from_u128(u128::from(number)),
            agents: AgentServer {
                run: GatewayId::from_bytes([number; 16]),
                link: format!("{number}:744"),
                addresses: vec![format!("{number}:743")],
                shards: 1,
                capacity: 0,
            },
        }
    }

    fn now(&self) -> UnixMs {
        self.store.wall()
    }

    /// Has a process of its own on its way.
    async fn claims(&self) {
        let deadline = self.now().plus(Duration::from_secs(3600));
        let batch = |creates, inputs| Batch {
            at: self.now(),
            seed: rand::random(),
            worker: Some(self.worker),
            creates,
            inputs,
            ..Batch::default()
        };
        let new = NewProcess::of_driver(AGENT, "exec", "{}", deadline);
        let made = self
            .store
            .apply(batch(vec![new], Vec::new()))
            .await
            .unwrap();
        let [Creation::Created(record)] = &made.creations[..] else {
            panic!("{:?}", made.creations);
        };
        let claim = Happened::new(record.id, Input::Claim);
        self.store
            .apply(batch(Vec::new(), vec![claim]))
            .await
            .unwrap();
    }

    /// Beats at `now`: process servers that live, claims that it takes over, and whether it sweeps.
    async fn beats(&self, now: UnixMs) -> (u32, usize, bool) {
        let beat = self.store.beat(self.worker, now, Asks::default());
        let beat = beat.await.unwrap();
        (beat.live, beat.adopted.len(), beat.sweeps)
    }

    /// When each agent server was prolonged last; all of them are `alive`.
    async fn renewals(&self, now: UnixMs, alive: bool) -> BTreeMap<GatewayId, UnixMs> {
        let all = self.store.agent_servers(now).await.unwrap();
        assert!(all.iter().all(|one| one.alive == alive), "{all:?}");
        all.into_iter()
            .map(|one| (one.server.run, one.renewed_at))
            .collect()
    }

    /// Takes the groups of agent servers that are dead, as it sees it; epochs of all groups.
    async fn takes_orphans(&self) -> Vec<Epoch> {
        let servers = self.store.agent_servers(self.now()).await.unwrap();
        let lives = |run: &GatewayId| {
            servers
                .iter()
                .any(|one| one.alive && one.server.run == *run)
        };
        let groups = self.store.placed_groups(self.now()).await.unwrap();
        let orphans = groups
            .iter()
            .filter(|placed| !placed.owner.is_some_and(|owner| lives(&owner)));
        let gifts = orphans.map(|placed| (placed.group.clone(), self.agents.run));
        self.store.give_groups(gifts.collect()).await.unwrap();
        groups.iter().map(|placed| placed.group.epoch).collect()
    }
}

async fn machines() -> (tempfile::TempDir, [Machine; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let ahead = Machine::new(directory.path(), 1, OFF_MS).await;
    let behind = Machine::new(directory.path(), 2, -OFF_MS).await;
    (directory, [ahead, behind])
}

#[tokio::main(flavor = "multi_thread")]
async fn servers_whose_clocks_are_a_minute_apart_take_nothing_from_each_other() {
    let (directory, all) = machines().await;
    for one in &all {
        let (store, now) = (&one.store, one.now());
        store.begin_worker(one.worker, now).await.unwrap();
        let agents = vec![one.agents.clone()];
        store.renew_agent_servers(agents, now).await.unwrap();
        let group = store.create_group(&one.agents.link, now).await.unwrap();
        let given = store.give_groups(vec![(group, one.agents.run)]).await;
        assert_eq!(given.unwrap(), 1);
        one.claims().await;
    }
    let until = |one: &Machine| one.now().plus(LEASE * 2);
    let [first, second] = &all;
    let locked = first
        .store
        .take_lock("x", first.worker, first.now(), until(first));
    assert!(locked.await.unwrap());
    let mut before = BTreeMap::new();
    for round in 0..6 {
        for (number, one) in all.iter().enumerate() {
            let agents = all.iter().map(|one| one.agents.clone()).collect();
            one.store
                .renew_agent_servers(agents, one.now())
                .await
                .unwrap();
            let renewed = one.renewals(one.now(), true).await;
            let falls = renewed.iter().any(|(run, at)| before.get(run) > Some(at));
            assert!(!falls, "{before:?} {renewed:?}");
            before = renewed;
            let beat = one.beats(one.now()).await;
            assert_eq!(beat, (2, 0, number == 0), "round {round}");
            assert_eq!(one.takes_orphans().await, [Epoch(1), Epoch(1)]);
            let left = one.store.lock_remaining("x", one.now()).await.unwrap();
            assert!(left.is_some_and(|left| left < LEASE * 3), "{left:?}");
        }
        let stolen = second
            .store
            .take_lock("x", second.worker, second.now(), until(second));
        assert!(!stolen.await.unwrap(), "it is held");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = conformance::url(directory.path()).await;
    assert_eq!(inspect_server(&url).await.unwrap().unwrap().servers, 2);
}

#[tokio::main(flavor = "multi_thread")]
async fn whoever_is_silent_is_gone_for_all_whatever_their_clocks_say() {
    let (_directory, all) = machines().await;
    let [first, second] = &all;
    for one in &all {
        let (store, now) = (&one.store, one.now());
        store.begin_worker(one.worker, now).await.unwrap();
        let agents = vec![one.agents.clone()];
        store.renew_agent_servers(agents, now).await.unwrap();
        one.claims().await;
    }
    let slack = Duration::from_millis(SLACK_MS);
    for one in &all {
        let late = |after: Duration| one.now().plus(after);
        one.renewals(one.now().plus(LEASE).minus(slack), true).await;
        one.renewals(late(LEASE + slack), false).await;
    }
    // The store is there all the time: one beats.
    let early = second.now().plus(BEAT_EXPIRY / 2);
    assert_eq!(second.beats(early).await.1, 0);
    let late = second.now().plus(BEAT_EXPIRY + slack);
    assert_eq!(second.beats(late).await, (1, 1, true));
    // Whose end is seen is gone at once.
    let ended = second.store.end_worker(second.worker, second.now());
    ended.await.unwrap();
    assert_eq!(first.beats(first.now()).await, (1, 2, true));
}

#[tokio::main(flavor = "multi_thread")]
async fn an_agent_server_that_came_back_under_another_address_is_forgotten_after_a_week() {
    let (_directory, all) = machines().await;
    let [old, new] = &all;
    let day = Duration::from_secs(86_400);
    let now = new.now();
    let listed = async |one: &Machine, at: UnixMs| {
        let agents = vec![one.agents.clone()];
        one.store.renew_agent_servers(agents, at).await.unwrap();
        new.store.agent_servers(at).await.unwrap().len()
    };
    assert_eq!(listed(old, old.now()).await, 1);
    assert_eq!(
        listed(new, now.plus(day * 6)).await,
        2,
        "people may look for it"
    );
    assert_eq!(listed(new, now.plus(day * 8)).await, 1);
}

#[tokio::main(flavor = "multi_thread")]
async fn a_lease_is_not_shortened_by_whoever_comes_later_with_an_earlier_time() {
    let (_directory, all) = machines().await;
    let [first, second] = &all;
    let renew = async |one: &Machine, now: UnixMs| {
        let agents = vec![first.agents.clone()];
        one.store.renew_agent_servers(agents, now).await.unwrap();
        let renewed = one.store.agent_servers(now).await.unwrap();
        renewed[0].renewed_at
    };
    let long = renew(first, first.now()).await;
    let early = second.now().minus(Duration::from_secs(5));
    let again = renew(second, early).await;
    assert_eq!(again, UnixMs(long.0 + 1), "and it is another lease");
    let stale = vec![(first.agents.run, long)];
    assert_eq!(first.store.end_leases(stale).await.unwrap(), []);
    // The database's clock was an hour ahead: nobody lives so long by it.
    let hour = Duration::from_secs(3600);
    let wrong = renew(first, first.now().plus(hour)).await;
    let right = renew(second, second.now()).await;
    assert!(wrong.minus(hour) <= right.plus(LEASE) && right < wrong.minus(hour / 2));
}

#[tokio::main(flavor = "multi_thread")]
async fn a_pin_that_ends_by_itself_ends_for_all_at_once_whatever_their_clocks_say() {
    let (_directory, all) = machines().await;
    let created = all[0].store.create_group("east", all[0].now());
    let group = created.await.unwrap().id;
    let long = Duration::from_secs(10);
    let pinned = async |one: &Machine, now: UnixMs| {
        let placed = one.store.placed_groups(now).await.unwrap();
        placed[0].pin.is_some()
    };
    for by in &all {
        let pin = Pin {
            link: by.agents.link.clone(),
            until: Some(by.now().plus(long)),
        };
        by.store.pin_groups(vec![(group, pin)]).await.unwrap();
        for one in &all {
            let slack = Duration::from_millis(SLACK_MS);
            let at = |after: Duration| one.now().plus(after);
            assert!(pinned(one, at(long).minus(slack)).await);
            assert!(!pinned(one, at(long + slack)).await);
        }
    }
}

conformance::suite! {
    servers_whose_clocks_are_a_minute_apart_take_nothing_from_each_other,
    whoever_is_silent_is_gone_for_all_whatever_their_clocks_say,
    an_agent_server_that_came_back_under_another_address_is_forgotten_after_a_week,
    a_lease_is_not_shortened_by_whoever_comes_later_with_an_earlier_time,
    a_pin_that_ends_by_itself_ends_for_all_at_once_whatever_their_clocks_say,
}
