//! The font of plots: how wide a text is, and its outlines.

use std::sync::OnceLock;

use ttf_parser::{Face, GlyphId};

/// Roboto Regular, its Latin characters; `loadtest/fonts/` has its licence.
pub(crate) const BYTES: &[u8] = include_bytes!("../../fonts/Roboto-Regular-subset.ttf");

/// The font. A build with a broken one fails its tests.
pub(super) fn face() -> &'static Face<'static> {
    static FACE: OnceLock<Face<'static>> = OnceLock::new();
    FACE.get_or_init(|| match Face::parse(BYTES, 0) {
        Ok(face) => face,
        Err(error) => unreachable!("the font of this build is broken: {error}"),
    })
}

/// One character's glyph (a box for what the font lacks) and how far the next one is, in units of
/// the font.
pub(super) fn glyph(character: char) -> (GlyphId, u16) {
    let glyph = face().glyph_index(character).unwrap_or(GlyphId(0));
    (glyph, face().glyph_hor_advance(glyph).unwrap_or(0))
}

/// Pixels of a unit of the font.
pub(super) fn scale(size: f32) -> f32 {
    size / f32::from(face().units_per_em())
}

/// How wide a text is, in pixels.
pub(crate) fn width(text: &str, size: f32) -> f32 {
    let units: f32 = text.chars().map(|c| f32::from(glyph(c).1)).sum();
    units * scale(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_our_plots_is_there() {
        for character in "abcXYZ 0123456789 .,%()/÷×±µ·–—…≤≥'".chars() {
            assert_ne!(glyph(character).0, GlyphId(0), "{character}");
        }
    }

    #[test]
    fn width_grows_with_text_and_size() {
        assert!(width("ii", 12.0) > width("i", 12.0));
        assert!(width("W", 12.0) > width("i", 12.0));
        assert!((width("quinn", 24.0) - 2.0 * width("quinn", 12.0)).abs() < 0.01);
    }
}
