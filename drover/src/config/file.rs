//! A TOML file as a flat list of `section.key = value` with line numbers.
//!
//! Every value becomes text, the form in which environment variables and flags arrive too, so that
//! one parser per key serves all three. What a key means is not known here.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::fault::{Exit, Fault};

/// A configuration file larger than this is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One `key = value` of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// With its sections: `gateway.shards`.
    pub(crate) key: String,
    /// The value's text; `None` for a section without any key.
    pub(crate) value: Option<String>,
    /// From 1.
    pub(crate) line: usize,
}

/// Reads a file; a missing one is an error that names it.
pub(crate) fn read(path: &Path) -> Result<String, Fault> {
    let size = std::fs::metadata(path)
        .map_err(|error| Fault::io("read", path, &error).exit(Exit::Usage))?;
    if size.len() > FILE_BYTES_MAX {
        return Err(Fault::usage(format_args!(
            "{} has {} bytes: too large for a configuration file (at most {FILE_BYTES_MAX})",
            path.display(),
            size.len()
        )));
    }
    std::fs::read_to_string(path).map_err(|error| Fault::io("read", path, &error).exit(Exit::Usage))
}

/// Takes a file's text apart. `name` stands in messages; `section`: one at the top that somebody else
/// reads.
pub(crate) fn parse(name: &str, text: &str, section: Option<&str>) -> Result<Vec<Entry>, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(text, span.start));
        Fault::usage(format_args!(
            "{name} line {line}: {}",
            error.message().lines().next().unwrap_or("not valid TOML")
        ))
        .advise(
            "see https://toml.io for the syntax; `drover serve --print-config` prints a valid file",
        )
    })?;
    let mut entries = Vec::new();
    let mut table = table.into_inner();
    if let Some(section) = section {
        table.remove(section);
    }
    flatten(name, text, "", &table, &mut entries)?;
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn flatten(
    name: &str,
    text: &str,
    prefix: &str,
    table: &DeTable<'_>,
    entries: &mut Vec<Entry>,
) -> Result<(), Fault> {
    for (key, value) in table {
        let line = line_at(text, key.span().start);
        let key = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        match value.get_ref() {
            DeValue::Table(inner) if inner.is_empty() => entries.push(Entry {
                key,
                value: None,
                line,
            }),
            DeValue::Table(inner) => flatten(name, text, &key, inner, entries)?,
            DeValue::Array(items) => {
                let items: Option<Vec<String>> = items.iter().map(scalar).collect();
                let items = items.ok_or_else(|| unusable(name, line, &key, "a list of tables"))?;
                entries.push(Entry {
                    key,
                    value: Some(items.join(",")),
                    line,
                });
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => {
                let value = scalar(value).ok_or_else(|| unusable(name, line, &key, "a date"))?;
                entries.push(Entry {
                    key,
                    value: Some(value),
                    line,
                });
            }
        }
    }
    Ok(())
}

fn scalar(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        // Underscores and other bases are TOML's spelling; a plain decimal is everybody's.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|number| number.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn unusable(name: &str, line: usize, key: &str, found: &str) -> Fault {
    Fault::usage(format_args!(
        "{name} line {line}: `{key}` is {found}, which no key takes"
    ))
    .advise("`drover serve --print-config` shows every key with an example of its value")
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, line: usize) -> Entry {
        Entry {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            line,
        }
    }

    #[test]
    fn sections_are_flattened_and_lines_are_kept() {
        let text = "domain = 'a.b'\n\n[gateway]\nshards = 1_6 # cores\npin_threads = true\nadvertise = ['x:1', 'y:2']\n";
        assert_eq!(
            parse("f", text, None).unwrap(),
            [
                entry("domain", "a.b", 1),
                entry("gateway.shards", "16", 4),
                entry("gateway.pin_threads", "true", 5),
                entry("gateway.advertise", "x:1,y:2", 6),
            ]
        );
    }

    #[test]
    fn a_section_without_keys_is_not_lost() {
        let entries = parse("f", "[gatway]\n", None).unwrap();
        assert_eq!(entries[0].key, "gatway");
        assert_eq!(entries[0].value, None);
    }

    #[test]
    fn broken_toml_names_file_and_line() {
        let fault = parse("drover.toml", "a = 1\nb = \n", None).unwrap_err();
        assert!(fault.what.starts_with("drover.toml line 2:"), "{fault:?}");
        let fault = parse("drover.toml", "a = 1\na = 2\n", None).unwrap_err();
        assert!(fault.what.contains("line 2"), "{fault:?}");
    }

    #[test]
    fn values_that_no_key_takes_are_refused() {
        assert!(parse("f", "a = 2026-01-01\n", None).is_err());
        assert!(parse("f", "a = [[1], [2]]\n", None).is_err());
        assert!(parse("f", "[[a]]\nb = 1\n", None).is_err());
    }
}
