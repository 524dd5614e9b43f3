//! Limits that operators have set: who, when and why.

use std::collections::BTreeMap;

use protocol::flow::{Limit, LimitKey};
use protocol::limits::LIMITS_MAX;
use serde_json::{Value, json};

use super::{Connection, Store, StoreError, audit, from_sql};
use crate::clock::UnixMs;
use crate::limits::{self, LimitScope, Setting, WORK_LIMITS_MAX};
use crate::store::sql;

/// A limit that is set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitRow {
    /// What it counts.
    pub key: LimitKey,
    /// What is set.
    pub set: Setting,
    /// Who did it: an API token's name.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
    /// When.
    pub at: UnixMs,
}

/// All limits that are set, at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LimitTable {
    /// Grows with every change: of two tables, the one with the larger number is newer.
    pub version: u64,
    /// By scope and key.
    pub limits: Vec<LimitRow>,
}

/// What became of a limit that was to be set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LimitPut {
    /// It is set, and was not before.
    New,
    /// It is set in the place of another, or was set like this already: then nothing was written.
    Replaced,
    /// So many are set already.
    Full(u32),
}

impl LimitTable {
    /// What a gateway is told of it.
    pub(crate) fn on_the_wire(&self) -> Vec<Limit> {
        let limits = self.limits.iter();
        limits
            .filter_map(|limit| limit.set.on_the_wire(&limit.key))
            .collect()
    }

    /// The weights of tenants that are set.
    pub(crate) fn weights(&self) -> BTreeMap<String, u32> {
        let limits = self.limits.iter();
        limits
            .filter_map(|limit| match &limit.key {
                LimitKey::Tenant(tenant) => Some((tenant.clone(), limit.set.weight?)),
                _ => None,
            })
            .collect()
    }
}

const COLUMNS: &str = "scope, \"key\", min, max, pin, weight, set_by, reason, at";

impl Store {
    /// Every limit that is set.
    ///
    /// # Errors
    /// The store failed.
    pub async fn limits(&self) -> Result<LimitTable, StoreError> {
        let mut reader = self.reader().await?;
        // One statement, one snapshot: the version belongs to these rows.
        let rows = sql::query(
            "SELECT v.seq, d.* FROM (SELECT coalesce(max(seq), 0) AS seq FROM process_event) AS v
             LEFT JOIN limit_def AS d ON true ORDER BY d.scope, d.\"key\"",
        )
        .fetch_all(&mut reader)
        .await?;
        let version = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        let limits = rows
            .iter()
            .filter(|row| !matches!(row.try_get::<Option<&str>>("scope"), Ok(None)))
            .map(read)
            .collect::<Result<_, _>>()?;
        Ok(LimitTable {
            version: from_sql(version),
            limits,
        })
    }

    /// What is set of one limit.
    ///
    /// # Errors
    /// The store failed.
    pub async fn limit(&self, key: &LimitKey) -> Result<Option<LimitRow>, StoreError> {
        let mut reader = self.reader().await?;
        one(&mut reader, key).await
    }

    /// Sets a limit, with an event that says so. What was set of it before goes.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn put_limit(&self, limit: LimitRow) -> Result<LimitPut, StoreError> {
        self.write_order(move |db| {
            Box::pin(async move {
                let before = one(db, &limit.key).await?;
                if before
                    .as_ref()
                    .is_some_and(|old| (old.set, &old.reason) == (limit.set, &limit.reason))
                {
                    return Ok(LimitPut::Replaced);
                }
                if before.is_none()
                    && let Some(full) = room(db, &limit.key).await?
                {
                    return Ok(LimitPut::Full(full));
                }
                write(db, &limit).await?;
                let old = before.as_ref().map(|old| figures(&old.set));
                let order = (limit.at, limit.by.as_str(), limit.reason.as_str());
                let set = figures(&limit.set);
                record(db, "limit.set", &limit.key, order, [Some(set), old.clone()]).await?;
                Ok(match old {
                    None => LimitPut::New,
                    Some(_) => LimitPut::Replaced,
                })
            })
        })
        .await
    }

    /// Removes what is set of a limit, with an event that says so. False: nothing was set.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn remove_limit(
        &self,
        key: LimitKey,
        at: UnixMs,
        by: String,
        reason: String,
    ) -> Result<bool, StoreError> {
        self.write_order(move |db| {
            Box::pin(async move {
                let Some(old) = one(db, &key).await? else {
                    return Ok(false);
                };
                sql::query("DELETE FROM limit_def WHERE scope = $1 AND \"key\" = $2")
                    .bind(LimitScope::of(&key).as_str())
                    .bind(limits::sql_key(&key))
                    .execute(&mut *db)
                    .await?;
                let figures = [None, Some(figures(&old.set))];
                record(db, "limit.removed", &key, (at, &by, &reason), figures).await?;
                Ok(true)
            })
        })
        .await
    }
}

/// How many there may be, if that many there are.
async fn room(db: &mut Connection, key: &LimitKey) -> Result<Option<u32>, StoreError> {
    let scope = LimitScope::of(key);
    let row = sql::query("SELECT count(*), count(CASE WHEN scope = $1 THEN 1 END) FROM limit_def")
        .bind(scope.as_str())
        .fetch_one(&mut *db)
        .await?;
    let (all, like): (u32, u32) = (row.try_get(0)?, row.try_get(1)?);
    let max = u32::try_from(LIMITS_MAX).unwrap_or(u32::MAX);
    Ok(match scope {
        _ if all >= max => Some(max),
        LimitScope::Work if like >= WORK_LIMITS_MAX => Some(WORK_LIMITS_MAX),
        _ => None,
    })
}

async fn write(db: &mut Connection, limit: &LimitRow) -> Result<(), StoreError> {
    sql::query(
        "INSERT INTO limit_def (scope, \"key\", min, max, pin, weight, set_by, reason, at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (scope, \"key\") DO UPDATE SET min = excluded.min, max = excluded.max,
            pin = excluded.pin, weight = excluded.weight, set_by = excluded.set_by,
            reason = excluded.reason, at = excluded.at",
    )
    .bind(LimitScope::of(&limit.key).as_str())
    .bind(limits::sql_key(&limit.key))
    .bind(limit.set.min)
    .bind(limit.set.max)
    .bind(limit.set.pin)
    .bind(limit.set.weight)
    .bind(&limit.by)
    .bind(&limit.reason)
    .bind(limit.at.to_sql())
    .execute(&mut *db)
    .await?;
    Ok(())
}

async fn one(db: &mut Connection, key: &LimitKey) -> Result<Option<LimitRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM limit_def WHERE scope = $1 AND \"key\" = $2");
    let row = sql::query(sql)
        .bind(LimitScope::of(key).as_str())
        .bind(limits::sql_key(key))
        .fetch_optional(&mut *db)
        .await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &sql::Row) -> Result<LimitRow, StoreError> {
    let (scope, key): (&str, &str) = (row.try_get("scope")?, row.try_get("key")?);
    let key = limits::key_from_sql(scope, key)
        .ok_or_else(|| StoreError::BadRow(format!("a limit of {scope} `{key}`")))?;
    Ok(LimitRow {
        key,
        set: Setting {
            min: row.try_get("min")?,
            max: row.try_get("max")?,
            pin: row.try_get("pin")?,
            weight: row.try_get("weight")?,
        },
        by: row.try_get("set_by")?,
        reason: row.try_get("reason")?,
        at: UnixMs::from_sql(row.try_get("at")?),
    })
}

fn figures(set: &Setting) -> Value {
    json!({ "min": set.min, "max": set.max, "pin": set.pin, "weight": set.weight })
}

async fn record(
    db: &mut Connection,
    kind: &'static str,
    key: &LimitKey,
    (at, by, reason): (UnixMs, &str, &str),
    [now, before]: [Option<Value>; 2],
) -> Result<(), StoreError> {
    let data = json!({
        "scope": LimitScope::of(key).as_str(),
        "key": limits::key_text(key),
        "now": now,
        "before": before,
        "actor": by,
        "reason": reason,
    });
    let agent = match key {
        LimitKey::Agent(agent) => Some(*agent),
        _ => None,
    };
    audit::record(db, at, kind, agent, &data).await
}

#[cfg(test)]
pub(in crate::store) mod tests {
    use protocol::ids::AgentId;

    use super::*;

    fn row(key: LimitKey, max: u32) -> LimitRow {
        LimitRow {
            key,
            set: Setting {
                max: Some(max),
                ..Setting::default()
            },
            by: "ann".to_owned(),
            reason: "the array is slow".to_owned(),
            at: UnixMs(5),
        }
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let (dir, store) = crate::store::tests::fresh().await;
        (dir, store)
    }

    #[tokio::test]
    async fn a_limit_is_set_replaced_and_removed_and_each_change_is_recorded() {
        let (_dir, store) = store().await;
        let key = LimitKey::Agent(AgentId(uuid::Uuid::from_u128(7)));
        assert_eq!(store.limits().await.unwrap().limits, []);
        let first = row(key.clone(), 4);
        assert_eq!(store.put_limit(first.clone()).await.unwrap(), LimitPut::New);
        let one = store.limits().await.unwrap();
        assert_eq!(one.limits, std::slice::from_ref(&first));
        // The same again changes nothing and is no event.
        let again = LimitRow {
            at: UnixMs(6),
            ..first
        };
        assert_eq!(store.put_limit(again).await.unwrap(), LimitPut::Replaced);
        assert_eq!(store.limits().await.unwrap(), one);
        let second = row(key.clone(), 2);
        assert_eq!(
            store.put_limit(second.clone()).await.unwrap(),
            LimitPut::Replaced
        );
        let two = store.limits().await.unwrap();
        assert!(two.version > one.version);
        assert_eq!(store.limit(&key).await.unwrap(), Some(second));
        let remove = || {
            store.remove_limit(
                key.clone(),
                UnixMs(9),
                "bob".to_owned(),
                "mended".to_owned(),
            )
        };
        assert!(remove().await.unwrap());
        assert!(!remove().await.unwrap());
        let gone = store.limits().await.unwrap();
        assert!(gone.version > two.version && gone.limits.is_empty());
        let events = store.events_after(0, None, 10).await.unwrap();
        let told: Vec<_> = events
            .iter()
            .map(|event| {
                (
                    event.kind.as_str(),
                    &event.data["now"]["max"],
                    &event.data["before"]["max"],
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("limit.set", &json!(4), &Value::Null),
                ("limit.set", &json!(2), &json!(4)),
                ("limit.removed", &Value::Null, &json!(2)),
            ]
        );
        assert_eq!(
            (&events[2].data["actor"], &events[2].data["reason"]),
            (&json!("bob"), &json!("mended"))
        );
        assert!(events.iter().all(|event| event.agent.is_some()));
    }

    #[tokio::test]
    async fn the_number_of_limits_is_bounded_and_what_is_set_can_still_be_changed() {
        let (_dir, store) = store().await;
        store
            .write(|db| {
                Box::pin(async move {
                    let names: Vec<String> = (1..=4096).map(|n| format!("w{n}")).collect();
                    sql::query(
                        "INSERT INTO limit_def (scope, \"key\", max, set_by, reason, at)
                         SELECT 'work', j.name, 1, 'ann', 'x', 0 FROM EACH($1: name text) AS j",
                    )
                    .bind(json!(names).to_string())
                    .execute(&mut *db)
                    .await?;
                    Ok::<(), StoreError>(())
                })
            })
            .await
            .unwrap();
        let work = |name: &str| row(LimitKey::Work(name.to_owned()), 1);
        assert_eq!(
            store.put_limit(work("more")).await.unwrap(),
            LimitPut::Full(4096)
        );
        assert_eq!(
            store.put_limit(work("w1")).await.unwrap(),
            LimitPut::Replaced
        );
        let global = row(LimitKey::Global, 9);
        assert_eq!(store.put_limit(global).await.unwrap(), LimitPut::New);
        store
            .write(|db| {
                Box::pin(async move {
                    sql::query("UPDATE limit_def SET scope = 'tenant' WHERE scope = 'work'")
                        .execute(&mut *db)
                        .await?;
                    sql::query(
                        "INSERT INTO limit_def (scope, \"key\", max, set_by, reason, at)
                         SELECT 'resource', \"key\", 1, 'ann', 'x', 0 FROM limit_def WHERE scope = 'tenant'",
                    )
                    .execute(&mut *db)
                    .await?;
                    Ok::<(), StoreError>(())
                })
            })
            .await
            .unwrap();
        assert_eq!(
            store.put_limit(work("more")).await.unwrap(),
            LimitPut::Full(8192)
        );
    }

    crate::store::tests::conformance::suite! {
        a_limit_is_set_replaced_and_removed_and_each_change_is_recorded,
        the_number_of_limits_is_bounded_and_what_is_set_can_still_be_changed,
    }
}
