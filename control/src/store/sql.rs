//! One SQL for all backends: statements, what is bound to them, and rows.
//!
//! ```text
//!   query(text).bind(value) ─▶ in the words of the backend (text.rs, once a text) ─▶ sqlx ─▶ Row
//! ```
//!
//! What a statement may say is in [`text`]. Everything that depends on a backend is here and in the folders of
//! the backends; the modules beside this one know values, rows, and one language.

mod gone;
mod readers;
mod row;
#[cfg(test)]
mod rules;
mod text;
mod value;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sqlx::mysql::{MySqlArguments, MySqlConnection};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Error, MySql, Postgres, Sqlite};

pub(super) use gone::is_gone;
pub(crate) use readers::Reader;
pub(super) use readers::Readers;
pub use row::{Column, Place, Row};
pub(super) use text::Dialect;
pub use value::Value;

use gone::{Silence, gone, is_of_the_connection};
use row::Kind;
use text::{Part, Statement};

/// How long a server may take for one statement: longer than any transaction waits for those before it.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Texts that are kept in a backend's words; beyond that all are forgotten. There are about 300.
const TEXTS_MAX: usize = 2048;

/// The statements of a store in its backend's words.
pub(super) struct Texts {
    dialect: Dialect,
    known: RwLock<HashMap<Box<str>, Arc<Statement>>>,
    silence: Silence,
}

impl Texts {
    pub(super) fn new(dialect: Dialect) -> Arc<Self> {
        Arc::new(Self {
            dialect,
            known: RwLock::default(),
            silence: Silence::default(),
        })
    }

    /// Has a server answer within [`ANSWER_MAX`]; the embedded backend takes what it takes.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if self.dialect == Dialect::Sqlite {
            return work.await;
        }
        let done = tokio::time::timeout(ANSWER_MAX, work).await;
        done.unwrap_or_else(|_| Err(Error::Io(std::io::ErrorKind::TimedOut.into())))
    }

    fn of(&self, text: &str) -> Arc<Statement> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = known.get(text) {
            return Arc::clone(statement);
        }
        drop(known);
        #[cfg(test)]
        assert_eq!(rules::against(text), None, "of MySQL: {text}");
        let statement = Arc::new(text::translate(self.dialect, text));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TEXTS_MAX {
            known.clear();
        }
        known.insert(text.into(), Arc::clone(&statement));
        statement
    }
}

/// A connection to a store: the writer's, or a reader's for a while.
pub struct Connection {
    session: Session,
    texts: Arc<Texts>,
    /// It is of no use any more.
    lost: bool,
    /// A statement of this transaction has failed. PostgreSQL takes back the whole of such a transaction at its
    /// COMMIT, and calls that a success.
    failed: bool,
}

/// Of which backend.
pub(super) enum Session {
    Sqlite(SqliteConnection),
    SqliteReader(PoolConnection<Sqlite>),
    Postgres(PgConnection),
    PostgresReader(PoolConnection<Postgres>),
    MySql(MySqlConnection),
    MySqlReader(PoolConnection<MySql>),
}

impl Connection {
    pub(super) fn new(session: Session, texts: Arc<Texts>) -> Self {
        Self {
            session,
            texts,
            lost: false,
            failed: false,
        }
    }

    pub(super) fn into_session(self) -> Session {
        self.session
    }

    pub(super) fn texts(&self) -> Arc<Texts> {
        Arc::clone(&self.texts)
    }

    /// Whether a transaction has come to nothing although its end will say otherwise; asks from here on anew.
    pub(super) fn take_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed) && self.texts.dialect == Dialect::Postgres
    }

    /// A server does not answer on it any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Runs a text of the backend's own as it is, with nothing bound.
    pub(super) async fn raw(&mut self, text: &'static str) -> Result<(), Error> {
        self.enter()?;
        let done = self.texts.in_time(self.session.raw(text)).await;
        self.leave(done)
    }

    /// A question to a server begins. Until its answer is there, the connection counts as lost: also if nobody
    /// waits for the answer any more.
    fn enter(&mut self) -> Result<(), Error> {
        if self.lost {
            return Err(gone("the connection was lost before".to_owned()));
        }
        self.lost = self.texts.dialect != Dialect::Sqlite;
        Ok(())
    }

    fn leave<T>(&mut self, done: Result<T, Error>) -> Result<T, Error> {
        let is_remote = self.texts.dialect != Dialect::Sqlite;
        self.lost = is_remote && done.as_ref().is_err_and(is_of_the_connection);
        self.failed |= done.is_err();
        match done {
            Err(error) if self.lost => Err(self.texts.silence.begins(&error)),
            done => {
                self.texts.silence.ends();
                done
            }
        }
    }
}

impl Session {
    async fn raw(&mut self, text: &'static str) -> Result<(), Error> {
        use sqlx::Executor as _;
        match self {
            Self::Sqlite(db) => db.execute(text).await.map(drop),
            Self::SqliteReader(db) => db.execute(text).await.map(drop),
            Self::Postgres(db) => db.execute(text).await.map(drop),
            Self::PostgresReader(db) => db.execute(text).await.map(drop),
            Self::MySql(db) => db.execute(text).await.map(drop),
            Self::MySqlReader(db) => db.execute(text).await.map(drop),
        }
    }

    /// Takes leave of a server.
    pub(super) async fn close(self) {
        use sqlx::Connection as _;
        let closed = match self {
            Self::Postgres(db) => db.close().await,
            Self::MySql(db) => db.close().await,
            _ => Ok(()),
        };
        if let Err(error) = closed {
            tracing::debug!(%error, "the connection to the store's server ended before it was closed");
        }
    }
}

/// What a statement has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Done {
    rows: u64,
}

impl Done {
    /// Rows that it has written, or for an update: that it has found.
    pub fn rows_affected(self) -> u64 {
        self.rows
    }
}

/// A statement with what is bound to it.
#[must_use]
pub struct Query<'q> {
    text: std::borrow::Cow<'q, str>,
    values: Vec<Value<'q>>,
}

/// A statement in the language of [`text`].
pub fn query<'q>(text: impl Into<std::borrow::Cow<'q, str>>) -> Query<'q> {
    Query {
        text: text.into(),
        values: Vec::new(),
    }
}

/// As [`query`], for one column of an answer.
pub fn query_scalar<'q>(text: impl Into<std::borrow::Cow<'q, str>>) -> Scalar<'q> {
    Scalar(query(text))
}

impl<'q> Query<'q> {
    /// Binds the next `$`.
    pub fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it for what it does.
    ///
    /// # Errors
    /// The backend's.
    pub async fn execute(self, db: &mut Connection) -> Result<Done, Error> {
        let rows = self.run(db, None).await?;
        Ok(Done { rows })
    }

    /// Runs it and takes all rows.
    ///
    /// # Errors
    /// The backend's.
    pub async fn fetch_all(self, db: &mut Connection) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        self.run(db, Some(&mut rows)).await?;
        Ok(rows)
    }

    /// Runs it and takes the first row, if there is one.
    ///
    /// # Errors
    /// The backend's.
    pub async fn fetch_optional(self, db: &mut Connection) -> Result<Option<Row>, Error> {
        Ok(self.fetch_all(db).await?.into_iter().next())
    }

    /// Runs it and takes the first row.
    ///
    /// # Errors
    /// The backend's, or that there is no row.
    pub async fn fetch_one(self, db: &mut Connection) -> Result<Row, Error> {
        self.fetch_optional(db).await?.ok_or(Error::RowNotFound)
    }

    /// Runs it, one part after the other; says how many rows were written.
    async fn run(
        mut self,
        db: &mut Connection,
        mut rows: Option<&mut Vec<Row>>,
    ) -> Result<u64, Error> {
        let statement = db.texts.of(&self.text);
        let alone = statement.parts.len() == 1;
        let mut written = 0;
        for part in &statement.parts {
            let list = part.list.and_then(|list| self.values.get(list));
            if !alone && list.is_some_and(Value::is_empty_list) {
                continue;
            }
            let rows = rows.as_deref_mut();
            db.enter()?;
            // The futures of three drivers are large, and every caller's would hold them.
            let work = Box::pin(run_part(&mut db.session, part, &mut self.values, rows));
            let done = db.texts.in_time(work).await;
            written += db.leave(done)?;
        }
        Ok(written)
    }
}

/// One column of an answer.
#[must_use]
pub struct Scalar<'q>(Query<'q>);

impl<'q> Scalar<'q> {
    /// Binds the next `$`.
    pub fn bind(self, value: impl Into<Value<'q>>) -> Self {
        Self(self.0.bind(value))
    }

    /// The first column of all rows.
    ///
    /// # Errors
    /// The backend's, or that the column holds something else.
    pub async fn fetch_all<T>(self, db: &mut Connection) -> Result<Vec<T>, Error>
    where
        T: for<'r> Column<'r>,
    {
        let rows = self.0.fetch_all(db).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// The first column of the first row, if there is one.
    ///
    /// # Errors
    /// As [`Scalar::fetch_all`].
    pub async fn fetch_optional<T>(self, db: &mut Connection) -> Result<Option<T>, Error>
    where
        T: for<'r> Column<'r>,
    {
        let row = self.0.fetch_optional(db).await?;
        row.map(|row| row.try_get(0)).transpose()
    }

    /// The first column of the first row.
    ///
    /// # Errors
    /// As [`Scalar::fetch_all`], or that there is no row.
    pub async fn fetch_one<T>(self, db: &mut Connection) -> Result<T, Error>
    where
        T: for<'r> Column<'r>,
    {
        self.0.fetch_one(db).await?.try_get(0)
    }
}

/// Runs `$text` with `$arguments` on `$db`, for its rows if these are wanted.
macro_rules! run_on {
    ($db:expr, $part:expr, $arguments:expr, $rows:expr, $row:path) => {{
        let query = sqlx::query_with(AssertSqlSafe(Arc::clone(&$part.text)), $arguments);
        match $rows {
            None => query.execute($db).await?.rows_affected(),
            Some(rows) => {
                let found = query.fetch_all($db).await?;
                rows.extend(found.into_iter().map(|row| Row($row(row))));
                0
            }
        }
    }};
}

async fn run_part(
    session: &mut Session,
    part: &Part,
    values: &mut Vec<Value<'_>>,
    rows: Option<&mut Vec<Row>>,
) -> Result<u64, Error> {
    Ok(match session {
        Session::Sqlite(db) => run_on!(&mut *db, part, for_sqlite(values)?, rows, Kind::Sqlite),
        Session::SqliteReader(db) => {
            run_on!(&mut **db, part, for_sqlite(values)?, rows, Kind::Sqlite)
        }
        Session::Postgres(db) => {
            let arguments = for_postgres(part, values)?;
            run_on!(&mut *db, part, arguments, rows, Kind::Postgres)
        }
        Session::PostgresReader(db) => {
            let arguments = for_postgres(part, values)?;
            run_on!(&mut **db, part, arguments, rows, Kind::Postgres)
        }
        Session::MySql(db) => {
            let arguments = for_mysql(part, values)?;
            run_on!(&mut *db, part, arguments, rows, Kind::MySql)
        }
        Session::MySqlReader(db) => {
            let arguments = for_mysql(part, values)?;
            run_on!(&mut **db, part, arguments, rows, Kind::MySql)
        }
    })
}

/// The embedded backend has one part a text, so that nothing need be copied for another.
fn for_sqlite(values: &mut Vec<Value<'_>>) -> Result<SqliteArguments, Error> {
    let mut arguments = SqliteArguments::default();
    for value in values.drain(..) {
        value.for_sqlite(&mut arguments).map_err(Error::Encode)?;
    }
    Ok(arguments)
}

fn for_postgres(part: &Part, values: &[Value<'_>]) -> Result<PgArguments, Error> {
    let mut arguments = PgArguments::default();
    for at in &part.order {
        let value = bound(values, *at)?;
        value.for_postgres(&mut arguments).map_err(Error::Encode)?;
    }
    Ok(arguments)
}

fn for_mysql(part: &Part, values: &[Value<'_>]) -> Result<MySqlArguments, Error> {
    let mut arguments = MySqlArguments::default();
    for at in &part.order {
        let value = bound(values, *at)?;
        value.for_mysql(&mut arguments).map_err(Error::Encode)?;
    }
    Ok(arguments)
}

fn bound<'v, 'q>(values: &'v [Value<'q>], at: usize) -> Result<&'v Value<'q>, Error> {
    let missing = || Error::Encode(format!("nothing is bound to ${}", at + 1).into());
    values.get(at).ok_or_else(missing)
}
