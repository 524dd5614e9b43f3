//! Who sweeps, and who takes over what.

use super::*;
use crate::store::processes::{Creation, NewProcess};
use crate::store::sql;

const AGENT: AgentId = AgentId(Uuid::from_u128(7));

fn worker(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A store with these process servers.
async fn open(numbers: &[u128]) -> (tempfile::TempDir, Store) {
    let (directory, store) = crate::store::tests::fresh().await;
    for number in numbers {
        store
            .begin_worker(worker(*number), UnixMs(1000))
            .await
            .unwrap();
    }
    (directory, store)
}

/// A process that this server has claimed.
async fn claimed(store: &Store, by: Uuid) -> ProcessId {
    let new = NewProcess::of_driver(AGENT, "exec", "{}", UnixMs(1_000_000));
    let batch = Batch {
        at: UnixMs(1),
        // Ids are made of it.
        seed: rand::random(),
        creates: vec![new],
        ..Batch::default()
    };
    let made = store.apply(batch).await.unwrap().creations;
    let [Creation::Created(record)] = &made[..] else {
        panic!("{made:?}");
    };
    let batch = Batch {
        at: UnixMs(2),
        worker: Some(by),
        inputs: vec![Happened::new(record.id, Input::Claim)],
        ..Batch::default()
    };
    store.apply(batch).await.unwrap();
    record.id
}

#[tokio::test]
async fn one_server_sweeps_and_when_it_is_gone_another_takes_over_what_it_had_claimed() {
    let (_directory, store) = open(&[1, 2, 3]).await;
    let id = claimed(&store, worker(1)).await;
    for (number, sweeps) in [(1, true), (2, false), (3, false)] {
        let beat = store
            .beat(worker(number), UnixMs(3000), Asks::default())
            .await
            .unwrap();
        assert_eq!((beat.live, beat.sweeps), (3, sweeps), "{number}");
        assert!(beat.adopted.is_empty() && beat.shared.is_some());
    }
    // The first one falls silent. As long as it may be alive, nobody takes anything.
    store
        .beat(worker(3), UnixMs(8000), Asks::default())
        .await
        .unwrap();
    let early = store
        .beat(worker(2), UnixMs(12_000), Asks::default())
        .await
        .unwrap();
    assert_eq!((early.live, early.adopted.len()), (3, 0));
    store
        .beat(worker(3), UnixMs(12_500), Asks::default())
        .await
        .unwrap();
    let late = store
        .beat(worker(2), UnixMs(13_600), Asks::default())
        .await
        .unwrap();
    assert_eq!((late.live, late.sweeps), (2, true));
    let adopted: Vec<_> = late.adopted.iter().map(|l| (l.process, l.state)).collect();
    assert_eq!(adopted, [(id, State::Unknown)]);
    assert!(
        store
            .beat(worker(2), UnixMs(14_000), Asks::default())
            .await
            .unwrap()
            .adopted
            .is_empty()
    );
    // It was only slow: it is counted again, and gets nothing back.
    let back = store
        .beat(worker(1), UnixMs(15_000), Asks::default())
        .await
        .unwrap();
    assert_eq!((back.live, back.adopted.len()), (3, 0));
}

/// A beat of `number` to which a lock service has said that these are gone.
async fn suspecting(store: &Store, number: u128, at: u64, suspects: &[u128]) -> Beat {
    let asks = Asks {
        suspects: suspects.iter().copied().map(worker).collect(),
        ..Asks::default()
    };
    store.beat(worker(number), UnixMs(at), asks).await.unwrap()
}

#[tokio::test]
async fn one_that_is_suspected_is_gone_when_two_beats_are_missed_and_its_duty_is_taken() {
    let (_directory, store) = open(&[1, 2, 3]).await;
    let id = claimed(&store, worker(1)).await;
    assert!(suspecting(&store, 1, 3000, &[]).await.sweeps);
    for number in [2, 3] {
        suspecting(&store, number, 5000, &[]).await;
    }
    // It beats, whatever is said of it: nothing is taken, and it is looked at when it may be gone.
    let early = suspecting(&store, 2, 7999, &[1]).await;
    assert_eq!(
        (early.live, early.sweeps, early.adopted.len()),
        (3, false, 0)
    );
    assert_eq!(early.look_in, Some(Duration::from_millis(1)));
    assert_eq!(early.peers, [worker(1), worker(3)].into());
    // Whoever has not heard the suspicion waits as ever.
    let unaware = suspecting(&store, 3, 8000, &[]).await;
    assert_eq!(
        (unaware.live, unaware.sweeps, unaware.look_in),
        (3, false, None)
    );
    let late = suspecting(&store, 2, 8000, &[1]).await;
    assert_eq!((late.live, late.sweeps, late.look_in), (2, true, None));
    let adopted: Vec<_> = late.adopted.iter().map(|l| (l.process, l.state)).collect();
    assert_eq!(adopted, [(id, State::Unknown)]);
    let peers = [worker(1), worker(3)];
    assert_eq!(late.peers, peers.into(), "its lock is watched still");
    // It was only slow, and everybody is suspected: all beat, so all live.
    let back = suspecting(&store, 1, 8500, &[2, 3]).await;
    assert_eq!((back.live, back.adopted.len()), (3, 0));
    suspecting(&store, 2, 13_000, &[]).await;
    let quiet = suspecting(&store, 2, 18_000, &[]).await;
    assert_eq!(
        quiet.live, 2,
        "the third is silent for 10 s, the first not yet"
    );
    assert_eq!(quiet.peers, [worker(1)].into());
}

/// A service that suspects everybody takes no more from servers that beat in time than one that suspects nobody.
#[tokio::test]
async fn a_service_that_always_lies_takes_nothing_from_whoever_beats() {
    let (_directory, store) = open(&[1, 2, 3]).await;
    for number in [1, 2, 3] {
        claimed(&store, worker(number)).await;
    }
    for at in (1500..60_000).step_by(500) {
        // Each beats every 1.5 s, one after the other.
        let number = u128::from(at / 500 % 3) + 1;
        let beat = suspecting(&store, number, at, &[1, 2, 3]).await;
        assert_eq!((beat.live, beat.adopted.len()), (3, 0), "at {at}");
    }
}

#[tokio::test]
async fn whoever_joins_leaves_the_duty_to_sweep_where_it_is() {
    let (_directory, store) = open(&[2]).await;
    let sweeps = async |number, at| {
        let beat = store.beat(worker(number), UnixMs(at), Asks::default());
        beat.await.unwrap().sweeps
    };
    assert!(sweeps(2, 2000).await);
    for number in [1, 3] {
        let begun = store.begin_worker(worker(number), UnixMs(2500));
        begun.await.unwrap();
    }
    for at in [3000, 5000, 7000] {
        assert!(sweeps(2, at).await, "nobody else does");
        assert!(!sweeps(1, at + 1).await && !sweeps(3, at + 2).await);
    }
}

#[tokio::test]
async fn more_claims_than_one_step_takes_over_make_the_next_beat_due_at_once() {
    let (_directory, store) = open(&[1, 2]).await;
    for _ in 0..TAKE_OVER_STEP + 2 {
        claimed(&store, worker(2)).await;
    }
    store.end_worker(worker(2), UnixMs(1400)).await.unwrap();
    for (adopted, more) in [(TAKE_OVER_STEP, true), (2, false), (0, false)] {
        let beat = store.beat(worker(1), UnixMs(1500), Asks::default());
        let beat = beat.await.unwrap();
        assert_eq!((beat.adopted.len(), beat.more), (adopted as usize, more));
    }
}

#[tokio::test]
async fn the_one_that_is_left_alone_finds_what_nobody_has_passed_on() {
    // Whose end is seen, and who is only missed after a while.
    for (seen, at) in [(true, 103_000), (false, 113_000)] {
        let (_directory, store) = open(&[1, 2]).await;
        let on_resource = async |seed| {
            let new = NewProcess {
                resource: Some("vm-1".to_owned()),
                ..NewProcess::of_driver(AGENT, "exec", "{}", UnixMs(1_000_000))
            };
            let batch = Batch {
                at: UnixMs(1),
                seed,
                creates: vec![new],
                ..Batch::default()
            };
            let made = store.apply(batch).await.unwrap().creations;
            let [Creation::Created(record)] = &made[..] else {
                panic!("{made:?}");
            };
            record.id
        };
        let holder = on_resource(1).await;
        on_resource(2).await;
        let looks = async |looked, at| {
            let asks = Asks {
                looked,
                ..Asks::default()
            };
            store.beat(worker(1), UnixMs(at), asks).await.unwrap()
        };
        let other = store.beat(worker(2), UnixMs(102_000), Asks::default());
        other.await.unwrap();
        let beat = looks(Looked::default(), 102_000).await;
        // The other one lets go of it, and is no more before it passes it on.
        let batch = Batch {
            at: UnixMs(102_100),
            worker: Some(worker(2)),
            inputs: vec![Happened::new(holder, Input::Cancel)],
            ..Batch::default()
        };
        assert_eq!(store.apply(batch).await.unwrap().freed, ["vm-1"]);
        let beat = looks(beat.looked, 102_200).await;
        assert!(beat.shared.unwrap().resources.is_empty(), "it may yet");
        let looked = match seen {
            true => {
                store.end_worker(worker(2), UnixMs(102_300)).await.unwrap();
                beat.looked
            }
            false => looks(beat.looked, 107_000).await.looked,
        };
        let beat = looks(looked, at).await;
        assert_eq!(beat.live, 1);
        assert_eq!(beat.shared.unwrap().resources, ["vm-1"]);
    }
}

#[tokio::test]
async fn what_was_taken_over_is_known_although_nothing_else_can_be_read() {
    let (_directory, store) = open(&[1, 2]).await;
    let id = claimed(&store, worker(2)).await;
    store.end_worker(worker(2), UnixMs(1400)).await.unwrap();
    let rename = async |sql: &'static str| {
        let renamed = store.write(move |db| {
            Box::pin(async move {
                sql::query(sql).execute(&mut *db).await?;
                Ok::<_, StoreError>(())
            })
        });
        renamed.await.unwrap();
    };
    let looks = async |looked| {
        let asks = Asks {
            looked,
            ..Asks::default()
        };
        store.beat(worker(1), UnixMs(1500), asks).await.unwrap()
    };
    rename("ALTER TABLE limit_def RENAME TO away").await;
    let beat = looks(Looked::default()).await;
    assert_eq!(beat.adopted[0].process, id);
    assert!(beat.shared.is_none());
    rename("ALTER TABLE away RENAME TO limit_def").await;
    // Nothing counts as read: the next beat makes good for it.
    store.begin_worker(worker(3), UnixMs(1500)).await.unwrap();
    assert!(looks(beat.looked).await.shared.unwrap().orders.is_some());
}

/// Events that say that a server is gone: the claims that it left.
async fn gone(store: &Store) -> Vec<u64> {
    let events = store.events_after(0, None, 100).await.unwrap();
    let gone = events.iter().filter(|event| event.kind == "server.gone");
    gone.map(|event| event.data["claims"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn a_follower_takes_over_as_the_sweeper_does() {
    let (_directory, store) = open(&[1, 2]).await;
    for _ in 0..TAKE_OVER_STEP + 1 {
        claimed(&store, worker(2)).await;
    }
    let kept = claimed(&store, worker(1)).await;
    store.end_worker(worker(2), UnixMs(1400)).await.unwrap();
    store.begin_worker(worker(3), UnixMs(1500)).await.unwrap();
    let leases = store.leases(worker(3)).await.unwrap();
    assert_eq!(leases.len(), TAKE_OVER_STEP as usize + 1);
    assert!(leases.iter().all(|lease| lease.state == State::Unknown));
    assert_eq!(gone(&store).await, [u64::from(TAKE_OVER_STEP), 1]);
    let kept_by = store.leases(worker(1)).await.unwrap();
    assert_eq!(kept_by[0].process, kept);
}

#[tokio::test]
async fn whoever_sweeps_hears_of_a_timer_as_soon_as_it_is_set() {
    let (_directory, store) = open(&[1]).await;
    let mut timers = store.timers();
    let new = NewProcess::of_driver(AGENT, "exec", "{}", UnixMs(500));
    let batch = Batch {
        at: UnixMs(1),
        worker: Some(worker(2)),
        creates: vec![new],
        ..Batch::default()
    };
    store.apply(batch).await.unwrap();
    assert!(timers.has_changed().unwrap());
    assert_eq!(*timers.borrow_and_update(), Some(UnixMs(500)));
    let look = Batch {
        at: UnixMs(600),
        sweep: 10,
        ..Batch::default()
    };
    store.apply(look).await.unwrap();
    assert_eq!(*timers.borrow(), None);
}

#[tokio::test]
async fn what_others_may_have_changed_is_read_only_when_something_was_written() {
    let (_directory, store) = open(&[1, 2]).await;
    let looks = async |number, looked| {
        let asks = Asks {
            looked,
            ..Asks::default()
        };
        let beat = store.beat(worker(number), UnixMs(2000), asks).await;
        let beat = beat.unwrap();
        (beat.shared.is_some(), beat.looked)
    };
    let (first, mut one) = looks(1, Looked::default()).await;
    assert!(first);
    // The other one's beats are no reason.
    let (_, _) = looks(2, Looked::default()).await;
    for _ in 0..3 {
        let (again, looked) = looks(1, one).await;
        assert!(!again);
        one = looked;
    }
    let (theirs, own) = (
        claimed(&store, worker(2)).await,
        claimed(&store, worker(1)).await,
    );
    let believed = vec![(AGENT, own, Fence(1)), (AGENT, theirs, Fence(1))];
    let asks = Asks {
        looked: one,
        believed,
        ..Asks::default()
    };
    let beat = store.beat(worker(1), UnixMs(2000), asks).await.unwrap();
    let shared = beat.shared.unwrap();
    assert_eq!(shared.not_held, [(AGENT, theirs, Fence(1))]);
    assert!(shared.orders.is_none(), "nobody has ordered anything");
    assert!(!looks(1, beat.looked).await.0);
}

#[tokio::test]
async fn one_server_lends_until_it_is_gone_and_the_next_one_has_a_higher_term() {
    let (_directory, store) = open(&[1, 2]).await;
    let lends = async |number, at, wants| {
        let asks = Asks {
            lends: wants,
            ..Asks::default()
        };
        let beat = store.beat(worker(number), UnixMs(at), asks).await;
        beat.unwrap().lends
    };
    assert_eq!(lends(2, 2000, false).await, None, "it does not want to");
    assert_eq!(lends(2, 3000, true).await, Some(1));
    assert_eq!(lends(1, 4000, true).await, None, "the other one lives");
    assert_eq!(lends(2, 5000, true).await, Some(1), "it goes on");
    assert_eq!(lends(1, 10_000, true).await, None, "it may be alive");
    assert_eq!(lends(1, 14_999, true).await, None, "it may be alive");
    assert_eq!(lends(1, 15_001, true).await, Some(2), "it is gone");
    assert_eq!(lends(2, 16_000, true).await, None, "it was only slow");
    store.end_worker(worker(1), UnixMs(16_500)).await.unwrap();
    assert_eq!(lends(2, 17_000, true).await, Some(3));
}

/// When the store is back that was away for minutes.
const BACK: u64 = 300_000;

/// A store that nobody has reached since 3 s, with two servers, of which the second has claimed a process and lends.
async fn away() -> (tempfile::TempDir, Store, ProcessId) {
    let (directory, store) = open(&[1, 2]).await;
    let id = claimed(&store, worker(2)).await;
    for (number, lends) in [(2, Some(1)), (1, None)] {
        assert_eq!(lending(&store, number, 3000).await.lends, lends);
    }
    (directory, store, id)
}

/// A beat of one that would lend.
async fn lending(store: &Store, number: u128, at: u64) -> Beat {
    let asks = Asks {
        lends: true,
        ..Asks::default()
    };
    store.beat(worker(number), UnixMs(at), asks).await.unwrap()
}

#[tokio::test]
async fn after_an_outage_whoever_comes_first_takes_nothing_from_those_that_come_as_well() {
    let (_directory, store, id) = away().await;
    let first = lending(&store, 1, BACK).await;
    assert_eq!((first.live, first.adopted.len()), (2, 0));
    assert_eq!(
        first.lends, None,
        "a duty that moves costs all homes a lease"
    );
    assert!(first.sweeps, "timers wait for nobody");
    assert_eq!(first.peers, [worker(2)].into(), "its lock is watched");
    let second = lending(&store, 2, BACK + 1900).await;
    assert_eq!((second.live, second.adopted.len()), (2, 0));
    assert_eq!(second.lends, Some(1), "in the term of before");
    for at in (BACK + 2000..BACK + 30_000).step_by(2000) {
        for number in [1, 2] {
            let beat = lending(&store, number, at).await;
            assert_eq!((beat.live, beat.adopted.len()), (2, 0), "{number} at {at}");
        }
    }
    let leases = store.leases(worker(2)).await.unwrap();
    assert_eq!((leases.len(), leases[0].process), (1, id));
}

#[tokio::test]
async fn who_died_during_an_outage_is_followed_ten_seconds_after_it() {
    let (_directory, store, id) = away().await;
    for at in (BACK..BACK + 10_000).step_by(2000) {
        let beat = lending(&store, 1, at).await;
        assert_eq!((beat.live, beat.adopted.len()), (2, 0), "at {at}");
        assert_eq!(beat.lends, None, "at {at}");
    }
    let beat = lending(&store, 1, BACK + 10_000).await;
    let adopted: Vec<_> = beat.adopted.iter().map(|l| (l.process, l.state)).collect();
    assert_eq!(adopted, [(id, State::Unknown)]);
    assert_eq!((beat.live, beat.lends), (1, Some(2)));
    assert!(beat.bereft, "what it has left is looked for");
}

#[tokio::test]
async fn whose_end_is_known_is_followed_at_once_after_an_outage_and_who_is_suspected_soon() {
    let (_directory, store, id) = away().await;
    assert!(lending(&store, 1, BACK).await.adopted.is_empty());
    let ended = store.end_worker(worker(2), UnixMs(BACK + 400));
    ended.await.unwrap();
    let beat = lending(&store, 1, BACK + 500).await;
    assert_eq!(beat.adopted[0].process, id);
    assert_eq!(beat.lends, Some(2));

    let (_directory, store, id) = away().await;
    for (at, taken) in [(0, 0), (2000, 0), (4999, 0), (5000, 1)] {
        let beat = suspecting(&store, 1, BACK + at, &[2]).await;
        let adopted: Vec<_> = beat.adopted.iter().map(|lease| lease.process).collect();
        assert_eq!(adopted, [id][..taken], "after {at}");
    }
}

#[tokio::test]
async fn who_begins_after_an_outage_spares_the_others_and_who_begins_beside_one_that_beats_does_not()
 {
    let (_directory, store, id) = away().await;
    let begun = store.begin_worker(worker(3), UnixMs(BACK));
    begun.await.unwrap();
    assert!(store.leases(worker(3)).await.unwrap().is_empty());
    assert_eq!(store.leases(worker(2)).await.unwrap()[0].process, id);
    assert_eq!(lending(&store, 2, BACK + 500).await.lends, Some(1));
    assert_eq!(lending(&store, 3, BACK + 600).await.live, 3);

    let (_directory, store, id) = away().await;
    for at in (4000..14_000).step_by(2000) {
        suspecting(&store, 1, at, &[]).await;
    }
    let begun = store.begin_worker(worker(3), UnixMs(13_500));
    begun.await.unwrap();
    let taken = store.leases(worker(3)).await.unwrap();
    assert_eq!((taken.len(), taken[0].process), (1, id));
}

#[tokio::test]
async fn a_server_that_ends_in_order_is_followed_at_once() {
    let (_directory, store) = open(&[1, 2]).await;
    let id = claimed(&store, worker(2)).await;
    store.end_worker(worker(2), UnixMs(1400)).await.unwrap();
    let beat = store
        .beat(worker(1), UnixMs(1500), Asks::default())
        .await
        .unwrap();
    assert_eq!(beat.adopted[0].process, id);
    assert_eq!(beat.live, 1);
}

#[tokio::test]
async fn what_a_dead_server_had_on_its_way_is_taken_over_as_well() {
    let (_directory, store) = open(&[1, 2]).await;
    let sweep = async |at| {
        let beat = store.beat(worker(1), UnixMs(at), Asks::default()).await;
        let beat = beat.unwrap();
        let adopted: Vec<_> = beat.adopted.iter().map(|lease| lease.process).collect();
        (beat.live, adopted)
    };
    assert_eq!(sweep(6000).await, (2, Vec::new()));
    assert_eq!(sweep(12_000).await, (1, Vec::new()), "it had nothing");
    let late = claimed(&store, worker(2)).await;
    assert_eq!(sweep(14_000).await, (1, vec![late]));
    // After a while nothing is expected of it any more.
    for at in (19_000..700_000).step_by(7000) {
        assert_eq!(sweep(at).await, (1, Vec::new()), "at {at}");
    }
    assert_eq!(sweep(700_000).await, (1, Vec::new()));
    let mut reader = store.reader().await.unwrap();
    let known: i64 = sql::query_scalar("SELECT count(*) FROM worker")
        .fetch_one(&mut reader)
        .await
        .unwrap();
    assert_eq!(known, 1);
    // Unless it is known that it has just ended.
    let later = claimed(&store, worker(2)).await;
    assert_eq!(sweep(701_000).await, (1, Vec::new()));
    store.end_worker(worker(2), UnixMs(701_500)).await.unwrap();
    assert_eq!(sweep(702_000).await, (1, vec![later]));
}

#[tokio::test]
async fn a_server_in_a_new_process_takes_everything_and_one_beside_it_nothing() {
    let (directory, store) = crate::store::tests::fresh().await;
    store.begin_worker(worker(1), UnixMs(1000)).await.unwrap();
    let id = claimed(&store, worker(1)).await;
    store.begin_worker(worker(2), UnixMs(1001)).await.unwrap();
    assert!(store.leases(worker(2)).await.unwrap().is_empty());
    store.close().await;
    let store = Store::open("sqlite:", directory.path()).await.unwrap();
    // The clock says that the first one may be alive; the file's lock knows better.
    store.begin_worker(worker(3), UnixMs(1002)).await.unwrap();
    let leases = store.leases(worker(3)).await.unwrap();
    assert_eq!((leases[0].process, leases[0].state), (id, State::Unknown));
    assert_eq!(gone(&store).await, [1]);
    assert_eq!(
        store
            .beat(worker(3), UnixMs(1003), Asks::default())
            .await
            .unwrap()
            .live,
        1
    );
}

crate::store::tests::conformance::suite! {
    one_server_sweeps_and_when_it_is_gone_another_takes_over_what_it_had_claimed,
    whoever_joins_leaves_the_duty_to_sweep_where_it_is,
    more_claims_than_one_step_takes_over_make_the_next_beat_due_at_once,
    the_one_that_is_left_alone_finds_what_nobody_has_passed_on,
    what_was_taken_over_is_known_although_nothing_else_can_be_read,
    a_follower_takes_over_as_the_sweeper_does,
    whoever_sweeps_hears_of_a_timer_as_soon_as_it_is_set,
    one_server_lends_until_it_is_gone_and_the_next_one_has_a_higher_term,
    after_an_outage_whoever_comes_first_takes_nothing_from_those_that_come_as_well,
    who_died_during_an_outage_is_followed_ten_seconds_after_it,
    whose_end_is_known_is_followed_at_once_after_an_outage_and_who_is_suspected_soon,
    who_begins_after_an_outage_spares_the_others_and_who_begins_beside_one_that_beats_does_not,
    a_server_that_ends_in_order_is_followed_at_once,
    what_a_dead_server_had_on_its_way_is_taken_over_as_well,
}
