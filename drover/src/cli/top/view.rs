//! Draws a frame from the state: the same state and size make the same frame.
//!
//! ```text
//!   drover top  HOST  ● ready  up …          1 fleet  2 processes  3 latency  4 limits
//!   head: figures, as much of them as leaves the list some room
//!   list: scrolled
//!   keys, or what is wrong with the connection
//! ```

mod fleet;
mod help;
mod latency;
mod limits;
mod lines;
mod paint;
mod processes;
#[cfg(test)]
mod tests;

use control::api::model::overview::ServerState;
use ratatui::Frame;
use ratatui::layout::{Rect, Size};
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use self::lines::{fit, width_of};
use self::paint::Paint;
use super::format::{count, span};
use super::state::{Freshness, Page, State};

/// Rows of a list that are kept free below the head, its title included.
const LIST_LEAST: usize = 4;
/// From this many columns on there is room for the address and for two blocks beside each other.
const WIDE: usize = 76;

/// What a page shows: lines that stay, a title, and a list that scrolls.
struct Sheet<'a> {
    head: Vec<Line<'static>>,
    title: Line<'static>,
    list: List<'a>,
}

/// A list, of which only the lines in sight are made.
struct List<'a> {
    length: usize,
    line: Box<dyn Fn(usize) -> Line<'static> + 'a>,
}

impl List<'_> {
    fn of(lines: Vec<Line<'static>>) -> Self {
        List {
            length: lines.len(),
            line: Box::new(move |at| lines.get(at).cloned().unwrap_or_default()),
        }
    }
}

/// Draws a frame.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    let paint = Paint::new(state.colour);
    let row = |y: u16| Rect::new(area.x, area.y.saturating_add(y), area.width, 1);
    if area.width == 0 || area.height == 0 {
        return;
    }
    frame.render_widget(header(state, paint, usize::from(area.width)), row(0));
    if area.height == 1 {
        return;
    }
    let last = area.height - 1;
    frame.render_widget(footer(state, paint, usize::from(area.width)), row(last));
    let sheet = sheet(state, area.as_size());
    let head = head_room(&sheet, area.as_size());
    let room = list_room(&sheet, area.as_size());
    let first = state.scroll.min(sheet.list.length.saturating_sub(room));
    let end = sheet.list.length.min(first.saturating_add(room));
    let seen = (first..end).map(|at| (sheet.list.line)(at));
    let title = title(&sheet, first, end, usize::from(area.width), paint);
    let lines = sheet.head.iter().take(head).cloned().chain([title]);
    for (y, line) in (1..last).zip(lines.chain(seen)) {
        frame.render_widget(line, row(y));
    }
    if state.freshness() != Freshness::Live {
        let middle = Rect::new(area.x, area.y + 1, area.width, last - 1);
        frame.buffer_mut().set_style(middle, paint.old());
    }
    if state.help {
        help::draw(frame, paint);
    }
}

/// Lines of the page's list that can be seen at once.
pub(super) fn room(state: &State) -> usize {
    list_room(&sheet(state, state.size), state.size)
}

/// How far the page's list can be scrolled.
pub(super) fn scroll_max(state: &State) -> usize {
    let sheet = sheet(state, state.size);
    let room = list_room(&sheet, state.size);
    sheet.list.length.saturating_sub(room)
}

fn sheet(state: &State, size: Size) -> Sheet<'_> {
    match state.page {
        Page::Fleet => fleet::sheet(state, size),
        Page::Processes => processes::sheet(state, size),
        Page::Latency => latency::sheet(state, size),
        Page::Limits => limits::sheet(state, size),
    }
}

/// Lines between header and footer.
fn middle(size: Size) -> usize {
    usize::from(size.height).saturating_sub(2)
}

fn head_room(sheet: &Sheet<'_>, size: Size) -> usize {
    let list = LIST_LEAST.min(sheet.list.length + 1);
    sheet.head.len().min(middle(size).saturating_sub(list))
}

fn list_room(sheet: &Sheet<'_>, size: Size) -> usize {
    middle(size).saturating_sub(head_room(sheet, size) + 1)
}

/// The list's title, and which part of it is in sight where that is not all of it; where there is no
/// room to say it, an arrow to where it goes on.
fn title(sheet: &Sheet<'_>, first: usize, end: usize, width: usize, paint: Paint) -> Line<'static> {
    let mut title = sheet.title.clone();
    if end - first < sheet.list.length && end > first {
        let [from, to, all] = [first + 1, end, sheet.list.length].map(|at| count(at as u64));
        let mut part = format!("  {from}–{to} of {all}");
        if title.width() + width_of(&[Span::raw(part.as_str())]) > width {
            part = if end < sheet.list.length {
                " ↓"
            } else {
                " ↑"
            }
            .to_owned();
        }
        title.push_span(Span::styled(part, paint.label()));
    }
    title
}

fn header(state: &State, paint: Paint, width: usize) -> Line<'static> {
    let overview = state.figures().overview();
    let (word, style) = match (state.freshness(), overview.server.state) {
        (Freshness::Lost(..), _) => ("○ lost", paint.bad()),
        (_, ServerState::Ready) => ("● ready", paint.good()),
        (_, ServerState::Degraded) => ("▲ degraded", paint.bad()),
        (_, ServerState::Draining) => ("◌ draining", paint.warn()),
    };
    let mut line = Line::default();
    if width >= WIDE {
        line.push_span(Span::styled("drover top ", paint.strong()));
    }
    line.push_span(Span::styled(format!("{word} "), style));
    let mut tabs = tabs(state.page, paint, true);
    // The blank behind the last name may fall off.
    if width_of(&tabs) + line.width() > width + 1 {
        tabs = self::tabs(state.page, paint, false);
    }
    let taken = width_of(&tabs) + line.width();
    let mut rest = width.saturating_sub(taken);
    for fact in [
        format!("up {} ", span(overview.server.uptime_seconds)),
        format!("{} ", state.address),
        format!("v{} ", overview.server.version),
    ] {
        let fact = Span::styled(fact, paint.label());
        if fact.width() <= rest {
            rest -= fact.width();
            line.push_span(fact);
        }
    }
    line.push_span(" ".repeat(rest));
    line.extend(tabs);
    line
}

/// The pages; without names only the chosen one has its own.
fn tabs(chosen: Page, paint: Paint, names: bool) -> Vec<Span<'static>> {
    let tab = |(number, page): (usize, Page)| {
        let style = if page == chosen {
            paint.chosen()
        } else {
            Style::new()
        };
        if names || page == chosen {
            Span::styled(format!(" {number} {} ", page.label()), style)
        } else {
            Span::styled(format!(" {number} "), style)
        }
    };
    (1..).zip(Page::ALL).map(tab).collect()
}

fn footer(state: &State, paint: Paint, width: usize) -> Line<'static> {
    let trouble = match state.freshness() {
        Freshness::Live => None,
        Freshness::Stale(age) => Some(format!("no new figures for {}", span(age))),
        Freshness::Lost(why, age) => {
            // The address is in the header; the cause stands last.
            let cause = why.rsplit(": ").next().unwrap_or_default();
            Some(format!("reconnecting for {}: {cause}", span(age)))
        }
    };
    let mut line = Line::default();
    if state.paused() {
        let at = state.figures().overview().at.to_string();
        let clock = at.get(11..19).unwrap_or_default();
        line.push_span(Span::styled(
            format!(" paused at {clock} UTC "),
            paint.chosen(),
        ));
    }
    if let Some(trouble) = trouble {
        let rest = width.saturating_sub(line.width() + 1);
        line.push_span(Span::styled(
            format!(" {}", fit(&trouble, rest)),
            paint.alarm(),
        ));
        return line;
    }
    let sort = if state.page == Page::Fleet {
        "sort"
    } else {
        ""
    };
    for (key, what) in [
        ("q", "quit"),
        ("?", "help"),
        ("tab", "page"),
        ("p", if state.paused() { "go on" } else { "pause" }),
        ("s", sort),
        ("↑↓", "scroll"),
    ] {
        let hint = [
            Span::styled(format!(" {key}"), paint.strong()),
            Span::styled(format!(" {what} "), paint.label()),
        ];
        if !what.is_empty() && line.width() + width_of(&hint) <= width {
            line.extend(hint);
        }
    }
    line
}
