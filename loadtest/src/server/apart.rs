//! One deployment in several processes, whatever each of them runs.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::{free_ports, loopback};
use tokio::process::Command;

use super::{Listens, Opened, Role, START_TIMEOUT, Server, ServerSpec, Subject, Usage, spawn};
use crate::clock;

/// How to start them.
#[derive(Clone, Debug)]
pub struct ApartSpec {
    /// The binary, more arguments for each process, and where data directories and logs go: beside these.
    pub server: ServerSpec,
    /// What runs in each process; one at least has the store, and one an API.
    pub roles: Vec<Role>,
    /// URL of the store that they share; without one it is an SQLite file, which one process opens.
    pub store: Option<String>,
    /// URL of the lock service, where it is not the default.
    pub locks: Option<String>,
    /// URL of the event service, where it is not the default.
    pub events: Option<String>,
    /// The deployment that becomes this one.
    pub grown: Option<Grown>,
}

/// What of an earlier deployment stays.
#[derive(Clone, Debug)]
pub struct Grown {
    /// Its data directory, with the identity and the admin token: that of the first process with the store.
    pub data_dir: PathBuf,
    /// `host:port` of its API: that of the same process.
    pub api: String,
    /// UDP ports of loopback that agents have been told: one for each process with sessions.
    pub gateways: Vec<u16>,
}

/// They run.
pub struct Apart {
    /// Each of them, in the order of their roles.
    pub servers: Vec<Server>,
}

/// One of them before it runs.
struct Member {
    role: Role,
    spec: ServerSpec,
    at: Listens,
}

impl ApartSpec {
    /// Starts them as an operator does: the first that has the store makes the identity, agent servers get their own
    /// from it, and the others a copy.
    ///
    /// # Errors
    /// When they do not fit together, one does not start, or the identity cannot be made.
    pub async fn open(&self) -> anyhow::Result<Opened> {
        let with_store = self.roles.iter().filter(|role| role.has_store()).count();
        ensure!(
            with_store == 1 || self.store.is_some(),
            "{with_store} processes cannot share an SQLite file: name a store"
        );
        let members = self.members()?;
        let first = members.iter().position(|member| member.role.has_store());
        let first = first.context("no process has the store")?;
        let identity = members[first].spec.data_dir.join("identity");
        // It waits for an agent server, whose identity it makes first.
        let mut waiting = Some(spawn(
            &members[first].spec,
            members[first].role,
            &members[first].at,
        )?);
        appears(&identity.join("identity.json")).await?;
        // Stable: those alike stay in their order.
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|place| (members[*place].role != Role::Agents, *place != first));
        let mut servers = HashMap::new();
        for place in order {
            let Member { role, spec, at } = &members[place];
            let child = match waiting.take_if(|_| place == first) {
                Some(child) => child,
                None => {
                    self.give_identity(*role, &identity, spec).await?;
                    spawn(spec, *role, at)?
                }
            };
            let server = Server::until_ready(spec.clone(), *role, child).await?;
            servers.insert(place, server);
        }
        let in_order = (0..members.len()).filter_map(|place| servers.remove(&place));
        Apart {
            servers: in_order.collect(),
        }
        .opened()
    }

    /// All of them, with the ports by which they find each other.
    fn members(&self) -> anyhow::Result<Vec<Member>> {
        let count = self.roles.iter().filter(|role| role.has_sessions()).count();
        let ports = free_ports(2 * count)?;
        let (free, links) = ports.split_at(count);
        let gateways = match &self.grown {
            Some(grown) => &grown.gateways[..],
            None => free,
        };
        ensure!(
            gateways.len() == count,
            "agents were told {} ports for {count} processes",
            gateways.len()
        );
        let mut own = gateways.iter().zip(links).enumerate();
        let mut numbers: HashMap<Role, usize> = HashMap::new();
        let mut grown = self.grown.as_ref();
        let mut members = Vec::new();
        for role in self.roles.iter().copied() {
            let number = numbers.entry(role).or_default();
            let name = format!("{}-{number}", role.folder());
            *number += 1;
            let mut at = Listens::default();
            let mut settings = Vec::new();
            let mut ways_back = gateways.to_vec();
            let own = role.has_sessions().then(|| own.next()).flatten();
            if let Some((place, (gateway, link))) = own {
                at.agents = loopback(&[*gateway]);
                settings.push(format!("link.listen={}", loopback(&[*link])));
                // Its own comes first.
                ways_back.rotate_left(place);
            }
            settings.push(format!("gateway.advertise={}", loopback(&ways_back)));
            if role.has_store() {
                settings.push(format!("link.connect={}", loopback(links)));
            }
            let mut spec = self.of(role, &name, settings);
            if let Some(grown) = grown.take_if(|_| role.has_store()) {
                spec.data_dir.clone_from(&grown.data_dir);
                at.api.clone_from(&grown.api);
            }
            members.push(Member { role, spec, at });
        }
        Ok(members)
    }

    /// One of them, with these settings.
    fn of(&self, role: Role, name: &str, mut settings: Vec<String>) -> ServerSpec {
        let mut spec = self.server.clone();
        spec.data_dir = beside(&self.server.data_dir, name);
        spec.log = beside(&self.server.log, &format!("{name}.log"));
        let urls = [
            ("store", self.store.as_ref().filter(|_| role.has_store())),
            ("locks.url", self.locks.as_ref()),
            (
                "events.url",
                self.events.as_ref().filter(|_| role.has_store()),
            ),
        ];
        let given = urls.into_iter().filter_map(|(key, url)| Some((key, url?)));
        settings.extend(given.map(|(key, url)| format!("{key}={url}")));
        for setting in settings {
            spec.arguments.extend(["--set".to_owned(), setting]);
        }
        spec
    }

    /// What a process needs of the deployment's identity before its first start.
    async fn give_identity(
        &self,
        role: Role,
        identity: &Path,
        to: &ServerSpec,
    ) -> anyhow::Result<()> {
        match role {
            Role::Agents => self.make_identity(identity, to).await,
            _ => copy_private(identity, &to.data_dir.join("identity")),
        }
    }

    /// An agent server's own.
    async fn make_identity(&self, identity: &Path, to: &ServerSpec) -> anyhow::Result<()> {
        private_folder(&to.data_dir)?;
        let made = Command::new(&self.server.binary)
            .args(["identity", "agent-server"])
            .arg(to.data_dir.join("identity"))
            .arg("--data-dir")
            .arg(identity.parent().unwrap_or(identity))
            .output()
            .await?;
        ensure!(
            made.status.success(),
            "no identity for the agent server: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(())
    }
}

impl Apart {
    /// How to reach them.
    fn opened(self) -> anyhow::Result<Opened> {
        let with_api = || self.servers.iter().filter(|server| server.role.has_api());
        let with_sessions = |server: &&Server| server.role.has_sessions();
        let agents = self.servers.iter().find(with_sessions);
        let agents = agents.context("no process has sessions")?;
        let ready = with_api().next().context("no process has an API")?.ready();
        let file = &ready.admin_token_file;
        let token = std::fs::read_to_string(file)
            .with_context(|| format!("no admin token in {}", file.display()))?;
        let others = with_api().skip(1);
        let admins = self.servers.iter();
        Ok(Opened {
            api: ready.api.clone(),
            other_apis: others.map(|server| server.ready().api.clone()).collect(),
            other_metrics: admins
                .filter_map(|server| server.ready().admin.clone())
                .collect(),
            agents: agents.ready().agents.clone(),
            token,
            subject: Subject::Apart(Box::new(self)),
        })
    }

    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for server in &self.servers {
            let usage = server.usage()?;
            sum.rss_bytes += usage.rss_bytes;
            sum.cpu_seconds += usage.cpu_seconds;
            sum.gateway_cpu_seconds += usage.gateway_cpu_seconds;
        }
        Ok(sum)
    }

    /// Those with work to hand in first.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let (agents, others): (Vec<_>, Vec<_>) = self
            .servers
            .into_iter()
            .partition(|server| server.role == Role::Agents);
        for server in others.into_iter().chain(agents) {
            server.stop().await?;
        }
        Ok(())
    }
}

fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}

async fn appears(file: &Path) -> anyhow::Result<()> {
    let since = clock::now();
    while !file.exists() {
        ensure!(
            clock::now().duration_since(since) < START_TIMEOUT,
            "{} was not made within a minute",
            file.display()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn private_folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// Copies a folder of files; the copy is its owner's alone, as the first is.
fn copy_private(from: &Path, to: &Path) -> anyhow::Result<()> {
    private_folder(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(roles: &[Role], store: Option<&str>) -> ApartSpec {
        ApartSpec {
            server: ServerSpec {
                binary: "drover".into(),
                data_dir: "work/server".into(),
                arguments: Vec::new(),
                log: "work/server.log".into(),
            },
            roles: roles.to_vec(),
            store: store.map(str::to_owned),
            locks: Some("zookeeper://l".to_owned()),
            events: Some("redis://e".to_owned()),
            grown: None,
        }
    }

    const DISTRIBUTED: [Role; 6] = [
        Role::Agents,
        Role::Agents,
        Role::Api,
        Role::Api,
        Role::Processes,
        Role::Processes,
    ];

    /// The value that a process is given for a key.
    fn value<'m>(member: &'m Member, key: &str) -> Option<&'m str> {
        let arguments = member.spec.arguments.iter();
        arguments
            .filter_map(|argument| argument.strip_prefix(key)?.strip_prefix('='))
            .next()
    }

    #[tokio::test]
    async fn two_processes_need_a_store_that_two_can_open() {
        let error = spec(&[Role::All, Role::All], None)
            .open()
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("name a store"), "{error}");
    }

    #[test]
    fn each_has_a_place_of_its_own_and_is_told_what_it_needs() {
        let members = spec(&DISTRIBUTED, Some("postgres://x")).members().unwrap();
        let folders: Vec<_> = members
            .iter()
            .map(|member| member.spec.data_dir.display().to_string())
            .collect();
        let expected = [
            "work/agents-0",
            "work/agents-1",
            "work/api-0",
            "work/api-1",
            "work/processes-0",
            "work/processes-1",
        ];
        assert_eq!(folders, expected);
        let [agents, _, api, ..] = &members[..] else {
            panic!("six of them");
        };
        assert_eq!(agents.spec.log, Path::new("work/agents-0.log"));
        assert_eq!(value(api, "store"), Some("postgres://x"));
        assert_eq!(value(api, "events.url"), Some("redis://e"));
        assert_eq!(value(agents, "store"), None, "it has no business there");
        for member in &members {
            assert_eq!(value(member, "locks.url"), Some("zookeeper://l"));
        }
    }

    #[test]
    fn agent_servers_are_found_by_each_other_and_name_themselves_first() {
        for roles in [&DISTRIBUTED[..], &[Role::All, Role::All]] {
            let members = spec(roles, Some("postgres://x")).members().unwrap();
            let links: Vec<_> = members
                .iter()
                .filter_map(|member| value(member, "link.listen"))
                .collect();
            assert_eq!(links.len(), 2);
            for member in &members {
                let ways: Vec<_> = value(member, "gateway.advertise")
                    .unwrap()
                    .split(',')
                    .collect();
                assert_eq!(ways.len(), 2);
                if member.role.has_sessions() {
                    assert_eq!(ways[0], member.at.agents);
                }
                let connects = member.role.has_store().then(|| links.join(","));
                assert_eq!(value(member, "link.connect"), connects.as_deref());
            }
            assert_ne!(members[0].at.agents, members[1].at.agents);
        }
    }

    #[test]
    fn a_deployment_that_grows_keeps_its_identity_and_what_others_know_of_it() {
        let mut spec = spec(&DISTRIBUTED, Some("postgres://x"));
        spec.grown = Some(Grown {
            data_dir: "work/single".into(),
            api: "127.0.0.1:7440".to_owned(),
            gateways: vec![7443, 7453],
        });
        let members = spec.members().unwrap();
        let grown = members.iter().filter(|member| {
            let same = member.spec.data_dir == Path::new("work/single");
            assert_eq!(same, member.at.api == "127.0.0.1:7440");
            same
        });
        let roles: Vec<_> = grown.map(|member| member.role).collect();
        assert_eq!(roles, [Role::Api], "the first with the store");
        let gateways = members.iter().filter(|member| member.role.has_sessions());
        let gateways: Vec<_> = gateways.map(|member| member.at.agents.clone()).collect();
        assert_eq!(
            gateways,
            ["127.0.0.1:7443", "127.0.0.1:7453"],
            "as agents know"
        );
    }

    #[test]
    fn a_copy_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        private_folder(&from).unwrap();
        std::fs::write(from.join("key"), "secret").unwrap();
        let own = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(from.join("key"), own).unwrap();
        let to = folder.path().join("data/to");
        copy_private(&from, &to).unwrap();
        assert_eq!(std::fs::read(to.join("key")).unwrap(), b"secret");
        for path in [to.clone(), to.join("key"), folder.path().join("data")] {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", path.display());
        }
    }
}
