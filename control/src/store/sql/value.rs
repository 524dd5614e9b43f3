//! What is bound to a statement.

use std::borrow::Cow;

use sqlx::Arguments as _;
use sqlx::error::BoxDynError;
use sqlx::mysql::MySqlArguments;
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;

/// A value; `None` is SQL's NULL. Which kind it would be is known all the same: PostgreSQL asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value<'q> {
    /// A number, or a truth as 0 or 1.
    Int(Option<i64>),
    /// Text; a JSON array, where a statement has a list.
    Text(Option<Cow<'q, str>>),
    /// Bytes, as ids are.
    Bytes(Option<Cow<'q, [u8]>>),
}

impl Value<'_> {
    /// It is a JSON array without members.
    pub(super) fn is_empty_list(&self) -> bool {
        matches!(self, Self::Text(Some(text)) if text == "[]")
    }

    pub(super) fn for_sqlite(self, to: &mut SqliteArguments) -> Result<(), BoxDynError> {
        match self {
            Self::Int(value) => to.add(value),
            Self::Text(value) => to.add(value.map(Cow::into_owned)),
            Self::Bytes(value) => to.add(value.map(Cow::into_owned)),
        }
    }

    pub(super) fn for_postgres(&self, to: &mut PgArguments) -> Result<(), BoxDynError> {
        match self {
            Self::Int(value) => to.add(value),
            Self::Text(value) => to.add(value.as_deref().map(without_zeros)),
            Self::Bytes(value) => to.add(value.as_deref()),
        }
    }

    pub(super) fn for_mysql(&self, to: &mut MySqlArguments) -> Result<(), BoxDynError> {
        match self {
            Self::Int(value) => to.add(value),
            Self::Text(value) => to.add(value.as_deref()),
            Self::Bytes(value) => to.add(value.as_deref()),
        }
    }
}

/// PostgreSQL has no text with the character 0, plain or as JSON's `\u0000`: the replacement character takes
/// its place. A backslash in front of it, which JSON doubles, is a backslash.
fn without_zeros(text: &str) -> Cow<'_, str> {
    const ZERO: &str = "\\u0000";
    if !text.contains(ZERO) && !text.contains('\0') {
        return Cow::Borrowed(text);
    }
    let text = text.replace('\0', "\u{fffd}");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(ZERO) {
        let (before, from) = rest.split_at(at);
        let backslashes = before.chars().rev().take_while(|c| *c == '\\').count();
        kept.push_str(before);
        kept.push_str(if backslashes % 2 == 0 {
            "\\ufffd"
        } else {
            ZERO
        });
        rest = &from[ZERO.len()..];
    }
    kept.push_str(rest);
    Cow::Owned(kept)
}

macro_rules! values {
    ($($from:ty => $variant:ident($value:ident) $to:expr;)*) => {$(
        impl<'q> From<$from> for Value<'q> {
            fn from($value: $from) -> Self {
                Self::$variant(Some($to))
            }
        }

        impl<'q> From<Option<$from>> for Value<'q> {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map(|$value| $to))
            }
        }
    )*};
}

values! {
    i64 => Int(value) value;
    u8 => Int(value) value.into();
    u16 => Int(value) value.into();
    u32 => Int(value) value.into();
    bool => Int(value) value.into();
    &'q str => Text(value) Cow::Borrowed(value);
    &'q String => Text(value) Cow::Borrowed(value.as_str());
    String => Text(value) Cow::Owned(value);
    &'q [u8] => Bytes(value) Cow::Borrowed(value);
    &'q Vec<u8> => Bytes(value) Cow::Borrowed(value.as_slice());
    Vec<u8> => Bytes(value) Cow::Owned(value);
}

macro_rules! values_of_options {
    ($($from:ty),*) => {$(
        impl<'q> From<&'q Option<$from>> for Value<'q> {
            fn from(value: &'q Option<$from>) -> Self {
                value.as_ref().into()
            }
        }
    )*};
}

values_of_options!(String, Vec<u8>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_character_0_is_replaced_and_what_only_looks_like_it_stays() {
        for (text, kept) in [
            ("", ""),
            ("a\\u0001", "a\\u0001"),
            ("a\0b", "a\u{fffd}b"),
            ("\\u0000", "\\ufffd"),
            ("\\\\u0000", "\\\\u0000"),
            ("\\\\\\u0000x\\u0000", "\\\\\\ufffdx\\ufffd"),
        ] {
            assert_eq!(without_zeros(text), kept, "{text:?}");
        }
    }
}
