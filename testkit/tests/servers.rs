//! Each private server starts, is hurt, comes back, and leaves nothing behind.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{KitError, MariaDb, Postgres, Redis, Server, ZooKeeper};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Names the file in which a child reports its server, for the test of what follows a death.
const CHILD: &str = "DROVER_TESTKIT_CHILD";

fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// What it answers, within so many milliseconds.
async fn asks(address: SocketAddr, question: &[u8], millis: u64) -> Option<Vec<u8>> {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        stream.write_all(question).await.ok()?;
        let mut answer = vec![0; 256];
        let read = stream.read(&mut answer).await.ok()?;
        answer.truncate(read);
        (read > 0).then_some(answer)
    };
    let answered = tokio::time::timeout(Duration::from_millis(millis), ask).await;
    answered.ok().flatten()
}

/// It stands still and goes on, is killed and comes back on its port, is ended in order and comes back.
async fn is_hurt(server: &Server, question: &[u8]) {
    let address = server.address();
    assert!(asks(address, question, 5_000).await.is_some());
    server.pause();
    assert_eq!(asks(address, question, 300).await, None, "it stands still");
    server.resume();
    assert!(asks(address, question, 5_000).await.is_some());
    server.kill().await.expect("it ends");
    assert!(!listens(address));
    server.restart().await.expect("it comes back");
    assert_eq!(server.address(), address);
    server.pause();
    server.stop().await.expect("it ends");
    assert!(!listens(address), "also one that stands still is ended");
    server.restart().await.expect("it comes back");
    assert!(asks(address, question, 5_000).await.is_some());
}

fn is_gone(folder: &Path, address: SocketAddr) {
    assert!(!folder.exists(), "{}", folder.display());
    assert!(!listens(address));
}

#[tokio::test]
async fn redis_is_hurt_and_leaves_nothing_behind() {
    let redis = Redis::start().await.unwrap();
    assert_eq!(redis.url(), format!("redis://{}", redis.address()));
    is_hurt(&redis, b"PING\r\n").await;
    let (folder, address) = (redis.folder().to_owned(), redis.address());
    drop(redis);
    is_gone(&folder, address);
}

#[tokio::test]
async fn redis_wants_its_password() {
    let redis = Redis::start_with_password("sesame").await.unwrap();
    let answer = asks(redis.address(), b"PING\r\n", 5_000).await.unwrap();
    assert!(answer.starts_with(b"-NOAUTH"));
    let answer = asks(redis.address(), b"AUTH sesame\r\n", 5_000).await;
    assert!(answer.unwrap().starts_with(b"+OK"));
    assert!(redis.url().starts_with("redis://:sesame@127.0.0.1:"));
}

#[tokio::test]
async fn zookeeper_is_hurt_and_leaves_nothing_behind() {
    let zookeeper = ZooKeeper::start().await.unwrap();
    assert!(zookeeper.tls().is_none());
    is_hurt(&zookeeper, b"ruok").await;
    let (folder, address) = (zookeeper.folder().to_owned(), zookeeper.address());
    drop(zookeeper);
    is_gone(&folder, address);
}

#[tokio::test]
async fn postgres_keeps_its_databases_and_has_fresh_ones() {
    let postgres = Postgres::start().await.unwrap();
    let (first, second) = (
        postgres.database("t").await.unwrap(),
        postgres.database("t").await.unwrap(),
    );
    assert_ne!(first, second);
    assert!(
        first.starts_with("postgres://postgres@127.0.0.1:"),
        "{first}"
    );
    is_hurt(&postgres, b"\0\0\0\x08\x04\xd2\x16\x2f").await;
    // A database that is there cannot be made again: both have outlived a crash.
    for url in [first, second] {
        let name = url.rsplit_once('/').unwrap().1;
        let refused = postgres.execute(&format!("CREATE DATABASE {name}")).await;
        assert!(
            matches!(refused, Err(KitError::Ended { log, .. }) if log.contains("already exists"))
        );
    }
    let (folder, address) = (postgres.folder().to_owned(), postgres.address());
    drop(postgres);
    is_gone(&folder, address);
}

#[tokio::test]
async fn postgres_takes_settings_and_says_what_is_wrong_with_them() {
    let refused = Postgres::start_with(&[("fsync", "maybe")]).await;
    let said = refused.err().unwrap().to_string();
    assert!(
        said.contains("postgresql ended with") && said.contains("fsync"),
        "{said}"
    );
    let lax = Postgres::start_with(&[("synchronous_commit", "off")])
        .await
        .unwrap();
    let check = "DO $$ BEGIN ASSERT current_setting('synchronous_commit') = 'off'; END $$";
    lax.execute(check).await.unwrap();
}

#[tokio::test]
async fn mariadb_keeps_its_databases_and_has_fresh_ones() {
    let mariadb = MariaDb::start().await.unwrap();
    let (first, second) = (
        mariadb.database("t").await.unwrap(),
        mariadb.database("t").await.unwrap(),
    );
    assert_ne!(first, second);
    assert!(first.starts_with("mysql://root@127.0.0.1:"), "{first}");
    is_hurt(&mariadb, b"").await;
    for url in [first, second] {
        let name = url.rsplit_once('/').unwrap().1;
        let refused = mariadb.execute(&format!("CREATE DATABASE {name}")).await;
        assert!(
            matches!(refused, Err(KitError::Ended { log, .. }) if log.contains("database exists"))
        );
    }
    let (folder, address) = (mariadb.folder().to_owned(), mariadb.address());
    drop(mariadb);
    is_gone(&folder, address);
}

#[tokio::test]
async fn a_shared_server_is_one() {
    let first = Redis::shared().await.unwrap().address();
    assert_eq!(Redis::shared().await.unwrap().address(), first);
}

/// The part of the next test that is killed: a process with a server of its own, which it reports in a file.
async fn be_killed(report: &Path) {
    let redis = Redis::start().await.expect("it starts");
    let text = format!("{} {}", redis.address(), redis.folder().display());
    let part = report.with_extension("part");
    std::fs::write(&part, text)
        .and_then(|()| std::fs::rename(&part, report))
        .expect("the folder is there");
    std::future::pending::<()>().await;
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let look = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(60), look).await;
    assert!(seen.is_ok(), "{what}");
}

#[tokio::test]
async fn a_server_ends_with_a_process_that_is_killed() {
    if let Some(report) = std::env::var_os(CHILD) {
        return be_killed(Path::new(&report)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_ends_with_a_process_that_is_killed"])
        .env(CHILD, &report)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the child starts a server", || report.exists()).await;
    let text = std::fs::read_to_string(&report).unwrap();
    let (address, left) = text.split_once(' ').unwrap();
    let (address, left): (SocketAddr, _) = (address.parse().unwrap(), Path::new(left));
    assert!(listens(address) && left.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    until("nothing of it is left", || {
        !left.exists() && !listens(address)
    })
    .await;
}
