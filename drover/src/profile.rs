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

struct Entry {
    name: &'static str,
    servers: &'static [Server],
    /// Whether this release can run it.
    available: bool,
}

const TABLE: [Entry; 4] = [
    Entry {
        name: "all",
        servers: &[Server::Agent, Server::Api, Server::Process],
        available: true,
    },
    Entry {
        name: "agent-server",
        servers: &[Server::Agent],
        available: false,
    },
    Entry {
        name: "api-server",
        servers: &[Server::Api],
        available: false,
    },
    Entry {
        name: "process-server",
        servers: &[Server::Process],
        available: false,
    },
];

/// The profile of a process: its place in the table; the default is the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Profile(usize);

impl Profile {
    /// Reads a profile, or a combination such as `api-server,process-server`.
    ///
    /// # Errors
    /// What to write instead.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        for name in text.split(',').map(str::trim) {
            let Some(entry) = TABLE.iter().find(|entry| entry.name == name) else {
                let names = TABLE.iter().map(|entry| entry.name);
                return Err(match crate::config::nearest(name, names) {
                    Some(near) => format!("there is no profile `{name}`; did you mean `{near}`?"),
                    None => format!("there is no profile `{name}`; use `all`"),
                });
            };
            if !entry.available {
                return Err(format!(
                    "this release runs all servers in one process: `{name}` alone comes later; use `all`"
                ));
            }
        }
        if text.contains(',') {
            return Err("`all` already runs every server; use it alone".to_owned());
        }
        Ok(Self::default())
    }

    /// As people write it.
    pub(crate) fn name(self) -> &'static str {
        TABLE[self.0].name
    }

    /// The servers that it runs.
    pub(crate) fn servers(self) -> &'static [Server] {
        TABLE[self.0].servers
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
    fn profiles_of_a_later_release_are_refused_by_name() {
        let problem = Profile::parse("api-server,process-server").unwrap_err();
        assert!(problem.contains("comes later"), "{problem}");
        let problem = Profile::parse("apiserver").unwrap_err();
        assert!(problem.contains("`api-server`"), "{problem}");
        assert!(Profile::parse("all,all").is_err());
        assert!(Profile::parse("").is_err());
    }
}
