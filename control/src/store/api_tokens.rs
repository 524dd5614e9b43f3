//! API tokens: who may use the API, and for what.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::tokens::SecretHash;
use super::{Store, StoreError, id_bytes};
use crate::api::model::access::Role;
use crate::clock::UnixMs;

/// API tokens that a deployment may hold: each is a person or a program, and each in use costs the
/// server a little memory.
pub const API_TOKENS_MAX: u32 = 10_000;

/// An API token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiTokenRow {
    /// Its name in lists; an id.
    pub id: Uuid,
    /// For people: whose it is.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it stops working; `None`: never.
    pub expires_at: Option<UnixMs>,
    /// When it was last used, to within a minute.
    pub last_used_at: Option<UnixMs>,
}

/// Why an API token was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateApiTokenError {
    /// There are [`API_TOKENS_MAX`].
    #[error("there are {API_TOKENS_MAX} API tokens already; delete those that nobody uses")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a wish to delete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deleted {
    /// It is gone.
    Now,
    /// There is no such token.
    Unknown,
    /// It is the last admin token that never ends: without it nobody could let anyone in.
    LastAdmin,
}

const SELECT: &str = "SELECT id, name, role, created_at, expires_at, last_used_at FROM api_token";

impl Store {
    /// Makes a token.
    ///
    /// # Errors
    /// There are too many, or the store failed.
    pub async fn create_api_token(
        &self,
        hash: SecretHash,
        name: String,
        role: Role,
        now: UnixMs,
        expires_at: Option<UnixMs>,
    ) -> Result<ApiTokenRow, CreateApiTokenError> {
        let row = ApiTokenRow {
            id: Uuid::now_v7(),
            name,
            role,
            created_at: now,
            expires_at,
            last_used_at: None,
        };
        self.write(move |db| {
            Box::pin(async move {
                let inserted = sqlx::query(
                    "INSERT INTO api_token (id, name, role, secret_hash, created_at, expires_at)
                     SELECT ?1, ?2, ?3, ?4, ?5, ?6
                     WHERE (SELECT count(*) FROM api_token) < ?7",
                )
                .bind(row.id.into_bytes().to_vec())
                .bind(&row.name)
                .bind(row.role.to_string())
                .bind(hash.to_vec())
                .bind(now.to_sql())
                .bind(expires_at.map(UnixMs::to_sql))
                .bind(i64::from(API_TOKENS_MAX))
                .execute(&mut *db)
                .await
                .map_err(StoreError::from)?;
                if inserted.rows_affected() == 0 {
                    return Err(CreateApiTokenError::TooMany);
                }
                Ok(row)
            })
        })
        .await
    }

    /// The token with this secret, expired or not.
    ///
    /// # Errors
    /// The store failed.
    pub async fn find_api_token(
        &self,
        hash: SecretHash,
    ) -> Result<Option<ApiTokenRow>, StoreError> {
        let mut reader = self.reader().await?;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{SELECT} WHERE secret_hash = ?1"
        )))
        .bind(hash.to_vec())
        .fetch_optional(&mut *reader)
        .await?;
        row.as_ref().map(read).transpose()
    }

    /// Tokens by id, after `after`, at most `limit`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn api_tokens_after(
        &self,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<ApiTokenRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{SELECT} WHERE id > ?1 ORDER BY id LIMIT ?2"
        )))
        .bind(after.map_or_else(Vec::new, |id| id.into_bytes().to_vec()))
        .bind(i64::from(limit))
        .fetch_all(&mut *reader)
        .await?;
        rows.iter().map(read).collect()
    }

    /// Whether somebody can still do everything.
    ///
    /// # Errors
    /// The store failed.
    pub async fn has_lasting_admin(&self) -> Result<bool, StoreError> {
        let mut reader = self.reader().await?;
        let found: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM api_token WHERE role = 'admin' AND expires_at IS NULL",
        )
        .fetch_one(&mut *reader)
        .await?;
        Ok(found > 0)
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn delete_api_token(&self, id: Uuid) -> Result<Deleted, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                let id = id.into_bytes().to_vec();
                let deleted = sqlx::query(
                    "DELETE FROM api_token WHERE id = ?1 AND NOT (
                       role = 'admin' AND expires_at IS NULL AND NOT EXISTS (
                         SELECT 1 FROM api_token o
                         WHERE o.role = 'admin' AND o.expires_at IS NULL AND o.id <> ?1))",
                )
                .bind(&id)
                .execute(&mut *db)
                .await?;
                if deleted.rows_affected() == 1 {
                    return Ok(Deleted::Now);
                }
                let known: Option<i64> =
                    sqlx::query_scalar("SELECT 1 FROM api_token WHERE id = ?1")
                        .bind(&id)
                        .fetch_optional(&mut *db)
                        .await?;
                Ok(known.map_or(Deleted::Unknown, |_| Deleted::LastAdmin))
            })
        })
        .await
    }

    /// Notes when tokens were last used.
    ///
    /// # Errors
    /// The store failed; nothing was changed.
    pub async fn note_api_tokens_used(&self, used: Vec<(Uuid, UnixMs)>) -> Result<(), StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                for (id, at) in used {
                    sqlx::query("UPDATE api_token SET last_used_at = ?2 WHERE id = ?1")
                        .bind(id.into_bytes().to_vec())
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

fn read(row: &SqliteRow) -> Result<ApiTokenRow, StoreError> {
    let role = match row.try_get("role")? {
        "viewer" => Role::Viewer,
        "operator" => Role::Operator,
        "admin" => Role::Admin,
        other => return Err(StoreError::BadRow(format!("an API token's role `{other}`"))),
    };
    Ok(ApiTokenRow {
        id: Uuid::from_bytes(id_bytes(row.try_get("id")?)?),
        name: row.try_get("name")?,
        role,
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
        expires_at: row
            .try_get::<Option<i64>, _>("expires_at")?
            .map(UnixMs::from_sql),
        last_used_at: row
            .try_get::<Option<i64>, _>("last_used_at")?
            .map(UnixMs::from_sql),
    })
}
