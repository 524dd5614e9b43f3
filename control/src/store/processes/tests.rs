//! That the write path finds its rows by key, and that a batch does all that it should.

use std::time::Duration;

use bytes::Bytes;
use protocol::ids::{AgentId, Fence, GrantId, ProcessId};
use protocol::operation::{Channel, Outcome, OutcomeStatus, Progress};
use sqlx::Row as _;
use uuid::Uuid;

use super::*;
use crate::process::Input;
use crate::store::{Store, queries};

const AGENT: AgentId = AgentId(Uuid::from_u128(7));

async fn open() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open("sqlite:", directory.path()).await.unwrap();
    (directory, store)
}

fn new(resource: Option<&str>, deadline: u64) -> NewProcess {
    NewProcess {
        agent: AGENT,
        kind: "exec".to_owned(),
        input: r#"{"text":"with \"quotes\", \u0000 and ü"}"#.to_owned(),
        class: Class::Normal,
        resource: resource.map(str::to_owned),
        run_at: None,
        deadline_at: UnixMs(deadline),
        max_attempts: 2,
        idempotency: None,
    }
}

async fn make(store: &Store, at: u64, creates: Vec<NewProcess>) -> Vec<ProcessId> {
    let batch = Batch {
        at: UnixMs(at),
        creates,
        ..Batch::default()
    };
    let creations = store.apply(batch).await.unwrap().creations;
    let ids = creations.into_iter().map(|creation| match creation {
        Creation::Created(record) => record.id,
        other => panic!("{other:?}"),
    });
    ids.collect()
}

async fn happen(store: &Store, at: u64, inputs: Vec<Happened>) -> Applied {
    let batch = Batch {
        at: UnixMs(at),
        inputs,
        ..Batch::default()
    };
    store.apply(batch).await.unwrap()
}

async fn count(store: &Store, table: &'static str) -> i64 {
    let mut reader = store.reader().await.unwrap();
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
        .fetch_one(&mut *reader)
        .await
        .unwrap()
}

fn claim(process: ProcessId) -> Happened {
    Happened {
        grant: GrantId(5),
        ..Happened::new(process, Input::Claim)
    }
}

fn finish(process: ProcessId, fence: u64, output: &'static [u8]) -> Happened {
    let outcome = Outcome {
        status: OutcomeStatus::Succeeded,
        exit_code: Some(0),
        message: "fine".to_owned(),
        output: Bytes::from_static(output),
        service_time: Duration::ZERO,
    };
    Happened {
        from: Some(AGENT),
        ..Happened::new(process, Input::Finished(Fence(fence), outcome))
    }
}

#[tokio::test]
async fn no_statement_of_the_write_path_scans_a_table() {
    let (_directory, store) = open().await;
    let texts = [
        apply::WRITE,
        apply::WRITE_EVENTS,
        apply::DUE,
        apply::OF_AGENT,
        apply::NEXT_DUE,
        apply::TAKE_RESOURCE,
        apply::WORK,
        rows::LOAD,
        create::INSERT,
        create::KNOWN_KEYS,
        create::HELD,
    ];
    let mut seen = 0;
    for statement in texts.into_iter().flat_map(|text| text.split(';')) {
        let mut reader = store.reader().await.unwrap();
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        for row in sqlx::query(explain).fetch_all(&mut *reader).await.unwrap() {
            let detail: String = row.try_get("detail").unwrap();
            seen += 1;
            let first_row_only = statement == apply::NEXT_DUE;
            let scans = detail.starts_with("SCAN") && !detail.contains("VIRTUAL TABLE");
            let harmless = detail.contains("SCAN 2-ROW") || detail.contains("(subquery");
            assert!(
                !scans || harmless || first_row_only,
                "{detail}\nin{statement}"
            );
        }
    }
    assert!(seen > 20);
}

#[tokio::test]
async fn a_process_leaves_no_row_behind_but_its_own() {
    let (_directory, store) = open().await;
    let id = make(&store, 10, vec![new(Some("disk"), 1_000)]).await[0];
    assert_eq!(count(&store, "process_ready").await, 1);
    assert_eq!(count(&store, "process_timer").await, 1);
    assert_eq!(count(&store, "process_resource").await, 1);

    let claimed = happen(&store, 20, vec![claim(id)]).await;
    let work = claimed.steps[0].work.clone().unwrap();
    assert_eq!((work.kind.as_str(), work.grant), ("exec", GrantId(5)));
    assert_eq!(work.input, new(None, 0).input);
    assert_eq!(count(&store, "process_ready").await, 0);
    assert_eq!(count(&store, "process_lease").await, 1);

    let ended = happen(&store, 30, vec![finish(id, 1, b"\xff\x00")]).await;
    assert_eq!(ended.freed, ["disk"]);
    for table in [
        "process_ready",
        "process_timer",
        "process_lease",
        "process_resource",
    ] {
        assert_eq!(count(&store, table).await, 0, "{table}");
    }
    let record = store.process(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempts), (State::Succeeded, 1));
    let output = record.outcome.unwrap().output.unwrap();
    assert_eq!(output.to_bytes().unwrap(), b"\xff\x00");
}

#[tokio::test]
async fn a_whole_life_fits_into_one_batch() {
    let (_directory, store) = open().await;
    let id = make(&store, 10, vec![new(None, 1_000)]).await[0];
    let progress = |sequence| Happened {
        from: Some(AGENT),
        progress: Some(Progress {
            sequence,
            percent: Some(50),
            message: "half".to_owned(),
            channel: Channel::Stdout,
            output: Bytes::from_static(b"line\n"),
        }),
        ..Happened::new(
            id,
            Input::Progress {
                fence: Fence(1),
                sequence,
                bytes: 9,
            },
        )
    };
    let life = vec![
        claim(id),
        progress(0),
        progress(0),
        progress(1),
        finish(id, 1, b""),
    ];
    let applied = happen(&store, 20, life).await;
    assert!(applied.steps[0].work.is_none(), "it is over already");
    let events = store.events_after(0, Some(id), 100).await.unwrap();
    let kinds: Vec<&str> = events.iter().map(|row| row.kind.as_str()).collect();
    let expected = [
        "process.created",
        "process.state",
        "process.progress",
        "process.state",
        "process.progress",
        "process.finished",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(events[2].data["output"]["data"], "line\n");
    assert_eq!(count(&store, "process_lease").await, 0);
}

#[tokio::test]
async fn an_agent_cannot_speak_for_another() {
    let (_directory, store) = open().await;
    let id = make(&store, 10, vec![new(None, 1_000)]).await[0];
    happen(&store, 20, vec![claim(id)]).await;
    let mut foreign = finish(id, 1, b"");
    foreign.from = Some(AgentId(Uuid::from_u128(8)));
    let applied = happen(&store, 30, vec![foreign]).await;
    assert!(applied.steps[0].stale && applied.steps[0].tell.is_none());
    let record = store.process(id).await.unwrap().unwrap();
    assert_eq!(record.state, State::Leased);
}

#[tokio::test]
async fn the_sweep_looks_at_what_is_due_and_knows_the_next() {
    let (_directory, store) = open().await;
    let ids = make(
        &store,
        10,
        vec![new(None, 100), new(None, 200), new(None, 300)],
    )
    .await;
    let batch = Batch {
        at: UnixMs(200),
        sweep: 10,
        ..Batch::default()
    };
    let applied = store.apply(batch).await.unwrap();
    let swept: Vec<ProcessId> = applied.steps.iter().map(|step| step.process).collect();
    assert_eq!(swept, &ids[..2]);
    assert_eq!(applied.next_due, Some(UnixMs(300)));
}

#[tokio::test]
async fn a_freed_resource_goes_to_the_one_that_waited_longest() {
    let (_directory, store) = open().await;
    let disk = || new(Some("disk"), 1_000);
    let ids = make(&store, 10, vec![disk(), disk(), disk()]).await;
    let states = |store: Store| async move {
        let mut states = Vec::new();
        for id in [0, 1, 2].map(|n: usize| n) {
            let list = store
                .processes(&queries::ProcessFilter::default(), None, 10)
                .await;
            // Newest first.
            states.push(list.unwrap()[2 - id].state);
        }
        states
    };
    let first = states(store.clone()).await;
    assert_eq!(first, [State::Ready, State::Blocked, State::Blocked]);
    // One that waits is cancelled: nobody else may move.
    happen(&store, 20, vec![Happened::new(ids[1], Input::Cancel)]).await;
    assert_eq!(count(&store, "process_blocked").await, 1);
    happen(&store, 30, vec![claim(ids[0]), finish(ids[0], 1, b"")]).await;
    assert_eq!(store.free_resources().await.unwrap(), ["disk"]);
    let batch = Batch {
        at: UnixMs(40),
        resources: vec!["disk".to_owned()],
        ..Batch::default()
    };
    store.apply(batch).await.unwrap();
    let last = states(store.clone()).await;
    assert_eq!(last, [State::Succeeded, State::Cancelled, State::Ready]);
    assert!(store.free_resources().await.unwrap().is_empty());
    assert_eq!(count(&store, "process_blocked").await, 0);
}

#[tokio::test]
async fn lists_page_through_everything_once_with_any_filter() {
    let (_directory, store) = open().await;
    let creates = (0..25).map(|n| new((n % 5 == 0).then_some("shared"), 1_000));
    let ids = make(&store, 10, creates.collect()).await;
    happen(&store, 20, vec![claim(ids[1]), claim(ids[2])]).await;
    happen(&store, 20, vec![finish(ids[2], 1, b"")]).await;
    let filters = [
        (None, 25),
        (Some(State::Ready), 19),
        (Some(State::Blocked), 4),
        (Some(State::Leased), 1),
        (Some(State::Succeeded), 1),
        (Some(State::Failed), 0),
    ];
    for (state, expected) in filters {
        let filter = queries::ProcessFilter {
            state,
            agent: Some(AGENT),
            kind: Some("exec".to_owned()),
            resource: None,
        };
        let (mut cursor, mut found) = (None, Vec::new());
        loop {
            let page = store.processes(&filter, cursor, 4).await.unwrap();
            let Some(last) = page.last() else { break };
            cursor = Some(last.id);
            found.extend(page.iter().map(|record| record.id));
        }
        assert_eq!(found.len(), expected, "{state:?}");
        assert!(found.is_sorted_by(|a, b| a > b), "{state:?}");
    }
    let shared = queries::ProcessFilter {
        resource: Some("shared".to_owned()),
        ..queries::ProcessFilter::default()
    };
    assert_eq!(store.processes(&shared, None, 100).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_trimmed_process_takes_its_payload_along_and_its_key_says_so() {
    let (_directory, store) = open().await;
    let mut keyed = new(None, 1_000);
    keyed.idempotency = Some(IdempotencyKey {
        scope: "s".to_owned(),
        key: "k".to_owned(),
        fingerprint: [1; 32],
    });
    let id = make(&store, 10, vec![keyed.clone()]).await[0];
    happen(&store, 20, vec![claim(id), finish(id, 1, b"")]).await;
    let retention = crate::store::log::Retention {
        events: 100,
        processes: Duration::from_millis(5),
    };
    while store.trim(retention, UnixMs(100)).await.unwrap() {}
    assert_eq!(count(&store, "process").await, 0);
    assert_eq!(count(&store, "process_payload").await, 0);
    let again = Batch {
        at: UnixMs(200),
        creates: vec![keyed],
        ..Batch::default()
    };
    let creations = store.apply(again).await.unwrap().creations;
    assert_eq!(creations, [Creation::Trimmed { process: id }]);
}
