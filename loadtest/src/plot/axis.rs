//! From values to pixels, and the ticks between; and a pair of axes, drawn.

use super::color;
use super::{Anchor, Drawing, Stroke, Style};

/// An axis: values between two ends, on pixels between two ends (which may run backwards).
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    pixels: (f32, f32),
    logarithmic: bool,
}

impl Axis {
    /// Even steps; `low` is below `high`.
    pub(crate) fn linear(low: f64, high: f64, pixels: (f32, f32)) -> Self {
        Self {
            low,
            high: if high > low { high } else { low + 1.0 },
            pixels,
            logarithmic: false,
        }
    }

    /// Even ratios; both ends above 0.
    pub(crate) fn logarithmic(low: f64, high: f64, pixels: (f32, f32)) -> Self {
        let low = if low > 0.0 { low } else { f64::MIN_POSITIVE };
        Self {
            low,
            high: if high > low { high } else { low * 10.0 },
            pixels,
            logarithmic: true,
        }
    }

    /// Where a value is; one beyond the ends is at the end.
    pub(crate) fn at(&self, value: f64) -> f32 {
        let value = value.clamp(self.low, self.high);
        let part = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        #[expect(clippy::cast_possible_truncation, reason = "0 to 1")]
        let part = part as f32;
        self.pixels.0 + part * (self.pixels.1 - self.pixels.0)
    }

    /// Values for ticks: round ones, about half a dozen, in order.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let all = self.steps(&[1.0, 2.0, 5.0]);
            return match all.len() {
                0..=9 => all,
                _ => self.steps(&[1.0]),
            };
        }
        let step = round_step((self.high - self.low) / 5.0);
        let mut ticks = Vec::new();
        let mut tick = (self.low / step).ceil() * step;
        while tick <= self.high * (1.0 + 1e-9) {
            ticks.push(tick);
            tick += step;
        }
        ticks
    }

    fn steps(&self, multiples: &[f64]) -> Vec<f64> {
        let mut decade = 10_f64.powf(self.low.log10().floor());
        let mut ticks = Vec::new();
        while decade <= self.high {
            let inside = multiples.iter().map(|multiple| multiple * decade);
            let (low, high) = (self.low * (1.0 - 1e-9), self.high * (1.0 + 1e-9));
            ticks.extend(inside.filter(|tick| (low..=high).contains(tick)));
            decade *= 10.0;
        }
        ticks
    }
}

/// Draws a pair of axes with their grid: x from left to right, its ticks called by `name`; y from the bottom
/// to the top. What they are about is said below x and above y.
pub(crate) fn draw(
    drawing: &mut Drawing,
    (x, name): (&Axis, fn(f64) -> String),
    y: &Axis,
    (about_x, about_y): (&str, &str),
) {
    let ((left, right), (bottom, top)) = (x.pixels, y.pixels);
    let faint = Style::of(12.0, color::FAINT);
    let grid = Stroke::of(color::GRID, 1.0);
    for value in x.ticks() {
        let at = x.at(value);
        drawing.line(vec![(at, top), (at, bottom + 5.0)], grid);
        let style = faint.anchored(Anchor::Middle);
        drawing.text((at, bottom + 22.0), name(value), style);
    }
    for value in y.ticks() {
        let at = y.at(value);
        drawing.line(vec![(left - 5.0, at), (right, at)], grid);
        let style = faint.anchored(Anchor::End);
        drawing.text((left - 10.0, at + 4.0), tick(value), style);
    }
    let ink = Stroke::of(color::INK, 1.2);
    drawing.line(vec![(left, top), (left, bottom), (right, bottom)], ink);
    drawing.text((24.0, top - 14.0), about_y, faint);
    let below = (f32::midpoint(left, right), bottom + 46.0);
    drawing.text(below, about_x, faint.anchored(Anchor::Middle));
}

/// The least of 1, 2 and 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let decade = 10_f64.powf(least.log10().floor());
    let multiples = [1.0, 2.0, 5.0, 10.0];
    let fitting = multiples
        .iter()
        .find(|m| **m * decade >= least * (1.0 - 1e-9));
    fitting.unwrap_or(&10.0) * decade
}

/// Three digits that count: `0.0421`, `0.42`, `1.25`, `12.5`, `1,250`.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size == 0.0 => 0,
        _ if size < 0.1 => 4,
        _ if size < 10.0 => 2,
        _ if size < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    let (whole, _) = text.split_once('.').unwrap_or((&text, ""));
    match whole.len() {
        0..=3 => text,
        length => {
            let (thousands, rest) = whole.split_at(length - 3);
            format!("{thousands},{rest}")
        }
    }
}

/// As short as a tick can be: `0.5`, `2`, `10`.
pub(crate) fn tick(value: f64) -> String {
    let text = short(value);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_between_the_ends() {
        let axis = Axis::linear(0.0, 10.0, (100.0, 200.0));
        assert_eq!(
            (axis.at(0.0), axis.at(5.0), axis.at(99.0)),
            (100.0, 150.0, 200.0)
        );
        let axis = Axis::logarithmic(0.1, 10.0, (200.0, 100.0));
        assert!((axis.at(1.0) - 150.0).abs() < 0.01);
        assert_eq!(axis.at(0.0), 200.0);
    }

    #[test]
    fn ticks_are_round() {
        let linear = |high| Axis::linear(0.0, high, (0.0, 1.0)).ticks();
        assert_eq!(linear(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear(130.0), [0.0, 50.0, 100.0]);
        let ratio = Axis::logarithmic(0.4, 3.0, (0.0, 1.0)).ticks();
        assert_eq!(ratio, [0.5, 1.0, 2.0]);
        let many = Axis::logarithmic(1.0, 10_000.0, (0.0, 1.0)).ticks();
        assert_eq!(many, [1.0, 10.0, 100.0, 1_000.0, 10_000.0]);
    }

    #[test]
    fn axes_name_every_tick_at_its_place_and_say_what_they_are_about() {
        let mut drawing = Drawing::new(400, 300);
        let x = Axis::linear(0.0, 10.0, (100.0, 300.0));
        let y = Axis::linear(0.0, 5.0, (200.0, 50.0));
        let hosts = |value: f64| format!("{value:.0} hosts");
        draw(&mut drawing, (&x, hosts), &y, ("below", "above"));
        let boxes = drawing.text_boxes();
        let of = |wanted: &str| {
            let found = boxes.iter().find(|(text, _)| text == wanted);
            found
                .unwrap_or_else(|| panic!("no {wanted} in {boxes:?}"))
                .1
        };
        let [left, top, right, _] = of("10 hosts");
        assert!((f32::midpoint(left, right) - 300.0).abs() < 1.0 && top > 200.0);
        let [_, top, right, bottom] = of("5");
        assert!(right < 100.0 && top < 50.0 && bottom > 50.0);
        assert!(of("below")[1] > of("10 hosts")[3] && of("above")[3] < 50.0);
    }

    #[test]
    fn numbers_are_short() {
        let words = [0.0, 0.0421, 0.42, 1.25, 12.54, 125.4, 12_504.0].map(short);
        assert_eq!(
            words,
            ["0", "0.0421", "0.42", "1.25", "12.5", "125", "12,504"]
        );
        assert_eq!([0.5, 2.0, 10.0, 0.0].map(tick), ["0.5", "2", "10", "0"]);
    }
}
