//! The identity on disk.
//!
//! ```text
//!   identity/          0700   made under another name and renamed: whole or absent
//!     identity.json    0600   format, trust domain
//!     root.pem         0600   certificates …
//!     gateway-ca.pem
//!     agent-ca.pem
//!     process-ca.pem
//!     root.key         0600   … and their keys (PKCS #8, PEM)
//!     gateway-ca.key
//!     agent-ca.key
//!     process-ca.key
//!     secrets.json     0600   what gateways keep across restarts
//! ```
//!
//! An identity that is older than process servers on machines of their own has no `process-ca.pem`: it is made
//! when such an identity is opened.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use super::GatewaySecrets;
use super::authority::{Authority, IssueError, Purpose, fill_random};
use crate::clock::UnixMs;

const FORMAT: u32 = 1;
const MANIFEST: &str = "identity.json";
const SECRETS: &str = "secrets.json";
pub(super) const ROOT: &str = "root";
pub(super) const GATEWAY_CA: &str = "gateway-ca";
pub(super) const AGENT_CA: &str = "agent-ca";
pub(super) const PROCESS_CA: &str = "process-ca";
/// No file here is near this; a larger one is not ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The identity could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a trust domain.
    #[error(
        "`{0}` is not a trust domain: use lower-case letters, digits, `-`, `_` and `.`, such as \
         cloud.example"
    )]
    Domain(String),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
    /// Nothing is there.
    #[error(
        "there is no deployment's identity in {}: it is made by the deployment's first start of `drover serve` \
         with any profile but agent-server; its other servers with a store have a copy",
        .0.display()
    )]
    Missing(PathBuf),
    /// Nothing is there, and it is made elsewhere.
    #[error(
        "there is no agent server's identity in {}: make one with `drover identity agent-server DIR` where the \
         deployment's identity is, and move that folder here",
        .0.display()
    )]
    NotExported(PathBuf),
    /// Something is there already.
    #[error("{} is there already: name a folder that is not", .0.display())]
    Exists(PathBuf),
    /// An agent server's certificate has ended.
    #[error(
        "the certificate in {} has ended: make another identity with `drover identity agent-server DIR` where the \
         deployment's identity is, and put it in this one's place",
        .0.display()
    )]
    Ended(PathBuf),
    /// Some files are there and some are not.
    #[error(
        "the identity in {} is incomplete: `{missing}` is missing. Restore the directory from a \
         backup; or, to begin a new deployment in which every agent must join again, remove it",
        dir.display()
    )]
    Incomplete {
        /// The identity's directory.
        dir: PathBuf,
        /// The first file that is missing.
        missing: String,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}. Restore the identity directory from a backup", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Others can read or write the secrets.
    #[error(
        "{} has mode {mode:03o}: others could read the deployment's keys. Run `chmod go-rwx {}`, \
         and think of the keys as known if others had access",
        path.display(),
        path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The deployment has another trust domain.
    #[error(
        "the identity in {} is for the domain `{stored}`, the configuration says `{asked}`: set the \
         domain back, or use another data directory for another deployment",
        dir.display()
    )]
    OtherDomain {
        /// The identity's directory.
        dir: PathBuf,
        /// The identity's domain.
        stored: String,
        /// The configured domain.
        asked: String,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// The identity as loaded.
pub(super) struct Stored {
    pub(super) domain: String,
    pub(super) root: Authority,
    pub(super) gateways: Authority,
    pub(super) agents: Authority,
    /// `None` in an identity that is older than they are.
    pub(super) process_servers: Option<Authority>,
    pub(super) secrets: GatewaySecrets,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    domain: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretsFile {
    cid_key: String,
    reset_key: String,
    token_key: String,
}

/// Loads the identity; `None` where there is none (no directory, or an empty one).
pub(super) fn load(dir: &Path) -> Result<Option<Stored>, IdentityError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(dir)(error)),
    };
    if entries.take(1).next().is_none() {
        return Ok(None);
    }
    check_mode(dir)?;
    let domain = load_manifest(dir, MANIFEST)?;
    let root = load_authority(dir, ROOT)?;
    let gateways = load_authority(dir, GATEWAY_CA)?;
    let agents = load_authority(dir, AGENT_CA)?;
    let process_servers = match dir.join(format!("{PROCESS_CA}.pem")).exists() {
        true => Some(load_authority(dir, PROCESS_CA)?),
        false => None,
    };
    for (name, authority) in [
        (GATEWAY_CA, Some(&gateways)),
        (AGENT_CA, Some(&agents)),
        (PROCESS_CA, process_servers.as_ref()),
    ] {
        if authority.is_some_and(|authority| !root.signed(authority.certificate())) {
            return Err(IdentityError::Damaged {
                path: dir.join(format!("{name}.pem")),
                problem: "it was not signed by the root in root.pem".to_owned(),
            });
        }
    }
    Ok(Some(Stored {
        domain,
        root,
        gateways,
        agents,
        process_servers,
        secrets: load_secrets(dir)?,
    }))
}

/// Gives an older identity what it lacks. The key comes first: one without its certificate has signed nothing,
/// and is replaced.
pub(super) fn add_process_servers(
    dir: &Path,
    root: &Authority,
    now: UnixMs,
) -> Result<Authority, IdentityError> {
    let made = root.intermediate(Purpose::ProcessServer, &random_name()?, now)?;
    let key = pem("PRIVATE KEY", made.key().serialized_der());
    replace(dir, &format!("{PROCESS_CA}.key"), key.as_bytes())?;
    replace_certificate(dir, PROCESS_CA, made.certificate())?;
    Ok(made)
}

/// Makes a new identity and puts it in place whole.
pub(super) fn create(dir: &Path, domain: &str, now: UnixMs) -> Result<Stored, IdentityError> {
    let stored = make(domain, &random_name()?, now)?;
    place(dir, |draft| write_all(draft, &stored))?;
    Ok(stored)
}

/// Eight digits that tell one deployment, or one draft, from others.
fn random_name() -> Result<String, IdentityError> {
    let mut name = [0; 4];
    fill_random(&mut name)?;
    Ok(format!("{:08x}", u32::from_be_bytes(name)))
}

/// Makes a directory under another name, of mode 0700, lets it be filled, and puts it in place whole.
pub(super) fn place(
    dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), IdentityError>,
) -> Result<(), IdentityError> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(io_error(&parent))?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let draft = parent.join(format!(".{name}.{}.new", random_name()?));
    let made = DirBuilder::new().mode(0o700).create(&draft);
    made.map_err(io_error(&draft))?;
    let written = fill(&draft).and_then(|()| {
        sync_dir(&draft)?;
        // An empty directory is replaced; one that another process filled meanwhile is not.
        fs::rename(&draft, dir).map_err(io_error(dir))?;
        sync_dir(&parent)
    });
    if let Err(error) = written {
        // The first error is the one to tell; a draft left behind holds keys that nobody uses.
        drop(fs::remove_dir_all(&draft));
        return Err(error);
    }
    Ok(())
}

/// Puts a renewed certificate in the place of an old one.
pub(super) fn replace_certificate(
    dir: &Path,
    name: &str,
    certificate: &CertificateDer<'_>,
) -> Result<(), IdentityError> {
    let text = pem("CERTIFICATE", certificate);
    replace(dir, &format!("{name}.pem"), text.as_bytes())
}

/// Puts a file in the place of an old one, whole.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let draft = dir.join(format!("{name}.new"));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(&draft)(error));
        }
        _ => {}
    }
    write_file(&draft, bytes)?;
    fs::rename(&draft, &path).map_err(io_error(&path))?;
    sync_dir(dir)
}

fn make(domain: &str, deployment: &str, now: UnixMs) -> Result<Stored, IdentityError> {
    let root = Authority::root(deployment, now)?;
    let gateways = root.intermediate(Purpose::Gateway, deployment, now)?;
    let agents = root.intermediate(Purpose::Agent, deployment, now)?;
    let process_servers = Some(root.intermediate(Purpose::ProcessServer, deployment, now)?);
    let mut secrets = GatewaySecrets {
        cid_key: [0; 16],
        reset_key: [0; 64],
        token_key: [0; 64],
    };
    fill_random(&mut secrets.cid_key)?;
    fill_random(&mut secrets.reset_key)?;
    fill_random(&mut secrets.token_key)?;
    Ok(Stored {
        domain: domain.to_owned(),
        root,
        gateways,
        agents,
        process_servers,
        secrets,
    })
}

fn write_all(draft: &Path, stored: &Stored) -> Result<(), IdentityError> {
    for (name, authority) in [
        (ROOT, Some(&stored.root)),
        (GATEWAY_CA, Some(&stored.gateways)),
        (AGENT_CA, Some(&stored.agents)),
        (PROCESS_CA, stored.process_servers.as_ref()),
    ] {
        let Some(authority) = authority else { continue };
        write_certificate(draft, name, authority.certificate())?;
        let key = pem("PRIVATE KEY", authority.key().serialized_der());
        write_file(&draft.join(format!("{name}.key")), key.as_bytes())?;
    }
    write_secrets(draft, &stored.secrets)?;
    write_manifest(draft, MANIFEST, &stored.domain)
}

pub(super) fn write_certificate(
    dir: &Path,
    name: &str,
    certificate: &CertificateDer<'_>,
) -> Result<(), IdentityError> {
    let text = pem("CERTIFICATE", certificate);
    write_file(&dir.join(format!("{name}.pem")), text.as_bytes())
}

pub(super) fn write_secrets(dir: &Path, secrets: &GatewaySecrets) -> Result<(), IdentityError> {
    let secrets = SecretsFile {
        cid_key: STANDARD.encode(secrets.cid_key),
        reset_key: STANDARD.encode(secrets.reset_key),
        token_key: STANDARD.encode(secrets.token_key),
    };
    write_json(&dir.join(SECRETS), &secrets)
}

pub(super) fn write_manifest(dir: &Path, name: &str, domain: &str) -> Result<(), IdentityError> {
    let manifest = Manifest {
        format: FORMAT,
        domain: domain.to_owned(),
    };
    write_json(&dir.join(name), &manifest)
}

/// Reads a manifest: the domain in it.
pub(super) fn load_manifest(dir: &Path, name: &str) -> Result<String, IdentityError> {
    let manifest: Manifest = read_json(dir, name)?;
    if manifest.format != FORMAT {
        return Err(IdentityError::Damaged {
            path: dir.join(name),
            problem: format!(
                "it has format {}, this program knows format {FORMAT}",
                manifest.format
            ),
        });
    }
    Ok(manifest.domain)
}

fn load_authority(dir: &Path, name: &str) -> Result<Authority, IdentityError> {
    let certificate_name = format!("{name}.pem");
    let key_name = format!("{name}.key");
    let damaged = |file: &str, problem: String| IdentityError::Damaged {
        path: dir.join(file),
        problem,
    };
    let certificate = CertificateDer::from_pem_slice(&read(dir, &certificate_name)?)
        .map_err(|_| damaged(&certificate_name, "it is not a PEM certificate".to_owned()))?;
    let key = std::str::from_utf8(&read(dir, &key_name)?)
        .ok()
        .and_then(|text| KeyPair::from_pem(text).ok())
        .ok_or_else(|| damaged(&key_name, "it is not a PEM private key".to_owned()))?;
    Authority::from_parts(certificate, key)
        .map_err(|problem| damaged(&certificate_name, problem.to_string()))
}

pub(super) fn load_secrets(dir: &Path) -> Result<GatewaySecrets, IdentityError> {
    fn decode<const N: usize>(
        dir: &Path,
        name: &str,
        text: &str,
    ) -> Result<[u8; N], IdentityError> {
        STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| IdentityError::Damaged {
                path: dir.join(SECRETS),
                problem: format!("`{name}` is not {N} bytes in base64"),
            })
    }
    let file: SecretsFile = read_json(dir, SECRETS)?;
    Ok(GatewaySecrets {
        cid_key: decode(dir, "cid_key", &file.cid_key)?,
        reset_key: decode(dir, "reset_key", &file.reset_key)?,
        token_key: decode(dir, "token_key", &file.token_key)?,
    })
}

pub(super) fn read(dir: &Path, name: &str) -> Result<Vec<u8>, IdentityError> {
    let path = dir.join(name);
    let size = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(IdentityError::Incomplete {
                dir: dir.to_owned(),
                missing: name.to_owned(),
            });
        }
        Err(error) => return Err(io_error(&path)(error)),
    };
    check_mode(&path)?;
    if size > FILE_BYTES_MAX {
        return Err(IdentityError::Damaged {
            path,
            problem: format!("it has {size} bytes, far more than Drover wrote"),
        });
    }
    fs::read(&path).map_err(io_error(&path))
}

fn read_json<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<T, IdentityError> {
    serde_json::from_slice(&read(dir, name)?).map_err(|error| IdentityError::Damaged {
        path: dir.join(name),
        problem: error.to_string(),
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), IdentityError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(io::Error::from)
        .map_err(io_error(path))?;
    text.push(b'\n');
    write_file(path, &text)
}

/// Writes a new file that only its owner can read, and waits until it is on the disk.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io_error(path))
}

fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error(dir))
}

pub(super) fn check_mode(path: &Path) -> Result<(), IdentityError> {
    let mode = fs::metadata(path)
        .map_err(io_error(path))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(IdentityError::Exposed {
            path: path.to_owned(),
            mode,
        })
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { path, source }
}

/// RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for start in (0..body.len()).step_by(64) {
        text.push_str(&body[start..body.len().min(start + 64)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
