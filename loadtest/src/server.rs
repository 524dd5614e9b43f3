//! The server under test: started by us (and then ours to kill), or one that is already running.

mod apart;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::api::Api;

pub use apart::{Apart, ApartSpec, Grown};

/// How to start a server.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// The `drover` binary.
    pub binary: PathBuf,
    /// Its data directory; kept across restarts.
    pub data_dir: PathBuf,
    /// More arguments for `drover serve`.
    pub arguments: Vec<String>,
    /// Logs go here, appended.
    pub log: PathBuf,
}

/// What a started server says about itself (`drover serve --output json`).
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// Base URL of the API; empty where none is.
    #[serde(default)]
    pub api: String,
    /// Base URL of its listener for programs from outside, where there is one.
    #[serde(default)]
    pub public: Option<String>,
    /// Base URL of its listener for probes and scrapers, where there is one.
    #[serde(default)]
    pub admin: Option<String>,
    /// `host:port` for agents; empty where none may come.
    #[serde(default)]
    pub agents: String,
    /// File with the admin token; empty where there is no API.
    #[serde(default)]
    pub admin_token_file: PathBuf,
}

/// Which servers a process runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Role {
    /// All of them.
    #[default]
    All,
    /// An agent server.
    Agents,
    /// An API server.
    Api,
    /// Process servers.
    Processes,
    /// An API server and process servers.
    Control,
}

impl Role {
    /// As `--profile` has it.
    pub fn profile(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Agents => "agent-server",
            Self::Api => "api-server",
            Self::Processes => "process-server",
            Self::Control => "api-server,process-server",
        }
    }

    /// Whether agents have their sessions there.
    pub fn has_sessions(self) -> bool {
        matches!(self, Self::All | Self::Agents)
    }

    /// Whether it has an API.
    pub fn has_api(self) -> bool {
        matches!(self, Self::All | Self::Api | Self::Control)
    }

    /// Whether it opens the store.
    pub fn has_store(self) -> bool {
        self != Self::Agents
    }

    /// What folders and logs of such processes are called.
    fn folder(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Agents => "agents",
            Self::Api => "api",
            Self::Processes => "processes",
            Self::Control => "control",
        }
    }

    /// The profile, and the addresses that it listens on.
    fn arguments(self, at: &Listens) -> Vec<String> {
        let mut arguments = vec!["--profile", self.profile()];
        if self.has_api() {
            arguments.extend(["--api-listen", &at.api]);
        }
        if self.has_sessions() {
            arguments.extend(["--gateway-listen", &at.agents]);
        }
        // An API has the figures, too; and another server on this machine may have the default's port.
        let admin = if self.has_api() { "off" } else { &at.admin };
        let admin = format!("admin.listen={admin}");
        arguments.extend(["--set", &admin]);
        arguments.into_iter().map(str::to_owned).collect()
    }
}

/// Where a process listens, as `host:port`.
#[derive(Clone, Debug)]
struct Listens {
    api: String,
    admin: String,
    agents: String,
}

impl Default for Listens {
    /// On ports that the kernel chooses.
    fn default() -> Self {
        let any = || "127.0.0.1:0".to_owned();
        Self {
            api: any(),
            admin: any(),
            agents: any(),
        }
    }
}

impl From<&Ready> for Listens {
    /// Where it listened before.
    fn from(ready: &Ready) -> Self {
        let host = |url: &str| url.trim_start_matches("http://").to_owned();
        Self {
            api: host(&ready.api),
            admin: host(ready.admin.as_deref().unwrap_or_default()),
            agents: ready.agents.clone(),
        }
    }
}

/// A server that runs.
pub struct Server {
    spec: ServerSpec,
    role: Role,
    child: Child,
    ready: Ready,
    /// CPU of earlier incarnations.
    spent: Usage,
}

/// What a server process uses.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Resident set now.
    pub rss_bytes: u64,
    /// User + system time of the whole process.
    pub cpu_seconds: f64,
    /// User + system time of the gateway's shard threads.
    pub gateway_cpu_seconds: f64,
}

/// A fleet joins faster than the default lets agents join: ten thousand at ten a second is a quarter of
/// an hour.
const JOIN_QUICKLY: [&str; 4] = [
    "--set",
    "gateway.enrolments_per_second=1000",
    "--set",
    "gateway.enrolment_burst=1000",
];
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Every shard thread's name starts with this.
const SHARD_THREAD_PREFIX: &str = "shard-";

/// The server under test.
#[derive(Clone, Debug)]
pub enum Target {
    /// Start this one.
    Start(ServerSpec),
    /// Start these, which are one deployment.
    Apart(ApartSpec),
    /// This one runs already.
    Running {
        /// Base URL of its API.
        api: String,
        /// `host:port` for agents.
        agents: String,
        /// An admin token.
        token: String,
        /// Its process, to read its memory and CPU.
        pid: Option<u32>,
    },
}

/// A server that is ours, or somebody else's.
pub enum Subject {
    /// Started by us, and ours to kill.
    Ours(Box<Server>),
    /// The same of a deployment in several processes.
    Apart(Box<Apart>),
    /// Running already; its process, where that is known.
    Theirs(Option<u32>),
}

/// The server under test, ready, and how to reach it.
pub struct Opened {
    /// The server.
    pub subject: Subject,
    /// Base URL of its API.
    pub api: String,
    /// Those of its other API servers.
    pub other_apis: Vec<String>,
    /// Base URLs of the other processes' figures.
    pub other_metrics: Vec<String>,
    /// `host:port` for agents.
    pub agents: String,
    /// An admin token.
    pub token: String,
}

impl Opened {
    /// A client of it, by all its API servers in turn.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn client(&self) -> anyhow::Result<Api> {
        let api = Api::new(&self.api, &self.token)?.with_others(&self.other_apis);
        Ok(api.with_figures_of(&self.other_metrics))
    }
}

impl Target {
    /// What it is started with, beside what the load test itself needs; nothing of a running one.
    pub fn arguments(&self) -> &[String] {
        match self {
            Self::Start(spec) => &spec.arguments,
            Self::Apart(spec) => &spec.server.arguments,
            Self::Running { .. } => &[],
        }
    }

    /// Starts the server where it is to be started.
    ///
    /// # Errors
    /// As [`Server::start`], or when its admin token cannot be read.
    pub async fn open(&self) -> anyhow::Result<Opened> {
        match self {
            Self::Start(spec) => {
                let server = Server::start(spec.clone()).await?;
                let ready = server.ready().clone();
                let file = ready.admin_token_file;
                let token = std::fs::read_to_string(&file)
                    .with_context(|| format!("no admin token in {}", file.display()))?;
                Ok(Opened {
                    subject: Subject::Ours(Box::new(server)),
                    api: ready.api,
                    other_apis: Vec::new(),
                    other_metrics: Vec::new(),
                    agents: ready.agents,
                    token,
                })
            }
            Self::Apart(spec) => spec.open().await,
            Self::Running {
                api,
                agents,
                token,
                pid,
            } => Ok(Opened {
                subject: Subject::Theirs(*pid),
                api: api.clone(),
                other_apis: Vec::new(),
                other_metrics: Vec::new(),
                agents: agents.clone(),
                token: token.clone(),
            }),
        }
    }
}

impl Subject {
    /// What it uses; nothing where that cannot be read.
    pub fn usage(&self) -> Usage {
        match self {
            Self::Ours(server) => server.usage(),
            Self::Apart(servers) => servers.usage(),
            Self::Theirs(Some(pid)) => usage_of(*pid),
            Self::Theirs(None) => Ok(Usage::default()),
        }
        .unwrap_or_default()
    }

    /// Its processes, as far as they are ours to hurt.
    pub(crate) fn servers_mut(&mut self) -> &mut [Server] {
        match self {
            Self::Ours(server) => std::slice::from_mut(&mut **server),
            Self::Apart(servers) => &mut servers.servers,
            Self::Theirs(_) => &mut [],
        }
    }

    /// Stops it, if it is ours.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub async fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Ours(server) => server.stop().await,
            Self::Apart(servers) => servers.stop().await,
            Self::Theirs(_) => Ok(()),
        }
    }
}

impl Server {
    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    /// When the binary cannot be started or ends or says nothing within a minute.
    pub async fn start(spec: ServerSpec) -> anyhow::Result<Self> {
        let child = spawn(&spec, Role::All, &Listens::default())?;
        Self::until_ready(spec, Role::All, child).await
    }

    /// Waits until a process is ready.
    async fn until_ready(spec: ServerSpec, role: Role, mut child: Child) -> anyhow::Result<Self> {
        let ready = wait_ready(&spec, &mut child).await?;
        Ok(Self {
            spec,
            role,
            child,
            ready,
            spent: Usage::default(),
        })
    }

    /// What it said when it was ready.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Which servers it runs.
    pub fn role(&self) -> Role {
        self.role
    }

    /// How it was started.
    pub fn spec(&self) -> &ServerSpec {
        &self.spec
    }

    /// What it uses, earlier incarnations included in the CPU time.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.child.id().context("the server is not running")?;
        let mut usage = usage_of(pid)?;
        usage.cpu_seconds += self.spent.cpu_seconds;
        usage.gateway_cpu_seconds += self.spent.gateway_cpu_seconds;
        Ok(usage)
    }

    /// SIGKILL, as the power does it.
    ///
    /// # Errors
    /// When it was not running.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.spent = self.usage()?;
        self.child.kill().await.context("cannot kill the server")
    }

    /// Starts it again on the same data and the same addresses.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let mut child = spawn(&self.spec, self.role, &Listens::from(&self.ready))?;
        self.ready = wait_ready(&self.spec, &mut child).await?;
        self.child = child;
        Ok(())
    }

    /// SIGSTOP, and SIGCONT after so long: nothing of it runs meanwhile, and it is not told. Dropped
    /// half-way, it stays stopped until it is killed, as it is with the [`Server`].
    ///
    /// # Errors
    /// When it is not running.
    pub async fn pause(&self, time: Duration) -> anyhow::Result<()> {
        let pid = self.pid().context("the server is not running")?;
        rustix::process::kill_process(pid, Signal::STOP)?;
        tokio::time::sleep(time).await;
        Ok(rustix::process::kill_process(pid, Signal::CONT)?)
    }

    /// SIGTERM; waits for an orderly end.
    ///
    /// # Errors
    /// When it does not end within a minute or ends with a failure.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.end().await
    }

    /// The same of one that may be started again.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub async fn end(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.pid() {
            rustix::process::kill_process(pid, Signal::TERM)?;
        }
        let status = tokio::time::timeout(START_TIMEOUT, self.child.wait())
            .await
            .context("the server did not end within a minute of SIGTERM")??;
        if !status.success() {
            bail!(
                "the server ended with {status}; its log is {}",
                self.spec.log.display()
            );
        }
        Ok(())
    }

    /// From its next start on it has this setting, as `KEY=VALUE`.
    pub fn set(&mut self, setting: &str) {
        let setting = ["--set".to_owned(), setting.to_owned()];
        self.spec.arguments.extend(setting);
    }

    /// Its process; nothing when it has ended and that was noticed.
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id()?.cast_signed())
    }
}

fn spawn(spec: &ServerSpec, role: Role, at: &Listens) -> anyhow::Result<Child> {
    std::fs::create_dir_all(&spec.data_dir)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&spec.log)?;
    Command::new(&spec.binary)
        .args(["--output", "json", "serve"])
        .args(role.arguments(at))
        .arg("--data-dir")
        .arg(&spec.data_dir)
        .args(JOIN_QUICKLY)
        .args(&spec.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| {
            format!(
                "cannot start {}; build it with cargo build --release",
                spec.binary.display()
            )
        })
}

/// Waits for the line that it prints when it is ready.
async fn wait_ready(spec: &ServerSpec, child: &mut Child) -> anyhow::Result<Ready> {
    let stdout = child.stdout.take().context("no pipe from the server")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(START_TIMEOUT, lines.next_line())
        .await
        .with_context(|| {
            format!(
                "the server said nothing for a minute; see {}",
                spec.log.display()
            )
        })??;
    let Some(line) = line else {
        let status = child.wait().await?;
        bail!(
            "the server ended at once with {status}; see {}",
            spec.log.display()
        );
    };
    let ready = serde_json::from_str(&line).with_context(|| format!("not a ready line: {line}"))?;
    // Nobody reads on: the server prints one line and keeps quiet, and a pipe holds the rest.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(ready)
}

/// Reads `/proc/PID/{status,stat,task}`.
///
/// # Errors
/// When the process is gone or `/proc` is not there.
pub fn usage_of(pid: u32) -> anyhow::Result<Usage> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(root.join("status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let rss_kib = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .context("no VmRSS in /proc status")?;
    let mut gateway = 0.0;
    for task in std::fs::read_dir(root.join("task"))? {
        let task = task?.path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with(SHARD_THREAD_PREFIX) {
            gateway += cpu_seconds(&task).unwrap_or(0.0);
        }
    }
    Ok(Usage {
        rss_bytes: rss_kib * 1024,
        cpu_seconds: cpu_seconds(&root)?,
        gateway_cpu_seconds: gateway,
    })
}

/// User + system time from a `stat` file (proc(5): fields 14 and 15, in clock ticks).
fn cpu_seconds(dir: &Path) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(dir.join("stat"))?;
    // The second field is the name in parentheses and may hold spaces: count from behind it.
    let rest = stat.rsplit_once(") ").context("unreadable stat")?.1;
    let mut fields = rest.split_whitespace().skip(11).map(str::parse::<u32>);
    let user = fields.next().context("no utime")??;
    let system = fields.next().context("no stime")??;
    let ticks = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    Ok(f64::from(user + system) / f64::from(ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that says that it is a server and does nothing else.
    fn dummy(folder: &Path) -> ServerSpec {
        use std::os::unix::fs::PermissionsExt as _;
        let binary = folder.join("dummy");
        let ready = r#"{"api":"http://127.0.0.1:1","agents":"127.0.0.1:2","admin_token_file":"t"}"#;
        let script = format!("#!/bin/sh\necho '{ready}'\nexec sleep 60\n");
        std::fs::write(&binary, script).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o700)).unwrap();
        ServerSpec {
            binary,
            data_dir: folder.join("data"),
            arguments: Vec::new(),
            log: folder.join("log"),
        }
    }

    /// Whether a process is stopped (proc(5): state `T`).
    fn is_stopped(pid: u32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.contains("State:\tT")
    }

    #[tokio::test]
    async fn a_paused_server_stands_still_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(dummy(folder.path())).await.unwrap();
        let pid = server.child.id().unwrap();
        let halfway = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            is_stopped(pid)
        };
        let (paused, halfway) = tokio::join!(server.pause(Duration::from_millis(600)), halfway);
        paused.unwrap();
        assert!(halfway);
        // The kernel wakes it when it comes to it.
        for _ in 0..100 {
            if !is_stopped(pid) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it is stopped still");
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = usage_of(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 100_000);
        assert!(usage.cpu_seconds >= usage.gateway_cpu_seconds);
    }
}
