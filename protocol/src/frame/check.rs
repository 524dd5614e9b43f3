//! The rules for single fields. Encoders and decoders call the same ones, so that what one side
//! can say the other can hear.

use super::{DecodeError, EncodeError};
use crate::limits::{ADDRESS_BYTES_MAX, CAPACITY_MAX, KIND_BYTES_MAX};

/// A field that breaks a rule.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// More bytes or elements than its limit.
    TooLong {
        field: &'static str,
        size: usize,
        max: usize,
    },
    /// Any other rule.
    Invalid {
        field: &'static str,
        problem: &'static str,
    },
}

impl Fault {
    pub(super) fn missing(field: &'static str) -> Self {
        Self::Invalid {
            field,
            problem: "is missing",
        }
    }

    pub(super) fn unknown(field: &'static str) -> Self {
        Self::Invalid {
            field,
            problem: "has a value that is not in the schema",
        }
    }
}

impl From<Fault> for DecodeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::TooLong { field, .. } => Self::Invalid {
                field,
                problem: "is longer than its limit",
            },
            Fault::Invalid { field, problem } => Self::Invalid { field, problem },
        }
    }
}

impl From<Fault> for EncodeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::TooLong { field, size, max } => Self::TooLarge {
                what: field,
                size,
                max,
            },
            Fault::Invalid { field, problem } => Self::Invalid { field, problem },
        }
    }
}

/// Refuses more than `max` bytes or elements.
pub(super) fn size(field: &'static str, size: usize, max: usize) -> Result<(), Fault> {
    if size > max {
        return Err(Fault::TooLong { field, size, max });
    }
    Ok(())
}

/// Any text up to `max` bytes. Whoever shows it escapes control characters.
pub(super) fn text<'a>(field: &'static str, text: &'a str, max: usize) -> Result<&'a str, Fault> {
    size(field, text.len(), max)?;
    Ok(text)
}

/// Text on one line, without control characters; may be empty.
pub(super) fn name<'a>(field: &'static str, name: &'a str, max: usize) -> Result<&'a str, Fault> {
    size(field, name.len(), max)?;
    check_name(name).map_err(|problem| Fault::Invalid { field, problem })?;
    Ok(name)
}

/// Checks a name as frames carry it (of a host, a software version, the value of a label), but for
/// its length. Configurations should be checked with it.
///
/// # Errors
/// What is wrong, to be put behind the field's name.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    match name.chars().any(char::is_control) {
        true => Err("contains control characters"),
        false => Ok(()),
    }
}

/// A name that stands before a `=`.
pub(super) fn label_name<'a>(
    field: &'static str,
    name: &'a str,
    max: usize,
) -> Result<&'a str, Fault> {
    size(field, name.len(), max)?;
    check_label_name(name).map_err(|problem| Fault::Invalid { field, problem })?;
    Ok(name)
}

/// Checks the name of a label as frames carry it, but for its length. Configurations should be
/// checked with it.
///
/// # Errors
/// What is wrong, to be put behind the field's name.
pub fn check_label_name(name: &str) -> Result<(), &'static str> {
    check_name(name)?;
    if name.is_empty() || name.contains('=') {
        return Err("is empty or contains `=`");
    }
    Ok(())
}

/// The name of a driver: `[a-z0-9_.-]{1,64}`.
pub(super) fn kind<'a>(field: &'static str, kind: &'a str) -> Result<&'a str, Fault> {
    size(field, kind.len(), KIND_BYTES_MAX)?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
    if kind.is_empty() || !kind.bytes().all(allowed) {
        return Err(Fault::Invalid {
            field,
            problem: "does not match [a-z0-9_.-]{1,64}",
        });
    }
    Ok(kind)
}

/// `host:port`.
pub(super) fn address<'a>(field: &'static str, address: &'a str) -> Result<&'a str, Fault> {
    check_address(address).map_err(|problem| Fault::Invalid { field, problem })?;
    Ok(address)
}

/// Checks the `host:port` form in which frames carry addresses: a host name, an IPv4 address or an
/// IPv6 address in brackets, and a port from 1 to 65535. Configurations should be checked with it
/// before an address is announced.
///
/// # Errors
/// What is wrong, to be put behind the field's name.
pub fn check_address(address: &str) -> Result<(), &'static str> {
    if address.len() > ADDRESS_BYTES_MAX {
        return Err("is longer than its limit");
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("is not host:port: it has no port");
    };
    let inner = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').unwrap_or_default(),
        None if host.contains(':') => "",
        None => host,
    };
    let allowed = |b: u8| b.is_ascii_graphic() && !b"[]/@\"\\".contains(&b);
    if inner.is_empty() || !inner.bytes().all(allowed) {
        return Err(
            "is not host:port: the host is not a name, an IPv4 or a [bracketed] IPv6 address",
        );
    }
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(1..) if digits => Ok(()),
        _ => Err("is not host:port: the port is not a number from 1 to 65535"),
    }
}

/// A percentage.
pub(super) fn percent(field: &'static str, percent: Option<u8>) -> Result<Option<u8>, Fault> {
    if percent.is_some_and(|p| p > 100) {
        return Err(Fault::Invalid {
            field,
            problem: "is more than 100",
        });
    }
    Ok(percent)
}

/// Operations at once.
pub(super) fn capacity(field: &'static str, capacity: u32) -> Result<u32, Fault> {
    if capacity > CAPACITY_MAX {
        return Err(Fault::Invalid {
            field,
            problem: "is more than the command streams of a session",
        });
    }
    Ok(capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for good in [
            "gw-1.example:7443",
            "10.0.0.1:1",
            "[2001:db8::1]:65535",
            "localhost:80",
        ] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "gw",
            ":7443",
            "gw:",
            "gw:0",
            "gw:65536",
            "gw:+1",
            "2001:db8::1:80",
            "[]:80",
            "[::1:80",
            "a b:80",
            "http://gw:80",
            "gw\n:80",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        assert!(check_address(&format!("{}:80", "a".repeat(300))).is_err());
    }

    #[test]
    fn kinds_keep_to_their_grammar() {
        assert!(kind("kind", "exec-2.x_y").is_ok());
        for bad in ["", "Exec", "a b", "ü", &"a".repeat(65)] {
            assert!(kind("kind", bad).is_err(), "{bad}");
        }
    }
}
