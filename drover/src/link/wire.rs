//! What both sides of the link between machines share: QUIC and TLS settings, frames of a stream, and why a
//! connection is over. docs/PROTOCOL.md §17 has the protocol.

#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;

use bytes::Bytes;
use control::identity::{GatewayTls, ProcessServerTls};
use protocol::close::CloseCode;
use protocol::frame::{DecodeError, EncodeError, FrameBuffer};
use protocol::limits::{
    FRAME_BYTES_MAX, HANDSHAKE_DEADLINE, LINK_IDLE_TIMEOUT, LINK_KEEP_ALIVE, LINK_WINDOW_BYTES,
};
use protocol::link::ALPN_LINK;
use protocol::version::NoCommonVersion;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, IdleTimeout, ReadError, RecvStream, ServerConfig,
    TransportConfig, VarInt, WriteError,
};
use rustls::RootCertStore;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;

/// Bytes taken from a stream at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Newcomers that wait for their first TLS work.
const INCOMING_MAX: usize = 64;
/// Events or requests are written in pieces of about so many bytes.
pub(super) const PIECE_BYTES: usize = 256 << 10;

/// The TLS of the link cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A certificate or its key.
    #[error(
        "the certificate of this server, its key or a root of the other side cannot be used: {0}"
    )]
    Material(#[from] rustls::Error),
    /// The roots.
    #[error("the roots of the other side's certificates cannot be used: {0}")]
    Roots(#[from] VerifierBuilderError),
    /// The library.
    #[error("the TLS library lacks the cipher suite that QUIC starts with: {0}")]
    Suite(#[from] NoInitialCipherSuite),
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// It is gone.
    #[error("the connection is gone: {0}")]
    Connection(#[from] ConnectionError),
    /// Its stream cannot be read.
    #[error("nothing more can be read: {0}")]
    Read(#[from] ReadError),
    /// Its stream cannot be written.
    #[error("nothing more can be written: {0}")]
    Write(#[from] WriteError),
    /// A frame is not valid.
    #[error("a frame of the other side could not be read: {0}")]
    Decode(#[from] DecodeError),
    /// A frame of our own is not valid.
    #[error("a word of our own cannot be sent: {0}")]
    Encode(#[from] EncodeError),
    /// The stream ended.
    #[error("the other side ended its stream")]
    Ended,
    /// A valid frame at the wrong time.
    #[error("the other side said something at the wrong time")]
    Unexpected,
    /// No common version.
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
    /// It did not say who it is in time.
    #[error("the other side said nothing for {} s", HANDSHAKE_DEADLINE.as_secs())]
    Silent,
    /// A lock service says that nobody is there, and it does not say otherwise.
    #[error("it does not answer, and the lock service says that it is gone")]
    Doubted,
    /// The hub took it for hung.
    #[error("this process server did not come to read for 10 s while others did")]
    CutOff,
    /// There are too many.
    #[error("this agent server has as many process servers as it may have")]
    TooMany,
}

impl Broken {
    /// What the other side is told.
    fn code(&self) -> CloseCode {
        match self {
            Self::Connection(_) | Self::Read(_) | Self::Write(_) | Self::Ended | Self::Doubted => {
                CloseCode::Normal
            }
            Self::Decode(_) => CloseCode::BadFrame,
            Self::Encode(_) => CloseCode::InternalError,
            Self::Unexpected => CloseCode::UnexpectedFrame,
            Self::Version(_) => CloseCode::VersionMismatch,
            Self::Silent => CloseCode::HelloTimeout,
            Self::CutOff => CloseCode::LimitExceeded,
            Self::TooMany => CloseCode::Overloaded,
        }
    }

    /// Closes the connection, and says why.
    pub(super) fn close(&self, connection: &Connection) {
        let code = VarInt::from_u32(self.code().to_wire());
        connection.close(code, self.to_string().as_bytes());
    }
}

/// Closes a connection in order.
pub(super) fn close(connection: &Connection, code: CloseCode) {
    connection.close(
        VarInt::from_u32(code.to_wire()),
        code.to_string().as_bytes(),
    );
}

/// The agent server's side: whoever comes must show a process server's certificate.
pub(super) fn server_config(
    tls: &GatewayTls,
    process_roots: &[CertificateDer<'static>],
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(process_roots)?, Arc::clone(&provider))
            .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(tls.chain.clone(), tls.key.clone_key())?;
    config.alpn_protocols = vec![ALPN_LINK.to_vec()];
    // A resumed session would skip the check of the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    config
        .transport_config(Arc::new(transport(1)))
        .migration(false)
        .max_incoming(INCOMING_MAX);
    Ok(config)
}

/// The process server's side: it believes gateways alone.
pub(super) fn client_config(tls: ProcessServerTls) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(
        roots(&tls.gateway_roots)?,
        Arc::clone(&provider),
    )
    .build()?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(tls.chain, tls.key)?;
    config.alpn_protocols = vec![ALPN_LINK.to_vec()];
    config.resumption = Resumption::disabled();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    config.transport_config(Arc::new(transport(0)));
    Ok(config)
}

fn roots(of: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in of {
        roots.add(root.clone())?;
    }
    Ok(Arc::new(roots))
}

/// `streams` that the other side may open: the process server opens the only one.
fn transport(streams: u32) -> TransportConfig {
    // A few million: it fits.
    let window = VarInt::try_from(LINK_WINDOW_BYTES).unwrap_or(VarInt::MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(window)
        .receive_window(window)
        .send_window(window.into_inner())
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(LINK_KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(LINK_IDLE_TIMEOUT).ok());
    config
}

/// The frames of a stream, one after the other.
pub(super) struct Frames {
    stream: RecvStream,
    buffer: FrameBuffer,
}

impl Frames {
    pub(super) fn of(stream: RecvStream) -> Self {
        Self {
            stream,
            buffer: FrameBuffer::default(),
        }
    }

    /// The next one, without its size prefix; `None`: the stream has ended in order.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            if let Some(frame) = self.buffer.next_frame(FRAME_BYTES_MAX)? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(CHUNK_BYTES, true).await? {
                Some(chunk) => self.buffer.push(&chunk.bytes),
                None if self.buffer.buffered() == 0 => return Ok(None),
                None => return Err(Broken::Ended),
            }
        }
    }
}
