//! The lock service and the event service: whether they answer.

use control::coordination::{self, CoordinationError, EventsUrl, LocksUrl};

use super::check::Check;
use crate::config::Config;
use crate::profile::Server;

/// Both of them, as the configuration names them.
pub(super) async fn checks(config: &Config) -> [Check; 2] {
    let locks = match config.profile.runs(Server::Process) || config.profile.runs(Server::Agent) {
        true => {
            let looked = coordination::look_at_locks(&config.locks).await;
            check("locks", &config.locks.to_string(), looked)
        }
        false => Check::ok("locks", "an API server alone holds none"),
    };
    if config.events == EventsUrl::Local && shares_its_store(config) {
        return [locks, unheard()];
    }
    let events = coordination::look_at_events(&config.events).await;
    [locks, check("events", &config.events.to_string(), events)]
}

/// The lock service of an agent server alone, which has no store that could keep locks.
pub(super) async fn of_agent_server(config: &Config) -> Check {
    if matches!(config.locks, LocksUrl::Local | LocksUrl::Sql) {
        return Check::ok(
            "locks",
            "an agent server keeps no locks in the store: when it is lost, others take over within 20 s; within 5 s \
             where locks.url names a ZooKeeper or a Redis, here and at all servers",
        );
    }
    let looked = coordination::look_at_locks(&config.locks).await;
    check("locks", &config.locks.to_string(), looked)
}

/// Whether the configuration shows that other servers work on the same store.
fn shares_its_store(config: &Config) -> bool {
    let on_a_server = !config.store.starts_with("sqlite:");
    on_a_server && (config.link.connect.len() > 1 || config.profile.is_part())
}

fn unheard() -> Check {
    Check::warning(
        "events",
        "local:: within this process, and other servers share the store: of what they write this one hears later",
        "set events.url to `sql:` or to a Redis, the same at every server",
    )
}

fn check(name: &'static str, url: &str, looked: Result<String, CoordinationError>) -> Check {
    match looked {
        Ok(found) => Check::ok(name, format!("{url}: {found}")),
        Err(error @ CoordinationError::File { .. }) => Check::failure(
            name,
            error.to_string(),
            format!("name a PEM file that the server's user can read in `{name}.url`"),
        ),
        // A server starts without it and loses nothing.
        Err(error) => Check::warning(
            name,
            error.to_string(),
            format!(
                "start it, or name another in `{name}.url`; until it answers, servers find out about each other by \
                 their heartbeats, which takes seconds longer"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;
    use crate::profile::Profile;

    #[tokio::test]
    async fn what_needs_no_service_is_fine_and_what_does_not_answer_is_a_warning() {
        let mut config = Config::default();
        let found = checks(&config).await;
        assert_eq!(found[0], Check::ok("locks", "sql:: the store"));
        assert_eq!(found[1], Check::ok("events", "local:: within this process"));
        // Nobody listens on port 1.
        config.locks = LocksUrl::parse("zookeeper://127.0.0.1:1").unwrap();
        config.events = EventsUrl::parse("redis://:secret@127.0.0.1:1").unwrap();
        for check in checks(&config).await {
            assert_eq!(check.status, Status::Warning);
            assert!(
                check.found.contains("127.0.0.1:1 cannot be used"),
                "{}",
                check.found
            );
            assert!(!format!("{check:?}").contains("secret"));
        }
        let alone = of_agent_server(&config).await;
        assert_eq!((alone.name, alone.status), ("locks", Status::Warning));
        config.locks = LocksUrl::parse("zookeeper+tls://127.0.0.1:1?ca=/nowhere.pem").unwrap();
        let [locks, _] = checks(&config).await;
        assert_eq!(locks.status, Status::Failure);
        assert!(locks.found.contains("/nowhere.pem"), "{}", locks.found);
        assert_eq!(of_agent_server(&config).await.status, Status::Failure);
    }

    #[tokio::test]
    async fn an_agent_server_without_a_lock_service_is_told_how_long_others_take() {
        for url in [LocksUrl::Sql, LocksUrl::Local] {
            let config = Config {
                locks: url,
                ..Config::default()
            };
            let found = of_agent_server(&config).await;
            assert_eq!(found.status, Status::Ok);
            assert!(found.found.contains("within 20 s"), "{}", found.found);
        }
    }

    #[tokio::test]
    async fn events_that_others_do_not_hear_are_warned_of() {
        let mut config = Config::default();
        let status = async |config: &Config| checks(config).await[1].status;
        config.store = "postgres://127.0.0.1:1/drover".to_owned();
        assert_eq!(status(&config).await, Status::Ok, "it may be alone on it");
        config.link.connect = vec!["a:7444".to_owned()];
        assert_eq!(status(&config).await, Status::Ok);
        config.link.connect.push("b:7444".to_owned());
        assert_eq!(status(&config).await, Status::Warning);
        config.link.connect.clear();
        config.profile = Profile::parse("api-server").unwrap();
        assert_eq!(status(&config).await, Status::Warning);
        config.events = EventsUrl::Sql;
        assert_eq!(status(&config).await, Status::Ok);
    }
}
