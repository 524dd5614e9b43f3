//! Plots without a browser: a list of shapes, written as SVG and as PNG.
//!
//! ```text
//!   curves, bars ─▶ Drawing (rectangles, lines, text in pixels) ─┬▶ svg (text stays text)
//!        └── font: how wide is it?                               └▶ png (tiny-skia, glyphs' outlines)
//! ```

pub(crate) mod axis;
pub(crate) mod bars;
pub(crate) mod color;
pub(crate) mod curves;
pub(crate) mod font;
mod png;
mod svg;

use color::Color;
pub(crate) use svg::escaped;

/// A picture. The origin is the upper left corner, the unit a pixel.
pub(crate) struct Drawing {
    /// In pixels.
    pub(crate) width: u16,
    /// In pixels.
    pub(crate) height: u16,
    shapes: Vec<Shape>,
}

/// Where a text's point is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Anchor {
    /// The text begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// How a line looks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Stroke {
    pub(crate) color: Color,
    pub(crate) width: f32,
    /// Pixels on, pixels off.
    pub(crate) dash: Option<(f32, f32)>,
}

impl Stroke {
    /// A whole line.
    pub(crate) fn of(color: Color, width: f32) -> Self {
        Self {
            color,
            width,
            dash: None,
        }
    }

    /// A broken one.
    pub(crate) fn dashed(mut self, on: f32, off: f32) -> Self {
        self.dash = Some((on, off));
        self
    }
}

/// How a text looks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Style {
    pub(crate) size: f32,
    pub(crate) color: Color,
    pub(crate) anchor: Anchor,
}

impl Style {
    /// Text that begins at its point.
    pub(crate) fn of(size: f32, color: Color) -> Self {
        Self {
            size,
            color,
            anchor: Anchor::Start,
        }
    }

    /// The same around, or before, its point.
    pub(crate) fn anchored(mut self, anchor: Anchor) -> Self {
        self.anchor = anchor;
        self
    }
}

enum Shape {
    Rectangle {
        x: f32,
        y: f32,
        width: f32,
        height: f32,
        color: Color,
    },
    Line {
        points: Vec<(f32, f32)>,
        stroke: Stroke,
    },
    /// `y` is the base line.
    Text {
        x: f32,
        y: f32,
        text: String,
        style: Style,
    },
}

impl Drawing {
    /// An empty one, white.
    pub(crate) fn new(width: u16, height: u16) -> Self {
        let mut drawing = Self {
            width,
            height,
            shapes: Vec::new(),
        };
        let (width, height) = (f32::from(width), f32::from(height));
        drawing.rectangle((0.0, 0.0), (width, height), color::PAPER);
        drawing
    }

    /// A filled rectangle; a negative width or height goes to the other side.
    pub(crate) fn rectangle(&mut self, (x, y): (f32, f32), (w, h): (f32, f32), color: Color) {
        self.shapes.push(Shape::Rectangle {
            x: x.min(x + w),
            y: y.min(y + h),
            width: w.abs(),
            height: h.abs(),
            color,
        });
    }

    /// A line through points.
    pub(crate) fn line(&mut self, points: Vec<(f32, f32)>, stroke: Stroke) {
        self.shapes.push(Shape::Line { points, stroke });
    }

    /// One line of text; `y` is its base line.
    pub(crate) fn text(&mut self, (x, y): (f32, f32), text: impl Into<String>, style: Style) {
        let text = text.into();
        self.shapes.push(Shape::Text { x, y, text, style });
    }

    /// As an `svg` element with the size of the picture at most.
    pub(crate) fn svg(&self) -> String {
        svg::write(self)
    }

    /// As a PNG file.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn png(&self) -> anyhow::Result<Vec<u8>> {
        png::write(self)
    }

    /// The boxes of all texts: left, top, right, bottom.
    #[cfg(test)]
    pub(crate) fn text_boxes(&self) -> Vec<(String, [f32; 4])> {
        let boxes = self.shapes.iter().filter_map(|shape| match shape {
            Shape::Text { x, y, text, style } => {
                let width = font::width(text, style.size);
                let left = x - offset(style.anchor, width);
                let place = [
                    left,
                    y - style.size * 0.75,
                    left + width,
                    y + style.size * 0.2,
                ];
                Some((text.clone(), place))
            }
            _ => None,
        });
        boxes.collect()
    }
}

/// How far before its point a text of this width begins.
fn offset(anchor: Anchor, width: f32) -> f32 {
    match anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => width / 2.0,
        Anchor::End => width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when two texts overlap or one leaves the picture.
    #[track_caller]
    pub(super) fn assert_apart(drawing: &Drawing) {
        let boxes = drawing.text_boxes();
        let (width, height) = (f32::from(drawing.width), f32::from(drawing.height));
        for (place, (text, [left, top, right, bottom])) in boxes.iter().enumerate() {
            let inside = *left >= 0.0 && *top >= 0.0 && *right <= width && *bottom <= height;
            assert!(inside, "`{text}` leaves the picture");
            for (other, [l, t, r, b]) in &boxes[place + 1..] {
                let meet = left < r && l < right && top < b && t < bottom;
                assert!(!meet, "`{text}` meets `{other}`");
            }
        }
    }

    #[test]
    #[should_panic(expected = "meets")]
    fn texts_that_meet_are_noticed() {
        let mut drawing = Drawing::new(100, 40);
        let style = Style::of(12.0, color::INK);
        drawing.text((10.0, 20.0), "one", style);
        drawing.text((14.0, 22.0), "other", style);
        assert_apart(&drawing);
    }
}
