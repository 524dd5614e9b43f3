use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use uuid::Uuid;

use super::super::record::tests::any_record;
use super::*;

/// A disk in memory that can be told to fail.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Platter>>);

#[derive(Default)]
struct Platter {
    bytes: Vec<u8>,
    full: bool,
    sync_fails: bool,
    truncate_fails: bool,
    replaced: usize,
}

impl Disk for Memory {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        if platter.full {
            // A short write before the error, as real file systems do.
            platter.bytes.extend_from_slice(&bytes[..bytes.len() / 2]);
            return Err(io::ErrorKind::StorageFull.into());
        }
        platter.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        match self.0.lock().unwrap().sync_fails {
            true => Err(io::Error::other("EIO")),
            false => Ok(()),
        }
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        if platter.truncate_fails {
            return Err(io::Error::other("EIO"));
        }
        platter.bytes.truncate(usize::try_from(length).unwrap());
        Ok(())
    }
    fn replace(&mut self, content: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        if platter.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        platter.bytes = content.to_vec();
        platter.replaced += 1;
        Ok(())
    }
}

const SALT: [u8; 8] = *b"saltsalt";

fn agent(n: u128) -> AgentId {
    AgentId(Uuid::from_u128(n))
}

fn new_log() -> (Memory, Log<Memory>) {
    let disk = Memory::default();
    let (bytes, _) = fresh_file(SALT, &BTreeMap::new());
    disk.0.lock().unwrap().bytes = bytes.clone();
    let log = Log::new(disk.clone(), read(&bytes).unwrap(), || SALT);
    (disk, log)
}

fn bytes_of(disk: &Memory) -> Vec<u8> {
    disk.0.lock().unwrap().bytes.clone()
}

fn count(n: u64) -> Vec<(AgentId, Vec<Record>)> {
    vec![(agent(1), vec![Record::SessionCount(n)])]
}

/// What the states say; an agent without a record is the same as none.
fn answers(states: &BTreeMap<AgentId, State>) -> Vec<(AgentId, Vec<Record>)> {
    let all = states
        .iter()
        .map(|(agent, state)| (*agent, state.snapshot().collect()));
    all.filter(|(_, records): &(_, Vec<_>)| !records.is_empty())
        .collect()
}

fn any_batches() -> impl Strategy<Value = Vec<Vec<(AgentId, Vec<Record>)>>> {
    let part = (0..3_u128, prop::collection::vec(any_record(), 1..4));
    let part = part.prop_map(|(n, records)| (agent(n), records));
    prop::collection::vec(prop::collection::vec(part, 1..4), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The model: a list of batches. Whatever byte a crash cuts the file at, what comes back is a
    /// whole number of batches, and none that was synced before the cut is missing.
    #[test]
    fn a_crash_at_any_byte_keeps_exactly_the_whole_batches(batches in any_batches()) {
        let (disk, mut log) = new_log();
        let mut ends = vec![(bytes_of(&disk).len(), BTreeMap::new())];
        for batch in &batches {
            log.commit(batch).unwrap();
            ends.push((bytes_of(&disk).len(), log.states.clone()));
        }
        let bytes = bytes_of(&disk);
        for cut in ends[0].0..=bytes.len() {
            let content = read(&bytes[..cut]).unwrap();
            let (length, states) = ends.iter().rev().find(|(end, _)| *end <= cut).unwrap();
            prop_assert_eq!(content.length, *length);
            prop_assert_eq!(&content.states, states);
        }
    }

    #[test]
    fn damage_before_the_last_frame_is_refused_and_in_the_last_one_cut_off(
        batches in any_batches(), at: prop::sample::Index, flip in 1_u8..,
    ) {
        let (disk, mut log) = new_log();
        let mut last = 0;
        for batch in &batches {
            last = bytes_of(&disk).len();
            log.commit(batch).unwrap();
        }
        let mut bytes = bytes_of(&disk);
        let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
        bytes[at] ^= flip;
        match read(&bytes) {
            Ok(content) => prop_assert!(at >= last && content.length == last),
            Err(error) => prop_assert!(at < last, "{error}"),
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes: Vec<u8>, with_header: bool) {
        if with_header {
            let mut file = fresh_file(SALT, &BTreeMap::new()).0;
            file.append(&mut bytes);
            bytes = file;
        }
        drop(read(&bytes));
    }

    #[test]
    fn compaction_keeps_every_answer(batches in any_batches()) {
        let (disk, mut log) = new_log();
        for batch in &batches {
            log.commit(batch).unwrap();
        }
        log.rewrite().unwrap();
        log.commit(&count(1)).unwrap();
        let content = read(&bytes_of(&disk)).unwrap();
        prop_assert_eq!(content.length, bytes_of(&disk).len());
        prop_assert_eq!(answers(&content.states), answers(&log.states));
    }
}

#[test]
fn a_full_disk_refuses_the_batch_and_the_log_goes_on_when_there_is_room() {
    let (disk, mut log) = new_log();
    log.commit(&count(1)).unwrap();
    let before = bytes_of(&disk);
    disk.0.lock().unwrap().full = true;
    assert!(log.commit(&count(2)).is_err());
    assert_eq!(bytes_of(&disk), before, "the half-written frame is cut off");
    assert_eq!(log.state(agent(1)).session_count(), 1);
    disk.0.lock().unwrap().full = false;
    log.commit(&count(3)).unwrap();
    let content = read(&bytes_of(&disk)).unwrap();
    assert_eq!(content.states[&agent(1)].session_count(), 3);
    assert_eq!(disk.0.lock().unwrap().replaced, 0);
}

#[test]
fn after_a_failed_sync_the_file_is_written_anew_before_anything_else() {
    let (disk, mut log) = new_log();
    log.commit(&count(1)).unwrap();
    disk.0.lock().unwrap().sync_fails = true;
    assert!(log.commit(&count(2)).is_err());
    disk.0.lock().unwrap().sync_fails = false;
    log.commit(&count(3)).unwrap();
    assert_eq!(disk.0.lock().unwrap().replaced, 1);
    assert_eq!(
        read(&bytes_of(&disk)).unwrap().states[&agent(1)].session_count(),
        3
    );
}

#[test]
fn a_frame_that_could_not_be_cut_off_is_gone_after_the_next_commit() {
    let (disk, mut log) = new_log();
    {
        let mut platter = disk.0.lock().unwrap();
        (platter.full, platter.truncate_fails) = (true, true);
    }
    assert!(log.commit(&count(2)).is_err());
    disk.0.lock().unwrap().full = false;
    log.commit(&count(3)).unwrap();
    let bytes = bytes_of(&disk);
    assert_eq!(read(&bytes).unwrap().length, bytes.len());
}

#[test]
fn a_file_that_is_mostly_history_is_compacted() {
    let (disk, mut log) = new_log();
    log.consider_at = 2_000;
    for n in 0..200 {
        log.commit(&count(n)).unwrap();
    }
    // COMPACT_BYTES_MIN keeps small files as they are, however often it is considered.
    assert_eq!(disk.0.lock().unwrap().replaced, 0);
    log.length = COMPACT_BYTES_MIN;
    log.consider_at = COMPACT_BYTES_MIN;
    log.commit(&count(200)).unwrap();
    assert_eq!(disk.0.lock().unwrap().replaced, 1);
    assert!(log.length() < 200);
}

#[test]
fn a_foreign_file_is_refused() {
    assert_eq!(read(b"").unwrap_err(), DamageError::Header);
    assert_eq!(read(&[7; 64]).unwrap_err(), DamageError::Header);
}
