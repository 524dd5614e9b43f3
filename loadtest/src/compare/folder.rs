//! A comparison on disk: `machine.txt`, `comparison.json`, `round_trips.hlog`, `report.html` and
//! plots in a dated folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};

use super::Options;
use super::model::{Comparison, HistogramBlob};
use crate::report::{self, replace};

/// Where a comparison is written.
pub(super) struct Folder {
    path: Option<PathBuf>,
    json: Option<PathBuf>,
}

impl Folder {
    /// Makes the dated folder, where one was asked for.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make(options: &Options, comparison: &Comparison) -> anyhow::Result<Self> {
        let name = format!("{}-{}", comparison.date, options.name);
        let path = options.results.as_ref().map(|root| root.join(name));
        if let Some(path) = &path {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
            fs::write(path.join("machine.txt"), report::machine())?;
        }
        let json = options.json.clone();
        Ok(Self { path, json })
    }

    /// The dated folder.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Writes report and plots.
    ///
    /// # Errors
    /// When they cannot be made or written.
    pub(super) fn draw(&self, comparison: &Comparison) -> anyhow::Result<()> {
        match &self.path {
            Some(folder) => super::report::write(comparison, folder),
            None => Ok(()),
        }
    }

    /// Writes what there is so far over what was written before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, comparison: &Comparison) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(comparison)?;
        if let Some(path) = &self.json {
            replace(path, &json)?;
        }
        if let Some(folder) = &self.path {
            replace(&folder.join("comparison.json"), &json)?;
            replace(&folder.join("round_trips.hlog"), &hlog(comparison)?)?;
        }
        Ok(())
    }
}

/// A histogram as it was recorded.
///
/// # Errors
/// When it is no V2 histogram in base64.
pub(super) fn histogram(blob: &HistogramBlob) -> anyhow::Result<Histogram<u64>> {
    let bytes = BASE64_STANDARD.decode(&blob.v2_base64)?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| anyhow::anyhow!("not a histogram: {error:?}"))
}

/// All round-trips as an HdrHistogram interval log; the tag of each line is `PEER.ROUND`.
fn hlog(comparison: &Comparison) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("nanoseconds from the moment at which a command was due; tags: PEER.ROUND")
        .begin_log_with(&mut text, &mut serializer)?;
    for run in &comparison.runs {
        let tag = format!("{}.{}", run.peer, run.round);
        for blob in run.histograms.values() {
            let tag = Tag::new(&tag).context("a peer's name is no tag")?;
            let took = Duration::from_secs_f64(run.took_seconds);
            log.write_histogram(&histogram(blob)?, Duration::ZERO, took, Some(tag))
                .map_err(|error| anyhow::anyhow!("cannot write a histogram: {error:?}"))?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::super::model::Run;
    use super::*;
    use crate::compare::made_up;

    fn run(peer: &str, round: u32, values: &[u64]) -> Run {
        let mut run = made_up::run(peer, round, &[]);
        let blob = made_up::histogram(values);
        run.histograms.insert("round_trip".to_owned(), blob);
        run
    }

    fn comparison() -> Comparison {
        Comparison {
            runs: vec![
                run("drover", 1, &[1_000]),
                run("quinn-tuned", 2, &[9_000, 9_000]),
            ],
            ..made_up::empty(10, 2)
        }
    }

    #[test]
    fn the_interval_log_has_every_turn_under_a_tag_of_its_own() {
        let log = hlog(&comparison()).unwrap();
        let mut found = Vec::new();
        for entry in IntervalLogIterator::new(&log) {
            if let LogEntry::Interval(line) = entry.unwrap() {
                let bytes = BASE64_STANDARD.decode(line.encoded_histogram()).unwrap();
                let histogram: Histogram<u64> = Deserializer::new()
                    .deserialize(&mut bytes.as_slice())
                    .unwrap();
                found.push((
                    line.tag().unwrap().as_str().to_owned(),
                    histogram.len(),
                    histogram.min_nz() / 1_000,
                ));
            }
        }
        let expected = [("drover.1", 1, 1), ("quinn-tuned.2", 2, 9)];
        let expected = expected.map(|(tag, count, least)| (tag.to_owned(), count, least));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_written_reads_back_and_the_later_replaces_the_earlier() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder {
            path: Some(place.path().to_owned()),
            json: Some(place.path().join("copy.json")),
        };
        let mut comparison = comparison();
        folder.write(&comparison).unwrap();
        comparison.runs.truncate(1);
        folder.write(&comparison).unwrap();
        for name in ["comparison.json", "copy.json"] {
            let bytes = fs::read(place.path().join(name)).unwrap();
            let read: Comparison = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(read.runs.len(), 1);
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
    }
}
