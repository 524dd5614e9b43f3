//! The colours of plots.

use crate::compare::model::{DROVER, is_drover};

/// Red, green, blue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Color(pub(crate) u8, pub(crate) u8, pub(crate) u8);

/// What is behind everything.
pub(crate) const PAPER: Color = Color(0xff, 0xff, 0xff);
/// Text.
pub(crate) const INK: Color = Color(0x1f, 0x29, 0x33);
/// Text that may be overlooked, and axes.
pub(crate) const FAINT: Color = Color(0x61, 0x6e, 0x7c);
/// Lines of the grid.
pub(crate) const GRID: Color = Color(0xe4, 0xe7, 0xeb);
/// A target.
pub(crate) const TARGET: Color = Color(0x11, 0x18, 0x27);
/// Drover needs less.
pub(crate) const LESS: Color = Color(0x2b, 0x8a, 0x6e);
/// Drover needs more.
pub(crate) const MORE: Color = Color(0xb4, 0x23, 0x3c);

/// Drover's own, far from all others.
const OWN: Color = Color(0xe8, 0x59, 0x0c);
/// The others', in the order of the peers.
const OTHERS: [Color; 8] = [
    Color(0x2f, 0x5d, 0x9b),
    Color(0x7f, 0xa8, 0xd9),
    Color(0x5b, 0x8c, 0x2a),
    Color(0x8b, 0x5c, 0xa8),
    Color(0x1b, 0x8a, 0x9a),
    Color(0x6b, 0x72, 0x80),
    Color(0xa8, 0x96, 0x2e),
    Color(0xb8, 0x7c, 0xa0),
];

/// Lighter: so much of the paper, 0 to 1.
pub(crate) fn mixed(color: Color, paper: f32) -> Color {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between two bytes"
    )]
    let mix = |from: u8, to: u8| {
        (f32::from(from) + (f32::from(to) - f32::from(from)) * paper).round() as u8
    };
    Color(
        mix(color.0, PAPER.0),
        mix(color.1, PAPER.1),
        mix(color.2, PAPER.2),
    )
}

/// A peer's colour: of Drover's variants a lighter one of Drover's; `place` counts the others.
pub(crate) fn of_peer(name: &str, place: usize) -> Color {
    match name {
        DROVER => OWN,
        _ if is_drover(name) => mixed(OWN, 0.45),
        _ => OTHERS[place % OTHERS.len()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drover_has_a_colour_apart() {
        let distance = |one: Color, other: Color| {
            let [r, g, b] = [(one.0, other.0), (one.1, other.1), (one.2, other.2)]
                .map(|(one, other)| u32::from(one.abs_diff(other)));
            r + g + b
        };
        for place in 0..OTHERS.len() {
            assert!(distance(of_peer(DROVER, 0), of_peer("quinn", place)) > 150);
        }
        assert_ne!(of_peer("drover-direct", 0), of_peer(DROVER, 0));
    }

    #[test]
    fn a_mix_ends_at_its_ends() {
        assert_eq!(mixed(INK, 0.0), INK);
        assert_eq!(mixed(INK, 1.0), PAPER);
    }
}
