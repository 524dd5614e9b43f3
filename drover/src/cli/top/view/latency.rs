//! Latency: percentiles as figures, and all of them on one scale.

use control::api::model::overview::LatencyOverview;
use ratatui::layout::Size;
use ratatui::text::{Line, Span};

use super::lines::{columns, fit, right};
use super::paint::Paint;
use super::{List, Sheet, WIDE};
use crate::cli::top::format::{count, micros, words};
use crate::cli::top::state::State;

/// Columns of a name.
const NAME: usize = 19;
/// Columns of a figure.
const FIGURE: usize = 9;
/// The scale goes from 10 µs to 100 s, in powers of ten.
const SCALE_FROM: f64 = 1.0;
const SCALE_DECADES: u32 = 7;
/// The longest scale.
const SCALE_MAX: usize = 100;

type Percentile = (&'static str, fn(&LatencyOverview) -> u64);

const ALL: [Percentile; 5] = [
    ("p50", |took| took.p50_us),
    ("p90", |took| took.p90_us),
    ("p99", |took| took.p99_us),
    ("p99.9", |took| took.p999_us),
    ("max", |took| took.max_us),
];
/// What is shown where there is little room.
const FEW: [usize; 2] = [0, 2];

pub(super) fn sheet(state: &State, size: Size) -> Sheet<'_> {
    let paint = Paint::new(state.colour);
    let latency = &state.figures().overview().latency;
    let width = usize::from(size.width);
    let wide = width >= WIDE;
    let chosen: Vec<Percentile> = ALL
        .into_iter()
        .enumerate()
        .filter(|(at, _)| wide || FEW.contains(at))
        .map(|(_, percentile)| percentile)
        .collect();
    let row = |name: &str, cells: Vec<String>| {
        let cells = cells.iter().map(|cell| right(cell, FIGURE));
        format!("{}{}", fit(name, NAME), cells.collect::<String>())
    };
    let mut names: Vec<String> = chosen.iter().map(|(name, _)| (*name).to_owned()).collect();
    if wide {
        names.push("count".to_owned());
    }
    let title = Line::from(Span::styled(row("SINCE THE START", names), paint.title()));
    let mut lines: Vec<Line<'static>> = latency
        .iter()
        .map(|(name, took)| {
            let mut cells: Vec<String> = chosen.iter().map(|(_, of)| micros(of(took))).collect();
            if wide {
                cells.push(count(took.count));
            }
            Line::from(row(&words(name), cells))
        })
        .collect();
    if lines.is_empty() {
        let none = "nothing has been measured yet";
        lines.push(Line::from(Span::styled(none, paint.label())));
    } else {
        lines.push(Line::default());
        let room = width.saturating_sub(NAME + 1).min(SCALE_MAX);
        lines.push(Line::from(vec![
            Span::styled(fit("ON ONE SCALE", NAME), paint.title()),
            Span::styled(axis(room), paint.label()),
        ]));
        lines.extend(latency.iter().map(|(name, took)| {
            Line::from(vec![
                Span::raw(fit(&words(name), NAME)),
                Span::styled(mark(took, room), paint.chart()),
            ])
        }));
        lines.push(Line::default());
        let legend = "● p50   ━ to p99   │ p99   ┄ to the longest";
        lines.push(Line::from(Span::styled(legend, paint.label())));
    }
    Sheet {
        head: Vec::new(),
        title,
        list: List::of(lines),
    }
}

/// The column of a duration on the scale.
fn place(micros: u64, room: usize) -> usize {
    let decades = (micros.max(1) as f64).log10() - SCALE_FROM;
    let share = (decades / f64::from(SCALE_DECADES)).clamp(0.0, 1.0);
    columns(share * room.saturating_sub(1) as f64)
}

/// Powers of ten, where one has room beside the one before.
fn axis(room: usize) -> String {
    let mut text = String::new();
    let mut taken = 0;
    let mut micros_at = 10;
    for _ in 0..=SCALE_DECADES {
        let at = place(micros_at, room);
        let label = micros(micros_at)
            .replace(".00", "")
            .replace(".0", "")
            .replace(' ', "");
        let label = if micros_at >= 60_000_000 {
            "100s".to_owned()
        } else {
            label
        };
        let width = label.chars().count();
        if (taken == 0 || at > taken) && at + width <= room {
            text.push_str(&" ".repeat(at - taken));
            text.push_str(&label);
            taken = at + width;
        }
        micros_at *= 10;
    }
    fit(&text, room)
}

/// A duration's spread on the scale.
fn mark(took: &LatencyOverview, room: usize) -> String {
    let [half, most, longest] = [took.p50_us, took.p99_us, took.max_us].map(|at| place(at, room));
    (0..room)
        .map(|at| match at {
            at if at == half => '●',
            at if at == most => '│',
            at if at > half && at < most => '━',
            at if at > most && at <= longest => '┄',
            _ => ' ',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(p50_us: u64, p99_us: u64, max_us: u64) -> LatencyOverview {
        LatencyOverview {
            p50_us,
            p90_us: p50_us,
            p99_us,
            p999_us: p99_us,
            max_us,
            count: 1,
        }
    }

    #[test]
    fn a_spread_stands_where_the_axis_says() {
        let axis = axis(71);
        assert!(
            axis.starts_with("10µs      100µs     1ms       10ms"),
            "{axis}"
        );
        let mark = mark(&took(100, 10_000, 100_000), 71);
        let at = |c| mark.chars().position(|one| one == c);
        assert_eq!((at('●'), at('│'), at('┄')), (Some(10), Some(30), Some(31)));
        assert_eq!(mark.chars().filter(|c| *c == '┄').count(), 10);
    }

    #[test]
    fn what_is_off_the_scale_stands_at_its_end() {
        assert!(mark(&took(0, 0, 0), 20).starts_with('●'));
        assert!(mark(&took(u64::MAX, u64::MAX, u64::MAX), 20).ends_with('●'));
        for room in 0..30 {
            assert_eq!(axis(room).chars().count(), room);
            assert_eq!(mark(&took(1, 2, 3), room).chars().count(), room);
        }
    }
}
