//! Stores on a database server: PostgreSQL, and MariaDB or MySQL.
//!
//! ```text
//!   open ─▶ connect ─▶ ask what it promises ─▶ schema ─▶ the writer's connection, and a pool for readers
//!                          weaker than asked for: refused, unless the URL has `durability=unsafe`
//! ```
//!
//! Several servers of a deployment write to one such store. They do so one transaction at a time, as the one
//! writer of the embedded store does: each locks the same row first ([`super::pen`]). Every rule that rests on
//! «nobody else writes meanwhile» holds here for the same reason.

pub(super) mod mysql;
pub(super) mod postgres;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::pool::PoolOptions;

use super::neighbours::{self, Neighbours};
use super::server_clock::{ServerClock, database_time};
use super::sql::{self, Connection, Dialect, Readers, Session, Texts};
use super::workers::BEAT_EXPIRY;
use super::{OpenError, copy, deployment, from_sql, half_copied, pen};
use crate::clock::{self, UnixMs};

/// Connections for the API's lists and the watchers.
const READERS: u32 = 8;
/// How long a reader waits for a free connection, or for a new one: so long a request takes at most to hear that
/// the server does not answer. That it refuses connections is told sooner (`sql/readers.rs`).
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Prepared statements kept per connection.
const STATEMENTS: usize = 256;

/// A transaction in which nothing is asked for so long is ended by the server, with the connection: it is of a
/// process that was stopped or cut off, and all others wait for it.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(2);
/// So long a transaction waits for those before it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// In a URL: take a server that may lose what it has confirmed.
const UNSAFE: &str = "durability=unsafe";

/// Where a store's server is, and how to speak to it.
#[derive(Clone)]
pub(super) enum Server {
    Postgres(Box<sqlx::postgres::PgConnectOptions>),
    MySql(Box<sqlx::mysql::MySqlConnectOptions>),
}

/// A URL of a server, read.
pub(super) struct Address {
    pub(super) server: Server,
    /// For people: without password.
    pub(super) shown: String,
    /// A server that may lose what it has confirmed will do.
    pub(super) unsafe_will_do: bool,
    /// The URL names files with certificates.
    names_files: bool,
}

/// Whether a URL names a server.
pub(super) fn is_remote(url: &str) -> bool {
    kind_of(url).is_some()
}

pub(super) fn kind_of(url: &str) -> Option<Dialect> {
    match url.split_once("://")?.0 {
        "postgres" | "postgresql" => Some(Dialect::Postgres),
        "mysql" | "mariadb" => Some(Dialect::MySql),
        _ => None,
    }
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// It is none of a server.
    pub(super) fn read(url: &str) -> Result<Self, OpenError> {
        let (plain, unsafe_will_do) = without_own_words(url);
        let refused = |source: sqlx::Error| OpenError::BadUrl {
            url: shown(url),
            detail: source.to_string(),
        };
        let server = match kind_of(url) {
            Some(Dialect::Postgres) => Server::Postgres(Box::new(
                plain.parse().map(postgres::options).map_err(refused)?,
            )),
            Some(Dialect::MySql) => Server::MySql(Box::new(
                plain.parse().map(mysql::options).map_err(refused)?,
            )),
            _ => return Err(OpenError::UnsupportedUrl(shown(url))),
        };
        let names_file = |word: &str| {
            let (name, _) = word.split_once('=').unwrap_or_default();
            matches!(name, "sslrootcert" | "sslcert" | "sslkey" | "sslca")
                || name.starts_with("ssl-") && name != "ssl-mode"
        };
        let query = plain.split_once('?').map_or("", |(_, query)| query);
        Ok(Self {
            names_files: query.split('&').any(names_file),
            server,
            shown: shown(url),
            unsafe_will_do,
        })
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.server {
            Server::Postgres(_) => Dialect::Postgres,
            Server::MySql(_) => Dialect::MySql,
        }
    }

    /// The last step of the schema that this build knows.
    pub(super) fn known_schema(&self) -> i64 {
        match self.server {
            Server::Postgres(_) => postgres::known_schema(),
            Server::MySql(_) => mysql::known_schema(),
        }
    }

    /// A connection, before anything else is known of the server.
    ///
    /// # Errors
    /// Nobody answers, or not to us.
    pub(super) async fn connect(&self) -> Result<Session, OpenError> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.server.connect());
        let error = match connected.await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => error,
            Err(_) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
        };
        let url = self.shown.clone();
        Err(match self.is_about_tls(&error) {
            true => OpenError::Tls { url, source: error },
            false => OpenError::Unreachable { url, source: error },
        })
    }

    /// Whether a server was there, and TLS with it came to nothing.
    fn is_about_tls(&self, error: &sqlx::Error) -> bool {
        match error {
            sqlx::Error::Tls(_) => true,
            sqlx::Error::Io(error) => match error.kind() {
                // The driver's word for certificates that it refuses.
                std::io::ErrorKind::InvalidData => true,
                // Of a file with an authority; a way to a server is refused or not there.
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                    self.names_files
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// What went wrong in words that name the store.
    pub(super) fn fail(&self, source: sqlx::Error) -> OpenError {
        OpenError::Sql {
            path: self.path(),
            source,
        }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(&self.shown)
    }

    fn describe_migration(&self, error: MigrateError, known: i64) -> OpenError {
        match error {
            MigrateError::VersionMissing(found) => OpenError::NewerSchema {
                path: self.path(),
                found,
                known,
            },
            MigrateError::VersionMismatch(version) | MigrateError::Dirty(version) => {
                OpenError::ForeignSchema {
                    path: self.path(),
                    version,
                }
            }
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => {
                self.fail(source)
            }
            other => self.fail(other.into()),
        }
    }
}

impl Server {
    /// A connection of the writer, with what it needs set.
    pub(super) async fn connect(&self) -> Result<Session, sqlx::Error> {
        match self {
            Self::Postgres(options) => postgres::connect(options).await,
            Self::MySql(options) => mysql::connect(options).await,
        }
    }
}

/// An opened store.
pub(super) struct Opened {
    pub(super) pen: pen::Pen,
    pub(super) readers: Readers,
    pub(super) clock: Arc<ServerClock>,
}

/// Opens `url`; see [`super::Store::open`].
pub(super) async fn open(url: &str, instance: uuid::Uuid) -> Result<Opened, OpenError> {
    let address = Address::read(url)?;
    let mut session = address.connect().await?;
    prepare(&mut session, &address).await?;
    let texts = Texts::new(address.dialect());
    let connection = Connection::new(session, Arc::clone(&texts));
    let readers = readers(&address, texts);
    let fail = |source| address.fail(source);
    let clock = Arc::<ServerClock>::default();
    let server = address.server.clone();
    let pen = pen::Pen::remote(connection, server, instance, Arc::clone(&clock));
    Ok(Opened {
        pen: pen.await.map_err(fail)?,
        readers,
        clock,
    })
}

/// A connection to a store that is to be looked at as a whole, with its schema brought up.
pub(super) async fn open_alone(url: &str) -> Result<(Session, Dialect), OpenError> {
    let address = Address::read(url)?;
    let mut session = address.connect().await?;
    prepare(&mut session, &address).await?;
    Ok((session, address.dialect()))
}

/// Asks the server what it promises, and brings the schema up to this build's.
async fn prepare(session: &mut Session, address: &Address) -> Result<(), OpenError> {
    let fail = |source| address.fail(source);
    let promises = promises(session).await.map_err(fail)?;
    promises.judge(address)?;
    let migrated = match session {
        Session::Postgres(db) => postgres::migrate(db).await,
        Session::MySql(db) => mysql::migrate(db).await,
        _ => Ok(()),
    };
    let known = address.known_schema();
    migrated.map_err(|error| address.describe_migration(error, known))
}

/// The last step of the schema that was taken; 0: none.
pub(super) async fn schema(session: &mut Session) -> Result<i64, sqlx::Error> {
    match session {
        Session::Postgres(db) => postgres::schema(db).await,
        Session::MySql(db) => mysql::schema(db).await,
        _ => Ok(0),
    }
}

/// What a server is, and whether it takes no writes.
pub(super) async fn nature(session: &mut Session) -> Result<(String, bool), sqlx::Error> {
    let promises = promises(session).await?;
    Ok((promises.software, promises.read_only))
}

async fn promises(session: &mut Session) -> Result<Promises, sqlx::Error> {
    match session {
        Session::Postgres(db) => postgres::promises(db).await,
        Session::MySql(db) => mysql::promises(db).await,
        _ => Ok(Promises::default()),
    }
}

/// A setting of a server that is not as a store needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Weakness {
    /// Its name.
    pub setting: &'static str,
    /// What it is.
    pub found: String,
    /// What it must be.
    pub wanted: &'static str,
    /// `durability=unsafe` in the URL lets it pass: it loses work only when the machine fails.
    pub waivable: bool,
}

/// What a server promises.
#[derive(Default)]
struct Promises {
    /// What it is.
    software: String,
    /// What it must be at least, if it is older.
    too_old: Option<&'static str>,
    read_only: bool,
    weaknesses: Vec<Weakness>,
}

impl Promises {
    fn ask_for(
        &mut self,
        setting: &'static str,
        found: String,
        wanted: &[&'static str],
        waivable: bool,
    ) {
        if !wanted.contains(&found.as_str()) {
            self.weaknesses.push(Weakness {
                setting,
                found,
                wanted: wanted.first().copied().unwrap_or_default(),
                waivable,
            });
        }
    }

    /// Whether a store may be there.
    fn judge(&self, address: &Address) -> Result<(), OpenError> {
        let url = address.shown.clone();
        if let Some(needed) = self.too_old {
            return Err(OpenError::OldServer {
                url,
                found: self.software.clone(),
                needed,
            });
        }
        if self.read_only {
            return Err(OpenError::ReadOnly { url });
        }
        let waived = |weak: &&Weakness| !(weak.waivable && address.unsafe_will_do);
        match self.weaknesses.iter().find(waived) {
            None => Ok(()),
            Some(weak) => Err(OpenError::NotDurable {
                url,
                setting: weak.setting,
                found: weak.found.clone(),
                wanted: weak.wanted,
            }),
        }
    }
}

/// A store on a server as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerInspection {
    /// Where it is, without the password.
    pub url: String,
    /// What the server is.
    pub software: String,
    /// What it must be at least, if it is older.
    pub too_old: Option<&'static str>,
    /// It takes no writes: it is a replica.
    pub read_only: bool,
    /// Settings that are not as a store needs them.
    pub weaknesses: Vec<Weakness>,
    /// The URL lets those pass that are about durability.
    pub unsafe_will_do: bool,
    /// The last step of the schema that was taken; 0: none yet.
    pub schema: i64,
    /// The last step that this build knows.
    pub known_schema: i64,
    /// Process servers that are alive on it.
    pub servers: u64,
    /// Agents that may come in; 0 where the schema is an older one.
    pub agents: u64,
    /// A deployment has begun on it, whose identity every server must have.
    pub is_of_a_deployment: bool,
    /// Who else works on it, at a glance; nobody where the schema is an older one.
    pub neighbours: Neighbours,
    /// By how many milliseconds the server's clock is before this machine's at least; negative: behind it.
    pub clock_ahead: i64,
}

/// Looks at the store on a server that `url` names, and changes nothing. `None`: it names a file.
///
/// # Errors
/// [`OpenError`]: it cannot be reached or read, or was written by a build that this one does not follow.
pub async fn inspect_server(url: &str) -> Result<Option<ServerInspection>, OpenError> {
    if !is_remote(url) {
        return Ok(None);
    }
    let address = Address::read(url)?;
    let fail = |source| address.fail(source);
    let mut session = address.connect().await?;
    let promises = promises(&mut session).await.map_err(fail)?;
    let schema = schema(&mut session).await.map_err(fail)?;
    let known_schema = address.known_schema();
    if schema > known_schema {
        let newer = MigrateError::VersionMissing(schema);
        return Err(address.describe_migration(newer, known_schema));
    }
    let mut db = Connection::new(session, Texts::new(address.dialect()));
    let clock_ahead = clock_ahead(&mut db).await.map_err(fail)?;
    let found = match schema {
        0 => Figures::default(),
        _ if copy::is_unfinished(&mut db).await.map_err(fail)? => return Err(half_copied(url)),
        _ => figures(&mut db, schema == known_schema)
            .await
            .map_err(fail)?,
    };
    db.into_session().close().await;
    Ok(Some(ServerInspection {
        url: address.shown,
        software: promises.software,
        too_old: promises.too_old,
        read_only: promises.read_only,
        weaknesses: promises.weaknesses,
        unsafe_will_do: address.unsafe_will_do,
        schema,
        known_schema,
        servers: from_sql(found.servers),
        agents: from_sql(found.agents),
        is_of_a_deployment: found.is_of_a_deployment,
        neighbours: found.neighbours.unwrap_or(Neighbours::Nobody),
        clock_ahead,
    }))
}

/// What a store holds, as far as it matters before a start.
#[derive(Default)]
struct Figures {
    /// Process servers that are alive.
    servers: i64,
    /// Agents that may come in.
    agents: i64,
    is_of_a_deployment: bool,
    neighbours: Option<Neighbours>,
}

/// `is_known`: the schema is this build's. Of an older one only what every store on a server has is looked at.
async fn figures(db: &mut Connection, is_known: bool) -> Result<Figures, sqlx::Error> {
    if !is_known {
        return Ok(Figures {
            is_of_a_deployment: deployment::has_groups(db).await?,
            ..Figures::default()
        });
    }
    let alive = database_time(db).await?.minus(BEAT_EXPIRY).to_sql();
    let servers = sql::query_scalar("SELECT count(*) FROM worker WHERE beat_at > $1")
        .bind(alive)
        .fetch_one(&mut *db)
        .await?;
    let agents = sql::query_scalar("SELECT count(*) FROM agent WHERE revoked_at IS NULL")
        .fetch_one(&mut *db)
        .await?;
    Ok(Figures {
        servers,
        agents,
        is_of_a_deployment: deployment::has_begun(db).await?,
        neighbours: Some(neighbours::at_a_glance(db).await?),
    })
}

/// By how many milliseconds the server's clock is before ours, or, below 0, behind it.
async fn clock_ahead(db: &mut Connection) -> Result<i64, sqlx::Error> {
    let asked = clock::now();
    let shown = database_time(db).await?.to_sql();
    Ok(ahead(shown, asked, clock::now()))
}

/// The least difference there can be, whenever between `asked` and `answered` the clock was read: a slow way to the
/// server is no wrong clock.
fn ahead(shown: i64, asked: UnixMs, answered: UnixMs) -> i64 {
    let (first, last) = (asked.to_sql(), answered.to_sql());
    shown - shown.clamp(first, last.max(first))
}

/// Connections are made when somebody reads.
pub(super) fn readers(address: &Address, texts: Arc<Texts>) -> Readers {
    match &address.server {
        Server::Postgres(options) => {
            let options = options.as_ref().clone();
            let options = options.options([("default_transaction_read_only", "on")]);
            Readers::postgres(pool().connect_lazy_with(options), texts)
        }
        Server::MySql(options) => {
            let pool = pool().after_connect(|db, _| Box::pin(mysql::set(db)));
            Readers::mysql(pool.connect_lazy_with(options.as_ref().clone()), texts)
        }
    }
}

fn pool<DB: sqlx::Database>() -> PoolOptions<DB> {
    PoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
}

/// A URL without what only Drover knows, and whether an unsafe server will do.
fn without_own_words(url: &str) -> (String, bool) {
    let Some((before, query)) = url.split_once('?') else {
        return (url.to_owned(), false);
    };
    let rest: Vec<&str> = query.split('&').filter(|word| *word != UNSAFE).collect();
    let is_unsafe = rest.len() < query.split('&').count();
    match rest.is_empty() {
        true => (before.to_owned(), is_unsafe),
        false => (format!("{before}?{}", rest.join("&")), is_unsafe),
    }
}

/// A URL for people and logs: without its password, and without what follows `?`, where one may be too.
pub fn shown(url: &str) -> String {
    let url = url.split_once('?').map_or(url, |(before, _)| before);
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user, |(user, _)| user);
            format!("{scheme}://{user}@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password_and_told_without_our_words() {
        for (url, seen) in [
            (
                "postgres://drover:p@ss@db:5432/drover?sslmode=require&password=x",
                "postgres://drover@db:5432/drover",
            ),
            ("mysql://drover@db/drover", "mysql://drover@db/drover"),
            ("mariadb://db/drover", "mariadb://db/drover"),
            ("sqlite:x", "sqlite:x"),
        ] {
            assert_eq!(shown(url), seen);
        }
        for (url, plain, is_unsafe) in [
            ("mysql://a/b", "mysql://a/b", false),
            ("mysql://a/b?durability=unsafe", "mysql://a/b", true),
            (
                "mysql://a/b?x=1&durability=unsafe&y=2",
                "mysql://a/b?x=1&y=2",
                true,
            ),
        ] {
            assert_eq!(without_own_words(url), (plain.to_owned(), is_unsafe));
        }
    }

    #[test]
    fn a_clock_differs_by_what_no_slow_answer_explains() {
        let ahead = |shown| ahead(shown, UnixMs(1000), UnixMs(3000));
        for (shown, expected) in [(1000, 0), (2500, 0), (3000, 0), (9000, 6000), (0, -1000)] {
            assert_eq!(ahead(shown), expected, "{shown}");
        }
        // Ours was set back meanwhile.
        assert_eq!(super::ahead(3000, UnixMs(3000), UnixMs(1000)), 0);
    }

    /// Words of a step that older builds on the same store would not survive; remarks aside.
    fn takes_away(sql: &str) -> bool {
        let said = |line: &str| {
            let line = line.split_once("--").map_or(line, |(before, _)| before);
            line.to_uppercase()
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| matches!(word, "DROP" | "RENAME"))
        };
        sql.lines().any(said)
    }

    /// `store migrate` may run while servers of the build before are at work: what they know stays.
    #[test]
    fn steps_of_the_schema_after_the_eleventh_only_add() {
        assert!(takes_away("ALTER TABLE a\n  RENAME TO b;") && takes_away("drop index c;"));
        assert!(!takes_away(
            "-- DROP it never\nALTER TABLE a ADD dropped BIGINT;"
        ));
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        for backend in ["", "postgres", "mysql"] {
            let mut steps = 0;
            for entry in std::fs::read_dir(folder.join(backend)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let Some((version, _)) = name.split_once('_') else {
                    continue;
                };
                steps += 1;
                if version.parse::<u32>().unwrap() > 11 {
                    let sql = std::fs::read_to_string(&path).unwrap();
                    assert!(!takes_away(&sql), "{}", path.display());
                }
            }
            assert_ne!(steps, 0, "{backend}");
        }
    }

    #[test]
    fn every_backend_has_the_same_steps_of_the_schema() {
        let embedded = super::super::sqlite::known_schema();
        assert_eq!(postgres::known_schema(), embedded);
        assert_eq!(mysql::known_schema(), embedded);
    }
}
