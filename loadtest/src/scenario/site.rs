//! The shapes of a deployment, each with services of its own, which may be hurt.

use anyhow::Context as _;
use testkit::{MariaDb, Postgres, Redis, Server, ZooKeeper};

use crate::server::{ApartSpec, Role, ServerSpec, Target};

/// In how many processes a deployment runs, on which store, with which lock and event services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Site {
    /// One process, on an SQLite file.
    Single,
    /// Two that have everything, on MariaDB with locks in ZooKeeper.
    RedundantMariadbZookeeper,
    /// Two that have everything, on PostgreSQL with locks and events in Redis.
    RedundantPostgresRedis,
    /// Two agent servers, two API servers and two process servers, on MariaDB with locks in ZooKeeper and events in
    /// Redis.
    Distributed,
    /// Two agent servers, and two processes with an API and a process server, on the same services.
    Control,
}

/// A service that a deployment needs, or goes on without for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Service {
    /// The database.
    Store,
    /// By which servers hear that one of them is gone.
    Locks,
    /// By which servers wake each other.
    Events,
}

impl Service {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Locks => "locks",
            Self::Events => "events",
        }
    }
}

impl Site {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::RedundantMariadbZookeeper => "redundant-mariadb-zookeeper",
            Self::RedundantPostgresRedis => "redundant-postgres-redis",
            Self::Distributed => "distributed",
            Self::Control => "control",
        }
    }

    /// What runs in each process.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::Single => &[Role::All],
            Self::RedundantMariadbZookeeper | Self::RedundantPostgresRedis => {
                &[Role::All, Role::All]
            }
            Self::Distributed => &[
                Role::Agents,
                Role::Agents,
                Role::Api,
                Role::Api,
                Role::Processes,
                Role::Processes,
            ],
            Self::Control => &[Role::Agents, Role::Agents, Role::Control, Role::Control],
        }
    }

    /// How many of the processes have agents' sessions.
    pub(super) fn with_sessions(self) -> usize {
        let roles = self.roles().iter();
        roles.filter(|role| role.has_sessions()).count()
    }

    /// Starts its services.
    ///
    /// # Errors
    /// When one is not installed, or does not start.
    pub(super) async fn services(self) -> anyhow::Result<Services> {
        let mut services = Services::default();
        match self {
            Self::Single => {}
            Self::RedundantMariadbZookeeper => {
                services.mariadb = Some(MariaDb::start().await?);
                services.zookeeper = Some(ZooKeeper::start().await?);
            }
            Self::RedundantPostgresRedis => {
                services.postgres = Some(Postgres::start().await?);
                services.redis = Some(Redis::start().await?);
            }
            Self::Distributed | Self::Control => {
                services.mariadb = Some(MariaDb::start().await?);
                services.zookeeper = Some(ZooKeeper::start().await?);
                services.redis = Some(Redis::start().await?);
            }
        }
        Ok(services)
    }

    /// What is to be started, on these services.
    ///
    /// # Errors
    /// When no database can be made.
    pub(super) async fn target(
        self,
        services: &Services,
        server: ServerSpec,
    ) -> anyhow::Result<Target> {
        Ok(match self {
            Self::Single => Target::Start(server),
            _ => Target::Apart(self.apart(services, server).await?),
        })
    }

    /// The same of one in several processes.
    pub(super) async fn apart(
        self,
        services: &Services,
        server: ServerSpec,
    ) -> anyhow::Result<ApartSpec> {
        let zookeeper = services.zookeeper.as_ref().map(ZooKeeper::url);
        let redis = services.redis.as_ref().map(Redis::url);
        Ok(ApartSpec {
            server,
            roles: self.roles().to_vec(),
            store: services.database().await?,
            locks: zookeeper.or_else(|| redis.clone()),
            // Without a service the others would only look with their next heartbeat.
            events: redis.or_else(|| Some("sql:".to_owned())),
            grown: None,
        })
    }
}

/// The services of one deployment. They end when this is dropped.
#[derive(Default)]
pub(super) struct Services {
    postgres: Option<Postgres>,
    mariadb: Option<MariaDb>,
    zookeeper: Option<ZooKeeper>,
    redis: Option<Redis>,
}

impl Services {
    /// A new database; none where the store is a file.
    async fn database(&self) -> anyhow::Result<Option<String>> {
        const NAME: &str = "scenario";
        Ok(match (&self.mariadb, &self.postgres) {
            (Some(mariadb), _) => Some(mariadb.database(NAME).await?),
            (None, Some(postgres)) => Some(postgres.database(NAME).await?),
            (None, None) => None,
        })
    }

    /// The server behind a service, to be hurt.
    ///
    /// # Errors
    /// When the site has no server for it.
    pub(super) fn server_of(&self, service: Service) -> anyhow::Result<&Server> {
        let redis = self.redis.as_deref();
        let server = match service {
            Service::Store => self.mariadb.as_deref().or(self.postgres.as_deref()),
            Service::Locks => self.zookeeper.as_deref().or(redis),
            Service::Events => redis,
        };
        server.with_context(|| {
            let what = service.name();
            format!(
                "this site has no server for its {what}: choose another --site, such as control"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn sites_are_called_as_on_the_command_line() {
        for site in Site::value_variants() {
            let value = site.to_possible_value().unwrap();
            assert_eq!(site.name(), value.get_name());
        }
    }

    #[test]
    fn a_site_without_a_server_says_so() {
        let error = Services::default().server_of(Service::Locks).err().unwrap();
        assert!(error.to_string().contains("--site"), "{error}");
    }
}
