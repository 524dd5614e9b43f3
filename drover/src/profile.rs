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

/// Every choice of servers. What each does is in `control::Runs`, and what each needs in docs/OPERATIONS.md.
const TABLE: [Entry; 7] = [
    Entry {
        name: "all",
        servers: &[Server::Agent, Server::Api, Server::Process],
    },
    Entry {
        name: "agent-server",
        servers: &[Server::Agent],
    },
    Entry {
        name: "api-server",
        servers: &[Server::Api],
    },
    Entry {
        name: "process-server",
        servers: &[Server::Process],
    },
    Entry {
        name: "api-server,process-server",
        servers: &[Server::Api, Server::Process],
    },
    Entry {
        name: "agent-server,api-server",
        servers: &[Server::Agent, Server::Api],
    },
    Entry {
        name: "agent-server,process-server",
        servers: &[Server::Agent, Server::Process],
    },
];

/// What is combined with commas.
const WORDS: usize = 4;

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
            let words = TABLE[..WORDS].iter();
            let Some(Entry { servers, .. }) = words.clone().find(|entry| entry.name == name) else {
                let names = words.map(|entry| entry.name);
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
        let place = TABLE.iter().position(runs);
        place
            .map(Self)
            .ok_or_else(|| format!("`{text}` names no server; use `all`"))
    }

    /// As people write it.
    pub(crate) fn name(self) -> &'static str {
        TABLE[self.0].name
    }

    /// The servers that it runs.
    pub(crate) fn servers(self) -> &'static [Server] {
        TABLE[self.0].servers
    }

    /// Whether it has what works on the store: API server, process server or both.
    pub(crate) fn has_store(self) -> bool {
        self.runs(Server::Api) || self.runs(Server::Process)
    }

    /// Whether some of its servers need others, in other processes.
    pub(crate) fn is_part(self) -> bool {
        self != Self::default()
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
    fn what_is_no_profile_is_told_with_what_was_meant() {
        let problem = Profile::parse("apiserver").unwrap_err();
        assert!(problem.contains("did you mean `api-server`"), "{problem}");
        for twice in ["all,all", "all,agent-server", "agent-server,agent-server"] {
            let problem = Profile::parse(twice).unwrap_err();
            assert!(problem.contains("already"), "{problem}");
        }
        assert!(Profile::parse("").is_err());
    }

    #[test]
    fn every_choice_of_servers_is_a_profile() {
        let names = ["agent-server", "api-server", "process-server"];
        for choice in 1..8_u32 {
            let chosen = names.iter().enumerate();
            let chosen = chosen.filter(|(bit, _)| choice >> bit & 1 == 1);
            let chosen: Vec<&str> = chosen.map(|(_, name)| *name).collect();
            let profile = Profile::parse(&chosen.join(",")).unwrap();
            assert_eq!(profile.servers().len(), chosen.len());
            assert_eq!(profile.is_part(), choice != 7);
            assert_eq!(profile.has_store(), choice != 1);
        }
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
