//! Rows of deliveries: what the deliverer writes and reads, and what people look at.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Unsettled, WEBHOOKS_MAX, WebhookRow};
use crate::clock::UnixMs;
use crate::store::sql;
use crate::store::{Connection, Store, StoreError, audit, from_sql, id_bytes, log, to_sql};
use crate::webhooks::{Known, Logged};

/// Deliveries of a webhook that succeeded and are kept; the oldest go first.
pub(super) const SUCCEEDED_MAX: u32 = 100;
/// Deliveries of a webhook that were given up and are kept; the oldest go first.
pub(super) const DEAD_MAX: u32 = 1000;

/// How far a delivery is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryState {
    /// Another attempt follows.
    Waiting,
    /// The receiver has it.
    Succeeded,
    /// Given up.
    Dead,
}

impl DeliveryState {
    /// Its name in the store and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "waiting" => Ok(Self::Waiting),
            "succeeded" => Ok(Self::Succeeded),
            "dead" => Ok(Self::Dead),
            other => Err(StoreError::BadRow(format!("a delivery's state `{other}`"))),
        }
    }
}

/// The delivery of one event to one webhook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeliveryRow {
    /// The event.
    pub seq: u64,
    /// The event's name.
    pub name: String,
    /// What is sent: JSON.
    pub body: Bytes,
    /// How far it is.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// The last attempt's answer, if there was one.
    pub status: Option<u16>,
    /// How long the last attempt took, in milliseconds.
    pub took_ms: u64,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// When the first attempt was, or the wish to deliver it again.
    pub first_at: UnixMs,
    /// When the last attempt was.
    pub last_at: UnixMs,
    /// When the next one is.
    pub next_at: Option<UnixMs>,
}

/// What the deliverer has to write for one webhook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WebhookWrite {
    /// Which.
    pub webhook: Uuid,
    /// The cursor counts only while the webhook has this generation.
    pub generation: u64,
    /// Where the cursor is now.
    pub cursor: u64,
    /// Events that were trimmed unread, since the last write.
    pub missed: u64,
    /// The first failure since the last success.
    pub failing_since: Option<UnixMs>,
    /// Disable it, and why.
    pub disable: Option<String>,
    /// What became of deliveries.
    pub deliveries: Vec<DeliveryRow>,
}

/// What became of a wish to deliver something again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Redelivery {
    /// It waits for its attempt, which follows at once.
    Waiting(Box<DeliveryRow>),
    /// There is no such delivery.
    Unknown,
}

const SELECT: &str = "
    SELECT seq, type, body, state, attempts, status, took_ms, error, first_at, last_at, next_at
    FROM webhook_delivery";

const UPSERT: &str = "
    INSERT INTO webhook_delivery (webhook_id, seq, type, body, state, attempts, status, took_ms,
        error, first_at, last_at, next_at)
    SELECT $1, j.seq, j.type, j.body, j.state, j.attempts, j.status, j.took_ms, j.error,
           j.first_at, j.last_at, j.next_at
    FROM LIST($2: seq int, type text, body text, state text, attempts int, status int, took_ms int,
        error text, first_at int, last_at int, next_at int) AS j
    WHERE EXISTS (SELECT 1 FROM webhook WHERE id = $1)
    ON CONFLICT (webhook_id, seq) DO UPDATE SET
        state = excluded.state, attempts = excluded.attempts, status = excluded.status,
        took_ms = excluded.took_ms, error = excluded.error, first_at = excluded.first_at,
        last_at = excluded.last_at, next_at = excluded.next_at";

/// The first that is one too many.
const TRIM_TO: &str = "
    SELECT seq FROM webhook_delivery WHERE webhook_id = $1 AND state = $2
    ORDER BY seq DESC LIMIT 1 OFFSET $3";

const TRIM: &str =
    "DELETE FROM webhook_delivery WHERE webhook_id = $1 AND state = $2 AND seq <= $3";

impl Store {
    /// Events behind `after` with what webhooks filter by, oldest first, at most `limit`.
    pub(crate) async fn webhook_events(
        &self,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT e.seq, e.at, e.type, e.process_id, e.agent_id, e.data, p.kind, p.tenant
             FROM process_event AS e LEFT JOIN process AS p ON p.id = e.process_id
             WHERE e.seq > $1 ORDER BY e.seq LIMIT $2",
        )
        .bind(to_sql(after))
        .bind(limit)
        .fetch_all(&mut reader)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Logged {
                    event: log::read(row)?,
                    kind: row.try_get("kind")?,
                    tenant: row.try_get("tenant")?,
                })
            })
            .collect()
    }

    /// Every webhook as the deliverer has to know it.
    pub(crate) async fn known_webhooks(&self) -> Result<Vec<Known>, StoreError> {
        let rows = self.webhooks_after(None, WEBHOOKS_MAX).await?;
        let mut reader = self.reader().await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            all.push(known(&mut reader, row).await?);
        }
        Ok(all)
    }

    /// Writes what the deliverer has done.
    pub(crate) async fn settle_webhooks(
        &self,
        writes: Vec<WebhookWrite>,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                for write in writes {
                    settle(db, write, now).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Deliveries of a webhook, the newest event first, before the event `before`, at most `limit`;
    /// in one state if it is named.
    ///
    /// # Errors
    /// The store failed.
    pub async fn webhook_deliveries(
        &self,
        webhook: Uuid,
        state: Option<DeliveryState>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        let mut reader = self.reader().await?;
        let of_state = state.map_or("", |_| "AND state = $4");
        let rows = sql::query(format!(
            "{SELECT} WHERE webhook_id = $1 AND seq < $2 {of_state} ORDER BY seq DESC LIMIT $3"
        ))
        .bind(webhook.into_bytes().to_vec())
        .bind(before.map_or(i64::MAX, to_sql))
        .bind(limit)
        .bind(state.map(DeliveryState::as_str))
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read).collect()
    }

    /// One delivery.
    ///
    /// # Errors
    /// The store failed.
    pub async fn webhook_delivery(
        &self,
        webhook: Uuid,
        seq: u64,
    ) -> Result<Option<DeliveryRow>, StoreError> {
        let mut reader = self.reader().await?;
        one(&mut reader, webhook, seq).await
    }

    /// Lets a delivery wait for an attempt at once, whatever became of it so far; the time until it
    /// is given up begins anew.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn redeliver(
        &self,
        webhook: Uuid,
        seq: u64,
        now: UnixMs,
    ) -> Result<Redelivery, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                sql::query(
                    "UPDATE webhook_delivery SET state = 'waiting', next_at = $3, first_at = $3
                     WHERE webhook_id = $1 AND seq = $2",
                )
                .bind(webhook.into_bytes().to_vec())
                .bind(to_sql(seq))
                .bind(now.to_sql())
                .execute(&mut *db)
                .await?;
                let row = one(db, webhook, seq).await?;
                Ok(row.map_or(Redelivery::Unknown, |row| Redelivery::Waiting(row.into())))
            })
        })
        .await
    }

    /// What of each webhook has not succeeded; those without such deliveries are left out.
    ///
    /// # Errors
    /// The store failed.
    pub async fn unsettled_deliveries(&self) -> Result<BTreeMap<Uuid, Unsettled>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT w.id, s.state,
                (SELECT count(*) FROM webhook_delivery d
                 WHERE d.webhook_id = w.id AND d.state = s.state) AS count
             FROM webhook w
             JOIN (SELECT 'waiting' AS state UNION ALL SELECT 'dead') AS s ON true",
        )
        .fetch_all(&mut reader)
        .await?;
        let mut all: BTreeMap<Uuid, Unsettled> = BTreeMap::new();
        for row in &rows {
            let id = Uuid::from_bytes(id_bytes(row.try_get("id")?)?);
            let count = from_sql(row.try_get("count")?);
            let unsettled = all.entry(id).or_default();
            match row.try_get("state")? {
                "waiting" => unsettled.waiting = count,
                _ => unsettled.dead = count,
            }
        }
        Ok(all)
    }
}

async fn known(db: &mut Connection, row: WebhookRow) -> Result<Known, StoreError> {
    let id = row.id.into_bytes().to_vec();
    let waiting = sql::query(
        "SELECT coalesce(next_at, 0), seq FROM webhook_delivery
         WHERE webhook_id = $1 AND state = 'waiting'",
    )
    .bind(&id)
    .fetch_all(&mut *db)
    .await?;
    let beyond: Vec<i64> =
        sql::query_scalar("SELECT seq FROM webhook_delivery WHERE webhook_id = $1 AND seq > $2")
            .bind(&id)
            .bind(to_sql(row.cursor))
            .fetch_all(&mut *db)
            .await?;
    Ok(Known {
        row,
        waiting: waiting
            .iter()
            .map(|row| {
                let at = UnixMs::from_sql(row.try_get(0)?);
                Ok((at, from_sql(row.try_get(1)?)))
            })
            .collect::<Result<_, StoreError>>()?,
        beyond: beyond.into_iter().map(from_sql).collect(),
    })
}

async fn settle(db: &mut Connection, write: WebhookWrite, now: UnixMs) -> Result<(), StoreError> {
    let id = write.webhook.into_bytes().to_vec();
    if !write.deliveries.is_empty() {
        let rows: Vec<Value> = write.deliveries.iter().map(as_json).collect();
        sql::query(UPSERT)
            .bind(&id)
            .bind(Value::Array(rows).to_string())
            .execute(&mut *db)
            .await?;
        for (state, keep) in [
            (DeliveryState::Succeeded, SUCCEEDED_MAX),
            (DeliveryState::Dead, DEAD_MAX),
        ] {
            if write.deliveries.iter().any(|row| row.state == state) {
                trim(db, &id, state, keep).await?;
            }
        }
    }
    sql::query(
        "UPDATE webhook SET \"cursor\" = GREATEST(\"cursor\", $3), missed = missed + $4, failing_since = $5
         WHERE id = $1 AND generation = $2",
    )
    .bind(&id)
    .bind(to_sql(write.generation))
    .bind(to_sql(write.cursor))
    .bind(to_sql(write.missed))
    .bind(write.failing_since.map(UnixMs::to_sql))
    .execute(&mut *db)
    .await?;
    match write.disable {
        Some(why) => disable(db, write.webhook, write.generation, &why, now).await,
        None => Ok(()),
    }
}

/// Disables a webhook that nobody has touched meanwhile, and says so in the log.
async fn trim(
    db: &mut Connection,
    webhook: &Vec<u8>,
    state: DeliveryState,
    keep: u32,
) -> Result<(), StoreError> {
    let last: Option<i64> = sql::query_scalar(TRIM_TO)
        .bind(webhook)
        .bind(state.as_str())
        .bind(keep)
        .fetch_optional(db)
        .await?;
    if let Some(last) = last {
        sql::query(TRIM)
            .bind(webhook)
            .bind(state.as_str())
            .bind(last)
            .execute(db)
            .await?;
    }
    Ok(())
}

async fn disable(
    db: &mut Connection,
    webhook: Uuid,
    generation: u64,
    why: &str,
    now: UnixMs,
) -> Result<(), StoreError> {
    let disabled = sql::query(
        "UPDATE webhook SET disabled_at = $3, disabled_why = $4, generation = generation + 1
         WHERE id = $1 AND generation = $2 AND disabled_at IS NULL",
    )
    .bind(webhook.into_bytes().to_vec())
    .bind(to_sql(generation))
    .bind(now.to_sql())
    .bind(why)
    .execute(&mut *db)
    .await?;
    if disabled.rows_affected() == 0 {
        return Ok(());
    }
    let data = json!({ "webhook": webhook, "reason": why });
    audit::record(db, now, "webhook.disabled", None, &data).await
}

fn as_json(row: &DeliveryRow) -> Value {
    json!([
        to_sql(row.seq),
        row.name,
        String::from_utf8_lossy(&row.body),
        row.state.as_str(),
        row.attempts,
        row.status,
        to_sql(row.took_ms),
        row.error,
        row.first_at.to_sql(),
        row.last_at.to_sql(),
        row.next_at.map(UnixMs::to_sql),
    ])
}

async fn one(
    db: &mut Connection,
    webhook: Uuid,
    seq: u64,
) -> Result<Option<DeliveryRow>, StoreError> {
    let row = sql::query(format!("{SELECT} WHERE webhook_id = $1 AND seq = $2"))
        .bind(webhook.into_bytes().to_vec())
        .bind(to_sql(seq))
        .fetch_optional(&mut *db)
        .await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &sql::Row) -> Result<DeliveryRow, StoreError> {
    let body: String = row.try_get("body")?;
    let next: Option<i64> = row.try_get("next_at")?;
    Ok(DeliveryRow {
        seq: from_sql(row.try_get("seq")?),
        name: row.try_get("type")?,
        body: Bytes::from(body),
        state: DeliveryState::parse(row.try_get("state")?)?,
        attempts: row.try_get("attempts")?,
        status: row.try_get("status")?,
        took_ms: from_sql(row.try_get("took_ms")?),
        error: row.try_get("error")?,
        first_at: UnixMs::from_sql(row.try_get("first_at")?),
        last_at: UnixMs::from_sql(row.try_get("last_at")?),
        next_at: next.map(UnixMs::from_sql),
    })
}
