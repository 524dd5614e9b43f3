//! What happens when a service or a holder stands still, dies or comes back; and who is let in.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use control::coordination::{self, Events, Hold, Locks, Notice, Presence};
use control::telemetry::metrics::Value;
use testkit::{ClientTls, Redis, Server, ZooKeeper};
use tokio::time::timeout;

use crate::events::hears;
use crate::parties::{events_of, locks_of};
use crate::{MOMENT, name, soon};

/// The URL of a service, for a holder that is a process of its own.
const HOLDER: &str = "DROVER_TEST_HOLDER";
/// Where it writes what has become of its lock.
const REPORT: &str = "DROVER_TEST_REPORT";

/// A holder that is a process of its own, running the test of this name.
struct Holder {
    child: Child,
    folder: tempfile::TempDir,
}

impl Holder {
    async fn start(test: &str, url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(HOLDER, url)
            .env(REPORT, folder.path().join("report"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let holder = Self { child, folder };
        holder.says("Held").await;
        holder
    }

    /// Waits until its lock is in this state.
    async fn says(&self, state: &str) {
        let report = self.folder.path().join("report");
        let says = async {
            while std::fs::read_to_string(&report).unwrap_or_default() != state {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(state, says).await;
    }
}

fn signal(child: &Child, signal: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-s", signal, &id]).status();
    assert!(sent.unwrap().success());
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The holder's side, if this is such a process: holds the lock and reports each state of it, until it is killed.
async fn hold_if_told() {
    if let (Some(url), Some(report)) = (std::env::var_os(HOLDER), std::env::var_os(REPORT)) {
        hold(url.to_str().unwrap(), Path::new(&report)).await;
    }
}

async fn hold(url: &str, report: &Path) -> ! {
    let locks = locks_of(url).await;
    let mut held = locks.acquire(&name("lock")).await.unwrap();
    let mut state = held.state();
    loop {
        let part = report.with_extension("part");
        std::fs::write(&part, format!("{state:?}")).unwrap();
        std::fs::rename(&part, report).unwrap();
        state = held.changed().await;
    }
}

/// A holder dies, and another stands still: the lock is free after its lease, and the one that stood still knows.
async fn a_holder_dies_or_stands_still(test: &str, url: &str) {
    let (locks, lock) = (locks_of(url).await, name("lock"));
    let holder = Holder::start(test, url).await;
    assert!(locks.try_acquire(&lock).await.unwrap().is_none());
    drop(holder);
    let held = soon("the lock of the dead", locks.acquire(&lock))
        .await
        .unwrap();
    held.release().await;

    let holder = Holder::start(test, url).await;
    signal(&holder.child, "STOP");
    let held = soon("the lock of one that stands still", locks.acquire(&lock))
        .await
        .unwrap();
    signal(&holder.child, "CONT");
    holder.says("Lost").await;
    assert_eq!(held.state(), Hold::Held, "and does not take it back");
    assert!(locks.try_acquire(&lock).await.unwrap().is_none());
}

#[tokio::test]
async fn redis_frees_the_lock_of_the_dead_and_of_one_that_stands_still() {
    hold_if_told().await;
    let redis = Redis::start().await.unwrap();
    let test = "faults::redis_frees_the_lock_of_the_dead_and_of_one_that_stands_still";
    a_holder_dies_or_stands_still(test, &redis.url()).await;
}

#[tokio::test]
async fn zookeeper_frees_the_lock_of_the_dead_and_of_one_that_stands_still() {
    hold_if_told().await;
    let zookeeper = ZooKeeper::start().await.unwrap();
    let test = "faults::zookeeper_frees_the_lock_of_the_dead_and_of_one_that_stands_still";
    a_holder_dies_or_stands_still(test, &zookeeper.url()).await;
}

/// Who a server of the next test is to the others.
const PEER: uuid::Uuid = uuid::Uuid::from_u128(2);
/// The URL of its lock service.
const SERVER: &str = "DROVER_TEST_SERVER";

/// A server that is a process of its own: it is there, and does nothing else.
struct Peer(Child);

impl Peer {
    fn start(test: &str, url: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(SERVER, url)
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The other side, if this is such a process.
async fn be_there_if_told() {
    if let Some(url) = std::env::var_os(SERVER) {
        let locks = locks_of(url.to_str().unwrap()).await;
        let _there = Presence::start(locks, "server", PEER);
        std::future::pending::<()>().await;
    }
}

/// A server comes, stands still, goes on and is killed: the others hear all of it.
async fn others_hear_of_a_server(test: &str, url: &str) {
    let locks = locks_of(url).await;
    let mut presence = Presence::start(locks, "server", uuid::Uuid::from_u128(1));
    presence.set_peers([PEER].into());
    let mut hears = async |what: &str, is: bool| {
        let seen = async {
            while presence.suspects().contains(&PEER) != is {
                presence.changed().await;
            }
        };
        soon(what, seen).await;
    };
    hears("that it is not there yet", true).await;
    let peer = Peer::start(test, url);
    hears("that it has come", false).await;
    signal(&peer.0, "STOP");
    hears("that it stands still", true).await;
    signal(&peer.0, "CONT");
    hears("that it goes on", false).await;
    drop(peer);
    hears("that it was killed", true).await;
}

#[tokio::test]
async fn others_hear_of_a_server_by_redis() {
    be_there_if_told().await;
    let redis = Redis::start().await.unwrap();
    let test = "faults::others_hear_of_a_server_by_redis";
    others_hear_of_a_server(test, &redis.url()).await;
}

#[tokio::test]
async fn others_hear_of_a_server_by_zookeeper() {
    be_there_if_told().await;
    let zookeeper = ZooKeeper::start().await.unwrap();
    let test = "faults::others_hear_of_a_server_by_zookeeper";
    others_hear_of_a_server(test, &zookeeper.url()).await;
}

/// The service stands still for longer than the lease, then dies and comes back: whoever held a lock knows that it
/// may have it no longer, nothing hangs, and everything goes on by itself afterwards.
async fn the_service_is_away(server: &Server, url: &str) {
    let (locks, lock) = (locks_of(url).await, name("lock"));
    let mut held = locks.acquire(&lock).await.unwrap();
    server.pause();
    assert_eq!(soon("doubt", held.changed()).await, Hold::Doubtful);
    soon("the loss", held.lost()).await;
    let refused = soon("an answer", locks.try_acquire(&lock)).await;
    let said = refused.expect_err("it does not answer").to_string();
    assert!(said.contains("cannot be used"), "{said}");
    server.resume();
    let again = async {
        loop {
            match locks.try_acquire(&lock).await {
                Ok(Some(held)) => return held,
                Ok(None) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let mut held = soon("the lock again", again).await;
    server.kill().await.unwrap();
    let doubt = async {
        while held.state() == Hold::Held {
            held.changed().await;
        }
    };
    soon("doubt", doubt).await;
    drop(held);
    assert!(soon("an answer", locks.check()).await.is_err());
    server.restart().await.unwrap();
    let again = async {
        while !matches!(locks.try_acquire(&lock).await, Ok(Some(_))) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the lock once more", again).await;
    let figure = |name| figure(Some(&*locks), None, name);
    assert_eq!(figure("drover_coordination_connected"), 1);
    assert!(figure("drover_coordination_losses_total") > 0);
    assert!(figure("drover_coordination_failed_calls_total") > 0);
}

/// A figure of the one service that is given, as `/metrics` has it.
fn figure(locks: Option<&dyn Locks>, events: Option<&dyn Events>, name: &str) -> u64 {
    let mut families = Vec::new();
    coordination::metrics(locks, events)(&mut families);
    let family = families.into_iter().find(|family| family.name == name);
    match family.unwrap().samples[..] {
        [ref sample] => match sample.value {
            Value::Number(number) => number,
            Value::Times(_) => panic!("{name} is a number"),
        },
        ref samples => panic!("{samples:?}"),
    }
}

#[tokio::test]
async fn redis_is_away_and_comes_back() {
    let redis = Redis::start().await.unwrap();
    the_service_is_away(&redis, &redis.url()).await;
}

#[tokio::test]
async fn zookeeper_is_away_and_comes_back() {
    let zookeeper = ZooKeeper::start().await.unwrap();
    the_service_is_away(&zookeeper, &zookeeper.url()).await;
}

#[tokio::test]
async fn what_is_published_while_redis_is_away_is_known_to_be_missed() {
    let redis = Redis::start().await.unwrap();
    let (ann, bob) = (events_of(&redis.url()).await, events_of(&redis.url()).await);
    let topic = name("topic");
    let mut hearer = bob.subscribe(&topic);
    assert_eq!(soon("a beginning", hearer.next()).await, Notice::Missed);
    redis.kill().await.unwrap();
    let away = async {
        while ann.check().await.is_ok() || bob.check().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("both know", away).await;
    ann.publish(&topic, b"unheard");
    redis.restart().await.unwrap();
    assert_eq!(soon("a gap", hearer.next()).await, Notice::Missed);
    // One is of the new connection, one of the message; then it is as before.
    let rest = timeout(Duration::from_secs(3), hearer.next()).await;
    assert!(rest.is_err() || rest == Ok(Notice::Missed));
    ann.publish(&topic, b"heard");
    hears(&mut hearer, b"heard").await;
    let of = |events, name| figure(None, Some(events), name);
    // The gap, and the message.
    assert!(of(&*bob, "drover_events_heard_total") >= 2);
    assert!(of(&*ann, "drover_events_sent_total") >= 2);
    assert_eq!(of(&*ann, "drover_coordination_losses_total"), 1);
    assert_eq!(of(&*ann, "drover_coordination_connected"), 1);
}

#[tokio::test]
async fn a_connection_that_hangs_is_replaced() {
    let redis = Redis::start().await.unwrap();
    let bob = events_of(&redis.url()).await;
    let topic = name("topic");
    let mut hearer = bob.subscribe(&topic);
    assert_eq!(soon("a beginning", hearer.next()).await, Notice::Missed);
    redis.pause();
    // One that is known to be away is not asked: the answer comes at once.
    let away = async {
        while !matches!(timeout(MOMENT, bob.check()).await, Ok(Err(_))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("it is found out", away).await;
    redis.resume();
    assert_eq!(soon("a gap", hearer.next()).await, Notice::Missed);
}

#[tokio::test]
async fn redis_lets_in_who_knows_the_password_and_says_why_not() {
    let redis = Redis::start_with_password("sesame").await.unwrap();
    let locks = locks_of(&redis.url()).await;
    assert!(locks.check().await.unwrap().starts_with("Redis "));
    let wrong = redis.url().replace("sesame", "mustard");
    let said = locks_of(&wrong)
        .await
        .check()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("AuthenticationFailed") || said.contains("WRONGPASS"),
        "{said}"
    );
    assert!(!said.contains("mustard"), "{said}");
}

/// What a client needs for TLS, in files that a URL names.
struct Files {
    ca: String,
    /// `certificate` and `key`.
    own: String,
    /// An authority of nobody's.
    stranger: String,
    _folder: tempfile::TempDir,
}

impl Files {
    fn new(client: &ClientTls) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let certificate = file("certificate.pem", &client.certificate);
        let key = file("key.pem", &client.key);
        Self {
            ca: file("ca.pem", &client.ca),
            own: format!("certificate={certificate}&key={key}"),
            stranger: file("stranger.pem", &client.certificate),
            _folder: folder,
        }
    }
}

#[tokio::test]
async fn redis_speaks_tls_to_those_it_trusts_and_who_trust_it() {
    let redis = Redis::start_with_tls().await.unwrap();
    let (address, client) = redis.tls().unwrap();
    let files = Files::new(&client);
    let (ca, own, stranger) = (&files.ca, &files.own, &files.stranger);
    let locks = locks_of(&format!("rediss://{address}?ca={ca}&{own}")).await;
    let held = locks.acquire(&name("lock")).await.unwrap();
    assert_eq!(held.state(), Hold::Held);
    let (ann, bob) = (
        events_of(&format!("rediss://{address}?ca={ca}&{own}")).await,
        events_of(&format!("rediss://{address}?ca={ca}&{own}")).await,
    );
    let topic = name("topic");
    let mut hearer = bob.subscribe(&topic);
    assert_eq!(soon("a beginning", hearer.next()).await, Notice::Missed);
    ann.publish(&topic, b"hello");
    hears(&mut hearer, b"hello").await;
    let nobody = locks_of(&format!("rediss://{address}?ca={ca}")).await;
    assert!(nobody.check().await.is_err(), "it wants a certificate");
    let wary = locks_of(&format!("rediss://{address}?ca={stranger}&{own}")).await;
    assert!(
        wary.check().await.is_err(),
        "its certificate is not trusted"
    );
    let plain = locks_of(&format!("redis://{address}")).await;
    assert!(plain.check().await.is_err(), "that port speaks TLS only");
}

#[tokio::test]
async fn zookeeper_keeps_strangers_from_the_nodes_of_a_user() {
    let zookeeper = ZooKeeper::start().await.unwrap();
    let address = zookeeper.address();
    let ann = locks_of(&format!("zookeeper://ann:sesame@{address}/private")).await;
    let held = ann.acquire(&name("lock")).await.unwrap();
    let stranger = locks_of(&format!("zookeeper://{address}/private")).await;
    for lock in ["lock", "other"] {
        let said = stranger
            .try_acquire(&name(lock))
            .await
            .unwrap_err()
            .to_string();
        assert!(said.contains("not authorized"), "{said}");
    }
    assert_eq!(held.state(), Hold::Held);
}

#[tokio::test]
async fn zookeeper_speaks_tls_to_those_it_trusts_and_who_trust_it() {
    let zookeeper = ZooKeeper::start_with_tls().await.unwrap();
    let (address, client) = zookeeper.tls().unwrap();
    let files = Files::new(&client);
    let (ca, own, stranger) = (&files.ca, &files.own, &files.stranger);
    let locks = locks_of(&format!("zookeeper+tls://{address}?ca={ca}&{own}")).await;
    let held = locks.acquire(&name("lock")).await.unwrap();
    assert_eq!(held.state(), Hold::Held);
    let nobody = locks_of(&format!("zookeeper+tls://{address}?ca={ca}")).await;
    assert!(nobody.check().await.is_err(), "it wants a certificate");
    let wary = locks_of(&format!("zookeeper+tls://{address}?ca={stranger}&{own}")).await;
    assert!(
        wary.check().await.is_err(),
        "its certificate is not trusted"
    );
    let plain = locks_of(&format!("zookeeper://{address}")).await;
    assert!(plain.check().await.is_err(), "that port speaks TLS only");
}
