//! A private MariaDB.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use crate::error::KitError;
use crate::places;
use crate::server::{Kind, Place, Server};
use crate::tls::{self, ClientTls};

const PACKAGE: &str = "mariadb-server";
/// Without a password: it is reached from this machine only.
const USER: &str = "root";

const KIND: Kind = Kind {
    name: "mariadb",
    // It speaks first: length and number of the packet, then the version of the protocol, or 0xff and an error.
    asks: b"",
    ready: |greeting| greeting.get(4) == Some(&10),
};

/// A private MariaDB: everyone on this machine may do anything in it.
pub struct MariaDb {
    server: Server,
    authority: Option<PathBuf>,
    databases: AtomicU32,
}

impl MariaDb {
    /// Starts one as it comes, but with `utf8mb4`, and as durable as a deployment needs it: its own default loses
    /// the last second of the binary log.
    ///
    /// # Errors
    /// [`KitError`]: the package is missing, or it did not start.
    pub async fn start() -> Result<Self, KitError> {
        Self::start_with(&[]).await
    }

    /// Starts one with settings of the section `[mariadbd]`, as `("sync_binlog", "0")`.
    ///
    /// # Errors
    /// As [`MariaDb::start`].
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self, KitError> {
        Self::start_as(settings, None).await
    }

    /// Starts one that also speaks TLS, with a certificate for 127.0.0.1: [`MariaDb::authority`].
    ///
    /// # Errors
    /// As [`MariaDb::start`].
    pub async fn start_with_tls() -> Result<Self, KitError> {
        let files = [("ssl-cert", "../server.pem"), ("ssl-key", "../server.pem")];
        Self::start_as(&files, Some(tls::certificates()?)).await
    }

    async fn start_as(
        settings: &[(&str, &str)],
        tls: Option<(String, ClientTls)>,
    ) -> Result<Self, KitError> {
        let install = places::program("mariadb-install-db", PACKAGE, &[])?;
        let mariadbd = places::program("mariadbd", PACKAGE, &[])?;
        let settings: Vec<String> = settings
            .iter()
            .map(|(name, value)| format!("--{name}={value}"))
            .collect();
        let authority = tls.is_some();
        let prepare = async |server: &Server| {
            if let Some((pem, client)) = tls {
                server.give_secret(tls::SERVER, &pem)?;
                tls::write(server.folder(), tls::AUTHORITY, &client.ca)?;
            }
            let data = server.folder().join("data");
            let mut command = Command::new(&install);
            command
                .args(["--no-defaults", "--auth-root-authentication-method=normal"])
                .args(["--skip-test-db", "--skip-name-resolve"])
                .arg(format!("--datadir={}", data.display()));
            server.run(command).await.map(drop)
        };
        let command = move |place: &Place<'_>| {
            let mut command = Command::new(&mariadbd);
            let folder = place.folder.display();
            command
                .arg("--no-defaults")
                .arg(format!("--datadir={folder}/data"))
                .arg(format!("--socket={folder}/socket"))
                .arg(format!("--pid-file={folder}/pid"))
                .arg(format!("--port={}", place.port))
                .args(["--bind-address=127.0.0.1", "--skip-name-resolve"])
                .args(["--character-set-server=utf8mb4", "--sync-binlog=1"])
                .args(&settings);
            Ok(command)
        };
        let server = Server::start(KIND, prepare, command).await?;
        Ok(Self {
            authority: authority.then(|| server.folder().join(tls::AUTHORITY)),
            server,
            databases: AtomicU32::new(0),
        })
    }

    /// Starts one that others may follow: [`MariaDb::replica`].
    ///
    /// # Errors
    /// As [`MariaDb::start`].
    pub async fn start_with_log() -> Result<Self, KitError> {
        Self::start_with(&[("log-bin", "binlog"), ("server-id", "1")]).await
    }

    /// Starts one that follows this one, started with [`MariaDb::start_with_log`], from its beginning, and takes no
    /// writes but an administrator's. What is written here is there a moment later; `STOP SLAVE SQL_THREAD` there has
    /// it stand still.
    ///
    /// # Errors
    /// As [`MariaDb::start`].
    pub async fn replica(&self) -> Result<Self, KitError> {
        // A primary lets go of a replica when another one comes with the same number.
        static NUMBERS: AtomicU32 = AtomicU32::new(2);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed).to_string();
        let replica = Self::start_with(&[("server-id", &number), ("read-only", "1")]).await?;
        let port = self.server.address().port();
        let follow = format!(
            "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = '{USER}', \
             MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1; START SLAVE"
        );
        replica.execute(&follow).await?;
        Ok(replica)
    }

    /// The one that all tests of this process share.
    ///
    /// # Errors
    /// As [`MariaDb::start`].
    pub async fn shared() -> Result<&'static Self, KitError> {
        static SHARED: OnceCell<MariaDb> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// A PEM file with the authority of its certificate; `None`: it was started without TLS.
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    /// The server, no database of it.
    pub fn url(&self) -> String {
        format!("mysql://{USER}@{}", self.server.address())
    }

    /// Makes a database whose name begins so, and which nobody else has; its URL.
    ///
    /// # Errors
    /// [`KitError`]: the server does not take it.
    pub async fn database(&self, name: &str) -> Result<String, KitError> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}_{number}");
        self.execute(&format!("CREATE DATABASE {name}")).await?;
        Ok(format!("{}/{name}", self.url()))
    }

    /// The URL here of the database that `url` names on the server that this one follows.
    pub fn url_like(&self, url: &str) -> String {
        let database = url.rsplit_once('/').map_or(url, |(_, database)| database);
        format!("{}/{database}", self.url())
    }

    /// Lets the administrator say something to it, as SQL.
    ///
    /// # Errors
    /// [`KitError::Ended`]: it was refused, and the log has the reason.
    pub async fn execute(&self, sql: &str) -> Result<(), KitError> {
        let mut command = Command::new(places::program("mariadb", PACKAGE, &[])?);
        let port = self.server.address().port();
        command
            .args(["--no-defaults", "--host=127.0.0.1", "--user", USER])
            .arg(format!("--port={port}"))
            .args(["--execute", sql]);
        self.server.run(command).await.map(drop)
    }
}

impl Deref for MariaDb {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
