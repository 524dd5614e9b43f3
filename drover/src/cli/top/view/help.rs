//! The keys, over the page.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph};

use super::lines::fit;
use super::paint::Paint;

const KEYS: [(&str, &str); 9] = [
    ("1 2 3 4", "fleet, processes, latency, limits"),
    ("tab", "the next page"),
    ("↑ ↓  j k", "scroll"),
    ("PgUp PgDn", "scroll by a screen"),
    ("g G", "to the start, the end"),
    ("s", "sort the groups"),
    ("p", "pause, go on"),
    ("?", "these keys"),
    ("q  Esc", "quit"),
];
/// Columns and lines of the box.
const WIDTH: u16 = 52;
const HEIGHT: u16 = 11;

pub(super) fn draw(frame: &mut Frame<'_>, paint: Paint) {
    let area = frame.area();
    let (width, height) = (WIDTH.min(area.width), HEIGHT.min(area.height));
    let place = Rect::new(
        area.x + (area.width - width) / 2,
        area.y + (area.height - height) / 2,
        width,
        height,
    );
    let lines: Vec<Line<'static>> = KEYS
        .iter()
        .map(|(key, what)| {
            Line::from(vec![
                Span::styled(fit(key, 11), paint.strong()),
                Span::raw(*what),
            ])
        })
        .collect();
    let block = Block::bordered()
        .title(" keys ")
        .padding(Padding::horizontal(1));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}
