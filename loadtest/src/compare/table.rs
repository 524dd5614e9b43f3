//! A comparison on the screen.

use super::model::{Comparison, DROVER, Run, Spread};

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
