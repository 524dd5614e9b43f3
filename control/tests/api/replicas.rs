//! The API reads from replicas of its store: real ones, of PostgreSQL and of MariaDB.

use std::ops::Deref;
use std::time::Duration;

use control::clock;
use control::store::{ReplicasConfig, Store};
use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, plane, plane_of, read};

const POSITION: &str = "drover-position";

/// A database server, whichever.
enum Server {
    Postgres(testkit::Postgres),
    MariaDb(testkit::MariaDb),
}

impl Server {
    async fn replica(&self) -> Self {
        match self {
            Self::Postgres(server) => Self::Postgres(server.replica().await.unwrap()),
            Self::MariaDb(server) => Self::MariaDb(server.replica().await.unwrap()),
        }
    }

    async fn database(&self) -> String {
        let made = match self {
            Self::Postgres(server) => server.database("drover").await,
            Self::MariaDb(server) => server.database("drover").await,
        };
        made.unwrap()
    }

    fn url_like(&self, url: &str) -> String {
        match self {
            Self::Postgres(server) => server.url_like(url),
            Self::MariaDb(server) => server.url_like(url),
        }
    }

    /// A replica takes nothing more from its primary, and answers on.
    async fn stands_still(&self) {
        let done = match self {
            Self::Postgres(server) => server.execute("SELECT pg_wal_replay_pause()").await,
            Self::MariaDb(server) => server.execute("STOP SLAVE SQL_THREAD").await,
        };
        done.unwrap();
    }

    async fn goes_on(&self) {
        let done = match self {
            Self::Postgres(server) => server.execute("SELECT pg_wal_replay_resume()").await,
            Self::MariaDb(server) => server.execute("START SLAVE SQL_THREAD").await,
        };
        done.unwrap();
    }
}

impl Deref for Server {
    type Target = testkit::Server;

    fn deref(&self) -> &testkit::Server {
        match self {
            Self::Postgres(server) => server,
            Self::MariaDb(server) => server,
        }
    }
}

async fn postgres() -> Server {
    Server::Postgres(testkit::Postgres::start().await.unwrap())
}

async fn mariadb() -> Server {
    Server::MariaDb(testkit::MariaDb::start_with_log().await.unwrap())
}

/// A deployment with replicas on these servers.
async fn on(primary: &Server, replicas: &[&Server], max_age: Duration) -> Plane {
    let dir = tempfile::tempdir().unwrap();
    let url = primary.database().await;
    let config = ReplicasConfig {
        urls: replicas
            .iter()
            .map(|server| server.url_like(&url))
            .collect(),
        max_age,
    };
    let store = Store::open_with_replicas(&url, dir.path(), &config).await;
    plane_of(dir, store.unwrap()).await
}

/// Makes a group; where it is, and how far the store is then.
async fn make(plane: &Plane, name: &str) -> (String, String) {
    let request = plane.request(Method::POST, "/v1/groups");
    let answer = request.json(&json!({ "name": name })).send().await.unwrap();
    let position = answer.headers()[POSITION].to_str().unwrap().to_owned();
    let (status, group) = read(answer).await;
    assert_eq!(status, 201, "{group}");
    (
        format!("/v1/groups/{}", group["id"].as_str().unwrap()),
        position,
    )
}

/// Reads as somebody who has seen so much.
async fn read_at(plane: &Plane, path: &str, position: &str) -> (u16, Value) {
    let request = plane.request(Method::GET, path).header(POSITION, position);
    read(request.send().await.unwrap()).await
}

/// A figure of `/metrics`; 0 where it is not there.
async fn figure(plane: &Plane, name: &str) -> f64 {
    let (_, page) = plane.get("/metrics").await;
    let page = page.as_str().unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// Reads that replicas have answered.
async fn from_replicas(plane: &Plane) -> f64 {
    let (_, page) = plane.get("/metrics").await;
    let reads = page.as_str().unwrap().lines().filter_map(|line| {
        let rest = line.strip_prefix("drover_api_reads_total{place=\"")?;
        let (place, value) = rest.split_once("\"} ")?;
        (place != "primary").then(|| value.parse::<f64>().unwrap())
    });
    reads.sum()
}

/// Reads until replicas answer.
async fn eventually_read_there(plane: &Plane) {
    eventually("a read that a replica answers", async || {
        let before = from_replicas(plane).await;
        assert_eq!(plane.get("/v1/groups").await.0, 200);
        (from_replicas(plane).await > before).then_some(())
    })
    .await;
}

async fn clients_read_what_they_have_written(primary: Server) {
    let replica = primary.replica().await;
    let plane = on(&primary, &[&replica], Duration::from_secs(60)).await;
    eventually_read_there(&plane).await;
    let (path, position) = make(&plane, "at-once").await;
    let before = figure(&plane, "drover_api_read_fallbacks_total{why=\"behind\"} ").await;
    let answered = from_replicas(&plane).await;
    assert_eq!(read_at(&plane, &path, &position).await.0, 200);
    assert!(from_replicas(&plane).await > answered, "it was waited for");

    replica.stands_still().await;
    let (path, position) = make(&plane, "later").await;
    assert_eq!(
        plane.get(&path).await.0,
        404,
        "the replica does not know it"
    );
    for _ in 0..3 {
        assert_eq!(read_at(&plane, &path, &position).await.0, 200);
    }
    assert_eq!(read_at(&plane, &path, "latest").await.0, 200);
    assert_eq!(plane.get(&path).await.0, 404, "it still does not");
    let behind = figure(&plane, "drover_api_read_fallbacks_total{why=\"behind\"} ").await;
    assert!(behind >= before + 3.0, "{before} {behind}");

    replica.goes_on().await;
    eventually("the replica has it", async || {
        (plane.get(&path).await.0 == 200).then_some(())
    })
    .await;
    let answered = from_replicas(&plane).await;
    assert_eq!(read_at(&plane, &path, &position).await.0, 200);
    assert!(from_replicas(&plane).await > answered);
}

async fn nobody_reads_what_was_so_too_long_ago(primary: Server) {
    const MAX_AGE: Duration = Duration::from_secs(3);
    let replica = primary.replica().await;
    let plane = on(&primary, &[&replica], MAX_AGE).await;
    eventually_read_there(&plane).await;
    replica.stands_still().await;
    let (path, _) = make(&plane, "new").await;
    let written = clock::monotonic();
    assert_eq!(plane.get(&path).await.0, 404, "it is still young enough");
    loop {
        let asked = clock::monotonic();
        let there = plane.get(&path).await.0 == 200;
        assert!(there || asked - written <= MAX_AGE, "it is too old");
        if asked - written > MAX_AGE + Duration::from_secs(1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(figure(&plane, "drover_api_read_fallbacks_total{why=\"old\"} ").await > 0.0);
    replica.goes_on().await;
    eventually_read_there(&plane).await;
}

/// Reads for a while; the longest that one took. All are answered, and none as late as by a driver that has waited
/// for a server in vain.
async fn reads_for(plane: &Plane, time: Duration) -> Duration {
    let (began, mut longest) = (clock::monotonic(), Duration::ZERO);
    while began.elapsed() < time {
        let asked = clock::monotonic();
        let request = plane.request(Method::GET, "/v1/groups");
        let answer = request.timeout(Duration::from_secs(5)).send().await;
        let (status, body) = read(answer.unwrap()).await;
        assert_eq!(status, 200, "{body}");
        longest = longest.max(asked.elapsed());
    }
    longest
}

async fn replicas_that_die_or_hang_cost_no_request(primary: Server) {
    let replicas = [primary.replica().await, primary.replica().await];
    let both: Vec<&Server> = replicas.iter().collect();
    let plane = on(&primary, &both, Duration::from_secs(5)).await;
    eventually("both replicas", async || {
        let (_, page) = plane.get("/metrics").await;
        let up = page.as_str().unwrap().lines();
        let up = up.filter(|line| line.starts_with("drover_replica_up{") && line.ends_with(" 1"));
        (up.count() == 2).then_some(())
    })
    .await;
    replicas[0].pause();
    let hung = reads_for(&plane, Duration::from_secs(4)).await;
    replicas[0].resume();
    replicas[0].kill().await.unwrap();
    let killed = reads_for(&plane, Duration::from_secs(2)).await;
    replicas[1].kill().await.unwrap();
    let alone = reads_for(&plane, Duration::from_secs(2)).await;
    println!("the longest read: {hung:?} (one hangs), {killed:?} (one is dead), {alone:?} (both)");
    assert!(figure(&plane, "drover_api_read_fallbacks_total{why=\"down\"} ").await > 0.0);
    for replica in &replicas {
        replica.restart().await.unwrap();
    }
    eventually_read_there(&plane).await;
}

/// One server after the other: each test needs several.
macro_rules! on_each {
    ($($test:ident: $postgres:ident, $mariadb:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $postgres() {
            Box::pin($test(postgres().await)).await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn $mariadb() {
            Box::pin($test(mariadb().await)).await;
        }
    )*};
}

on_each! {
    clients_read_what_they_have_written:
        clients_read_what_they_have_written_on_postgres,
        clients_read_what_they_have_written_on_mariadb;
    nobody_reads_what_was_so_too_long_ago:
        nobody_reads_what_was_so_too_long_ago_on_postgres,
        nobody_reads_what_was_so_too_long_ago_on_mariadb;
    replicas_that_die_or_hang_cost_no_request:
        replicas_of_postgres_that_die_or_hang_cost_no_request,
        replicas_of_mariadb_that_die_or_hang_cost_no_request;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_none_or_of_another_store_is_refused_with_words() {
    let server = postgres().await;
    let replica = server.replica().await;
    let [one, other] = [
        on(&server, &[&replica], Duration::from_secs(5)).await,
        on(&server, &[&replica], Duration::from_secs(5)).await,
    ];
    let (_, position) = make(&one, "x").await;
    for (plane, position, words) in [
        (&one, "x", "is no position of this API"),
        (&other, position.as_str(), "is of another deployment"),
    ] {
        for method in [Method::GET, Method::POST] {
            let request = plane
                .request(method, "/v1/groups")
                .header(POSITION, position);
            let (status, problem) = read(request.send().await.unwrap()).await;
            assert_eq!(status, 400, "{problem}");
            assert_eq!(problem["errors"][0]["field"], "Drover-Position");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(words), "{detail}");
        }
    }
    // The first to ask is whoever may: a stranger learns nothing of positions.
    let request = other.client.get(format!("{}/v1/groups", other.base));
    let stranger = request.header(POSITION, "x").send().await.unwrap();
    assert_eq!(stranger.status(), 401);
}

#[tokio::test]
async fn without_replicas_a_position_changes_nothing() {
    let plane = plane().await;
    let request = plane.request(Method::POST, "/v1/groups");
    let made = request.json(&json!({ "name": "x" })).send().await.unwrap();
    assert_eq!(made.status(), 201);
    assert!(
        !made.headers().contains_key(POSITION),
        "there is no use for it"
    );
    // From a time when there were replicas.
    let old = "AQAAAZqwPkAAAAAAAAAAABs";
    for (position, status) in [(old, 200), ("latest", 200), ("x", 400)] {
        assert_eq!(read_at(&plane, "/v1/groups", position).await.0, status);
    }
}
