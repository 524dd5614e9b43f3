//! The process server on a real store, against a gateway and agents that are simulated in memory
//! and fail in every way that the contract of the link allows, from a seed.
//!
//! What must hold: no process that was accepted is lost, none has its effect twice, none ends
//! twice, each ends, and in the end no agent's journal holds anything.
//!
//! `DROVER_TEST_SEED=N` plays other faults than the usual ones.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "engine/fleet.rs"]
mod fleet;
#[path = "engine/hints.rs"]
mod hints;
#[path = "engine/outage.rs"]
mod outage;
#[path = "engine/servers.rs"]
mod servers;
#[path = "engine/services.rs"]
mod services;
#[path = "engine/steps.rs"]
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control::clock;
use control::dispatch::{self, Cancellation, Company, Engine, Started};
use control::downlink::{End, Wake};
use control::process::{Class, State};
use control::store::processes::{Creation, IdempotencyKey, NewProcess};
use control::store::queries::ProcessFilter;
use control::store::{Store, StoreError, sql};
use protocol::ids::{Epoch, GatewayId, ProcessId, ServerId};

use fleet::{Faults, Fleet, Port};

/// A server on a store, with its simulated world.
struct World {
    directory: tempfile::TempDir,
    fleet: Arc<Fleet>,
    server: Option<(Store, Started)>,
    /// How its servers hear of each other, beside the store.
    company: Company,
}

impl World {
    async fn new(agents: usize, seed: u64, faults: Faults) -> Self {
        Self::among(Company::default(), agents, seed, faults).await
    }

    async fn among(company: Company, agents: usize, seed: u64, faults: Faults) -> Self {
        let mut world = Self {
            company,
            directory: tempfile::tempdir().unwrap(),
            fleet: Fleet::new(agents, seed, faults),
            server: None,
        };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let store = Store::open("sqlite:", self.directory.path()).await.unwrap();
        enrol(&store, &self.fleet).await;
        let started = self.start_server(&store, 0).await;
        self.server = Some((store, started));
    }

    /// A process server on a store that is open, with an end of the gateway of its own.
    async fn start_server(&self, store: &Store, port: usize) -> Started {
        let wake = Wake::new();
        self.fleet.power_on(port, &wake);
        let link = Arc::new(Port(Arc::clone(&self.fleet), port));
        let end = End {
            server: fleet::server(port),
            link,
            wake,
        };
        let started = dispatch::start_among(store.clone(), end, self.company.clone());
        started.await.unwrap()
    }

    /// As SIGKILL does it: nothing is finished, told or flushed.
    async fn kill(&mut self) {
        let (store, started) = self.server.take().unwrap();
        started.task.abort();
        drop(started.task.await);
        self.fleet.power_off();
        store.close().await;
    }

    fn engine(&self) -> &Engine {
        &self.server.as_ref().unwrap().1.engine
    }

    fn store(&self) -> &Store {
        &self.server.as_ref().unwrap().0
    }

    fn new_process(&self, agent: usize, key: &str) -> NewProcess {
        let agent = self.fleet.targets()[agent].agent;
        let input = format!("{{\"key\":\"{key}\"}}");
        let deadline = clock::now().plus(Duration::from_secs(600));
        NewProcess {
            max_attempts: 20,
            idempotency: Some(IdempotencyKey {
                scope: "test".to_owned(),
                key: key.to_owned(),
                fingerprint: [7; 32],
            }),
            ..NewProcess::of_driver(agent, "simulated", &input, deadline)
        }
    }

    /// Creates as a careful client does: the same key until there is an answer.
    async fn create(&self, process: NewProcess) -> Option<ProcessId> {
        match self.engine().create(vec![process]).await.ok()?.pop()? {
            Creation::Created(record) | Creation::Existing(record) => Some(record.id),
            other => panic!("{other:?}"),
        }
    }

    async fn count(&self, state: State) -> usize {
        let filter = ProcessFilter {
            state: Some(state),
            ..ProcessFilter::default()
        };
        self.store()
            .processes(&filter, None, 1000)
            .await
            .unwrap()
            .len()
    }

    async fn unfinished(&self) -> usize {
        // One list: between two, a process may go from a state that is listed later to one before.
        let all = self
            .store()
            .processes(&ProcessFilter::default(), None, 1000)
            .await
            .unwrap();
        all.iter().filter(|one| !one.state.is_terminal()).count()
    }

    async fn settle(&self) {
        for _ in 0..3000 {
            if self.unfinished().await == 0 && self.fleet.journals_are_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let list = self
            .store()
            .processes(&ProcessFilter::default(), None, 1000)
            .await
            .unwrap();
        for process in list.iter().filter(|process| !process.state.is_terminal()) {
            eprintln!("{process:?}");
        }
        panic!(
            "not settled: {:?} {}",
            self.engine().stats(),
            self.fleet.describe()
        );
    }

    /// Every process ended exactly once, with its effect exactly as often as its state says.
    async fn check(&self, expected: usize) {
        let processes = self
            .store()
            .processes(&ProcessFilter::default(), None, 1000)
            .await
            .unwrap();
        assert_eq!(
            processes.len(),
            expected,
            "a process was lost or made twice"
        );
        let mut ends: BTreeMap<ProcessId, usize> = BTreeMap::new();
        let mut after = 0;
        loop {
            let rows = self.store().events_after(after, None, 1000).await.unwrap();
            let Some(last) = rows.last() else { break };
            after = last.seq;
            for row in rows.iter().filter(|row| row.kind == "process.finished") {
                *ends.entry(row.process.unwrap()).or_default() += 1;
            }
        }
        let effects = self.fleet.effects();
        for process in processes {
            assert_eq!(
                ends.get(&process.id),
                Some(&1),
                "ended not once: {process:?}"
            );
            let count = effects.get(&process.id).copied().unwrap_or(0);
            let wanted = usize::from(process.state == State::Succeeded);
            assert_eq!(count, wanted, "effects of {process:?}");
        }
    }
}

/// Writes the fleet's agents down as an enrolment does.
async fn enrol(store: &Store, fleet: &Fleet) {
    store.ensure_automatic_groups(clock::now()).await.unwrap();
    let group = store.groups().await.unwrap().swap_remove(0);
    fleet.put_into(group.id, group.slot);
    let targets = fleet.targets();
    let enrolled = store.write(move |db| {
        Box::pin(async move {
            for target in targets {
                let agent = target.agent.to_bytes().to_vec();
                sql::query(
                    "INSERT INTO agent (id, group_id, hostname, software, kinds, labels, created_at)
                     VALUES ($1, $2, 'host', '', '[]', '{}', 0) ON CONFLICT (id) DO NOTHING",
                )
                .bind(&agent)
                .bind(target.group.to_bytes().to_vec())
                .execute(&mut *db)
                .await?;
                sql::query(
                    "INSERT INTO agent_key (agent_id, key_hash, pinned_at)
                     VALUES ($1, $2, 0) ON CONFLICT (key_hash) DO NOTHING",
                )
                .bind(&agent)
                .bind([&agent[..], &agent[..]].concat())
                .execute(&mut *db)
                .await?;
            }
            Ok::<_, StoreError>(())
        })
    });
    enrolled.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_goes_its_way_and_its_agent_is_told_to_forget() {
    let world = World::new(1, 1, Faults::NONE).await;
    let id = world.create(world.new_process(0, "a")).await.unwrap();
    world.settle().await;
    let process = world.store().process(id).await.unwrap().unwrap();
    assert_eq!((process.state, process.attempts), (State::Succeeded, 1));
    assert!(process.started_at.is_some() && process.finished_at.is_some());
    let history = world.store().events_after(0, Some(id), 100).await.unwrap();
    let kinds: Vec<&str> = history.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(kinds.first(), Some(&"process.created"));
    assert_eq!(kinds.last(), Some(&"process.finished"));
    world.check(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_makes_one_process_and_another_payload_is_a_conflict() {
    let world = World::new(1, 2, Faults::NONE).await;
    let first = world.create(world.new_process(0, "same")).await.unwrap();
    let again = world.engine().create(vec![
        world.new_process(0, "same"),
        world.new_process(0, "twin"),
        world.new_process(0, "twin"),
    ]);
    let again = again.await.unwrap();
    assert!(matches!(&again[0], Creation::Existing(process) if process.id == first));
    let Creation::Created(twin) = &again[1] else {
        panic!("{again:?}")
    };
    assert!(matches!(&again[2], Creation::Existing(process) if process.id == twin.id));
    let mut other = world.new_process(0, "same");
    other.idempotency.as_mut().unwrap().fingerprint = [8; 32];
    let conflict = world.engine().create(vec![other]).await.unwrap();
    assert_eq!(conflict, [Creation::KeyConflict { process: first }]);
    let mut stranger = world.new_process(0, "stranger");
    stranger.agent = protocol::ids::AgentId(uuid::Uuid::from_u128(99));
    let refused = world
        .engine()
        .create(vec![stranger, world.new_process(0, "last")])
        .await;
    let refused = refused.unwrap();
    assert_eq!(refused[0], Creation::UnknownAgent);
    assert!(matches!(refused[1], Creation::Created(_)));
    world.settle().await;
    world.check(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_rises_above_the_epochs_that_its_agents_have_seen() {
    let world = World::new(2, 9, Faults::NONE).await;
    world.fleet.remember(Epoch(50));
    for n in 0..8 {
        let process = world.new_process(n % 2, &format!("e{n}"));
        world.create(process).await.unwrap();
    }
    world.settle().await;
    world.check(8).await;
    let group = world.fleet.targets()[0].group;
    let group = world.store().group(group).await.unwrap().unwrap();
    assert_eq!(group.epoch, Epoch(51));
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_one_resource_run_one_after_the_other() {
    let world = World::new(4, 3, Faults::NONE).await;
    let mut ids = Vec::new();
    for n in 0..12 {
        let mut process = world.new_process(n % 4, &format!("r{n}"));
        process.resource = Some("volume/1".to_owned());
        ids.push(world.create(process).await.unwrap());
    }
    world.settle().await;
    assert_eq!(world.fleet.most_at_once(&ids), 1);
    world.check(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_waits_for_its_agent_and_for_its_deadline_no_longer() {
    let world = World::new(
        1,
        4,
        Faults {
            offline: true,
            ..Faults::NONE
        },
    )
    .await;
    let mut late = world.new_process(0, "late");
    late.deadline_at = clock::now().plus(Duration::from_millis(300));
    let late = world.create(late).await.unwrap();
    let patient = world.create(world.new_process(0, "patient")).await.unwrap();
    let agent = world.fleet.targets()[0].agent;
    let waits = world.engine().waiting_on(patient, agent).await.unwrap();
    assert_eq!(waits, Some(dispatch::WaitingOn::Session { agent }));
    while world.count(State::Failed).await == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    let late = world.store().process(late).await.unwrap().unwrap();
    let status = late.outcome.unwrap().status;
    assert_eq!(serde_json::json!(status), "deadline_exceeded");
    world.check(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_what_waits_and_what_runs() {
    let world = World::new(
        1,
        5,
        Faults {
            stuck: true,
            ..Faults::NONE
        },
    )
    .await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(
            world
                .create(world.new_process(0, &format!("c{n}")))
                .await
                .unwrap(),
        );
    }
    while world.count(State::Running).await < fleet::CAPACITY as usize {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let unknown = ProcessId(uuid::Uuid::from_u128(404));
    assert_eq!(
        world.engine().cancel(unknown).await.unwrap(),
        Cancellation::NotFound
    );
    for id in &ids {
        let state = world.engine().cancel(*id).await.unwrap();
        let expected = [State::Cancelled, State::Cancelling].map(Cancellation::State);
        assert!(expected.contains(&state), "{state:?}");
    }
    world.settle().await;
    assert_eq!(world.count(State::Cancelled).await, 20);
    world.check(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_of_one_agent_is_worked_off_in_order_of_class() {
    let world = World::new(
        1,
        6,
        Faults {
            offline: true,
            ..Faults::NONE
        },
    )
    .await;
    let total = 700;
    let batch: Vec<NewProcess> = (0..total)
        .map(|n| world.new_process(0, &format!("q{n}")))
        .collect();
    let made = world.engine().create(batch).await.unwrap();
    assert!(made.iter().all(|one| matches!(one, Creation::Created(_))));
    let mut urgent = world.new_process(0, "urgent");
    urgent.class = Class::Interactive;
    let urgent = world.create(urgent).await.unwrap();
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    assert!(world.fleet.start_order(urgent) < fleet::CAPACITY as usize);
    world.check(total + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_whatever_the_gateway_and_the_agents_do() {
    let world = World::new(12, 7, Faults::ALL).await;
    let total = 300;
    for n in 0..total {
        world
            .create(world.new_process(n % 12, &format!("f{n}")))
            .await
            .unwrap();
        if n % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    assert!(world.fleet.faults_made() > 50, "{}", world.fleet.describe());
    world.check(total).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_the_server_is_killed_at_any_moment() {
    let mut world = World::new(8, 8, Faults::ALL).await;
    let total = 160;
    let mut made = 0;
    for round in 0..8_u64 {
        while made < total * (usize::try_from(round).unwrap() + 1) / 8 {
            let process = world.new_process(made % 8, &format!("k{made}"));
            if world.create(process).await.is_some() {
                made += 1;
            }
        }
        // Some more without waiting for the answer; they are repeated with the same key later.
        let engine = world.engine().clone();
        let hasty = world.new_process(0, &format!("k{made}"));
        let hurry = tokio::spawn(async move { drop(engine.create(vec![hasty]).await) });
        tokio::time::sleep(Duration::from_millis(7 * (round + 1))).await;
        world.kill().await;
        drop(hurry.await);
        world.start().await;
    }
    while made < total {
        if world
            .create(world.new_process(made % 8, &format!("k{made}")))
            .await
            .is_some()
        {
            made += 1;
        }
    }
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    let extra = world
        .create(world.new_process(0, &format!("k{total}")))
        .await;
    assert!(extra.is_some());
    world.settle().await;
    world.check(total + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_nothing_half_done() {
    let mut world = World::new(4, 9, Faults::NONE).await;
    for n in 0..100 {
        world
            .create(world.new_process(n % 4, &format!("d{n}")))
            .await
            .unwrap();
    }
    let (store, started) = world.server.take().unwrap();
    started.drain.cancel();
    tokio::time::timeout(Duration::from_secs(10), started.task)
        .await
        .unwrap()
        .unwrap();
    world.fleet.power_off();
    store.close().await;
    world.start().await;
    world.settle().await;
    world.check(100).await;
}

/// Runs a statement on the writer's connection.
async fn on_writer(store: &Store, sql: String) {
    let done = store.write(move |db| {
        Box::pin(async move {
            sql::query(sql).execute(db).await?;
            Ok::<_, StoreError>(())
        })
    });
    done.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_delays_what_was_accepted_and_refuses_what_is_new() {
    let world = World::new(4, 10, Faults::NONE).await;
    for n in 0..60 {
        world
            .create(world.new_process(n % 4, &format!("full{n}")))
            .await
            .unwrap();
    }
    on_writer(world.store(), "PRAGMA max_page_count = 1".to_owned()).await;
    let mut refused = false;
    for n in 0..200 {
        let mut large = world.new_process(0, &format!("large{n}"));
        large.input = format!("\"{}\"", "x".repeat(60_000));
        large.deadline_at = clock::now();
        if world.engine().create(vec![large]).await.is_err() {
            refused = true;
            break;
        }
    }
    assert!(refused, "the disk was not full");
    tokio::time::sleep(Duration::from_millis(300)).await;
    on_writer(world.store(), "PRAGMA max_page_count = 1000000".to_owned()).await;
    world.settle().await;
    assert_eq!(world.count(State::Succeeded).await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_stops_its_own_process_and_no_other() {
    let world = World::new(
        2,
        11,
        Faults {
            offline: true,
            ..Faults::NONE
        },
    )
    .await;
    let damaged = world.create(world.new_process(0, "damaged")).await.unwrap();
    for n in 0..40 {
        world
            .create(world.new_process(n % 2, &format!("sound{n}")))
            .await
            .unwrap();
    }
    let hex = damaged.0.simple();
    let damage = format!("UPDATE process SET state = 'nonsense' WHERE id = x'{hex}'");
    on_writer(world.store(), damage).await;
    world.fleet.set_faults(Faults::NONE);
    for _ in 0..1000 {
        if world.count(State::Succeeded).await == 40 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.count(State::Succeeded).await, 40);
    world.fleet.idle().await;
    let mend = format!("UPDATE process SET state = 'ready' WHERE id = x'{hex}'");
    on_writer(world.store(), mend).await;
    let mut world = world;
    world.kill().await;
    world.start().await;
    world.settle().await;
    world.check(41).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_an_agent_ends_its_processes_even_if_the_server_stops_in_between() {
    let mut world = World::new(
        2,
        12,
        Faults {
            stuck: true,
            ..Faults::NONE
        },
    )
    .await;
    for n in 0..40 {
        world
            .create(world.new_process(n % 2, &format!("v{n}")))
            .await
            .unwrap();
    }
    while world.count(State::Running).await < 2 * fleet::CAPACITY as usize {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let agent = world.fleet.targets()[0].agent;
    world
        .store()
        .revoke_agent(agent, "tester".to_owned(), clock::now())
        .await
        .unwrap();
    // The word to the engine is lost with the server.
    world.kill().await;
    world.start().await;
    while world.count(State::Failed).await < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let other = world.fleet.targets()[1].agent;
    world
        .store()
        .revoke_agent(other, "tester".to_owned(), clock::now())
        .await
        .unwrap();
    world.engine().revoke_agent(other).unwrap();
    while world.count(State::Failed).await < 40 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = world
        .engine()
        .create(vec![world.new_process(1, "late")])
        .await
        .unwrap();
    assert_eq!(refused, [Creation::UnknownAgent]);
}

/// A gateway that always has one more event and never stops ringing.
struct Chatter(Wake);

impl control::downlink::Link for Chatter {
    fn gateway(&self) -> GatewayId {
        GatewayId(uuid::Uuid::from_u128(1))
    }

    fn send(&self, _: protocol::link::Request) -> Result<(), control::downlink::LinkFull> {
        Ok(())
    }

    fn receive(&self, out: &mut Vec<protocol::link::Event>, _: usize) -> usize {
        out.push(protocol::link::Event::Security {
            kind: protocol::link::SecurityEvent::NoCertificate,
            agent: None,
            remote: ([127, 0, 0, 1], 1).into(),
        });
        self.0.ring();
        1
    }
}

// One thread: whoever never yields starves everybody else.
#[tokio::test]
async fn a_gateway_that_never_falls_silent_does_not_keep_the_store_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open("sqlite:", directory.path()).await.unwrap();
    let wake = Wake::new();
    let link = Arc::new(Chatter(wake.clone()));
    let end = End {
        server: ServerId(1),
        link,
        wake: wake.clone(),
    };
    let started = dispatch::start(store.clone(), end).await.unwrap();
    wake.ring();
    let written = store.ensure_automatic_groups(clock::now());
    tokio::time::timeout(Duration::from_secs(20), written)
        .await
        .unwrap()
        .unwrap();
    let unknown = ProcessId(uuid::Uuid::from_u128(404));
    let answer = started.engine.cancel(unknown);
    let answer = tokio::time::timeout(Duration::from_secs(20), answer)
        .await
        .unwrap();
    assert_eq!(answer.unwrap(), Cancellation::NotFound);
}
