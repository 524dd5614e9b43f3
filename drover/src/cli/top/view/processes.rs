//! Processes: how many are in which state, what they wait on, and the newest failures.

use control::api::model::overview::{Failure, Overview};
use ratatui::layout::Size;
use ratatui::text::{Line, Span};

use super::lines::{bar, beside, fit, right};
use super::paint::Paint;
use super::{List, Sheet, WIDE};
use crate::cli::top::format::{count, span, words};
use crate::cli::top::state::State;

/// States in the order of a process's life; those of a newer server follow.
const LIVING: [&str; 9] = [
    "scheduled",
    "blocked",
    "ready",
    "backoff",
    "leased",
    "running",
    "paused",
    "unknown",
    "cancelling",
];
const ENDED: [&str; 3] = ["succeeded", "failed", "cancelled"];
/// What processes wait on, in words.
const WAITS: [(&str, &str); 7] = [
    ("permit", "a free place"),
    ("session", "their agent"),
    ("pause", "a pause's end"),
    ("backoff", "next attempt"),
    ("time", "their time"),
    ("resource", "a resource"),
    ("answer", "an answer"),
];
/// From this many columns on a whole id fits beside the message.
const ROOMY: usize = 100;

pub(super) fn sheet(state: &State, size: Size) -> Sheet<'_> {
    let paint = Paint::new(state.colour);
    let overview = state.figures().overview();
    let width = usize::from(size.width);
    let wide = width >= WIDE;
    let column = if wide {
        (width - 4).min(120) / 2
    } else {
        width
    };
    let living = bars("PROCESSES NOW", &living(overview), paint, column);
    let waits = bars("WAITING ON", &waits(overview), paint, column);
    let ended = bars("ENDED SINCE THE START", &ended(overview), paint, column);
    let failures = failures(overview, paint, width);
    let title = Line::from(Span::styled("NEWEST FAILURES", paint.title()));
    if wide {
        let mut right = waits;
        right.push(Line::default());
        right.extend(ended);
        let mut head = beside(living, right, column + 4);
        head.push(Line::default());
        let list = List::of(failures);
        return Sheet { head, title, list };
    }
    // Where there is little room all of it scrolls.
    let mut blocks = living.into_iter();
    let first = blocks.next().unwrap_or_default();
    let mut lines: Vec<Line<'static>> = blocks.collect();
    for mut block in [waits, ended, [vec![title], failures].concat()] {
        lines.push(Line::default());
        lines.append(&mut block);
    }
    Sheet {
        head: Vec::new(),
        title: first,
        list: List::of(lines),
    }
}

fn living(overview: &Overview) -> Vec<(String, u64)> {
    let states = &overview.processes.by_state;
    let known = LIVING
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), *states.get(*name)?)));
    let newer = states
        .iter()
        .filter(|(name, _)| !LIVING.contains(&name.as_str()) && !ENDED.contains(&name.as_str()));
    known
        .chain(newer.map(|(name, number)| (words(name), *number)))
        .collect()
}

fn ended(overview: &Overview) -> Vec<(String, u64)> {
    let states = &overview.processes.by_state;
    ENDED
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), *states.get(*name)?)))
        .collect()
}

fn waits(overview: &Overview) -> Vec<(String, u64)> {
    let waits = &overview.processes.waiting_on;
    let known = WAITS
        .iter()
        .filter_map(|(name, told)| Some(((*told).to_owned(), *waits.get(*name)?)));
    let newer = waits
        .iter()
        .filter(|(name, _)| WAITS.iter().all(|(known, _)| known != name));
    known
        .chain(newer.map(|(name, number)| (words(name), *number)))
        .collect()
}

fn bars(title: &str, rows: &[(String, u64)], paint: Paint, width: usize) -> Vec<Line<'static>> {
    const NAME: usize = 13;
    const FIGURE: usize = 11;
    let most = rows.iter().map(|(_, number)| *number).max().unwrap_or(0);
    let room = width.saturating_sub(NAME + FIGURE + 2);
    let mut lines = vec![Line::from(Span::styled(title.to_owned(), paint.title()))];
    lines.extend(rows.iter().map(|(name, number)| {
        let style = match (name.as_str(), *number) {
            (_, 0) => paint.label(),
            ("failed" | "unknown", _) => paint.bad(),
            _ => paint.strong(),
        };
        Line::from(vec![
            Span::styled(fit(name, NAME), paint.label()),
            Span::styled(right(&count(*number), FIGURE), style),
            Span::raw("  "),
            Span::styled(length(*number, most, room), paint.chart()),
        ])
    }));
    lines
}

/// A bar without the part that is not there.
fn length(part: u64, most: u64, room: usize) -> String {
    bar(part, most, room).replace('░', "")
}

fn failures(overview: &Overview, paint: Paint, width: usize) -> Vec<Line<'static>> {
    let failures = &overview.processes.newest_failures;
    if failures.is_empty() {
        let none = "none that is still kept";
        return vec![Line::from(Span::styled(none, paint.label()))];
    }
    let row = |failure: &Failure| {
        let seconds = overview.at.0.saturating_sub(failure.at.0) / 1000;
        let id = failure.process.to_string();
        let id = match (id.get(..8), id.get(30..)) {
            (Some(start), Some(end)) if width < ROOMY => format!("{start}…{end}"),
            _ => id,
        };
        let ago = fit(&format!("{} ago", span(seconds)), 14);
        // On a narrow terminal the message matters more than the id.
        let id = if width < WIDE {
            String::new()
        } else {
            format!("{id}  ")
        };
        Line::from(vec![
            Span::styled(ago, paint.label()),
            Span::raw(format!("{} ", fit(&failure.kind, 9))),
            Span::styled(id, paint.label()),
            Span::raw(failure.message.clone()),
        ])
    };
    failures.iter().map(row).collect()
}
