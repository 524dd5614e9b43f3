//! The keys that each listener of the API has: `api.ui.…` and `api.public.…`.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::RATE_MAX;
use crate::config::value;

/// Connections and requests at once, at most.
const AT_ONCE_MAX: NonZeroU32 = NonZeroU32::new(65_536).unwrap();
/// Threads of a listener, at most.
const WORKERS_MAX: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// The key of one field of a listener: `listener_key!(public.burst)`.
macro_rules! listener_key {
    ($listener:ident.certificate) => {
        listener_key!(@key $listener.certificate, listeners::file, listeners::show_file,
            "PEM file of the certificate, the server's own first; with key, or neither: then plain HTTP.")
    };
    ($listener:ident.key) => {
        listener_key!(@key $listener.key, listeners::file, listeners::show_file,
            "PEM file of the certificate's key, not encrypted.")
    };
    ($listener:ident.requests_per_second) => {
        listener_key!(@key $listener.requests_per_second, listeners::rate, listeners::show_rate,
            "Requests a second of all clients together (1 to 100000); none: any number.")
    };
    ($listener:ident.burst) => {
        listener_key!(@key $listener.burst, listeners::burst, listeners::show_auto,
            "Requests at once after a pause, where there is a rate (1 to 100000); auto: a second's worth.")
    };
    ($listener:ident.address_requests_per_second) => {
        listener_key!(@key $listener.address_requests_per_second, listeners::rate, listeners::show_rate,
            "Requests a second of one address, or IPv6 /64 (1 to 100000); none: any number. Not behind a \
             balancer.")
    };
    ($listener:ident.concurrent_requests) => {
        listener_key!(@key $listener.concurrent_requests, listeners::at_once, listeners::show_number,
            "Requests that are worked on at once (1 to 65536).")
    };
    ($listener:ident.connections) => {
        listener_key!(@key $listener.connections, listeners::at_once, listeners::show_number,
            "Connections at once (1 to 65536); more wait.")
    };
    ($listener:ident.workers) => {
        listener_key!(@key $listener.workers, listeners::workers, listeners::show_auto,
            "Threads of this listener alone (1 to 64); auto: one per core.")
    };
    (@key $listener:ident.$field:ident, $read:path, $show:path, $doc:literal) => {
        Key {
            name: concat!("api.", stringify!($listener), ".", stringify!($field)),
            doc: $doc,
            set: |config, text| $read(text).map(|value| config.api.$listener.$field = value),
            show: |config| $show(&config.api.$listener.$field),
        }
    };
}
pub(super) use listener_key;

/// A file; none where there is no text.
pub(super) fn file(text: &str) -> Result<Option<PathBuf>, String> {
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

pub(super) fn show_file(file: &Option<PathBuf>) -> String {
    value::quote(&file.as_deref().unwrap_or(Path::new("")).to_string_lossy())
}

/// A rate, or `none`.
pub(super) fn rate(text: &str) -> Result<Option<NonZeroU32>, String> {
    or("none", text, RATE_MAX)
}

pub(super) fn show_rate(rate: &Option<NonZeroU32>) -> String {
    show_or("none", *rate)
}

/// A number of requests, or `auto`.
pub(super) fn burst(text: &str) -> Result<Option<NonZeroU32>, String> {
    or("auto", text, RATE_MAX)
}

/// A number of threads, or `auto`.
pub(super) fn workers(text: &str) -> Result<Option<NonZeroU32>, String> {
    or("auto", text, WORKERS_MAX)
}

pub(super) fn show_auto(number: &Option<NonZeroU32>) -> String {
    show_or("auto", *number)
}

/// A number of connections or requests.
pub(super) fn at_once(text: &str) -> Result<NonZeroU32, String> {
    value::number(text, NonZeroU32::MIN, AT_ONCE_MAX)
}

pub(super) fn show_number(number: &NonZeroU32) -> String {
    number.to_string()
}

fn or(word: &str, text: &str, most: NonZeroU32) -> Result<Option<NonZeroU32>, String> {
    if text == word {
        return Ok(None);
    }
    value::number(text, NonZeroU32::MIN, most)
        .map(Some)
        .map_err(|problem| format!("{problem}, or {word}"))
}

fn show_or(word: &str, number: Option<NonZeroU32>) -> String {
    number.map_or_else(|| value::quote(word), |number| number.to_string())
}
