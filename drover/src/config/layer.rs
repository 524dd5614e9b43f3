//! One setting from one source, and how it is put into a configuration.
//!
//! Used for the server's configuration and for `agent.toml` alike.

use std::fmt;

use super::file::Entry;
use super::suggest::nearest;
use crate::fault::Fault;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// A file's name and line.
    File(String, usize),
    /// An environment variable.
    Variable(String),
    /// A flag, as people write it.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name, line) => write!(f, "{name} line {line}"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "{name}"),
        }
    }
}

/// One key with one value from one source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    /// With its section: `gateway.shards`.
    pub(crate) key: String,
    /// As text.
    pub(crate) value: String,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// A key of a configuration `T`.
pub(crate) struct Key<T: 'static> {
    /// With its section: `gateway.shards`.
    pub(crate) name: &'static str,
    /// What it means, in one line.
    pub(crate) doc: &'static str,
    /// Reads it. The error says what would have been right.
    pub(crate) set: fn(&mut T, &str) -> Result<(), String>,
    /// Writes it as a TOML value.
    pub(crate) show: fn(&T) -> String,
}

/// Turns a line of a file into a setting. `names` are the keys that exist, for messages.
pub(crate) fn from_entry(file: &str, entry: Entry, names: &[&str]) -> Result<Setting, Fault> {
    let origin = Origin::File(file.to_owned(), entry.line);
    let is_section = |key: &str| {
        names.iter().any(|name| {
            name.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with('.'))
        })
    };
    match entry.value {
        Some(_) if is_section(&entry.key) => Err(Fault::usage(format_args!(
            "{origin}: `{0}` is a section, not a key",
            entry.key
        ))
        .advise(format_args!("write `[{}]` with its keys below", entry.key))),
        Some(value) => Ok(Setting {
            key: entry.key,
            value,
            origin,
        }),
        // Harmless, but nothing to set: an empty known section has no keys to choose from.
        None if is_section(&entry.key) => Err(Fault::usage(format_args!(
            "{origin}: the section `{}` is empty",
            entry.key
        ))
        .advise("take it out, or give it a key")),
        None => Err(Fault::usage(format_args!(
            "{origin}: there is no section `{}`",
            entry.key
        ))
        .advise("`drover serve --print-config` lists every section and key")),
    }
}

/// Puts a setting into `target`, or says why not.
pub(crate) fn apply<T>(target: &mut T, keys: &[Key<T>], setting: &Setting) -> Result<(), Fault> {
    let Some(key) = keys.iter().find(|key| key.name == setting.key) else {
        let names = keys.iter().map(|key| key.name);
        return Err(unknown(
            setting,
            names,
            "`drover serve --print-config` lists every key",
        ));
    };
    (key.set)(target, &setting.value).map_err(|problem| invalid(setting, &problem))
}

/// There is no such key.
pub(crate) fn unknown<'a>(
    setting: &Setting,
    names: impl Iterator<Item = &'a str>,
    otherwise: &str,
) -> Fault {
    let fault = Fault::usage(format_args!(
        "{}: there is no key `{}`",
        setting.origin, setting.key
    ));
    match nearest(&setting.key, names) {
        Some(near) => fault.advise(format_args!("did you mean `{near}`?")),
        None => fault.advise(otherwise),
    }
}

/// The key does not take this value.
pub(crate) fn invalid(setting: &Setting, problem: &str) -> Fault {
    Fault::usage(format_args!(
        "{}: {} = `{}` cannot be used",
        setting.origin,
        setting.key,
        without_login(&setting.value)
    ))
    .advise(problem)
}

/// A value as it may be shown: what a URL holds before its host may be a password.
fn without_login(value: &str) -> String {
    let parts = value
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)));
    match parts {
        Some((scheme, place)) => format!("{scheme}://***@{place}"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_refused_is_shown_without_its_password() {
        for (value, shown) in [
            ("redis://:secret@a:x", "redis://***@a:x"),
            ("redis://ann:sec@ret@a:x", "redis://***@a:x"),
            ("redis://a:x", "redis://a:x"),
            ("ann@a", "ann@a"),
        ] {
            let setting = Setting {
                key: "locks.url".to_owned(),
                value: value.to_owned(),
                origin: Origin::Variable("X".to_owned()),
            };
            let fault = invalid(&setting, "a port is a number");
            assert!(fault.what.contains(&format!("`{shown}`")), "{}", fault.what);
            assert!(!fault.what.contains("secret"), "{}", fault.what);
        }
    }
}
