//! What the writer writes with: transactions on one connection, and a new connection when that is lost.
//!
//! ```text
//!   embedded   BEGIN IMMEDIATE … COMMIT          the file's lock lets one process in
//!   a server   BEGIN · lock and count … COMMIT   one statement locks the row that all writers lock, and counts
//!                                                this writer's transactions
//! ```
//!
//! That one lock makes writers of several processes take turns. So what one reads, no other changes before it
//! commits; events are numbered in the order of commits; there are no deadlocks among writers, and nothing to be
//! run twice: what may have to wait, or fails because the connection was lost, is the first statement, before any
//! job has run.
//!
//! A `COMMIT` whose answer is lost may have happened. The writer then looks at its count, once it holds the lock
//! again, and knows.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::remote::Server;
use super::server_clock::ServerClock;
use super::sql::{self, Connection, Session, Texts};
use super::{StoreError, from_sql, sqlite};
use crate::clock;

/// The row that every writer locks.
pub(super) const EVERYBODY: [u8; 16] = [0; 16];
/// The row that counts changes of what operators set.
const ORDERS: [u8; 16] = [0xff; 16];
/// Between attempts to reach a server, at first and at most: whoever waits for it goes on within that when it is back.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];
/// At most where nothing has answered: such an attempt has held up for [`CONNECT_TIMEOUT`] all who write, and during the
/// pause they are told at once.
const PAUSE_AFTER_SILENCE: Duration = Duration::from_secs(2);
/// That a server does not answer is said so often.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to a `BEGIN` may take, which waits for nobody; without one the connection is lost.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// For so long it is found out whether a commit without an answer has happened.
const DOUBT_MAX: Duration = Duration::from_secs(10 * 60);
/// Counts of writers that were opened before that, and are not at work, are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The writer's connection.
pub(super) struct Pen {
    /// `None`: it was lost.
    connection: Option<Connection>,
    remote: Option<Remote>,
    /// Whether a commit has happened is being found out.
    doubt: watch::Sender<bool>,
}

/// What it takes to connect anew.
struct Remote {
    server: Server,
    texts: Arc<Texts>,
    instance: Uuid,
    clock: Arc<ServerClock>,
    /// Transactions that this writer has committed.
    count: i64,
    /// Not before this.
    next_try: Instant,
    /// Attempts in vain since the server has answered.
    tries: u32,
    /// When that was said.
    said: Option<Instant>,
}

impl Pen {
    /// For the embedded store.
    pub(super) fn embedded(connection: Connection) -> Self {
        Self {
            connection: Some(connection),
            remote: None,
            doubt: watch::Sender::new(false),
        }
    }

    /// For a store on a server.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn remote(
        mut connection: Connection,
        server: Server,
        instance: Uuid,
        clock: Arc<ServerClock>,
    ) -> Result<Self, sqlx::Error> {
        let count = announce(&mut connection, instance).await?;
        clock.measure(&mut connection).await?;
        let remote = Remote {
            server,
            texts: connection.texts(),
            instance,
            clock,
            count,
            next_try: Instant::now(),
            tries: 0,
            said: None,
        };
        Ok(Self {
            connection: Some(connection),
            remote: Some(remote),
            doubt: watch::Sender::new(false),
        })
    }

    /// Whether it is found out just now if a commit has happened, which may take as long as the server is away.
    pub(super) fn doubt(&self) -> watch::Receiver<bool> {
        self.doubt.subscribe()
    }

    /// The connection of the transaction that has begun.
    pub(super) fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        self.connection.as_mut().ok_or(StoreError::Unreachable)
    }

    /// Begins a transaction: nobody else writes until it ends.
    ///
    /// # Errors
    /// Nothing has begun.
    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        if self.remote.is_none() {
            return self.say("BEGIN IMMEDIATE").await;
        }
        if self.connection.is_some() {
            match self.begin_remote().await {
                Ok(()) => return Ok(()),
                Err(error) if self.connection.is_some() => return Err(error),
                // It was lost while nothing was written; no job has seen it.
                Err(error) => tracing::warn!(%error, "the connection to the store was lost"),
            }
        }
        self.connect().await?;
        self.begin_remote().await
    }

    async fn begin_remote(&mut self) -> Result<(), StoreError> {
        let begun = self.lock().await;
        if begun.is_err() {
            self.rollback().await;
        }
        begun
    }

    /// Locks the row of all writers, and counts this transaction.
    async fn lock(&mut self) -> Result<(), StoreError> {
        let Self {
            connection: Some(db),
            remote: Some(remote),
            ..
        } = self
        else {
            return Err(StoreError::Unreachable);
        };
        let begun = tokio::time::timeout(BEGIN_WITHIN, db.raw("BEGIN"));
        begun.await.map_err(|_| StoreError::Unreachable)??;
        db.take_failed();
        let counted =
            sql::query("UPDATE store_writer SET number = number + 1 WHERE id IN ($1, $2)")
                .bind(&EVERYBODY[..])
                .bind(&remote.instance.as_bytes()[..])
                .execute(db)
                .await?;
        if counted.rows_affected() < 2 {
            // Forgotten, as after a restored backup.
            sql::query("INSERT INTO store_writer (id, number, opened_at) VALUES ($1, $2, $3)")
                .bind(&remote.instance.as_bytes()[..])
                .bind(remote.count + 1)
                .bind(clock::now().to_sql())
                .execute(db)
                .await?;
        }
        Ok(())
    }

    /// Begins a part that can be undone alone.
    pub(super) async fn savepoint(&mut self) -> Result<(), StoreError> {
        self.say("SAVEPOINT job").await
    }

    /// Ends a part; `keep`: with what it has written.
    pub(super) async fn release(&mut self, keep: bool) -> Result<(), StoreError> {
        if !keep {
            self.say("ROLLBACK TO SAVEPOINT job").await?;
            self.connection()?.take_failed();
        }
        self.say("RELEASE SAVEPOINT job").await
    }

    /// Makes durable what the transaction has written.
    ///
    /// # Errors
    /// Nothing was written; but of [`StoreError::Doubtful`] that is not known.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        if self.connection()?.take_failed() {
            // A job has gone on after an error.
            self.rollback().await;
            return Err(StoreError::JobPanicked);
        }
        let error = match self.say("COMMIT").await {
            Ok(()) => {
                if let Some(remote) = &mut self.remote {
                    remote.count += 1;
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if self.connection.is_some() || self.remote.is_none() {
            self.rollback().await;
            return Err(error);
        }
        tracing::warn!(%error, "the store's answer to a commit was lost; looking whether it has happened");
        self.doubt.send_replace(true);
        let found = tokio::time::timeout(DOUBT_MAX, self.find_out()).await;
        self.doubt.send_replace(false);
        match found {
            Ok(true) => Ok(()),
            Ok(false) => Err(error),
            Err(_) => {
                self.connection = None;
                Err(StoreError::Doubtful)
            }
        }
    }

    /// Whether the commit whose answer was lost has happened.
    async fn find_out(&mut self) -> bool {
        let before = self.remote.as_ref().map_or(0, |remote| remote.count);
        loop {
            match self.look_at_count().await {
                Ok(count) => return count > before,
                Err(error) => {
                    tracing::debug!(%error, "whether a commit has happened is not known yet")
                }
            }
            tokio::time::sleep(PAUSES[0]).await;
        }
    }

    /// The count, once nobody writes: also the transaction in question has ended then.
    async fn look_at_count(&mut self) -> Result<i64, StoreError> {
        self.connect().await?;
        let count = self.locked_count().await;
        self.rollback().await;
        let (count, Some(remote)) = (count?, &mut self.remote) else {
            return Err(StoreError::Unreachable);
        };
        remote.count = count;
        Ok(count)
    }

    async fn locked_count(&mut self) -> Result<i64, StoreError> {
        let instance = self.remote.as_ref().map(|remote| remote.instance);
        let (db, instance) = (self.connection()?, instance.unwrap_or_default());
        db.raw("BEGIN").await?;
        sql::query("SELECT number FROM store_writer WHERE id = $1 FOR UPDATE")
            .bind(&EVERYBODY[..])
            .fetch_all(db)
            .await?;
        let count: Option<i64> = sql::query_scalar("SELECT number FROM store_writer WHERE id = $1")
            .bind(&instance.as_bytes()[..])
            .fetch_optional(db)
            .await?;
        Ok(count.unwrap_or(0))
    }

    /// Gives up what the transaction has written. A connection on which that fails is not used again: nobody
    /// knows what is open on it.
    pub(super) async fn rollback(&mut self) {
        let gone = self.say("ROLLBACK").await.is_err();
        if gone && self.remote.is_some() {
            self.connection = None;
        }
    }

    async fn say(&mut self, words: &'static str) -> Result<(), StoreError> {
        let said = match &mut self.connection {
            Some(db) => db.raw(words).await,
            None => return Err(StoreError::Unreachable),
        };
        if self.remote.is_some() && self.connection.as_ref().is_some_and(Connection::is_lost) {
            self.connection = None;
        }
        Ok(said?)
    }

    /// Connects anew, unless that was tried just now.
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.connection = None;
        let Some(remote) = &mut self.remote else {
            return Err(StoreError::Unreachable);
        };
        if Instant::now() < remote.next_try {
            return Err(StoreError::Unreachable);
        }
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, async {
            let session = remote.server.connect().await?;
            let mut db = Connection::new(session, Arc::clone(&remote.texts));
            announce(&mut db, remote.instance).await?;
            // It may be another server now, with another clock.
            remote.clock.measure(&mut db).await?;
            Ok::<_, sqlx::Error>(db)
        });
        match connected.await {
            Ok(Ok(db)) => {
                tracing::info!(tries = remote.tries, "the store's server answers again");
                (remote.tries, remote.said) = (0, None);
                self.connection = Some(db);
                Ok(())
            }
            Ok(Err(error)) => {
                remote.failed(PAUSES[1], &error.to_string());
                Err(StoreError::Unreachable)
            }
            Err(_) => {
                let words = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                remote.failed(PAUSE_AFTER_SILENCE, &words);
                Err(StoreError::Unreachable)
            }
        }
    }

    /// Ends it after its last transaction.
    pub(super) async fn close(self) {
        let Some(mut db) = self.connection else {
            return;
        };
        if let Some(remote) = self.remote {
            // Nobody asks any more what this writer has committed.
            let forgotten = sql::query("DELETE FROM store_writer WHERE id = $1")
                .bind(&remote.instance.as_bytes()[..])
                .execute(&mut db);
            if let Err(error) = forgotten.await {
                tracing::debug!(%error, "the count of this writer stays for a while");
            }
        }
        match db.into_session() {
            Session::Sqlite(db) => sqlite::close(db).await,
            session => session.close().await,
        }
    }
}

impl Remote {
    /// An attempt to connect has come to nothing: the next one is made after a pause, of `most` at most.
    fn failed(&mut self, most: Duration, why: &str) {
        let now = Instant::now();
        self.next_try = now + pause(self.tries, most);
        self.tries = self.tries.saturating_add(1);
        if self.said.is_none_or(|said| now - said >= SAY_EVERY) {
            self.said = Some(now);
            tracing::warn!(
                why,
                tries = self.tries,
                "the store's server does not answer; it is tried again and again"
            );
        }
    }
}

/// How long it is waited after so many attempts in vain, and one more.
fn pause(tries: u32, most: Duration) -> Duration {
    PAUSES[0].saturating_mul(1 << tries.min(10)).min(most)
}

/// Operators have set something: other processes look at it with their next beat.
pub(super) async fn count_order(db: &mut Connection) -> Result<(), sqlx::Error> {
    sql::query(
        "INSERT INTO store_writer (id, number, opened_at) VALUES ($1, 1, $2)
         ON CONFLICT (id) DO UPDATE SET number = store_writer.number + 1,
            opened_at = excluded.opened_at",
    )
    .bind(&ORDERS[..])
    .bind(clock::now().to_sql())
    .execute(db)
    .await?;
    Ok(())
}

/// How often any process has counted such a change.
pub(super) async fn orders(db: &mut Connection) -> Result<u64, sqlx::Error> {
    let orders: Option<i64> = sql::query_scalar("SELECT number FROM store_writer WHERE id = $1")
        .bind(&ORDERS[..])
        .fetch_optional(db)
        .await?;
    Ok(from_sql(orders.unwrap_or(0)))
}

/// Makes the row of this writer, if there is none; how much it has committed.
async fn announce(db: &mut Connection, instance: Uuid) -> Result<i64, sqlx::Error> {
    let now = clock::now();
    sql::query("DELETE FROM store_writer WHERE id NOT IN ($1, $2) AND opened_at < $3")
        .bind(&EVERYBODY[..])
        .bind(&ORDERS[..])
        .bind(now.minus(FORGOTTEN_AFTER).to_sql())
        .execute(db)
        .await?;
    // By this moment the store is known from others, for good.
    sql::query("UPDATE store_writer SET opened_at = $1 WHERE id = $2 AND opened_at = 0")
        .bind(now.to_sql())
        .bind(&EVERYBODY[..])
        .execute(db)
        .await?;
    sql::query(
        "INSERT INTO store_writer (id, number, opened_at) VALUES ($1, 0, $2)
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(&instance.as_bytes()[..])
    .bind(now.to_sql())
    .execute(db)
    .await?;
    sql::query_scalar("SELECT number FROM store_writer WHERE id = $1")
        .bind(&instance.as_bytes()[..])
        .fetch_one(db)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_refuses_is_tried_twice_a_second_and_one_that_is_silent_less_often() {
        let pauses = |most| [0, 1, 2, 3, 4, 5, 1000].map(|tries| pause(tries, most).as_millis());
        assert_eq!(pauses(PAUSES[1]), [100, 200, 400, 500, 500, 500, 500]);
        let silent = pauses(PAUSE_AFTER_SILENCE);
        assert_eq!(silent, [100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
