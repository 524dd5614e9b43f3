//! Those who look: how far the primary is, and whether and how far each replica is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::age::Ages;
use super::{Replica, Up, read_position};
use crate::clock;
use crate::store::position::Position;
use crate::store::remote;
use crate::store::sql::{Connection, Readers};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks while a read waits.
const LOOK_SOON: Duration = Duration::from_millis(5);
/// A server that takes longer for its position does not answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Between attempts to reach a replica, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// Notes how far the primary is, for ever.
pub(super) async fn watch_primary(readers: Readers, ages: Arc<Ages>) -> ! {
    loop {
        // Before the question: what is committed after it is not in the answer for sure.
        let asked = clock::monotonic();
        match tokio::time::timeout(ANSWER_MAX, read_position(&readers)).await {
            Ok(Ok(position)) => ages.note(position.number, asked),
            Ok(Err(error)) => tracing::debug!(%error, "how far the store is is not known now"),
            Err(_) => tracing::debug!("how far the store is was not answered in time"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Keeps a replica of `store` in use while it can be read from, for ever.
pub(super) async fn watch_replica(replica: Arc<Replica>, store: u64) -> ! {
    let mut pause = PAUSES[0];
    let mut said = None;
    loop {
        let ended = match Box::pin(connect(&replica, store)).await {
            Ok(db) => {
                pause = PAUSES[0];
                said = None;
                tracing::info!(replica = replica.address.shown, "reads go to this replica");
                Box::pin(follow(&replica, db, store)).await
            }
            Err(error) => error,
        };
        replica.goes_down();
        // One that is away for long is told of once, and again for another reason.
        if said.as_ref() != Some(&ended) {
            tracing::warn!(
                replica = replica.address.shown,
                "no reads go to this replica: {ended}"
            );
            said = Some(ended);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// A connection to a replica that holds this store, in this build's form.
async fn connect(replica: &Replica, store: u64) -> Result<Connection, String> {
    let mut session = replica
        .address
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let schema = timely(remote::schema(&mut session)).await?;
    let known = replica.address.known_schema();
    if schema != known {
        return Err(format!(
            "its schema is version {schema}, and this build's is {known}"
        ));
    }
    let mut db = Connection::new(session, Arc::clone(&replica.texts));
    see(replica, &mut db, store).await?;
    Ok(db)
}

/// Looks at a replica until it does not answer; why it is not used any more.
async fn follow(replica: &Replica, mut db: Connection, store: u64) -> String {
    // Connections of its own, made when somebody reads: those of before may lead to where nobody is.
    *replica.up() = Some(Up {
        readers: remote::readers(&replica.address, Arc::clone(&replica.texts)),
        lost: CancellationToken::new(),
    });
    loop {
        match replica.waiting.load(Ordering::Relaxed) {
            0 => tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = replica.look_now.notified() => {}
            },
            _ => tokio::time::sleep(LOOK_SOON).await,
        }
        if let Err(why) = see(replica, &mut db, store).await {
            return why;
        }
    }
}

/// Looks how far a replica is.
async fn see(replica: &Replica, db: &mut Connection, store: u64) -> Result<(), String> {
    let position = timely(Position::read(db)).await?;
    if position.store != store {
        return Err("it holds another store than `store` names".to_owned());
    }
    replica
        .seen
        .send_if_modified(|seen| std::mem::replace(seen, position.number) != position.number);
    Ok(())
}

async fn timely<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_MAX, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
    }
}

impl Replica {
    /// Nobody reads from it any more, and who does at the moment hears of it.
    fn goes_down(&self) {
        let up = self.up().take();
        if let Some(up) = up {
            up.lost.cancel();
        }
    }
}
