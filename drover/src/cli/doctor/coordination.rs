//! The lock service and the event service: whether they answer.

use control::coordination::{self, CoordinationError};

use super::check::Check;
use crate::config::Config;

/// Both of them, as the configuration names them.
pub(super) async fn checks(config: &Config) -> [Check; 2] {
    let locks = coordination::look_at_locks(&config.locks).await;
    let events = coordination::look_at_events(&config.events).await;
    [
        check("locks", &config.locks.to_string(), locks),
        check("events", &config.events.to_string(), events),
    ]
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
    use control::coordination::{EventsUrl, LocksUrl};

    use super::super::check::Status;
    use super::*;

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
        config.locks = LocksUrl::parse("zookeeper+tls://127.0.0.1:1?ca=/nowhere.pem").unwrap();
        let [locks, _] = checks(&config).await;
        assert_eq!(locks.status, Status::Failure);
        assert!(locks.found.contains("/nowhere.pem"), "{}", locks.found);
    }
}
