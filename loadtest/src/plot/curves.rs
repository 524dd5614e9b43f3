//! Percentile curves: how long the slowest of so many took, on logarithmic axes.

use super::axis::{self, Axis};
use super::color::{self, Color};
use super::{Drawing, Stroke, Style, font};

/// One curve.
pub(crate) struct Curve {
    pub(crate) label: String,
    pub(crate) color: Color,
    /// Drawn last and thick.
    pub(crate) stands_out: bool,
    /// `1 / (1 - q)` and the value at `q`, in order.
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: u16 = 1100;
const HEIGHT: u16 = 620;
/// Where the axes are.
const LEFT: f32 = 84.0;
const RIGHT: f32 = 940.0;
const TOP: f32 = 72.0;
const BOTTOM: f32 = 548.0;
const LABEL_SIZE: f32 = 13.0;
/// From one label to the next at least.
const LABEL_STEP: f32 = 18.0;

/// Draws curves of values in a unit.
pub(crate) fn draw(title: &str, unit: &str, curves: &[Curve]) -> Drawing {
    let mut drawing = Drawing::new(WIDTH, HEIGHT);
    drawing.text((24.0, 34.0), title, Style::of(18.0, color::INK));
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let positive = || points().map(|point| point.1).filter(|value| *value > 0.0);
    let rarest = points().map(|point| point.0).fold(10.0, f64::max);
    let least = positive().fold(f64::INFINITY, f64::min);
    let greatest = positive().fold(0.0, f64::max);
    let x = Axis::logarithmic(1.0, rarest, (LEFT, RIGHT));
    let y = match least.is_finite() {
        true => Axis::logarithmic(least / 1.2, greatest * 1.2, (BOTTOM, TOP)),
        false => Axis::logarithmic(0.1, 10.0, (BOTTOM, TOP)),
    };
    let about = "so many were not slower; the axis is 1 / (1 - q), logarithmic";
    let unit = format!("[{unit}]");
    axis::draw(&mut drawing, (&x, percent), &y, (about, &unit));
    let (front, back): (Vec<_>, Vec<_>) = curves.iter().partition(|curve| curve.stands_out);
    for curve in back.into_iter().chain(front) {
        let width = if curve.stands_out { 3.5 } else { 1.8 };
        let points = curve
            .points
            .iter()
            .map(|&(rarity, value)| (x.at(rarity), y.at(value)));
        drawing.line(points.collect(), Stroke::of(curve.color, width));
    }
    draw_labels(&mut drawing, &x, &y, curves);
    drawing
}

/// The percentile that leaves one of so many.
fn percent(one_of: f64) -> String {
    let text = format!("{:.4}", 100.0 - 100.0 / one_of);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} %")
}

/// Each label is as near to its curve's end as the others let it.
fn draw_labels(drawing: &mut Drawing, x: &Axis, y: &Axis, curves: &[Curve]) {
    let mut ends: Vec<_> = curves
        .iter()
        .filter_map(|curve| {
            let &(rarity, value) = curve.points.last()?;
            Some((curve, (x.at(rarity), y.at(value))))
        })
        .collect();
    ends.sort_by(|(_, one), (_, other)| one.1.total_cmp(&other.1));
    let wished: Vec<f32> = ends.iter().map(|(_, end)| end.1).collect();
    for ((curve, end), at) in ends.into_iter().zip(spread_out(&wished)) {
        let text = RIGHT + 34.0;
        let leader = vec![end, (RIGHT + 8.0, at), (text - 6.0, at)];
        drawing.line(leader, Stroke::of(color::mixed(curve.color, 0.4), 1.0));
        let style = Style::of(LABEL_SIZE, curve.color);
        drawing.text((text, at + 4.5), curve.label.clone(), style);
        debug_assert!(text + font::width(&curve.label, LABEL_SIZE) < f32::from(WIDTH));
    }
}

/// Moves places, in order, apart by [`LABEL_STEP`], and none below [`BOTTOM`].
fn spread_out(wished: &[f32]) -> Vec<f32> {
    let mut places = wished.to_vec();
    let mut free = TOP;
    for place in &mut places {
        *place = place.max(free);
        free = *place + LABEL_STEP;
    }
    let mut last = BOTTOM + 4.0;
    for place in places.iter_mut().rev() {
        *place = place.min(last);
        last = *place - LABEL_STEP;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::tests::assert_apart;

    #[test]
    fn percentiles_are_of_one_in_so_many() {
        let words = [1.0, 10.0, 1_000.0, 10_000.0].map(percent);
        assert_eq!(words, ["0 %", "90 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn labels_of_curves_that_end_together_stay_apart() {
        let curve = |n: u32| Curve {
            label: format!("peer {n}"),
            color: color::of_peer("quinn", 0),
            stands_out: n == 0,
            points: vec![
                (1.0, 0.1),
                (10.0, 0.2),
                (100_000.0, 5.0 + f64::from(n) / 1e3),
            ],
        };
        for count in [0, 1, 10] {
            let curves: Vec<_> = (0..count).map(curve).collect();
            let drawing = draw("round-trips", "ms", &curves);
            assert_apart(&drawing);
        }
        let places = spread_out(&[BOTTOM, BOTTOM, BOTTOM]);
        assert!(
            places
                .windows(2)
                .all(|pair| pair[1] - pair[0] >= LABEL_STEP)
        );
        assert!(places[2] <= BOTTOM + 4.0);
    }
}
