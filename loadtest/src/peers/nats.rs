//! NATS: `nats-server`, as its documentation secures it, with the project's own client library.
//!
//! ```text
//!   commander ── request to agent.N ──▶ nats-server ──▶ client N
//!             ◀── the inbox ───────────             ◀── reply
//! ```
//!
//! How it is set up, and why:
//! - TLS with `verify: true`: a client needs a certificate of the authority. TLS 1.3 is what both ends
//!   agree on.
//! - Request and reply over core NATS: at most once, nothing stored, which is what the other peers do.
//!   The commander is a client like any other; one subscription takes all its replies (the library's
//!   own way).
//! - Clients ping every 10 seconds; the server's own pings stay at their two minutes.
//! - Go runs on the one CPU that the process may use and collects garbage as it comes: no limit and no
//!   knob that its manual does not give to a user.
//! - A client says hello once its subscription is in force, one message of a few bytes: the commander
//!   would otherwise not know when the fleet is there.
//! - Clients read 4 KiB at once (the library reserves 64 by default); this is not on the bill.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::runtime;

use super::brokers::{self, Greeted};
use super::load::Ticket;
use super::material::{self, Credentials};
use super::orders::{self, Held};
use super::{KEEP_ALIVE, PAYLOAD_BYTES, Peer, Role, Server};

const NAME: &str = "nats";
/// Clients say here that they are there.
const HELLO: &str = "hello";
/// What a client reads at once, in bytes: its commands are small.
const READ_BUFFER: u16 = 4096;

/// NATS.
pub(super) const NATS: Peer = Peer {
    name: NAME,
    about: "nats-server 2.15, TLS with client certificates, request and reply over core NATS",
    server: Server::Broker { program, commander },
    clients,
};

fn program(dir: &Path, address: SocketAddr) -> anyhow::Result<Command> {
    let program = brokers::find("nats-server", NAME)?;
    let file = |name: &str| format!("{:?}", dir.join(name).display().to_string());
    let mut config = format!("listen: \"{address}\"\ntls {{\n");
    for (key, name) in [
        ("cert_file", "server.pem"),
        ("key_file", "server.key"),
        ("ca_file", "ca.pem"),
    ] {
        writeln!(config, "  {key}: {}", file(name))?;
    }
    // Two seconds by default, which a busy machine may miss.
    config.push_str("  verify: true\n  timeout: 10\n}\n");
    let path = dir.join("nats.conf");
    fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(path);
    command.arg("--log").arg(dir.join("nats.log"));
    Ok(command)
}

fn on_tokio(run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    material::install_provider();
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run)
}

fn commander(role: Role) -> anyhow::Result<()> {
    on_tokio(async {
        let files = Files::of(&role.dir, "commander", role.material.commander())?;
        let client = files.options().connect(url(role.address)).await?;
        let mut hellos = client.subscribe(HELLO).await?;
        client.flush().await?;
        let greeted = Arc::new(Greeted::default());
        let listening = Arc::clone(&greeted);
        tokio::spawn(async move {
            while let Some(message) = hellos.next().await {
                listening.hello(&message.payload);
            }
        });
        let held = Sessions { client, greeted };
        orders::follow_server(role.orders, role.address, &held).await
    })
}

/// What a commander knows of the sessions.
struct Sessions {
    client: Client,
    greeted: Arc<Greeted>,
}

impl Held for Sessions {
    fn count(&self) -> usize {
        self.greeted.count()
    }

    fn command(&self, session: usize, ticket: Ticket) {
        let client = self.client.clone();
        tokio::spawn(async move {
            let payload = Bytes::from_static(&[0xc0; PAYLOAD_BYTES]);
            match client.request(subject(session), payload).await {
                Ok(reply) if reply.payload.len() == PAYLOAD_BYTES => ticket.answered(),
                Ok(_) => tracing::warn!("an answer is too short"),
                Err(error) => tracing::warn!(%error, "a command was lost"),
            }
        });
    }
}

fn clients(role: Role) -> anyhow::Result<()> {
    on_tokio(async {
        let (material, dir) = (&role.material, &role.dir);
        let server = role.address;
        let connect = |n: usize| async move {
            let credentials = material.clients().get(n).context("no such client")?;
            let files = Files::of(dir, &format!("nats-client-{n}"), credentials)?;
            let options = files.options().read_buffer_capacity(READ_BUFFER);
            let client = options.connect(url(server)).await?;
            let mut commands = client.subscribe(subject(n)).await?;
            client.publish(HELLO, n.to_string().into()).await?;
            client.flush().await?;
            files.remove()?;
            tokio::spawn(async move {
                while let Some(command) = commands.next().await {
                    let Some(inbox) = command.reply else { continue };
                    if let Err(error) = client.publish(inbox, command.payload).await {
                        tracing::warn!(%error, "a command cannot be answered");
                    }
                }
            });
            Ok(())
        };
        orders::follow_clients(role.orders, server, connect).await
    })
}

fn url(address: SocketAddr) -> String {
    format!("tls://{address}")
}

fn subject(session: usize) -> String {
    format!("agent.{session}")
}

/// A client's credentials, as files: given a rustls configuration instead, the library loads the
/// operating system's authorities for every connection, some milliseconds each.
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(dir: &Path, name: &str, credentials: &Credentials) -> anyhow::Result<Self> {
        let files = Self {
            authority: dir.join("ca.pem"),
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        credentials.write_pem(&files.certificate, &files.key)?;
        Ok(files)
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(self.authority.clone())
            .add_client_certificate(self.certificate.clone(), self.key.clone())
            .ping_interval(KEEP_ALIVE)
    }

    /// They have been read.
    fn remove(self) -> anyhow::Result<()> {
        fs::remove_file(self.certificate)?;
        Ok(fs::remove_file(self.key)?)
    }
}
