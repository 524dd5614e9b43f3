use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::*;

fn log(folder: &Path, files: u32, file_bytes: u64) -> Log {
    let config = LogConfig {
        files,
        file_bytes,
        ..LogConfig::default()
    };
    Log::new(folder, config)
}

/// The interval that begins at second `at`: `count` times of 1, 2, 3, … milliseconds.
fn batch(at: u64, tag: &str, count: u64) -> Batch {
    let mut times = Times::new();
    for milliseconds in 1..=count {
        times.record(Duration::from_millis(milliseconds));
    }
    let cells = Cells::since(None, times.histogram(), times.sum_us());
    Batch {
        from: UnixMs(at * 1000),
        to: UnixMs(at * 1000 + 10_000),
        counted: cells
            .map(|cells| (tag.to_owned(), cells))
            .into_iter()
            .collect(),
    }
}

fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("histograms/histograms-{number:06}.hlog"))
}

/// Begin of each interval and how many it counted, by tag; every line must be whole.
fn read(path: &Path) -> BTreeMap<String, Vec<(u64, u64)>> {
    let text = fs::read(path).unwrap();
    let mut all = BTreeMap::<String, Vec<(u64, u64)>>::new();
    for entry in IntervalLogIterator::new(&text) {
        if let LogEntry::Interval(line) = entry.unwrap() {
            let bytes = STANDARD.decode(line.encoded_histogram()).unwrap();
            let histogram: Histogram<u64> = Deserializer::new()
                .deserialize(&mut bytes.as_slice())
                .unwrap();
            assert_eq!(line.duration(), Duration::from_secs(10));
            let tag = line.tag().unwrap().as_str().to_owned();
            let found = (line.start_timestamp().as_secs(), histogram.len());
            all.entry(tag).or_default().push(found);
        }
    }
    all
}

#[test]
fn intervals_are_appended_under_one_header_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = log(dir.path(), 3, 1 << 20);
    first.write(&batch(1000, "handshake", 5));
    first.write(&batch(1010, "api:GET:/v1/agents/{id}", 2));
    // Nothing was counted: no line, no file.
    first.write(&batch(1020, "handshake", 0));
    log(dir.path(), 3, 1 << 20).write(&batch(1030, "handshake", 7));
    let file = path(dir.path(), 1);
    let found = read(&file);
    assert_eq!(found["handshake"], [(1000, 5), (1030, 7)]);
    assert_eq!(found["api:GET:/v1/agents/{id}"], [(1010, 2)]);
    let text = fs::read_to_string(file).unwrap();
    assert!(text.starts_with("#[Histogram log format version 1.3]\n"));
    assert_eq!(text.matches("#[StartTime: 1000.000 ").count(), 1);
}

#[test]
fn a_full_file_is_followed_by_another_and_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = log(dir.path(), 2, 600);
    for second in (0..100).step_by(10) {
        log.write(&batch(second, "handshake", 5));
    }
    let numbers = log.numbers().unwrap();
    assert_eq!(numbers.len(), 2);
    assert!(numbers[0] > 1);
    let mut begins = Vec::new();
    for number in numbers {
        let file = log.path(number);
        assert!(fs::metadata(&file).unwrap().len() <= 600);
        begins.extend(read(&file)["handshake"].iter().map(|(begin, _)| *begin));
    }
    assert_eq!(begins.last(), Some(&90));
    assert!(
        begins.is_sorted_by(|one, next| one + 10 == *next),
        "{begins:?}"
    );
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = log(dir.path(), 1, 1);
    fs::create_dir(dir.path().join("histograms")).unwrap();
    let foreign = ["notes.txt", "histograms-1.hlog", "histograms-x.hlog"];
    for name in foreign {
        fs::write(dir.path().join("histograms").join(name), "mine").unwrap();
    }
    for second in [10, 20, 30] {
        log.write(&batch(second, "handshake", 1));
    }
    assert_eq!(log.numbers().unwrap(), [3]);
    for name in foreign {
        let text = fs::read_to_string(dir.path().join("histograms").join(name)).unwrap();
        assert_eq!(text, "mine");
    }
}

#[test]
fn a_line_that_was_torn_anywhere_is_cut_and_nothing_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(dir.path(), 1);
    let mut log = log(dir.path(), 3, 1 << 20);
    log.write(&batch(10, "handshake", 5));
    let one = fs::read(&file).unwrap();
    log.write(&batch(20, "handshake", 6));
    let two = fs::read(&file).unwrap();
    for length in 0..two.len() {
        fs::write(&file, &two[..length]).unwrap();
        log.write(&batch(30, "handshake", 7));
        let found = read(&file);
        let expected: &[_] = match length {
            _ if length < one.len() => &[(30, 7)],
            _ => &[(10, 5), (30, 7)],
        };
        assert_eq!(found["handshake"], expected, "torn at {length}");
    }
    // Longer than any line: it is nothing of ours, and stays.
    let noise = vec![b'x'; usize::try_from(LINE_BYTES_MAX).unwrap() + 2];
    fs::write(&file, &noise).unwrap();
    log.write(&batch(40, "handshake", 8));
    assert_eq!(fs::read(&file).unwrap(), noise);
    assert_eq!(read(&path(dir.path(), 2))["handshake"], [(40, 8)]);
}

#[test]
fn what_cannot_be_written_is_dropped_and_what_comes_later_is_not() {
    let dir = tempfile::tempdir().unwrap();
    // A file where the folder should be: it cannot be made.
    let folder = dir.path().join("histograms");
    fs::write(&folder, "in the way").unwrap();
    let mut log = log(dir.path(), 3, 1 << 20);
    log.write(&batch(10, "handshake", 5));
    assert!(log.failing);
    fs::remove_file(&folder).unwrap();
    log.write(&batch(20, "handshake", 6));
    assert!(!log.failing);
    assert_eq!(read(&path(dir.path(), 1))["handshake"], [(20, 6)]);
}
