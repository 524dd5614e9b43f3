//! A comparison on the screen.

use super::model::{Comparison, DROVER, Run, Spread};
use super::targets::{Found, Judged};

/// One turn, as soon as it is over.
pub(super) fn print_run(run: &Run) {
    let mut line = format!("round {} {:<12}", run.round, run.peer);
    for (id, value) in &run.values {
        line.push_str(&format!("  {id} {value:.2}"));
    }
    eprintln!("{line}  ({:.0} s)", run.took_seconds);
    for note in &run.notes {
        eprintln!("  {note}");
    }
}

/// Every measure: each peer's median, and what Drover needs of it.
pub(super) fn print(comparison: &Comparison) {
    for (measure, row) in comparison.measures.iter().zip(&comparison.summary) {
        if row.peers.is_empty() {
            continue;
        }
        println!("\n{} [{}]", measure.label, measure.unit);
        let peers = comparison.peers.iter().map(|peer| &peer.name);
        for name in peers.filter(|name| row.peers.contains_key(*name)) {
            print_line(name, row.peers.get(name), row.ratios.get(name));
        }
        for (name, spread) in &row.floors {
            print_line(name, Some(spread), row.ratios.get(name));
        }
    }
    if !comparison.targets.is_empty() {
        println!("\ntargets, by the medians of whole processes");
    }
    for judged in &comparison.targets {
        println!("{}", target_line(judged));
    }
}

/// A target, what was found and what that means.
fn target_line(judged: &Judged) -> String {
    let Judged { label, unit, .. } = judged;
    let against = judged.against.as_ref();
    let against = against.map(|name| format!(" ÷ {name}")).unwrap_or_default();
    let mut line = format!(
        "  {:<13} {label}{against}: at most {} {unit}",
        judged.found.verdict.word(),
        judged.at_most
    );
    if let Some(stretch) = judged.stretch {
        line.push_str(&format!(" (stretch {stretch})"));
    }
    line.push_str(&format!(", is {}", figure(&judged.found)));
    if let Some(part) = &judged.part {
        let word = part.verdict.word();
        line.push_str(&format!(
            "; the gateway's thread alone {}: {word}",
            figure(part)
        ));
    }
    line
}

fn figure(found: &Found) -> String {
    found.spread.map_or("?".to_owned(), |s| {
        format!("{:.2} ({:.2} – {:.2})", s.median, s.min, s.max)
    })
}

fn print_line(name: &str, value: Option<&Spread>, ratio: Option<&Spread>) {
    let value = value.map(|s| format!("{:>9.2}  ({:.2} – {:.2})", s.median, s.min, s.max));
    let ratio = ratio.map(|s| {
        format!(
            "{DROVER} is {:.2} × ({:.2} – {:.2})",
            s.median, s.min, s.max
        )
    });
    println!(
        "  {name:<18} {:<30} {}",
        value.unwrap_or_default(),
        ratio.unwrap_or_default()
    );
}

#[cfg(test)]
mod tests {
    use super::super::targets::Verdict;
    use super::*;

    #[test]
    fn a_missed_target_says_so_first_and_the_gateways_part_stands_behind() {
        let spread = |median| Spread {
            median,
            min: median,
            max: median,
            rounds: 1,
        };
        let found = |median, verdict| Found {
            spread: Some(spread(median)),
            verdict,
        };
        let judged = Judged {
            measure: "cpu".to_owned(),
            label: "CPU".to_owned(),
            against: Some("quinn".to_owned()),
            unit: "×".to_owned(),
            at_most: 0.7,
            stretch: Some(0.5),
            found: found(0.9, Verdict::Missed),
            part: Some(found(0.6, Verdict::Met)),
        };
        assert_eq!(
            target_line(&judged),
            "  MISSED        CPU ÷ quinn: at most 0.7 × (stretch 0.5), is 0.90 (0.90 – 0.90); \
             the gateway's thread alone 0.60 (0.60 – 0.60): met"
        );
    }
}
