//! Walks over many processes, in steps of bounded reading.

use protocol::ids::AgentId;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::process::State;
use crate::store::sql;

const NOW: UnixMs = UnixMs(1_795_512_600_000);

fn id(n: u128) -> ProcessId {
    ProcessId(Uuid::from_u128(n))
}

/// Processes 1 to `count`: every tenth is ready, the others have ended; agents 1 and 2 in turn.
async fn store(count: u32) -> (Store, tempfile::TempDir) {
    let (directory, store) = crate::store::tests::fresh().await;
    let rows = (1..=count).map(|n| {
        let (id, agent) = (format!("{n:032x}"), format!("{:032x}", 1 + n / 10 % 2));
        let (state, finished) = match n % 10 {
            0 => ("ready", None),
            _ => ("succeeded", Some(0)),
        };
        json!([id, agent, state, finished])
    });
    let rows = serde_json::Value::Array(rows.collect()).to_string();
    let fill = store.write(move |db| {
        Box::pin(async move {
            sql::query(
                "INSERT INTO process (id, kind, target_id, class, state, deadline_at, attempt,
                     counted_fence, max_attempts, busy_count, fence, progress_next, progress_rows,
                     progress_bytes, progress_dropped, created_at, finished_at, life)
                 SELECT j.id, 'exec', j.agent, 2, j.state, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
                     j.finished_at, 1
                 FROM LIST($1: id hex, agent hex, state text, finished_at int) AS j",
            )
            .bind(rows)
            .execute(&mut *db)
            .await?;
            Ok::<_, StoreError>(())
        })
    });
    fill.await.unwrap();
    (store, directory)
}

fn ready() -> Matching {
    Matching {
        states: vec![State::Ready],
        ..Matching::default()
    }
}

/// The whole walk, and its steps.
async fn walk(store: &Store, last: u128, matching: &Matching, limit: u32) -> (Vec<ProcessId>, u32) {
    let mut range = Range {
        after: id(0),
        last: id(last),
    };
    let (mut all, mut steps) = (Vec::new(), 0);
    loop {
        let found = store.find_processes(range, matching, limit).await.unwrap();
        assert!(found.processes.len() <= usize::try_from(limit).unwrap());
        all.extend(found.processes);
        steps += 1;
        match found.next {
            Some(next) => {
                assert!(next > range.after, "it goes forward");
                range.after = next;
            }
            None => return (all, steps),
        }
    }
}

#[tokio::test]
async fn a_walk_finds_everything_once_whatever_its_steps() {
    let (store, _directory) = store(50_000).await;
    for limit in [1000, 10_000] {
        let (all, steps) = walk(&store, 50_000, &ready(), limit).await;
        assert_eq!(all.len(), 5000);
        assert!(all.is_sorted_by(|a, b| a < b));
        assert!(steps >= 3, "no step reads everything: {steps}");
    }
    let (all, _) = walk(&store, 1005, &ready(), 7).await;
    assert_eq!(all.len(), 100, "nothing behind the last");
    let of_agent = Matching {
        agent: Some(AgentId(Uuid::from_u128(2))),
        ..ready()
    };
    let (all, _) = walk(&store, 50_000, &of_agent, 500).await;
    assert_eq!(all.len(), 2500);
    let nothing = Matching {
        kind: Some("other".to_owned()),
        ..ready()
    };
    let (all, steps) = walk(&store, 50_000, &nothing, 10).await;
    assert_eq!((all.len(), steps), (0, 3), "20,000 rows a step");
    assert_eq!(store.newest_process().await.unwrap(), Some(id(50_000)));
}

fn new(rate: u32) -> NewBatch {
    NewBatch {
        action: BatchAction::Cancel,
        step: None,
        filter: BatchFilter {
            kind: Some("exec".to_owned()),
            ..BatchFilter::default()
        },
        range: Range {
            after: id(0),
            last: id(9),
        },
        max: 10,
        rate,
        matched: 4,
        reason: "why".to_owned(),
        by: "me".to_owned(),
    }
}

#[tokio::test]
async fn what_a_batch_has_done_adds_up_and_its_end_is_told_once() {
    let (store, _directory) = store(1).await;
    let made = store.create_batch(new(5), NOW).await.unwrap();
    assert_eq!(store.batch(made.id).await.unwrap(), Some(made.clone()));
    assert_eq!(
        store.running_batches().await.unwrap(),
        std::slice::from_ref(&made)
    );
    let progress = |cursor, finished| Progress {
        cursor: id(cursor),
        done: 2,
        failed: 1,
        trouble: Some("why not".to_owned()),
        finished,
    };
    let row = store
        .note_batch(made.id, progress(5, false), NOW)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.cursor, row.done, row.failed), (id(5), 2, 1));
    assert_eq!(row.trouble.as_deref(), Some("why not"));
    let row = store.cancel_batch(made.id, NOW).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.finished_at),
        (BatchState::Cancelled, Some(NOW))
    );
    // A step that was under way counts, and does not bring the batch back.
    let row = store
        .note_batch(made.id, progress(7, true), NOW)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.state, row.done), (BatchState::Cancelled, 4));
    assert!(store.running_batches().await.unwrap().is_empty());
    let kinds: Vec<String> = store
        .events_after(0, None, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds, ["batch.started", "batch.finished"]);
    assert_eq!(store.cancel_batch(Uuid::nil(), NOW).await.unwrap(), None);
}

crate::store::tests::conformance::suite! {
    a_walk_finds_everything_once_whatever_its_steps,
    what_a_batch_has_done_adds_up_and_its_end_is_told_once,
}
