//! Server profiles: which servers run in a process. One table; no logic elsewhere asks for a name.

/// A server that a process can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Server {
    /// Agent sessions.
    Agent,
    /// The REST API.
    Api,
    /// Durable processes.
    Process,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent server",
            Self::Api => "API server",
            Self::Process => "process server",
        })
    }
}

/// A profile that can be run.
struct Entry {
    name: &'static str,
    servers: &'static [Server],
}

const TABLE: [Entry; 3] = [
    Entry {
        name: "all",
        servers: &[Server::Agent, Server::Api, Server::Process],
    },
    Entry {
        name: "agent-server",
        servers: &[Server::Agent],
    },
    Entry {
        name: "api-server,process-server",
        servers: &[Server::Api, Server::Process],
    },
];

/// What may be combined; not every combination can be run.
const NAMES: [(&str, &[Server]); 4] = [
    ("all", TABLE[0].servers),
    ("agent-server", &[Server::Agent]),
    ("api-server", &[Server::Api]),
    ("process-server", &[Server::Process]),
];

/// The profile of a process: its place in the table; the default is the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Profile(usize);

impl Profile {
    /// Reads a profile, or a combination such as `api-server,process-server`, in any order.
    ///
    /// # Errors
    /// What to write instead.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut wanted: Vec<Server> = Vec::new();
        for name in text.split(',').map(str::trim) {
            let Some((_, servers)) = NAMES.iter().find(|(known, _)| *known == name) else {
                let names = NAMES.iter().map(|(name, _)| *name);
                return Err(match crate::config::nearest(name, names) {
                    Some(near) => format!("there is no profile `{name}`; did you mean `{near}`?"),
                    None => format!("there is no profile `{name}`; use `all`"),
                });
            };
            if servers.iter().any(|server| wanted.contains(server)) {
                return Err(format!(
                    "`{name}` is in the profile already; name each server once, or `all` alone"
                ));
            }
            wanted.extend(*servers);
        }
        let runs = |entry: &Entry| {
            entry.servers.len() == wanted.len()
                && wanted.iter().all(|one| entry.servers.contains(one))
        };
        TABLE.iter().position(runs).map(Self).ok_or_else(|| {
            format!(
                "`{text}` cannot be run: API servers and process servers work on one SQLite store, which one \
                 process opens; use `all`, `agent-server` or `api-server,process-server`"
            )
        })
    }

    /// As people write it.
    pub(crate) fn name(self) -> &'static str {
        TABLE[self.0].name
    }

    /// The servers that it runs.
    pub(crate) fn servers(self) -> &'static [Server] {
        TABLE[self.0].servers
    }

    /// Whether it runs this one.
    pub(crate) fn runs(self, server: Server) -> bool {
        self.servers().contains(&server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_runs_everything() {
        let profile = Profile::parse("all").unwrap();
        assert_eq!(profile, Profile::default());
        assert_eq!(
            profile.servers(),
            [Server::Agent, Server::Api, Server::Process]
        );
    }

    #[test]
    fn servers_are_combined_in_any_order() {
        let control = Profile::parse("process-server, api-server").unwrap();
        assert_eq!(control.name(), "api-server,process-server");
        assert!(!control.runs(Server::Agent) && control.runs(Server::Process));
        let agents = Profile::parse("agent-server").unwrap();
        assert_eq!(agents.servers(), [Server::Agent]);
        let all = Profile::parse("api-server,agent-server,process-server").unwrap();
        assert_eq!(all, Profile::default());
    }

    #[test]
    fn every_profile_is_read_by_its_own_name() {
        for entry in &TABLE {
            assert_eq!(Profile::parse(entry.name).unwrap().name(), entry.name);
        }
    }

    #[test]
    fn what_cannot_be_run_is_told_with_what_can() {
        for text in ["api-server", "process-server", "agent-server,api-server"] {
            let problem = Profile::parse(text).unwrap_err();
            assert!(
                problem.contains(&format!("`{text}` cannot be run")),
                "{problem}"
            );
            assert!(problem.contains("`api-server,process-server`"), "{problem}");
        }
        let problem = Profile::parse("apiserver").unwrap_err();
        assert!(problem.contains("did you mean `api-server`"), "{problem}");
        for twice in ["all,all", "all,agent-server", "agent-server,agent-server"] {
            let problem = Profile::parse(twice).unwrap_err();
            assert!(problem.contains("already"), "{problem}");
        }
        assert!(Profile::parse("").is_err());
    }

    #[test]
    fn the_operators_page_has_every_profile() {
        let page = include_str!("../../docs/OPERATIONS.md");
        for entry in &TABLE {
            let row = format!("| `{}` | ", entry.name);
            assert!(
                page.lines().any(|line| line.starts_with(&row)),
                "{}",
                entry.name
            );
        }
    }
}
