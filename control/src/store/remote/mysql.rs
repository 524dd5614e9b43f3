//! The MySQL protocol: MariaDB from 10.6 on, on which it is tested, and MySQL from 8.0.19 on by its rules.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

use super::super::sql::Session;
use super::{IDLE_IN_TRANSACTION, LOCK_TIMEOUT, Promises, STATEMENTS};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/mysql");

/// How statements are read there: as by the others. Nothing is cut to what fits.
const MODE: &str = "SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,\
     STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO'";
/// As for PostgreSQL; it also locks no gaps between rows.
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Bytes of a statement that the server must take: a full batch of processes with their inputs.
const PACKET_MIN: u64 = 16 << 20;

pub(super) fn options(options: MySqlConnectOptions) -> MySqlConnectOptions {
    options
        .charset("utf8mb4")
        .statement_cache_capacity(STATEMENTS)
        .disable_statement_logging()
}

/// Sets what every connection needs.
pub(super) async fn set(db: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    db.execute(MODE).await?;
    db.execute(ISOLATION).await?;
    Ok(())
}

pub(super) async fn connect(options: &MySqlConnectOptions) -> Result<Session, sqlx::Error> {
    let mut db = MySqlConnection::connect_with(options).await?;
    set(&mut db).await?;
    let lock = LOCK_TIMEOUT.as_secs();
    let wait = format!("SET SESSION innodb_lock_wait_timeout = {lock}");
    db.execute(AssertSqlSafe(wait)).await?;
    let idle = IDLE_IN_TRANSACTION.as_secs();
    let idle = format!("SET SESSION idle_transaction_timeout = {idle}");
    match db.execute(AssertSqlSafe(idle)).await {
        // MySQL has no such setting: there, a stopped process holds the others up until its connection ends.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("HY000") => {
            tracing::warn!(
                "the store's server cannot end transactions of stopped processes; use MariaDB for several servers"
            );
        }
        other => {
            other?;
        }
    }
    Ok(Session::MySql(db))
}

/// Brings the schema up to this build's.
pub(super) async fn migrate(db: &mut MySqlConnection) -> Result<(), MigrateError> {
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
pub(super) async fn promises(db: &mut MySqlConnection) -> Result<Promises, sqlx::Error> {
    let software = ask(db, "version").await?.unwrap_or_default();
    let (least, needed) = match software.contains("MariaDB") {
        true => ([10, 6, 0], "MariaDB 10.6"),
        false => ([8, 0, 19], "MySQL 8.0.19"),
    };
    let is_on = |value: &str| matches!(value, "1" | "ON" | "on");
    let read_only = ask(db, "read_only").await?;
    let has_log = ask(db, "log_bin").await?.as_deref().is_some_and(is_on);
    let mut promises = Promises {
        too_old: (numbers(&software) < least).then_some(needed),
        software,
        read_only: read_only.as_deref().is_some_and(is_on),
        weaknesses: Vec::new(),
    };
    for (asked, setting, wanted, waivable) in [
        (true, "innodb_flush_log_at_trx_commit", &["1"][..], true),
        (
            true,
            "innodb_doublewrite",
            // The last is MySQL's, and the same as ON.
            &["1", "ON", "fast", "DETECT_AND_RECOVER"],
            true,
        ),
        (has_log, "sync_binlog", &["1"], true),
        (has_log, "binlog_format", &["MIXED", "ROW"], false),
    ] {
        if asked {
            let found = ask(db, setting).await?.unwrap_or_default();
            promises.ask_for(setting, found, wanted, waivable);
        }
    }
    let flush = ask(db, "innodb_flush_method").await?.unwrap_or_default();
    // Every other method waits for the disk.
    if ["nosync", "littlesync"].contains(&flush.as_str()) {
        promises.ask_for("innodb_flush_method", flush, &["O_DIRECT"], true);
    }
    let packet = ask(db, "max_allowed_packet").await?.unwrap_or_default();
    if packet.parse::<u64>().is_ok_and(|bytes| bytes < PACKET_MIN) {
        promises.ask_for("max_allowed_packet", packet, &["16777216"], false);
    }
    Ok(promises)
}

/// The last step of the schema that was taken; 0: none.
pub(super) async fn schema(db: &mut MySqlConnection) -> Result<i64, sqlx::Error> {
    let begun: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM information_schema.tables
         WHERE table_schema = database() AND table_name = '_sqlx_migrations'",
    )
    .fetch_one(&mut *db)
    .await?;
    match begun {
        0 => Ok(0),
        _ => {
            sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
                .fetch_one(db)
                .await
        }
    }
}

/// A variable of the server, as text; `None`: it has no such.
async fn ask(db: &mut MySqlConnection, name: &str) -> Result<Option<String>, sqlx::Error> {
    let question = format!("SHOW GLOBAL VARIABLES LIKE '{name}'");
    let row = sqlx::raw_sql(AssertSqlSafe(question))
        .fetch_optional(db)
        .await?;
    row.map(|row| sqlx::Row::try_get_unchecked(&row, 1))
        .transpose()
}

/// `10.11.19-MariaDB` is 10, 11, 19.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(numbers("10.11.19-MariaDB-0+deb12u1"), [10, 11, 19]);
        assert_eq!(numbers("8.4"), [8, 4, 0]);
        assert!(numbers("10.5.9-MariaDB") < [10, 6, 0] && numbers("8.0.36") > [8, 0, 19]);
    }
}
