//! What later orders make needless.

use super::*;

fn superseding(kind: &str, others: &[&str]) -> NewProcess {
    NewProcess {
        kind: kind.to_owned(),
        supersedes: others.iter().map(|kind| (*kind).to_owned()).collect(),
        ..new(Some("vm/1"), 10_000)
    }
}

#[tokio::test]
async fn start_stop_start_collapses_in_one_batch_and_over_several() {
    for together in [true, false] {
        let (_directory, store) = open().await;
        let wishes = || {
            [
                superseding("start", &["stop"]),
                superseding("stop", &["start"]),
                superseding("start", &["stop"]),
            ]
        };
        let ids = match together {
            true => make(&store, 10, wishes().into()).await,
            false => {
                let mut ids = Vec::new();
                for (at, wish) in (10..).zip(wishes()) {
                    ids.extend(make(&store, at, vec![wish]).await);
                }
                ids
            }
        };
        let free = Batch {
            at: UnixMs(20),
            resources: vec!["vm/1".to_owned()],
            ..Batch::default()
        };
        store.apply(free).await.unwrap();
        let mut states = Vec::new();
        for id in &ids {
            states.push(store.process(*id).await.unwrap().unwrap().state);
        }
        assert_eq!(
            states,
            [State::Cancelled, State::Cancelled, State::Ready],
            "{together}"
        );
        let stop = store.process(ids[1]).await.unwrap().unwrap();
        let message = stop.outcome.unwrap().message;
        assert_eq!(message, format!("superseded by {}", ids[2]));
        assert_eq!(count(&store, "process_blocked").await, 0);
        assert_eq!(count(&store, "process_resource").await, 1);
    }
}

#[tokio::test]
async fn what_has_started_is_not_superseded_and_a_repeated_request_supersedes_nothing() {
    let (_directory, store) = open().await;
    let start = make(&store, 10, vec![superseding("start", &["stop"])]).await[0];
    let running = Happened {
        from: Some(AGENT),
        ..Happened::new(start, Input::Accepted(Fence(1)))
    };
    happen(&store, 20, vec![claim(start), running]).await;
    let mut keyed = superseding("stop", &["start"]);
    keyed.idempotency = Some(IdempotencyKey {
        scope: "s".to_owned(),
        key: "k".to_owned(),
        fingerprint: [1; 32],
    });
    let stop = make(&store, 30, vec![keyed.clone()]).await[0];
    assert_eq!(
        store.process(start).await.unwrap().unwrap().state,
        State::Running
    );
    assert_eq!(
        store.process(stop).await.unwrap().unwrap().state,
        State::Blocked
    );
    let second = make(&store, 40, vec![superseding("start", &["none"])]).await[0];
    let again = Batch {
        at: UnixMs(50),
        creates: vec![keyed],
        ..Batch::default()
    };
    let creations = store.apply(again).await.unwrap().creations;
    assert!(matches!(&creations[0], Creation::Existing(record) if record.id == stop));
    assert_eq!(
        store.process(second).await.unwrap().unwrap().state,
        State::Blocked
    );
}
