//! What a matrix found: on the screen, and as a folder with `flow.json`, `report.md` and plots.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::matrix::{Found, Options, Row};
use crate::{clock, report};

#[cfg(feature = "peers")]
mod lines;
#[cfg(feature = "peers")]
pub(super) mod plots;

/// Prints a line a cell.
pub(super) fn print(rows: &[Row]) {
    println!(
        "{:<10} {:>6} {:>8} {:>9} {:>8} {:>7} {:>11}",
        "rule", "γ", "servers", "goodput", "waste", "jain", "over-issue"
    );
    for row in rows {
        let over = row
            .over_issue
            .map_or("-".to_owned(), |over| over.to_string());
        println!(
            "{:<10} {:>6} {:>8} {:>7.1} % {:>8.4} {:>7.3} {:>11}",
            row.rule,
            row.gamma,
            row.servers,
            100.0 * row.goodput_ratio,
            row.waste,
            row.jain,
            over
        );
    }
}

/// Writes the folder; where it is.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(found: &Found, options: &Options, results: &Path) -> anyhow::Result<PathBuf> {
    let folder = results.join(format!("{}-flow", clock::stamp(clock::unix_seconds())));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let put = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    put("machine.txt", report::machine().as_bytes())?;
    put("flow.json", &serde_json::to_vec_pretty(&found.rows)?)?;
    let mut pictures: Vec<String> = Vec::new();
    #[cfg(feature = "peers")]
    for (name, drawing) in plots::all(found) {
        let file = format!("{name}.png");
        put(&file, &drawing.png()?)?;
        pictures.push(file);
    }
    pictures.sort();
    put("report.md", text(found, options, &pictures)?.as_bytes())?;
    Ok(folder)
}

/// The report: one table for each γ, waits, and the pictures.
fn text(found: &Found, options: &Options, pictures: &[String]) -> Result<String, std::fmt::Error> {
    let mut text = String::from("# Rules of flow in the simulator\n\n");
    writeln!(text, "`{}`\n", report::command().join(" "))?;
    writeln!(
        text,
        "Goodput in % of the true capacity / attempts in vain per success / Jain's index of the worst \
         window. Means of {} seeds from {}. The model is in `docs/FLOW.md`.",
        options.seeds, options.seed
    )?;
    for gamma in &options.gammas {
        write!(text, "\n## γ = {gamma}\n\n| rule |")?;
        for servers in &options.servers {
            write!(text, " N = {servers} |")?;
        }
        writeln!(text, "\n|---|{}", "---|".repeat(options.servers.len()))?;
        for rule in &options.rules {
            write!(text, "| {} |", rule.name())?;
            for servers in &options.servers {
                let row = found.rows.iter().find(|row| {
                    row.rule == rule.name() && row.servers == *servers && row.gamma == *gamma
                });
                let cell = row.map_or("-".to_owned(), |row| {
                    let goodput = 100.0 * row.goodput_ratio;
                    format!("{goodput:.1} / {:.3} / {:.3}", row.waste, row.jain)
                });
                write!(text, " {cell} |")?;
            }
            writeln!(text)?;
        }
    }
    writeln!(text, "\n## From ready to started\n")?;
    writeln!(
        text,
        "| rule | class | median s | 99 % s |\n|---|---|---|---|"
    )?;
    for (rule, class, median, late) in &found.waits {
        writeln!(text, "| {rule} | {class:?} | {median:.2} | {late:.2} |")?;
    }
    for picture in pictures {
        writeln!(text, "\n![{picture}]({picture})")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use gateway::flow::fair::Class;

    use super::*;
    use crate::flow::{RuleName, Score};

    fn found() -> (Found, Options) {
        let row = |rule, servers| Row {
            rule,
            servers,
            gamma: 0.25,
            goodput_ratio: 0.9512,
            waste: 0.0,
            jain: 0.999,
            over_issue: Some(0),
        };
        let found = Found {
            rows: vec![row("drover", 4), row("drover", 8)],
            step: Score::default(),
            jain: vec![("drover", vec![0.99, 1.0])],
            waits: vec![("drover", Class::Normal, 3.25, 9.5)],
        };
        let options = Options {
            rules: vec![RuleName::Drover],
            servers: vec![4, 8],
            gammas: vec![0.25],
            seeds: 2,
            seed: 1,
            json: None,
            results: None,
        };
        (found, options)
    }

    #[test]
    fn the_folder_has_rows_and_a_report() {
        let place = tempfile::tempdir().unwrap();
        let (found, options) = found();
        let folder = write(&found, &options, place.path()).unwrap();
        let text = fs::read_to_string(folder.join("report.md")).unwrap();
        let line = "| drover | 95.1 / 0.000 / 0.999 | 95.1 / 0.000 / 0.999 |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| drover | Normal | 3.25 | 9.50 |"));
        let rows = fs::read_to_string(folder.join("flow.json")).unwrap();
        let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
        assert_eq!(rows[1]["servers"], 8);
        assert_eq!(rows[0]["goodput_ratio"], 0.9512);
        #[cfg(feature = "peers")]
        for name in ["goodput_25.png", "waste_25.png", "step.png", "jain.png"] {
            assert!(folder.join(name).exists(), "{name}");
        }
    }
}
