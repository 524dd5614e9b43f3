//! Whether servers of other programs work on this store, before one begins that would get into their way.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::server_clock::database_time;
use super::workers::{BEAT_EXPIRY, SUSPECT_EXPIRY};
use super::{Connection, Store, StoreError, id_bytes};
use crate::clock::{self, UnixMs};
use crate::store::sql;

/// How often there is a look for another beat.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Process servers of other programs that are alive on a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbours {
    /// There are none, or nobody else can be there.
    Nobody,
    /// They share agent servers that are registered, and whoever reaches those may join.
    OfRegistered,
    /// They have all groups for an agent server that is registered nowhere, so nobody else can know of it.
    OfTheirOwn,
}

/// What there is to be seen at one look.
struct Seen {
    /// When each process server that is not known to be gone has beaten last.
    beats: BTreeMap<Uuid, i64>,
    /// Groups have owners, and none of those is registered.
    unregistered: bool,
}

impl Seen {
    /// Whether somebody has beaten since `before`.
    fn has_news_since(&self, before: &Self) -> bool {
        let known = |worker| before.beats.get(worker);
        self.beats
            .iter()
            .any(|(worker, at)| known(worker).is_none_or(|before| at > before))
    }
}

impl Store {
    /// Who else works on this store. To be asked before a process server of this program begins.
    ///
    /// It waits for a beat, up to five seconds: whoever beat lately may have died since, such as the program
    /// that this one follows.
    ///
    /// # Errors
    /// The store failed.
    pub async fn neighbours(&self) -> Result<Neighbours, StoreError> {
        if !self.is_open_to_others() {
            return Ok(Neighbours::Nobody);
        }
        self.compare_clocks().await;
        let first = self.look_around(clock::now()).await?;
        if first.beats.is_empty() {
            return Ok(Neighbours::Nobody);
        }
        tracing::info!(
            "process servers were alive on this store a moment ago; looking whether they are"
        );
        let patience = clock::monotonic() + SUSPECT_EXPIRY;
        while clock::monotonic() < patience {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.look_around(clock::now()).await?;
            if now.has_news_since(&first) {
                return Ok(match now.unregistered {
                    true => Neighbours::OfTheirOwn,
                    false => Neighbours::OfRegistered,
                });
            }
        }
        Ok(Neighbours::Nobody)
    }

    async fn look_around(&self, now: UnixMs) -> Result<Seen, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query("SELECT id, beat_at FROM worker WHERE beat_at > $1")
            .bind(self.in_common(now).minus(BEAT_EXPIRY).to_sql())
            .fetch_all(&mut reader)
            .await?;
        let beats = rows.iter().map(|row| {
            let id = Uuid::from_bytes(id_bytes(row.try_get(0)?)?);
            Ok((id, row.try_get(1)?))
        });
        let beats = beats.collect::<Result<_, StoreError>>()?;
        Ok(Seen {
            beats,
            unregistered: is_unregistered(&mut reader).await?,
        })
    }
}

/// What one look tells of who else works on the store of `db`, for whoever does not wait: one that died within the
/// last five seconds counts as alive.
pub(super) async fn at_a_glance(db: &mut Connection) -> Result<Neighbours, sqlx::Error> {
    let lately = database_time(db).await?.minus(SUSPECT_EXPIRY).to_sql();
    let alive: i64 = sql::query_scalar("SELECT count(*) FROM worker WHERE beat_at > $1")
        .bind(lately)
        .fetch_one(&mut *db)
        .await?;
    Ok(match alive {
        0 => Neighbours::Nobody,
        _ if is_unregistered(db).await? => Neighbours::OfTheirOwn,
        _ => Neighbours::OfRegistered,
    })
}

/// Whether groups have owners, and none of those is registered.
async fn is_unregistered(db: &mut Connection) -> Result<bool, sqlx::Error> {
    let owned: i64 =
        sql::query_scalar("SELECT count(*) FROM group_owner WHERE owner_id IS NOT NULL")
            .fetch_one(&mut *db)
            .await?;
    let registered: i64 = sql::query_scalar(
        "SELECT count(*) FROM group_owner WHERE owner_id IN (SELECT run FROM agent_server)",
    )
    .fetch_one(db)
    .await?;
    Ok(owned > 0 && registered == 0)
}
