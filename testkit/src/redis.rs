//! A private Redis.

use std::ops::Deref;
use std::process::Command;

use tokio::sync::OnceCell;

use crate::error::KitError;
use crate::places;
use crate::server::{Kind, Place, Server};
use crate::tls::{self, ClientTls, write};

const PACKAGE: &str = "redis-server";

const KIND: Kind = Kind {
    name: "redis",
    asks: b"PING\r\n",
    // One with a password says that it wants it.
    ready: |answer| answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH"),
};

/// A private Redis. It keeps nothing: after a restart it is empty.
pub struct Redis {
    server: Server,
    password: Option<String>,
    tls: Option<(u16, ClientTls)>,
}

impl Redis {
    /// Starts one without a password.
    ///
    /// # Errors
    /// [`KitError`]: the package is missing, or it did not start.
    pub async fn start() -> Result<Self, KitError> {
        Self::start_as(None, None).await
    }

    /// Starts one that wants this password; it is part of [`Redis::url`], so it holds no character that a URL
    /// would escape.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start_with_password(password: &str) -> Result<Self, KitError> {
        Self::start_as(Some(password.to_owned()), None).await
    }

    /// Starts one that also has a port with TLS, where clients must show a certificate: [`Redis::tls`].
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start_with_tls() -> Result<Self, KitError> {
        Self::start_as(None, Some(places::free_port()?)).await
    }

    async fn start_as(password: Option<String>, tls_port: Option<u16>) -> Result<Self, KitError> {
        let redis = places::program("redis-server", PACKAGE, &[])?;
        let wanted = password.clone();
        let certificates = tls_port.map(|_| tls::certificates()).transpose()?;
        let (server_pem, client) = certificates.unzip();
        let prepare = async |server: &Server| {
            if let (Some(pem), Some(client)) = (&server_pem, &client) {
                write(server.folder(), tls::SERVER, pem)?;
                write(server.folder(), tls::AUTHORITY, &client.ca)?;
            }
            Ok(())
        };
        let command = move |place: &Place<'_>| {
            let mut command = Command::new(&redis);
            command
                .args(["--bind", "127.0.0.1", "--port", &place.port.to_string()])
                .args(["--save", "", "--appendonly", "no"]);
            if let Some(port) = tls_port {
                command
                    .args(["--tls-port", &port.to_string()])
                    .args([
                        "--tls-cert-file",
                        tls::SERVER,
                        "--tls-key-file",
                        tls::SERVER,
                    ])
                    .args(["--tls-ca-cert-file", tls::AUTHORITY]);
            }
            if let Some(password) = &wanted {
                command.args(["--requirepass", password]);
            }
            Ok(command)
        };
        Ok(Self {
            server: Server::start(KIND, prepare, command).await?,
            password,
            tls: tls_port.zip(client),
        })
    }

    /// The one that all tests of this process share: use keys of your own.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn shared() -> Result<&'static Self, KitError> {
        static SHARED: OnceCell<Redis> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Host and port with TLS, and what a client needs for it; `None`: it was started without.
    pub fn tls(&self) -> Option<(String, ClientTls)> {
        let (port, client) = self.tls.as_ref()?;
        Some((format!("127.0.0.1:{port}"), client.clone()))
    }

    /// Its URL, with the password.
    pub fn url(&self) -> String {
        let password = self.password.as_ref();
        let password = password.map_or_else(String::new, |password| format!(":{password}@"));
        format!("redis://{password}{}", self.server.address())
    }
}

impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
