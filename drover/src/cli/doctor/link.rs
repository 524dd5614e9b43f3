//! The way to agent servers, where not the only one is in this process.

use super::check::Check;
use crate::config::Config;

const NAME: &str = "configuration.link";

/// Whether it is said where agent servers are, and whether those names are known here. Nobody is called: an agent
/// server that is away is waited for, so it is no failure.
pub(super) async fn checks(config: &Config) -> Vec<Check> {
    if config.connects_to().is_empty() {
        if !config.profile.is_part() || !config.profile.has_store() {
            return Vec::new();
        }
        return vec![Check::failure(
            NAME,
            "this profile works with servers elsewhere, and link.connect does not say where the agent servers are",
            "set link.connect to HOST:PORT of each agent server's link.listen",
        )];
    }
    let mut checks = Vec::new();
    for address in config.connects_to() {
        let found = tokio::net::lookup_host(address).await;
        let found = found.map(|mut addresses| addresses.next());
        checks.push(match found {
            Ok(Some(first)) => Check::ok(NAME, format!("an agent server is at {address}: {first}")),
            Ok(None) => unknown(address, "it has no address"),
            Err(error) => unknown(address, &error.to_string()),
        });
    }
    checks
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
    use super::super::check::Status;
    use super::*;
    use crate::profile::Profile;

    #[tokio::test]
    async fn only_a_profile_without_agent_server_must_know_where_one_is() {
        let mut config = Config::default();
        assert_eq!(checks(&config).await, []);
        config.profile = Profile::parse("api-server,process-server").unwrap();
        let statuses = async |config: &Config| -> Vec<_> {
            let checks = checks(config).await;
            checks.iter().map(|check| check.status).collect()
        };
        assert_eq!(statuses(&config).await, [Status::Failure]);
        config.link.connect = vec!["127.0.0.1:7444".to_owned(), "no such host:7444".to_owned()];
        for profile in ["api-server,process-server", "all"] {
            config.profile = Profile::parse(profile).unwrap();
            let found = statuses(&config).await;
            assert_eq!(found, [Status::Ok, Status::Warning], "{profile}");
        }
    }
}
