//! In how many processes the server under test runs, and on which store.

use testkit::{MariaDb, Postgres};

use super::bed::Plan;
use crate::server::{ApartSpec, Role, ServerSpec, Target};

/// In how many processes the server runs, and on which store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Site {
    /// All in one, on its own SQLite file.
    #[default]
    One,
    /// An agent server, and another process with an API and all process servers, on an SQLite file.
    Apart,
    /// An agent server, and each process server in a process of its own with an API, on a private PostgreSQL.
    Postgres,
    /// The same on a private MariaDB.
    Mariadb,
}

impl Site {
    /// What folders of results call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Apart => "apart",
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
        }
    }

    /// Process servers in each process that has some, where there are so many in all.
    pub(super) fn servers_in_each(self, servers: usize) -> usize {
        match self {
            Self::One | Self::Apart => servers,
            Self::Postgres | Self::Mariadb => 1,
        }
    }

    /// What is to be started for a plan; each has a database of its own.
    pub(super) async fn target(
        self,
        plan: &Plan<'_>,
        server: ServerSpec,
    ) -> anyhow::Result<Target> {
        let store = match self {
            Self::One => return Ok(Target::Start(server)),
            Self::Apart => None,
            Self::Postgres => Some(Postgres::shared().await?.database("flow").await?),
            Self::Mariadb => Some(MariaDb::shared().await?.database("flow").await?),
        };
        let control = plan.servers / self.servers_in_each(plan.servers).max(1);
        let mut roles = vec![Role::Agents];
        roles.resize(1 + control, Role::Control);
        Ok(Target::Apart(ApartSpec {
            server,
            roles,
            store,
            locks: None,
            events: None,
            grown: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_servers_are_in_one_process_or_each_in_its_own() {
        assert_eq!(Site::One.servers_in_each(8), 8);
        assert_eq!(Site::Apart.servers_in_each(8), 8);
        assert_eq!(Site::Postgres.servers_in_each(8), 1);
        assert_eq!(Site::Mariadb.servers_in_each(8), 1);
    }
}
