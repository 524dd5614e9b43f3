//! Which plots a comparison has.

use hdrhistogram::Histogram;

use super::super::folder;
use super::super::model::{Comparison, DROVER, MeasureInfo, Row, Spread, is_drover};
use super::super::targets::{Against, Found, Judged, TARGETS};
use crate::plot::Drawing;
use crate::plot::axis::{short, tick};
use crate::plot::bars::{self, Bar, Chart, Origin, Panel, Row as BarRow};
use crate::plot::color::{self, Color};
use crate::plot::curves::{self, Curve};

/// Before a figure of Drover's gateway.
const PART: &str = "gateway alone ";

/// A picture with the name of its file, without its ending.
pub(super) struct Plot {
    pub(super) name: String,
    pub(super) drawing: Drawing,
}

/// All of them: round-trips, targets, a picture for every measure that anyone has a figure of.
///
/// # Errors
/// When a histogram is damaged.
pub(super) fn all(comparison: &Comparison) -> anyhow::Result<Vec<Plot>> {
    let mut plots = Vec::new();
    let mut add = |name: &str, drawing| {
        let name = name.to_owned();
        plots.push(Plot { name, drawing });
    };
    if let Some(drawing) = round_trips(comparison)? {
        add("round_trips", drawing);
    }
    if !comparison.targets.is_empty() {
        add("targets", targets(&comparison.targets));
    }
    for (measure, row) in comparison.measures.iter().zip(&comparison.summary) {
        if measure.part_of.is_none() && !row.peers.is_empty() {
            add(&measure.id, bars::draw(&chart(comparison, measure, row)));
        }
    }
    Ok(plots)
}

/// Peers with their colours.
fn colors(comparison: &Comparison) -> Vec<(&str, Color)> {
    let mut others = 0;
    let mut colors = Vec::new();
    for peer in &comparison.peers {
        colors.push((peer.name.as_str(), color::of_peer(&peer.name, others)));
        others += usize::from(!is_drover(&peer.name));
    }
    colors
}

/// All rounds of each peer in one histogram: percentiles are never averaged.
fn round_trips(comparison: &Comparison) -> anyhow::Result<Option<Drawing>> {
    let mut all = Vec::new();
    for (name, color) in colors(comparison) {
        let mut merged: Option<Histogram<u64>> = None;
        for run in comparison.runs.iter().filter(|run| run.peer == name) {
            for blob in run.histograms.values() {
                let one = folder::histogram(blob)?;
                match &mut merged {
                    Some(merged) => merged.add(&one)?,
                    None => merged = Some(one),
                }
            }
        }
        if let Some(merged) = merged.filter(|merged| !merged.is_empty()) {
            all.push(Curve {
                label: name.to_owned(),
                color,
                stands_out: name == DROVER,
                points: points(&merged),
            });
        }
    }
    let title = "Command round-trip, from the moment at which a command was due";
    Ok((!all.is_empty()).then(|| curves::draw(title, "ms", &all)))
}

/// Rarity (one of so many) and milliseconds, to the rarest that was recorded.
fn points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    const STEPS_A_DECADE: i32 = 20;
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts and nanoseconds below 2^53"
    )]
    let (count, ms) = (histogram.len() as f64, |ns: u64| ns as f64 / 1e6);
    let rarities = (0..).map(|step| 10_f64.powf(f64::from(step) / f64::from(STEPS_A_DECADE)));
    let inside = rarities.take_while(|rarity| *rarity < count);
    let point = |rarity: f64| {
        let value = histogram.value_at_quantile(1.0 - 1.0 / rarity);
        (rarity, ms(value))
    };
    inside.chain([count.max(1.0)]).map(point).collect()
}

fn figures(spread: &Spread) -> String {
    let Spread {
        median, min, max, ..
    } = *spread;
    format!("{} ({} – {})", short(median), short(min), short(max))
}

fn bar(spread: &Spread, color: Color, before: &str) -> Bar {
    Bar {
        spread: *spread,
        color,
        text: format!("{before}{}", figures(spread)),
        text_color: color::INK,
    }
}

/// Green or red, lighter for a part.
fn ratio_bar(spread: &Spread, is_part: bool) -> Bar {
    let color = match spread.median <= 1.0 {
        true => color::LESS,
        false => color::MORE,
    };
    let before = if is_part { PART } else { "" };
    let paper = if is_part { 0.45 } else { 0.0 };
    bar(spread, color::mixed(color, paper), before)
}

/// A measure: figures on the left, Drover's ratio to each on the right.
fn chart(comparison: &Comparison, measure: &MeasureInfo, row: &Row) -> Chart {
    let part = part_of(comparison, measure);
    let mut labels = Vec::new();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for (name, color) in colors(comparison) {
        let Some(spread) = row.peers.get(name) else {
            continue;
        };
        let own = is_drover(name);
        let label = if own {
            color::of_peer(DROVER, 0)
        } else {
            color::INK
        };
        labels.push((name.to_owned(), label));
        let mut bars = vec![bar(spread, color, "")];
        if let Some(part) = part.filter(|_| own).and_then(|part| part.peers.get(name)) {
            bars.push(bar(part, color::mixed(color, 0.45), PART));
        }
        left.push(BarRow { bars, mark: None });
        right.push(ratios(comparison, row, part, name));
    }
    for (name, spread) in &row.floors {
        labels.push((format!("floor: {name}"), color::FAINT));
        let bars = vec![bar(spread, color::mixed(color::FAINT, 0.4), "")];
        left.push(BarRow { bars, mark: None });
        right.push(ratios(comparison, row, part, name));
    }
    let target = limit(comparison, &measure.id, |against| {
        matches!(against, Against::Nothing)
    });
    let notes = notes(part.is_some(), target.is_some(), &right);
    let rounds = rounds(row);
    Chart {
        title: match measure.unit.as_str() {
            "" => measure.label.clone(),
            unit => format!("{} [{unit}]", measure.label),
        },
        labels,
        panels: vec![
            Panel {
                heading: format!("median (least – greatest) of {rounds}"),
                origin: Origin::Zero,
                rows: left,
                target,
            },
            Panel {
                heading: "Drover ÷ it; left of 1 Drover needs less".to_owned(),
                origin: Origin::One,
                rows: right,
                target: None,
            },
        ],
        notes,
    }
}

/// How many rounds the figures are of: fewer than were planned while it runs, or where turns failed.
fn rounds(row: &Row) -> String {
    let counts = row.peers.values().chain(row.floors.values());
    let counts = counts.map(|spread| spread.rounds);
    let (least, most) = counts.fold((usize::MAX, 0), |(least, most), n| {
        (least.min(n), most.max(n))
    });
    match (least, most) {
        (_, 1) => "1 round".to_owned(),
        (least, most) if least < most => format!("{least} to {most} rounds"),
        _ => format!("{most} rounds"),
    }
}

/// The row of the gateway's part of a measure.
fn part_of<'a>(comparison: &'a Comparison, measure: &MeasureInfo) -> Option<&'a Row> {
    let measures = comparison.measures.iter().zip(&comparison.summary);
    measures
        .filter(|(part, _)| part.part_of.as_ref() == Some(&measure.id))
        .map(|(_, row)| row)
        .next()
}

/// Drover's ratio to one peer or floor, and what it is to be.
fn ratios(comparison: &Comparison, row: &Row, part: Option<&Row>, name: &str) -> BarRow {
    let whole = row.ratios.get(name).map(|s| ratio_bar(s, false));
    // Drover's variants have a part of their own: a ratio to it is a ratio of two parts.
    let part = part.filter(|_| !is_drover(name));
    let part = part.and_then(|part| part.ratios.get(name));
    let is_peer = row.peers.contains_key(name) && !is_drover(name);
    BarRow {
        bars: whole
            .into_iter()
            .chain(part.map(|s| ratio_bar(s, true)))
            .collect(),
        mark: limit(comparison, &row.measure, |against| match against {
            Against::One(other) => other == name,
            Against::EveryPeer => is_peer,
            Against::Nothing | Against::Own(_) => false,
        }),
    }
}

/// The limit of a target of this measure, where this comparison was judged.
fn limit(comparison: &Comparison, measure: &str, wanted: impl Fn(Against) -> bool) -> Option<f64> {
    let judged = !comparison.targets.is_empty();
    let mut targets = TARGETS.iter().filter(|_| judged);
    let found = targets.find(|target| target.measure == measure && wanted(target.against));
    found.map(|target| target.at_most)
}

fn notes(has_part: bool, has_target: bool, ratios: &[BarRow]) -> Vec<String> {
    let part = "gateway alone: of Drover's process the gateway's thread, without the stand-in of the \
                control plane; its ratios are to whole processes";
    let marks = "black marks: targets of the whole process";
    let line = "broken line: Drover's target";
    let has_mark = ratios.iter().any(|row| row.mark.is_some());
    let all = [(has_part, part), (has_mark, marks), (has_target, line)];
    let wanted = all.into_iter().filter(|(wanted, _)| *wanted);
    wanted.map(|(_, note)| note.to_owned()).collect()
}

/// Every target as a share of its limit.
fn targets(judged: &[Judged]) -> Drawing {
    let share = |found: &Found, limit: f64| {
        found.spread.map(|s| Spread {
            median: s.median / limit,
            min: s.min / limit,
            max: s.max / limit,
            rounds: s.rounds,
        })
    };
    let row = |judged: &Judged| {
        let limit = judged.at_most;
        let whole = share(&judged.found, limit).map(|s| Bar {
            text: verdict(&judged.found),
            ..ratio_bar(&s, false)
        });
        let part = judged.part.as_ref();
        let part = part.and_then(|part| Some((part, share(part, limit)?)));
        let part = part.map(|(part, s)| Bar {
            text: format!("{PART}{}", verdict(part)),
            ..ratio_bar(&s, true)
        });
        BarRow {
            bars: whole.into_iter().chain(part).collect(),
            mark: judged.stretch.map(|stretch| stretch / limit),
        }
    };
    bars::draw(&Chart {
        title: "Targets: each figure as a share of its limit".to_owned(),
        labels: judged.iter().map(|j| (told(j), color::INK)).collect(),
        panels: vec![Panel {
            heading: "1 is the limit; to the left of it the target is met".to_owned(),
            origin: Origin::One,
            rows: judged.iter().map(row).collect(),
            target: None,
        }],
        notes: vec![
            "black marks: stretch targets; whiskers: least and greatest round".to_owned(),
            "gateway alone: not the whole process, and not what is judged".to_owned(),
        ],
    })
}

/// A target in words, as `label ÷ quinn ≤ 0.4 ×`.
pub(super) fn told(judged: &Judged) -> String {
    let against = judged.against.as_ref();
    let against = against.map(|name| format!(" ÷ {name}")).unwrap_or_default();
    let (label, unit) = (&judged.label, &judged.unit);
    format!("{label}{against} ≤ {} {unit}", tick(judged.at_most))
}

fn verdict(found: &Found) -> String {
    let word = found.verdict.word();
    found.spread.map_or_else(
        || word.to_owned(),
        |s| format!("{} {word}", short(s.median)),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::comparison;
    use super::*;
    use crate::compare::made_up;

    fn named(plots: &[Plot], name: &str) -> String {
        let mut plots = plots.iter();
        let plot = plots.find(|plot| plot.name == name);
        plot.map(|plot| plot.drawing.svg()).unwrap_or_default()
    }

    #[test]
    fn every_measure_with_figures_has_a_plot_with_its_parts_and_targets() {
        let plots = all(&comparison()).unwrap();
        let names: Vec<_> = plots.iter().map(|plot| plot.name.as_str()).collect();
        let expected = [
            "round_trips",
            "targets",
            "session_rss",
            "handshake_cpu_net",
            "command_cpu_10000",
            "rtt_p50",
        ];
        assert_eq!(names, expected);
        let command = named(&plots, "command_cpu_10000");
        assert!(command.contains("gateway alone 61.5"), "{command}");
        assert!(command.contains("gateway alone 0.61"), "ratio to quinn");
        assert!(command.contains("black marks"));
        assert!(named(&plots, "handshake_cpu_net").contains("floor: in-memory"));
        assert!(named(&plots, "session_rss").contains("broken line"));
        assert!(named(&plots, "targets").contains("0.99 MISSED"));
    }

    #[test]
    fn a_plot_tells_the_rounds_that_there_were_and_not_those_that_were_planned() {
        let mut comparison = comparison();
        comparison.plan.rounds = 5;
        let tells = |comparison: &Comparison, rounds: &str| {
            let svg = named(&all(comparison).unwrap(), "session_rss");
            svg.contains(&format!("(least – greatest) of {rounds}<"))
        };
        assert!(tells(&comparison, "1 round"));
        let second = made_up::run(DROVER, 2, &[("session_rss", 11.0)]);
        comparison.runs.push(second);
        comparison.summarise();
        assert!(tells(&comparison, "1 to 2 rounds"));
    }

    #[test]
    fn curves_end_at_the_rarest_that_was_recorded() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        (1..=1000).for_each(|ms| histogram.record(ms * 1_000_000).unwrap());
        let points = points(&histogram);
        assert_eq!(points.first().unwrap().0, 1.0);
        let (rarity, value) = *points.last().unwrap();
        assert_eq!(rarity, 1000.0);
        assert!((value - 999.0).abs() < 2.0);
        assert!(points.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        let ninety = points.iter().find(|point| (point.0 - 10.0).abs() < 0.01);
        assert!((ninety.unwrap().1 - 900.0).abs() < 2.0);
    }

    #[test]
    fn rounds_are_merged_and_drover_stands_out() {
        let svg = named(&all(&comparison()).unwrap(), "round_trips");
        assert!(svg.contains("stroke-width=\"3.5\""));
        assert!(svg.contains(">drover</text>") && svg.contains(">quinn</text>"));
        assert!(!svg.contains("evil"), "it has no round-trips");
    }
}
