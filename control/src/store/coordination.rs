//! Locks and events by the store. Each statement is one compare-and-set or one read. Until when a lock is held is in the
//! database's time (`server_clock.rs`).
//!
//! None of it counts as something written ([`Store::writes`]): nobody has to look at it.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError, sql};
use crate::clock::UnixMs;

impl Store {
    /// Takes a lock until `until`, or keeps it; `false`: somebody else has it.
    pub(crate) async fn take_lock(
        &self,
        name: &str,
        holder: Uuid,
        now: UnixMs,
        until: UnixMs,
    ) -> Result<bool, StoreError> {
        let name = name.to_owned();
        let (now, until) = (self.in_common(now), self.in_common(until));
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let taken = sql::query(
                        "UPDATE lock_lease SET holder = $2, until = $4
                     WHERE name = $1 AND (holder = $2 OR until <= $3)",
                    )
                    .bind(name.clone())
                    .bind(holder.into_bytes().to_vec())
                    .bind(now.to_sql())
                    .bind(until.to_sql())
                    .execute(&mut *db)
                    .await?;
                    if taken.rows_affected() > 0 {
                        return Ok::<_, StoreError>(true);
                    }
                    let made = sql::query(
                        "INSERT INTO lock_lease (name, holder, until) VALUES ($1, $2, $3)
                     ON CONFLICT (name) DO NOTHING",
                    )
                    .bind(name)
                    .bind(holder.into_bytes().to_vec())
                    .bind(until.to_sql())
                    .execute(&mut *db)
                    .await?;
                    Ok(made.rows_affected() > 0)
                })
            })
            .await
    }

    /// Keeps a lock until `until`; `false`: `holder` has it no longer.
    pub(crate) async fn renew_lock(
        &self,
        name: &str,
        holder: Uuid,
        until: UnixMs,
    ) -> Result<bool, StoreError> {
        let name = name.to_owned();
        let until = self.in_common(until);
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let kept = sql::query(
                        "UPDATE lock_lease SET until = $3 WHERE name = $1 AND holder = $2",
                    )
                    .bind(name)
                    .bind(holder.into_bytes().to_vec())
                    .bind(until.to_sql())
                    .execute(&mut *db)
                    .await?;
                    Ok::<_, StoreError>(kept.rows_affected() > 0)
                })
            })
            .await
    }

    /// Gives a lock back, if `holder` has it.
    pub(crate) async fn give_lock_back(&self, name: &str, holder: Uuid) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    sql::query("DELETE FROM lock_lease WHERE name = $1 AND holder = $2")
                        .bind(name)
                        .bind(holder.into_bytes().to_vec())
                        .execute(&mut *db)
                        .await?;
                    Ok::<_, StoreError>(())
                })
            })
            .await
    }

    /// How long somebody still has a lock; `None`: nobody has.
    pub(crate) async fn lock_remaining(
        &self,
        name: &str,
        now: UnixMs,
    ) -> Result<Option<Duration>, StoreError> {
        let mut reader = self.reader().await?;
        let until: Option<i64> = sql::query_scalar("SELECT until FROM lock_lease WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(&mut reader)
            .await?;
        let now = self.in_common(now);
        let left = until.map(|until| now.until(UnixMs::from_sql(until)));
        Ok(left.filter(|left| !left.is_zero()))
    }

    /// Something was published on a topic.
    pub(crate) async fn ring(&self, topic: &str) -> Result<(), StoreError> {
        let topic = topic.to_owned();
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    sql::query(
                        "INSERT INTO event_ring (topic, rings) VALUES ($1, 1)
                     ON CONFLICT (topic) DO UPDATE SET rings = event_ring.rings + 1",
                    )
                    .bind(topic)
                    .execute(&mut *db)
                    .await?;
                    Ok::<_, StoreError>(())
                })
            })
            .await
    }

    /// How often something was published, by topic.
    pub(crate) async fn rings(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query("SELECT topic, rings FROM event_ring")
            .fetch_all(&mut reader)
            .await?;
        let rings = rows.iter().map(|row| {
            let rings: i64 = row.try_get(1)?;
            Ok((row.try_get(0)?, super::from_sql(rings)))
        });
        rings.collect()
    }
}
