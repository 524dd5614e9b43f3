//! Several processes on one store: each opening here stands for one. Processes share only a store on a server, so
//! these are run by the tests in `conformance.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::identity::KeyHash;
use protocol::ids::{AgentId, Epoch, GrantId, ProcessId};
use uuid::Uuid;

use super::super::processes::{Batch, Creation, Happened, IdempotencyKey, NewProcess};
use super::super::tokens::{Consume, SecretHash, TokenUse};
use super::super::workers::Asks;
use super::super::{Store, StoreError, sql};
use super::{conformance, open};
use crate::clock::UnixMs;
use crate::process::{Input, State};

const AGENT: AgentId = AgentId(Uuid::from_u128(7));
/// Openings of one store.
const PROCESSES: usize = 3;

async fn several() -> (tempfile::TempDir, Vec<Store>) {
    let directory = tempfile::tempdir().unwrap();
    let mut stores = Vec::new();
    for _ in 0..PROCESSES {
        stores.push(open(directory.path()).await.unwrap());
    }
    (directory, stores)
}

fn new(key: Option<u32>) -> NewProcess {
    NewProcess {
        idempotency: key.map(|key| IdempotencyKey {
            scope: "ann".to_owned(),
            key: key.to_string(),
            fingerprint: [7; 32],
        }),
        ..NewProcess::of_driver(AGENT, "exec", "{}", UnixMs(1_000_000))
    }
}

fn batch(seed: u64, creates: Vec<NewProcess>, inputs: Vec<Happened>) -> Batch {
    Batch {
        at: UnixMs(10),
        seed,
        creates,
        inputs,
        ..Batch::default()
    }
}

#[tokio::main(flavor = "multi_thread")]
async fn one_key_makes_one_process_whichever_process_is_asked() {
    let (_directory, stores) = several().await;
    for key in 0..10 {
        let asked = stores.iter().map(|store| async move {
            let creates = vec![new(Some(key))];
            store
                .apply(batch(rand::random(), creates, Vec::new()))
                .await
                .unwrap()
                .creations
        });
        let answers = futures_util::future::join_all(asked).await.concat();
        let (mut made, mut ids) = (0, BTreeSet::new());
        for answer in answers {
            match answer {
                Creation::Created(record) => {
                    made += 1;
                    ids.insert(record.id);
                }
                Creation::Existing(record) => drop(ids.insert(record.id)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((made, ids.len()), (1, 1), "key {key}");
    }
}

#[tokio::main(flavor = "multi_thread")]
async fn a_process_is_claimed_by_one_and_a_token_lets_one_in() {
    let (_directory, stores) = several().await;
    let made = stores[0]
        .apply(batch(1, vec![new(None); 40], Vec::new()))
        .await
        .unwrap();
    let ids = made.creations.into_iter().map(|creation| match creation {
        Creation::Created(record) => record.id,
        other => panic!("{other:?}"),
    });
    let ids: Vec<ProcessId> = ids.collect();
    let claims = stores.iter().zip(0..).map(|(store, seed)| {
        let claims = ids.iter().map(|id| Happened {
            grant: GrantId(1),
            ..Happened::new(*id, Input::Claim)
        });
        let batch = Batch {
            worker: Some(Uuid::from_u128(u128::from(seed) + 1)),
            ..batch(seed, Vec::new(), claims.collect())
        };
        async move { store.apply(batch).await.unwrap() }
    });
    let applied = futures_util::future::join_all(claims).await;
    let works = applied.iter().flat_map(|applied| &applied.steps);
    assert_eq!(
        works.filter(|effect| effect.work.is_some()).count(),
        ids.len()
    );

    stores[0].ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let secret = SecretHash::of(b"x");
    let anywhere = TokenUse::JoinAnywhere;
    stores[0]
        .create_tokens(vec![secret], anywhere, UnixMs(1), UnixMs(99))
        .await
        .unwrap();
    let uses = stores.iter().zip(1_u8..).map(|(store, number)| {
        store.consume_token(Consume {
            secret,
            agent: AgentId::from_bytes([number; 16]),
            key: KeyHash([number; 32]),
            hostname: "hv".to_owned(),
            software: String::new(),
            remote: ([127, 0, 0, 1], 1).into(),
            now: UnixMs(2),
        })
    });
    let uses = futures_util::future::join_all(uses).await;
    assert_eq!(
        uses.iter().filter(|used| used.is_ok()).count(),
        1,
        "{uses:?}"
    );
}

#[tokio::main(flavor = "multi_thread")]
async fn of_several_that_begin_a_deployment_at_once_one_is_first_and_all_hear_of_it() {
    let (_directory, stores) = several().await;
    let roots = (1_u8..).map(|number| KeyHash([number; 32]));
    let roots: Vec<KeyHash> = roots.take(stores.len()).collect();
    let claims = stores.iter().zip(&roots);
    let claims = claims.map(|(store, root)| store.claim(*root, UnixMs(1)));
    let claimed = futures_util::future::try_join_all(claims).await.unwrap();
    assert!(roots.contains(&claimed[0]));
    assert!(
        claimed.iter().all(|root| *root == claimed[0]),
        "{claimed:?}"
    );
    assert!(stores[0].is_of_a_deployment().await.unwrap());
}

#[tokio::main(flavor = "multi_thread")]
async fn groups_have_one_owner_an_epoch_and_duties_one_server() {
    let (_directory, stores) = several().await;
    stores[0].ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let taken = stores
        .iter()
        .zip(1..)
        .map(|(store, owner)| store.take_groups(Uuid::from_u128(owner)));
    let taken = futures_util::future::join_all(taken).await;
    let epochs = taken.iter().flat_map(|taken| taken.as_ref().unwrap());
    let epochs: Vec<_> = epochs.map(|group| (group.id, group.epoch)).collect();
    let distinct: BTreeSet<_> = epochs.iter().collect();
    assert_eq!(distinct.len(), epochs.len(), "an epoch has one owner");
    assert!(epochs.iter().any(|(_, epoch)| *epoch == Epoch(1)));

    let asks = || Asks {
        lends: true,
        ..Asks::default()
    };
    for (store, number) in stores.iter().zip(1..) {
        store
            .begin_worker(Uuid::from_u128(number), UnixMs(1000))
            .await
            .unwrap();
    }
    let beats = stores.iter().zip(1..);
    let beats =
        beats.map(|(store, number)| store.beat(Uuid::from_u128(number), UnixMs(1001), asks()));
    let beats = futures_util::future::join_all(beats).await;
    let beats: Vec<_> = beats.into_iter().map(Result::unwrap).collect();
    assert_eq!(beats.iter().filter(|beat| beat.sweeps).count(), 1);
    assert_eq!(
        beats
            .iter()
            .filter_map(|beat| beat.lends)
            .collect::<Vec<_>>(),
        [1]
    );
    assert!(
        beats
            .iter()
            .all(|beat| beat.live == u32::try_from(PROCESSES).unwrap())
    );
}

#[tokio::main(flavor = "multi_thread")]
async fn what_others_have_made_and_set_is_seen_with_the_next_beat() {
    let (_directory, stores) = several().await;
    let (me, other) = (Uuid::from_u128(1), &stores[1]);
    stores[0].begin_worker(me, UnixMs(1000)).await.unwrap();
    let first = stores[0]
        .beat(me, UnixMs(1001), Asks::default())
        .await
        .unwrap();
    let seen = stores[0].news(me, None).unwrap();
    assert!(seen.states.is_empty());
    let made = other
        .apply(batch(1, vec![new(None)], Vec::new()))
        .await
        .unwrap();
    let pause = super::super::pauses::Pause {
        key: super::super::pauses::PauseKey::from_sql("tenant/acme").unwrap(),
        by: "ann".to_owned(),
        reason: String::new(),
        at: UnixMs(5),
    };
    other.add_pause(pause.clone()).await.unwrap();
    let asks = Asks {
        looked: first.looked,
        ..Asks::default()
    };
    let beat = stores[0].beat(me, UnixMs(3001), asks).await.unwrap();
    let (pauses, _) = beat.shared.unwrap().orders.unwrap();
    assert_eq!(pauses.pauses, [pause]);
    let news = stores[0].news(me, Some(seen.clock)).unwrap();
    assert_eq!((news.ready.len(), news.states[&State::Ready]), (1, 1));
    assert_eq!(made.creations.len(), 1);
    // The sweeper knows of the timer of the other.
    assert_eq!(*stores[0].timers().borrow(), Some(UnixMs(1_000_000)));
}

/// Adds an event of this name.
async fn add(store: &Store, name: String) -> Result<(), StoreError> {
    let added = store.write(move |db| {
        Box::pin(async move {
            sql::query("INSERT INTO process_event (at, type, data) VALUES (0, $1, 'null')")
                .bind(name)
                .execute(db)
                .await?;
            Ok::<_, StoreError>(())
        })
    });
    added.await
}

#[tokio::main(flavor = "multi_thread")]
async fn whoever_reads_on_from_a_number_misses_no_event() {
    let (_directory, stores) = several().await;
    let over = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (store, over) = (stores[0].clone(), Arc::clone(&over));
        async move {
            let (mut after, mut read) = (0, Vec::new());
            loop {
                let last = over.load(Ordering::Relaxed);
                let rows = store.events_after(after, None, 1000).await.unwrap();
                after = rows.last().map_or(after, |row| row.seq);
                let none = rows.is_empty();
                read.extend(rows.into_iter().map(|row| row.kind));
                if last && none {
                    return read;
                }
            }
        }
    });
    let written = stores.iter().zip(0..).flat_map(|(store, process)| {
        (0..60).map(move |number| {
            let name = format!("{process}/{number}");
            async move {
                add(store, name.clone()).await.unwrap();
                name
            }
        })
    });
    let written = futures_util::future::join_all(written).await;
    over.store(true, Ordering::Relaxed);
    let read = reader.await.unwrap();
    assert_eq!(read.len(), written.len());
    let (read, written): (BTreeSet<_>, BTreeSet<_>) =
        (read.into_iter().collect(), written.into_iter().collect());
    assert_eq!(read, written);
}

#[tokio::main(flavor = "multi_thread")]
async fn what_was_confirmed_is_there_once_although_connections_are_cut() {
    let (directory, stores) = several().await;
    let over = Arc::new(AtomicBool::new(false));
    let cutter = tokio::spawn(conformance::cut(
        conformance::server(),
        directory.path().to_owned(),
        Arc::clone(&over),
    ));
    let writers = stores
        .iter()
        .cloned()
        .zip(0..)
        .map(|(store, process)| async move {
            let (mut confirmed, mut refused) = (Vec::new(), Vec::new());
            for number in 0..80 {
                let name = format!("{process}/{number}");
                match add(&store, name.clone()).await {
                    Ok(()) => confirmed.push(name),
                    Err(StoreError::Doubtful) => panic!("it is found out"),
                    Err(_) => refused.push(name),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            (confirmed, refused)
        });
    let told = futures_util::future::join_all(writers).await;
    over.store(true, Ordering::Relaxed);
    let cuts = cutter.await.unwrap();
    let mut all = Vec::new();
    let mut rows = Err(StoreError::Unreachable);
    while rows.is_err() {
        rows = stores[0].events_after(0, None, 1000).await;
    }
    for row in rows.unwrap() {
        all.push(row.kind);
    }
    let once: BTreeSet<&String> = all.iter().collect();
    assert_eq!(once.len(), all.len(), "nothing is there twice");
    let mut refusals = 0;
    for (confirmed, refused) in &told {
        refusals += refused.len();
        assert!(
            confirmed.iter().all(|name| once.contains(name)),
            "what was confirmed is there"
        );
        assert!(
            !refused.iter().any(|name| once.contains(name)),
            "what was refused is not"
        );
    }
    println!(
        "{cuts} connections cut, {} confirmed, {refusals} refused",
        all.len()
    );
    assert!(cuts > 0);
}

#[tokio::main(flavor = "multi_thread")]
async fn whoever_stops_in_a_transaction_holds_the_others_up_for_two_seconds_and_writes_nothing() {
    let (_directory, stores) = several().await;
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let stopped = stores[0].write(move |db| {
        Box::pin(async move {
            sql::query("INSERT INTO process_event (at, type, data) VALUES (0, 'stopped', 'null')")
                .execute(db)
                .await?;
            begun.send(()).unwrap();
            // As a process that gets SIGSTOP here, and SIGCONT later.
            tokio::time::sleep(Duration::from_secs(6)).await;
            Ok::<_, StoreError>(())
        })
    });
    let other = async {
        has_begun.await.unwrap();
        let began = crate::clock::monotonic();
        add(&stores[1], "other".to_owned()).await.unwrap();
        began.elapsed()
    };
    let (stopped, waited) = futures_util::future::join(stopped, other).await;
    assert!(stopped.is_err(), "its transaction was ended");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    add(&stores[0], "again".to_owned()).await.unwrap();
    let rows = stores[2].events_after(0, None, 10).await.unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(names, ["other", "again"]);
}

#[tokio::main(flavor = "multi_thread")]
async fn a_server_that_takes_no_more_writes_is_left_for_a_new_connection() {
    let (directory, stores) = several().await;
    let store = &stores[0];
    // As if the server had become a replica, while its address leads to the next one.
    let words = match conformance::is_postgres() {
        true => "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        false => "SET SESSION TRANSACTION READ ONLY",
    };
    let turned = store.write(move |db| {
        Box::pin(async move {
            db.raw(words).await?;
            Ok::<_, StoreError>(())
        })
    });
    turned.await.unwrap();
    add(store, "moved".to_owned()).await.unwrap();
    if conformance::is_postgres() {
        return;
    }
    // And a server as a whole, as `read_only` makes it.
    let url = conformance::url_of_nobody_special(directory.path()).await;
    let store = Store::open(&url, directory.path()).await.unwrap();
    add(&store, "before".to_owned()).await.unwrap();
    conformance::set_read_only(true).await;
    let refused = add(&store, "refused".to_owned()).await;
    conformance::set_read_only(false).await;
    assert!(
        matches!(refused, Err(StoreError::Unreachable)),
        "{refused:?}"
    );
    let began = crate::clock::monotonic();
    while add(&store, "after".to_owned()).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(2), "it tries again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rows = store.events_after(0, None, 10).await.unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(names, ["moved", "before", "after"]);
}

conformance::suite! {
    a_server_that_takes_no_more_writes_is_left_for_a_new_connection,
    whoever_stops_in_a_transaction_holds_the_others_up_for_two_seconds_and_writes_nothing,
    one_key_makes_one_process_whichever_process_is_asked,
    a_process_is_claimed_by_one_and_a_token_lets_one_in,
    groups_have_one_owner_an_epoch_and_duties_one_server,
    of_several_that_begin_a_deployment_at_once_one_is_first_and_all_hear_of_it,
    what_others_have_made_and_set_is_seen_with_the_next_beat,
    whoever_reads_on_from_a_number_misses_no_event,
    what_was_confirmed_is_there_once_although_connections_are_cut,
}
