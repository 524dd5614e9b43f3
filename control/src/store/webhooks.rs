//! Webhooks, and what became of their deliveries.
//!
//! The deliverer ([`crate::webhooks`]) writes results in groups, each webhook's with its cursor in
//! one transaction; people's changes come in between. A cursor that somebody moved by hand raises
//! the webhook's generation: what the deliverer wrote for an older one does not count.

mod deliveries;
#[cfg(test)]
pub(in crate::store) mod tests;

use protocol::ids::AgentId;
use serde_json::json;
use uuid::Uuid;

pub use self::deliveries::{DeliveryRow, DeliveryState, Redelivery, WebhookWrite};
use super::{Connection, Store, StoreError, from_sql, id_bytes, to_sql};
use crate::clock::UnixMs;
use crate::store::sql;
use crate::webhooks::Secret;

/// Webhooks of a deployment: each is known to the deliverer by heart.
pub const WEBHOOKS_MAX: u32 = 200;

/// A webhook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WebhookRow {
    /// Which.
    pub id: Uuid,
    /// Where events go.
    pub url: String,
    /// Patterns of events; one that fits is enough.
    pub events: Vec<String>,
    /// Only events about this agent.
    pub agent: Option<AgentId>,
    /// Only events about processes of this kind.
    pub kind: Option<String>,
    /// Only events about processes of this tenant.
    pub tenant: Option<String>,
    /// For people.
    pub description: String,
    /// What signs.
    pub secret: Secret,
    /// What signs as well, until then.
    pub old_secret: Option<(Secret, UnixMs)>,
    /// Since when it gets nothing, and why.
    pub disabled: Option<Disabled>,
    /// Raised whenever somebody moves the cursor by hand.
    pub generation: u64,
    /// Every event up to here is delivered, has a row, or was not wanted.
    pub cursor: u64,
    /// Events that were trimmed before they were read.
    pub missed: u64,
    /// The first failure since the last success.
    pub failing_since: Option<UnixMs>,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A webhook that gets nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disabled {
    /// Since when.
    pub at: UnixMs,
    /// Why.
    pub why: String,
}

/// A webhook to be made. The caller has checked what its fields may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewWebhook {
    /// Where events go.
    pub url: String,
    /// Patterns of events.
    pub events: Vec<String>,
    /// Only events about this agent.
    pub agent: Option<AgentId>,
    /// Only events about processes of this kind.
    pub kind: Option<String>,
    /// Only events about processes of this tenant.
    pub tenant: Option<String>,
    /// For people.
    pub description: String,
    /// What signs.
    pub secret: Secret,
    /// Begins disabled.
    pub disabled: bool,
    /// Events behind this one are told; `None`: what happens from now on.
    pub after: Option<u64>,
}

/// What a webhook is told about; `None`: about all of them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WebhookAbout {
    /// Only this agent.
    pub agent: Option<AgentId>,
    /// Only processes of this kind.
    pub kind: Option<String>,
    /// Only processes of this tenant.
    pub tenant: Option<String>,
}

/// What is to be changed; `None`: nothing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WebhookChange {
    /// Where events go.
    pub url: Option<String>,
    /// Patterns of events.
    pub events: Option<Vec<String>>,
    /// Whose events.
    pub filter: Option<WebhookAbout>,
    /// For people.
    pub description: Option<String>,
    /// Whether it gets nothing. One that is enabled goes on with what happens from now on.
    pub disabled: Option<bool>,
    /// Events behind this one are told, again or for the first time.
    pub after: Option<u64>,
}

/// Why a webhook was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateWebhookError {
    /// There are [`WEBHOOKS_MAX`].
    #[error("there are {WEBHOOKS_MAX} webhooks already; delete those that nobody uses")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Deliveries of a webhook that have not succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Unsettled {
    /// Waiting for another attempt.
    pub waiting: u64,
    /// Given up.
    pub dead: u64,
}

const BY_HAND: &str = "disabled by an admin";

const SELECT: &str = "
    SELECT id, url, events, agent_id, kind, tenant, description, secret, old_secret, old_until, disabled_at,
           disabled_why, generation, \"cursor\", missed, failing_since, created_at
    FROM webhook";

const TIP: &str = "coalesce((SELECT max(seq) FROM process_event), 0)";

impl Store {
    /// Makes a webhook.
    ///
    /// # Errors
    /// There are too many, or the store failed.
    pub async fn create_webhook(
        &self,
        new: NewWebhook,
        now: UnixMs,
    ) -> Result<WebhookRow, CreateWebhookError> {
        self.write(move |db| Box::pin(create(db, new, now))).await
    }

    /// Webhooks by id, after `after`, at most `limit`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn webhooks_after(
        &self,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<WebhookRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!("{SELECT} WHERE id > $1 ORDER BY id LIMIT $2"))
            .bind(after.map_or_else(Vec::new, |id| id.into_bytes().to_vec()))
            .bind(limit)
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// One webhook.
    ///
    /// # Errors
    /// The store failed.
    pub async fn webhook(&self, id: Uuid) -> Result<Option<WebhookRow>, StoreError> {
        let mut reader = self.reader().await?;
        find(&mut reader, id).await
    }

    /// Changes a webhook; `None`: there is no such.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn update_webhook(
        &self,
        id: Uuid,
        change: WebhookChange,
        now: UnixMs,
    ) -> Result<Option<WebhookRow>, StoreError> {
        self.write(move |db| Box::pin(update(db, id, change, now)))
            .await
    }

    /// Takes a webhook away, with its deliveries; `false`: there is no such.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn delete_webhook(&self, id: Uuid) -> Result<bool, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                let deleted = sql::query("DELETE FROM webhook WHERE id = $1")
                    .bind(id.into_bytes().to_vec())
                    .execute(&mut *db)
                    .await?;
                Ok(deleted.rows_affected() == 1)
            })
        })
        .await
    }

    /// Gives a webhook a new secret; the one before signs as well until `old_until`.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn rotate_webhook(
        &self,
        id: Uuid,
        secret: Secret,
        old_until: UnixMs,
    ) -> Result<Option<WebhookRow>, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                sql::query(
                    "UPDATE webhook SET old_secret = secret, old_until = $3, secret = $2
                     WHERE id = $1",
                )
                .bind(id.into_bytes().to_vec())
                .bind(secret.bytes().to_vec())
                .bind(old_until.to_sql())
                .execute(&mut *db)
                .await?;
                find(db, id).await
            })
        })
        .await
    }
}

async fn create(
    db: &mut Connection,
    new: NewWebhook,
    now: UnixMs,
) -> Result<WebhookRow, CreateWebhookError> {
    let id = Uuid::now_v7();
    let disabled = new.disabled;
    let count: u32 = sql::query_scalar("SELECT count(*) FROM webhook")
        .fetch_one(db)
        .await
        .map_err(StoreError::from)?;
    if count >= WEBHOOKS_MAX {
        return Err(CreateWebhookError::TooMany);
    }
    sql::query(format!(
        "INSERT INTO webhook (id, url, events, agent_id, kind, description, secret, disabled_at,
             disabled_why, generation, \"cursor\", missed, created_at, tenant)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, coalesce($10, {TIP}), 0, $11, $12)"
    ))
    .bind(id.into_bytes().to_vec())
    .bind(new.url)
    .bind(json!(new.events).to_string())
    .bind(new.agent.map(|agent| agent.to_bytes().to_vec()))
    .bind(new.kind)
    .bind(new.description)
    .bind(new.secret.bytes().to_vec())
    .bind(disabled.then_some(now.to_sql()))
    .bind(disabled.then_some(BY_HAND))
    .bind(new.after.map(to_sql))
    .bind(now.to_sql())
    .bind(new.tenant)
    .execute(&mut *db)
    .await
    .map_err(StoreError::from)?;
    let made = find(db, id).await?;
    made.ok_or_else(|| StoreError::BadRow("a new webhook is not there".to_owned()).into())
}

async fn update(
    db: &mut Connection,
    id: Uuid,
    change: WebhookChange,
    now: UnixMs,
) -> Result<Option<WebhookRow>, StoreError> {
    let Some(mut row) = find(db, id).await? else {
        return Ok(None);
    };
    row.url = change.url.unwrap_or(row.url);
    row.events = change.events.unwrap_or(row.events);
    if let Some(about) = change.filter {
        (row.agent, row.kind, row.tenant) = (about.agent, about.kind, about.tenant);
    }
    row.description = change.description.unwrap_or(row.description);
    let was_disabled = row.disabled.is_some();
    let mut moved = change.after;
    match change.disabled {
        Some(true) if !was_disabled => {
            let why = BY_HAND.to_owned();
            row.disabled = Some(Disabled { at: now, why });
            row.generation += 1;
        }
        Some(false) if was_disabled => {
            row.disabled = None;
            row.failing_since = None;
            if moved.is_none() {
                moved = Some(tip(db).await?.max(row.cursor));
            }
        }
        _ => {}
    }
    if let Some(cursor) = moved {
        row.cursor = cursor;
        row.generation += 1;
        // What is told again has no past.
        sql::query("DELETE FROM webhook_delivery WHERE webhook_id = $1 AND seq > $2")
            .bind(id.into_bytes().to_vec())
            .bind(to_sql(cursor))
            .execute(&mut *db)
            .await?;
    }
    sql::query(
        "UPDATE webhook SET url = $2, events = $3, agent_id = $4, kind = $5, description = $6,
             disabled_at = $7, disabled_why = $8, generation = $9, \"cursor\" = $10, failing_since = $11,
             tenant = $12
         WHERE id = $1",
    )
    .bind(id.into_bytes().to_vec())
    .bind(&row.url)
    .bind(json!(row.events).to_string())
    .bind(row.agent.map(|agent| agent.to_bytes().to_vec()))
    .bind(&row.kind)
    .bind(&row.description)
    .bind(row.disabled.as_ref().map(|disabled| disabled.at.to_sql()))
    .bind(row.disabled.as_ref().map(|disabled| &disabled.why))
    .bind(to_sql(row.generation))
    .bind(to_sql(row.cursor))
    .bind(row.failing_since.map(UnixMs::to_sql))
    .bind(&row.tenant)
    .execute(&mut *db)
    .await?;
    Ok(Some(row))
}

async fn tip(db: &mut Connection) -> Result<u64, StoreError> {
    let tip: i64 = sql::query_scalar(format!("SELECT {TIP}"))
        .fetch_one(&mut *db)
        .await?;
    Ok(from_sql(tip))
}

async fn find(db: &mut Connection, id: Uuid) -> Result<Option<WebhookRow>, StoreError> {
    let row = sql::query(format!("{SELECT} WHERE id = $1"))
        .bind(id.into_bytes().to_vec())
        .fetch_optional(&mut *db)
        .await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &sql::Row) -> Result<WebhookRow, StoreError> {
    let bad = |what: &str| StoreError::BadRow(format!("a webhook's {what}"));
    let secret = |bytes: Vec<u8>| Secret::new(bytes).map_err(|_| bad("secret"));
    let moment = |column: &str| -> Result<Option<UnixMs>, StoreError> {
        let value: Option<i64> = row.try_get(column)?;
        Ok(value.map(UnixMs::from_sql))
    };
    let old: Option<Vec<u8>> = row.try_get("old_secret")?;
    let agent: Option<&[u8]> = row.try_get("agent_id")?;
    let why: Option<String> = row.try_get("disabled_why")?;
    Ok(WebhookRow {
        id: Uuid::from_bytes(id_bytes(row.try_get("id")?)?),
        url: row.try_get("url")?,
        events: serde_json::from_str(row.try_get("events")?).map_err(|_| bad("events"))?,
        agent: agent.map(id_bytes).transpose()?.map(AgentId::from_bytes),
        kind: row.try_get("kind")?,
        tenant: row.try_get("tenant")?,
        description: row.try_get("description")?,
        secret: secret(row.try_get("secret")?)?,
        old_secret: old.map(secret).transpose()?.zip(moment("old_until")?),
        disabled: moment("disabled_at")?.map(|at| Disabled {
            at,
            why: why.unwrap_or_default(),
        }),
        generation: from_sql(row.try_get("generation")?),
        cursor: from_sql(row.try_get("cursor")?),
        missed: from_sql(row.try_get("missed")?),
        failing_since: moment("failing_since")?,
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
    })
}
