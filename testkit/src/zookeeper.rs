//! A private ZooKeeper.

use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;

use tokio::sync::OnceCell;

use crate::error::KitError;
use crate::places;
use crate::server::{Kind, Place, Server};
use crate::tls::{self, ClientTls, write};

const PACKAGE: &str = "zookeeper";
/// Where Debian keeps Java's libraries.
const JARS: &str = "/usr/share/java";
/// Beside ZooKeeper's own: what it logs with, and what its manifest forgets for TLS.
const MORE_JARS: [&str; 4] = [
    "slf4j-simple.jar",
    "netty-codec.jar",
    "netty-resolver.jar",
    "netty-transport-native-unix-common.jar",
];

/// A session may be as short as two ticks of 500 ms.
const CONFIGURATION: &str = "tickTime=500\nminSessionTimeout=1000\nclientPortAddress=127.0.0.1\n\
    admin.enableServer=false\nmaxClientCnxns=0\n4lw.commands.whitelist=*\ndataDir=data\n";
const TLS_CONFIGURATION: &str = "secureClientPortAddress=127.0.0.1\n\
    serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
    ssl.keyStore.location=server.pem\nssl.keyStore.type=PEM\n\
    ssl.trustStore.location=ca.pem\nssl.trustStore.type=PEM\nssl.clientAuth=need\n";

const KIND: Kind = Kind {
    name: "zookeeper",
    asks: b"srvr",
    // It answers before it serves, and says so then.
    ready: |answer| answer.windows(5).any(|window| window == b"Mode:"),
};

/// A private ZooKeeper of one server.
pub struct ZooKeeper {
    server: Server,
    tls: Option<(u16, ClientTls)>,
}

impl ZooKeeper {
    /// Starts one without TLS.
    ///
    /// # Errors
    /// [`KitError`]: the package is missing, or it did not start.
    pub async fn start() -> Result<Self, KitError> {
        Self::start_as(None).await
    }

    /// Starts one that also has a port with TLS, where clients must show a certificate: [`ZooKeeper::tls`].
    ///
    /// # Errors
    /// As [`ZooKeeper::start`].
    pub async fn start_with_tls() -> Result<Self, KitError> {
        Self::start_as(Some(places::free_port()?)).await
    }

    async fn start_as(tls_port: Option<u16>) -> Result<Self, KitError> {
        let java = places::program("java", PACKAGE, &[])?;
        let jars = jars()?;
        let certificates = tls_port.map(|_| tls::certificates()).transpose()?;
        let (server_pem, client) = certificates.unzip();
        let prepare = async |server: &Server| {
            if let (Some(pem), Some(client)) = (&server_pem, &client) {
                write(server.folder(), "server.pem", pem)?;
                write(server.folder(), "ca.pem", &client.ca)?;
            }
            Ok(())
        };
        let command = move |place: &Place<'_>| {
            let mut configuration = format!("{CONFIGURATION}clientPort={}\n", place.port);
            if let Some(port) = tls_port {
                configuration.push_str(TLS_CONFIGURATION);
                configuration.push_str(&format!("secureClientPort={port}\n"));
            }
            write(place.folder, "zoo.cfg", &configuration)?;
            let mut command = Command::new(&java);
            command
                // Small, and quick to be there; what it writes need not survive the machine.
                .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
                .args(["-Dzookeeper.forceSync=no", "-cp", &jars])
                .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
                .arg("zoo.cfg");
            Ok(command)
        };
        Ok(Self {
            server: Server::start(KIND, prepare, command).await?,
            tls: tls_port.zip(client),
        })
    }

    /// The one that all tests of this process share: use nodes of your own.
    ///
    /// # Errors
    /// As [`ZooKeeper::start`].
    pub async fn shared() -> Result<&'static Self, KitError> {
        static SHARED: OnceCell<ZooKeeper> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Its URL, without TLS.
    pub fn url(&self) -> String {
        format!("zookeeper://{}", self.server.address())
    }

    /// Host and port with TLS, and what a client needs for it; `None`: it was started without.
    pub fn tls(&self) -> Option<(String, ClientTls)> {
        let (port, client) = self.tls.as_ref()?;
        Some((format!("127.0.0.1:{port}"), client.clone()))
    }
}

impl Deref for ZooKeeper {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// The class path.
fn jars() -> Result<String, KitError> {
    let folder = PathBuf::from(JARS);
    let zookeeper = folder.join("zookeeper.jar");
    if !zookeeper.is_file() {
        return Err(KitError::Missing {
            what: "zookeeper.jar",
            package: PACKAGE,
        });
    }
    let all = std::iter::once(zookeeper).chain(MORE_JARS.map(|jar| folder.join(jar)));
    let all: Vec<String> = all.map(|jar| jar.display().to_string()).collect();
    Ok(all.join(":"))
}
