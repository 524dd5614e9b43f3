//! Who the agent is: its key, its certificate, the roots that it believes, and its place.
//!
//! One file, `identity.json` (0600, in a directory of 0700), replaced as a whole: there is no moment
//! in which a new key stands beside an old certificate.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::ids::{AgentId, GroupId, Slot};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::files;

/// The file's name in the state directory.
pub const FILE_NAME: &str = "identity.json";
/// The form of the file.
const FORMAT: u32 = 1;

/// An agent's identity.
#[derive(Debug)]
pub struct Identity {
    /// Its name.
    pub agent: AgentId,
    /// Its group.
    pub group: GroupId,
    /// Its group's slot, as last heard.
    pub slot: Slot,
    /// The trust domain.
    pub domain: String,
    /// Its private key (P-256, PKCS #8).
    pub key: PrivatePkcs8KeyDer<'static>,
    /// Its certificate and the intermediate, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Roots of its gateways.
    pub roots: Vec<CertificateDer<'static>>,
    /// `host:port` of gateways, as last heard.
    pub addresses: Vec<String>,
}

/// The identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error(
        "{} has no identity yet: run `drover agent join` with a token from `drover tokens create`",
        dir.display()
    )]
    Missing {
        /// The state directory.
        dir: PathBuf,
    },
    /// Others can read the private key.
    #[error("{} can be read by others (mode {mode:04o}): run `chmod 600` on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file's content is not an identity.
    #[error("{} is damaged ({problem}): join again with --force", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    agent: AgentId,
    group: GroupId,
    slot: Slot,
    domain: String,
    key: String,
    chain: String,
    roots: String,
    addresses: Vec<String>,
}

impl Identity {
    /// Whether the state directory holds one.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE_NAME).exists()
    }

    /// Reads the identity in a state directory.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(FILE_NAME);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::Missing {
                dir: dir.to_owned(),
            },
            _ => IdentityError::Io {
                path: path.clone(),
                source,
            },
        };
        let mode = fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path, mode });
        }
        let text = fs::read_to_string(&path).map_err(failed)?;
        Self::from_json(&text).map_err(|problem| IdentityError::Damaged { path, problem })
    }

    /// Writes the identity into a state directory, in the place of an earlier one.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE_NAME);
        let written = files::private_dir(dir)
            .and_then(|()| self.to_json().map_err(io::Error::other))
            .and_then(|json| files::replace(&path, json.as_bytes()));
        written.map_err(|source| IdentityError::Io { path, source })
    }

    /// The private key for TLS.
    pub fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(&Stored {
            format: FORMAT,
            agent: self.agent,
            group: self.group,
            slot: self.slot,
            domain: self.domain.clone(),
            key: to_pem("PRIVATE KEY", self.key.secret_pkcs8_der()),
            chain: self
                .chain
                .iter()
                .map(|der| to_pem("CERTIFICATE", der))
                .collect(),
            roots: self
                .roots
                .iter()
                .map(|der| to_pem("CERTIFICATE", der))
                .collect(),
            addresses: self.addresses.clone(),
        })
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let stored: Stored = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if stored.format != FORMAT {
            let found = stored.format;
            return Err(format!("format {found}, this agent reads format {FORMAT}"));
        }
        let certificates = |name: &str, pem: &str| {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
            match read {
                Ok(certificates) if !certificates.is_empty() => Ok(certificates),
                Ok(_) => Err(format!("`{name}` is empty")),
                Err(error) => Err(format!("`{name}`: {error}")),
            }
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(stored.key.as_bytes());
        Ok(Self {
            agent: stored.agent,
            group: stored.group,
            slot: stored.slot,
            domain: stored.domain,
            key: key.map_err(|error| format!("`key`: {error}"))?,
            chain: certificates("chain", &stored.chain)?,
            roots: certificates("roots", &stored.roots)?,
            addresses: stored.addresses,
        })
    }
}

/// PEM (RFC 7468).
fn to_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn identity() -> Identity {
        Identity {
            agent: AgentId(Uuid::from_u128(1)),
            group: GroupId(Uuid::from_u128(2)),
            slot: Slot(7),
            domain: "cloud.example".into(),
            key: vec![1; 130].into(),
            chain: vec![vec![2; 100].into(), vec![3; 48].into()],
            roots: vec![vec![4; 10].into()],
            addresses: vec!["a:1".into()],
        }
    }

    #[test]
    fn an_identity_survives_its_file_which_nobody_else_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert!(matches!(
            Identity::load(&state),
            Err(IdentityError::Missing { .. })
        ));
        identity().save(&state).unwrap();
        let back = Identity::load(&state).unwrap();
        assert_eq!((back.agent, back.slot), (identity().agent, Slot(7)));
        assert_eq!((back.key, back.chain), (identity().key, identity().chain));
        assert_eq!(back.addresses, ["a:1"]);
        let path = state.join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::load(&state).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn damaged_files_say_what_is_wrong() {
        let good = identity().to_json().unwrap();
        assert!(Identity::from_json(&good).is_ok());
        for (bad, word) in [
            ("{}".to_owned(), "missing field"),
            (good.replace("\"format\": 1", "\"format\": 2"), "format 2"),
            (good.replace("BEGIN CERTIFICATE", "BEGIN X"), "chain"),
            (good.replace("PRIVATE KEY", "KEY"), "key"),
        ] {
            let error = Identity::from_json(&bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
