//! Histograms on disk: interval logs of HdrHistogram, V2, which its standard tools read.
//!
//! ```text
//!   DATA/histograms/histograms-000016.hlog   full
//!   DATA/histograms/histograms-000017.hlog   a line for each name and interval, appended
//! ```
//!
//! Lines are appended whole. What a crash or a full disk left of a line is cut off before the next one
//! is written. Nothing here is worth stopping for: what cannot be written is logged once and dropped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::Times;
use super::history::Cells;
use crate::clock::UnixMs;

/// The folder in the data directory.
const FOLDER: &str = "histograms";
/// What a torn line can have at most; a whole one has a few KiB.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// How histograms are written to disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// A line for each name is written this often; at least a second.
    pub interval: Duration,
    /// Files that are kept; the oldest goes when another is begun. None: nothing is written.
    pub files: u32,
    /// A file of this size is full.
    pub file_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            files: 8,
            file_bytes: 16 << 20,
        }
    }
}

/// What was counted in an interval, by tag.
pub(super) struct Batch {
    pub(super) from: UnixMs,
    pub(super) to: UnixMs,
    pub(super) counted: Vec<(String, Cells)>,
}

/// The files.
pub(crate) struct Log {
    folder: PathBuf,
    config: LogConfig,
    failing: bool,
}

impl Log {
    pub(crate) fn new(data_dir: &Path, config: LogConfig) -> Self {
        Self {
            folder: data_dir.join(FOLDER),
            config,
            failing: false,
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.config.interval
    }

    /// Writes an interval; says once when that fails, and once when it works again.
    pub(super) fn write(&mut self, batch: &Batch) {
        match self.append(batch) {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("histograms are written to disk again");
            }
            Ok(()) => {}
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(
                    %error,
                    folder = %self.folder.display(),
                    "histograms could not be written to disk; they are dropped until they can, and \
                     nothing else suffers: look at the disk's room and the folder's rights"
                );
            }
            Err(_) => {}
        }
    }

    fn append(&self, batch: &Batch) -> io::Result<()> {
        if batch.counted.is_empty() {
            return Ok(());
        }
        let mut bytes = lines(batch)?;
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let (mut file, at) = match self.newest()? {
            Some((number, mut file)) => {
                let at = cut_torn(&mut file)?;
                if at > 0 && at.saturating_add(size) > self.config.file_bytes {
                    (self.begin(number + 1)?, 0)
                } else {
                    (file, at)
                }
            }
            None => (self.begin(1)?, 0),
        };
        if at == 0 {
            bytes.splice(..0, header(batch.from)?);
        }
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&bytes).inspect_err(|_| {
            // No half of it stays; if even this fails, the next writer cuts it.
            drop(file.set_len(at));
        })
    }

    /// The file that was begun last, to read and write.
    fn newest(&self) -> io::Result<Option<(u64, File)>> {
        let Some(number) = self.numbers()?.pop() else {
            return Ok(None);
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(number))?;
        Ok(Some((number, file)))
    }

    /// Begins a file and deletes what is too old.
    fn begin(&self, number: u64) -> io::Result<File> {
        let mut numbers = self.numbers()?;
        numbers.push(number);
        let kept = usize::try_from(self.config.files.max(1)).unwrap_or(usize::MAX);
        for old in &numbers[..numbers.len().saturating_sub(kept)] {
            fs::remove_file(self.path(*old))?;
        }
        File::create_new(self.path(number))
    }

    /// Numbers of all files, rising; makes the folder.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        fs::create_dir_all(&self.folder)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| {
                let number = name.strip_prefix("histograms-")?.strip_suffix(".hlog")?;
                number.parse::<u64>().ok()
            });
            // Only names that we would give: others are not ours to delete.
            numbers.extend(number.filter(|number| self.path(*number).ends_with(&name)));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("histograms-{number:06}.hlog"))
    }
}

/// Cuts off what is left of a line at the end of a file; how long the file is then. A file that does
/// not look like ours is left alone, as a full one.
fn cut_torn(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut last = [0];
    if length > 0 {
        file.seek(SeekFrom::Start(length - 1))?;
        file.read_exact(&mut last)?;
    }
    if length == 0 || last == *b"\n" {
        return Ok(length);
    }
    let start = length.saturating_sub(LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let whole = match end.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => start + u64::try_from(at + 1).unwrap_or(0),
        None if start == 0 => 0,
        None => return Ok(u64::MAX),
    };
    file.set_len(whole)?;
    tracing::info!("cut a torn line off the newest file of histograms");
    Ok(whole)
}

/// The first lines of a file that begins with this interval.
fn header(from: UnixMs) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let at = std::time::UNIX_EPOCH + Duration::from_millis(from.0);
    IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(
            "Drover: times in microseconds; a tag for each histogram, as in docs/OPERATIONS.md",
        )
        .with_start_time(at)
        .begin_log_with(&mut bytes, &mut V2DeflateSerializer::new())?;
    Ok(bytes)
}

fn lines(batch: &Batch) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new().begin_log_with(&mut bytes, &mut serializer)?;
    let (from, length) = (
        Duration::from_millis(batch.from.0),
        batch.from.until(batch.to),
    );
    for (tag, cells) in &batch.counted {
        let mut times = Times::new();
        cells.add_to(&mut times);
        writer
            .write_histogram(times.histogram(), from, length, Tag::new(tag))
            .map_err(io::Error::other)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
