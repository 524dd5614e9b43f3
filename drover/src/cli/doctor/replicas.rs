//! The replicas of the store: whether the API can read from them.

use control::store::{Compared, OpenError, ReplicaInspection, inspect_replicas};

use super::check::Check;
use crate::cli::store::advice;
use crate::cli::top::format::count;
use crate::config::Config;
use crate::fault::chain;

const NAME: &str = "store.replica";

/// One check of each. None of them keeps a server from starting but a URL that cannot be one of a replica: what a
/// replica does not answer the primary does.
pub(in crate::cli) async fn checks(config: &Config) -> Vec<Check> {
    let found = Box::pin(inspect_replicas(&config.store, &config.replicas)).await;
    let found = found.into_iter();
    found
        .map(|(url, looked)| match looked {
            Ok(replica) => judge(&url, &replica),
            Err(error) => unseen(&error),
        })
        .collect()
}

fn unseen(error: &OpenError) -> Check {
    match error {
        OpenError::BadUrl { .. } | OpenError::ForeignReplica { .. } => {
            Check::failure(NAME, chain(error), advice(error))
        }
        _ => Check::warning(
            NAME,
            chain(error),
            "start it, or take it out of store_read_urls; until it answers, the primary is read from in its place",
        ),
    }
}

fn judge(url: &str, replica: &ReplicaInspection) -> Check {
    let what = format!("{url} on {}", replica.software);
    let (found, known) = (replica.schema, replica.known_schema);
    if found != known {
        return Check::warning(
            NAME,
            format!(
                "{what} has schema version {found}, this build's is {known}: it is not read from"
            ),
            "if `store` is at this build's version, look at the replica's replication; if not, start this build on \
             it, or use the newer drover",
        );
    }
    match replica.compared {
        Some(Compared::Foreign) => Check::warning(
            NAME,
            format!("{what} holds another store than `store`: it is not read from"),
            "name a replica of the server in `store`, and the same database",
        ),
        Some(Compared::Lacks(transactions)) => Check::warning(
            NAME,
            format!(
                "{what} lacks {} transactions, and did not come further in 2 s",
                count(transactions)
            ),
            "look at its replication: pg_stat_wal_receiver, or SHOW REPLICA STATUS; while it is older than \
             store_read_max_age it is not read from",
        ),
        _ if !replica.read_only => Check::warning(
            NAME,
            format!("{what} takes writes: it is the primary, or no replica"),
            "name a replica that takes none (of MariaDB with read_only = ON), or leave it out: reading from the primary \
             needs no key",
        ),
        Some(Compared::Within(time)) => Check::ok(
            NAME,
            format!(
                "{what} has all that the store has, {} ms later",
                time.as_millis()
            ),
        ),
        None => Check::ok(
            NAME,
            format!("{what} answers; the store did not, so they were not compared"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::check::Status;
    use super::*;

    fn replica() -> ReplicaInspection {
        ReplicaInspection {
            software: "PostgreSQL 15.9".to_owned(),
            read_only: true,
            schema: 8,
            known_schema: 8,
            compared: Some(Compared::Within(Duration::from_millis(7))),
        }
    }

    #[test]
    fn each_kind_of_trouble_is_told_with_what_to_do() {
        let with = |compared| ReplicaInspection {
            compared: Some(compared),
            ..replica()
        };
        let writable = ReplicaInspection {
            read_only: false,
            ..replica()
        };
        let older = ReplicaInspection {
            schema: 7,
            ..replica()
        };
        for (replica, status, words) in [
            (replica(), Status::Ok, "7 ms later"),
            (with(Compared::Foreign), Status::Warning, "another store"),
            (
                with(Compared::Lacks(1200)),
                Status::Warning,
                "1,200 transactions",
            ),
            (writable, Status::Warning, "takes writes"),
            (older, Status::Warning, "version 7, this build's is 8"),
        ] {
            let check = judge("postgres://a/b", &replica);
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.found.contains(words), "{check:?}");
            assert_eq!(check.advice.is_some(), status != Status::Ok);
        }
    }

    #[tokio::test]
    async fn a_replica_that_does_not_answer_is_a_warning_and_one_that_cannot_be_one_a_failure() {
        let mut config = Config::default();
        assert_eq!(checks(&config).await, []);
        config.replicas.urls = vec!["postgres://u:secret@127.0.0.1:1/x".to_owned()];
        let alone = checks(&config).await;
        assert_eq!(alone[0].status, Status::Failure, "SQLite has no replicas");
        config.store = "postgres://127.0.0.1:1/drover".to_owned();
        let away = checks(&config).await;
        assert_eq!(away[0].status, Status::Warning);
        assert!(!format!("{alone:?} {away:?}").contains("secret"));
        config.replicas.urls = vec!["mysql://127.0.0.1:1/x".to_owned()];
        assert_eq!(checks(&config).await[0].status, Status::Failure);
    }
}
