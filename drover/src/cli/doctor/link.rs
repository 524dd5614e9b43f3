//! The way to an agent server elsewhere, where the profile has none.

use super::check::Check;
use crate::config::Config;
use crate::profile::Server;

const NAME: &str = "configuration.link";

/// Whether it is said where the agent server is, and whether that name is known here. Nobody is called: an agent
/// server that is away is waited for, so it is no failure.
pub(super) async fn checks(config: &Config) -> Option<Check> {
    if config.profile.runs(Server::Agent) {
        return None;
    }
    let Some(address) = config.connects_to() else {
        return Some(Check::failure(
            NAME,
            "this profile has no agent server, and link.connect does not say where it is",
            "set link.connect to HOST:PORT, the agent server's link.listen",
        ));
    };
    let found = tokio::net::lookup_host(address).await;
    let found = found.map(|mut addresses| addresses.next());
    Some(match found {
        Ok(Some(first)) => Check::ok(NAME, format!("the agent server is at {address}: {first}")),
        Ok(None) => unknown(address, "it has no address"),
        Err(error) => unknown(address, &error.to_string()),
    })
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
        assert_eq!(checks(&config).await, None);
        config.profile = Profile::parse("api-server,process-server").unwrap();
        assert_eq!(checks(&config).await.unwrap().status, Status::Failure);
        config.link.connect = Some("127.0.0.1:7444".to_owned());
        assert_eq!(checks(&config).await.unwrap().status, Status::Ok);
        config.link.connect = Some("no such host:7444".to_owned());
        assert_eq!(checks(&config).await.unwrap().status, Status::Warning);
    }
}
