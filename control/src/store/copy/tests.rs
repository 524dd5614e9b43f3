//! A store becomes another one: from the embedded one to the backend that is tested, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use protocol::identity::KeyHash;
use protocol::ids::AgentId;
use uuid::Uuid;

use super::*;
use crate::clock::UnixMs;
use crate::process::{Plan, PlanOperation, PlanStep};
use crate::store::processes::{Batch, NewProcess};
use crate::store::tests::{conformance, enrol};
use crate::store::{Store, limits, pauses};

/// Whose it is.
const ROOT: KeyHash = KeyHash([7; 32]);

/// An embedded store with something in most tables.
async fn filled(directory: &Path) -> Store {
    let store = Store::open("sqlite:", directory).await.unwrap();
    assert_eq!(store.claim(ROOT, UnixMs(1)).await.unwrap(), ROOT);
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let target = enrol(&store, 1).await;
    let work = PlanOperation {
        operation: "exec".to_owned(),
        input: "{\"zero\":\"\\u0000\"}".to_owned(),
        timeout: Duration::from_secs(1),
    };
    let steps = (0..3).map(|number| PlanStep {
        name: format!("step {number}"),
        work: work.clone(),
        class: None,
        resources: vec!["pool".to_owned()],
        undo: Some(work.clone()),
    });
    let plan = Plan {
        steps: steps.collect(),
    };
    let creates = (0..700).map(|number| NewProcess {
        plan: (number % 10 == 0).then(|| plan.clone()),
        resource: (number % 3 == 0).then(|| format!("ü{}", number % 9)),
        ..NewProcess::of_driver(
            target.agent,
            "vm",
            "{\"a\":\"\u{1f980}\"}",
            UnixMs(1_000_000),
        )
    });
    let batch = Batch {
        at: UnixMs(10),
        creates: creates.collect(),
        ..Batch::default()
    };
    store.apply(batch).await.unwrap();
    let pause = pauses::Pause {
        key: pauses::PauseKey::from_sql("tenant/acme").unwrap(),
        by: "ann".to_owned(),
        reason: "a \0 and \\u0000".to_owned(),
        at: UnixMs(11),
    };
    store.add_pause(pause).await.unwrap();
    let limit = limits::LimitRow {
        key: protocol::flow::LimitKey::Global,
        set: crate::limits::Setting {
            max: Some(5),
            ..crate::limits::Setting::default()
        },
        by: "ann".to_owned(),
        reason: String::new(),
        at: UnixMs(12),
    };
    store.put_limit(limit).await.unwrap();
    store
        .begin_worker(Uuid::from_u128(1), UnixMs(13))
        .await
        .unwrap();
    store
}

/// Rows of tables that were copied in a run.
async fn copied(from: &str, to: &str, directory: &Path) -> Result<(u64, u64), CopyError> {
    let (mut fresh, mut verified) = (0, BTreeSet::new());
    let all = copy(from, to, directory, |step| match step {
        CopyStep::Copied { rows, .. } => fresh += rows,
        CopyStep::Verified { table, .. } => drop(verified.insert(table)),
    });
    let all = all.await?;
    assert_eq!(verified.len(), TABLES.len());
    Ok((all, fresh))
}

#[tokio::test]
async fn a_copy_is_the_same_store_there_and_back() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(first.path()).await;
    let agent = AgentId::from_bytes([1; 16]);
    let before = store.agent(agent).await.unwrap();
    let last = store.event_span().await.unwrap().last;
    store.close().await;
    let there = conformance::url(second.path()).await;
    let (all, fresh) = copied("sqlite:", &there, first.path())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(all > 3000 && fresh == all, "{all} {fresh}");
    let back = format!("sqlite:{}", first.path().join("back.db").display());
    // The other directory's lock: `there` may be embedded as well.
    let (again, _) = copied(&there, &back, second.path()).await.unwrap();
    assert_eq!(again, all);
    let store = Store::open(&there, second.path()).await.unwrap();
    assert_eq!(store.agent(agent).await.unwrap(), before);
    let other = KeyHash([8; 32]);
    assert_eq!(store.claim(other, UnixMs(20)).await.unwrap(), ROOT);
    assert_eq!(store.ready_counts().await.unwrap().len(), 2);
    store
        .record_event(UnixMs(20), "test", None, json!(null))
        .await
        .unwrap();
    assert_eq!(
        store.event_span().await.unwrap().last,
        last + 1,
        "numbers go on"
    );
    store.close().await;
}

#[tokio::test]
async fn a_copy_that_was_interrupted_is_no_store_and_goes_on() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(first.path()).await.close().await;
    let there = conformance::url(second.path()).await;
    // As far as a copy gets that is killed while it is in the middle of a table.
    let mut source = Side::source("sqlite:", first.path()).await.unwrap();
    let mut target = Side::target(&there, second.path()).await.unwrap();
    target.mark().await.unwrap();
    for table in TABLES
        .iter()
        .take_while(|table| table.name != "process_payload")
    {
        copy_table(&mut source, &mut target, table).await.unwrap();
    }
    let table = TABLES
        .iter()
        .find(|table| table.name == "process_payload")
        .unwrap();
    let rows = page(&mut source.db, table, None, 100).await.unwrap();
    let rows = rows
        .iter()
        .map(|row| Json::Array(row.iter().map(Cell::to_json).collect()));
    let mut rows: Vec<String> = rows.map(|row| row.to_string()).collect();
    write(&mut target.db, &table.insert(), &mut rows)
        .await
        .unwrap();
    source.close().await;
    target.close().await;
    let opened = Store::open(&there, second.path()).await.err();
    assert!(
        matches!(opened, Some(OpenError::HalfCopied { .. })),
        "{opened:?}"
    );
    let onwards = copied(&there, "sqlite:third.db", second.path()).await;
    assert!(
        matches!(onwards, Err(CopyError::Open(OpenError::HalfCopied { .. }))),
        "nor is it a source: {onwards:?}"
    );
    let (all, fresh) = copied("sqlite:", &there, first.path()).await.unwrap();
    assert!(fresh < all - 700, "{fresh} of {all} were left to do");
    let again = copied("sqlite:", &there, first.path()).await.unwrap_err();
    assert!(matches!(again, CopyError::NotEmpty { .. }), "{again}");
    let store = Store::open(&there, second.path()).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_row_that_differs_is_found_and_a_store_in_use_left_alone() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(first.path()).await.close().await;
    let there = conformance::url(second.path()).await;
    let mut target = Side::target(&there, second.path()).await.unwrap();
    target.mark().await.unwrap();
    // Somebody else's row where one of ours belongs.
    sql::query(
        "INSERT INTO limit_def (scope, \"key\", max, set_by, reason, at)
         VALUES ('global', 'all', 6, 'bob', '', 12)",
    )
    .execute(&mut target.db)
    .await
    .unwrap();
    target.close().await;
    let differs = copied("sqlite:", &there, first.path()).await.unwrap_err();
    assert!(
        matches!(
            differs,
            CopyError::Differs {
                table: "limit_def",
                expected: 1,
                found: 1
            }
        ),
        "{differs}"
    );
    let third = tempfile::tempdir().unwrap();
    let elsewhere = conformance::url(third.path()).await;
    let live = Store::open(&elsewhere, third.path()).await.unwrap();
    live.begin_worker(Uuid::from_u128(9), clock::now())
        .await
        .unwrap();
    for (from, to) in [
        ("sqlite:", elsewhere.as_str()),
        (elsewhere.as_str(), "sqlite:other.db"),
    ] {
        // A relative path is of the directory that is named: `elsewhere` of its own.
        let directory = if from == "sqlite:" {
            first.path()
        } else {
            third.path()
        };
        let refused = copied(from, to, directory).await.unwrap_err();
        let in_use = matches!(
            refused,
            CopyError::Live { servers: 1, .. } | CopyError::Open(OpenError::Locked { .. })
        );
        assert!(in_use, "{refused}");
    }
    live.close().await;
}

#[tokio::test]
async fn a_store_that_only_an_api_has_open_is_left_alone() {
    let first = tempfile::tempdir().unwrap();
    filled(first.path()).await.close().await;
    let second = tempfile::tempdir().unwrap();
    let there = conformance::url(second.path()).await;
    // No process server: it has no heartbeat.
    let open = Store::open(&there, second.path()).await.unwrap();
    for (from, to) in [
        ("sqlite:", there.as_str()),
        (there.as_str(), "sqlite:other.db"),
    ] {
        let directory = match from {
            "sqlite:" => first.path(),
            _ => second.path(),
        };
        let refused = copied(from, to, directory).await.unwrap_err();
        let in_use = matches!(
            refused,
            CopyError::InUse { .. } | CopyError::Open(OpenError::Locked { .. })
        );
        assert!(in_use, "{refused}");
    }
    open.close().await;
    copied("sqlite:", &there, first.path()).await.unwrap();
}

/// Every file of a directory with its bytes.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// The step of its schema that a store has.
async fn schema(url: &str, directory: &Path) -> i64 {
    match remote::inspect_server(url).await.unwrap() {
        Some(server) => server.schema,
        None => {
            let file = inspect(url, directory, Depth::Quick).await.unwrap();
            file.unwrap().schema
        }
    }
}

/// Does to a store what no server would.
async fn spoil(url: &str, directory: &Path, sql: &'static str) {
    let mut side = Side::target(url, directory).await.unwrap();
    side.db.raw(sql).await.unwrap();
    side.close().await;
}

#[tokio::test]
async fn a_source_that_is_not_there_is_refused_and_neither_of_the_two_is_made() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let there = format!("sqlite:{}", second.path().join("new.db").display());
    for from in ["sqlite:", "sqlite:typo.db", "sqlite:no/such/folder.db"] {
        let refused = copied(from, &there, first.path()).await.unwrap_err();
        assert!(matches!(refused, CopyError::NoStore { .. }), "{refused}");
        let path = sqlite::file_of(from, first.path()).unwrap();
        let path = path.display().to_string();
        assert!(refused.to_string().contains(&path), "{refused}");
    }
    assert_eq!(files(first.path()).len() + files(second.path()).len(), 0);
    // As a slip of a shell's leaves it.
    std::fs::write(first.path().join("drover.db"), "").unwrap();
    let refused = copied("sqlite:", &there, first.path()).await.unwrap_err();
    assert!(matches!(refused, CopyError::NoStore { .. }), "{refused}");
    assert_eq!(files(first.path()).len() + files(second.path()).len(), 1);
}

#[tokio::test]
async fn a_source_that_no_server_has_used_is_refused_and_the_target_not_made() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = conformance::url(first.path()).await;
    let there = format!("sqlite:{}", second.path().join("new.db").display());
    let refused = copied(&from, &there, first.path()).await.unwrap_err();
    assert!(matches!(refused, CopyError::NoStore { .. }), "{refused}");
    // As `drover store migrate` makes it.
    let made = Store::open(&from, first.path()).await.unwrap();
    made.close().await;
    let refused = copied(&from, &there, first.path()).await.unwrap_err();
    assert!(matches!(refused, CopyError::NeverUsed { .. }), "{refused}");
    assert_eq!(files(second.path()).len(), 0);
}

#[tokio::test]
async fn a_source_of_another_schema_is_refused_and_keeps_it() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = conformance::url(first.path()).await;
    let there = format!("sqlite:{}", second.path().join("new.db").display());
    let store = Store::open(&from, first.path()).await.unwrap();
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    store.close().await;
    let older = "DELETE FROM _sqlx_migrations WHERE version > 10";
    spoil(&from, first.path(), older).await;
    let refused = copied(&from, &there, first.path()).await.unwrap_err();
    assert!(
        matches!(refused, CopyError::OlderSchema { found: 10, .. }),
        "{refused}"
    );
    assert_eq!(schema(&from, first.path()).await, 10);
    assert_eq!(files(second.path()).len(), 0);
}

#[tokio::test]
async fn a_source_of_a_newer_schema_is_refused() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = conformance::url(first.path()).await;
    let there = format!("sqlite:{}", second.path().join("new.db").display());
    let store = Store::open(&from, first.path()).await.unwrap();
    store.close().await;
    let newer = "UPDATE _sqlx_migrations SET version = 9000 WHERE version = 10";
    spoil(&from, first.path(), newer).await;
    let refused = copied(&from, &there, first.path()).await.unwrap_err();
    assert!(
        matches!(
            refused,
            CopyError::Open(OpenError::NewerSchema { found: 9000, .. })
        ),
        "{refused}"
    );
    assert_eq!(files(second.path()).len(), 0);
}

#[tokio::test]
async fn no_byte_of_a_source_changes_be_it_a_servers_or_a_backup() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(first.path()).await.close().await;
    for (name, journal) in [("a.db", "WAL"), ("b.db", "DELETE")] {
        if journal == "DELETE" {
            // As VACUUM INTO writes it.
            spoil("sqlite:", first.path(), "PRAGMA journal_mode = DELETE").await;
        }
        let before = files(first.path());
        let there = format!("sqlite:{}", second.path().join(name).display());
        copied("sqlite:", &there, first.path()).await.unwrap();
        assert_eq!(files(first.path()), before, "{journal}");
    }
}

#[tokio::test]
async fn what_a_crash_left_in_the_log_is_copied() {
    let (first, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(first.path()).await;
    for name in ["drover.db", "drover.db-wal"] {
        std::fs::copy(first.path().join(name), crashed.path().join(name)).unwrap();
    }
    store.close().await;
    let (all, _) = copied("sqlite:", "sqlite:new.db", crashed.path())
        .await
        .unwrap();
    assert!(all > 3000, "{all}");
}

#[tokio::test]
async fn every_table_is_copied_with_every_column() {
    let directory = tempfile::tempdir().unwrap();
    Store::open("sqlite:", directory.path())
        .await
        .unwrap()
        .close()
        .await;
    let mut side = Side::target("sqlite:", directory.path()).await.unwrap();
    let rows = sql::query(
        "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c ON true
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name <> '_sqlx_migrations'",
    )
    .fetch_all(&mut side.db)
    .await
    .unwrap();
    let there: BTreeSet<(String, String)> = rows
        .iter()
        .map(|row| (row.try_get(0).unwrap(), row.try_get(1).unwrap()))
        .collect();
    let known = TABLES.iter().flat_map(|table| {
        let columns = table.columns();
        columns.map(|(column, _)| (table.name.to_owned(), column.to_owned()))
    });
    assert_eq!(known.collect::<BTreeSet<_>>(), there);
    side.close().await;
}

crate::store::tests::conformance::suite! {
    a_copy_is_the_same_store_there_and_back,
    a_copy_that_was_interrupted_is_no_store_and_goes_on,
    a_row_that_differs_is_found_and_a_store_in_use_left_alone,
    a_store_that_only_an_api_has_open_is_left_alone,
    a_source_that_no_server_has_used_is_refused_and_the_target_not_made,
    a_source_of_another_schema_is_refused_and_keeps_it,
    a_source_of_a_newer_schema_is_refused,
}
