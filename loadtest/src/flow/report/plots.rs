//! Which pictures a matrix has.

use super::super::matrix::{Found, Row, STEPS};
use super::lines::{self, Labels, Line};
use crate::compare::model::Spread;
use crate::plot::Drawing;
use crate::plot::axis::short;
use crate::plot::bars::{self, Bar, Chart, Origin, Panel, Row as BarRow};
use crate::plot::color::{self, Color};

/// Pictures with the names of their files, without ending.
pub(super) fn all(found: &Found) -> Vec<(String, Drawing)> {
    let mut pictures = goodput_and_waste(&found.rows);
    pictures.push(("step".to_owned(), step(found)));
    pictures.push(("jain".to_owned(), jain(found)));
    pictures.push(("waits".to_owned(), waits(found)));
    pictures
}

/// Two for each thrash factor.
pub(in crate::flow) fn goodput_and_waste(rows: &[Row]) -> Vec<(String, Drawing)> {
    let mut pictures = Vec::new();
    let mut gammas: Vec<f64> = rows.iter().map(|row| row.gamma).collect();
    gammas.sort_by(f64::total_cmp);
    gammas.dedup();
    for gamma in gammas {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.gamma == gamma).collect();
        let name = |what: &str| format!("{what}_{:.0}", gamma * 100.0);
        let goodput = |row: &Row| row.goodput_ratio * 100.0;
        let title = format!("Goodput, thrash factor {gamma}");
        let mut lines = by_servers(&rows, goodput);
        lines.push(flat(&rows, "capacity", 100.0));
        let labels = over_servers(title, "% of what all hosts can do");
        pictures.push((name("goodput"), lines::draw(&labels, &lines)));
        let title = format!("Waste, thrash factor {gamma}");
        let labels = over_servers(title, "attempts in vain per success");
        let lines = by_servers(&rows, |row| row.waste);
        pictures.push((name("waste"), lines::draw(&labels, &lines)));
    }
    pictures
}

fn over_servers(title: String, y: &str) -> Labels {
    Labels {
        title,
        x: "process servers".to_owned(),
        y: y.to_owned(),
        logarithmic: true,
    }
}

/// Names in their first order.
fn names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn color_of(place: usize, name: &str) -> Color {
    color::of_peer(name, place)
}

#[expect(clippy::cast_precision_loss, reason = "a few servers")]
fn by_servers(rows: &[&Row], value: impl Fn(&Row) -> f64) -> Vec<Line> {
    let names = names(rows.iter().map(|row| row.rule));
    let line = |(place, name): (usize, &&str)| {
        let own = rows.iter().filter(|row| row.rule == *name);
        Line {
            label: (*name).to_owned(),
            color: color_of(place, name),
            width: if *name == "drover" { 3.5 } else { 1.8 },
            dashed: false,
            points: own.map(|row| (row.servers as f64, value(row))).collect(),
        }
    };
    names.iter().enumerate().map(line).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a few servers")]
fn flat(rows: &[&Row], label: &str, value: f64) -> Line {
    let mut servers: Vec<usize> = rows.iter().map(|row| row.servers).collect();
    servers.sort_unstable();
    servers.dedup();
    let points = servers.iter().map(|servers| (*servers as f64, value));
    Line {
        label: label.to_owned(),
        color: color::TARGET,
        width: 1.5,
        dashed: true,
        points: points.collect(),
    }
}

/// One host over a change of its capacity.
#[expect(clippy::cast_precision_loss, reason = "seconds of a simulation")]
fn step(found: &Found) -> Drawing {
    let series = |place: usize| {
        let samples = found.step.limits.iter().enumerate();
        let points = samples.map(|(second, sample)| (second as f64 + 1.0, sample[place]));
        points.collect::<Vec<_>>()
    };
    let line = |place: usize, label: &str, color, width, dashed| Line {
        label: label.to_owned(),
        color,
        width,
        dashed,
        points: series(place),
    };
    let changes = STEPS.map(|(at, slots)| format!("{at} s to {slots}"));
    let labels = Labels {
        title: "One host while its capacity changes".to_owned(),
        x: format!("seconds; the capacity changes after {}", changes.join(", ")),
        y: "operations".to_owned(),
        logarithmic: false,
    };
    let lines = [
        line(1, "in flight", color::of_peer("quinn", 1), 1.2, false),
        line(0, "limit L", color::of_peer("drover", 0), 2.5, false),
        line(2, "true capacity K", color::TARGET, 1.8, true),
    ];
    lines::draw(&labels, &lines)
}

#[expect(clippy::cast_precision_loss, reason = "a few windows")]
fn jain(found: &Found) -> Drawing {
    let line = |(place, (name, indices)): (usize, &(&str, Vec<f64>))| Line {
        label: (*name).to_owned(),
        color: color_of(place, name),
        width: if *name == "drover" { 3.5 } else { 1.8 },
        dashed: false,
        points: indices
            .iter()
            .enumerate()
            .map(|(n, y)| (n as f64, *y))
            .collect(),
    };
    let labels = Labels {
        title: "Fairness among tenants that hold 70, 10, 10 and 10 % of the backlog".to_owned(),
        x: "windows of 60 service times, each a tenth later".to_owned(),
        y: "Jain's index".to_owned(),
        logarithmic: false,
    };
    let lines: Vec<Line> = found.jain.iter().enumerate().map(line).collect();
    lines::draw(&labels, &lines)
}

fn waits(found: &Found) -> Drawing {
    let names = names(found.waits.iter().map(|(rule, ..)| *rule));
    let place = |rule: &str| names.iter().position(|name| *name == rule).unwrap_or(0);
    let panel = |heading: &str, value: fn(&(f64, f64)) -> f64| Panel {
        heading: heading.to_owned(),
        origin: Origin::Zero,
        target: None,
        rows: found
            .waits
            .iter()
            .map(|(rule, _, median, late)| {
                let value = value(&(*median, *late));
                let spread = Spread {
                    median: value,
                    min: value,
                    max: value,
                    rounds: 1,
                };
                let bar = Bar {
                    spread,
                    color: color_of(place(rule), rule),
                    text: short(value),
                    text_color: color::INK,
                };
                BarRow {
                    bars: if value.is_finite() {
                        vec![bar]
                    } else {
                        Vec::new()
                    },
                    mark: None,
                }
            })
            .collect(),
    };
    let labels = found.waits.iter().map(|(rule, class, ..)| {
        let label = format!("{rule}, {class:?}").to_lowercase();
        (label, color_of(place(rule), rule))
    });
    bars::draw(&Chart {
        title: "From ready to started, by class".to_owned(),
        labels: labels.collect(),
        panels: vec![
            panel("median, seconds", |(median, _)| *median),
            panel("99th percentile, seconds", |(_, late)| *late),
        ],
        notes: Vec::new(),
    })
}
