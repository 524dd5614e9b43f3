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

/// Connections at once; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 1024;
/// A request's head must have arrived within this; idle connections are closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes nothing of an answer for this long is cut off.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head and of what is read ahead.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Headers in a request.
const HEADERS_MAX: usize = 64;
/// After a failed accept (no file descriptors left) wait this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping`, then until every connection has ended or `cut` says that it must.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    stopping: CancellationToken,
    cut: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
        let connection = graceful.watch(connection(stream, remote, &router));
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
    drop(socket.set_tcp_user_timeout(Some(STALL_TIMEOUT)));
    let service =
        router
            .clone()
            .map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(ConnectInfo(remote));
                request.map(axum::body::Body::new)
            });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
}
