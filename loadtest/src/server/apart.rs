//! One deployment in several processes: an agent server, and some that have an API and process servers.

use std::fs::DirBuilder;
use std::net::UdpSocket;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use super::{Opened, Role, START_TIMEOUT, Server, ServerSpec, Subject, Usage, spawn, wait_ready};
use crate::clock;

/// How to start them.
#[derive(Clone, Debug)]
pub struct ApartSpec {
    /// The binary, more arguments for each process, and where data directories and logs go: beside these.
    pub server: ServerSpec,
    /// Processes with an API and process servers.
    pub control: usize,
    /// URL of the store that they share; without one it is an SQLite file, which one process opens.
    pub store: Option<String>,
}

/// They run.
pub struct Apart {
    /// Sessions of agents.
    pub agents: Server,
    /// API and process servers.
    pub control: Vec<Server>,
}

impl ApartSpec {
    /// Starts them as an operator does: the first control process makes the identity, the agent server gets its own
    /// from it, and the others a copy.
    ///
    /// # Errors
    /// When one does not start, or the identity cannot be made.
    pub async fn open(&self) -> anyhow::Result<Opened> {
        ensure!(
            self.control == 1 || self.store.is_some(),
            "{} processes cannot share an SQLite file: name a store",
            self.control
        );
        let link = free_port()?;
        let first = self.of("control-0", &[format!("link.connect=127.0.0.1:{link}")]);
        let mut waiting = spawn(&first, Role::Control, None)?;
        let identity = first.data_dir.join("identity");
        appears(&identity.join("identity.json")).await?;
        let agents = self.of("agents", &[format!("link.listen=127.0.0.1:{link}")]);
        self.make_identity(&first, &agents).await?;
        let agents = Server::start_as(Role::Agents, agents).await?;
        let ready = wait_ready(&first, &mut waiting).await?;
        let mut control = vec![Server {
            spec: first,
            role: Role::Control,
            child: waiting,
            ready,
            spent: Usage::default(),
        }];
        for n in 1..self.control {
            let next = self.of(
                &format!("control-{n}"),
                &[format!("link.connect=127.0.0.1:{link}")],
            );
            copy_private(&identity, &next.data_dir.join("identity"))?;
            control.push(Server::start_as(Role::Control, next).await?);
        }
        let ready = control[0].ready().clone();
        let file = &ready.admin_token_file;
        let token = std::fs::read_to_string(file)
            .with_context(|| format!("no admin token in {}", file.display()))?;
        let others = control.iter().skip(1);
        Ok(Opened {
            api: ready.api,
            other_apis: others.map(|server| server.ready().api.clone()).collect(),
            agents: agents.ready().agents.clone(),
            token,
            subject: Subject::Apart(Box::new(Apart { agents, control })),
        })
    }

    /// One of them, with these settings.
    fn of(&self, name: &str, settings: &[String]) -> ServerSpec {
        let mut spec = self.server.clone();
        spec.data_dir = beside(&self.server.data_dir, name);
        spec.log = beside(&self.server.log, &format!("{name}.log"));
        let store = self.store.iter().filter(|_| name != "agents");
        let store = store.map(|url| format!("store={url}"));
        for setting in settings.iter().cloned().chain(store) {
            spec.arguments.extend(["--set".to_owned(), setting]);
        }
        spec
    }

    async fn make_identity(&self, from: &ServerSpec, to: &ServerSpec) -> anyhow::Result<()> {
        private_folder(&to.data_dir)?;
        let made = Command::new(&self.server.binary)
            .args(["identity", "agent-server"])
            .arg(to.data_dir.join("identity"))
            .arg("--data-dir")
            .arg(&from.data_dir)
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
    /// All of them, the agent server first.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        std::iter::once(&mut self.agents).chain(&mut self.control)
    }

    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = self.agents.usage()?;
        for server in &self.control {
            let usage = server.usage()?;
            sum.rss_bytes += usage.rss_bytes;
            sum.cpu_seconds += usage.cpu_seconds;
            sum.gateway_cpu_seconds += usage.gateway_cpu_seconds;
        }
        Ok(sum)
    }

    /// Those with work to hand in first.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        for server in self.control {
            server.stop().await?;
        }
        self.agents.stop().await
    }
}

fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}

/// A UDP port of loopback that nobody had a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("no socket")?;
    Ok(socket.local_addr()?.port())
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

    fn spec(control: usize, store: Option<&str>) -> ApartSpec {
        ApartSpec {
            server: ServerSpec {
                binary: "drover".into(),
                data_dir: "work/server".into(),
                arguments: Vec::new(),
                log: "work/server.log".into(),
            },
            control,
            store: store.map(str::to_owned),
        }
    }

    #[tokio::test]
    async fn two_processes_need_a_store_that_two_can_open() {
        let error = spec(2, None).open().await.err().unwrap();
        assert!(error.to_string().contains("name a store"), "{error}");
    }

    #[test]
    fn only_those_with_a_store_are_told_of_it() {
        let spec = spec(2, Some("postgres://x"));
        let setting = "store=postgres://x".to_owned();
        let control = spec.of("control-1", &[]);
        assert_eq!(control.data_dir, Path::new("work/control-1"));
        assert_eq!(control.log, Path::new("work/control-1.log"));
        assert!(control.arguments.contains(&setting));
        assert!(!spec.of("agents", &[]).arguments.contains(&setting));
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
