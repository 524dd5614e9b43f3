//! The ports: free, or held by the server that runs.

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::check::Check;
use crate::config::Config;
use crate::data_dir::Ready;
use crate::profile::Server;

/// Something that the profile listens on.
struct Port {
    name: &'static str,
    key: &'static str,
    kind: Kind,
    wanted: SocketAddr,
    /// Where the running server has it.
    held: fn(&Ready) -> Option<&String>,
}

#[derive(Clone, Copy)]
enum Kind {
    Tcp,
    Udp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    fn bind(self, address: SocketAddr) -> io::Result<()> {
        match self {
            Self::Tcp => TcpListener::bind(address).map(drop),
            Self::Udp => UdpSocket::bind(address).map(drop),
        }
    }
}

/// Everything about the ports. `server`: where the running server said it is.
pub(super) fn checks(config: &Config, server: Option<&Ready>) -> Vec<Check> {
    let ports = wanted(config);
    let checks = ports.iter().map(|port| match server {
        Some(ready) => served(port, ready),
        None => free(port),
    });
    checks.chain(exposed(config)).collect()
}

/// What the profile listens on.
fn wanted(config: &Config) -> Vec<Port> {
    let runs = |server| config.profile.runs(server);
    let api = &config.api;
    let mut ports = Vec::new();
    let mut port = |name, key, kind, wanted: Option<SocketAddr>, held| {
        ports.extend(wanted.map(|wanted| Port {
            name,
            key,
            kind,
            wanted,
            held,
        }));
    };
    if runs(Server::Api) {
        port(
            "port.api",
            "api.listen",
            Kind::Tcp,
            Some(api.listen),
            |ready| ready.api.as_ref(),
        );
        port(
            "port.public",
            "api.public.listen",
            Kind::Tcp,
            api.public_listen,
            |ready| ready.public.as_ref(),
        );
    }
    port(
        "port.admin",
        "admin.listen",
        Kind::Tcp,
        api.admin_listen,
        |ready| ready.admin.as_ref(),
    );
    if runs(Server::Agent) {
        let listen = Some(config.gateway.listen);
        port(
            "port.agents",
            "gateway.listen",
            Kind::Udp,
            listen,
            |ready| ready.agents.as_ref(),
        );
    }
    if config.listens_for_servers() {
        port(
            "port.link",
            "link.listen",
            Kind::Udp,
            Some(config.link.listen),
            |ready| ready.link.as_ref(),
        );
    }
    ports
}

/// Where tokens cross the network as they are.
fn exposed(config: &Config) -> impl Iterator<Item = Check> {
    let api = &config.api;
    let ui = Some(api.listen).filter(|_| api.ui.certificate.is_none());
    let public = api
        .public_listen
        .filter(|_| api.public.certificate.is_none());
    let listens = [("api.listen", ui), ("api.public.listen", public)];
    let has_api = config.profile.runs(Server::Api);
    let listens = listens.into_iter().filter(move |_| has_api);
    listens.filter_map(|(key, listen)| in_the_clear(key, listen?))
}

/// The port of `http://127.0.0.1:7440` or `127.0.0.1:7443`.
fn port_of(address: &str) -> Option<u16> {
    let (_, port) = address.rsplit_once(':')?;
    port.parse().ok()
}

fn served(port: &Port, ready: &Ready) -> Check {
    let (name, kind, wanted) = (port.name, port.kind.name(), port.wanted);
    let held = (port.held)(ready)
        .and_then(|held| port_of(held))
        .unwrap_or(0);
    let process = ready.pid;
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

fn free(port: &Port) -> Check {
    let (name, key, kind, wanted) = (port.name, port.key, port.kind.name(), port.wanted);
    let failed = |found: &dyn Display, advice: String| {
        Check::failure(name, format!("{kind} {wanted}: {found}"), advice)
    };
    match port.kind.bind(wanted) {
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
fn in_the_clear(key: &str, listen: SocketAddr) -> Option<Check> {
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
    use crate::profile::Profile;

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
        let ready = Ready::example();
        let defaults = Config::default();
        let ok = ["port.api", "port.admin", "port.agents"].map(|name| (name, Status::Ok));
        assert_eq!(found(&defaults, Some(&ready)), ok);
        let mut other = Config::default();
        other.gateway.listen = "0.0.0.0:7444".parse().unwrap();
        assert_eq!(found(&other, Some(&ready))[2].1, Status::Warning);
    }

    #[test]
    fn only_what_the_profile_listens_on_is_looked_at() {
        let mut config = config();
        config.link.listen = "127.0.0.1:0".parse().unwrap();
        config.api.admin_listen = Some("127.0.0.1:0".parse().unwrap());
        config.api.listen = "0.0.0.0:0".parse().unwrap();
        config.profile = Profile::parse("agent-server").unwrap();
        let agents = ["port.admin", "port.agents", "port.link"].map(|name| (name, Status::Ok));
        assert_eq!(found(&config, None), agents);
        config.profile = Profile::default();
        assert!(!found(&config, None).contains(&("port.link", Status::Ok)));
        config.link.connect = vec!["a.example:7444".to_owned()];
        assert!(found(&config, None).contains(&("port.link", Status::Ok)));
        config.profile = Profile::parse("api-server,process-server").unwrap();
        let control = [
            ("port.api", Status::Ok),
            ("port.admin", Status::Ok),
            ("port.api_exposed", Status::Warning),
        ];
        assert_eq!(found(&config, None), control);
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
