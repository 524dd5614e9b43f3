//! Lines in the store: which one a process waits in, and that others cost its claims nothing.

use protocol::flow::{Class as Urgency, Line};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::*;
use crate::store::lines::{self, Found, Others, Want};
use crate::store::sql;

/// The ids in all lines of the agent that no pause holds.
pub(super) async fn not_paused(store: &Store, pauses: &Pauses) -> Vec<ProcessId> {
    let counts = store.ready_counts().await.unwrap();
    let lines = counts.into_iter().map(|count| (count.line, 10));
    let want = Want {
        agent: AGENT,
        lines: lines.collect(),
        others: None,
    };
    let found = store.ready_of(&[want], pauses).await.unwrap();
    let places = found[0].lines.iter().flat_map(|line| &line.places);
    places.map(|((_, id), _)| *id).collect()
}

/// Every ready process, with its line and deadline.
async fn waiting(store: &Store) -> Vec<(Line, ProcessId, UnixMs)> {
    let counts = store.ready_counts().await.unwrap();
    let want = |line: &Arc<Line>| Want {
        agent: AGENT,
        lines: vec![(Arc::clone(line), 10)],
        others: None,
    };
    let wants: Vec<Want> = counts.iter().map(|count| want(&count.line)).collect();
    let found = store.ready_of(&wants, &Pauses::default()).await.unwrap();
    let lines = found.iter().flat_map(|found| &found.lines);
    let all = lines.flat_map(|line| {
        let places = line.places.iter();
        places.map(|((_, id), deadline)| (Line::clone(&line.line), *id, *deadline))
    });
    all.collect()
}

/// The line of a step of `planned`.
fn of_step(class: Urgency, kind: &str) -> Line {
    Line {
        class,
        tenant: "default".to_owned(),
        kind: kind.to_owned(),
        work: "light".to_owned(),
        resources: vec!["pool/ssd".to_owned()],
    }
}

#[tokio::test]
async fn each_step_waits_in_a_line_of_its_own_and_its_lease_says_which() {
    let (_directory, store) = open().await;
    let worker = Uuid::from_u128(5);
    let id = make(&store, 10, vec![planned(None, 10_000)]).await[0];
    let deadline = UnixMs(10_000);
    let one = of_step(Urgency::Normal, "life.one");
    assert_eq!(waiting(&store).await, [(one.clone(), id, deadline)]);
    let batch = Batch {
        at: UnixMs(20),
        worker: Some(worker),
        inputs: vec![claim(id)],
        ..Batch::default()
    };
    let claimed = store.apply(batch).await.unwrap();
    let names = claimed.steps[0].names.as_ref().unwrap();
    assert_eq!((&*names.line_before, &*names.line), (&one, &one));
    assert!(waiting(&store).await.is_empty());
    let leases = store.leases(worker).await.unwrap();
    assert_eq!(*leases[0].line, one);

    let done = said(id, StepId::forward(0, 0), 1, OutcomeStatus::Succeeded);
    let applied = happen(&store, 30, vec![done]).await;
    let names = applied.steps[0].names.as_ref().unwrap();
    let two = of_step(Urgency::Normal, "life.two");
    assert_eq!((&*names.line_before, &*names.line), (&one, &two));
    assert_eq!(waiting(&store).await, [(two.clone(), id, deadline)]);

    // It turns from one line to another without ceasing to be ready.
    let applied = happen(&store, 40, vec![Happened::new(id, Input::Cancel)]).await;
    let names = applied.steps[0].names.as_ref().unwrap();
    let undo = of_step(Urgency::System, "life.one.undo");
    assert_eq!((&*names.line_before, &*names.line), (&two, &undo));
    let turned = waiting(&store).await;
    assert_eq!(turned.len(), 1, "it stands in one line only");
    assert_eq!((&turned[0].0, turned[0].1), (&undo, id));
    assert!(turned[0].2 > deadline, "undoing has a time of its own");
}

#[tokio::test]
async fn a_driver_waits_by_its_class_and_tenant_and_the_lines_are_found_one_by_one() {
    let (_directory, store) = open().await;
    let of = |tenant: &str, class| NewProcess {
        tenant: tenant.to_owned(),
        class,
        ..new(None, 10_000)
    };
    let mut creates = vec![of("b", Class::Background), of("c", Class::Interactive)];
    creates.extend((0..50).map(|_| of("a", Class::Normal)));
    make(&store, 10, creates).await;
    let lines_after = |after: Option<Arc<Line>>, limit| {
        let store = store.clone();
        async move {
            let want = Want {
                agent: AGENT,
                lines: Vec::new(),
                others: Some(Others { after, limit }),
            };
            let found = store.ready_of(&[want], &Pauses::default()).await.unwrap();
            let [Found { others, .. }] = &found[..] else {
                panic!("{found:?}");
            };
            others.clone().unwrap()
        }
    };
    let tenants = |lines: &[Arc<Line>]| -> Vec<String> {
        lines.iter().map(|line| line.tenant.clone()).collect()
    };
    let all = lines_after(None, 10).await;
    assert_eq!(tenants(&all), ["c", "a", "b"], "the most urgent first");
    assert_eq!(tenants(&lines_after(None, 2).await), ["c", "a"]);
    assert_eq!(
        tenants(&lines_after(Some(Arc::clone(&all[0])), 9).await),
        ["a", "b"]
    );
    assert!(lines_after(Some(Arc::clone(&all[2])), 9).await.is_empty());
    let want = Want {
        agent: AGENT,
        lines: vec![(Arc::clone(&all[1]), 20), (Arc::clone(&all[0]), 20)],
        others: None,
    };
    let found = store.ready_of(&[want], &Pauses::default()).await.unwrap();
    let read: Vec<_> = found[0]
        .lines
        .iter()
        .map(|line| (line.places.len(), line.all))
        .collect();
    assert_eq!(read, [(20, false), (1, true)]);
    let counts = store.ready_counts().await.unwrap();
    let counts: Vec<_> = counts.iter().map(|count| count.ready).collect();
    assert_eq!(counts, [1, 50, 1]);
}

#[tokio::test]
async fn a_permit_of_a_line_is_for_the_next_one_where_another_server_was_first() {
    let (_directory, store) = open().await;
    let ids = make(&store, 10, (0..4).map(|_| new(None, 10_000)).collect()).await;
    let line = waiting(&store).await[0].0.clone();
    let line = Arc::new(line);
    let pause = Pause {
        key: PauseKey::of_id(PauseScope::Process, ids[1].0),
        by: "ann".to_owned(),
        reason: "not yet".to_owned(),
        at: UnixMs(11),
    };
    store.add_pause(pause).await.unwrap();
    let claims = |claimed: Vec<ProcessId>, worker: u128| Batch {
        at: UnixMs(20),
        worker: Some(Uuid::from_u128(worker)),
        inputs: claimed
            .into_iter()
            .map(|id| Happened {
                line: Some(Arc::clone(&line)),
                ..claim(id)
            })
            .collect(),
        ..Batch::default()
    };
    let first = store.apply(claims(vec![ids[0]], 1)).await.unwrap();
    assert_eq!(first.steps[0].instead_of, None);
    // Another server has not heard of it; the second one is paused, and the third it claims as well.
    let both = claims(vec![ids[0], ids[2]], 2);
    let second = store.apply(both).await.unwrap();
    let told: Vec<_> = second
        .steps
        .iter()
        .map(|step| (step.process, step.instead_of, step.work.is_some()))
        .collect();
    assert_eq!(told, [(ids[3], Some(ids[0]), true), (ids[2], None, true)]);
    // Nobody is left: the claim is about the past.
    let third = store.apply(claims(vec![ids[2]], 1)).await.unwrap();
    assert_eq!(
        (third.steps[0].process, third.steps[0].stale),
        (ids[2], true)
    );
    assert!(third.steps[0].work.is_none());
    assert_eq!(store.leases(Uuid::from_u128(2)).await.unwrap().len(), 2);
}

/// 100,000 stuck processes of another line cost a claim nothing: every statement finds its rows by agent
/// and line, reads no other, and sorts nothing.
#[tokio::test]
async fn what_waits_in_other_lines_is_not_read() {
    let (_directory, store) = open().await;
    let by_line = "SEARCH process_ready USING PRIMARY KEY (target_id=? AND line=?)";
    let next_line = "SEARCH process_ready USING PRIMARY KEY (target_id=? AND line>?)";
    for (statement, way) in [
        (lines::READY_OF, by_line),
        (lines::READY_OF_NOT_PAUSED, by_line),
        (lines::LINES_OF, next_line),
        (stand_in::NEXT_OF, by_line),
    ] {
        let mut reader = store.reader().await.unwrap();
        let explain = format!("EXPLAIN QUERY PLAN {statement}");
        let rows = sql::query(explain).fetch_all(&mut reader).await.unwrap();
        let plan: Vec<String> = rows
            .iter()
            .map(|row| row.try_get("detail").unwrap())
            .collect();
        let touches: Vec<_> = plan
            .iter()
            .filter(|step| step.contains("process_ready"))
            .collect();
        assert!(!touches.is_empty(), "{plan:?}");
        assert!(touches.iter().all(|step| *step == way), "{plan:?}");
        assert!(
            !plan.iter().any(|step| step.contains("TEMP B-TREE")),
            "{plan:?}"
        );
    }
}

/// A store as the version before left it.
async fn old_store(path: &std::path::Path) -> sqlx::SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut db = options.create_if_missing(true).connect().await.unwrap();
    for step in [
        include_str!("../../../../migrations/0001_processes.sql"),
        include_str!("../../../../migrations/0002_access.sql"),
        include_str!("../../../../migrations/0003_group_size.sql"),
        include_str!("../../../../migrations/0004_steps.sql"),
        include_str!("../../../../migrations/0005_webhooks.sql"),
    ] {
        sqlx::raw_sql(step).execute(&mut db).await.unwrap();
    }
    db
}

/// A ready process of class 3, at step number $1, of kind $2.
const OLD_ROW: &str = "
    INSERT INTO process (id, kind, target_id, class, state, ready_at, deadline_at, attempt,
        counted_fence, max_attempts, busy_count, fence, progress_next, progress_rows, progress_bytes,
        progress_dropped, created_at, tenant, step)
    VALUES (unhex(printf('%032x', $1 & 0xff)), $2, zeroblob(16), 3, 'ready', 7, 99, 0,
        0, 1, 0, 0, 0, 0, 0, 0, 7, 'acme', $1);
    INSERT INTO process_ready (target_id, class, ready_at, process_id, tenant, kind)
        SELECT target_id, class, ready_at, id, tenant, kind FROM process
        WHERE id = unhex(printf('%032x', $1 & 0xff));
    INSERT INTO process_plan (process_id, step, name, operation, input, timeout, class, resources)
        SELECT id, $1 & 0x801f, 'build', 'exec', '{}', 1, 'light', '[\"b\",\"a\",\"b\",\"c\",\"e\",\"d\"]'
        FROM process
        WHERE id = unhex(printf('%032x', $1 & 0xff)) AND kind <> 'exec'";

#[tokio::test]
async fn what_was_ready_before_is_put_into_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut db = old_store(&directory.path().join("old.db")).await;
    let long = "k".repeat(62);
    // Without a plan; a step; one that undoes, in a later run; a kind of nearly 64 bytes.
    let rows = [(0, "exec"), (1, "vm"), (0x8042, "vm"), (3, long.as_str())];
    for (step, kind) in rows {
        sqlx::query(OLD_ROW)
            .bind(step)
            .bind(kind)
            .execute(&mut db)
            .await
            .unwrap();
    }
    let step = include_str!("../../../../migrations/0006_lines.sql");
    sqlx::raw_sql(step).execute(&mut db).await.unwrap();
    let found = sqlx::query(
        "SELECT line, ready_at, deadline_at, kind FROM process_ready ORDER BY process_id",
    )
    .fetch_all(&mut db)
    .await
    .unwrap();
    let needs = StepNeeds {
        name: "build".to_owned(),
        class: Some("light".to_owned()),
        resources: ["b", "a", "b", "c", "e", "d"].map(str::to_owned).to_vec(),
    };
    let mut expected: Vec<_> = rows
        .iter()
        .map(|(step, kind)| {
            let needs = Some(&needs).filter(|_| *kind != "exec");
            let of = line(kind, "acme", Class::Background, StepId(*step), needs);
            (*step & 0xff, lines::to_sql(&of), (*kind).to_owned())
        })
        .collect();
    expected.sort_unstable();
    assert_eq!(found.len(), expected.len());
    for (row, (_, line, kind)) in found.iter().zip(expected) {
        assert_eq!(row.try_get::<String, _>(0).unwrap(), line);
        assert_eq!(
            (
                row.try_get::<i64, _>(1).unwrap(),
                row.try_get::<i64, _>(2).unwrap()
            ),
            (7, 99)
        );
        assert_eq!(row.try_get::<String, _>(3).unwrap(), kind);
    }
    db.close().await.unwrap();
}
