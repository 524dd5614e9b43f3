//! The ports: free, or held by the server that runs.

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::check::Check;
use crate::config::Config;
use crate::data_dir::Ready;

/// Everything about the ports. `server`: where the running server said it is.
pub(super) fn checks(config: &Config, server: Option<&Ready>) -> Vec<Check> {
    let api = &config.api;
    let held = |url: Option<&String>| url.and_then(|url| port_of(url)).unwrap_or(0);
    let listeners = [
        ("port.api", "api.listen", Some(api.listen)),
        ("port.public", "api.public.listen", api.public_listen),
        ("port.admin", "admin.listen", api.admin_listen),
    ];
    let mut checks = Vec::new();
    for (name, key, wanted) in listeners {
        let Some(wanted) = wanted else { continue };
        checks.push(match server {
            Some(ready) => {
                let url = match name {
                    "port.api" => Some(&ready.api),
                    "port.public" => ready.public.as_ref(),
                    _ => ready.admin.as_ref(),
                };
                served(name, "TCP", wanted, held(url), ready.pid)
            }
            None => free(
                name,
                "TCP",
                wanted,
                key,
                TcpListener::bind(wanted).map(drop),
            ),
        });
    }
    let agents = config.gateway.listen;
    checks.push(match server {
        Some(ready) => served(
            "port.agents",
            "UDP",
            agents,
            held(Some(&ready.agents)),
            ready.pid,
        ),
        None => free(
            "port.agents",
            "UDP",
            agents,
            "gateway.listen",
            UdpSocket::bind(agents).map(drop),
        ),
    });
    if api.ui.certificate.is_none() {
        checks.extend(in_the_clear(("api.listen", api.listen)));
    }
    let public = api
        .public_listen
        .filter(|_| api.public.certificate.is_none());
    checks.extend(public.and_then(|public| in_the_clear(("api.public.listen", public))));
    checks
}

/// The port of `http://127.0.0.1:7440` or `127.0.0.1:7443`.
fn port_of(address: &str) -> Option<u16> {
    let (_, port) = address.rsplit_once(':')?;
    port.parse().ok()
}

fn served(name: &'static str, kind: &str, wanted: SocketAddr, held: u16, process: u32) -> Check {
    if [0, held].contains(&wanted.port()) {
        return Check::ok(
            name,
            format!("{kind} {held}, held by the server with process id {process}"),
        );
    }
    Check::warning(
        name,
        format!("the running server has {kind} {held}, and this configuration says {wanted}"),
        "look with the server's own configuration and flags, or restart it with this one",
    )
}

fn free(
    name: &'static str,
    kind: &str,
    wanted: SocketAddr,
    key: &str,
    bound: io::Result<()>,
) -> Check {
    let failed = |found: &dyn Display, advice: String| {
        Check::failure(name, format!("{kind} {wanted}: {found}"), advice)
    };
    match bound {
        Ok(()) if wanted.port() == 0 => Check::ok(name, format!("{kind}, any free port")),
        Ok(()) => Check::ok(name, format!("{kind} {wanted} is free")),
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse => {
                let protocol = kind.to_lowercase();
                let who = format!("ss -l --{protocol} -n -p 'sport = :{}'", wanted.port());
                failed(
                    &"somebody else has it",
                    format!("`{who}` says who; stop it, or change {key}"),
                )
            }
            io::ErrorKind::PermissionDenied => failed(
                &error,
                format!(
                    "choose a port above 1023 with {key}, or give the unit CAP_NET_BIND_SERVICE"
                ),
            ),
            _ => failed(
                &error,
                format!("choose an address of this machine with {key}: `ip address`"),
            ),
        },
    }
}

/// Tokens cross the network as they are.
fn in_the_clear((key, listen): (&str, SocketAddr)) -> Option<Check> {
    (!listen.ip().is_loopback()).then(|| {
        Check::warning(
            "port.api_exposed",
            format!("the API speaks plain HTTP and listens beyond loopback, on {listen}"),
            format!("give it a certificate, or set {key} to an address of 127.0.0.0/8 behind a TLS proxy"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    fn config() -> Config {
        let mut config = Config::default();
        config.api.listen = "127.0.0.1:0".parse().unwrap();
        config.api.admin_listen = None;
        config.gateway.listen = "127.0.0.1:0".parse().unwrap();
        config
    }

    fn found(config: &Config, server: Option<&Ready>) -> Vec<(&'static str, Status)> {
        let checks = checks(config, server);
        checks
            .iter()
            .map(|check| (check.name, check.status))
            .collect()
    }

    #[test]
    fn a_port_that_somebody_else_has_is_a_failure_with_the_command_that_finds_him() {
        let mut config = config();
        let ok = [("port.api", Status::Ok), ("port.agents", Status::Ok)];
        assert_eq!(found(&config, None), ok);
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        config.gateway.listen = other.local_addr().unwrap();
        let check = &checks(&config, None)[1];
        assert_eq!(check.status, Status::Failure);
        let advice = check.advice.as_deref().unwrap();
        let filter = format!("--udp -n -p 'sport = :{}'", config.gateway.listen.port());
        assert!(advice.contains(&filter), "{advice}");
    }

    #[test]
    fn ports_of_the_running_server_are_not_in_its_way() {
        let ready = Ready {
            api: "http://127.0.0.1:7440".to_owned(),
            public: None,
            api_certificate: None,
            admin: Some("http://127.0.0.1:7441".to_owned()),
            agents: "127.0.0.1:7443".to_owned(),
            admin_token_file: "t".into(),
            data_dir: "d".into(),
            pid: 7,
            profile: "all".to_owned(),
            version: "0".to_owned(),
        };
        let defaults = Config::default();
        let ok = ["port.api", "port.admin", "port.agents"].map(|name| (name, Status::Ok));
        assert_eq!(found(&defaults, Some(&ready)), ok);
        let mut other = Config::default();
        other.gateway.listen = "0.0.0.0:7444".parse().unwrap();
        assert_eq!(found(&other, Some(&ready))[2].1, Status::Warning);
    }

    #[test]
    fn an_api_beyond_loopback_is_warned_of() {
        let mut config = config();
        assert_eq!(found(&config, None).len(), 2);
        config.api.listen = "0.0.0.0:0".parse().unwrap();
        assert_eq!(
            found(&config, None)[2],
            ("port.api_exposed", Status::Warning)
        );
        config.api.ui.certificate = Some("api.pem".into());
        assert_eq!(found(&config, None).len(), 2, "it speaks TLS");
        config.api.public_listen = Some("0.0.0.0:0".parse().unwrap());
        let names: Vec<_> = found(&config, None)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let expected = ["port.api", "port.public", "port.agents", "port.api_exposed"];
        assert_eq!(names, expected);
    }
}
