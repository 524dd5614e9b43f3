//! A private PostgreSQL.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use crate::error::KitError;
use crate::places;
use crate::server::{Kind, Place, Server};
use crate::tls::{self, ClientTls};

const PACKAGE: &str = "postgresql";
/// Debian keeps each version in a folder of its own, out of PATH.
const FOLDER: &str = "/usr/lib/postgresql";
/// Whoever made the data may do anything in it.
const USER: &str = "postgres";

/// A startup message: length, protocol 3.0, the user and its database.
const STARTUP: &[u8] = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";

const KIND: Kind = Kind {
    name: "postgresql",
    asks: STARTUP,
    // It asks for (or grants) authentication; while it starts up it answers with an error.
    ready: |answer| answer.first() == Some(&b'R'),
};

/// A private PostgreSQL: everyone on this machine may do anything in it.
pub struct Postgres {
    server: Server,
    authority: Option<PathBuf>,
    databases: AtomicU32,
}

impl Postgres {
    /// Starts one as it comes: durable.
    ///
    /// # Errors
    /// [`KitError`]: the package is missing, or it did not start.
    pub async fn start() -> Result<Self, KitError> {
        Self::start_with(&[]).await
    }

    /// Starts one with settings of `postgresql.conf`, as `("synchronous_commit", "off")`.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self, KitError> {
        Self::start_on(initdb()?, settings, None).await
    }

    /// Starts one that also speaks TLS, with a certificate for 127.0.0.1: [`Postgres::authority`].
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn start_with_tls() -> Result<Self, KitError> {
        let files = [
            ("ssl_cert_file", "../server.pem"),
            ("ssl_key_file", "../server.pem"),
        ];
        let settings = [("ssl", "on")].into_iter().chain(files);
        let settings: Vec<_> = settings.collect();
        Self::start_on(initdb()?, &settings, Some(tls::certificates()?)).await
    }

    /// Starts one that follows this one by streaming, with all its databases, and takes no writes. What is written
    /// here is there a moment later; `SELECT pg_wal_replay_pause()` there has it stand still.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn replica(&self) -> Result<Self, KitError> {
        let backup = places::program("pg_basebackup", PACKAGE, &programs())?;
        let mut command = Command::new(&backup);
        command
            .args(["--dbname", &self.url(), "--pgdata", "data"])
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf"]);
        Self::start_on(command, &[], None).await
    }

    /// Starts one on the data that a command makes in the folder `data`; `tls`: with these certificates.
    async fn start_on(
        data: Command,
        settings: &[(&str, &str)],
        tls: Option<(String, ClientTls)>,
    ) -> Result<Self, KitError> {
        let postgres = places::program("postgres", PACKAGE, &programs())?;
        let settings: Vec<String> = settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let authority = tls.is_some();
        let prepare = async |server: &Server| {
            if let Some((pem, client)) = tls {
                server.give_secret(tls::SERVER, &pem)?;
                tls::write(server.folder(), tls::AUTHORITY, &client.ca)?;
            }
            server.run(data).await.map(drop)
        };
        let command = move |place: &Place<'_>| {
            let mut command = Command::new(&postgres);
            command.args(["-D", "data", "-p", &place.port.to_string()]);
            let own = ["listen_addresses=127.0.0.1", "unix_socket_directories="];
            for setting in own.into_iter().chain(settings.iter().map(String::as_str)) {
                command.args(["-c", setting]);
            }
            Ok(command)
        };
        let server = Server::start(KIND, prepare, command).await?;
        Ok(Self {
            authority: authority.then(|| server.folder().join(tls::AUTHORITY)),
            server,
            databases: AtomicU32::new(0),
        })
    }

    /// The one that all tests of this process share.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn shared() -> Result<&'static Self, KitError> {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// A PEM file with the authority of its certificate; `None`: it was started without TLS.
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    /// Its database `postgres`.
    pub fn url(&self) -> String {
        self.url_of(USER)
    }

    /// Makes a database whose name begins so, and which nobody else has; its URL.
    ///
    /// # Errors
    /// [`KitError`]: the server does not take it.
    pub async fn database(&self, name: &str) -> Result<String, KitError> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}_{number}");
        self.execute(&format!("CREATE DATABASE {name}")).await?;
        Ok(self.url_of(&name))
    }

    /// The URL here of the database that `url` names on the server that this one follows.
    pub fn url_like(&self, url: &str) -> String {
        self.url_of(url.rsplit_once('/').map_or(url, |(_, database)| database))
    }

    /// Lets the administrator say something to it, as SQL.
    ///
    /// # Errors
    /// [`KitError::Ended`]: it was refused, and the log has the reason.
    pub async fn execute(&self, sql: &str) -> Result<(), KitError> {
        let mut command = Command::new(places::program("psql", PACKAGE, &programs())?);
        command
            .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"])
            .args(["--dbname", &self.url(), "--command", sql]);
        self.server.run(command).await.map(drop)
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}@{}/{database}", self.server.address())
    }
}

impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// What makes the data of a new one.
fn initdb() -> Result<Command, KitError> {
    let mut command = Command::new(places::program("initdb", PACKAGE, &programs())?);
    command
        .args(["--auth=trust", "--username", USER, "--no-sync"])
        .args(["--encoding=UTF8", "--locale=C", "--pgdata", "data"]);
    Ok(command)
}

/// Where its programs are, the newest first.
fn programs() -> Vec<PathBuf> {
    places::versions(Path::new(FOLDER), "bin")
}
