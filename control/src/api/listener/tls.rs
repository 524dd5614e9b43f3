//! The certificate that a listener shows: read, checked, and read again when its files change.
//!
//! ```text
//!   files ─▶ read whole ─▶ chain and key belong together ─▶ shown to connections that come
//!     ▲                          └ no: said once; what was shown stays
//!     └ looked at every 10 s, and when asked (SIGHUP)
//! ```
//!
//! A connection keeps what it was greeted with: a change cuts nobody off. Certificate and key are two
//! files, and whoever renews them writes one after the other: so a change that nobody asked for is
//! judged only when two looks in a row have seen the same.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{Error as RustlsError, ServerConfig};
use tokio_util::sync::CancellationToken;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::clock::{self, UnixMs};

/// How often files are looked at. Renewals come weeks before they are needed.
pub(in crate::api) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A larger file is no certificate and no key.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a listener's certificate and key are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// PEM: the server's own certificate first, then the intermediates.
    pub certificate: PathBuf,
    /// PEM: the private key of the first certificate, not encrypted.
    pub key: PathBuf,
}

/// Why a certificate and a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}; name a file that the server's user may read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// A file is not PEM, or holds nothing of what is looked for.
    #[error("{} holds no {wanted} in PEM; {advice}", path.display())]
    Nothing {
        /// Which file.
        path: PathBuf,
        /// What is looked for.
        wanted: &'static str,
        /// What to give instead.
        advice: &'static str,
    },
    /// The key belongs to another certificate.
    #[error(
        "the key in {} is not that of the first certificate in {}; give the key that this certificate was \
         made for, and put the server's own certificate before its intermediates",
        files.key.display(), files.certificate.display()
    )]
    OtherKey {
        /// The two files.
        files: TlsFiles,
    },
    /// TLS cannot be spoken with them for another reason.
    #[error(
        "{} and {} cannot be used: {words}; give an X.509 certificate with an RSA, ECDSA or Ed25519 key",
        files.certificate.display(), files.key.display()
    )]
    Unusable {
        /// The two files.
        files: TlsFiles,
        /// What is wrong with them.
        words: String,
    },
}

/// Both files as they were at one look.
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
        })
    }

    fn hash(&self) -> Seen {
        let mut hash = Sha256::new();
        hash.update(self.certificate.len().to_le_bytes());
        hash.update(&self.certificate);
        hash.update(&self.key);
        Seen::Files(hash.finalize().into())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let whole = || -> io::Result<Vec<u8>> {
        // Opening a pipe would wait for a writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut bytes = Vec::new();
        File::open(path)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
            return Err(io::Error::other("it is larger than 1 MiB"));
        }
        Ok(bytes)
    };
    whole().map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// What new connections are greeted with.
struct Shown {
    config: Arc<ServerConfig>,
    expires: UnixMs,
}

impl Shown {
    fn of(files: &TlsFiles, pair: &Pair) -> Result<Self, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pair.certificate)
            .collect::<Result<_, _>>()
            .unwrap_or_default();
        let Some(first) = chain.first() else {
            return Err(TlsError::Nothing {
                path: files.certificate.clone(),
                wanted: "certificate",
                advice: "give the server's own certificate, then its intermediates",
            });
        };
        let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|_| TlsError::Nothing {
            path: files.key.clone(),
            wanted: "private key",
            advice: "give one that is not encrypted (PKCS #8, PKCS #1 or SEC 1)",
        })?;
        let unusable = |words: String| TlsError::Unusable {
            files: files.clone(),
            words,
        };
        let (_, parsed) = X509Certificate::from_der(first).map_err(|e| unusable(e.to_string()))?;
        let expires = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(error.to_string()))?;
        let config = builder.with_no_client_auth().with_single_cert(chain, key);
        let mut config = config.map_err(|error| match error {
            RustlsError::InconsistentKeys(_) => TlsError::OtherKey {
                files: files.clone(),
            },
            other => unusable(other.to_string()),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            expires: UnixMs(expires.saturating_mul(1000)),
        })
    }
}

/// What a look has seen.
#[derive(Clone, PartialEq, Eq)]
enum Seen {
    Files([u8; 32]),
    /// They could not be read, for this reason.
    Nothing(String),
}

struct State {
    shown: Shown,
    /// What was judged last, well or badly.
    judged: Seen,
    /// What the look before this one has seen.
    last: Seen,
}

/// The certificate of one listener, which may change while it serves.
pub(in crate::api) struct Certificate {
    listener: &'static str,
    files: TlsFiles,
    state: Mutex<State>,
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(in crate::api) fn open(listener: &'static str, files: TlsFiles) -> Result<Self, TlsError> {
        let pair = Pair::read(&files)?;
        let shown = Shown::of(&files, &pair)?;
        warn_of_end(listener, &files, shown.expires);
        let seen = pair.hash();
        Ok(Self {
            listener,
            files,
            state: Mutex::new(State {
                shown,
                judged: seen.clone(),
                last: seen,
            }),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// What a new connection is greeted with.
    pub(in crate::api) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.state().shown.config)
    }

    /// When the certificate that is shown ends.
    pub(in crate::api) fn expires(&self) -> UnixMs {
        self.state().shown.expires
    }

    /// Changes that were taken, and that were refused, since the start.
    pub(in crate::api) fn changes(&self) -> [u64; 2] {
        [&self.taken, &self.refused].map(|count| count.load(Ordering::Relaxed))
    }

    /// Looks at the files every `every`, and at once whenever `asked` changes, until `stopping`.
    pub(in crate::api) async fn keep(
        self: Arc<Self>,
        every: Duration,
        mut asked: watch::Receiver<u64>,
        stopping: CancellationToken,
    ) {
        loop {
            let asked = tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(every) => false,
                changed = asked.changed() => match changed {
                    Ok(()) => true,
                    // Nobody is left who could ask.
                    Err(_) => return,
                },
            };
            let this = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || this.look(asked)).await;
            if let Err(error) = looked {
                tracing::error!(%error, listener = self.listener, "the look at a certificate failed");
            }
        }
    }

    /// Looks once. Unless somebody `asked`, a change is judged when it is seen the second time.
    fn look(&self, asked: bool) {
        let pair = Pair::read(&self.files);
        let seen = match &pair {
            Ok(pair) => pair.hash(),
            Err(error) => Seen::Nothing(error.to_string()),
        };
        {
            let mut state = self.state();
            let settled = state.last == seen;
            state.last = seen.clone();
            if !asked && (state.judged == seen || !settled) {
                return;
            }
            state.judged = seen;
        }
        match pair.and_then(|pair| Shown::of(&self.files, &pair)) {
            Ok(shown) => {
                warn_of_end(self.listener, &self.files, shown.expires);
                self.state().shown = shown;
                self.taken.fetch_add(1, Ordering::Relaxed);
                tracing::info!(
                    listener = self.listener,
                    file = %self.files.certificate.display(),
                    "new connections are greeted with the certificate that was read just now"
                );
            }
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    listener = self.listener,
                    %error,
                    "the listener goes on with the certificate it has: the new one cannot be used"
                );
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It is served all the same: refusing would take the whole server down, and clients say it as well.
fn warn_of_end(listener: &'static str, files: &TlsFiles, expires: UnixMs) {
    if expires <= clock::now() {
        tracing::warn!(
            listener,
            file = %files.certificate.display(),
            "the certificate has expired and clients will refuse it: put a new one in its place"
        );
    }
}

#[cfg(test)]
mod tests;
