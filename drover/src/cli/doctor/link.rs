//! The way to agent servers, where not the only one is in this process.

use control::store::ServerInspection;

use super::check::Check;
use crate::config::Config;
use crate::profile::Server;
use crate::serve;

/// The check's name.
pub(super) const NAME: &str = "configuration.link";

/// Whether names of agent servers are known here. Nobody is called: an agent server that is away is waited for, so it
/// is no failure. That a profile must name some and does not is a refusal of `serve`.
pub(super) async fn checks(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    for address in config.connects_to() {
        let found = tokio::net::lookup_host(address).await;
        let found = found.map(|mut addresses| addresses.next());
        checks.push(match found {
            Ok(Some(first)) => Check::ok(
                NAME,
                format!("the agent server {address} resolves to {first}; it was not called"),
            ),
            Ok(None) => unknown(address, "it has no address"),
            Err(error) => unknown(address, &error.to_string()),
        });
    }
    checks
}

/// Whether a server that has an agent server may start beside the others on its store. To be asked where none runs
/// on the data directory: it would be one of them.
pub(super) fn beside_others(config: &Config, found: &ServerInspection) -> Option<Check> {
    if !config.profile.runs(Server::Agent) {
        return None;
    }
    let judged = serve::judge_neighbours(found.neighbours, config.link.connect.is_empty());
    Some(Check::of_fault(NAME, &judged.err()?))
}

fn unknown(address: &str, why: &str) -> Check {
    Check::warning(
        NAME,
        format!("where {address} is cannot be told here: {why}"),
        "mend link.connect or the name service: `getent hosts NAME`",
    )
}

#[cfg(test)]
mod tests {
    use control::store::Neighbours;

    use super::super::check::Status;
    use super::super::store::tests::server;
    use super::*;
    use crate::profile::Profile;

    #[test]
    fn who_would_take_groups_from_others_is_told_before_the_start() {
        let mut config = Config::default();
        let beside = |config: &Config, neighbours| {
            let found = ServerInspection {
                neighbours,
                ..server()
            };
            beside_others(config, &found)
        };
        assert_eq!(beside(&config, Neighbours::Nobody), None);
        let refused = beside(&config, Neighbours::OfRegistered).unwrap();
        assert_eq!((refused.name, refused.status), (NAME, Status::Failure));
        assert!(refused.advice.unwrap().contains("link.connect"));
        config.link.connect = vec!["127.0.0.1:7444".to_owned()];
        assert_eq!(beside(&config, Neighbours::OfRegistered), None);
        assert!(beside(&config, Neighbours::OfTheirOwn).is_some());
        // A part without agent server takes no groups.
        config.profile = Profile::parse("api-server,process-server").unwrap();
        assert_eq!(beside(&config, Neighbours::OfTheirOwn), None);
    }

    #[tokio::test]
    async fn names_of_agent_servers_are_looked_up() {
        let mut config = Config::default();
        assert_eq!(checks(&config).await, []);
        let statuses = async |config: &Config| -> Vec<_> {
            let checks = checks(config).await;
            checks.iter().map(|check| check.status).collect()
        };
        config.link.connect = vec!["127.0.0.1:7444".to_owned(), "no such host:7444".to_owned()];
        for profile in ["api-server,process-server", "all"] {
            config.profile = Profile::parse(profile).unwrap();
            let found = statuses(&config).await;
            assert_eq!(found, [Status::Ok, Status::Warning], "{profile}");
        }
        let looked_up = checks(&config).await;
        let found = &looked_up[0].found;
        assert!(found.contains("resolves to 127.0.0.1:7444"), "{found}");
    }
}
