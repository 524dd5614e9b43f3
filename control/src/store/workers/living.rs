//! Who is taken to be alive. Silence counts only while the store was there to be told.
//!
//! ```text
//!   beats of all   | | | | | | |      the store is away      | | | | | | | |
//!   up since       ◀ of each row that beats                  ◀ now, with the first beat: nobody is missed
//!                                                              before 10 s of this are over
//! ```
//!
//! After an outage every row is old, and whoever comes first would take all others for gone, with all that they have
//! claimed. So each row says since when its server knows that the store was there, and whoever comes goes by the
//! earliest of those that have beaten lately. Who died while the store was away is missed so long after it is back.

use std::time::Duration;

use uuid::Uuid;

use super::{BEAT_EVERY, BEAT_EXPIRY};
use crate::clock::UnixMs;
use crate::store::{Connection, StoreError, id_bytes, sql};

/// Nobody has beaten for so long: the store was away. After any shorter time nobody who beats is older than
/// [`BEAT_EXPIRY`], whoever comes first.
const AWAY_FROM: Duration = Duration::from_secs(BEAT_EXPIRY.as_secs() - BEAT_EVERY.as_secs());

/// What [`Row::up_since`] says of a server that has ended: nothing more is expected of it.
pub(super) const ENDED: i64 = 0;

/// A process server, as its row says. In the database's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) id: Uuid,
    /// Since when it knows that the store was there, or [`ENDED`].
    up_since: UnixMs,
    /// Its last beat.
    pub(super) beat_at: UnixMs,
}

/// All process servers that are known, at a moment.
#[derive(Debug)]
pub(super) struct Living {
    rows: Vec<Row>,
    now: UnixMs,
    up_since: UnixMs,
}

impl Living {
    /// Reads who is known; `now` is the database's time.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn read(db: &mut Connection, now: UnixMs) -> Result<Self, StoreError> {
        let found = sql::query("SELECT id, started_at, beat_at FROM worker ORDER BY id")
            .fetch_all(db)
            .await?;
        let rows = found.iter().map(|row| {
            Ok(Row {
                id: Uuid::from_bytes(id_bytes(row.try_get(0)?)?),
                up_since: UnixMs::from_sql(row.try_get(1)?),
                beat_at: UnixMs::from_sql(row.try_get(2)?),
            })
        });
        Ok(Self::of(rows.collect::<Result<_, StoreError>>()?, now))
    }

    fn of(rows: Vec<Row>, now: UnixMs) -> Self {
        let lately = now.minus(AWAY_FROM);
        let known = rows
            .iter()
            .filter(|row| !row.has_ended() && row.beat_at > lately);
        let up_since = known.map(|row| row.up_since).min();
        Self {
            rows,
            now,
            up_since: up_since.map_or(now, |since| since.min(now)),
        }
    }

    /// This one beats now.
    pub(super) fn beats(&mut self, id: Uuid) {
        let row = Row {
            id,
            up_since: self.up_since,
            beat_at: self.now,
        };
        match self.rows.iter_mut().find(|known| known.id == id) {
            Some(known) => *known = row,
            None => self.rows.push(row),
        }
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Since when the store is known to have been there without a pause.
    pub(super) fn up_since(&self) -> UnixMs {
        self.up_since
    }

    /// When a server was heard of last, or when it could have begun to be.
    pub(super) fn heard_at(&self, row: &Row) -> UnixMs {
        match row.has_ended() {
            true => row.beat_at,
            false => row.beat_at.max(self.up_since),
        }
    }

    /// Whether a server may be alive.
    pub(super) fn lives(&self, id: Uuid) -> bool {
        let row = self.rows.iter().find(|row| row.id == id);
        row.is_some_and(|row| self.heard_at(row) > self.gone_by())
    }

    /// Whether a server may be alive only because nobody could have heard of it.
    pub(super) fn is_spared(&self, id: Uuid) -> bool {
        let row = self.rows.iter().find(|row| row.id == id);
        self.lives(id) && row.is_some_and(|row| row.beat_at <= self.gone_by())
    }

    /// Whether nobody is missed yet: the store is just back, or nobody was there.
    pub(super) fn spares(&self) -> bool {
        self.up_since > self.gone_by()
    }

    /// Who was not heard of later is gone.
    fn gone_by(&self) -> UnixMs {
        self.now.minus(BEAT_EXPIRY)
    }
}

impl Row {
    fn has_ended(&self) -> bool {
        self.up_since.to_sql() == ENDED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Uuid = Uuid::from_u128(1);
    const SECOND: Uuid = Uuid::from_u128(2);

    fn row(id: Uuid, up_since: u64, beat_at: u64) -> Row {
        Row {
            id,
            up_since: UnixMs(up_since),
            beat_at: UnixMs(beat_at),
        }
    }

    #[test]
    fn whoever_comes_first_after_an_outage_of_any_length_takes_nobody_for_gone() {
        let every = u64::try_from(BEAT_EVERY.as_millis()).unwrap();
        for away in (0..40_000).step_by(100) {
            for phase in (0..every).step_by(100) {
                // The one has beaten at the last moment, the other is about to beat.
                let rows = vec![row(FIRST, 1, 100_000), row(SECOND, 1, 100_000 - phase)];
                let living = Living::of(rows, UnixMs(100_000 + away));
                assert!(living.lives(SECOND), "away {away}, phase {phase}");
            }
        }
    }

    #[test]
    fn a_server_is_gone_when_it_is_silent_while_others_beat() {
        let at = |now| {
            Living::of(
                vec![row(FIRST, 1, now), row(SECOND, 1, 100_000)],
                UnixMs(now),
            )
        };
        assert!(at(109_999).lives(SECOND) && !at(110_000).lives(SECOND));
        assert!(!at(110_000).spares() && !at(109_999).is_spared(SECOND));
    }

    #[test]
    fn who_died_during_an_outage_is_missed_when_the_store_was_back_for_long_enough() {
        let (mut living, back) = (
            vec![row(FIRST, 1, 100_000), row(SECOND, 1, 100_000)],
            300_000,
        );
        for passed in [0, 2000, 4000, 6000, 8000, 9999, 10_000] {
            let mut now = Living::of(living, UnixMs(back + passed));
            now.beats(FIRST);
            assert_eq!(now.up_since(), UnixMs(back), "after {passed}");
            assert_eq!(now.lives(SECOND), passed < 10_000, "after {passed}");
            assert_eq!(
                (now.is_spared(SECOND), now.spares()),
                (passed < 10_000, passed < 10_000)
            );
            assert!(now.lives(FIRST) && !now.is_spared(FIRST));
            living = now.rows;
        }
    }

    #[test]
    fn who_begins_goes_by_those_that_beat_and_by_no_one_that_has_ended() {
        let up_since = |rows| Living::of(rows, UnixMs(300_000)).up_since().0;
        assert_eq!(up_since(Vec::new()), 300_000);
        assert_eq!(
            up_since(vec![row(FIRST, 1, 100_000)]),
            300_000,
            "it is silent"
        );
        assert_eq!(
            up_since(vec![row(FIRST, 0, 299_000)]),
            300_000,
            "it has ended"
        );
        let beat = vec![row(FIRST, 200_000, 299_000), row(SECOND, 150_000, 298_000)];
        assert_eq!(up_since(beat), 150_000);
        assert_eq!(
            up_since(vec![row(FIRST, 400_000, 400_000)]),
            300_000,
            "clocks were set"
        );
        let mut living = Living::of(vec![row(FIRST, 0, 290_000)], UnixMs(300_000));
        living.beats(SECOND);
        assert!(!living.lives(FIRST) && living.spares() && living.lives(SECOND));
        assert!(!living.lives(Uuid::nil()), "it has no row");
    }
}
