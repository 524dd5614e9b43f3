//! The journal's file: frames of records, one frame for each group commit.
//!
//! ```text
//! header (20)  "DROVERJ1" · salt (8, random) · crc32c
//! frame        "FRAM" · payload length u32 · sequence u64 · crc32c(salt, sequence, payload) · payload
//! payload      records, see record.rs
//! ```
//!
//! A frame is durable as a whole or not at all, and only the last one can be torn: the next is
//! written after `fdatasync`. So a bad frame with nothing valid behind it is a torn tail (nobody has
//! been told of it; it is cut off), and a bad frame with a valid one behind it is damage (refused: the
//! agent must not guess what it promised). The salt keeps bytes of older files, and payloads that
//! happen to look like frames, from being taken for frames.

use std::collections::BTreeMap;
use std::io;

use protocol::ids::AgentId;

use super::crc::crc32c;
use super::record::Record;
use super::state::State;

const MAGIC: &[u8; 8] = b"DROVERJ1";
const MARKER: &[u8; 4] = b"FRAM";
const HEADER_BYTES: usize = 20;
const FRAME_HEADER_BYTES: usize = 20;
/// Payload bytes after which a frame takes no further record.
const FRAME_BYTES_SOFT_MAX: usize = 1 << 20;
/// No frame has more than the soft maximum and one batch of records.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// Below this size a file is not worth rewriting.
const COMPACT_BYTES_MIN: u64 = 8 << 20;
/// A file is rewritten when it is this many times as large as what is alive in it.
const COMPACT_FACTOR: u64 = 4;

/// What a log does to its disk. A trait so that tests can have disks that fail.
pub(super) trait Disk: Send + 'static {
    /// Writes at the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `length` bytes, durably.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Puts `content` in the place of the file: durably, and whole or not at all.
    fn replace(&mut self, content: &[u8]) -> io::Result<()>;
}

/// The file's content cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageError {
    /// The first bytes are not a journal's.
    #[error("it does not begin like a journal of this version")]
    Header,
    /// A frame in the middle is damaged.
    #[error("it is damaged at byte {offset}, and what was written later is not")]
    Middle {
        /// Where.
        offset: usize,
    },
    /// A frame's checksum is right and its records make no sense.
    #[error("the records at byte {offset} make no sense: {problem}")]
    Records {
        /// Where.
        offset: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// What a file's bytes hold.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) states: BTreeMap<AgentId, State>,
    salt: [u8; 8],
    sequence: u64,
    /// Bytes up to the end of the last whole frame.
    pub(super) length: usize,
}

/// The bytes of a file that holds `states` and nothing else.
pub(super) fn fresh_file(salt: [u8; 8], states: &BTreeMap<AgentId, State>) -> (Vec<u8>, u64) {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&salt);
    out.extend_from_slice(&crc32c(&[MAGIC, &salt]).to_le_bytes());
    let mut sequence = 0;
    let mut payload = Vec::new();
    for (agent, state) in states {
        for record in state.snapshot() {
            record.encode(*agent, &mut payload);
            if payload.len() >= FRAME_BYTES_SOFT_MAX {
                sequence += 1;
                put_frame(salt, sequence, &payload, &mut out);
                payload.clear();
            }
        }
    }
    if !payload.is_empty() {
        sequence += 1;
        put_frame(salt, sequence, &payload, &mut out);
    }
    (out, sequence)
}

fn put_frame(salt: [u8; 8], sequence: u64, payload: &[u8], out: &mut Vec<u8>) {
    let sequence = sequence.to_le_bytes();
    out.extend_from_slice(MARKER);
    // Batches are far below 4 GiB: see FRAME_BYTES_MAX.
    out.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    out.extend_from_slice(&sequence);
    out.extend_from_slice(&crc32c(&[&salt, &sequence, payload]).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Reads a file.
pub(super) fn read(bytes: &[u8]) -> Result<Content, DamageError> {
    let header = bytes
        .first_chunk::<HEADER_BYTES>()
        .ok_or(DamageError::Header)?;
    let salt: [u8; 8] = std::array::from_fn(|at| header[8 + at]);
    if !header.starts_with(MAGIC) || header[16..] != crc32c(&[MAGIC, &salt]).to_le_bytes() {
        return Err(DamageError::Header);
    }
    let mut content = Content {
        states: BTreeMap::new(),
        salt,
        sequence: 0,
        length: HEADER_BYTES,
    };
    while content.length < bytes.len() {
        let offset = content.length;
        let Some((sequence, payload)) = frame_at(&bytes[offset..], salt) else {
            // Torn, unless anything valid lies behind it.
            let mut behind =
                (offset + 1..bytes.len()).filter(|at| bytes[*at..].starts_with(MARKER));
            return match behind.any(|at| frame_at(&bytes[at..], salt).is_some()) {
                true => Err(DamageError::Middle { offset }),
                false => Ok(content),
            };
        };
        if sequence != content.sequence + 1 {
            return Err(DamageError::Middle { offset });
        }
        let mut records = payload;
        while !records.is_empty() {
            let (agent, record) = Record::decode(&mut records).map_err(|error| {
                let problem = error.0;
                DamageError::Records { offset, problem }
            })?;
            content.states.entry(agent).or_default().apply(&record);
        }
        content.sequence = sequence;
        content.length = offset + FRAME_HEADER_BYTES + payload.len();
    }
    Ok(content)
}

/// The whole and valid frame at the front of `bytes`: its sequence number and payload.
fn frame_at(bytes: &[u8], salt: [u8; 8]) -> Option<(u64, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
    let (marker, fields) = header.split_first_chunk::<4>()?;
    let (length, fields) = fields.split_first_chunk::<4>()?;
    let (sequence, crc) = fields.split_first_chunk::<8>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if marker != MARKER || length > FRAME_BYTES_MAX {
        return None;
    }
    let payload = rest.get(..length)?;
    (crc == crc32c(&[&salt, sequence, payload]).to_le_bytes())
        .then(|| (u64::from_le_bytes(*sequence), payload))
}

/// An open file and the states that are durable in it.
pub(super) struct Log<D> {
    disk: D,
    salt: [u8; 8],
    sequence: u64,
    length: u64,
    states: BTreeMap<AgentId, State>,
    /// The file's end is not known any more: only a rewrite helps.
    uncertain: bool,
    /// Compaction is considered when the file is this long.
    consider_at: u64,
    /// Makes salts.
    random: fn() -> [u8; 8],
}

impl<D: Disk> Log<D> {
    /// Continues a file whose content was read with [`read`] and cut to `content.length`.
    pub(super) fn new(disk: D, content: Content, random: fn() -> [u8; 8]) -> Self {
        Self {
            disk,
            salt: content.salt,
            sequence: content.sequence,
            length: content.length as u64,
            states: content.states,
            uncertain: false,
            consider_at: COMPACT_BYTES_MIN,
            random,
        }
    }

    /// What is durable for an agent.
    pub(super) fn state(&self, agent: AgentId) -> State {
        self.states.get(&agent).cloned().unwrap_or_default()
    }

    /// Bytes in the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Makes a batch durable, whole or not at all.
    ///
    /// # Errors
    /// The operating system's; nothing of the batch is then durable, and the log goes on with the
    /// next batch.
    pub(super) fn commit(&mut self, batch: &[(AgentId, Vec<Record>)]) -> io::Result<()> {
        if self.uncertain {
            self.rewrite()?;
        } else if self.worth_rewriting()
            && let Err(error) = self.rewrite()
        {
            tracing::warn!(%error, "the journal could not be compacted; it goes on as it is");
            self.consider_at = self.length.saturating_mul(2);
        }
        let mut payload = Vec::new();
        for (agent, records) in batch {
            for record in records {
                record.encode(*agent, &mut payload);
            }
        }
        let mut frame = Vec::with_capacity(payload.len() + FRAME_HEADER_BYTES);
        put_frame(self.salt, self.sequence + 1, &payload, &mut frame);
        let synced = match self.disk.append(&frame) {
            Ok(()) => self.disk.sync().inspect_err(|_| self.uncertain = true),
            Err(error) => Err(error),
        };
        if let Err(error) = synced {
            // A part of the frame may stand there; it must not come back after a restart. After a
            // failed sync the kernel may also have dropped pages that were dirty before
            // (fsync(2)), so that the file is only trusted again when it was written anew.
            if self.disk.truncate(self.length).is_err() {
                self.uncertain = true;
            }
            return Err(error);
        }
        self.sequence += 1;
        self.length += frame.len() as u64;
        for (agent, records) in batch {
            let state = self.states.entry(*agent).or_default();
            for record in records {
                state.apply(record);
            }
        }
        Ok(())
    }

    /// Whether most of the file is history. The sum is only made each time the file has doubled.
    fn worth_rewriting(&mut self) -> bool {
        if self.length < self.consider_at {
            return false;
        }
        let live: u64 = self.states.values().map(State::live_bytes).sum();
        let wanted = (live * COMPACT_FACTOR).max(COMPACT_BYTES_MIN);
        self.consider_at = wanted;
        self.length >= wanted
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let salt = (self.random)();
        let (content, sequence) = fresh_file(salt, &self.states);
        self.disk.replace(&content)?;
        self.salt = salt;
        self.sequence = sequence;
        self.length = content.len() as u64;
        self.uncertain = false;
        self.consider_at = (self.length * COMPACT_FACTOR).max(COMPACT_BYTES_MIN);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
