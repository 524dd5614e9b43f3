//! Whose store this is: servers that share one must have one identity, or each would hold the agents of the others for
//! strangers.
//!
//! The first server on a store writes down the hash of its root's key; every later one compares. A copy of the store
//! is the same deployment's, and has it, too.

use protocol::identity::KeyHash;

use super::{Connection, Store, StoreError};
use crate::clock::UnixMs;
use crate::store::sql;

impl Store {
    /// Writes down that the store belongs to the deployment with this root, unless it belongs to one already; the root
    /// of whichever it belongs to now. Of several servers that ask at once one is first, and all hear of it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn claim(&self, root: KeyHash, now: UnixMs) -> Result<KeyHash, StoreError> {
        self.write(move |db| Box::pin(async move { claim(db, root, now).await }))
            .await
    }

    /// Whether a deployment has begun on this store, which must know its identity, and other programs may work on it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn is_of_a_deployment(&self) -> Result<bool, StoreError> {
        if !self.is_open_to_others() {
            return Ok(false);
        }
        let mut reader = self.reader().await?;
        Ok(has_begun(&mut reader).await?)
    }
}

async fn claim(db: &mut Connection, root: KeyHash, now: UnixMs) -> Result<KeyHash, StoreError> {
    sql::query(
        "INSERT INTO deployment (id, root_key, begun_at) VALUES (1, $1, $2) ON CONFLICT (id) DO NOTHING",
    )
    .bind(root.0.to_vec())
    .bind(now.to_sql())
    .execute(&mut *db)
    .await?;
    let row = sql::query("SELECT root_key FROM deployment WHERE id = 1")
        .fetch_one(db)
        .await?;
    let key: &[u8] = row.try_get(0)?;
    let key = key.try_into();
    key.map(KeyHash)
        .map_err(|_| StoreError::BadRow("a deployment's root that is not 32 bytes".to_owned()))
}

/// Whether a deployment has begun on the store of `db`: one of before it was written down has groups.
pub(super) async fn has_begun(db: &mut Connection) -> Result<bool, sqlx::Error> {
    let claims: i64 = sql::query_scalar("SELECT count(*) FROM deployment")
        .fetch_one(&mut *db)
        .await?;
    Ok(claims > 0 || has_groups(db).await?)
}

/// The same by what every schema has.
pub(super) async fn has_groups(db: &mut Connection) -> Result<bool, sqlx::Error> {
    let groups: i64 = sql::query_scalar("SELECT count(*) FROM group_owner")
        .fetch_one(db)
        .await?;
    Ok(groups > 0)
}
