use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use protocol::ids::{AgentId, Fence, ProcessId};
use protocol::link::NotDelivered;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::{AGENTS_MIN, News};
use crate::clock::UnixMs;
use crate::process::{Input, State};
use crate::store::Store;
use crate::store::lines::ReadyCount;
use crate::store::processes::{Batch, Creation, Happened, NewProcess};
use crate::store::workers::Asks;
use crate::store::{from_sql, sql};

const WORKERS: [Uuid; 3] = [Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)];

/// More than are counted before some are forgotten.
const AGENTS: Range<u128> = 10..40;

async fn open() -> (tempfile::TempDir, Store) {
    let (directory, store) = crate::store::tests::fresh().await;
    for worker in WORKERS {
        store.begin_worker(worker, UnixMs(1)).await.unwrap();
    }
    (directory, store)
}

async fn beat(store: &Store, worker: Uuid) {
    store
        .beat(worker, UnixMs(2), Asks::default())
        .await
        .unwrap();
}

fn sorted(mut counts: Vec<ReadyCount>) -> Vec<ReadyCount> {
    counts.sort_unstable_by(|a, b| (a.agent, &a.line).cmp(&(b.agent, &b.line)));
    counts
}

/// What a process server knows that only ever looks at what others have changed.
#[derive(Default)]
struct View {
    since: Option<u64>,
    ready: BTreeMap<AgentId, Vec<ReadyCount>>,
}

impl View {
    /// Takes the news; those agents that this server has changed itself since then may be wrong.
    fn take(&mut self, news: &News) {
        self.since = Some(news.clock);
        if news.all {
            self.ready.clear();
        }
        for agent in &news.agents {
            self.ready.insert(*agent, Vec::new());
        }
        for count in &news.ready {
            self.ready
                .get_mut(&count.agent)
                .unwrap()
                .push(count.clone());
        }
    }
}

/// Something that may happen to a process, often nonsense in its state.
fn anything(rng: &mut StdRng, id: ProcessId) -> Happened {
    let fence = Fence(rng.random_range(1..3));
    let input = match rng.random_range(0..8) {
        0 | 1 => Input::Claim,
        2 => Input::Accepted(fence),
        3 => Input::NotDelivered(fence, NotDelivered::NoSession),
        4 => Input::Due,
        5 => Input::Cancel,
        6 => Input::Orphaned,
        _ => Input::Defer(UnixMs(rng.random_range(100..200))),
    };
    Happened::new(id, input)
}

fn batch(rng: &mut StdRng, round: u64, known: &[ProcessId]) -> Batch {
    let mut creates = Vec::new();
    for _ in 0..rng.random_range(0..4) {
        let agent = AgentId(Uuid::from_u128(rng.random_range(AGENTS)));
        let kind = ["exec", "other"][rng.random_range(0..2)];
        let mut new = NewProcess::of_driver(agent, kind, "{}", UnixMs(1_000_000));
        new.tenant = format!("t{}", rng.random_range(0..3));
        new.resource = rng.random_bool(0.3).then(|| "vm-1".to_owned());
        new.run_at = rng.random_bool(0.2).then_some(UnixMs(round + 50));
        creates.push(new);
    }
    let mut inputs = Vec::new();
    for _ in 0..rng.random_range(0..6) {
        if !known.is_empty() {
            let id = known[rng.random_range(0..known.len())];
            inputs.push(anything(rng, id));
        }
    }
    Batch {
        at: UnixMs(round),
        seed: rng.random(),
        worker: Some(WORKERS[rng.random_range(0..WORKERS.len())]),
        creates,
        inputs,
        sweep: if rng.random_bool(0.3) { 10 } else { 0 },
        ..Batch::default()
    }
}

/// How much agents may know something about, by the rows themselves.
async fn in_use(store: &Store) -> BTreeMap<AgentId, u32> {
    let mut reader = store.reader().await.unwrap();
    let rows = sql::query(
        "SELECT target_id, count(*) FROM process
         WHERE state IN ('leased', 'running', 'unknown', 'cancelling') GROUP BY target_id",
    )
    .fetch_all(&mut reader)
    .await
    .unwrap();
    let rows = rows.iter().map(|row| {
        let agent = row.try_get::<&[u8]>(0).unwrap();
        (
            AgentId(Uuid::from_slice(agent).unwrap()),
            row.try_get(1).unwrap(),
        )
    });
    rows.collect()
}

/// States that are counted, by the rows themselves.
async fn states(store: &Store) -> BTreeMap<State, u64> {
    let mut reader = store.reader().await.unwrap();
    let rows =
        sql::query("SELECT state, count(*) FROM process WHERE finished_at IS NULL GROUP BY state")
            .fetch_all(&mut reader)
            .await
            .unwrap();
    let states = rows.iter().map(|row| {
        let state: &str = row.try_get(0).unwrap();
        (state.parse().unwrap(), from_sql(row.try_get(1).unwrap()))
    });
    states.collect()
}

#[tokio::test]
async fn the_counts_are_those_of_the_rows_whatever_happens() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (_directory, store) = open().await;
    let mut known = Vec::new();
    let mut views: BTreeMap<Uuid, View> = BTreeMap::new();
    let mut own: BTreeMap<Uuid, BTreeSet<AgentId>> = BTreeMap::new();
    for round in 3..150 {
        let batch = batch(&mut rng, round, &known);
        let worker = batch.worker.unwrap();
        let applied = store.apply(batch).await.unwrap();
        for creation in &applied.creations {
            if let Creation::Created(record) = creation {
                known.push(record.id);
            }
        }
        let targets = applied.steps.iter().filter_map(|effect| effect.now);
        let made = applied.creations.iter().filter_map(|made| match made {
            Creation::Created(record) => Some(record.agent),
            _ => None,
        });
        let changed = targets.map(|now| now.target).chain(made);
        own.entry(worker).or_default().extend(changed);
        if round == 20 {
            // From here on they are counted.
            assert_eq!(store.news(WORKERS[0], None), None);
            beat(&store, WORKERS[0]).await;
        }
        if round < 20 {
            continue;
        }
        let all = store.news(Uuid::from_u128(99), None).unwrap();
        let counted = sorted(store.ready_counts().await.unwrap());
        assert_eq!(sorted(all.ready), counted);
        let mut stays = all.states;
        stays.retain(|_, count| *count > 0);
        assert_eq!(stays, states(&store).await);
        let active = in_use(&store).await;
        for agent in AGENTS.map(|n| AgentId(Uuid::from_u128(n))) {
            let there = active.get(&agent).copied().unwrap_or(0);
            assert_eq!(store.in_use(agent), Some(there), "round {round}");
        }
        let by_tenant: u64 = all.tenants.values().map(|count| count.ready).sum();
        let ready: u64 = counted.iter().map(|count| u64::from(count.ready)).sum();
        assert_eq!(by_tenant, ready);
        // Whoever looks at the news alone misses nothing that others have done.
        let looks = WORKERS[rng.random_range(0..WORKERS.len())];
        let view = views.entry(looks).or_default();
        view.take(&store.news(looks, view.since).unwrap());
        let mine = own.remove(&looks).unwrap_or_default();
        for agent in AGENTS.map(|n| AgentId(Uuid::from_u128(n))) {
            let of = |counts: &[ReadyCount]| -> Vec<ReadyCount> {
                let of = counts.iter().filter(|count| count.agent == agent);
                of.cloned().collect()
            };
            let seen = view.ready.get(&agent).cloned().unwrap_or_default();
            let there = of(&counted);
            assert!(
                sorted(seen.clone()) == there || mine.contains(&agent),
                "round {round}: {seen:?} is not {there:?}"
            );
            view.ready.insert(agent, there);
        }
    }
    assert!(known.len() > 100);
}

#[tokio::test]
async fn the_others_hear_what_one_has_changed_and_it_does_not_hear_that_itself() {
    let (_directory, store) = open().await;
    beat(&store, WORKERS[0]).await;
    let nothing = store.news(WORKERS[0], None).unwrap();
    assert!(nothing.agents.is_empty() && nothing.states.is_empty());
    let agent = AgentId(Uuid::from_u128(10));
    let made = Batch {
        at: UnixMs(5),
        worker: Some(WORKERS[0]),
        creates: vec![NewProcess::of_driver(agent, "exec", "{}", UnixMs(1000))],
        ..Batch::default()
    };
    store.apply(made).await.unwrap();
    let since = Some(nothing.clock);
    let own = store.news(WORKERS[0], since).unwrap();
    assert!(own.agents.is_empty(), "{own:?}");
    assert_eq!(own.states, BTreeMap::from([(State::Ready, 1)]));
    let theirs = store.news(WORKERS[1], since).unwrap();
    assert_eq!((&theirs.agents[..], theirs.ready.len()), (&[agent][..], 1));
    let again = store.news(WORKERS[1], Some(theirs.clock)).unwrap();
    assert!(again.agents.is_empty());
}

#[tokio::test]
async fn what_has_ended_is_counted_for_its_agent_and_its_tenant() {
    let (_directory, store) = open().await;
    beat(&store, WORKERS[0]).await;
    let agent = AgentId(Uuid::from_u128(10));
    let made = Batch {
        at: UnixMs(5),
        creates: vec![NewProcess::of_driver(agent, "exec", "{}", UnixMs(1000))],
        ..Batch::default()
    };
    let made = store.apply(made).await.unwrap();
    let [Creation::Created(record)] = &made.creations[..] else {
        panic!("{made:?}");
    };
    for input in [
        Input::Claim,
        Input::NotDelivered(Fence(1), NotDelivered::NoSession),
    ] {
        let batch = Batch {
            at: UnixMs(6),
            inputs: vec![Happened::new(record.id, input)],
            ..Batch::default()
        };
        store.apply(batch).await.unwrap();
    }
    let news = store.news(WORKERS[0], None).unwrap();
    assert_eq!(news.ended, [(agent, 1)]);
    assert_eq!(news.tenants["default"].ended, 1);
}

/// Makes one process for the agent of this number, and ends it.
async fn come_and_go(store: &Store, number: u64) -> AgentId {
    let agent = AgentId(Uuid::from_u128(u128::from(number)));
    let made = Batch {
        at: UnixMs(5),
        seed: number,
        worker: Some(WORKERS[0]),
        creates: vec![NewProcess::of_driver(agent, "exec", "{}", UnixMs(1000))],
        ..Batch::default()
    };
    let made = store.apply(made).await.unwrap();
    let [Creation::Created(record)] = &made.creations[..] else {
        panic!("{made:?}");
    };
    let cancelled = Batch {
        at: UnixMs(6),
        worker: Some(WORKERS[0]),
        inputs: vec![Happened::new(record.id, Input::Cancel)],
        ..Batch::default()
    };
    store.apply(cancelled).await.unwrap();
    agent
}

#[tokio::test]
async fn agents_with_nothing_are_forgotten_and_who_has_not_looked_since_is_told_everything() {
    let (_directory, store) = open().await;
    beat(&store, WORKERS[0]).await;
    let hung = store.news(WORKERS[1], None).unwrap();
    let mut lively = store.news(WORKERS[2], None).unwrap();
    assert!(lively.all);
    for number in 100..200 {
        let agent = come_and_go(&store, number).await;
        lively = store.news(WORKERS[2], Some(lively.clock)).unwrap();
        assert_eq!((&lively.agents[..], lively.all), (&[agent][..], false));
        let begun = store.tally().lock();
        let counts = begun.as_ref().unwrap();
        assert!(counts.agents.len() <= AGENTS_MIN + 3);
        assert_eq!(counts.by_change.len(), counts.agents.len());
    }
    assert!(store.news(WORKERS[1], Some(hung.clock)).unwrap().all);
}

crate::store::tests::conformance::suite! {
    the_counts_are_those_of_the_rows_whatever_happens,
    the_others_hear_what_one_has_changed_and_it_does_not_hear_that_itself,
    what_has_ended_is_counted_for_its_agent_and_its_tenant,
    agents_with_nothing_are_forgotten_and_who_has_not_looked_since_is_told_everything,
}
