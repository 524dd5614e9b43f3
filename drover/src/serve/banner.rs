//! What `drover serve` says when everything listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use control::api::Served;

use crate::config::Config;
use crate::data_dir::{self, Ready};

/// The URL of a listener for clients on this machine.
pub(super) fn url(served: Served) -> String {
    let scheme = if served.tls { "https" } else { "http" };
    format!("{scheme}://{}", reachable(served.address))
}

/// An address that a client on this machine can use, where the server listens on all of them.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Where everything is, and how to go on.
pub(super) fn text(ready: &Ready, config: &Config) -> String {
    // The commands work as they stand where the defaults do.
    let flag = if config.data_dir == data_dir::path(None) {
        String::new()
    } else {
        format!(" --data-dir {}", config.data_dir.display())
    };
    let mut text = format!(
        "\nDrover {} is ready (profile {}).\n\n",
        ready.version, ready.profile
    );
    let mut place = |what: &str, place: Option<&str>, more: &str| {
        if let Some(place) = place {
            text.push_str(&format!("  {what:<12} {place}{more}\n"));
        }
    };
    place(
        "API",
        ready.api.as_deref(),
        "    (described at /v1/openapi.json)",
    );
    place("public API", ready.public.as_deref(), "");
    place(
        "health",
        ready.admin.as_deref(),
        "    (/healthz, /readyz, /metrics)",
    );
    place("agents", ready.agents.as_deref(), "    (UDP, mutual TLS)");
    place(
        "link",
        ready.link.as_deref(),
        "    (process servers: UDP, mutual TLS)",
    );
    for address in config.connects_to() {
        place("agent server", Some(address), "");
    }
    let token = ready.admin_token_file.as_ref();
    let token = token.map(|file| file.display().to_string());
    match (&token, &ready.api) {
        (None, Some(_)) => place(
            "admin token",
            Some(
                "none here; on the first server of this deployment: drover api-tokens create NAME",
            ),
            "",
        ),
        _ => place("admin token", token.as_deref(), ""),
    }
    place("data", Some(&ready.data_dir.display().to_string()), "");
    text.push('\n');
    text.push_str(&next(ready, config, &flag));
    let plain = ready
        .api
        .as_ref()
        .is_some_and(|api| api.starts_with("http:"));
    if plain && !config.api.listen.ip().is_loopback() {
        text.push_str(
            "Note: the API speaks plain HTTP and listens beyond loopback. Give it a certificate\n\
             (api.ui.certificate, api.ui.key), put a TLS proxy before it, or a firewall around it: tokens\n\
             cross the network in the clear.\n\n",
        );
    }
    text.push_str("Ctrl-C stops it in order.\n");
    text
}

/// What people do next.
fn next(ready: &Ready, config: &Config, flag: &str) -> String {
    let server = match (&ready.agents, &ready.api) {
        (_, None) if config.profile.has_store() => {
            return "Work comes through an API server, on this store and with this identity, and is done here as well:\n\
                    \n\
                    \x20 drover serve --profile api-server\n\
                    \n"
                .to_owned();
        }
        (agents, None) => {
            let link = ready.link.as_ref().or(agents.as_ref());
            let link = link.map_or("HOST:7444", String::as_str);
            return format!(
                "Agents are let in when a process server has come and said who may. Where the API server is:\n\
                 \n\
                 \x20 drover serve --profile api-server,process-server --set link.connect={link}\n\
                 \n"
            );
        }
        (Some(agents), Some(_)) => agents.clone(),
        (None, _) => match config.gateway.advertise.first() {
            Some(address) => address.clone(),
            None => "HOST:7443".to_owned(),
        },
    };
    format!(
        "Let an agent in, on this machine for a start:\n\
         \n\
         \x20 TOKEN=$(drover tokens create{flag})\n\
         \x20 drover agent join --server {server} --token \"$TOKEN\" --allow uname=/usr/bin/uname\n\
         \x20 drover agent run\n\
         \n\
         Then, in another terminal:\n\
         \n\
         \x20 drover agents list{flag}\n\
         \x20 drover run{flag} \"$(hostname)\" exec -- uname -a\n\
         \n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    #[test]
    fn an_address_that_means_all_becomes_one_that_can_be_dialled() {
        let at = |address: &str, tls| {
            let address = address.parse().unwrap();
            url(Served { address, tls })
        };
        assert_eq!(at("0.0.0.0:7440", false), "http://127.0.0.1:7440");
        assert_eq!(at("[::]:7440", true), "https://[::1]:7440");
        assert_eq!(at("10.0.0.1:80", false), "http://10.0.0.1:80");
    }

    #[test]
    fn the_commands_name_the_data_directory_where_it_is_not_the_default() {
        let mut config = Config::default();
        assert!(!text(&Ready::example(), &config).contains("--data-dir"));
        config.data_dir = "/d".into();
        assert!(text(&Ready::example(), &config).contains("drover agents list --data-dir /d"));
    }

    #[test]
    fn an_api_beyond_loopback_is_warned_of() {
        let warned = |address: &str, scheme: &str| {
            let mut config = Config::default();
            config.api.listen = address.parse().unwrap();
            let ready = Ready {
                api: Some(format!("{scheme}://127.0.0.1:7440")),
                ..Ready::example()
            };
            text(&ready, &config).contains("plain HTTP and listens beyond")
        };
        assert!(!warned("127.0.0.1:7440", "http"));
        assert!(!warned("[::1]:7440", "http"));
        assert!(warned("0.0.0.0:7440", "http"));
        assert!(!warned("0.0.0.0:7440", "https"));
    }

    #[test]
    fn every_listener_that_is_there_has_its_line() {
        let all = Ready {
            public: Some("https://127.0.0.1:7442".to_owned()),
            ..Ready::example()
        };
        let shown = text(&all, &Config::default());
        assert!(
            shown.contains("\n  public API   https://127.0.0.1:7442\n"),
            "{shown}"
        );
        let health = "\n  health       http://127.0.0.1:7441    (";
        assert!(shown.contains(health), "{shown}");
        let bare = Ready {
            admin: None,
            ..Ready::example()
        };
        let shown = text(&bare, &Config::default());
        assert!(
            !shown.contains("health  ") && !shown.contains("public"),
            "{shown}"
        );
    }

    #[test]
    fn each_profile_says_what_it_has_and_what_comes_next() {
        let mut config = Config::default();
        let all = text(&Ready::example(), &config);
        assert!(
            all.contains("  agents       127.0.0.1:7443    (UDP, mutual TLS)\n"),
            "{all}"
        );
        assert!(!all.contains("link"), "{all}");

        let agents = Ready {
            api: None,
            link: Some("127.0.0.1:7444".to_owned()),
            admin_token_file: None,
            ..Ready::example()
        };
        config.profile = Profile::parse("agent-server").unwrap();
        let agents = text(&agents, &config);
        assert!(
            agents.contains("--set link.connect=127.0.0.1:7444"),
            "{agents}"
        );
        assert!(
            !agents.contains("token") && !agents.contains("API  "),
            "{agents}"
        );

        let control = Ready {
            agents: None,
            ..Ready::example()
        };
        config.profile = Profile::parse("api-server,process-server").unwrap();
        config.link.connect = vec!["a.example:7444".to_owned()];
        let control = text(&control, &config);
        assert!(
            control.contains("  agent server a.example:7444\n"),
            "{control}"
        );
        assert!(control.contains("--server HOST:7443"), "{control}");

        let processes = Ready {
            api: None,
            agents: None,
            admin_token_file: None,
            ..Ready::example()
        };
        config.profile = Profile::parse("process-server").unwrap();
        let processes = text(&processes, &config);
        assert!(
            processes.contains("drover serve --profile api-server\n")
                && !processes.contains("tokens create"),
            "{processes}"
        );
    }
}
