//! The API over TLS 1.3: whom the command line trusts, and one connection for each request.
//!
//! ```text
//!   --api https://…   a chain to this machine's authorities, or to those in --ca-file
//!   ready.json        exactly the certificate that the server on this machine was given: it is named for
//!                     its users, not for 127.0.0.1, and the file is as safe as the token beside it
//! ```
//!
//! A command makes a few requests: a pool of connections would gain nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use reqwest::{Body, Request, Response, Url};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore,
    SignatureScheme,
};

use super::client::CONNECT_TIMEOUT;
use crate::fault::{Exit, Fault, chain};

/// Whom the command line trusts to be the API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// Whoever this machine's authorities vouch for, and those in a PEM file.
    Authorities(Option<PathBuf>),
    /// Whoever has the key of the first certificate in this PEM file.
    Shown(PathBuf),
}

/// Sends requests over TLS.
#[derive(Clone)]
pub(super) struct Dialer {
    connector: TlsConnector,
    base: Url,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl Dialer {
    /// For the API at `base`.
    pub(super) fn new(base: Url, trust: &Trust) -> Result<Self, Fault> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| Fault::new(chain(&error)))?;
        let mut config = match trust {
            Trust::Authorities(file) => builder
                .with_root_certificates(authorities(file.as_deref())?)
                .with_no_client_auth(),
            Trust::Shown(file) => {
                let only = Only {
                    certificate: certificates(file)?.swap_remove(0),
                    provider,
                };
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(only))
                    .with_no_client_auth()
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            base,
        })
    }

    /// Sends a request. One with a time-out is answered whole within it; else the body comes as it comes.
    pub(super) async fn send(&self, request: Request) -> Result<Response, Fault> {
        match request.timeout().copied() {
            Some(limit) => tokio::time::timeout(limit, self.whole(request))
                .await
                .unwrap_or_else(|_| Err(self.late())),
            None => {
                let response = self.exchange(request).await?;
                Ok(response.map(Body::wrap).into())
            }
        }
    }

    async fn whole(&self, request: Request) -> Result<Response, Fault> {
        let (head, body) = self.exchange(request).await?.into_parts();
        let body = body.collect().await.map_err(|error| self.broken(&error))?;
        Ok(hyper::Response::from_parts(head, body.to_bytes()).into())
    }

    async fn exchange(
        &self,
        request: Request,
    ) -> Result<hyper::Response<hyper::body::Incoming>, Fault> {
        let mut request =
            hyper::Request::<Body>::try_from(request).map_err(|error| Fault::new(chain(&error)))?;
        let host = HeaderValue::from_str(self.base.authority())
            .map_err(|error| Fault::new(chain(&error)))?;
        request.headers_mut().insert(HOST, host);
        // HTTP/1.1 asks a server for a path, and only proxies for a URL.
        if let Some(path) = request.uri().path_and_query() {
            *request.uri_mut() = path.clone().into();
        }
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect());
        let stream = connected.await.unwrap_or_else(|_| Err(self.late()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        // It ends with its answer; what goes wrong on it, the answer tells.
        tokio::spawn(async move { drop(connection.await) });
        let answer = sender.send_request(request).await;
        answer.map_err(|error| self.broken(&error))
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Fault> {
        let host = self.base.host_str().unwrap_or_default();
        let bare = host.trim_matches(['[', ']']);
        let port = self.base.port_or_known_default().unwrap_or(443);
        let name = ServerName::try_from(bare.to_owned()).map_err(|error| {
            Fault::usage(format_args!("`{host}` cannot be a server's name: {error}"))
        })?;
        let stream = TcpStream::connect((bare, port)).await;
        let stream = stream.map_err(|error| self.broken(&error))?;
        let greeted = self.connector.connect(name, stream).await;
        greeted.map_err(|error| match inner(&error) {
            Some(RustlsError::InvalidCertificate(why)) => self.untrusted(why),
            _ => self.broken(&error),
        })
    }

    fn late(&self) -> Fault {
        self.unreachable(&format!(
            "the server at {} did not answer in time",
            self.base
        ))
    }

    fn broken(&self, error: &dyn std::error::Error) -> Fault {
        let words = chain(error);
        self.unreachable(&format!(
            "cannot reach the server at {}: {words}",
            self.base
        ))
    }

    fn unreachable(&self, what: &str) -> Fault {
        Fault::new(what)
            .advise("is it running, and does it speak TLS there? name another with --api URL")
            .exit(Exit::Unreachable)
    }

    fn untrusted(&self, why: &CertificateError) -> Fault {
        Fault::new(format_args!(
            "the certificate of the server at {} is not trusted: {why}",
            self.base
        ))
        .advise("name the authority that made it with --ca-file or DROVER_CA_FILE, and the server as it is named there")
        .exit(Exit::Unreachable)
    }
}

fn inner(error: &std::io::Error) -> Option<&RustlsError> {
    error.get_ref()?.downcast_ref()
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    // Where there are none, or some cannot be read, a server that needs them is refused with advice.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = file {
        roots.add_parsable_certificates(certificates(file)?);
    }
    Ok(roots)
}

/// The certificates of a PEM file, one at least.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let read = CertificateDer::pem_file_iter(file);
    let read = read.and_then(|all| all.collect::<Result<Vec<_>, _>>());
    let words = match read {
        Ok(all) if !all.is_empty() => return Ok(all),
        Ok(_) => "it holds no certificate".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(
        Fault::usage(format_args!("{} cannot be used: {words}", file.display()))
            .advise("give a file of PEM certificates"),
    )
}

/// Trusts one certificate, whatever names are in it and however old it is.
#[derive(Debug)]
struct Only {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        if shown.as_ref() == self.certificate.as_ref() {
            Ok(ServerCertVerified::assertion())
        } else {
            let other = CertificateError::ApplicationVerificationFailure;
            Err(RustlsError::InvalidCertificate(other))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
