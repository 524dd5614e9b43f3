//! tonic: gRPC over HTTP/2, TCP and TLS. A client opens one bidirectional stream and leaves it open;
//! commands are messages from the server on it, answers messages from the client.
//!
//! The service is written out by hand, as `tonic-build` would write it, so that no protobuf compiler
//! is needed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::StreamingService;
use tonic::transport::{Channel, Endpoint, Server as GrpcServer};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::load::Ticket;
use super::material::{Material, SERVER_NAME};
use super::orders::{self, Held};
use super::{KEEP_ALIVE, PAYLOAD_BYTES, Peer, Role, Server};

/// gRPC as its documentation shows a bidirectional stream.
pub(super) const TONIC: Peer = Peer {
    name: "tonic",
    about: "tonic 0.14: gRPC over HTTP/2, TCP and TLS, one bidirectional stream a client",
    server: Server::Library(serve),
    clients,
};

/// What HTTP/2 is called in TLS.
const ALPN: &[u8] = b"h2";
/// The method that clients call.
const PATH: &str = "/compare.Fleet/Attach";
/// Messages that wait for a slow stream.
const STREAM_MAX: usize = 16;
/// Connections that wait to be served.
const INCOMING_MAX: usize = 64;

/// A command, and its answer.
#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    /// Which command.
    #[prost(uint64, tag = "1")]
    id: u64,
    /// [`PAYLOAD_BYTES`].
    #[prost(bytes = "bytes", tag = "2")]
    payload: bytes::Bytes,
}

fn serve(role: Role) -> anyhow::Result<()> {
    let tls = Arc::new(role.material.server_tls(ALPN)?);
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(role.address).await?;
        let address = listener.local_addr()?;
        let (sender, incoming) = mpsc::channel(INCOMING_MAX);
        tokio::spawn(accept(listener, TlsAcceptor::from(tls), sender));
        let fleet = Fleet::default();
        let held = fleet.clone();
        tokio::spawn(async move {
            let incoming = ReceiverStream::new(incoming);
            let served = GrpcServer::builder().serve_with_incoming(fleet, incoming);
            if let Err(error) = served.await {
                tracing::error!(%error, "the server ended");
            }
        });
        orders::follow_server(role.orders, address, &held).await
    })
}

/// Does every handshake in a task of its own, as tonic's own TLS does. That one cannot be told to
/// give out no tickets.
async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    incoming: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
) {
    loop {
        let (socket, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!(%error, "no connection could be accepted");
                return;
            }
        };
        let (tls, incoming) = (tls.clone(), incoming.clone());
        tokio::spawn(async move {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::warn!(%error, "small messages may wait");
            }
            match tls.accept(socket).await {
                // The receiver only goes when the server does.
                Ok(stream) => drop(incoming.send(Ok(stream)).await),
                Err(error) => tracing::warn!(%error, "a handshake failed"),
            }
        });
    }
}

/// The service, and the sessions of a server.
#[derive(Clone, Default)]
struct Fleet(Arc<Shared>);

#[derive(Default)]
struct Shared {
    sessions: Mutex<Vec<mpsc::Sender<Result<Envelope, Status>>>>,
    flying: Mutex<HashMap<u64, Ticket>>,
    next: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held for Fleet {
    fn count(&self) -> usize {
        lock(&self.0.sessions).len()
    }

    fn command(&self, session: usize, ticket: Ticket) {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.flying).insert(id, ticket);
        let command = Envelope {
            id,
            payload: bytes::Bytes::from_static(&[0xc0; PAYLOAD_BYTES]),
        };
        let sent = match lock(&self.0.sessions).get(session) {
            Some(stream) => stream.try_send(Ok(command)).is_ok(),
            None => false,
        };
        if !sent {
            lock(&self.0.flying).remove(&id);
            tracing::warn!("a command was lost");
        }
    }
}

impl Service<http::Request<Body>> for Fleet {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let attach = Attach(Arc::clone(&self.0));
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Envelope, Envelope>::default());
            Ok(grpc.streaming(attach, request).await)
        })
    }
}

/// The only method.
struct Attach(Arc<Shared>);

impl StreamingService<Envelope> for Attach {
    type Response = Envelope;
    type ResponseStream = ReceiverStream<Result<Envelope, Status>>;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Envelope>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let (sender, commands) = mpsc::channel(STREAM_MAX);
            tokio::spawn(take_answers(request.into_inner(), Arc::clone(&shared)));
            lock(&shared.sessions).push(sender);
            Ok(Response::new(ReceiverStream::new(commands)))
        })
    }
}

async fn take_answers(mut answers: Streaming<Envelope>, shared: Arc<Shared>) {
    while let Ok(Some(answer)) = answers.message().await {
        let ticket = lock(&shared.flying).remove(&answer.id);
        if let Some(ticket) = ticket
            && answer.payload.len() == PAYLOAD_BYTES
        {
            ticket.answered();
        }
    }
    tracing::debug!("a stream ended");
}

fn clients(role: Role) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (material, server) = (&role.material, role.address);
        let connect = |n: usize| attach(material, n, server);
        orders::follow_clients(role.orders, server, connect).await
    })
}

/// Opens one client's stream and answers on it for ever.
async fn attach(material: &Material, n: usize, server: SocketAddr) -> anyhow::Result<()> {
    let channel = channel(material, n, server).await?;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let (answers, outgoing) = mpsc::channel(STREAM_MAX);
    let request = Request::new(ReceiverStream::new(outgoing));
    let codec = ProstCodec::<Envelope, Envelope>::default();
    let path = PathAndQuery::from_static(PATH);
    let mut commands = grpc.streaming(request, path, codec).await?.into_inner();
    tokio::spawn(async move {
        while let Ok(Some(command)) = commands.message().await {
            if answers.send(command).await.is_err() {
                break;
            }
        }
        tracing::warn!(n, "a stream ended");
        // The channel lives as long as its stream.
        drop(grpc);
    });
    Ok(())
}

async fn channel(material: &Material, n: usize, server: SocketAddr) -> anyhow::Result<Channel> {
    let credentials = material.clients().get(n).context("no such client")?;
    let tls = TlsConnector::from(Arc::new(material.client_tls(credentials, ALPN)?));
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let socket = TcpStream::connect(server).await?;
            socket.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            std::io::Result::Ok(TokioIo::new(tls.connect(name, socket).await?))
        }
    });
    // TLS is the connector's: tonic itself believes to speak without.
    let endpoint = Endpoint::from_shared(format!("http://{SERVER_NAME}"))?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector(connector).await?)
}
