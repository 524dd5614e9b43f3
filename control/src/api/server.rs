//! The API's sockets: bounded in number, in time and in memory, and drained in order.
//!
//! ```text
//!   accept ─▶ one permit per connection ─▶ TLS, where it is spoken ─▶ hyper HTTP/1.1 ─▶ router
//!   drain: no new connection · event streams end · requests finish · deadline: the rest is cut
//! ```

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::listener::{Certificate, Door};
use super::problem::{ApiError, Kind};
use super::routes;

/// Bytes of a request's head and of what is read ahead.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Headers in a request.
const HEADERS_MAX: usize = 64;
/// After a failed accept (no file descriptors left) wait this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// A request's head must have arrived within this; idle connections are closed after it.
    head: Duration,
    /// TLS must be spoken within this.
    handshake: Duration,
    /// A client that takes nothing of an answer for this long is cut off.
    stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(30),
        }
    }
}

/// Serves until `stopping`, then until every connection has ended or `cut` says that it must.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    door: Arc<Door>,
    stopping: CancellationToken,
    cut: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            accepted = accept(&listener, &door) => accepted,
        };
        let Some((stream, remote, permit)) = accepted else {
            break;
        };
        let serving = converse(
            (stream, remote),
            router.clone(),
            limits,
            Arc::clone(&door),
            graceful.watcher(),
            stopping.clone(),
        );
        let cut = cut.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = serving => {}
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

/// One connection, from its first byte to its end.
async fn converse(
    (stream, remote): (TcpStream, SocketAddr),
    router: Router,
    limits: Limits,
    door: Arc<Door>,
    watcher: Watcher,
    stopping: CancellationToken,
) {
    let socket = SockRef::from(&stream);
    // Both only make things better; a socket without them still works.
    drop(socket.set_tcp_nodelay(true));
    drop(socket.set_tcp_user_timeout(Some(limits.stall)));
    // A client that goes away or misbehaves is its own affair: how a connection ends is not looked at.
    let Some(certificate) = &door.certificate else {
        drop(
            watcher
                .watch(connection(stream, remote, &router, limits))
                .await,
        );
        return;
    };
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(limits.handshake, greet(stream, certificate)) => greeted,
        () = stopping.cancelled() => return,
    };
    match greeted {
        Ok(Ok(Greeted::Tls(stream))) => {
            drop(
                watcher
                    .watch(connection(*stream, remote, &router, limits))
                    .await,
            );
        }
        Ok(Ok(Greeted::Plain(stream))) => {
            door.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            let router = Router::new().fallback(speaks_tls);
            drop(
                watcher
                    .watch(connection(stream, remote, &router, limits))
                    .await,
            );
        }
        Ok(Err(error)) => {
            door.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(listener = door.name, %remote, %error, "no TLS");
        }
        Err(_) => {
            door.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(listener = door.name, %remote, "no TLS within the time for it");
        }
    }
}

/// How a client of a listener with TLS begins.
enum Greeted {
    Tls(Box<TlsStream<TcpStream>>),
    /// It speaks HTTP as it is.
    Plain(TcpStream),
}

async fn greet(stream: TcpStream, certificate: &Certificate) -> io::Result<Greeted> {
    let mut first = [0];
    if stream.peek(&mut first).await? > 0 && first[0].is_ascii_uppercase() {
        return Ok(Greeted::Plain(stream));
    }
    let acceptor = TlsAcceptor::from(certificate.config());
    let stream = acceptor.accept(stream).await?;
    Ok(Greeted::Tls(Box::new(stream)))
}

/// Says in words what a closed connection would leave to guessing. No redirect: whoever has sent a token
/// in the clear should notice.
async fn speaks_tls() -> Response {
    let problem = ApiError::new(
        Kind::InvalidRequest,
        "This listener speaks TLS; ask with https://. A token that was sent this way could be read on the \
         network.",
    );
    let mut response = routes::mark(problem.into_response());
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

async fn accept(
    listener: &TcpListener,
    door: &Door,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(&door.connections).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => return Some((stream, remote, permit)),
            Err(error) => {
                tracing::warn!(%error, listener = door.name, "the API could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    remote: SocketAddr,
    router: &Router,
    limits: Limits,
) -> http1::Connection<
    TokioIo<S>,
    impl hyper::service::Service<
        hyper::Request<hyper::body::Incoming>,
        Response = Response,
        Error = Infallible,
        Future: Send,
    > + use<S>,
> {
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
    use std::num::NonZeroU32;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::api::ListenerConfig;

    const HELLO: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    struct Running {
        address: SocketAddr,
        stopping: CancellationToken,
        cut: CancellationToken,
        serving: tokio::task::JoinHandle<()>,
    }

    async fn run(limits: Limits, config: &ListenerConfig) -> Running {
        let door = Arc::new(Door::new("ui", config).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", axum::routing::get(|| async { "hello" }))
            .route("/never", axum::routing::get(std::future::pending::<String>));
        let (stopping, cut) = (CancellationToken::new(), CancellationToken::new());
        let serving = serve(
            listener,
            router,
            limits,
            door,
            stopping.clone(),
            cut.clone(),
        );
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
        let limits = Limits {
            head: Duration::from_millis(50),
            ..Limits::default()
        };
        let running = run(limits, &ListenerConfig::default()).await;
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
        let one = ListenerConfig {
            connections: NonZeroU32::MIN,
            ..ListenerConfig::default()
        };
        let running = run(Limits::default(), &one).await;
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
        let running = run(Limits::default(), &ListenerConfig::default()).await;
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
