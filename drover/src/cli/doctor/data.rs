//! The data directory: whose it is, where it lies, and whether somebody else could read its secrets.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::check::{Check, Status};
use crate::cli::top::format::bytes;
use crate::data_dir::{self, Ready};

/// Where the server keeps its data, and whether one runs there.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) in_use: io::Result<bool>,
    pub(super) ready: Option<Ready>,
}

impl Place {
    pub(super) fn look(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            in_use: data_dir::is_in_use(path),
            ready: data_dir::read_ready(path),
        }
    }

    /// Whether a server runs there, as far as that can be told.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self.in_use, Ok(true))
    }

    /// The server that runs and is ready.
    pub(super) fn server(&self) -> Option<&Ready> {
        self.ready.as_ref().filter(|_| self.is_in_use())
    }
}

/// Everything about the directory. `store`: the store's file, wherever it lies, and its bytes.
pub(super) fn checks(place: &Place, store: Option<(&Path, u64)>) -> Vec<Check> {
    let mut checks = vec![server(place)];
    let metadata = match std::fs::metadata(&place.path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            checks.push(absent(&place.path));
            checks.extend(lies_on(nearest(&place.path), 0));
            return checks;
        }
        Err(error) => {
            checks.push(as_owner(&place.path, &error));
            return checks;
        }
    };
    let directory = directory(&place.path, &metadata);
    let is_ours = directory.status == Status::Ok;
    checks.push(directory);
    let (file, store_bytes) = store.unwrap_or((&place.path, 0));
    checks.extend(lies_on(file, store_bytes));
    let mut files = Vec::new();
    match collect(&place.path, 2, &mut files) {
        Ok(()) => {
            files.extend(store.map(|(file, _)| file.to_owned()));
            checks.push(secrets(&place.path, &metadata, &files));
        }
        Err(error) if is_ours => checks.push(as_owner(&place.path, &error)),
        // Why it cannot be read has been said.
        Err(_) => {}
    }
    checks
}

fn server(place: &Place) -> Check {
    let ours = env!("CARGO_PKG_VERSION");
    match (&place.in_use, &place.ready) {
        (Err(error), _) => Check::failure(
            "server",
            format!("cannot look at the lock: {error}"),
            "run this as the owner of the data directory",
        ),
        (Ok(true), Some(ready)) if ready.version != ours => Check::warning(
            "server",
            format!(
                "version {} runs (process id {}), and this is {ours}",
                ready.version, ready.pid
            ),
            "restart the server, or look with the version that runs",
        ),
        (Ok(true), Some(ready)) => Check::ok(
            "server",
            format!("runs, process id {}, {}", ready.pid, reached(ready)),
        ),
        (Ok(true), None) => Check::warning(
            "server",
            "one holds the data directory and is not ready: it starts or stops",
            "look again in a moment; if it stays so, the server's log says why",
        ),
        (Ok(false), Some(ready)) => Check::warning(
            "server",
            format!(
                "none runs; the one with process id {} ended without order",
                ready.pid
            ),
            "start it again: nothing accepted is lost",
        ),
        (Ok(false), None) => Check::ok("server", "none runs on this data directory"),
    }
}

/// Where a server can be reached, by whoever comes to it first.
fn reached(ready: &Ready) -> String {
    match (&ready.api, &ready.agents) {
        (Some(api), _) => format!("API {api}"),
        (None, Some(agents)) => format!("agents {agents}"),
        (None, None) => format!("profile {}", ready.profile),
    }
}

/// The directory, or what of its path is there.
fn nearest(path: &Path) -> &Path {
    let parents = path.ancestors().skip(1);
    let mut there = parents.filter(|parent| parent.exists());
    // A relative path ends in nothing, which is the working directory.
    there.next().unwrap_or(Path::new("."))
}

fn absent(path: &Path) -> Check {
    let parent = nearest(path);
    match rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Check::ok(
            "data.directory",
            format!(
                "{} is not there yet: the first start makes it",
                path.display()
            ),
        ),
        Err(error) => Check::failure(
            "data.directory",
            format!(
                "{} is not there, and {} cannot be written: {error}",
                path.display(),
                parent.display()
            ),
            format!("install -d -m 700 -o USER {}", path.display()),
        ),
    }
}

fn as_owner(path: &Path, error: &io::Error) -> Check {
    Check::failure(
        "data.directory",
        format!("{} cannot be read: {error}", path.display()),
        "run this as the server's user or as root",
    )
}

fn directory(path: &Path, metadata: &Metadata) -> Check {
    let (name, shown) = ("data.directory", path.display());
    let mode = metadata.permissions().mode() & 0o7777;
    let owner = metadata.uid();
    if !metadata.is_dir() {
        let advice = "name a directory with --data-dir or data_dir";
        return Check::failure(name, format!("{shown} is not a directory"), advice);
    }
    let holds_something = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    // The start makes an empty one private by itself.
    if mode & 0o077 != 0 && holds_something {
        return Check::failure(
            name,
            format!("{shown} can be read or written by other users (mode {mode:04o})"),
            format!("chmod 700 {shown}; it holds the keys of the fleet"),
        );
    }
    match rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Check::ok(name, format!("{shown}, mode {mode:04o}, of uid {owner}")),
        Err(rustix::io::Errno::ROFS) => Check::failure(
            name,
            format!("{shown} lies on a file system that is mounted read-only"),
            "mount it for writing; `dmesg` says whether the kernel did this after an error of the disk",
        ),
        Err(error) => Check::failure(
            name,
            format!("{shown} cannot be written: {error}"),
            format!("run this and the server as its owner, uid {owner}"),
        ),
    }
}

// ——— where it lies ———

/// What a kind of file system means for a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keeps {
    /// Locks and fsync may not do what they say.
    Network,
    /// Perhaps.
    Unknown,
    /// Until the machine or the container is restarted.
    ForNow,
}

/// Kinds of file systems that are not a local disk's (linux/magic.h).
const KINDS: [(u64, &str, Keeps); 14] = [
    (0x6969, "nfs", Keeps::Network),
    (0x517b, "smb", Keeps::Network),
    (0xff53_4d42, "cifs", Keeps::Network),
    (0xfe53_4d42, "smb2", Keeps::Network),
    (0x00c3_6400, "ceph", Keeps::Network),
    (0x0bd0_0bd0, "lustre", Keeps::Network),
    (0x4750_4653, "gpfs", Keeps::Network),
    (0x7461_636f, "ocfs2", Keeps::Network),
    (0x0116_1970, "gfs2", Keeps::Network),
    (0x5346_414f, "afs", Keeps::Network),
    (0x0102_1997, "9p", Keeps::Network),
    (0x6573_5546, "fuse", Keeps::Unknown),
    (0x0102_1994, "tmpfs", Keeps::ForNow),
    (0x794c_7630, "overlay", Keeps::ForNow),
];

/// The file system and its room.
fn lies_on(path: &Path, store_bytes: u64) -> Vec<Check> {
    let looked = rustix::fs::statfs(path).and_then(|kind| Ok((kind, rustix::fs::statvfs(path)?)));
    let (kind, room) = match looked {
        Ok(looked) => looked,
        Err(error) => return vec![as_owner(path, &error.into())],
    };
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    // Some file systems have no fixed number of files and say 0 of 0.
    let files = (room.f_files > 0).then_some(room.f_favail);
    let magic = u64::try_from(kind.f_type).unwrap_or(0);
    vec![file_system(magic), space(free, files, store_bytes)]
}

fn file_system(magic: u64) -> Check {
    let name = "data.file_system";
    let known = KINDS.iter().find(|(of, _, _)| *of == magic);
    let Some((_, kind, keeps)) = known else {
        return Check::ok(name, format!("of a local disk (type {magic:#x})"));
    };
    match keeps {
        Keeps::Network => Check::failure(
            name,
            format!("{kind}: its locks and its fsync are not safe for the store"),
            "put the data directory on a disk of this machine, or on a block device of its own",
        ),
        Keeps::Unknown => Check::warning(
            name,
            format!("{kind}: only the program behind it knows whether locks and fsync hold"),
            "put the data directory on a file system of the kernel's, such as ext4 or xfs",
        ),
        Keeps::ForNow => Check::warning(
            name,
            format!("{kind}: everything is gone when the machine or the container is"),
            "put the data directory on a disk, or mount a volume there",
        ),
    }
}

/// Less than this is what the store's log alone may take in a burst.
const FREE_LEAST: u64 = 64 << 20;
/// With less than this a busy day may fill it; a copy of the store, for backups, comes on top.
const FREE_GOOD: u64 = 1 << 30;

fn space(free: u64, files: Option<u64>, store_bytes: u64) -> Check {
    let name = "data.space";
    let good = FREE_GOOD.saturating_add(store_bytes);
    let found = format!("{} free", bytes(free));
    if files == Some(0) {
        let found = format!("{found}, but the file system takes no more files");
        return Check::failure(
            name,
            found,
            "remove files there: `df -i` shows how many there are",
        );
    }
    match free {
        free if free < FREE_LEAST => Check::failure(
            name,
            found,
            format!(
                "make room now, {} at least: without it nothing is accepted any more",
                bytes(good)
            ),
        ),
        free if free < good => Check::warning(
            name,
            found,
            format!(
                "make room for {}: a busy day and one copy of the store; retention.processes bounds its growth",
                bytes(good)
            ),
        ),
        _ => Check::ok(name, found),
    }
}

// ——— who may read it ———

/// Every file and directory below, `depth` levels deep.
fn collect(directory: &Path, depth: u32, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        files.push(entry.path());
        if depth > 1 && entry.file_type()?.is_dir() {
            collect(&entry.path(), depth - 1, files)?;
        }
    }
    Ok(())
}

/// Whether a file holds what others may not know: see docs/OPERATIONS.md, Files.
fn is_secret(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let inside = file
        .parent()
        .is_some_and(|parent| parent.ends_with("identity"));
    inside || name == "identity" || name == "admin.token" || name.contains(".db")
}

fn secrets(directory: &Path, of: &Metadata, files: &[PathBuf]) -> Check {
    let (name, shown) = ("data.secrets", directory.display());
    let mut secret = 0;
    for file in files {
        // What was removed meanwhile (a log that was folded in) is no matter.
        let Ok(metadata) = std::fs::symlink_metadata(file) else {
            continue;
        };
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.uid() != of.uid() {
            let (stranger, owner) = (metadata.uid(), of.uid());
            return Check::failure(
                name,
                format!(
                    "{} belongs to uid {stranger}, the directory to uid {owner}",
                    file.display()
                ),
                format!("chown -R {owner} {shown}; start nothing there as another user"),
            );
        }
        if is_secret(file) && mode & 0o077 != 0 && !metadata.is_symlink() {
            return Check::failure(
                name,
                format!("{} can be read by others (mode {mode:04o})", file.display()),
                format!(
                    "chmod -R go-rwx {shown}; think of its secrets as known if others had access"
                ),
            );
        }
        secret += u32::from(is_secret(file));
    }
    Check::ok(
        name,
        format!("{secret} files and folders with secrets, for their owner alone"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn find(checks: &[Check], name: &str) -> Check {
        let found = checks.iter().find(|check| check.name == name);
        found
            .unwrap_or_else(|| panic!("no {name}: {checks:?}"))
            .clone()
    }

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn look(path: &Path) -> Vec<Check> {
        checks(&Place::look(path), None)
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_no_trouble_and_is_not_made() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let found = find(&look(&path), "data.directory");
        assert_eq!(found.status, Status::Ok, "{found:?}");
        assert!(!parent.path().join("a").exists());
    }

    #[test]
    fn secrets_that_others_can_read_are_found_each_in_its_place() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let identity = path.join("identity");
        std::fs::create_dir_all(&identity).unwrap();
        for directory in [&path, &identity] {
            mode(directory, 0o700);
        }
        let files = [
            path.join("admin.token"),
            path.join("drover.db-wal"),
            identity.join("root.key"),
        ];
        for file in &files {
            std::fs::write(file, "x").unwrap();
            mode(file, 0o600);
        }
        std::fs::write(path.join("ready.json"), "x").unwrap();
        assert_eq!(find(&look(&path), "data.secrets").status, Status::Ok);
        for file in &files {
            mode(file, 0o640);
            let check = find(&look(&path), "data.secrets");
            assert_eq!(check.status, Status::Failure);
            assert!(check.found.contains(&*file.to_string_lossy()), "{check:?}");
            mode(file, 0o600);
        }
        mode(&path, 0o750);
        let check = find(&look(&path), "data.directory");
        assert_eq!(check.status, Status::Failure);
        assert!(check.advice.unwrap().starts_with("chmod 700 "));
    }

    #[test]
    fn a_server_that_crashed_is_told_from_one_that_never_was() {
        let parent = tempfile::tempdir().unwrap();
        assert_eq!(find(&look(parent.path()), "server").status, Status::Ok);
        let ready = r#"{"api":"http://127.0.0.1:1","agents":"127.0.0.1:2","admin_token_file":"t","data_dir":"d","pid":4711,"profile":"all","version":"0"}"#;
        std::fs::write(parent.path().join("ready.json"), ready).unwrap();
        let check = find(&look(parent.path()), "server");
        assert_eq!(check.status, Status::Warning);
        assert!(
            check.found.contains("4711 ended without order"),
            "{check:?}"
        );
    }

    #[test]
    fn network_file_systems_are_refused_and_short_lived_ones_warned_of() {
        let status = |magic| file_system(magic).status;
        assert_eq!(status(0x6969), Status::Failure, "nfs");
        assert_eq!(status(0xff53_4d42), Status::Failure, "cifs");
        assert_eq!(status(0x0102_1994), Status::Warning, "tmpfs");
        assert_eq!(status(0xef53), Status::Ok, "ext4");
        assert_eq!(status(0x5846_5342), Status::Ok, "xfs");
    }

    #[test]
    fn room_is_judged_with_a_copy_of_the_store_in_mind() {
        let status = |free, files, store| space(free, files, store).status;
        assert_eq!(status(FREE_LEAST - 1, None, 0), Status::Failure);
        assert_eq!(status(FREE_LEAST, None, 0), Status::Warning);
        assert_eq!(status(FREE_GOOD, None, 0), Status::Ok);
        assert_eq!(status(FREE_GOOD, None, 1), Status::Warning);
        assert_eq!(status(u64::MAX, Some(0), 0), Status::Failure);
        assert_eq!(status(u64::MAX, Some(1), 0), Status::Ok);
    }
}
