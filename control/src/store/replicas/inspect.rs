//! What `drover doctor` and `drover store check` ask of replicas.

use std::time::Duration;

use super::ReplicasConfig;
use crate::clock;
use crate::store::position::Position;
use crate::store::remote::{self, Address};
use crate::store::sql::{Connection, Texts};
use crate::store::{OpenError, shown};

/// So long a replica is given to come as far as the primary was.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// Between two looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A replica as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaInspection {
    /// What the server is.
    pub software: String,
    /// It takes no writes, as a replica does.
    pub read_only: bool,
    /// The last step of the schema that it has; 0: none.
    pub schema: i64,
    /// The last step that this build knows.
    pub known_schema: i64,
    /// How it compares with the store; `None`: one of the two is not at this build's schema, or the primary was
    /// not reached.
    pub compared: Option<Compared>,
}

/// A replica beside its store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    /// It holds another store.
    Foreign,
    /// It had everything that the primary had at first, so long after that was asked.
    Within(Duration),
    /// After two seconds it still lacked so many transactions of those.
    Lacks(u64),
}

/// Looks at the replicas of the store at `url`, and changes nothing: for each its URL without password, and how it
/// was found or why it could not be looked at.
pub async fn inspect_replicas(
    url: &str,
    config: &ReplicasConfig,
) -> Vec<(String, Result<ReplicaInspection, OpenError>)> {
    let primary = match config.urls.is_empty() {
        true => None,
        false => primary_position(url).await.ok().flatten(),
    };
    let mut found = Vec::new();
    for replica in &config.urls {
        let looked = match super::address(url, replica) {
            Ok(address) => Box::pin(inspect(&address, primary)).await,
            Err(error) => Err(error),
        };
        found.push((shown(replica), looked));
    }
    found
}

/// How far the primary is; `None`: its schema is not this build's.
async fn primary_position(url: &str) -> Result<Option<Position>, OpenError> {
    let address = Address::read(url)?;
    let fail = |source| address.fail(source);
    let mut session = address.connect().await?;
    if remote::schema(&mut session).await.map_err(fail)? != address.known_schema() {
        return Ok(None);
    }
    let mut db = Connection::new(session, Texts::new(address.dialect()));
    let position = Position::read(&mut db).await.map_err(fail)?;
    db.into_session().close().await;
    Ok(Some(position))
}

async fn inspect(
    address: &Address,
    primary: Option<Position>,
) -> Result<ReplicaInspection, OpenError> {
    let fail = |source| address.fail(source);
    let mut session = address.connect().await?;
    let (software, read_only) = remote::nature(&mut session).await.map_err(fail)?;
    let schema = remote::schema(&mut session).await.map_err(fail)?;
    let known_schema = address.known_schema();
    let mut db = Connection::new(session, Texts::new(address.dialect()));
    let compared = match primary.filter(|_| schema == known_schema) {
        Some(primary) => Some(compare(&mut db, primary).await.map_err(fail)?),
        None => None,
    };
    db.into_session().close().await;
    Ok(ReplicaInspection {
        software,
        read_only,
        schema,
        known_schema,
        compared,
    })
}

async fn compare(db: &mut Connection, primary: Position) -> Result<Compared, sqlx::Error> {
    let began = clock::monotonic();
    loop {
        let found = Position::read(db).await?;
        if found.store != primary.store {
            return Ok(Compared::Foreign);
        }
        if found.number >= primary.number {
            return Ok(Compared::Within(began.elapsed()));
        }
        if began.elapsed() > CATCH_UP_MAX {
            return Ok(Compared::Lacks(primary.number - found.number));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
