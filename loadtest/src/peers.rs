//! The same job on other servers.
//!
//! ```text
//!   compare ── spawns ──▶ server of a peer  (CPU 0)  Ready ▶  ◀ Expect, Await, Load ▶ Sessions, Loaded
//!           ── spawns ──▶ clients of a peer (CPU 1)  Ready ▶  ◀ Grow        ▶ Grown
//!           ── spawns ──▶ commander, for brokers (CPU 1), takes the server's orders
//! ```
//!
//! A peer is a row of [`PEERS`]: what runs in its server process and what in its client process.
//! Both get their orders as JSON lines on standard input and answer on standard output; `compare`
//! measures them from outside, in `/proc`. The job: N clients hold a session over mTLS each (P-256,
//! X25519, TLS 1.3, no resumption, no 0-RTT) and keep it alive every [`KEEP_ALIVE`]; the server sends
//! commands of [`PAYLOAD_BYTES`] to random ones and each is answered with as many.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

mod brokers;
mod compio;
mod drover;
pub mod floors;
pub mod load;
pub mod material;
mod mosquitto;
mod nats;
pub mod orders;
mod quinn;
mod s2n;
mod tonic;

use material::Material;
use orders::Orders;

/// Bytes of a command's payload, and of its answer's.
pub const PAYLOAD_BYTES: usize = 256;
/// Every session is kept alive this often, by the client where the protocol lets it.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A session that was silent this long is over, where the peer lets us say so.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that a client process has under way at once while its fleet grows.
pub const CONNECTING_MAX: usize = 64;

/// Something that holds sessions.
pub struct Peer {
    /// Short and unique: `quinn-tuned`.
    pub name: &'static str,
    /// What it is, in one line, with its version.
    pub about: &'static str,
    /// What runs in the process that is measured.
    pub server: Server,
    /// Runs in the client process until its orders end.
    pub clients: fn(Role) -> anyhow::Result<()>,
}

/// What runs in the process that is measured.
pub enum Server {
    /// A library: this function, which also makes the load, as its user would. Returns when its
    /// orders end.
    Library(fn(Role) -> anyhow::Result<()>),
    /// A program of its own.
    Broker {
        /// The program, ready to listen on the address with the material of the directory
        /// (see [`material`]), which may also take its configuration. Killed when the run is over.
        program: fn(&Path, SocketAddr) -> anyhow::Result<Command>,
        /// Makes the load, in a process of its own beside the clients: a client of the broker like
        /// any other. Its CPU time is not on the server's bill.
        commander: fn(Role) -> anyhow::Result<()>,
    },
}

/// What a process of a peer is given.
pub struct Role {
    /// Certificates and keys.
    pub material: Material,
    /// The directory that they came from; also a place for small files.
    pub dir: PathBuf,
    /// Servers listen here (port 0 chooses one); clients and commanders connect here.
    pub address: SocketAddr,
    /// What to do.
    pub orders: Orders,
}

/// All peers, in the order of the first round.
pub const PEERS: &[Peer] = &[
    drover::DROVER,
    drover::DROVER_DIRECT,
    quinn::STOCK,
    quinn::TUNED,
    tonic::TONIC,
    s2n::S2N,
    compio::COMPIO,
    nats::NATS,
    mosquitto::MOSQUITTO,
];

/// The peer of this name.
///
/// # Errors
/// When there is none; names those that there are.
pub fn find(name: &str) -> anyhow::Result<&'static Peer> {
    let found = PEERS.iter().find(|peer| peer.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
        anyhow::anyhow!("there is no peer `{name}`; there are {}", names.join(", "))
    })
}

/// Which process of a peer this one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Part {
    /// The one that is measured. Brokers are programs of their own and have none here.
    Server,
    /// Holds the client sessions.
    Clients,
    /// Sends commands through a broker.
    Commander,
}

/// Is one process of a peer until its orders end.
///
/// # Errors
/// When the peer has no such part, or cannot go on.
pub fn play(peer: &str, part: Part, dir: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let peer = find(peer)?;
    let run = match (part, &peer.server) {
        (Part::Clients, _) => peer.clients,
        (Part::Server, Server::Library(run)) => *run,
        (Part::Commander, Server::Broker { commander, .. }) => *commander,
        (Part::Server | Part::Commander, _) => anyhow::bail!("{} has no {part:?}", peer.name),
    };
    run(Role {
        material: Material::load(dir)?,
        dir: dir.to_owned(),
        address,
        orders: Orders::from_stdin()?,
    })
}
