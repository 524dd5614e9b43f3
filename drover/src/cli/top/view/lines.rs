//! Lines from words and figures: fitted into columns, side by side, as bars and courses.

use ratatui::text::{Line, Span};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::paint::Paint;

const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Columns that spans take.
pub(super) fn width_of(spans: &[Span<'_>]) -> usize {
    spans.iter().map(Span::width).sum()
}

/// The text in exactly `width` columns: filled up with blanks, or cut with `…`.
pub(super) fn fit(text: &str, width: usize) -> String {
    let whole = text.width();
    if whole <= width {
        return format!("{text}{}", " ".repeat(width - whole));
    }
    let mut cut = String::new();
    let mut taken = 0;
    for c in text.chars() {
        let more = c.width().unwrap_or(0);
        if taken + more >= width {
            break;
        }
        taken += more;
        cut.push(c);
    }
    if width > 0 {
        cut.push('…');
        taken += 1;
    }
    format!("{cut}{}", " ".repeat(width.saturating_sub(taken)))
}

/// The text at the right end of `width` columns.
pub(super) fn right(text: &str, width: usize) -> String {
    let blanks = width.saturating_sub(text.width());
    fit(&format!("{}{text}", " ".repeat(blanks)), width)
}

/// A name and its figure.
pub(super) fn fact(paint: Paint, name: &str, figure: impl Into<String>) -> Vec<Span<'static>> {
    vec![
        Span::styled(format!("{name} "), paint.label()),
        Span::styled(figure.into(), paint.strong()),
    ]
}

/// Facts one after the other, in as many lines as they need; none is broken.
pub(super) fn flow(facts: Vec<Vec<Span<'static>>>, width: usize) -> Vec<Line<'static>> {
    const GAP: &str = "   ";
    let mut lines = Vec::new();
    let mut line = Line::default();
    for fact in facts {
        let taken = line.width();
        if taken > 0 && taken + GAP.len() + width_of(&fact) > width {
            lines.push(std::mem::take(&mut line));
        } else if taken > 0 {
            line.push_span(GAP);
        }
        line.extend(fact);
    }
    if line.width() > 0 {
        lines.push(line);
    }
    lines
}

/// Two blocks side by side, the second at column `at`; the lines of the first are not longer.
pub(super) fn beside(
    left: Vec<Line<'static>>,
    right: Vec<Line<'static>>,
    at: usize,
) -> Vec<Line<'static>> {
    let mut lines = left;
    let height = lines.len().max(right.len());
    lines.resize(height, Line::default());
    for (line, more) in lines.iter_mut().zip(right) {
        let gap = at.saturating_sub(line.width());
        line.push_span(" ".repeat(gap));
        line.extend(more.spans);
    }
    lines
}

/// A course as a row of blocks in exactly `width` columns, the newest at the right; the highest value
/// fills a block, nothing and the unknown leave it empty.
pub(super) fn course(values: &[Option<f64>], width: usize) -> String {
    let values = values
        .get(values.len().saturating_sub(width)..)
        .unwrap_or(values);
    let known = values.iter().flatten().copied();
    let most = known.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let mut text = " ".repeat(width - values.len());
    text.extend(values.iter().map(|value| match value {
        Some(value) if *value > 0.0 && most > 0.0 => block(value / most),
        _ => ' ',
    }));
    text
}

/// A part of a whole as a bar in exactly `width` columns.
pub(super) fn bar(part: u64, whole: u64, width: usize) -> String {
    let share = if whole == 0 {
        0.0
    } else {
        (part as f64 / whole as f64).min(1.0)
    };
    let full = columns(share * width as f64);
    // A part that is not whole never looks whole, and one that is there never looks like nothing.
    let full = if part > 0 && part < whole {
        full.clamp(1, width.saturating_sub(1).max(1))
    } else {
        full
    };
    let full = full.min(width);
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

/// The block for a share of 1.
fn block(share: f64) -> char {
    let eighth = columns(share.clamp(0.0, 1.0) * 8.0).clamp(1, EIGHTHS.len());
    EIGHTHS[eighth - 1]
}

/// The nearest number of columns.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from f64 saturates, and columns are not negative"
)]
pub(super) fn columns(value: f64) -> usize {
    value.round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &Line<'_>) -> String {
        line.spans
            .iter()
            .map(|span| span.content.as_ref())
            .collect()
    }

    #[test]
    fn text_takes_exactly_its_columns_whatever_it_is() {
        for text in [
            "",
            "abc",
            "abcdef",
            "日本語日本語",
            "e\u{301}e\u{301}xyzuv",
            "…",
        ] {
            for width in 0..12 {
                assert_eq!(fit(text, width).width(), width, "{text} {width}");
                assert_eq!(right(text, width).width(), width, "{text} {width}");
            }
        }
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("日本語", 4), "日… ");
        assert_eq!(right("7", 3), "  7");
    }

    #[test]
    fn facts_flow_into_the_next_line_and_are_not_broken() {
        let paint = Paint::new(false);
        let facts = || ["1", "22", "333"].map(|n| fact(paint, "n", n)).to_vec();
        let lines = |width| -> Vec<String> { flow(facts(), width).iter().map(text).collect() };
        assert_eq!(lines(80), ["n 1   n 22   n 333"]);
        assert_eq!(lines(10), ["n 1   n 22", "n 333"]);
        assert_eq!(lines(1), ["n 1", "n 22", "n 333"]);
        assert!(flow(Vec::new(), 10).is_empty());
    }

    #[test]
    fn blocks_stand_side_by_side_also_when_one_is_longer() {
        let block = |words: &[&'static str]| words.iter().copied().map(Line::from).collect();
        let lines = beside(block(&["a"]), block(&["x", "y"]), 3);
        assert_eq!(lines.iter().map(text).collect::<Vec<_>>(), ["a  x", "   y"]);
    }

    #[test]
    fn a_course_is_as_high_as_its_highest_and_has_gaps() {
        let values = [Some(0.0), Some(1.0), None, Some(4.0), Some(8.0)];
        assert_eq!(course(&values, 7), "   ▁ ▄█");
        assert_eq!(course(&values, 2), "▄█");
        assert_eq!(course(&[], 2), "  ");
        assert_eq!(course(&[Some(f64::NAN), Some(f64::INFINITY)], 2), "  ");
    }

    #[test]
    fn a_bar_is_full_only_when_nothing_is_missing() {
        assert_eq!(bar(10, 10, 4), "████");
        assert_eq!(bar(999, 1000, 4), "███░");
        assert_eq!(bar(1, 1000, 4), "█░░░");
        assert_eq!(bar(0, 1000, 4), "░░░░");
        assert_eq!(bar(0, 0, 4), "░░░░");
        assert_eq!(bar(5, 3, 2), "██");
        assert_eq!(bar(1, 2, 0), "");
        assert_eq!(bar(1, 2, 1), "█");
    }
}
