//! Join tokens: one use each, decided by one statement in one transaction.
//!
//! ```text
//!   look(secret) ── valid? ──▶ the certificate is made ──▶ consume(secret, key)
//!                                                            UPDATE … WHERE used_at IS NULL
//!                                                            1 row: agent and key in the same commit
//!                                                            0 rows: somebody was faster
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use protocol::identity::KeyHash;
use protocol::ids::{AgentId, GroupId};
use protocol::link::Target;
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::agents::{Admission, read_target};
use super::audit;
use super::{Connection, Store, StoreError, id_bytes};
use crate::clock::UnixMs;
use crate::store::sql;

/// How long used and expired tokens are kept for people to look at.
const KEEP_DEAD: Duration = Duration::from_secs(7 * 24 * 3600);

/// SHA-256 of a token's secret: all that the store keeps of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of a secret with 256 random bits.
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    pub(super) fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// A join token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinTokenRow {
    /// Its name.
    pub id: Uuid,
    /// The group that it leads to, and that group's name; `None`: the emptiest automatic one.
    pub group: Option<(GroupId, String)>,
    /// The agent that it gives a new key.
    pub rekeys: Option<AgentId>,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it stops working.
    pub expires_at: UnixMs,
    /// When it was used.
    pub used_at: Option<UnixMs>,
    /// The agent that came in with it.
    pub used_by: Option<AgentId>,
    /// From where.
    pub used_from: Option<String>,
}

/// What a new join token is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenUse {
    /// A new agent in this group.
    Join(GroupId),
    /// A new agent in the emptiest automatic group.
    JoinAnywhere,
    /// A new key for this agent.
    Rekey(AgentId),
}

/// Why a join token does not let anyone in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConsumeError {
    /// There is none with this secret.
    #[error("no such token")]
    Unknown,
    /// It was used before, or somebody was faster.
    #[error("the token was used before")]
    Used,
    /// It is too old.
    #[error("the token has expired")]
    Expired,
    /// The agent that it is for was revoked.
    #[error("the token's agent was revoked")]
    AgentRevoked,
    /// Another agent has the same key pinned.
    #[error("the key is pinned for another agent already")]
    KeyInUse,
    /// There is no group that takes agents.
    #[error("there is no automatic group; make the token with a group")]
    NoGroup,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for ConsumeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Somebody comes in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consume {
    /// Of the secret that was shown.
    pub secret: SecretHash,
    /// Who it makes, or whose key it replaces.
    pub agent: AgentId,
    /// The key to pin.
    pub key: KeyHash,
    /// The host's name.
    pub hostname: String,
    /// The agent's software.
    pub software: String,
    /// From where.
    pub remote: SocketAddr,
    /// When.
    pub now: UnixMs,
}

const SELECT: &str = "SELECT t.id, t.group_id, g.name AS group_name, t.agent_id, t.created_at,
       t.expires_at, t.used_at, t.used_by, t.used_from
     FROM join_token t LEFT JOIN agent_group g ON g.id = t.group_id";

impl Store {
    /// Makes one token for each hash.
    ///
    /// # Errors
    /// The store failed; none was made. A group or agent that does not exist breaks a constraint.
    pub async fn create_tokens(
        &self,
        hashes: Vec<SecretHash>,
        purpose: TokenUse,
        now: UnixMs,
        expires_at: UnixMs,
    ) -> Result<Vec<JoinTokenRow>, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                forget_dead(db, now).await?;
                let mut rows = Vec::with_capacity(hashes.len());
                for hash in hashes {
                    rows.push(insert(db, hash, purpose, now, expires_at).await?);
                }
                Ok(rows)
            })
        })
        .await
    }

    /// Tokens by id, after `after`, at most `limit`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn tokens_after(
        &self,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<JoinTokenRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!("{SELECT} WHERE t.id > $1 ORDER BY t.id LIMIT $2"))
            .bind(after.map_or_else(Vec::new, |id| id.into_bytes().to_vec()))
            .bind(i64::from(limit))
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// Takes a token back. `false`: there is none of that id.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn delete_token(&self, id: Uuid) -> Result<bool, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                let deleted = sql::query("DELETE FROM join_token WHERE id = $1")
                    .bind(id.into_bytes().to_vec())
                    .execute(&mut *db)
                    .await?;
                Ok(deleted.rows_affected() == 1)
            })
        })
        .await
    }

    /// Says for which agent a usable token gives a key: `None` for a new agent. Decides nothing:
    /// that is [`Store::consume_token`]'s.
    ///
    /// # Errors
    /// The token is not usable, or the store failed.
    pub async fn look_at_token(
        &self,
        secret: SecretHash,
        now: UnixMs,
    ) -> Result<Option<AgentId>, ConsumeError> {
        let mut reader = self.reader().await?;
        look(&mut reader, secret, now).await
    }

    /// Uses a token up: the agent is made (or its keys are replaced), its key is pinned, and the
    /// token is spent, all or nothing.
    ///
    /// # Errors
    /// Why nobody came in. The token is unchanged then.
    pub async fn consume_token(&self, consume: Consume) -> Result<Admission, ConsumeError> {
        self.write(move |db| Box::pin(async move { use_up(db, consume).await }))
            .await
    }
}

async fn insert(
    db: &mut Connection,
    hash: SecretHash,
    purpose: TokenUse,
    now: UnixMs,
    expires_at: UnixMs,
) -> Result<JoinTokenRow, StoreError> {
    let id = Uuid::now_v7();
    let (group, agent) = match purpose {
        TokenUse::Join(group) => (Some(group.to_bytes().to_vec()), None),
        TokenUse::JoinAnywhere => (None, None),
        TokenUse::Rekey(agent) => (None, Some(agent.to_bytes().to_vec())),
    };
    sql::query(
        "INSERT INTO join_token (id, secret_hash, group_id, agent_id, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id.into_bytes().to_vec())
    .bind(hash.to_vec())
    .bind(group)
    .bind(agent)
    .bind(now.to_sql())
    .bind(expires_at.to_sql())
    .execute(&mut *db)
    .await?;
    let row = sql::query(format!("{SELECT} WHERE t.id = $1"))
        .bind(id.into_bytes().to_vec())
        .fetch_one(&mut *db)
        .await?;
    read(&row)
}

/// Old tokens go when new ones come: the table stays small without a task of its own.
async fn forget_dead(db: &mut Connection, now: UnixMs) -> Result<(), StoreError> {
    sql::query("DELETE FROM join_token WHERE expires_at < $1")
        .bind(now.minus(KEEP_DEAD).to_sql())
        .execute(&mut *db)
        .await?;
    Ok(())
}

async fn look(
    db: &mut Connection,
    secret: SecretHash,
    now: UnixMs,
) -> Result<Option<AgentId>, ConsumeError> {
    let row = sql::query(
        "SELECT t.agent_id, t.expires_at, t.used_at, a.revoked_at
         FROM join_token t LEFT JOIN agent a ON a.id = t.agent_id WHERE t.secret_hash = $1",
    )
    .bind(secret.to_vec())
    .fetch_optional(&mut *db)
    .await?
    .ok_or(ConsumeError::Unknown)?;
    if row.try_get::<Option<i64>>("used_at")?.is_some() {
        return Err(ConsumeError::Used);
    }
    if now >= UnixMs::from_sql(row.try_get("expires_at")?) {
        return Err(ConsumeError::Expired);
    }
    if row.try_get::<Option<i64>>("revoked_at")?.is_some() {
        return Err(ConsumeError::AgentRevoked);
    }
    Ok(read_agent_id(&row, "agent_id")?)
}

async fn use_up(db: &mut Connection, consume: Consume) -> Result<Admission, ConsumeError> {
    // The whole decision: of any number of users one changes the row.
    let won = sql::query(
        "UPDATE join_token SET used_at = $2, used_by = $3, used_from = $4
         WHERE secret_hash = $1 AND used_at IS NULL AND expires_at > $2
           AND (agent_id IS NULL OR agent_id = $3)",
    )
    .bind(consume.secret.to_vec())
    .bind(consume.now.to_sql())
    .bind(consume.agent.to_bytes().to_vec())
    .bind(consume.remote.to_string())
    .execute(&mut *db)
    .await?;
    if won.rows_affected() == 0 {
        return match look(db, consume.secret, consume.now).await {
            Err(reason) => Err(reason),
            Ok(_) => Err(ConsumeError::Used),
        };
    }
    let won = sql::query("SELECT group_id, agent_id FROM join_token WHERE secret_hash = $1")
        .bind(consume.secret.to_vec())
        .fetch_one(&mut *db)
        .await?;
    let (kind, target) = if read_agent_id(&won, "agent_id")?.is_some() {
        ("agent.rekeyed", replace_keys(db, &consume).await?)
    } else {
        let group: Option<&[u8]> = won.try_get("group_id")?;
        let group = group.map(id_bytes).transpose()?.map(GroupId::from_bytes);
        ("agent.enrolled", make_agent(db, &consume, group).await?)
    };
    pin(db, &consume).await?;
    let data = json!({
        "hostname": consume.hostname,
        "group": target.group,
        "key": consume.key.to_string(),
        "remote": consume.remote,
    });
    audit::record(db, consume.now, kind, Some(consume.agent), &data).await?;
    Ok(Admission {
        target,
        keys: vec![consume.key],
    })
}

async fn replace_keys(db: &mut Connection, consume: &Consume) -> Result<Target, ConsumeError> {
    let agent = consume.agent.to_bytes().to_vec();
    let row = sql::query(
        "SELECT a.id, a.group_id, g.slot, a.revoked_at
         FROM agent a JOIN agent_group g ON g.id = a.group_id WHERE a.id = $1",
    )
    .bind(&agent)
    .fetch_one(&mut *db)
    .await?;
    if row.try_get::<Option<i64>>("revoked_at")?.is_some() {
        return Err(ConsumeError::AgentRevoked);
    }
    sql::query("DELETE FROM agent_key WHERE agent_id = $1")
        .bind(&agent)
        .execute(&mut *db)
        .await?;
    sql::query("UPDATE agent SET hostname = $2, software = $3 WHERE id = $1")
        .bind(&agent)
        .bind(&consume.hostname)
        .bind(&consume.software)
        .execute(&mut *db)
        .await?;
    Ok(read_target(&row)?)
}

async fn make_agent(
    db: &mut Connection,
    consume: &Consume,
    group: Option<GroupId>,
) -> Result<Target, ConsumeError> {
    // Without a wish: the automatic group with the fewest agents.
    let row = sql::query(
        "SELECT $2 AS id, g.id AS group_id, g.slot FROM agent_group g
         WHERE g.id = $1 OR ($1 IS NULL AND g.automatic = 1)
         ORDER BY g.admitted, g.slot
         LIMIT 1",
    )
    .bind(group.map(|id| id.to_bytes().to_vec()))
    .bind(consume.agent.to_bytes().to_vec())
    .fetch_optional(&mut *db)
    .await?
    .ok_or(ConsumeError::NoGroup)?;
    let target = read_target(&row)?;
    sql::query(
        "INSERT INTO agent (id, group_id, hostname, software, created_at)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(target.agent.to_bytes().to_vec())
    .bind(target.group.to_bytes().to_vec())
    .bind(&consume.hostname)
    .bind(&consume.software)
    .bind(consume.now.to_sql())
    .execute(&mut *db)
    .await?;
    sql::query("UPDATE agent_group SET admitted = admitted + 1 WHERE id = $1")
        .bind(target.group.to_bytes().to_vec())
        .execute(&mut *db)
        .await?;
    Ok(target)
}

async fn pin(db: &mut Connection, consume: &Consume) -> Result<(), ConsumeError> {
    let pinned = sql::query(
        "INSERT INTO agent_key (key_hash, agent_id, pinned_at) VALUES ($1, $2, $3)
         ON CONFLICT (key_hash) DO NOTHING",
    )
    .bind(consume.key.0.to_vec())
    .bind(consume.agent.to_bytes().to_vec())
    .bind(consume.now.to_sql())
    .execute(&mut *db)
    .await?;
    if pinned.rows_affected() == 1 {
        Ok(())
    } else {
        Err(ConsumeError::KeyInUse)
    }
}

fn read_agent_id(row: &sql::Row, column: &str) -> Result<Option<AgentId>, StoreError> {
    let bytes: Option<&[u8]> = row.try_get(column)?;
    Ok(bytes.map(id_bytes).transpose()?.map(AgentId::from_bytes))
}

fn read(row: &sql::Row) -> Result<JoinTokenRow, StoreError> {
    let group: Option<&[u8]> = row.try_get("group_id")?;
    let group = group.map(id_bytes).transpose()?.map(GroupId::from_bytes);
    let name: Option<String> = row.try_get("group_name")?;
    Ok(JoinTokenRow {
        id: Uuid::from_bytes(id_bytes(row.try_get("id")?)?),
        group: group.zip(name),
        rekeys: read_agent_id(row, "agent_id")?,
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
        expires_at: UnixMs::from_sql(row.try_get("expires_at")?),
        used_at: row.try_get::<Option<i64>>("used_at")?.map(UnixMs::from_sql),
        used_by: read_agent_id(row, "used_by")?,
        used_from: row.try_get("used_from")?,
    })
}
