//! API tokens: who may use the API, and for what.

use uuid::Uuid;

use super::tokens::SecretHash;
use super::{Store, StoreError, id_bytes};
use crate::api::model::access::Role;
use crate::clock::UnixMs;
use crate::store::sql;

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
                let count: u32 = sql::query_scalar("SELECT count(*) FROM api_token")
                    .fetch_one(db)
                    .await
                    .map_err(StoreError::from)?;
                if count >= API_TOKENS_MAX {
                    return Err(CreateApiTokenError::TooMany);
                }
                sql::query(
                    "INSERT INTO api_token (id, name, role, secret_hash, created_at, expires_at)
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(row.id.into_bytes().to_vec())
                .bind(&row.name)
                .bind(row.role.to_string())
                .bind(hash.to_vec())
                .bind(now.to_sql())
                .bind(expires_at.map(UnixMs::to_sql))
                .execute(&mut *db)
                .await
                .map_err(StoreError::from)?;
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
        let row = sql::query(format!("{SELECT} WHERE secret_hash = $1"))
            .bind(hash.to_vec())
            .fetch_optional(&mut reader)
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
        let rows = sql::query(format!("{SELECT} WHERE id > $1 ORDER BY id LIMIT $2"))
            .bind(after.map_or_else(Vec::new, |id| id.into_bytes().to_vec()))
            .bind(i64::from(limit))
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// Whether somebody can still do everything.
    ///
    /// # Errors
    /// The store failed.
    pub async fn has_lasting_admin(&self) -> Result<bool, StoreError> {
        let mut reader = self.reader().await?;
        let found: i64 = sql::query_scalar(
            "SELECT count(*) FROM api_token WHERE role = 'admin' AND expires_at IS NULL",
        )
        .fetch_one(&mut reader)
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
                let lasting: Vec<Vec<u8>> = sql::query_scalar(
                    "SELECT id FROM api_token WHERE role = 'admin' AND expires_at IS NULL LIMIT 2",
                )
                .fetch_all(db)
                .await?;
                if lasting.as_slice() == std::slice::from_ref(&id) {
                    return Ok(Deleted::LastAdmin);
                }
                let deleted = sql::query("DELETE FROM api_token WHERE id = $1")
                    .bind(id)
                    .execute(db)
                    .await?;
                Ok(match deleted.rows_affected() {
                    0 => Deleted::Unknown,
                    _ => Deleted::Now,
                })
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
                    sql::query("UPDATE api_token SET last_used_at = $2 WHERE id = $1")
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

fn read(row: &sql::Row) -> Result<ApiTokenRow, StoreError> {
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
            .try_get::<Option<i64>>("expires_at")?
            .map(UnixMs::from_sql),
        last_used_at: row
            .try_get::<Option<i64>>("last_used_at")?
            .map(UnixMs::from_sql),
    })
}
