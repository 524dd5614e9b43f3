//! A private PostgreSQL.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use crate::error::KitError;
use crate::places;
use crate::server::{Kind, Place, Server};

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
    programs: Vec<PathBuf>,
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
        let programs = places::versions(Path::new(FOLDER), "bin");
        let initdb = places::program("initdb", PACKAGE, &programs)?;
        let postgres = places::program("postgres", PACKAGE, &programs)?;
        let settings: Vec<String> = settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let prepare = async |server: &Server| {
            let mut command = Command::new(&initdb);
            command
                .args(["--auth=trust", "--username", USER, "--no-sync"])
                .args(["--encoding=UTF8", "--locale=C", "--pgdata", "data"]);
            server.run(command).await.map(drop)
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
        Ok(Self {
            server: Server::start(KIND, prepare, command).await?,
            programs,
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

    /// Lets the administrator say something to it, as SQL.
    ///
    /// # Errors
    /// [`KitError::Ended`]: it was refused, and the log has the reason.
    pub async fn execute(&self, sql: &str) -> Result<(), KitError> {
        let mut command = Command::new(places::program("psql", PACKAGE, &self.programs)?);
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
