//! The agent's memory that survives crashes: what it accepted, how it ended, what it refused.
//!
//! ```text
//!  session ── records ──▶ Appender ──▶ queue ──▶ writer thread ── one frame + fdatasync ──▶ file
//!     ▲                                              │
//!     └──────────────── durable, or why not ◀────────┘
//! ```
//!
//! One file serves many agents (a fleet simulator has ten thousand), so that they share each
//! `fdatasync`; a real agent is the only one in its file. The writer thread keeps the state that is
//! durable ([`State`]) for compaction and for agents that start; sessions keep their own copy. The
//! journal decides nothing: see [`State`] for the rules and `session` for who applies them.

mod crc;
mod log;
mod record;
mod state;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use protocol::ids::AgentId;
use tokio::sync::oneshot;

pub use log::DamageError;
pub use record::Record;
pub use state::{Body, Entry, State, Undo, Verdict};

use crate::files;
use log::{Disk, Log};

/// Batches that wait for the writer thread. Each agent has at most one, so this only limits the
/// size of a fleet in one process.
const QUEUE_MAX: usize = 131_072;
/// Batches that one frame takes.
const GROUP_MAX: usize = 4_096;

/// The journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the journal {} is in use by another agent process; stop that one first", path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("the journal {} cannot be opened: {source}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something that no crash leaves behind.
    #[error(
        "the journal {} cannot be trusted: {source}. It says which operations this machine has \
         run, so nothing is guessed: restore the file, or move it away and look at the \
         operations that were open here (`drover processes list --agent …`) by hand",
        path.display()
    )]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where and how.
        source: DamageError,
    },
}

/// The journal could not be written or asked. Nothing of the batch is durable.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct JournalError(pub String);

enum Job {
    Append(
        AgentId,
        Vec<Record>,
        oneshot::Sender<Result<(), JournalError>>,
    ),
    Load(AgentId, oneshot::Sender<State>),
}

/// An open journal file. Clones share it; the last one closes it when everything is written.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    queue: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Held as long as the journal is open.
    _lock: File,
}

impl Journal {
    /// Opens or makes the journal at `path`, cuts off a torn tail, and starts its writer thread.
    /// Blocks: reads the whole file.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let lock = lock(path)?;
        let disk = FileDisk::open(path).map_err(failed)?;
        let bytes = fs::read(path).map_err(failed)?;
        let content = log::read(&bytes).map_err(|source| OpenError::Damaged {
            path: path.to_owned(),
            source,
        })?;
        let mut disk = disk;
        if content.length < bytes.len() {
            let torn = bytes.len() - content.length;
            tracing::info!(path = %path.display(), torn, "cut a torn write off the journal");
            disk.truncate(content.length as u64).map_err(failed)?;
        }
        disk.file.seek(SeekFrom::End(0)).map_err(failed)?;
        let log = Log::new(disk, content, rand::random);
        let (queue, jobs) = bounded(QUEUE_MAX);
        let writer = thread::Builder::new().name("journal".into());
        let writer = writer.spawn(move || write(log, &jobs)).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                queue: Some(queue),
                writer: Some(writer),
                _lock: lock,
            }),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// What is durable for an agent, after everything that was appended before.
    ///
    /// # Errors
    /// [`JournalError`] when the writer cannot be asked. An empty state must never be assumed then:
    /// it would run operations again.
    pub async fn load(&self, agent: AgentId) -> Result<State, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Load(agent, reply));
        let gone = |_| JournalError("the journal's writer does not answer".into());
        answer.await.map_err(gone)
    }

    /// Makes records durable together. The answer comes after `fdatasync`, in order of the calls.
    pub fn append(
        &self,
        agent: AgentId,
        records: Vec<Record>,
    ) -> oneshot::Receiver<Result<(), JournalError>> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Append(agent, records, reply));
        answer
    }

    fn enqueue(&self, job: Job) {
        let Some(queue) = &self.shared.queue else {
            return;
        };
        if let Err(error) = queue.try_send(job)
            && let Job::Append(_, _, reply) = error.into_inner()
        {
            let full = JournalError("the journal's queue is full".into());
            // A caller that is gone needs no answer.
            drop(reply.send(Err(full)));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the journal's writer thread panicked");
        }
    }
}

/// The writer thread: takes what waits, commits it as one frame, answers.
fn write(mut log: Log<FileDisk>, jobs: &Receiver<Job>) {
    let mut batch = Vec::new();
    let mut replies = Vec::new();
    let mut loads = Vec::new();
    while let Ok(first) = jobs.recv() {
        for job in std::iter::once(first).chain(jobs.try_iter().take(GROUP_MAX)) {
            match job {
                Job::Append(agent, records, reply) => {
                    batch.push((agent, records));
                    replies.push(reply);
                }
                Job::Load(agent, reply) => loads.push((agent, reply)),
            }
        }
        if !batch.is_empty() {
            let result = log.commit(&batch).map_err(|error| {
                tracing::error!(%error, bytes = log.length(), "the journal could not be written");
                JournalError(error.to_string())
            });
            batch.clear();
            for reply in replies.drain(..) {
                drop(reply.send(result.clone()));
            }
        }
        for (agent, reply) in loads.drain(..) {
            drop(reply.send(log.state(agent)));
        }
    }
}

/// Keeps every other process out, also while the journal's file is being replaced.
fn lock(path: &Path) -> Result<File, OpenError> {
    let open = || {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(name)
    };
    let failed = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = open().map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

struct FileDisk {
    path: PathBuf,
    file: File,
}

impl FileDisk {
    /// Opens the file; makes it, with nothing but its header, where there is none.
    fn open(path: &Path) -> io::Result<Self> {
        if !path.try_exists()? {
            let (content, _) = log::fresh_file(rand::random(), &Default::default());
            files::replace(path, &content)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }
}

impl Disk for FileDisk {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.file.seek(SeekFrom::Start(length))?;
        self.file.sync_data()
    }

    fn replace(&mut self, content: &[u8]) -> io::Result<()> {
        files::replace(&self.path, content)?;
        let mut file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        file.seek(SeekFrom::End(0))?;
        self.file = file;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::Epoch;
    use uuid::Uuid;

    use super::*;

    fn agent(n: u128) -> AgentId {
        AgentId(Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_reopening_and_agents_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.log");
        let journal = Journal::open(&path).unwrap();
        for n in 1..=20_u64 {
            let answer = journal.append(agent((n % 2).into()), vec![Record::Epoch(Epoch(n))]);
            assert_eq!(answer.await, Ok(Ok(())));
        }
        assert_eq!(journal.load(agent(1)).await.unwrap().epoch(), Epoch(19));
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.load(agent(0)).await.unwrap().epoch(), Epoch(20));
        assert_eq!(journal.load(agent(1)).await.unwrap().epoch(), Epoch(19));
        assert_eq!(journal.load(agent(7)).await, Ok(State::default()));
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_off_and_damage_is_refused_with_a_way_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.log");
        let journal = Journal::open(&path).unwrap();
        for n in 1..=2 {
            let answer = journal.append(agent(1), vec![Record::SessionCount(n)]);
            answer.await.unwrap().unwrap();
        }
        drop(journal);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.load(agent(1)).await.unwrap().session_count(), 1);
        let answer = journal.append(agent(1), vec![Record::SessionCount(5)]);
        answer.await.unwrap().unwrap();
        drop(journal);
        let mut bytes = fs::read(&path).unwrap();
        bytes[45] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(error.to_string().contains("damaged at byte 20"), "{error}");
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.log");
        let _first = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(OpenError::InUse { .. })));
    }
}
