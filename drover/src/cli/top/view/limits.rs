//! Limits: how much of each is in use, what it did last, and who waits for which.

use ratatui::layout::Size;
use ratatui::text::{Line, Span};

use super::lines::{bar, fit, right};
use super::paint::Paint;
use super::{List, Sheet, WIDE};
use crate::cli::top::format::count;
use crate::cli::top::limits::{Limit, Limits, Live, Waiting};
use crate::cli::top::state::State;

/// Columns of a limit's name, of what is in use, of its bar, and of what waits.
const NAME: usize = 24;
const USE: usize = 10;
const BAR: usize = 12;
const WAITING: usize = 9;

pub(super) fn sheet(state: &State, size: Size) -> Sheet<'_> {
    let paint = Paint::new(state.colour);
    let width = usize::from(size.width);
    let lines = match state.limits() {
        None => vec![note("asking…", paint)],
        Some(limits) => all(limits, paint, width),
    };
    Sheet {
        head: Vec::new(),
        title: Line::from(vec![
            Span::styled(fit("LIMITS", NAME), paint.title()),
            Span::styled(right("IN USE", USE), paint.label()),
            Span::styled(right("WAITING", WAITING + BAR + 2), paint.label()),
        ]),
        list: List::of(lines),
    }
}

fn note(text: &str, paint: Paint) -> Line<'static> {
    Line::from(Span::styled(text.to_owned(), paint.label()))
}

fn all(limits: &Limits, paint: Paint, width: usize) -> Vec<Line<'static>> {
    if let Some(why) = &limits.trouble {
        return vec![Line::from(Span::styled(why.clone(), paint.bad()))];
    }
    let mut lines = Vec::new();
    for limit in &limits.agents {
        lines.extend(one(limit, paint, width));
    }
    if limits.agents.is_empty() {
        lines.push(note("no agent has work", paint));
    }
    lines.push(Line::default());
    lines.push(Line::from(Span::styled("SET BY OPERATORS", paint.title())));
    if limits.set.is_empty() {
        lines.push(note(
            "none: each agent's limit follows what it can take",
            paint,
        ));
    }
    for limit in &limits.set {
        lines.extend(one(limit, paint, width));
    }
    lines
}

/// A limit, and below it who waits.
fn one(limit: &Limit, paint: Paint, width: usize) -> Vec<Line<'static>> {
    let name = match limit.name.as_str() {
        "" => &limit.key,
        name => name,
    };
    let mut line = Line::from(Span::raw(fit(&format!("{} {name}", limit.scope), NAME)));
    let Some(live) = &limit.live else {
        line.push_span(Span::styled(right("–", USE), paint.label()));
        return vec![line];
    };
    line.extend(figures(live, paint));
    if let Some(last) = live.decision.as_ref().filter(|_| width >= WIDE) {
        let arrow = match last.to.total_cmp(&last.from) {
            std::cmp::Ordering::Greater => "↑",
            std::cmp::Ordering::Less => "↓",
            std::cmp::Ordering::Equal => "=",
        };
        let text = format!("  {arrow} {:.1} → {:.1} {}", last.from, last.to, last.text);
        line.push_span(Span::styled(text, paint.label()));
    }
    let mut lines = vec![line];
    lines.extend(live.lines.iter().map(|waiting| waits(waiting, paint)));
    lines
}

fn figures(live: &Live, paint: Paint) -> Vec<Span<'static>> {
    let full = live.in_use >= live.limit;
    let used = format!(
        "{} / {}",
        count(live.in_use.into()),
        count(live.limit.into())
    );
    let waiting = live.waiting.unwrap_or(0);
    vec![
        Span::styled(
            right(&used, USE),
            if full { paint.warn() } else { paint.strong() },
        ),
        Span::raw("  "),
        Span::styled(
            bar(live.in_use.into(), live.limit.into(), BAR),
            paint.chart(),
        ),
        Span::styled(
            right(
                &live.waiting.map_or("–".to_owned(), |n| count(n.into())),
                WAITING,
            ),
            if waiting > 0 {
                paint.strong()
            } else {
                paint.label()
            },
        ),
    ]
}

fn waits(line: &Waiting, paint: Paint) -> Line<'static> {
    let who = format!("  {} {} {}", line.tenant, line.class, line.kind);
    let what = match &line.parked {
        None => "  wait for their turn".to_owned(),
        Some(parked) => format!(
            "  wait for {} {}, {} / {} in use",
            parked.scope,
            parked.key,
            count(parked.in_use.into()),
            count(parked.limit.into())
        ),
    };
    Line::from(vec![
        Span::styled(fit(&who, NAME), paint.label()),
        Span::styled(right(&count(line.waiting.into()), USE), paint.strong()),
        Span::styled(what, paint.label()),
    ])
}
