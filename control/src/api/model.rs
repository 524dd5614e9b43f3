//! The JSON of the API, both ways: the server writes and reads these types, and so does the CLI.
//!
//! ```text
//!   requests    unknown fields are refused, with the field's name
//!   replies     may gain fields; readers ignore what they do not know
//!   errors      [`Problem`], application/problem+json (RFC 9457)
//! ```
//!
//! Nothing here validates beyond shape: what a value must be is checked where it is used.

pub mod access;
pub mod agent_servers;
pub mod agents;
pub mod batches;
pub mod dead_letters;
pub mod events;
pub mod histograms;
pub mod kinds;
pub mod limits;
pub mod overview;
pub mod pauses;
pub mod processes;
pub mod webhooks;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

/// The header that carries what a client has seen of the store: an answer to a write has it, and whoever sends it
/// back with reads reads what was written, also from a replica.
pub const POSITION: &str = "Drover-Position";
/// In [`POSITION`]: more than the client has a position of, an event for one. The primary answers.
pub const POSITION_LATEST: &str = "latest";

/// A moment: milliseconds since the Unix epoch inside; in JSON RFC 3339 in UTC with three digits
/// of a second, always, so that texts sort in time order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-11-24T09:30:00.125Z")]
pub struct Timestamp(pub u64);

/// The text is not an RFC 3339 time that this API can hold (1970 to 9999).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time such as 2026-11-24T09:30:00Z")]
pub struct ParseTimestampError(pub String);

/// The last moment that has an RFC 3339 form, 9999-12-31T23:59:59.999Z, in Unix milliseconds.
const TIMESTAMP_MS_MAX: u64 = 253_402_300_799_999;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0.min(TIMESTAMP_MS_MAX)) * 1_000_000;
        let Ok(at) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
            return f.write_str("unknown");
        };
        // Always three digits of a second, unlike `Rfc3339`: texts sort as the times do.
        let (year, month, day) = at.to_calendar_date();
        let (hour, minute, second, ms) = at.to_hms_milli();
        let month = u8::from(month);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"
        )
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseTimestampError(text.chars().take(64).collect());
        let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| bad())?;
        let ms = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| bad())?;
        Ok(Self(ms))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One page of a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T: ToSchema> {
    /// The items, in the list's stable order.
    pub items: Vec<T>,
    /// Give this as `page_token` to read on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// An error (RFC 9457). `detail` says what to do next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Names the kind of problem: `urn:drover:problem:<name>`. Stable; programs decide on it.
    #[serde(rename = "type")]
    #[schema(example = "urn:drover:problem:not-found")]
    pub kind: String,
    /// The kind in a few words.
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// What is wrong this time, and what to do next.
    pub detail: String,
    /// Whether the very same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// The limit that is exhausted, by its key in the server's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "api.public.requests_per_second")]
    pub limit: Option<String>,
    /// The parts of the request that are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldProblem>,
}

/// One wrong part of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FieldProblem {
    /// The field of the body, the query parameter or the header.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

/// Bytes that may or may not be text.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Payload {
    /// How `data` is written.
    pub encoding: Encoding,
    /// The text itself, or base64 (RFC 4648 §4, padded) of the bytes.
    pub data: String,
}

/// How a [`Payload`] is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Valid UTF-8, as it is.
    #[default]
    Utf8,
    /// Base64: the bytes are not UTF-8.
    Base64,
}

impl Payload {
    /// Text where the bytes are UTF-8, base64 otherwise.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self {
                encoding: Encoding::Utf8,
                data: text.to_owned(),
            },
            Err(_) => Self {
                encoding: Encoding::Base64,
                data: STANDARD.encode(bytes),
            },
        }
    }

    /// The bytes again.
    ///
    /// # Errors
    /// The data says base64 and is not.
    pub fn to_bytes(&self) -> Result<Vec<u8>, base64::DecodeError> {
        match self.encoding {
            Encoding::Utf8 => Ok(self.data.clone().into_bytes()),
            Encoding::Base64 => STANDARD.decode(&self.data),
        }
    }
}

/// Whether the server is alive or ready, and why not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `unavailable`.
    pub status: String,
    /// Each check by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<HealthCheck>,
}

/// One check behind readiness.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HealthCheck {
    /// `store`, `processes` or `serving`.
    pub name: String,
    /// Whether it passed.
    pub ok: bool,
    /// What was found, and what to do about it.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339_in_json() {
        let json = serde_json::to_string(&Timestamp(1_795_512_600_125)).unwrap();
        assert_eq!(json, "\"2026-11-24T09:30:00.125Z\"");
        assert_eq!(
            serde_json::from_str::<Timestamp>(&json).unwrap(),
            Timestamp(1_795_512_600_125)
        );
        assert_eq!(
            "2026-11-24T10:30:00.125+01:00".parse(),
            Ok(Timestamp(1_795_512_600_125))
        );
        assert!("1969-12-31T23:59:59Z".parse::<Timestamp>().is_err());
        assert!("tomorrow".parse::<Timestamp>().is_err());
        assert_eq!(Timestamp(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn timestamps_sort_as_text_in_time_order() {
        let base = 1_795_512_622_900;
        let texts: Vec<String> = (0..300)
            .map(|ms| Timestamp(base + ms).to_string())
            .collect();
        assert!(texts.is_sorted(), "{texts:?}");
        assert_eq!(texts[0], "2026-11-24T09:30:22.900Z");
        assert_eq!(texts[60], "2026-11-24T09:30:22.960Z");
        assert_eq!(texts[100], "2026-11-24T09:30:23.000Z");
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(texts[60].parse(), Ok(Timestamp(base + 60)));
    }

    #[test]
    fn bytes_survive_a_payload_whether_text_or_not() {
        for bytes in [&b""[..], b"hello\n", &[0xff, 0x00, 0x80]] {
            assert_eq!(Payload::from_bytes(bytes).to_bytes().unwrap(), bytes);
        }
        assert_eq!(Payload::from_bytes(&[0xff]).encoding, Encoding::Base64);
    }
}
