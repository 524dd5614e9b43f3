//! Tables, facts and JSON on standard output.

use std::io::Write as _;

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use super::Output;
use crate::fault::{Exit, Fault};

/// Prints `value` as JSON, or else what `human` makes of it.
pub(crate) fn value<T: Serialize>(
    output: Output,
    value: &T,
    human: impl FnOnce(&T) -> String,
) -> Result<Exit, Fault> {
    let text = if output.is_json() {
        to_json(value)?
    } else {
        human(value)
    };
    line(&text)?;
    Ok(Exit::Success)
}

/// One JSON line.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, Fault> {
    serde_json::to_string(value)
        .map_err(|error| Fault::new(format_args!("cannot write JSON: {error}")))
}

/// Prints text and ends the line.
pub(crate) fn line(text: &str) -> Result<(), Fault> {
    let mut stdout = std::io::stdout().lock();
    let text = text.trim_end_matches('\n');
    let written = if text.is_empty() {
        Ok(())
    } else {
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.write_all(b"\n"))
    };
    written
        .and_then(|()| stdout.flush())
        .map_err(|error| cannot_write(&error))
}

/// Standard output took no more. A reader that has seen enough (`| head`) ends the program, as it
/// would end any other.
pub(crate) fn cannot_write(error: &std::io::Error) -> Fault {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(i32::from(Exit::Success.code()));
    }
    Fault::new(format_args!("cannot write the result: {error}"))
}

/// A table with aligned columns; `empty` is said instead of a table without rows.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    empty: &str,
) -> String {
    let rows: Vec<[String; N]> = rows
        .into_iter()
        .map(|row| row.map(|cell| harmless(&cell)))
        .collect();
    if rows.is_empty() {
        return empty.to_owned();
    }
    let header = header.map(str::to_owned);
    let mut widths = [0; N];
    for row in std::iter::once(&header).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&header).chain(&rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width.saturating_sub(cell.width()) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one a line; those without a value are left out.
pub(crate) fn facts(facts: &[(&str, Option<String>)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)))
        .map(|(name, value)| format!("{name:width$}  {}\n", harmless(value)))
        .collect()
}

/// A cell that is not there.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// An API value's name as it stands in JSON (`connected`, `failed_permanent`).
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// Names come from machines that are not ours: nothing of them reaches a terminal that would steer
/// it, turn the direction of the text, or take part in it without being seen.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| if is_harmful(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Control characters, and the invisible ones of Unicode: marks and overrides of direction, breaks,
/// joiners, fillers, tags.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let text = table(
            ["NAME", "N"],
            [
                ["a".to_owned(), "1".to_owned()],
                ["longer".to_owned(), String::new()],
            ],
            "none",
        );
        assert_eq!(text, "NAME    N\na       1\nlonger\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(
            table(["A"], Vec::<[String; 1]>::new(), "no agents yet"),
            "no agents yet"
        );
    }

    #[test]
    fn escape_sequences_from_a_host_do_not_reach_the_terminal() {
        let text = table(["A"], [["\x1b[2J".to_owned()]], "");
        assert!(!text.contains('\x1b'));
        assert!(!facts(&[("a", Some("\x07".to_owned()))]).contains('\x07'));
    }

    #[test]
    fn text_that_turns_or_hides_what_follows_is_made_visible() {
        let text = harmless("a\u{202e}b\u{2066}c\u{200b}d\u{feff}e\u{e0041}f\u{85}g");
        assert_eq!(
            text,
            "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e\u{fffd}f\u{fffd}g"
        );
        assert_eq!(harmless("żółw 日本 e\u{301}"), "żółw 日本 e\u{301}");
    }

    #[test]
    fn wide_characters_keep_the_columns_in_line() {
        let text = table(
            ["NAME", "N"],
            ["日本", "ab", "e\u{301}"].map(|name| [name.to_owned(), "1".to_owned()]),
            "none",
        );
        assert_eq!(text, "NAME  N\n日本  1\nab    1\ne\u{301}     1\n");
    }

    #[test]
    fn absent_facts_are_left_out() {
        assert_eq!(
            facts(&[("id", Some("7".to_owned())), ("ended", None)]),
            "id     7\n"
        );
    }
}
