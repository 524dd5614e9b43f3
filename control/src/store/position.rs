//! How far a store is: what a client has seen of it, in a few characters.
//!
//! Every transaction on a shared store raises one number, in the order of commits ([`super::pen`]). A replica takes
//! transactions in the same order, and the number with them: it has what was written up to the number that it shows.
//! So positions are the same on every backend, and also where a server has no words for its own.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::sql::{self, Connection};
use super::{from_sql, pen};

/// The first byte of a position: how the rest is to be read.
const FORM: u8 = 1;
/// Bytes of a position: its form, the store, the number.
const BYTES: usize = 17;

/// A moment in the life of one store. As text it is opaque: base64url, 23 characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    /// Which store: when it was opened for the first time. A copy is another one.
    pub(super) store: u64,
    /// Transactions up to then.
    pub(super) number: u64,
}

/// A text that is no position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("is no position of this API; send back what an answer had, unchanged, or leave it out")]
pub(crate) struct NoPosition;

impl Position {
    /// How far the store is, as this connection sees it.
    pub(super) async fn read(db: &mut Connection) -> Result<Self, sqlx::Error> {
        let row = sql::query("SELECT number, opened_at FROM store_writer WHERE id = $1")
            .bind(&pen::EVERYBODY[..])
            .fetch_one(db)
            .await?;
        Ok(Self {
            store: from_sql(row.try_get("opened_at")?),
            number: from_sql(row.try_get("number")?),
        })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(FORM);
        bytes.extend(self.store.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NoPosition)?;
        let bytes: [u8; BYTES] = bytes.try_into().map_err(|_| NoPosition)?;
        let [form, numbers @ ..] = bytes;
        let (store, number) = numbers.split_first_chunk().ok_or(NoPosition)?;
        let number = number.try_into().map_err(|_| NoPosition)?;
        match form {
            FORM => Ok(Self {
                store: u64::from_be_bytes(*store),
                number: u64::from_be_bytes(number),
            }),
            _ => Err(NoPosition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_text_form() {
        for (store, number) in [(0, 0), (1_764_000_000_000, 7), (u64::MAX, u64::MAX)] {
            let position = Position { store, number };
            let text = position.to_string();
            assert_eq!((text.parse(), text.len()), (Ok(position), 23));
        }
    }

    #[test]
    fn what_is_no_position_is_refused() {
        let good = Position {
            store: 1,
            number: 2,
        };
        let good = good.to_string();
        let other_form = URL_SAFE_NO_PAD.encode([2; BYTES]);
        for text in [
            "",
            "x",
            "latest",
            &good[1..],
            &format!("{good}A"),
            &other_form,
        ] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text}");
        }
    }
}
