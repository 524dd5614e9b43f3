//! Opening a store, and what the writer promises, on real files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use protocol::ids::AgentId;

use super::*;
use crate::clock::UnixMs;
use crate::store::sql;

mod clocks;
pub(in crate::store) mod conformance;
mod everything;
mod shared;
mod tls;

async fn open(directory: &Path) -> Result<Store, OpenError> {
    conformance::open(directory).await
}

/// A new store, of the backend that is tested.
pub(crate) async fn fresh() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    (directory, store)
}

async fn fails(directory: &Path) -> OpenError {
    match open(directory).await {
        Ok(_) => panic!("the store was opened"),
        Err(error) => error,
    }
}

/// Adds a row, then fails if told to.
async fn add(store: &Store, name: &'static str, fail: bool) -> Result<u64, StoreError> {
    store
        .write(move |db| {
            Box::pin(async move {
                sql::query("INSERT INTO process_event (at, type, data) VALUES (0, $1, 'null')")
                    .bind(name)
                    .execute(&mut *db)
                    .await?;
                let row = sql::query("SELECT count(*) FROM process_event")
                    .fetch_one(&mut *db)
                    .await?;
                match fail {
                    true => Err(StoreError::BadRow("on purpose".to_owned())),
                    false => Ok(from_sql(row.try_get(0)?)),
                }
            })
        })
        .await
}

async fn names(store: &Store) -> Vec<String> {
    let rows = store.events_after(0, None, 1000).await.unwrap();
    rows.into_iter().map(|row| row.kind).collect()
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_reopening() {
    let (directory, store) = fresh().await;
    add(&store, "a", false).await.unwrap();
    store.close().await;
    let store = open(directory.path()).await.unwrap();
    assert_eq!(names(&store).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_share_a_commit_and_a_failing_one_fails_alone() {
    let (_directory, store) = fresh().await;
    let jobs = (0..300).map(|n| {
        let store = store.clone();
        let name = ["keep", "drop", "keep"][n % 3];
        async move { add(&store, name, name == "drop").await }
    });
    let results = futures_util::future::join_all(jobs).await;
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result.is_ok(), n % 3 != 1, "{n}: {result:?}");
    }
    assert_eq!(names(&store).await, vec!["keep"; 200]);
    let stats = store.stats();
    assert_eq!(stats.jobs, 300);
    assert!(
        stats.commits < 100,
        "{} commits for 300 jobs",
        stats.commits
    );
}

#[tokio::test]
async fn a_job_that_panics_is_rolled_back_alone_and_the_writer_lives() {
    let (_directory, store) = fresh().await;
    let panicked: Result<(), StoreError> = store
        .write(|db| {
            Box::pin(async move {
                sql::query("INSERT INTO process_event (at, type, data) VALUES (0, 'x', '')")
                    .execute(&mut *db)
                    .await?;
                panic!("on purpose")
            })
        })
        .await;
    assert!(matches!(panicked, Err(StoreError::JobPanicked)));
    add(&store, "after", false).await.unwrap();
    assert_eq!(names(&store).await, ["after"]);
}

#[tokio::test]
async fn a_broken_statement_rolls_back_its_own_job_only() {
    let (_directory, store) = fresh().await;
    let broken = store.write(|db| {
        Box::pin(async move {
            sql::query(
                "INSERT INTO agent_group (id, name, slot, automatic, created_at)
                         VALUES (unhex('00000000000000000000000000000000'), 'x', 999, 0, 0)",
            )
            .execute(&mut *db)
            .await?;
            Ok::<_, StoreError>(())
        })
    });
    let (broken, good) = futures_util::future::join(broken, add(&store, "good", false)).await;
    assert!(matches!(broken, Err(StoreError::Sql(_))), "{broken:?}");
    assert!(good.is_ok());
}

#[tokio::test]
async fn a_job_that_goes_on_after_an_error_confirms_nothing_that_is_not_there() {
    let (_directory, store) = fresh().await;
    let careless = store.write(|db| {
        Box::pin(async move {
            let broken = sql::query("INSERT INTO process_event (at, type) VALUES (0, 'x')");
            assert!(broken.execute(&mut *db).await.is_err());
            sql::query("SELECT 1").fetch_all(&mut *db).await.ok();
            Ok::<_, StoreError>(())
        })
    });
    let confirmed = careless.await.is_ok();
    add(&store, "after", false).await.unwrap();
    assert_eq!(names(&store).await, ["after"]);
    // The embedded store and MariaDB take back the statement alone, and nothing was lost with it.
    let postgres = conformance::is_postgres();
    assert_eq!(confirmed, !postgres);
}

#[tokio::test]
async fn too_many_waiting_jobs_are_turned_away() {
    let (_directory, store) = fresh().await;
    // The writer has no chance to run between these: one thread.
    let jobs = (0..writer::QUEUE_MAX + 10).map(|_| add(&store, "x", false));
    let results = futures_util::future::join_all(jobs).await;
    let busy = results
        .iter()
        .filter(|result| matches!(result, Err(StoreError::Busy)));
    assert_eq!(busy.count(), 10);
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let (_directory, store) = fresh().await;
    store.clone().close().await;
    assert!(matches!(
        add(&store, "x", false).await,
        Err(StoreError::Stopped)
    ));
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused() {
    let (directory, store) = fresh().await;
    let error = fails(directory.path()).await;
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("another drover server"));
    store.close().await;
    open(directory.path()).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let (directory, store) = fresh().await;
    let newer = store.write(|db| {
        Box::pin(async move {
            sql::query(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9000, 'of the future', 1, x'00', 0)",
            )
            .execute(&mut *db)
            .await?;
            Ok::<_, StoreError>(())
        })
    });
    newer.await.unwrap();
    store.close().await;
    let error = fails(directory.path()).await;
    assert!(
        matches!(error, OpenError::NewerSchema { found: 9000, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("use the newer drover"));
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("drover.db");
    std::fs::write(&file, vec![b'x'; 8192]).unwrap();
    let error = fails(directory.path()).await;
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), vec![b'x'; 8192]);
}

#[tokio::test]
async fn a_damaged_page_is_found_at_the_start() {
    let (directory, store) = fresh().await;
    add(&store, "x", false).await.unwrap();
    store.close().await;
    let file = directory.path().join("drover.db");
    let mut bytes = std::fs::read(&file).unwrap();
    // Not the first page: the header would give it away more cheaply.
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let error = fails(directory.path()).await;
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = fails(&missing).await;
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("missing"));
    // Root may write anywhere, so a read-only folder proves nothing for it.
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o555)).unwrap();
    let probe = std::fs::write(directory.path().join("probe"), b"");
    if probe.is_err() {
        assert!(matches!(
            fails(directory.path()).await,
            OpenError::NotWritable { .. }
        ));
    }
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn only_its_owner_reads_a_store_wherever_it_lies() {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let (data, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(elsewhere.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let url = format!("sqlite:{}", elsewhere.path().join("other.db").display());
    for (url, directory) in [("sqlite:", data.path()), (&url, elsewhere.path())] {
        for _ in 0..2 {
            let store = Store::open(url, data.path()).await.unwrap();
            add(&store, "x", false).await.unwrap();
            let files: Vec<_> = std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert_eq!(files.len(), 4, "file, log, index, lock: {files:?}");
            for file in &files {
                assert_eq!(mode(file), 0o600, "{}", file.display());
            }
            store.close().await;
            // As a backup that was copied back may be.
            for file in files.iter().filter(|file| file.exists()) {
                std::fs::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_store_of_another_kind_is_refused_with_the_kinds_that_there_are() {
    let directory = tempfile::tempdir().unwrap();
    for url in ["oracle://x", "sqlite::memory:", "drover.db"] {
        let error = Store::open(url, directory.path()).await.err().unwrap();
        assert!(matches!(error, OpenError::UnsupportedUrl(_)), "{error}");
        assert!(error.to_string().contains("sqlite:"));
    }
}

#[tokio::test]
async fn groups_are_spread_over_slots_and_taken_once_per_server() {
    let (_directory, store) = fresh().await;
    for _ in 0..2 {
        store.ensure_automatic_groups(UnixMs(5)).await.unwrap();
    }
    let groups = store.groups().await.unwrap();
    assert_eq!(groups.len(), usize::from(groups::AUTOMATIC_GROUPS));
    for shards in [1, 2, 3, 4, 8, 64] {
        let mut load = vec![0; usize::from(shards)];
        for group in &groups {
            load[usize::from(group.slot.home(shards).0)] += 1;
        }
        let (least, most) = (load.iter().min().unwrap(), load.iter().max().unwrap());
        assert!(most - least <= 1, "{shards} shards: {load:?}");
    }
    let named = store.create_group("rack-7", UnixMs(6)).await.unwrap();
    assert!(groups.iter().all(|group| group.slot != named.slot));
    let taken = store.create_group("rack-7", UnixMs(6)).await;
    assert!(matches!(taken, Err(groups::CreateGroupError::NameTaken(_))));

    let mine = store.take_groups(Uuid::from_u128(1)).await.unwrap();
    assert_eq!(mine.len(), groups.len() + 1);
    assert!(
        mine.iter()
            .all(|group| group.epoch == protocol::ids::Epoch(1))
    );
    // With a stale epoch nothing is taken.
    let stale = store
        .take_group(named.clone(), Uuid::from_u128(2))
        .await
        .unwrap();
    assert_eq!(stale, None);
    // Who owns them already takes nothing from itself.
    let again = store.take_groups(Uuid::from_u128(1)).await.unwrap();
    assert_eq!(again, mine);
    let theirs = store.take_groups(Uuid::from_u128(2)).await.unwrap();
    assert!(
        theirs
            .iter()
            .all(|group| group.epoch == protocol::ids::Epoch(2))
    );
    assert!(
        mine.iter()
            .zip(&theirs)
            .all(|(mine, theirs)| mine.slot == theirs.slot)
    );
}

#[tokio::test]
async fn an_epoch_rises_above_what_was_seen_for_its_owner_and_within_reason() {
    let (_directory, store) = fresh().await;
    let group = store.create_group("rack-7", UnixMs(6)).await.unwrap();
    let (me, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    store.take_group(group.clone(), me).await.unwrap().unwrap();
    for (seen, owner, raised) in [
        (9, other, None),
        (0, me, None),
        (9, me, Some(10)),
        (9, me, None),
        (10, me, Some(11)),
        (u64::MAX, me, Some(11 + (1 << 20) + 1)),
    ] {
        let seen = vec![(group.id, protocol::ids::Epoch(seen))];
        let found = store.raise_epochs(seen, owner).await.unwrap();
        let found = found.first().map(|group| group.epoch.0);
        assert_eq!(found, raised);
    }
}

/// The log has millions of rows, and the writer asks for its ends with every trimming.
#[tokio::test]
async fn the_ends_of_the_log_are_found_without_reading_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let mut reader = store.reader().await.unwrap();
    let plan = format!("EXPLAIN QUERY PLAN {}", log::SPAN);
    let steps = sql::query(plan).fetch_all(&mut reader).await.unwrap();
    let details = steps
        .iter()
        .map(|step| step.try_get::<String>("detail").unwrap());
    let details: Vec<String> = details.collect();
    let searches = details
        .iter()
        .filter(|step| step.starts_with("SEARCH process_event"));
    assert_eq!(searches.count(), 2, "{details:?}");
    assert!(
        !details
            .iter()
            .any(|step| step.contains("SCAN process_event")),
        "{details:?}"
    );
}

#[tokio::test]
async fn trimming_keeps_the_newest_and_numbers_never_repeat() {
    let (_directory, store) = fresh().await;
    for _ in 0..10 {
        add(&store, "x", false).await.unwrap();
    }
    let retention = log::Retention {
        events: 1,
        processes: std::time::Duration::ZERO,
    };
    while store.trim(retention, UnixMs(1)).await.unwrap() {}
    let span = store.event_span().await.unwrap();
    assert_eq!((span.first, span.last), (10, 10));
    add(&store, "next", false).await.unwrap();
    assert_eq!(store.event_span().await.unwrap().last, 11);
}

/// Lets an agent into the emptiest automatic group.
pub(crate) async fn enrol(store: &Store, number: u8) -> protocol::link::Target {
    let secret = tokens::SecretHash::of(&[number]);
    let anywhere = tokens::TokenUse::JoinAnywhere;
    store
        .create_tokens(vec![secret], anywhere, UnixMs(1), UnixMs(1_000))
        .await
        .unwrap();
    let consume = tokens::Consume {
        secret,
        agent: AgentId::from_bytes([number; 16]),
        key: protocol::identity::KeyHash([number; 32]),
        hostname: format!("hv-{number}"),
        software: "test".to_owned(),
        remote: ([127, 0, 0, 1], 1).into(),
        now: UnixMs(2),
    };
    store.consume_token(consume).await.unwrap().target
}

#[tokio::test]
async fn agents_go_to_the_emptiest_group_and_leave_a_place_when_they_are_revoked() {
    let (_directory, store) = fresh().await;
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let count = u8::try_from(groups::AUTOMATIC_GROUPS).unwrap();
    let mut homes = std::collections::BTreeSet::new();
    for number in 0..count {
        homes.insert(enrol(&store, number).await.group);
    }
    assert_eq!(homes.len(), usize::from(count), "one in each");
    let leaver = AgentId::from_bytes([9; 16]);
    for expected in [agents::Revoked::Now, agents::Revoked::Before] {
        let revoked = store
            .revoke_agent(leaver, "test".to_owned(), UnixMs(3))
            .await;
        assert_eq!(revoked.unwrap(), expected);
    }
    let sizes = store.agents_by_group().await.unwrap();
    assert_eq!(sizes.len(), usize::from(count) - 1);
    let joined = enrol(&store, count).await.group;
    assert!(!sizes.contains_key(&joined), "the place that was left");
    let sizes = store.agents_by_group().await.unwrap();
    assert!(sizes.values().all(|size| *size == 1), "{sizes:?}");
}

crate::store::tests::conformance::suite! {
    what_was_answered_is_there_after_a_reopening,
    jobs_share_a_commit_and_a_failing_one_fails_alone,
    a_job_that_panics_is_rolled_back_alone_and_the_writer_lives,
    a_broken_statement_rolls_back_its_own_job_only,
    a_job_that_goes_on_after_an_error_confirms_nothing_that_is_not_there,
    too_many_waiting_jobs_are_turned_away,
    a_closed_store_says_so,
    groups_are_spread_over_slots_and_taken_once_per_server,
    an_epoch_rises_above_what_was_seen_for_its_owner_and_within_reason,
    trimming_keeps_the_newest_and_numbers_never_repeat,
    agents_go_to_the_emptiest_group_and_leave_a_place_when_they_are_revoked,
}
