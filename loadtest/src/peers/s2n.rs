//! s2n-quic on tokio. One bidirectional stream per command, opened by the server.
//!
//! How it is set up, and why:
//! - TLS is the library's default on Linux, s2n-tls over aws-lc, as its own mTLS example uses it. The
//!   rustls provider would be a second choice that a user has to make.
//! - Its callback for names takes any: the clients' names are SPIFFE ids, and the chain has been
//!   verified by then.
//! - Limits, windows and buffers as they come: they are caps here, not allocations. The idle timeout
//!   is the common one, which is also the default.
//! - A current-thread runtime: the process has one CPU, and the multi-thread one would only add a
//!   thread that hands over to another.
//! - Clients are quinn's, the same as for every QUIC peer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use bytes::Bytes;
use s2n_quic::connection::Handle;
use s2n_quic::provider::limits::Limits;
use s2n_quic::provider::tls::default as tls;
use s2n_quic::provider::tls::default::callbacks::VerifyHostNameCallback;
use tokio::runtime;

use super::load::Ticket;
use super::orders::{self, Held};
use super::{IDLE_TIMEOUT, PAYLOAD_BYTES, Peer, Role, Server, quinn};

/// s2n-quic.
pub(super) const S2N: Peer = Peer {
    name: "s2n-quic",
    about: "s2n-quic 1.91 on tokio's current-thread runtime, its default TLS (s2n-tls), limits as they come",
    server: Server::Library(serve),
    clients: quinn::clients,
};

fn serve(role: Role) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut server = s2n_quic::Server::builder()
            .with_tls(tls_of(&role)?)?
            .with_limits(Limits::new().with_max_idle_timeout(IDLE_TIMEOUT)?)?
            .with_io(role.address)?
            .start()?;
        let address: SocketAddr = server.local_addr()?;
        let held = Arc::new(Sessions::default());
        let sessions = Arc::clone(&held);
        tokio::spawn(async move {
            while let Some(connection) = server.accept().await {
                // The client opens no streams: the half that accepts them is not needed.
                let (handle, _acceptor) = connection.split();
                sessions.lock().push(handle);
            }
        });
        orders::follow_server(role.orders, address, &*held).await
    })
}

/// The library takes files for certificates, and no DER for keys.
fn tls_of(role: &Role) -> anyhow::Result<tls::Server> {
    let file = |name: &str| role.dir.join(name);
    let server = tls::Server::builder()
        .with_application_protocols([quinn::ALPN])?
        .with_certificate(file("server.pem").as_path(), file("server.key").as_path())?
        .with_empty_trust_store()?
        .with_trusted_certificate(file("ca.pem").as_path())?
        .with_client_authentication()?
        .with_verify_host_name_callback(AnyName)?
        .build();
    server.context("s2n-tls does not take the certificates")
}

/// Every name that the authority has signed.
struct AnyName;

impl VerifyHostNameCallback for AnyName {
    fn verify_host_name(&self, _name: &str) -> bool {
        true
    }
}

/// The sessions of a server. A handle keeps its connection open.
#[derive(Default)]
struct Sessions(Mutex<Vec<Handle>>);

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held for Sessions {
    fn count(&self) -> usize {
        self.lock().len()
    }

    fn command(&self, session: usize, ticket: Ticket) {
        let Some(handle) = self.lock().get(session).cloned() else {
            return;
        };
        tokio::spawn(async move {
            match command(handle).await {
                Ok(()) => ticket.answered(),
                Err(error) => tracing::warn!(%error, "a command was lost"),
            }
        });
    }
}

/// Sends a command and reads its answer.
async fn command(mut handle: Handle) -> anyhow::Result<()> {
    let mut stream = handle.open_bidirectional_stream().await?;
    stream
        .send(Bytes::from_static(&[0xc0; PAYLOAD_BYTES]))
        .await?;
    stream.finish()?;
    let mut received = 0;
    while let Some(chunk) = stream.receive().await? {
        received += chunk.len();
    }
    anyhow::ensure!(received == PAYLOAD_BYTES, "{received} bytes were answered");
    Ok(())
}
