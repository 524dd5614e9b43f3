//! Connections to receivers: the name is looked up, every address is checked, and the connection is
//! made to one of those that were checked.
//!
//! TLS trusts what this machine trusts (rustls-native-certs) rather than a list inside the binary:
//! receivers inside a company often have certificates of its own authority, which its machines
//! know, and roots are withdrawn with the system's updates instead of with ours.
//! `webhooks.ca_file` adds to them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::address::Policy;
use super::target;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// One address gets so long; the attempt as a whole has its own limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// DNS.
    #[error("the name `{host}` cannot be resolved: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No address at all.
    #[error("the name `{0}` has no address")]
    NoAddress(String),
    /// The server must not be sent there.
    #[error(
        "`{host}` leads to {address}, {what}: not connected; webhooks go to public addresses only, \
         unless `webhooks.allow_insecure = true`"
    )]
    NotPublic {
        /// The name.
        host: String,
        /// Where it leads.
        address: IpAddr,
        /// What that is.
        what: &'static str,
    },
    /// TCP.
    #[error("cannot connect to {address}: {source}")]
    Tcp {
        /// Where to.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS.
    #[error("no TLS 1.3 session with `{host}`: {source}")]
    Tls {
        /// Who was expected.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// Nothing to check certificates with.
    #[error("{0}")]
    Roots(String),
    /// Cannot happen: URLs are checked.
    #[error("the URL cannot be connected to")]
    Url,
}

/// Makes connections; clones share the roots.
#[derive(Clone)]
pub(crate) struct Connector {
    policy: Policy,
    /// On top of the machine's.
    extra_roots: Arc<Vec<CertificateDer<'static>>>,
    /// Read at the first use: most deployments have no webhooks.
    tls: Arc<OnceCell<Arc<ClientConfig>>>,
}

impl Connector {
    pub(crate) fn new(policy: Policy, extra_roots: Vec<CertificateDer<'static>>) -> Self {
        Self {
            policy,
            extra_roots: Arc::new(extra_roots),
            tls: Arc::default(),
        }
    }

    async fn connect(self, uri: Uri) -> Result<Stream, ConnectError> {
        let host = target::host(&uri).ok_or(ConnectError::Url)?;
        let tcp = tcp(host, target::port(&uri), self.policy).await?;
        // Messages are written whole.
        drop(tcp.set_nodelay(true));
        if uri.scheme_str() == Some("http") {
            return Ok(Stream::Plain(TokioIo::new(tcp)));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Url)?;
        let config = self.tls.get_or_try_init(|| async {
            let extra = Arc::clone(&self.extra_roots);
            let read = tokio::task::spawn_blocking(move || client_config(&extra)).await;
            read.unwrap_or_else(|error| Err(ConnectError::Roots(error.to_string())))
        });
        let tls = TlsConnector::from(Arc::clone(config.await?));
        let stream = tls.connect(name, tcp).await;
        let stream = stream.map_err(|source| ConnectError::Tls {
            host: host.to_owned(),
            source,
        })?;
        Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
    }
}

/// A connection to the first address of `host` that may be reached and can be.
async fn tcp(host: &str, port: u16, policy: Policy) -> Result<TcpStream, ConnectError> {
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|source| ConnectError::Resolve {
        host: host.to_owned(),
        source,
    })?;
    let mut last = ConnectError::NoAddress(host.to_owned());
    let mut tried = 0;
    for address in found {
        if let Err(what) = policy.check(address.ip()) {
            last = ConnectError::NotPublic {
                host: host.to_owned(),
                address: address.ip(),
                what,
            };
            continue;
        }
        if tried == ADDRESSES_MAX {
            break;
        }
        tried += 1;
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
        let connected = connected.await.unwrap_or_else(|_| {
            let words = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, words))
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(source) => last = ConnectError::Tcp { address, source },
        }
    }
    Err(last)
}

fn client_config(extra: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, ConnectError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of this machine's trusted certificates cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs.into_iter().chain(extra.iter().cloned()));
    if roots.is_empty() {
        return Err(ConnectError::Roots(
            "this machine has no trusted certificates; install ca-certificates, or set \
             `webhooks.ca_file`, and restart the server"
                .to_owned(),
        ));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| ConnectError::Roots(error.to_string()))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Stream, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.clone().connect(uri).boxed()
    }
}

/// A connection, with TLS or without.
pub(crate) enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
