//! That the write path finds its rows by key, and that a batch does all that it should.

mod lines;
mod superseded;

use std::time::Duration;

use bytes::Bytes;
use protocol::ids::{AgentId, Fence, GrantId, ProcessId};
use protocol::operation::{Channel, Outcome, OutcomeStatus, Progress};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::process::pause::Pauses;
use crate::process::{Input, PlanOperation, PlanStep};
use crate::store::pauses::{Pause, PauseAdded, PauseKey, PauseScope};
use crate::store::sql;
use crate::store::{Store, queries};

const AGENT: AgentId = AgentId(Uuid::from_u128(7));

async fn open() -> (tempfile::TempDir, Store) {
    let (directory, store) = crate::store::tests::fresh().await;
    (directory, store)
}

fn new(resource: Option<&str>, deadline: u64) -> NewProcess {
    let input = r#"{"text":"with \"quotes\", \u0000 and ü"}"#;
    NewProcess {
        resource: resource.map(str::to_owned),
        max_attempts: 2,
        ..NewProcess::of_driver(AGENT, "exec", input, UnixMs(deadline))
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
    sql::query_scalar(format!("SELECT count(*) FROM {table}"))
        .fetch_one(&mut reader)
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
        writes::WRITE,
        apply::WRITE_EVENTS,
        apply::DUE,
        apply::OF_AGENT,
        apply::NEXT_DUE,
        apply::NEXT_HOLDER,
        apply::TAKE_RESOURCE,
        apply::WORK,
        rows::LOAD,
        create::INSERT,
        create::KNOWN_KEYS,
        create::HELD,
        NEEDLESS,
        crate::store::lines::NEEDS,
    ];
    let mut seen = 0;
    for statement in texts.into_iter().flat_map(|text| text.split(';')) {
        let mut reader = store.reader().await.unwrap();
        let explain = format!("EXPLAIN QUERY PLAN {statement}");
        for row in sql::query(explain).fetch_all(&mut reader).await.unwrap() {
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
            ..queries::ProcessFilter::default()
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

#[tokio::test]
async fn an_expired_key_makes_a_new_process_whatever_it_asks_for() {
    let (_directory, store) = open().await;
    let keyed = |fingerprint| {
        let mut keyed = new(None, 1_000);
        keyed.idempotency = Some(IdempotencyKey {
            scope: "s".to_owned(),
            key: "k".to_owned(),
            fingerprint: [fingerprint; 32],
        });
        keyed
    };
    let first = make(&store, 10, vec![keyed(1)]).await[0];
    let made_at = async |at| {
        let batch = Batch {
            at,
            creates: vec![keyed(2)],
            ..Batch::default()
        };
        store.apply(batch).await.unwrap().creations
    };
    let expires = UnixMs(10).plus(IDEMPOTENCY_LIFE);
    let early = made_at(UnixMs(expires.0 - 1)).await;
    assert_eq!(early, [Creation::KeyConflict { process: first }]);
    let late = made_at(expires).await;
    assert!(matches!(&late[..], [Creation::Created(made)] if made.id != first));
}

/// Three steps, of which the first two can be undone.
fn planned(resource: Option<&str>, deadline: u64) -> NewProcess {
    let operation = |name: &str| PlanOperation {
        operation: format!("do-{name}"),
        input: format!("{{\"step\":\"{name}\"}}"),
        timeout: Duration::from_millis(300),
    };
    let step = |name: &str, undo: Option<&str>| PlanStep {
        name: name.to_owned(),
        work: operation(name),
        class: Some("light".to_owned()),
        resources: vec!["pool/ssd".to_owned()],
        undo: undo.map(operation),
    };
    NewProcess {
        plan: Some(Plan {
            steps: vec![
                step("one", Some("un-one")),
                step("two", Some("un-two")),
                step("three", None),
            ],
        }),
        kind: "life".to_owned(),
        ..new(resource, deadline)
    }
}

/// An agent's word about the operation of `step`.
fn said(process: ProcessId, step: StepId, fence: u64, status: OutcomeStatus) -> Happened {
    let Happened { input, .. } = finish(process, fence, b"");
    let Input::Finished(fence, outcome) = input else {
        unreachable!()
    };
    Happened {
        step: Some(step),
        from: Some(AGENT),
        ..Happened::new(
            process,
            Input::Finished(fence, Outcome { status, ..outcome }),
        )
    }
}

#[tokio::test]
async fn each_step_sends_what_its_plan_says_and_keeps_how_it_ended() {
    let (_directory, store) = open().await;
    let id = make(&store, 10, vec![planned(None, 10_000)]).await[0];
    let record = store.process(id).await.unwrap().unwrap();
    assert_eq!((record.steps, record.planned), (3, true));
    assert_eq!(store.plan(id).await.unwrap(), planned(None, 0).plan);
    let first = happen(&store, 20, vec![claim(id)]).await;
    let work = first.steps[0].work.clone().unwrap();
    assert_eq!(
        (work.kind.as_str(), work.input.as_str()),
        ("do-one", "{\"step\":\"one\"}")
    );
    assert_eq!(work.deadline_at, UnixMs(320), "the step's own time");
    let done = said(id, StepId::forward(0, 0), 1, OutcomeStatus::Succeeded);
    let applied = happen(&store, 30, vec![done]).await;
    assert_eq!(applied.steps[0].operation.step, 0, "that one is forgotten");
    let claimed = happen(&store, 40, vec![claim(id)]).await;
    assert_eq!(claimed.steps[0].work.as_ref().unwrap().kind, "do-two");
    assert_eq!(claimed.steps[0].now.unwrap().step, StepId::forward(1, 0));
    // A word about the first step, said again, is about the past.
    let late = said(id, StepId::forward(0, 0), 2, OutcomeStatus::FailedPermanent);
    let applied = happen(&store, 45, vec![late]).await;
    assert!(applied.steps[0].stale);
    assert_eq!(applied.steps[0].tell, Some(Tell::Forget));
    assert_eq!(applied.steps[0].operation.step, 0);
    let fails = said(id, StepId::forward(1, 0), 2, OutcomeStatus::FailedPermanent);
    happen(&store, 50, vec![fails]).await;
    let claimed = happen(&store, 60, vec![claim(id)]).await;
    let work = claimed.steps[0].work.clone().unwrap();
    assert_eq!(work.kind, "do-un-one");
    assert_eq!(claimed.steps[0].now.unwrap().step, StepId::undo(0, 0));
    let undone = said(id, StepId::undo(0, 0), 3, OutcomeStatus::Succeeded);
    happen(&store, 70, vec![undone]).await;
    let record = store.process(id).await.unwrap().unwrap();
    assert_eq!(
        (record.state, record.needs_attention),
        (State::Failed, false)
    );
    assert_eq!(record.outcome.unwrap().message, "fine; undone: steps 1");
    let ends: Vec<(u16, u32)> = store
        .plan_rows(id)
        .await
        .unwrap()
        .iter()
        .filter(|row| row.outcome.is_some())
        .map(|row| (row.step.0, row.attempts))
        .collect();
    assert_eq!(ends, [(0, 1), (1, 1), (0x8000, 1)]);
    // Started over, it knows nothing of its earlier life but its history.
    happen(&store, 80, vec![Happened::new(id, Input::Retry)]).await;
    let rows = store.plan_rows(id).await.unwrap();
    assert!(
        rows.iter()
            .all(|row| row.outcome.is_none() && row.attempts == 0)
    );
    let history = store.history(id, 0, 100).await.unwrap();
    assert_eq!(history.len(), 8);
    assert_eq!(
        history.last().unwrap().data["note"],
        "started over at step 1"
    );
    let claimed = happen(&store, 90, vec![claim(id)]).await;
    assert_eq!(claimed.steps[0].now.unwrap().step, StepId::forward(0, 1));
    assert_eq!(claimed.steps[0].work.as_ref().unwrap().kind, "do-one");
}

#[tokio::test]
async fn steps_that_begin_anew_lose_their_ends_and_those_before_keep_theirs() {
    let (_directory, store) = open().await;
    let id = make(&store, 10, vec![planned(None, 10_000)]).await[0];
    // Each step has been tried, and what undoes it as well.
    let renewed = json!([[id.0.simple().to_string(), 1]]).to_string();
    let write = store.write_order(move |db| {
        Box::pin(async move {
            sql::query("UPDATE process_plan SET attempts = 1")
                .execute(&mut *db)
                .await?;
            let nothing = || "[]".to_owned();
            let mut query = sql::query(writes::WRITE);
            for number in 1..=14 {
                query = query.bind(if number == 12 {
                    renewed.clone()
                } else {
                    nothing()
                });
            }
            query.execute(&mut *db).await?;
            Ok::<(), StoreError>(())
        })
    });
    write.await.unwrap();
    let rows = store.plan_rows(id).await.unwrap();
    let kept = rows.iter().filter(|row| row.attempts > 0);
    let kept: Vec<u16> = kept.map(|row| row.step.0).collect();
    assert_eq!(kept, [0, 0x8000]);
}

#[tokio::test]
async fn a_plan_goes_with_its_process() {
    let (_directory, store) = open().await;
    let id = make(&store, 10, vec![planned(None, 1_000)]).await[0];
    assert_eq!(count(&store, "process_plan").await, 5);
    happen(&store, 20, vec![Happened::new(id, Input::Cancel)]).await;
    let retention = crate::store::log::Retention {
        events: 100,
        processes: Duration::from_millis(5),
    };
    while store.trim(retention, UnixMs(100)).await.unwrap() {}
    assert_eq!(count(&store, "process_plan").await, 0);
}

#[tokio::test]
async fn a_retried_process_gets_in_line_for_its_resource_again() {
    let (_directory, store) = open().await;
    let ids = make(
        &store,
        10,
        vec![new(Some("disk"), 1_000), new(Some("disk"), 1_000)],
    )
    .await;
    // In the very batch in which it ends, somebody wants it again.
    let fails = said(ids[0], StepId::default(), 1, OutcomeStatus::FailedPermanent);
    let retry = Happened::new(ids[0], Input::Retry);
    let applied = happen(&store, 20, vec![claim(ids[0]), fails, retry]).await;
    assert_eq!(applied.freed, ["disk"]);
    let take = |at| Batch {
        at: UnixMs(at),
        resources: vec!["disk".to_owned()],
        ..Batch::default()
    };
    store.apply(take(30)).await.unwrap();
    let state = |store: Store, id| async move { store.process(id).await.unwrap().unwrap().state };
    // The oldest comes first: that is the retried one.
    assert_eq!(state(store.clone(), ids[0]).await, State::Ready);
    assert_eq!(state(store.clone(), ids[1]).await, State::Blocked);
    let step = StepId::forward(0, 1);
    let again = said(ids[0], step, 3, OutcomeStatus::Succeeded);
    happen(&store, 40, vec![claim(ids[0]), again]).await;
    store.apply(take(50)).await.unwrap();
    assert_eq!(state(store.clone(), ids[0]).await, State::Succeeded);
    assert_eq!(state(store.clone(), ids[1]).await, State::Ready);
    assert_eq!(count(&store, "process_blocked").await, 0);
    assert_eq!(count(&store, "process_resource").await, 1);
}

#[tokio::test]
async fn paused_processes_are_shown_so_and_queues_are_read_past_them() {
    let (_directory, store) = open().await;
    let of = |tenant: &str, kind: &str| NewProcess {
        tenant: tenant.to_owned(),
        kind: kind.to_owned(),
        ..new(None, 10_000)
    };
    let ids = make(
        &store,
        10,
        vec![of("a", "x"), of("b", "x"), of("a", "y"), of("b", "y")],
    )
    .await;
    let pause = |key: PauseKey| Pause {
        key,
        by: "ann".to_owned(),
        reason: "maintenance".to_owned(),
        at: UnixMs(20),
    };
    let tenant = pause(PauseKey::of_name(PauseScope::Tenant, "a"));
    assert_eq!(
        store.add_pause(tenant.clone()).await.unwrap(),
        PauseAdded::New(tenant.clone())
    );
    let again = Pause {
        reason: "other".to_owned(),
        ..tenant.clone()
    };
    assert_eq!(
        store.add_pause(again).await.unwrap(),
        PauseAdded::Already(tenant.clone())
    );
    let process = pause(PauseKey::of_id(PauseScope::Process, ids[1].0));
    store.add_pause(process.clone()).await.unwrap();
    let table = store.pauses().await.unwrap();
    assert_eq!(table.pauses, [process.clone(), tenant.clone()]);
    let pauses = Pauses::new(table.pauses.iter().map(|pause| &pause.key));
    assert_eq!(lines::not_paused(&store, &pauses).await, [ids[3]]);
    let list = |paused| {
        let (store, state) = (store.clone(), Some(State::Ready));
        let filter = queries::ProcessFilter {
            state,
            paused,
            ..queries::ProcessFilter::default()
        };
        async move { store.processes(&filter, None, 10).await.unwrap() }
    };
    assert_eq!(list(Some(true)).await.len(), 3);
    assert_eq!(list(Some(false)).await.len(), 1);
    assert_eq!(list(None).await.len(), 4);
    let shown = store.process(ids[1]).await.unwrap().unwrap();
    assert_eq!(shown.paused, Some(process.key.clone()));
    let by = || ("bob".to_owned(), String::new());
    for (key, there) in [(tenant.key.clone(), true), (tenant.key, false)] {
        let (who, why) = by();
        let gone = store.remove_pause(key, UnixMs(30), who, why).await.unwrap();
        assert_eq!(gone, there);
    }
    let newer = store.pauses().await.unwrap();
    assert!(newer.version > table.version);
    // The pause of a process goes when the process is over.
    happen(&store, 40, vec![Happened::new(ids[1], Input::Cancel)]).await;
    let retention = crate::store::log::Retention::default();
    store.trim(retention, UnixMs(50)).await.unwrap();
    assert!(store.pauses().await.unwrap().pauses.is_empty());
}

#[tokio::test]
async fn a_pause_ends_with_its_process_and_holds_no_later_life_of_it() {
    let (_directory, store) = open().await;
    let ids = make(&store, 10, vec![new(None, 10_000), new(None, 10_000)]).await;
    for id in &ids {
        let pause = Pause {
            key: PauseKey::of_id(PauseScope::Process, id.0),
            by: "ann".to_owned(),
            reason: "maintenance".to_owned(),
            at: UnixMs(20),
        };
        store.add_pause(pause).await.unwrap();
    }
    let before = store.pauses().await.unwrap();
    // It ends, and in the very same batch somebody wants it again.
    let inputs = [Input::Cancel, Input::Retry].map(|input| Happened::new(ids[0], input));
    let applied = happen(&store, 30, inputs.to_vec()).await;
    let left = applied.pauses.unwrap();
    assert!(left.version > before.version, "it is newer");
    assert_eq!(left.pauses, before.pauses[1..]);
    assert_eq!(store.pauses().await.unwrap(), left);
    let record = store.process(ids[0]).await.unwrap().unwrap();
    assert_eq!((record.state, record.paused), (State::Ready, None));
    let history = store.history(ids[0], 0, 100).await.unwrap();
    let ended = history
        .iter()
        .find(|row| row.kind == "pause.removed")
        .unwrap();
    assert_eq!(
        (&ended.data["actor"], &ended.data["key"]),
        (&json!("system"), &json!(ids[0].to_string()))
    );
    // One that goes on keeps its own.
    let applied = happen(&store, 40, vec![claim(ids[1])]).await;
    assert!(applied.unpaused.is_empty() && applied.pauses.is_none());
    assert_eq!(store.pauses().await.unwrap().pauses.len(), 1);
}

#[tokio::test]
async fn lists_filter_by_tenant_and_by_what_people_must_look_at() {
    let (_directory, store) = open().await;
    let of = |tenant: &str| NewProcess {
        tenant: tenant.to_owned(),
        ..new(None, 10_000)
    };
    let ids = make(&store, 10, vec![of("a"), of("b"), of("b")]).await;
    happen(
        &store,
        20,
        vec![claim(ids[1]), Happened::new(ids[1], Input::Force)],
    )
    .await;
    let found = |filter: queries::ProcessFilter| {
        let store = store.clone();
        async move {
            let list = store.processes(&filter, None, 10).await.unwrap();
            list.into_iter().map(|record| record.id).collect::<Vec<_>>()
        }
    };
    let tenant = queries::ProcessFilter {
        tenant: Some("b".to_owned()),
        ..queries::ProcessFilter::default()
    };
    assert_eq!(found(tenant.clone()).await, [ids[2], ids[1]]);
    for (look, expected) in [(true, vec![ids[1]]), (false, vec![ids[2], ids[0]])] {
        let filter = queries::ProcessFilter {
            needs_attention: Some(look),
            ..queries::ProcessFilter::default()
        };
        assert_eq!(found(filter).await, expected);
    }
}

#[tokio::test]
async fn the_line_for_one_resource_has_an_end() {
    let (_directory, store) = open().await;
    let full = BLOCKED_PER_RESOURCE_MAX as usize + 1;
    let line = (0..full).map(|_| new(Some("disk"), 10_000)).collect();
    let ids = make(&store, 10, line).await;
    let mut keyed = new(Some("disk"), 10_000);
    keyed.idempotency = Some(IdempotencyKey {
        scope: "s".to_owned(),
        key: "k".to_owned(),
        fingerprint: [1; 32],
    });
    let batch = |at| Batch {
        at: UnixMs(at),
        creates: vec![keyed.clone(), keyed.clone(), new(Some("other"), 10_000)],
        ..Batch::default()
    };
    let creations = store.apply(batch(20)).await.unwrap().creations;
    let refused = Creation::ResourceFull {
        waiting: BLOCKED_PER_RESOURCE_MAX,
    };
    assert_eq!(creations[..2], [refused.clone(), refused]);
    assert!(matches!(creations[2], Creation::Created(_)));
    // With one fewer in line the same request is taken: its key was not used up.
    happen(&store, 30, vec![Happened::new(ids[5], Input::Cancel)]).await;
    let creations = store.apply(batch(40)).await.unwrap().creations;
    assert!(
        matches!(creations[0], Creation::Created(_)),
        "{creations:?}"
    );
    assert!(
        matches!(creations[1], Creation::Existing(_)),
        "{creations:?}"
    );
}

crate::store::tests::conformance::suite! {
    a_process_leaves_no_row_behind_but_its_own,
    a_whole_life_fits_into_one_batch,
    an_agent_cannot_speak_for_another,
    the_sweep_looks_at_what_is_due_and_knows_the_next,
    a_freed_resource_goes_to_the_one_that_waited_longest,
    lists_page_through_everything_once_with_any_filter,
    a_trimmed_process_takes_its_payload_along_and_its_key_says_so,
    an_expired_key_makes_a_new_process_whatever_it_asks_for,
    each_step_sends_what_its_plan_says_and_keeps_how_it_ended,
    steps_that_begin_anew_lose_their_ends_and_those_before_keep_theirs,
    a_plan_goes_with_its_process,
    a_retried_process_gets_in_line_for_its_resource_again,
    paused_processes_are_shown_so_and_queues_are_read_past_them,
    a_pause_ends_with_its_process_and_holds_no_later_life_of_it,
    lists_filter_by_tenant_and_by_what_people_must_look_at,
    the_line_for_one_resource_has_an_end,
}
