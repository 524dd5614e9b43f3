//! The tests of the store on every backend.
//!
//! ```text
//!   #[tokio::test] async fn …       as it stands: on the embedded store
//!   postgres_does_as_the_embedded_store_does, mariadb_…: the same functions, one after the other, each on a
//!                                   database of its own, on one private server
//! ```
//!
//! A test is on the list below unless it is about the embedded store's file. `DROVER_TEST_POSTGRES` and
//! `DROVER_TEST_MARIADB` may name servers that run (URLs of a user who may make databases); `DROVER_TEST_ONLY`
//! takes those tests only whose names contain it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::Connection as _;

use super::super::{OpenError, Store};

thread_local! {
    /// The server that this thread's stores are on; `None`: they are embedded.
    static SERVER: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Tests by name.
pub(in crate::store) type Suite = &'static [(&'static str, fn())];

/// Names functions that are tests.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        pub(in crate::store) const SUITE: $crate::store::tests::conformance::Suite =
            &[$((concat!(module_path!(), "::", stringify!($name)), $name as fn())),*];
    };
}

pub(in crate::store) use suite;

/// Every test that holds on every backend.
const ALL: &[Suite] = &[
    super::SUITE,
    super::everything::SUITE,
    crate::store::agent_servers::tests::SUITE,
    crate::store::processes::tests::SUITE,
    crate::store::tally::tests::SUITE,
    crate::store::webhooks::tests::SUITE,
    crate::store::workers::tests::SUITE,
    crate::store::batches::tests::SUITE,
    crate::store::budgets::tests::SUITE,
    crate::store::limits::tests::SUITE,
    crate::store::copy::tests::SUITE,
];

/// What holds besides where several processes may write.
const SHARED: &[Suite] = &[super::shared::SUITE, super::clocks::SUITE];

/// Opens the store of a directory: its file, or on this thread's server a database of the directory's name.
pub(super) async fn open(directory: &Path) -> Result<Store, OpenError> {
    Store::open(&url(directory).await, directory).await
}

/// The URL of that store; a database is made for it.
pub(in crate::store) async fn url(directory: &Path) -> String {
    let Some(server) = SERVER.with_borrow(Clone::clone) else {
        return format!("sqlite:{}", directory.join("drover.db").display());
    };
    let database = database_of(directory);
    make_database(&server, &database).await;
    in_database(&server, &database)
}

fn database_of(directory: &Path) -> String {
    let name = directory.file_name().and_then(std::ffi::OsStr::to_str);
    let name = name.unwrap_or_default().replace('.', "t").to_lowercase();
    format!("drover_{name}")
}

/// Whether this thread's stores are on PostgreSQL.
pub(super) fn is_postgres() -> bool {
    SERVER.with_borrow(|server| {
        server
            .as_ref()
            .is_some_and(|url| url.starts_with("postgres"))
    })
}

/// The server of this thread's stores, to be handed to another one.
pub(super) fn server() -> String {
    SERVER.with_borrow(Clone::clone).unwrap()
}

/// Ends connections to a directory's database, one after the other, until it is `over`; how many.
pub(super) async fn cut(server: String, directory: PathBuf, over: Arc<AtomicBool>) -> u64 {
    let database = database_of(&directory);
    let mut cuts = 0;
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(60)).await;
        cuts += match server.starts_with("postgres") {
            true => cut_postgres(&server, &database).await,
            false => cut_mysql(&server, &database).await,
        };
    }
    cuts
}

async fn cut_postgres(server: &str, database: &str) -> u64 {
    let mut db = sqlx::PgConnection::connect(server).await.unwrap();
    let ended = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = $1 AND application_name = 'drover' ORDER BY random() LIMIT 1",
    );
    let ended = ended.bind(database).fetch_all(&mut db).await.unwrap();
    ended.len().try_into().unwrap()
}

async fn cut_mysql(server: &str, database: &str) -> u64 {
    let mut db = of_mariadb(server).await;
    let found: Vec<i64> = sqlx::query_scalar(
        "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = ? ORDER BY rand() LIMIT 1",
    )
    .bind(database)
    .fetch_all(&mut db)
    .await
    .unwrap();
    for id in &found {
        // It may have ended by itself.
        let kill = sqlx::AssertSqlSafe(format!("KILL {id}"));
        drop(sqlx::raw_sql(kill).execute(&mut db).await);
    }
    found.len().try_into().unwrap()
}

/// The URL of a directory's store on MariaDB, of a user who has no more rights than that database's: `read_only` does
/// not hold for those who have all.
pub(super) async fn url_of_nobody_special(directory: &Path) -> String {
    use sqlx::{AssertSqlSafe, Executor as _};
    let (server, database) = (server(), database_of(directory));
    let mut db = of_mariadb(&server).await;
    // The most exact host counts, before the name.
    for host in ["%", "localhost", "127.0.0.1"] {
        let made = format!("CREATE USER IF NOT EXISTS 'nobody_special'@'{host}'");
        db.execute(AssertSqlSafe(made)).await.unwrap();
        let granted = format!("GRANT ALL ON {database}.* TO 'nobody_special'@'{host}'");
        db.execute(AssertSqlSafe(granted)).await.unwrap();
    }
    let (scheme, rest) = server.split_once("://").unwrap();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    in_database(&format!("{scheme}://nobody_special@{host}"), &database)
}

/// Has this thread's server, a MariaDB, take writes, or none but those of its administrators.
pub(super) async fn set_read_only(read_only: bool) {
    use sqlx::{AssertSqlSafe, Executor as _};
    let mut db = of_mariadb(&server()).await;
    let set = format!("SET GLOBAL read_only = {}", u8::from(read_only));
    db.execute(AssertSqlSafe(set)).await.unwrap();
}

/// The URL of another database of the server.
fn in_database(server: &str, database: &str) -> String {
    let (before, query) = server.split_once('?').unwrap_or((server, ""));
    let (scheme, rest) = before.split_once("://").unwrap();
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    match query {
        "" => format!("{scheme}://{host}/{database}"),
        query => format!("{scheme}://{host}/{database}?{query}"),
    }
}

/// A connection to the server itself. The driver refuses the words of a store's URL.
async fn of_mariadb(server: &str) -> sqlx::MySqlConnection {
    let (place, _) = server.split_once('?').unwrap_or((server, ""));
    sqlx::MySqlConnection::connect(place).await.unwrap()
}

/// Makes a database unless it is there.
async fn make_database(server: &str, database: &str) {
    use sqlx::{AssertSqlSafe, Executor as _};
    let sql = AssertSqlSafe(format!("CREATE DATABASE {database}"));
    let made = match server.starts_with("postgres") {
        true => {
            let mut db = sqlx::PgConnection::connect(server).await.unwrap();
            db.execute(sql).await.map(drop)
        }
        false => {
            let mut db = of_mariadb(server).await;
            db.execute(sql).await.map(drop)
        }
    };
    if let Err(error) = made {
        // 42P04 and 1007: it is there.
        let code = error.as_database_error().and_then(|error| error.code());
        let there = matches!(code.as_deref(), Some("42P04" | "HY000"));
        assert!(there, "{error}");
    }
}

/// Runs every test on a server, and says at the end which ones failed.
fn run_all(server: &str) {
    let only = std::env::var("DROVER_TEST_ONLY").unwrap_or_default();
    let mut failed = Vec::new();
    let tests = ALL.iter().chain(SHARED).copied().flatten();
    for (name, test) in tests.filter(|(name, _)| name.contains(&only)) {
        let server = server.to_owned();
        // In a thread of its own: a test makes its own runtime.
        let run = std::thread::Builder::new().name((*name).to_owned());
        let ran = run.spawn(move || {
            SERVER.set(Some(server));
            let began = crate::clock::monotonic();
            test();
            println!("{name}: {:?}", began.elapsed());
        });
        if ran.unwrap().join().is_err() {
            failed.push(*name);
        }
    }
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

/// A runtime for a server that lives as long as the tests on it.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

#[test]
fn postgres_does_as_the_embedded_store_does() {
    if let Ok(server) = std::env::var("DROVER_TEST_POSTGRES") {
        return run_all(&server);
    }
    // It makes a hundred databases: nothing here asks what is left of them after a power failure.
    let server = runtime().block_on(testkit::Postgres::start_with(&[("fsync", "off")]));
    let server = server.unwrap();
    run_all(&format!("{}?durability=unsafe", server.url()));
}

#[test]
fn mariadb_does_as_the_embedded_store_does() {
    if let Ok(server) = std::env::var("DROVER_TEST_MARIADB") {
        return run_all(&server);
    }
    // As above.
    let settings = [("innodb_flush_method", "nosync")];
    let server = runtime().block_on(testkit::MariaDb::start_with(&settings));
    let server = server.unwrap();
    run_all(&format!("{}?durability=unsafe", server.url()));
}
