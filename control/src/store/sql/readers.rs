//! The connections of those who read.
//!
//! ```text
//!   acquire ─▶ the pool ── at once, nearly always
//!                └ after 0.1 s: is the server there at all? ── refused ─▶ told now, not when the pool gives up
//! ```
//!
//! The drivers' pool takes a refused connection for a server that starts up, and tries again until its time is over:
//! fine for a start, and too long for each request while a server is down.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::pool::{Pool, PoolConnection};
use sqlx::{Connection as _, Error, MySqlPool, PgPool, SqlitePool};
use tokio::sync::Mutex;

use super::gone::{gone, is_of_the_connection, words};
use super::{Connection, Session, Texts};
use crate::clock;

/// Who waits longer for a connection looks whether the server is there.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// What was seen is so for all who wait, for so long.
const LOOK_LASTS: Duration = Duration::from_millis(500);

/// The connections of those who read.
#[derive(Clone)]
pub(in crate::store) enum Readers {
    Sqlite(SqlitePool, Arc<Texts>),
    Postgres(Remote<sqlx::Postgres>),
    MySql(Remote<sqlx::MySql>),
}

/// Connections to a server.
pub(in crate::store) struct Remote<DB: sqlx::Database> {
    pool: Pool<DB>,
    texts: Arc<Texts>,
    /// The last look at whether the server is there.
    look: Arc<Mutex<Option<Look>>>,
}

/// What was seen of a server.
struct Look {
    at: Instant,
    /// Why it is not there; `None`: it is, or says no to us.
    gone: Option<String>,
}

impl Readers {
    pub(in crate::store) fn postgres(pool: PgPool, texts: Arc<Texts>) -> Self {
        Self::Postgres(Remote::new(pool, texts))
    }

    pub(in crate::store) fn mysql(pool: MySqlPool, texts: Arc<Texts>) -> Self {
        Self::MySql(Remote::new(pool, texts))
    }

    /// The statements in the words of their backend.
    pub(in crate::store) fn texts(&self) -> &Arc<Texts> {
        match self {
            Self::Sqlite(_, texts) => texts,
            Self::Postgres(remote) => &remote.texts,
            Self::MySql(remote) => &remote.texts,
        }
    }

    pub(in crate::store) async fn acquire(&self) -> Result<Reader, Error> {
        let session = match self {
            Self::Sqlite(pool, _) => Session::SqliteReader(pool.acquire().await?),
            Self::Postgres(remote) => Session::PostgresReader(remote.acquire().await?),
            Self::MySql(remote) => Session::MySqlReader(remote.acquire().await?),
        };
        Ok(Reader(Connection::new(session, Arc::clone(self.texts()))))
    }

    pub(in crate::store) async fn close(self) {
        match self {
            Self::Sqlite(pool, _) => pool.close().await,
            Self::Postgres(remote) => remote.pool.close().await,
            Self::MySql(remote) => remote.pool.close().await,
        }
    }
}

// Not derived: a kind of database need not be one.
impl<DB: sqlx::Database> Clone for Remote<DB> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            texts: Arc::clone(&self.texts),
            look: Arc::clone(&self.look),
        }
    }
}

impl<DB: sqlx::Database> Remote<DB> {
    fn new(pool: Pool<DB>, texts: Arc<Texts>) -> Self {
        Self {
            pool,
            texts,
            look: Arc::default(),
        }
    }

    /// A connection, on which somebody has just answered.
    async fn acquire(&self) -> Result<PoolConnection<DB>, Error> {
        let mut acquiring = Box::pin(self.pool.acquire());
        let soon = tokio::time::timeout(LOOK_AFTER, &mut acquiring).await;
        let acquired = match soon {
            Ok(acquired) => acquired,
            Err(_) => tokio::select! {
                biased;
                acquired = acquiring => acquired,
                refusal = self.refused() => Err(refusal),
            },
        };
        match acquired {
            Ok(connection) => {
                self.texts.silence.ends();
                Ok(connection)
            }
            Err(error @ Error::PoolTimedOut) => Err(self.texts.silence.begins(&error)),
            Err(error) if is_of_the_connection(&error) => Err(self.texts.silence.begins(&error)),
            Err(error) => Err(error),
        }
    }

    /// Returns if the server is not there, with the error that says so.
    async fn refused(&self) -> Error {
        // One looks for all who wait.
        let mut last = self.look.lock().await;
        let lasts = |look: &&Look| look.at.elapsed() < LOOK_LASTS;
        let seen = match last.as_ref().filter(lasts) {
            Some(look) => look.gone.clone(),
            None => {
                let gone = self.look().await;
                let seen = gone.clone();
                let at = clock::monotonic();
                *last = Some(Look { at, gone });
                seen
            }
        };
        drop(last);
        match seen {
            Some(words) => gone(words),
            // All connections are in use, or the server is slow.
            None => std::future::pending().await,
        }
    }

    /// Why the server is not there. With a connection that is made as all are: one that says nothing would count
    /// as an attack with some servers.
    async fn look(&self) -> Option<String> {
        let options = self.pool.connect_options();
        match DB::Connection::connect_with(&options).await {
            Ok(db) => {
                if let Err(error) = db.close().await {
                    tracing::debug!(%error, "a look at the store's server ended badly");
                }
                None
            }
            Err(error) => is_of_the_connection(&error).then(|| words(&error)),
        }
    }
}

/// A read-only connection; dropped, it goes back to the others.
pub(crate) struct Reader(Connection);

impl Deref for Reader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}
