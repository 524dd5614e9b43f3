//! `report.html`: one file with everything in it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::super::model::{Comparison, MeasureInfo, Row, Run, Spread, is_drover};
use super::super::targets::{Found, Judged, Verdict};
use super::plots::{Plot, told};
use crate::plot::axis::{short, tick};
use crate::plot::{escaped, font};
use crate::report::grouped;

const STYLE: &str = "
body { font: 15px/1.5 Roboto, sans-serif; color: #1f2933; max-width: 1240px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin-top: 2.2em; border-top: 1px solid #e4e7eb; padding-top: .8em; }
table { border-collapse: collapse; margin: .8em 0; }
th, td { text-align: right; padding: .2em .9em; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: #616e7c; font-weight: normal; } td.words { text-align: left; }
.drover td { color: #b8460a; } .faint { color: #616e7c; }
.met { color: #1d6e56; } .missed { color: #b4233c; font-weight: bold; }
svg { display: block; width: 100%; height: auto; } code { overflow-wrap: anywhere; }
";

/// The whole page.
pub(super) fn page(comparison: &Comparison, plots: &[Plot]) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page.push_str(
        "<title>Drover beside its peers</title>\n<style>\n@font-face { font-family: Roboto; ",
    );
    page.push_str("src: url(data:font/ttf;base64,");
    page.push_str(&BASE64_STANDARD.encode(font::BYTES));
    page.push_str(&format!(
        "); }}{STYLE}</style>\n<h1>Drover beside its peers</h1>\n"
    ));
    page.push_str(&setting(comparison));
    if !comparison.targets.is_empty() {
        page.push_str("<h2>Targets</h2>\n");
        page.push_str(&targets(&comparison.targets));
        page.push_str(&picture(plots, "targets"));
    }
    let curves = picture(plots, "round_trips");
    if !curves.is_empty() {
        page.push_str("<h2>Round-trips</h2>\n");
        page.push_str(&curves);
        page.push_str("<p>Every command of every round. The files behind it: ");
        page.push_str("<code>round_trips.hlog</code>, <code>comparison.json</code>.</p>\n");
    }
    let mut unmeasured = Vec::new();
    for (measure, row) in comparison.measures.iter().zip(&comparison.summary) {
        match row.peers.is_empty() {
            true => unmeasured.push(escaped(&measure.label)),
            false => page.push_str(&section(comparison, measure, row, plots)),
        }
    }
    if !unmeasured.is_empty() {
        let list = unmeasured.join("</li><li>");
        page.push_str(&format!(
            "<h2>Not measured</h2>\n<ul><li>{list}</li></ul>\n"
        ));
    }
    page.push_str(&peers(comparison));
    page.push_str(&notes(&comparison.runs));
    page.push_str("</html>\n");
    page
}

fn cell(text: &str) -> String {
    format!("<td>{}</td>", escaped(text))
}

/// Date, commit, command, machine, plan.
fn setting(comparison: &Comparison) -> String {
    let (machine, plan) = (&comparison.machine, &comparison.plan);
    let rows = [
        ("when", format!("{} UTC", comparison.date)),
        ("commit", comparison.commit.clone()),
        ("command", comparison.command.join(" ")),
        (
            "machine",
            format!(
                "{} × {}, {} GiB, Linux {}; load before {}",
                machine.cpus,
                machine.cpu,
                machine.memory_bytes >> 30,
                machine.kernel,
                machine.load_before
            ),
        ),
        (
            "plan",
            format!(
                "{} sessions, {} rounds; commands of {} bytes, {}/s for CPU and {}/s for \
                 round-trips; keep-alive {} s; idle for {} s",
                grouped(plan.sessions as u64),
                plan.rounds,
                plan.payload_bytes,
                plan.command_rate,
                plan.round_trip_rate,
                plan.keep_alive_seconds,
                plan.idle_seconds
            ),
        ),
    ];
    let mut table = String::from("<table>\n");
    for (name, value) in rows {
        let value = escaped(&value);
        let value = format!("<td class=\"words\"><code>{value}</code></td>");
        table.push_str(&format!("<tr>{}{value}</tr>\n", cell(name)));
    }
    table.push_str(
        "</table>\n<p>Medians over the rounds; in parentheses the least and the greatest. ",
    );
    table.push_str(
        "Ratios are made within each round: Drover ÷ the other, below 1 Drover needs less. ",
    );
    table.push_str(
        "Drover's process has the stand-in of the control plane in it; <em>the gateway's thread ",
    );
    table.push_str("alone</em> does not, and its ratios are to whole processes.</p>\n");
    table
}

fn figures(spread: &Spread) -> String {
    let Spread {
        median, min, max, ..
    } = *spread;
    format!("{} ({} – {})", short(median), short(min), short(max))
}

fn targets(judged: &[Judged]) -> String {
    let mut table = String::from(
        "<table>\n<tr><th>target</th><th>stretch</th><th>whole process</th><th></th>\
         <th>the gateway's thread alone</th><th></th></tr>\n",
    );
    for judged in judged {
        let stretch = judged.stretch.map(tick).unwrap_or_default();
        let part = judged.part.as_ref().map(found);
        table.push_str(&format!(
            "<tr>{}{}{}{}</tr>\n",
            cell(&told(judged)),
            cell(&stretch),
            found(&judged.found),
            part.unwrap_or_else(|| "<td></td><td></td>".to_owned())
        ));
    }
    table.push_str("</table>\n");
    table
}

fn found(found: &Found) -> String {
    let class = match found.verdict {
        Verdict::Met | Verdict::Stretch => "met",
        Verdict::Missed => "missed",
        Verdict::NotMeasured => "faint",
    };
    let spread = found.spread.as_ref().map(figures).unwrap_or_default();
    let word = found.verdict.word();
    format!("{}<td class=\"{class}\">{word}</td>", cell(&spread))
}

fn picture(plots: &[Plot], name: &str) -> String {
    let mut plots = plots.iter();
    let plot = plots.find(|plot| plot.name == name);
    plot.map(|plot| plot.drawing.svg()).unwrap_or_default()
}

/// A measure: picture and table. One that is a part has its table alone: the picture is its whole's.
fn section(comparison: &Comparison, measure: &MeasureInfo, row: &Row, plots: &[Plot]) -> String {
    let unit = match measure.unit.as_str() {
        "" => String::new(),
        unit => format!(" [{unit}]"),
    };
    let heading = escaped(&format!("{}{unit}", measure.label));
    let mut section = match measure.part_of {
        None => format!("<h2>{heading}</h2>\n"),
        Some(_) => format!("<p>{heading}:</p>\n"),
    };
    section.push_str(&picture(plots, &measure.id));
    section.push_str("<table>\n<tr><th></th><th>median (least – greatest)</th>");
    section.push_str("<th>rounds</th><th>Drover ÷ it</th></tr>\n");
    let line = |name: &str, spread: &Spread, class: &str| {
        let ratio = row.ratios.get(name.strip_prefix(FLOOR).unwrap_or(name));
        let (name, figure) = (cell(name), cell(&figures(spread)));
        let rounds = cell(&spread.rounds.to_string());
        let ratio = cell(&ratio.map(figures).unwrap_or_default());
        format!("<tr class=\"{class}\">{name}{figure}{rounds}{ratio}</tr>\n")
    };
    for peer in &comparison.peers {
        if let Some(spread) = row.peers.get(&peer.name) {
            let class = if is_drover(&peer.name) { "drover" } else { "" };
            section.push_str(&line(&peer.name, spread, class));
        }
    }
    for (name, spread) in &row.floors {
        section.push_str(&line(&format!("{FLOOR}{name}"), spread, "faint"));
    }
    section.push_str("</table>\n");
    section
}

/// Before the name of a floor.
const FLOOR: &str = "floor: ";

fn peers(comparison: &Comparison) -> String {
    let mut table = String::from("<h2>Peers</h2>\n<table>\n");
    for peer in &comparison.peers {
        let about = match peer.broker {
            true => format!("{} (a broker: the load is not on its bill)", peer.about),
            false => peer.about.clone(),
        };
        let about = format!("<td class=\"words\">{}</td>", escaped(&about));
        table.push_str(&format!("<tr>{}{about}</tr>\n", cell(&peer.name)));
    }
    table.push_str("</table>\n");
    table
}

/// What went wrong or must be known.
fn notes(runs: &[Run]) -> String {
    let mut list = String::new();
    for run in runs {
        for note in &run.notes {
            let line = format!("round {}, {}: {note}", run.round, run.peer);
            list.push_str(&format!("<li>{}</li>\n", escaped(&line)));
        }
    }
    match list.is_empty() {
        true => list,
        false => format!("<h2>Notes</h2>\n<ul>\n{list}</ul>\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plots;
    use super::super::tests::comparison;
    use super::*;

    fn page() -> String {
        let comparison = comparison();
        super::page(&comparison, &plots::all(&comparison).unwrap())
    }

    #[test]
    fn hostile_names_and_notes_stay_text() {
        let page = page();
        assert!(page.contains("&lt;b&gt;evil&lt;/b&gt;") && !page.contains("<b>evil"));
        assert!(page.contains("&lt;i&gt;3 had no answer") && !page.contains("<i>3"));
    }

    #[test]
    fn every_measure_appears() {
        let page = page();
        for measure in comparison().measures {
            let label = escaped(&measure.label);
            assert!(page.contains(&label), "{label}");
        }
        // Figures of a measure, of a part, of a floor, and a ratio.
        for figure in ["10.5 (10.5 – 10.5)", "61.5 (61.5", "400 (400", "0.30 (0.30"] {
            assert!(page.contains(figure), "{figure}");
        }
        assert!(page.contains("<h2>Not measured</h2>"));
    }

    #[test]
    fn met_and_missed_targets_are_told_apart() {
        let page = page();
        assert!(page.contains("<td>0.99 (0.99 – 0.99)</td><td class=\"missed\">MISSED</td>"));
        assert!(page.contains("<td>10.5 (10.5 – 10.5)</td><td class=\"met\">met (stretch)</td>"));
        assert!(page.contains("<td class=\"faint\">not measured</td>"));
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = page();
        for outside in ["src=", "href=", "@import", "url(http"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("<svg ") && page.contains("font/ttf;base64,"));
    }
}
