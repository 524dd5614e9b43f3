//! Agents: who they are, their pinned keys, and what they last said about themselves.
//!
//! Whether an agent has a session is not here: that is a fact of the gateway, kept in memory.

use std::collections::{BTreeMap, BTreeSet};

use protocol::identity::KeyHash;
use protocol::ids::{AgentId, GroupId, Slot};
use protocol::link::Target;

use super::{Connection, Store, StoreError, audit, id_bytes};
use crate::clock::UnixMs;
use crate::store::sql;

/// An agent as the store knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// The agent and the way to it.
    pub target: Target,
    /// Its group's name.
    pub group_name: String,
    /// The host's name, as last announced.
    pub hostname: String,
    /// The agent's software, as last announced.
    pub software: String,
    /// Its drivers, as last announced.
    pub kinds: Vec<String>,
    /// Its labels, as last announced.
    pub labels: BTreeMap<String, String>,
    /// When it enrolled.
    pub created_at: UnixMs,
    /// When it was revoked.
    pub revoked_at: Option<UnixMs>,
    /// When its session last began or ended.
    pub last_seen_at: Option<UnixMs>,
    /// Its pinned keys, at most two; none once revoked.
    pub keys: Vec<KeyHash>,
}

/// What the gateway must know to let an agent in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admission {
    /// The agent and the way to it.
    pub target: Target,
    /// Its pinned keys.
    pub keys: Vec<KeyHash>,
}

/// What an agent said about itself when its session began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inventory {
    /// Which agent.
    pub agent: AgentId,
    /// When.
    pub at: UnixMs,
    /// The host's name.
    pub hostname: String,
    /// The agent's software.
    pub software: String,
    /// Its drivers.
    pub kinds: Vec<String>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

/// What became of a wish to revoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Revoked {
    /// It is revoked from now on.
    Now,
    /// It was before.
    Before,
    /// There is no such agent.
    Unknown,
}

/// What agents a list shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AgentFilter {
    /// Of one group only.
    pub group: Option<GroupId>,
    /// Revoked ones only (`true`) or all others (`false`).
    pub revoked: Option<bool>,
}

const SELECT: &str =
    "SELECT a.id, a.group_id, g.name AS group_name, g.slot, a.hostname, a.software,
       a.kinds, a.labels, a.created_at, a.revoked_at, a.last_seen_at,
       (SELECT hex_list(k.key_hash) FROM agent_key k WHERE k.agent_id = a.id) AS pinned
     FROM agent a JOIN agent_group g ON g.id = a.group_id";

impl Store {
    /// One agent.
    ///
    /// # Errors
    /// The store failed.
    pub async fn agent(&self, id: AgentId) -> Result<Option<Agent>, StoreError> {
        let mut reader = self.reader().await?;
        let row = sql::query(format!("{SELECT} WHERE a.id = $1"))
            .bind(id.to_bytes().to_vec())
            .fetch_optional(&mut reader)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Agents of a host's name that are not revoked, at most two: enough to see whether the name
    /// is unique.
    ///
    /// # Errors
    /// The store failed.
    pub async fn agents_of_host(&self, hostname: &str) -> Result<Vec<Agent>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!(
            "{SELECT} WHERE a.hostname = $1 AND a.revoked_at IS NULL ORDER BY a.id LIMIT 2"
        ))
        .bind(hostname)
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read).collect()
    }

    /// Agents by id, after `after`, at most `limit`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn agents_after(
        &self,
        filter: AgentFilter,
        after: Option<AgentId>,
        limit: u32,
    ) -> Result<Vec<Agent>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!(
            "{SELECT} WHERE a.id > $1 AND ($2 IS NULL OR a.group_id = $2)
               AND ($3 IS NULL OR CASE WHEN a.revoked_at IS NULL THEN 0 ELSE 1 END = $3)
             ORDER BY a.id LIMIT $4"
        ))
        .bind(after.map_or_else(Vec::new, |id| id.to_bytes().to_vec()))
        .bind(filter.group.map(|id| id.to_bytes().to_vec()))
        .bind(filter.revoked)
        .bind(i64::from(limit))
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read).collect()
    }

    /// How many agents each group holds, revoked ones not counted; groups without agents are left
    /// out.
    ///
    /// # Errors
    /// The store failed.
    pub async fn agents_by_group(&self) -> Result<BTreeMap<GroupId, u64>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query("SELECT id, admitted FROM agent_group WHERE admitted > 0")
            .fetch_all(&mut reader)
            .await?;
        rows.iter()
            .map(|row| {
                let group = GroupId::from_bytes(id_bytes(row.try_get(0)?)?);
                Ok((group, super::from_sql(row.try_get(1)?)))
            })
            .collect()
    }

    /// Everyone who may come in: what a gateway is told when this server takes its groups.
    ///
    /// # Errors
    /// The store failed.
    pub async fn admissions(&self) -> Result<Vec<Admission>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(admissions_from("agent AS a"))
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read_admission).collect()
    }

    /// The same of some agents.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn admissions_of(
        &self,
        agents: &BTreeSet<AgentId>,
    ) -> Result<Vec<Admission>, StoreError> {
        let ids: serde_json::Value = agents.iter().map(|id| id.0.simple().to_string()).collect();
        let mut reader = self.reader().await?;
        let named = "EACH($1: id hex) AS j CROSS JOIN agent AS a ON a.id = j.id";
        let rows = sql::query(admissions_from(named))
            .bind(ids.to_string())
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read_admission).collect()
    }

    /// Takes an agent's keys away and everything that could give it new ones. `by` is for the record.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn revoke_agent(
        &self,
        id: AgentId,
        by: String,
        now: UnixMs,
    ) -> Result<Revoked, StoreError> {
        self.write(move |db| Box::pin(async move { revoke(db, id, by, now).await }))
            .await
    }

    /// Notes what agents said about themselves.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn note_inventories(&self, seen: Vec<Inventory>) -> Result<(), StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                for inventory in seen {
                    note_inventory(db, inventory).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Notes when agents were last heard of.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn note_last_seen(&self, seen: Vec<(AgentId, UnixMs)>) -> Result<(), StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                for (agent, at) in seen {
                    sql::query(
                        "UPDATE agent SET last_seen_at = GREATEST(coalesce(last_seen_at, 0), $2)
                         WHERE id = $1",
                    )
                    .bind(agent.to_bytes().to_vec())
                    .bind(at.to_sql())
                    .execute(&mut *db)
                    .await?;
                }
                Ok(())
            })
        })
        .await
    }
}

async fn revoke(
    db: &mut Connection,
    id: AgentId,
    by: String,
    now: UnixMs,
) -> Result<Revoked, StoreError> {
    let agent = id.to_bytes().to_vec();
    let changed =
        sql::query("UPDATE agent SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
            .bind(&agent)
            .bind(now.to_sql())
            .execute(&mut *db)
            .await?;
    if changed.rows_affected() == 0 {
        let known: Option<i64> = sql::query_scalar("SELECT 1 FROM agent WHERE id = $1")
            .bind(&agent)
            .fetch_optional(&mut *db)
            .await?;
        return Ok(known.map_or(Revoked::Unknown, |_| Revoked::Before));
    }
    for statement in [
        "UPDATE agent_group SET admitted = admitted - 1
         WHERE id = (SELECT group_id FROM agent WHERE id = $1)",
        "DELETE FROM agent_key WHERE agent_id = $1",
        "DELETE FROM join_token WHERE agent_id = $1 AND used_at IS NULL",
    ] {
        sql::query(statement).bind(&agent).execute(&mut *db).await?;
    }
    audit::record(
        db,
        now,
        "agent.revoked",
        Some(id),
        &serde_json::json!({ "by": by }),
    )
    .await?;
    Ok(Revoked::Now)
}

async fn note_inventory(db: &mut Connection, seen: Inventory) -> Result<(), StoreError> {
    let labels: BTreeMap<_, _> = seen.labels.into_iter().collect();
    sql::query(
        "UPDATE agent SET hostname = $2, software = $3, kinds = $4, labels = $5,
           last_seen_at = GREATEST(coalesce(last_seen_at, 0), $6)
         WHERE id = $1",
    )
    .bind(seen.agent.to_bytes().to_vec())
    .bind(seen.hostname)
    .bind(seen.software)
    .bind(to_json(&seen.kinds)?)
    .bind(to_json(&labels)?)
    .bind(seen.at.to_sql())
    .execute(&mut *db)
    .await?;
    Ok(())
}

fn to_json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::BadRow(error.to_string()))
}

fn read(row: &sql::Row) -> Result<Agent, StoreError> {
    let bad = |error: serde_json::Error| StoreError::BadRow(format!("an agent's facts: {error}"));
    Ok(Agent {
        target: read_target(row)?,
        group_name: row.try_get("group_name")?,
        hostname: row.try_get("hostname")?,
        software: row.try_get("software")?,
        kinds: serde_json::from_str(row.try_get("kinds")?).map_err(bad)?,
        labels: serde_json::from_str(row.try_get("labels")?).map_err(bad)?,
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
        revoked_at: row
            .try_get::<Option<i64>>("revoked_at")?
            .map(UnixMs::from_sql),
        last_seen_at: row
            .try_get::<Option<i64>>("last_seen_at")?
            .map(UnixMs::from_sql),
        keys: read_keys(row)?,
    })
}

/// Those of `agents` (as `a`) that may come in, with what a gateway must know of them.
fn admissions_from(agents: &str) -> String {
    format!(
        "SELECT a.id, a.group_id, g.slot, hex_list(k.key_hash) AS pinned FROM {agents}
         JOIN agent_group AS g ON g.id = a.group_id
         JOIN agent_key AS k ON k.agent_id = a.id
         WHERE a.revoked_at IS NULL GROUP BY a.id, a.group_id, g.slot"
    )
}

fn read_admission(row: &sql::Row) -> Result<Admission, StoreError> {
    Ok(Admission {
        target: read_target(row)?,
        keys: read_keys(row)?,
    })
}

pub(super) fn read_target(row: &sql::Row) -> Result<Target, StoreError> {
    let slot: i64 = row.try_get("slot")?;
    Ok(Target {
        agent: AgentId::from_bytes(id_bytes(row.try_get("id")?)?),
        group: GroupId::from_bytes(id_bytes(row.try_get("group_id")?)?),
        slot: Slot(u8::try_from(slot).map_err(|_| StoreError::BadRow(format!("slot {slot}")))?),
    })
}

/// Keys as SQL joins them: hex, separated by commas.
fn read_keys(row: &sql::Row) -> Result<Vec<KeyHash>, StoreError> {
    let Some(text) = row.try_get::<Option<&str>>("pinned")? else {
        return Ok(Vec::new());
    };
    text.split(',').map(read_key).collect()
}

fn read_key(hex: &str) -> Result<KeyHash, StoreError> {
    let bad = || StoreError::BadRow("a pinned key that is not 32 bytes".to_owned());
    let mut key = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return Err(bad());
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).map_err(|_| bad())?;
    }
    Ok(KeyHash(key))
}
