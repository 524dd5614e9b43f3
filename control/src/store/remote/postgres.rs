//! PostgreSQL, from version 15 on.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use super::super::sql::Session;
use super::{IDLE_IN_TRANSACTION, LOCK_TIMEOUT, Promises, STATEMENTS};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");

/// The first version that is supported, as PostgreSQL counts.
const VERSION_MIN: i32 = 150_000;

/// Read committed: each transaction waits for the one before it and must see all of it (see `pen.rs`); a
/// snapshot from before the wait would be an old one.
const SET: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED";

pub(super) fn options(options: PgConnectOptions) -> PgConnectOptions {
    options
        .application_name("drover")
        .statement_cache_capacity(STATEMENTS)
        .disable_statement_logging()
}

pub(super) async fn connect(options: &PgConnectOptions) -> Result<Session, sqlx::Error> {
    let (idle, lock) = (IDLE_IN_TRANSACTION.as_millis(), LOCK_TIMEOUT.as_millis());
    let options = options.clone().options([
        ("idle_in_transaction_session_timeout", idle.to_string()),
        ("lock_timeout", lock.to_string()),
    ]);
    let mut db = PgConnection::connect_with(&options).await?;
    db.execute(SET).await?;
    Ok(Session::Postgres(db))
}

/// Brings the schema up to this build's.
pub(super) async fn migrate(db: &mut PgConnection) -> Result<(), MigrateError> {
    MIGRATIONS.run_direct(None, db, false).await
}

/// The last step of the schema that this build knows.
pub(super) fn known_schema() -> i64 {
    MIGRATIONS
        .iter()
        .map(|step| step.version)
        .max()
        .unwrap_or(0)
}

/// What the server promises.
pub(super) async fn promises(db: &mut PgConnection) -> Result<Promises, sqlx::Error> {
    let version: i32 = ask(db, "SELECT current_setting('server_version_num')::int").await?;
    let standby: bool = ask(db, "SELECT pg_is_in_recovery()").await?;
    let mut promises = Promises {
        software: format!("PostgreSQL {}.{}", version / 10_000, version % 10_000),
        too_old: (version < VERSION_MIN).then_some("PostgreSQL 15"),
        read_only: standby,
        weaknesses: Vec::new(),
    };
    for (setting, wanted) in [
        ("server_encoding", &["UTF8"][..]),
        ("fsync", &["on"]),
        ("full_page_writes", &["on"]),
        // `local` and `remote_write` are on the disk of this server at least.
        (
            "synchronous_commit",
            &["on", "local", "remote_write", "remote_apply"],
        ),
    ] {
        let found: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(setting)
            .fetch_one(&mut *db)
            .await?;
        promises.ask_for(setting, found, wanted, setting != "server_encoding");
    }
    Ok(promises)
}

/// The last step of the schema that was taken; 0: none.
pub(super) async fn schema(db: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let begun: bool = ask(db, "SELECT to_regclass('_sqlx_migrations') IS NOT NULL").await?;
    match begun {
        true => ask(db, "SELECT coalesce(max(version), 0) FROM _sqlx_migrations").await,
        false => Ok(0),
    }
}

async fn ask<T>(db: &mut PgConnection, question: &'static str) -> Result<T, sqlx::Error>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(question).fetch_one(db).await
}
