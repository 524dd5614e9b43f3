//! The fleet: sessions by group and shard, rates, and how the server is.

use control::api::model::overview::Overview;
use ratatui::layout::Size;
use ratatui::text::{Line, Span};

use super::lines::{bar, beside, course, fact, fit, flow, right};
use super::paint::Paint;
use super::{List, Sheet, WIDE, middle};
use crate::cli::top::figures::{Figures, HISTORY_SECONDS, Series};
use crate::cli::top::format::{NONE, bytes, count, count_or_none, rate};
use crate::cli::top::state::State;

/// Columns of the block of shards.
const SHARDS_WIDTH: usize = 34;
/// Columns of a rate's name, of its value, and of the longest course: one for each second would be
/// five screens.
const NAME: usize = 16;
const NOW: usize = 7;
const COURSE_MAX: usize = 60;
/// Columns of the block of rates, at most, and between it and the next.
const RATES_WIDTH: usize = NAME + NOW + 2 + COURSE_MAX;
const GAP: usize = 3;
/// Lines on which there is room for all rates, and for blank lines between blocks.
const TALL: usize = 28;
/// Rates that are shown where there is little room.
const RATES_FEW: usize = 6;

pub(super) fn sheet(state: &State, size: Size) -> Sheet<'_> {
    let paint = Paint::new(state.colour);
    let figures = state.figures();
    let overview = figures.overview();
    let width = usize::from(size.width);
    let tall = middle(size) >= TALL;
    let mut head = sessions(overview, paint, width);
    let server = server(overview, paint, width);
    if width >= WIDE {
        head.extend(server);
        head.push(Line::default());
        let at = (width - SHARDS_WIDTH).min(RATES_WIDTH + 2 * GAP);
        let rates = rates(figures, paint, at - GAP, Series::RATES.len());
        let most = rates.len().max(middle(size) / 3) - 1;
        head.extend(beside(rates, shards(overview, paint, most), at));
        head.push(Line::default());
    } else {
        let most = if tall { Series::RATES.len() } else { RATES_FEW };
        head.extend(rates(figures, paint, width, most));
        head.extend(server);
        if tall && width >= SHARDS_WIDTH {
            head.extend(shards(overview, paint, middle(size) / 5));
        }
    }
    let title = format!("GROUPS {}", count(figures.groups() as u64));
    Sheet {
        head,
        title: Line::from(vec![
            Span::styled(title, paint.title()),
            Span::styled(format!("  {}", state.sort.label()), paint.label()),
        ]),
        list: List {
            length: figures.groups(),
            line: Box::new(move |place| group(figures, place, paint, width)),
        },
    }
}

fn sessions(overview: &Overview, paint: Paint, width: usize) -> Vec<Line<'static>> {
    let sessions = &overview.sessions;
    let states = &overview.processes.by_state;
    let state = |name: &str| states.get(name).copied().unwrap_or(0);
    let waiting = overview.processes.waiting_on.values().sum();
    let up = format!("{} of {}", count(sessions.up), count(sessions.known));
    let mut up = fact(paint, "sessions", up);
    if sessions.up < sessions.known
        && let Some(figure) = up.last_mut()
    {
        figure.style = paint.warn();
    }
    let half_open = sessions.half_open;
    let facts = [
        Some(up),
        half_open.map(|number| fact(paint, "half-open", count(number))),
        Some(fact(paint, "begun", count(sessions.begun))),
        Some(fact(paint, "ended", count(sessions.ended))),
        Some(fact(paint, "running", count(state("running")))),
        Some(fact(paint, "waiting", count(waiting))),
    ];
    flow(facts.into_iter().flatten().collect(), width)
}

fn server(overview: &Overview, paint: Paint, width: usize) -> Vec<Line<'static>> {
    let (server, store, datapath) = (&overview.server, &overview.store, &overview.datapath);
    let cores = server.cpu_cores.map(|cores| format!("{cores:.2} cores"));
    // Queues between the parts of the server that were found full: who sent had to wait.
    let full = [datapath.uplink_full, datapath.mailbox_full];
    let full = full.into_iter().flatten().sum::<u64>() + datapath.downlink_full;
    let facts = [
        // It comes a second after the first look; its place is kept.
        Some(fact(paint, "cpu", cores.as_deref().unwrap_or(NONE))),
        server
            .rss_bytes
            .map(|size| fact(paint, "memory", bytes(size))),
        Some(fact(paint, "commits", count(store.commits))),
        (store.failed_commits > 0).then(|| trouble(paint, "failed", store.failed_commits)),
        datapath
            .kind
            .clone()
            .map(|kind| fact(paint, "datapath", kind)),
        datapath
            .dropped
            .map(|number| trouble(paint, "dropped", number)),
        Some(trouble(paint, "queues full", full)),
        Some(fact(paint, "outbox", count(datapath.outbox))),
    ];
    let mut lines = flow(facts.into_iter().flatten().collect(), width);
    if let Some(error) = &store.error {
        let told = fit(&format!("results cannot be stored: {error}"), width);
        lines.insert(0, Line::from(Span::styled(told, paint.bad())));
    }
    lines
}

/// A count that should be nothing.
fn trouble(paint: Paint, name: &str, number: u64) -> Vec<Span<'static>> {
    let mut told = fact(paint, name, count(number));
    if number > 0
        && let Some(figure) = told.last_mut()
    {
        figure.style = paint.warn();
    }
    told
}

fn rates(figures: &Figures, paint: Paint, width: usize, most: usize) -> Vec<Line<'static>> {
    let room = width.saturating_sub(NAME + NOW + 2).min(COURSE_MAX);
    let minutes = HISTORY_SECONDS / 60;
    let title = format!(
        "{}{}  {}",
        fit("PER SECOND", NAME),
        right("NOW", NOW),
        fit(&format!("LAST {minutes} MIN"), room)
    );
    let mut lines = vec![Line::from(Span::styled(title, paint.title()))];
    lines.extend(Series::RATES.into_iter().take(most).map(|series| {
        let now = series.of(figures.overview());
        let alarming = matches!(
            series,
            Series::Losses | Series::TurnedAway | Series::Refusals
        );
        let style = match now {
            Some(now) if now > 0.0 && alarming => paint.warn(),
            _ => paint.strong(),
        };
        let now = now.map_or_else(|| NONE.to_owned(), rate);
        Line::from(vec![
            Span::styled(fit(series.label(), NAME), paint.label()),
            Span::styled(right(&now, NOW), style),
            Span::raw("  "),
            Span::styled(course(&figures.course(series, room), room), paint.chart()),
        ])
    }));
    lines
}

/// Shards in at most `most` lines below the title.
fn shards(overview: &Overview, paint: Paint, most: usize) -> Vec<Line<'static>> {
    let row = |cells: [&str; 4]| {
        let [shard, sessions, at_home, half_open] = cells;
        let [sessions, at_home] = [sessions, at_home].map(|cell| right(cell, 9));
        format!(
            "{}{sessions}{at_home}{}",
            fit(shard, 6),
            right(half_open, 10)
        )
    };
    let title = row(["SHARD", "SESSIONS", "AT HOME", "HALF-OPEN"]);
    let mut lines = vec![Line::from(Span::styled(title, paint.title()))];
    let all = &overview.sessions.by_shard;
    let shown = if all.len() > most {
        most.saturating_sub(1)
    } else {
        all.len()
    };
    lines.extend(all.iter().take(shown).map(|shard| {
        Line::from(row([
            &shard.shard.to_string(),
            &count(shard.sessions),
            &count(shard.at_home),
            &count_or_none(shard.half_open),
        ]))
    }));
    if let Some(rest) = all.get(shown..).filter(|rest| !rest.is_empty()) {
        let sum = count(rest.iter().map(|shard| shard.sessions).sum());
        let told = format!("{} more shards hold {sum}", rest.len());
        lines.push(Line::from(Span::styled(told, paint.label())));
    }
    lines
}

fn group(figures: &Figures, place: usize, paint: Paint, width: usize) -> Line<'static> {
    let Some(group) = figures.group(place) else {
        return Line::default();
    };
    let whole = group.up >= group.known;
    let figure = format!("{} / {}", count(group.up), count(group.known));
    let figure = right(&figure, 17.min(width / 2));
    let name = (width / 3).clamp(10.min(width), 40);
    let room = width.saturating_sub(name + figure.len() + 3).min(50);
    let style = if whole { paint.strong() } else { paint.warn() };
    let fill = if whole { paint.good() } else { paint.warn() };
    Line::from(vec![
        Span::raw(fit(&group.name, name)),
        Span::styled(figure, style),
        Span::raw("  "),
        Span::styled(bar(group.up, group.known, room), fill),
    ])
}
