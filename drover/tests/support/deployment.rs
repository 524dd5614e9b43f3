//! A real server and real agents, each a process of its own, in a temporary directory.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const DROVER: &str = env!("CARGO_BIN_EXE_drover");
/// Between two looks at something that will be true in a moment.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Looks before giving up: 30 seconds, ten times what a slow machine needs.
const LOOKS_MAX: u32 = 600;

/// Waits for something to become true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    for _ in 0..LOOKS_MAX {
        if look() {
            return;
        }
        std::thread::park_timeout(LOOK_PAUSE);
    }
    panic!("waited in vain for: {what}");
}

/// A process that is not left behind.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// A process that was started elsewhere.
    pub(crate) fn new(child: Child) -> Self {
        Self { child }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process is there");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the end of a process", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it is our child");
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where a server said it is.
#[derive(Clone)]
pub(crate) struct Addresses {
    pub(crate) api: String,
    pub(crate) agents: String,
}

/// A data directory and the server on it.
pub(crate) struct Deployment {
    dir: TempDir,
    pub(crate) server: Running,
    pub(crate) addresses: Addresses,
}

/// A test that fails shows what the server said.
impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            eprintln!("--- the server's log ---\n{log}---");
        }
    }
}

impl Deployment {
    /// A new server on ports that nobody has.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more flags.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // It comes back to them after a crash: they are not among those that outgoing connections are given.
        let ports = testkit::free_ports(2).expect("free ports");
        let [api, agents] = [0, 1].map(|n| testkit::loopback(&ports[n..=n]));
        let (server, addresses) = serve(dir.path(), &api, &agents, flags);
        Self {
            dir,
            server,
            addresses,
        }
    }

    /// Another server on the same data and the same ports, once the first has ended.
    pub(crate) fn start_again(&mut self) {
        let api = self.addresses.api.replace("http://", "");
        let (server, addresses) = serve(self.dir.path(), &api, &self.addresses.agents, &[]);
        self.server = server;
        self.addresses = addresses;
    }

    /// A path in the temporary directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the server keeps its data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// Runs `drover …` against the server.
    pub(crate) fn drover(&self, arguments: &[&str]) -> Output {
        let mut command = command(self.dir.path());
        command.args(["--data-dir", &self.data_dir().to_string_lossy()]);
        command.args(arguments).output().expect("drover runs")
    }

    /// Starts `drover …` against the server, and says nothing of what it prints.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        let child = command(self.dir.path())
            .args(["--data-dir", &self.data_dir().to_string_lossy()])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("drover runs");
        Running { child }
    }

    /// Runs it, for its JSON; it must succeed.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        let output = self.drover(&all);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).expect("it prints JSON")
    }

    /// A join token.
    #[track_caller]
    pub(crate) fn token(&self) -> String {
        let output = self.drover(&["tokens", "create"]);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout)
            .expect("a token is text")
            .trim()
            .to_owned()
    }

    /// Lets a machine join; `name` is its hostname and its state directory.
    pub(crate) fn join(&self, name: &str, token: &str) -> Output {
        let state = self.path(name);
        let mut command = command(self.dir.path());
        command
            .args([
                "agent",
                "join",
                "--server",
                &self.addresses.agents,
                "--token",
                token,
            ])
            .args(["--hostname", name, "--state-dir", &state.to_string_lossy()])
            .args(["--allow", "sh=/bin/sh", "--allow", "echo=/bin/echo"]);
        command.output().expect("drover runs")
    }

    /// Starts the agent of a machine that has joined, and waits for its session.
    #[track_caller]
    pub(crate) fn run_agent(&self, name: &str) -> Running {
        let agent = self.run_agent_unseen(name);
        eventually("the agent's session", || {
            self.agent_state(name) == "connected"
        });
        agent
    }

    /// Starts the agent of a machine that has joined.
    pub(crate) fn run_agent_unseen(&self, name: &str) -> Running {
        let state = self.path(name);
        let log = std::fs::File::create(self.path(&format!("{name}.log"))).expect("a log file");
        let child = command(self.dir.path())
            .args(["agent", "run", "--state-dir", &state.to_string_lossy()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent starts");
        Running { child }
    }

    /// Lets a new agent join and starts it.
    #[track_caller]
    pub(crate) fn agent(&self, name: &str) -> Running {
        let joined = self.join(name, &self.token());
        assert!(joined.status.success(), "{}", said(&joined));
        self.run_agent(name)
    }

    /// `connected`, `disconnected` or `revoked`; empty while there is no such agent.
    pub(crate) fn agent_state(&self, name: &str) -> String {
        let output = self.drover(&["--output", "json", "agents", "list"]);
        let agents: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let state = agents.as_array().and_then(|agents| {
            let agent = agents.iter().find(|agent| agent["hostname"] == name)?;
            Some(agent["state"].as_str()?.to_owned())
        });
        state.unwrap_or_default()
    }

    /// A process's state by its id.
    pub(crate) fn process_state(&self, id: &str) -> String {
        let output = self.drover(&["--output", "json", "processes", "show", id]);
        let process: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        process["state"].as_str().unwrap_or_default().to_owned()
    }

    /// `/metrics` as it is now.
    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics")
    }

    /// What the API answers, as the admin of the first start.
    pub(crate) fn get(&self, path: &str) -> String {
        let reply = self.reply(path);
        let (_, body) = reply.split_once("\r\n\r\n").expect("an answer has a body");
        body.to_owned()
    }

    /// The same with its status and headers.
    pub(crate) fn reply(&self, path: &str) -> String {
        let token = std::fs::read_to_string(self.data_dir().join("admin.token")).expect("a token");
        reply(&self.addresses.api, path, token.trim())
    }

    /// A figure of `/metrics`, over all its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.metrics();
        let lines = page.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// What an agent wrote into its log.
    pub(crate) fn agent_log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }
}

/// A plain HTTP answer.
fn reply(api: &str, path: &str, token: &str) -> String {
    let address = api.strip_prefix("http://").expect("plain HTTP");
    let mut stream = TcpStream::connect(address).expect("the API listens");
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .expect("it takes a request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("it answers");
    reply
}

/// `drover` with nothing of the caller's environment that it would listen to.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(DROVER);
    command.current_dir(dir);
    command.env("XDG_STATE_HOME", dir.join("state"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DROVER_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// Everything that a command said.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn serve(dir: &Path, api: &str, agents: &str, flags: &[&str]) -> (Running, Addresses) {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("server.log"))
        .expect("a log file");
    let mut child = command(dir)
        .args(["serve", "--output", "json", "--shards", "2"])
        .args(["--data-dir", &dir.join("data").to_string_lossy()])
        .args(["--api-listen", api, "--gateway-listen", agents])
        .args(["--set", "admin.listen=127.0.0.1:0"])
        .args(["--set", "gateway.reconnect_spread=500ms"])
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("the server starts");
    let stdout = child.stdout.take().expect("it is piped");
    let server = Running { child };
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("it says where it is");
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
        let log = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
        panic!("the server did not start: {error}\n{log}");
    });
    let text = |key: &str| ready[key].as_str().expect("an address").to_owned();
    let addresses = Addresses {
        api: text("api"),
        agents: text("agents"),
    };
    (server, addresses)
}
