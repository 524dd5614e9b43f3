//! A comparison for people: `report.html`, which needs no other file, and its plots as PNG.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::model::{Comparison, SCHEMA};

mod html;
mod plots;

/// Reads a comparison that `compare` wrote. Medians, ratios and verdicts are made anew.
///
/// # Errors
/// When the file cannot be read or is of another shape.
pub fn read(path: &Path) -> anyhow::Result<Comparison> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut comparison: Comparison = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is no comparison", path.display()))?;
    if comparison.schema != SCHEMA {
        let schema = comparison.schema;
        bail!("this program reads comparisons of schema {SCHEMA}, not {schema}");
    }
    comparison.summarise();
    Ok(comparison)
}

/// Writes the report and its plots into a folder; makes it where it is missing.
///
/// # Errors
/// When a histogram is damaged or the folder cannot be written.
pub fn write(comparison: &Comparison, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let plots = plots::all(comparison)?;
    let put = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    for plot in &plots {
        put(&format!("{}.png", plot.name), &plot.drawing.png()?)?;
    }
    put("report.html", html::page(comparison, &plots).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::made_up;
    use crate::compare::model::DROVER;

    /// Two peers, one hostile; a missed target, a met one, a part, a floor, round-trips.
    pub(super) fn comparison() -> Comparison {
        let mut comparison = made_up::empty(10_000, 1);
        comparison.measures = crate::compare::measures::infos(10_000, &[100, 10_000]);
        comparison.peers.push(made_up::peer("<b>evil</b>"));
        let drover = [
            ("session_rss", 10.5),
            ("command_cpu_10000", 99.0),
            ("command_cpu_10000_shard", 61.5),
            ("handshake_cpu_net", 437.25),
            ("rtt_p50", 0.25),
        ];
        let quinn = [
            ("session_rss", 35.0),
            ("command_cpu_10000", 100.0),
            ("rtt_p50", 0.5),
        ];
        let mut runs = vec![
            made_up::run(DROVER, 1, &drover),
            made_up::run("quinn", 1, &quinn),
            made_up::run("<b>evil</b>", 1, &[("session_rss", 70.0)]),
        ];
        for run in runs.iter_mut().take(2) {
            let blob = made_up::histogram(&[200_000, 300_000, 900_000]);
            run.histograms.insert("round_trip".to_owned(), blob);
        }
        runs[1].notes.push("<i>3 had no answer</i>".to_owned());
        comparison.runs = runs;
        let floor = made_up::floor("in-memory", "handshake_cpu_net", 1, 400.0);
        comparison.floors.push(floor);
        comparison.summarise();
        comparison
    }

    #[test]
    fn a_comparison_that_was_written_is_read_and_drawn() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("comparison.json");
        let mut comparison = comparison();
        // What is derived is made anew.
        comparison.summary.clear();
        fs::write(&file, serde_json::to_vec(&comparison).unwrap()).unwrap();
        let out = place.path().join("out");
        write(&read(&file).unwrap(), &out).unwrap();
        for name in ["round_trips.png", "targets.png", "session_rss.png"] {
            let png = fs::read(out.join(name)).unwrap();
            assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{name}");
        }
        let page = fs::read_to_string(out.join("report.html")).unwrap();
        assert!(page.contains("MISSED"));
    }

    #[test]
    fn other_shapes_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("c.json");
        fs::write(&file, "{}").unwrap();
        assert!(
            read(&file)
                .unwrap_err()
                .to_string()
                .contains("no comparison")
        );
        let mut newer = comparison();
        newer.schema += 1;
        fs::write(&file, serde_json::to_vec(&newer).unwrap()).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("schema"));
    }
}
