//! Horizontal bars: a row a peer, one or two panels with an axis each, figures in columns of their
//! own, so that no text meets another whatever the figures are.

use super::axis::{Axis, tick};
use super::color::{self, Color};
use super::{Anchor, Drawing, Stroke, Style, font};
use crate::compare::model::Spread;

/// A picture of bars.
pub(crate) struct Chart {
    pub(crate) title: String,
    /// One a row.
    pub(crate) labels: Vec<(String, Color)>,
    /// Each with a row for every label.
    pub(crate) panels: Vec<Panel>,
    /// Beneath.
    pub(crate) notes: Vec<String>,
}

/// Bars over one axis.
pub(crate) struct Panel {
    pub(crate) heading: String,
    pub(crate) origin: Origin,
    pub(crate) rows: Vec<Row>,
    /// A value to reach that counts for all rows.
    pub(crate) target: Option<f64>,
}

/// Where bars begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// At 0, on even steps.
    Zero,
    /// At 1, on even ratios.
    One,
}

/// The bars of one label: nothing, the whole, or the whole and a part.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) bars: Vec<Bar>,
    /// A value to reach.
    pub(crate) mark: Option<f64>,
}

/// A bar to the median, whiskers from the least to the greatest.
pub(crate) struct Bar {
    pub(crate) spread: Spread,
    pub(crate) color: Color,
    /// Its figures.
    pub(crate) text: String,
    pub(crate) text_color: Color,
}

const MARGIN: f32 = 24.0;
const TITLE_SIZE: f32 = 18.0;
const TEXT_SIZE: f32 = 13.0;
const TICK_SIZE: f32 = 11.0;
/// From the upper edge to the first row: title, headings.
const HEAD: f32 = 84.0;
/// Of one bar with the space around it.
const BAR_STEP: f32 = 20.0;
const ROW_SPACE: f32 = 8.0;
const GAP: f32 = 16.0;
/// Of a panel's axis.
const PANEL_WIDTH: f32 = 330.0;
const NOTE_STEP: f32 = 18.0;

/// What all parts of a chart must know.
struct Layout {
    row_height: f32,
    top: f32,
    bottom: f32,
}

impl Layout {
    fn row(&self, place: usize) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
        let place = place as f32;
        self.top + place * self.row_height
    }
}

/// Draws it, as wide and high as it must be.
pub(crate) fn draw(chart: &Chart) -> Drawing {
    let most = chart.panels.iter().flat_map(|panel| &panel.rows);
    let most = most.map(|row| row.bars.len()).max().unwrap_or(0).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
    let (most, rows, notes) = (
        most as f32,
        chart.labels.len() as f32,
        chart.notes.len() as f32,
    );
    let row_height = BAR_STEP * most + ROW_SPACE;
    let layout = Layout {
        row_height,
        top: HEAD,
        bottom: HEAD + rows * row_height,
    };
    let widest = |texts: &mut dyn Iterator<Item = &str>| {
        texts.fold(0.0, |widest: f32, text| {
            widest.max(font::width(text, TEXT_SIZE))
        })
    };
    let labels = widest(&mut chart.labels.iter().map(|(text, _)| text.as_str()));
    let columns = chart.panels.iter().map(|panel| {
        let bars = panel.rows.iter().flat_map(|row| &row.bars);
        widest(&mut bars.map(|bar| bar.text.as_str()))
    });
    let columns: Vec<f32> = columns.collect();
    let left = MARGIN + labels + GAP;
    let panels: f32 = columns
        .iter()
        .map(|text| PANEL_WIDTH + text + 2.0 * GAP)
        .sum();
    let title = 2.0 * MARGIN + font::width(&chart.title, TITLE_SIZE);
    let noted = chart.notes.iter().map(|note| font::width(note, TEXT_SIZE));
    let noted = noted.fold(0.0, f32::max) + 2.0 * MARGIN;
    let width = (left + panels + MARGIN - GAP).max(title).max(noted);
    let height = layout.bottom + 32.0 + notes * NOTE_STEP + MARGIN / 2.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates; a picture so large is none"
    )]
    let mut drawing = Drawing::new(width.ceil() as u16, height.ceil() as u16);
    let ink = Style::of(TEXT_SIZE, color::INK);
    let title = Style::of(TITLE_SIZE, color::INK);
    drawing.text((MARGIN, 34.0), chart.title.clone(), title);
    for (place, (label, color)) in chart.labels.iter().enumerate() {
        let at = (left - GAP, layout.row(place) + row_height / 2.0 + 4.5);
        let style = Style::of(TEXT_SIZE, *color).anchored(Anchor::End);
        drawing.text(at, label.clone(), style);
    }
    let mut from = left;
    for (panel, column) in chart.panels.iter().zip(columns) {
        draw_panel(&mut drawing, panel, &layout, from, column);
        from += PANEL_WIDTH + column + 2.0 * GAP;
    }
    let mut base = layout.bottom + 32.0 + TEXT_SIZE;
    for note in &chart.notes {
        let style = Style {
            color: color::FAINT,
            ..ink
        };
        drawing.text((MARGIN, base), note.clone(), style);
        base += NOTE_STEP;
    }
    drawing
}

/// An axis that has room for every bar, whisker and mark.
fn axis_of(panel: &Panel, from: f32) -> Axis {
    let spreads = panel.rows.iter().flat_map(|row| &row.bars);
    let mut values: Vec<f64> = spreads
        .flat_map(|bar| [bar.spread.min, bar.spread.max])
        .chain(panel.rows.iter().filter_map(|row| row.mark))
        .chain(panel.target)
        .filter(|value| value.is_finite())
        .collect();
    values.sort_by(f64::total_cmp);
    let least = values.first().copied().unwrap_or(0.0);
    let greatest = values.last().copied().unwrap_or(1.0);
    let pixels = (from, from + PANEL_WIDTH);
    match panel.origin {
        Origin::Zero => Axis::linear(least.min(0.0), greatest * 1.05, pixels),
        Origin::One => {
            // A ratio of 0 has no place on this axis and stands at its end.
            let least = if least > 0.0 { least } else { 0.01 };
            Axis::logarithmic(least.min(0.5) / 1.15, greatest.max(2.0) * 1.15, pixels)
        }
    }
}

fn draw_panel(drawing: &mut Drawing, panel: &Panel, layout: &Layout, from: f32, column: f32) {
    let axis = axis_of(panel, from);
    let heading = Style::of(TEXT_SIZE, color::FAINT);
    drawing.text((from, HEAD - 24.0), panel.heading.clone(), heading);
    draw_ticks(drawing, &axis, layout);
    let origin = axis.at(match panel.origin {
        Origin::Zero => 0.0,
        Origin::One => 1.0,
    });
    for (place, row) in panel.rows.iter().enumerate() {
        let top = layout.row(place);
        #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
        let unused = layout.row_height - row.bars.len() as f32 * BAR_STEP;
        for (number, bar) in row.bars.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
            let top = top + unused / 2.0 + number as f32 * BAR_STEP;
            draw_bar(drawing, &axis, bar, origin, top, number > 0);
            let at = (from + PANEL_WIDTH + GAP + column, top + 14.0);
            let style = Style::of(TEXT_SIZE, bar.text_color).anchored(Anchor::End);
            drawing.text(at, bar.text.clone(), style);
        }
        if let Some(mark) = row.mark {
            let x = axis.at(mark);
            let ends = vec![(x, top + 2.0), (x, top + layout.row_height - 2.0)];
            drawing.line(ends, Stroke::of(color::TARGET, 2.5));
        }
    }
    let whole = |x| vec![(x, layout.top - 4.0), (x, layout.bottom)];
    drawing.line(whole(origin), Stroke::of(color::INK, 1.2));
    if let Some(target) = panel.target {
        let stroke = Stroke::of(color::TARGET, 2.0).dashed(5.0, 3.0);
        drawing.line(whole(axis.at(target)), stroke);
    }
}

fn draw_bar(drawing: &mut Drawing, axis: &Axis, bar: &Bar, origin: f32, top: f32, is_part: bool) {
    let (inset, thick) = if is_part { (6.0, 8.0) } else { (3.0, 14.0) };
    let end = axis.at(bar.spread.median);
    drawing.rectangle((origin, top + inset), (end - origin, thick), bar.color);
    let middle = top + inset + thick / 2.0;
    let (least, greatest) = (axis.at(bar.spread.min), axis.at(bar.spread.max));
    let stroke = Stroke::of(color::INK, 1.2);
    drawing.line(vec![(least, middle), (greatest, middle)], stroke);
    for x in [least, greatest] {
        drawing.line(vec![(x, middle - 3.0), (x, middle + 3.0)], stroke);
    }
}

/// Ticks from left to right, without those whose text would meet the one before.
fn draw_ticks(drawing: &mut Drawing, axis: &Axis, layout: &Layout) {
    let mut free = f32::NEG_INFINITY;
    for value in axis.ticks() {
        let (x, text) = (axis.at(value), tick(value));
        let line = vec![(x, layout.top - 4.0), (x, layout.bottom + 4.0)];
        drawing.line(line, Stroke::of(color::GRID, 1.0));
        let half = font::width(&text, TICK_SIZE) / 2.0;
        if x - half > free {
            let style = Style::of(TICK_SIZE, color::FAINT).anchored(Anchor::Middle);
            drawing.text((x, layout.bottom + 18.0), text, style);
            free = x + half + 6.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::tests::assert_apart;

    fn bar(median: f64) -> Bar {
        Bar {
            spread: Spread {
                median,
                min: median * 0.7,
                max: median * 1.4,
                rounds: 3,
            },
            color: color::LESS,
            text: format!("{median} (a – b) and more"),
            text_color: color::INK,
        }
    }

    fn panel(origin: Origin, values: &[f64]) -> Panel {
        let row = |&value: &f64| Row {
            bars: vec![bar(value), bar(value / 2.0)],
            mark: Some(0.7),
        };
        Panel {
            heading: "a heading of the panel".to_owned(),
            origin,
            rows: values.iter().map(row).collect(),
            target: Some(1.2),
        }
    }

    #[test]
    fn no_text_meets_another_whatever_the_figures_are() {
        for values in [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.001, 3.0, 80_000.0]] {
            let chart = Chart {
                title: "a title".to_owned(),
                labels: ["drover", "quinn", "a peer with a long name"]
                    .map(|name| (name.to_owned(), color::INK))
                    .to_vec(),
                panels: vec![panel(Origin::Zero, &values), panel(Origin::One, &values)],
                notes: vec!["one note".to_owned(), "and another".to_owned()],
            };
            let drawing = draw(&chart);
            assert_apart(&drawing);
            assert!(drawing.svg().contains("a peer with a long name"));
        }
    }

    #[test]
    fn an_empty_chart_is_drawn() {
        let chart = Chart {
            title: "nothing was measured".to_owned(),
            labels: Vec::new(),
            panels: Vec::new(),
            notes: Vec::new(),
        };
        assert_apart(&draw(&chart));
    }
}
