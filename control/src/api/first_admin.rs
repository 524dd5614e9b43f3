//! The first start: nobody can come in yet, so an admin token goes into a file that only the
//! server's user can read. The CLI finds it there.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::access::new_token;
use super::model::access::Role;
use crate::clock::UnixMs;
use crate::identity::IssueError;
use crate::store::api_tokens::CreateApiTokenError;
use crate::store::{Store, StoreError};

/// The file's name in the data directory.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";

/// No admin token could be made.
#[derive(Debug, thiserror::Error)]
pub enum FirstAdminError {
    /// The file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// No randomness.
    #[error(transparent)]
    Random(#[from] IssueError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token could not be stored.
    #[error(transparent)]
    Create(#[from] CreateApiTokenError),
}

/// Makes an admin token where there is none. Returns the file if one was written.
pub(crate) async fn ensure(
    store: &Store,
    data_dir: &Path,
    now: UnixMs,
) -> Result<Option<PathBuf>, FirstAdminError> {
    if store.has_lasting_admin().await? {
        return Ok(None);
    }
    let (text, hash) = new_token()?;
    let path = data_dir.join(ADMIN_TOKEN_FILE);
    // The file first: a crash in between leaves a file whose token the next start replaces,
    // never a token that nobody knows.
    write(&path, &text).map_err(|source| FirstAdminError::Io {
        path: path.clone(),
        source,
    })?;
    store
        .create_api_token(hash, "first admin".to_owned(), Role::Admin, now, None)
        .await?;
    Ok(Some(path))
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension("token.new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::File::open(dir)?.sync_all()
}
