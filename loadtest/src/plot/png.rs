//! A drawing as PNG: shapes by tiny-skia, the file by hand (RFC 2083: a header, zlib data, an end).

use std::io::Write as _;

use anyhow::Context as _;
use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use tiny_skia::{
    FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, StrokeDash, Transform,
};
use ttf_parser::OutlineBuilder;

use super::color::Color;
use super::{Drawing, Shape, Stroke, Style, font, offset};

/// Pixels of the file for a pixel of the drawing: text stays sharp on dense screens.
const DENSITY: u8 = 2;
const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];

pub(super) fn write(drawing: &Drawing) -> anyhow::Result<Vec<u8>> {
    let density = u32::from(DENSITY);
    let (width, height) = (drawing.width, drawing.height);
    let mut pixels = Pixmap::new(u32::from(width) * density, u32::from(height) * density)
        .context("a picture without pixels")?;
    for shape in &drawing.shapes {
        draw(shape, &mut pixels);
    }
    encode(&pixels)
}

fn paint(Color(red, green, blue): Color) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(red, green, blue, 255);
    paint
}

fn draw(shape: &Shape, pixels: &mut Pixmap) {
    let scale = f32::from(DENSITY);
    let dense = Transform::from_scale(scale, scale);
    match shape {
        Shape::Rectangle {
            x,
            y,
            width,
            height,
            color,
        } => {
            // One without a size is nothing to draw.
            if let Some(rectangle) = Rect::from_xywh(*x, *y, *width, *height) {
                pixels.fill_rect(rectangle, &paint(*color), dense, None);
            }
        }
        Shape::Line { points, stroke } => draw_line(points, stroke, dense, pixels),
        Shape::Text { x, y, text, style } => draw_text((*x, *y), text, style, dense, pixels),
    }
}

fn draw_line(points: &[(f32, f32)], stroke: &Stroke, dense: Transform, pixels: &mut Pixmap) {
    let mut path = PathBuilder::new();
    for (place, (x, y)) in points.iter().enumerate() {
        match place {
            0 => path.move_to(*x, *y),
            _ => path.line_to(*x, *y),
        }
    }
    let Some(path) = path.finish() else {
        return;
    };
    let pen = tiny_skia::Stroke {
        width: stroke.width,
        line_cap: LineCap::Butt,
        line_join: LineJoin::Round,
        dash: stroke
            .dash
            .and_then(|(on, off)| StrokeDash::new(vec![on, off], 0.0)),
        ..tiny_skia::Stroke::default()
    };
    pixels.stroke_path(&path, &paint(stroke.color), &pen, dense, None);
}

fn draw_text((x, y): (f32, f32), text: &str, style: &Style, dense: Transform, pixels: &mut Pixmap) {
    let scale = font::scale(style.size);
    let mut pen = Pen {
        path: PathBuilder::new(),
        x: x - offset(style.anchor, font::width(text, style.size)),
        y,
        scale,
    };
    for character in text.chars() {
        let (glyph, advance) = font::glyph(character);
        // A space has no outline.
        font::face().outline_glyph(glyph, &mut pen);
        pen.x += f32::from(advance) * scale;
    }
    if let Some(path) = pen.path.finish() {
        pixels.fill_path(&path, &paint(style.color), FillRule::Winding, dense, None);
    }
}

/// Writes a glyph's outline where the text has come to. Fonts count upwards.
struct Pen {
    path: PathBuilder,
    x: f32,
    y: f32,
    scale: f32,
}

impl Pen {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, self.y - y * self.scale)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

fn encode(pixels: &Pixmap) -> anyhow::Result<Vec<u8>> {
    let mut data = ZlibEncoder::new(Vec::new(), Compression::best());
    let row_bytes = usize::try_from(pixels.width())? * 4;
    for row in pixels.data().chunks_exact(row_bytes) {
        // Each row begins with its filter: none, which makes the smallest files of flat colours.
        // Everything is opaque, so no alpha is kept.
        data.write_all(&[0])?;
        for pixel in row.chunks_exact(4) {
            data.write_all(&pixel[..3])?;
        }
    }
    let mut header = Vec::from(pixels.width().to_be_bytes());
    header.extend(pixels.height().to_be_bytes());
    // 8 bits a channel, red-green-blue, the only compression, the only filtering, no interlace.
    header.extend([8, 2, 0, 0, 0]);
    let mut file = Vec::from(SIGNATURE);
    chunk(&mut file, b"IHDR", &header)?;
    chunk(&mut file, b"IDAT", &data.finish()?)?;
    chunk(&mut file, b"IEND", &[])?;
    Ok(file)
}

fn chunk(file: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) -> anyhow::Result<()> {
    file.extend(u32::try_from(data.len())?.to_be_bytes());
    file.extend(name);
    file.extend(data);
    let mut sum = Crc::new();
    sum.update(name);
    sum.update(data);
    file.extend(sum.sum().to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::ZlibDecoder;

    use super::super::{Anchor, color};
    use super::*;

    /// The pixels of a file of ours.
    fn decode(file: &[u8]) -> (u32, u32, Vec<u8>) {
        assert_eq!(file[..8], SIGNATURE);
        let word = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!((word(8), &file[12..16]), (13, &b"IHDR"[..]));
        // The empty chunk's checksum is a constant of the format.
        assert_eq!(file[file.len() - 12..], *b"\0\0\0\0IEND\xae\x42\x60\x82");
        let length = usize::try_from(word(33)).unwrap();
        assert_eq!(&file[37..41], b"IDAT");
        let mut pixels = Vec::new();
        ZlibDecoder::new(&file[41..41 + length])
            .read_to_end(&mut pixels)
            .unwrap();
        (word(16), word(20), pixels)
    }

    #[test]
    fn a_rectangle_is_where_it_was_drawn() {
        let mut drawing = Drawing::new(4, 3);
        drawing.rectangle((1.0, 1.0), (1.0, 1.0), Color(1, 2, 3));
        let (width, height, pixels) = decode(&drawing.png().unwrap());
        assert_eq!((width, height), (8, 6));
        assert_eq!(pixels.len(), 6 * (1 + 8 * 3));
        let pixel = |x: usize, y: usize| &pixels[y * 25 + 1 + x * 3..][..3];
        assert_eq!(pixel(2, 2), [1, 2, 3]);
        assert_eq!(pixel(1, 2), [255, 255, 255]);
        assert_eq!(pixel(2, 4), [255, 255, 255]);
    }

    #[test]
    fn text_and_lines_leave_ink() {
        let inked = |draw: &dyn Fn(&mut Drawing)| {
            let mut drawing = Drawing::new(40, 20);
            draw(&mut drawing);
            let (_, _, pixels) = decode(&drawing.png().unwrap());
            pixels
                .chunks_exact(40 * 2 * 3 + 1)
                .flat_map(|row| &row[1..])
                .filter(|channel| **channel < 128)
                .count()
        };
        let style = Style::of(14.0, color::INK).anchored(Anchor::Middle);
        let text = |text: &'static str| {
            inked(&move |drawing: &mut Drawing| drawing.text((20.0, 15.0), text, style))
        };
        assert_eq!(text(" "), 0);
        assert!(text("µµ") > text("µ") && text("µ") > 20);
        let line = |stroke: Stroke| {
            inked(&move |drawing: &mut Drawing| {
                drawing.line(vec![(0.0, 10.0), (40.0, 10.0)], stroke);
            })
        };
        let whole = Stroke::of(color::INK, 2.0);
        assert!(line(whole.dashed(4.0, 4.0)) < line(whole));
    }
}
