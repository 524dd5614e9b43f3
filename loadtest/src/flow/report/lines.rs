//! Lines over one axis, each labelled at its end.

use crate::plot::axis::{self, Axis, tick};
use crate::plot::color::{self, Color};
use crate::plot::{Drawing, Stroke, Style};

/// One line.
pub(super) struct Line {
    pub(super) label: String,
    pub(super) color: Color,
    pub(super) width: f32,
    pub(super) dashed: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// What the axes say.
pub(super) struct Labels {
    pub(super) title: String,
    pub(super) x: String,
    pub(super) y: String,
    /// Even ratios along x.
    pub(super) logarithmic: bool,
}

const WIDTH: u16 = 1000;
const HEIGHT: u16 = 520;
const LEFT: f32 = 76.0;
const RIGHT: f32 = 800.0;
const TOP: f32 = 72.0;
const BOTTOM: f32 = 452.0;
/// From one label to the next at least.
const STEP: f32 = 18.0;

/// Draws lines from 0 up; not-a-numbers are gaps.
pub(super) fn draw(labels: &Labels, lines: &[Line]) -> Drawing {
    let mut drawing = Drawing::new(WIDTH, HEIGHT);
    drawing.text(
        (24.0, 34.0),
        labels.title.clone(),
        Style::of(18.0, color::INK),
    );
    let points = || lines.iter().flat_map(|line| &line.points);
    let finite = || points().filter(|(_, y)| y.is_finite());
    let (first, last) = finite().fold((f64::INFINITY, 0.0), |(first, last): (f64, f64), (x, _)| {
        (first.min(*x), last.max(*x))
    });
    let first = if first.is_finite() { first } else { 0.0 };
    let most = finite().map(|(_, y)| *y).fold(0.0, f64::max);
    let x = match labels.logarithmic {
        true => Axis::logarithmic(first.max(1e-9), last.max(first * 2.0), (LEFT, RIGHT)),
        false => Axis::linear(first, last, (LEFT, RIGHT)),
    };
    let y = Axis::linear(0.0, most * 1.05, (BOTTOM, TOP));
    let about = (labels.x.as_str(), labels.y.as_str());
    axis::draw(&mut drawing, (&x, tick), &y, about);
    for line in lines {
        let mut stroke = Stroke::of(line.color, line.width);
        if line.dashed {
            stroke = stroke.dashed(6.0, 4.0);
        }
        for part in line.points.split(|(_, y)| !y.is_finite()) {
            let part = part.iter().map(|(px, py)| (x.at(*px), y.at(*py)));
            let part: Vec<_> = part.collect();
            if part.len() > 1 {
                drawing.line(part, stroke);
            }
        }
    }
    draw_labels(&mut drawing, &y, lines);
    drawing
}

/// Each label is as near to its line's end as the others let it.
fn draw_labels(drawing: &mut Drawing, y: &Axis, lines: &[Line]) {
    let mut ends: Vec<(f32, &Line)> = lines
        .iter()
        .filter_map(|line| {
            let last = line.points.iter().rev().find(|(_, y)| y.is_finite())?;
            Some((y.at(last.1), line))
        })
        .collect();
    ends.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut free = TOP;
    for (place, _) in &mut ends {
        *place = place.max(free);
        free = *place + STEP;
    }
    let mut last = BOTTOM;
    for (place, _) in ends.iter_mut().rev() {
        *place = place.min(last);
        last = *place - STEP;
    }
    for (place, line) in ends {
        let style = Style::of(13.0, line.color);
        drawing.text((RIGHT + 12.0, place + 4.0), line.label.clone(), style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stay_apart_and_inside_and_gaps_are_no_lines() {
        let line = |n: u32| Line {
            label: format!("rule {n}"),
            color: color::INK,
            width: 2.0,
            dashed: n == 0,
            points: vec![(1.0, 0.1), (2.0, f64::NAN), (4.0, 0.9), (32.0, 0.9)],
        };
        let labels = Labels {
            title: "a title".to_owned(),
            x: "servers".to_owned(),
            y: "goodput".to_owned(),
            logarithmic: true,
        };
        for count in [0, 1, 8] {
            let lines: Vec<_> = (0..count).map(line).collect();
            let boxes = draw(&labels, &lines).text_boxes();
            for (place, (text, [_, top, right, bottom])) in boxes.iter().enumerate() {
                assert!(
                    *right <= f32::from(WIDTH) && *bottom <= f32::from(HEIGHT),
                    "{text}"
                );
                for (other, [.., o_right, o_bottom]) in &boxes[place + 1..] {
                    let same_column = (right - o_right).abs() < 1.0 && text.starts_with("rule");
                    let apart = (bottom - o_bottom).abs() > 12.0 || !other.starts_with("rule");
                    assert!(!same_column || apart, "{text} meets {other} at {top}");
                }
            }
        }
    }
}
