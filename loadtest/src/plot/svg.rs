//! A drawing as SVG.

use std::fmt::Write as _;

use super::color::Color;
use super::{Anchor, Drawing, Shape, Stroke, Style};

/// Text that stays text between the tags of HTML and XML, attributes included.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn hex(Color(red, green, blue): Color) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

pub(super) fn write(drawing: &Drawing) -> String {
    let (width, height) = (drawing.width, drawing.height);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         style=\"max-width:{width}px\" role=\"img\" font-family=\"Roboto,sans-serif\">\n"
    );
    for shape in &drawing.shapes {
        let element = match shape {
            Shape::Rectangle {
                x,
                y,
                width,
                height,
                color,
            } => {
                let fill = hex(*color);
                format!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
                     fill=\"{fill}\"/>"
                )
            }
            Shape::Line { points, stroke } => line(points, stroke),
            Shape::Text { x, y, text, style } => written(*x, *y, text, style),
        };
        svg.push_str(&element);
        svg.push('\n');
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(points: &[(f32, f32)], stroke: &Stroke) -> String {
    let mut list = String::new();
    for (x, y) in points {
        // Writing to a String cannot fail.
        if write!(list, "{x:.1},{y:.1} ").is_err() {
            break;
        }
    }
    let dash = stroke
        .dash
        .map(|(on, off)| format!(" stroke-dasharray=\"{on} {off}\""));
    format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"{}/>",
        list.trim_end(),
        hex(stroke.color),
        stroke.width,
        dash.unwrap_or_default()
    )
}

fn written(x: f32, y: f32, text: &str, style: &Style) -> String {
    let anchor = match style.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{}\" fill=\"{}\" text-anchor=\"{anchor}\">{}</text>",
        style.size,
        hex(style.color),
        escaped(text)
    )
}

#[cfg(test)]
mod tests {
    use super::super::color;
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let mut drawing = Drawing::new(10, 10);
        let style = Style::of(12.0, color::INK);
        drawing.text((0.0, 0.0), "</text><script>\"a\" & 'b'", style);
        let svg = drawing.svg();
        assert!(svg.contains("&lt;/text&gt;&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;</text>"));
        assert!(!svg.contains("<script>"));
    }

    #[test]
    fn shapes_are_written_in_their_order() {
        let mut drawing = Drawing::new(10, 10);
        drawing.rectangle((8.0, 1.0), (-4.0, 2.0), Color(1, 2, 3));
        drawing.line(
            vec![(0.0, 0.0), (1.0, 2.0)],
            Stroke::of(Color(255, 0, 0), 2.0).dashed(4.0, 2.0),
        );
        let svg = drawing.svg();
        let rectangle = "<rect x=\"4.0\" y=\"1.0\" width=\"4.0\" height=\"2.0\" fill=\"#010203\"/>";
        let line = "<polyline points=\"0.0,0.0 1.0,2.0\" fill=\"none\" stroke=\"#ff0000\" \
                    stroke-width=\"2\" stroke-dasharray=\"4 2\"/>";
        assert!(svg.find(rectangle).unwrap() < svg.find(line).unwrap());
    }
}
