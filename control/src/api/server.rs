//! The API's sockets: bounded in number, in time and in memory, and drained in order.
//!
//! ```text
//!   accept ─▶ one permit per connection ─▶ hyper HTTP/1.1 ─▶ router
//!   drain: no new connection · event streams end · requests finish · deadline: the rest is cut
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Bytes of a request's head and of what is read ahead.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Headers in a request.
const HEADERS_MAX: usize = 64;
/// After a failed accept (no file descriptors left) wait this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections of clients at once; more wait in the listen queue. Each holds a file descriptor.
pub const CONNECTIONS_MAX: usize = 1024;

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// As [`CONNECTIONS_MAX`].
    connections: usize,
    /// A request's head must have arrived within this; idle connections are closed after it.
    head: Duration,
    /// A client that takes nothing of an answer for this long is cut off.
    stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            head: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

/// Serves until `stopping`, then until every connection has ended or `cut` says that it must.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stopping: CancellationToken,
    cut: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, remote, permit)) = accepted else {
            break;
        };
        let connection = graceful.watch(connection(stream, remote, &router, limits));
        let cut = cut.clone();
        tokio::spawn(async move {
            tokio::select! {
                // A client that goes away or misbehaves is its own affair.
                ended = connection => drop(ended),
                () = cut.cancelled() => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = cut.cancelled() => {}
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => return Some((stream, remote, permit)),
            Err(error) => {
                tracing::warn!(%error, "the API could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    router: &Router,
    limits: Limits,
) -> http1::Connection<
    TokioIo<TcpStream>,
    impl hyper::service::Service<
        hyper::Request<hyper::body::Incoming>,
        Response = axum::response::Response,
        Error = Infallible,
        Future: Send,
    > + use<>,
> {
    let socket = SockRef::from(&stream);
    // Both only make things better; a socket without them still works.
    drop(socket.set_tcp_nodelay(true));
    drop(socket.set_tcp_user_timeout(Some(limits.stall)));
    let service =
        router
            .clone()
            .map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(ConnectInfo(remote));
                request.map(axum::body::Body::new)
            });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const HELLO: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    struct Running {
        address: SocketAddr,
        stopping: CancellationToken,
        cut: CancellationToken,
        serving: tokio::task::JoinHandle<()>,
    }

    async fn run(limits: Limits) -> Running {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", axum::routing::get(|| async { "hello" }))
            .route("/never", axum::routing::get(std::future::pending::<String>));
        let (stopping, cut) = (CancellationToken::new(), CancellationToken::new());
        let serving = serve(listener, router, limits, stopping.clone(), cut.clone());
        Running {
            address,
            stopping,
            cut,
            serving: tokio::spawn(serving),
        }
    }

    async fn read_some(stream: &mut TcpStream) -> usize {
        stream.read(&mut [0; 1024]).await.unwrap_or(0)
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_head_is_closed() {
        let running = run(Limits {
            head: Duration::from_millis(50),
            ..Limits::default()
        })
        .await;
        for head in [&b""[..], b"GET / HTTP/1.1\r\nHost:"] {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            stream.write_all(head).await.unwrap();
            let mut rest = Vec::new();
            // Ends: that is the test. A 408 before the end is fine.
            drop(stream.read_to_end(&mut rest).await);
            assert!(!rest.starts_with(b"HTTP/1.1 200"));
        }
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait_for_a_place() {
        let running = run(Limits {
            connections: 1,
            ..Limits::default()
        })
        .await;
        let mut first = TcpStream::connect(running.address).await.unwrap();
        first.write_all(HELLO).await.unwrap();
        assert!(read_some(&mut first).await > 0);
        let mut second = TcpStream::connect(running.address).await.unwrap();
        second.write_all(HELLO).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(100), read_some(&mut second)).await;
        assert!(early.is_err(), "there is no place for it yet");
        drop(first);
        assert!(read_some(&mut second).await > 0);
    }

    #[tokio::test]
    async fn what_does_not_end_by_itself_is_cut() {
        let running = run(Limits::default()).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream
            .write_all(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        running.stopping.cancel();
        running.cut.cancel();
        running.serving.await.unwrap();
        assert_eq!(read_some(&mut stream).await, 0);
    }
}
