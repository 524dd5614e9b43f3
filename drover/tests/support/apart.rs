//! The servers of a deployment, each a process of its own, with a fleet and what it is to do.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use control::clock::monotonic;

use loadtest::api::{Api, Created, Item, NewProcess};
use loadtest::fleet::{Fleet, FleetSpec};
use loadtest::ledger::Ledger;
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{free_ports, loopback};

use crate::deployment::{Running, command, eventually, said};

pub(crate) const AGENTS: usize = 24;
/// Processes of each round.
const PROCESSES: usize = 240;
/// The shortest processes take so long …
const SERVICE_MS: usize = 200;
/// … and the longest so many times that: at every moment some are under way.
const STEPS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(90);
/// The least that one of two agent servers has when the agents are spread: a third, and not half, since there
/// are few, and a group is moved whole.
const SHARE: usize = AGENTS / 3;

/// A server in a process of its own, which can die and be started again where it was.
pub(crate) struct Server {
    pub(crate) name: String,
    flags: Vec<String>,
    pub(crate) running: Running,
    ready: Value,
}

/// Starts a server; its first line is read later.
fn spawn(name: &str, flags: &[String], work: &Path) -> std::process::Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(work.join(format!("{name}.log")));
    let mut command: Command = command(work);
    command
        .args(["serve", "--output", "json", "--shards", "2", "--data-dir"])
        .arg(work.join(name))
        .args(["--set", "admin.listen=127.0.0.1:0"])
        .args(["--set", "gateway.reconnect_spread=500ms"])
        .args(["--set", "gateway.enrolments_per_second=1000"])
        .args(["--set", "gateway.enrolment_burst=1000"])
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(log.expect("a log file"));
    command.spawn().expect("the server starts")
}

/// Waits until it is ready.
fn ready(mut child: std::process::Child) -> (Running, Value) {
    let stdout = child.stdout.take().expect("it is piped");
    let running = Running::new(child);
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line);
    read.expect("it says where it is");
    let ready = serde_json::from_str(&line);
    (
        running,
        ready.unwrap_or_else(|error| panic!("{error}: {line:?}")),
    )
}

/// Starts a server whose first line says where it is.
pub(crate) fn started(mut command: Command) -> Running {
    command.stdout(Stdio::piped());
    ready(command.spawn().expect("the server starts")).0
}

/// Several processes, a fleet that is none of them, and what is to be done.
pub(crate) struct Apart {
    /// Agent servers alone.
    pub(crate) agents: Vec<Server>,
    /// The first with an API.
    pub(crate) control: Server,
    /// More, on the same store.
    pub(crate) others: Vec<Server>,
    pub(crate) fleet: Fleet,
    pub(crate) work: PathBuf,
    /// Each that there is.
    apis: Vec<Api>,
    ledger: Arc<Ledger>,
    made: usize,
    /// Requests for new processes.
    asked: usize,
    _folder: tempfile::TempDir,
}

/// A test that fails shows what the servers said.
impl Drop for Apart {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in self.servers() {
                eprintln!("--- {} ---\n{}---", server.name, self.log(server));
            }
        }
    }
}

/// `--set` flags.
fn set(key: &str, value: impl std::fmt::Display) -> [String; 2] {
    ["--set".to_owned(), format!("{key}={value}")]
}

/// The flags of an agent server, where these are the ports of all, its own first.
fn agents_flags(gateways: &[u16], link: u16) -> Vec<String> {
    let mut flags = ["--profile", "agent-server", "--gateway-listen"]
        .map(str::to_owned)
        .to_vec();
    flags.push(loopback(&gateways[..1]));
    flags.extend(set("gateway.advertise", loopback(gateways)));
    flags.extend(set("link.listen", loopback(&[link])));
    flags
}

/// The flags of the control side, where these are the ports of all agent servers.
fn control_flags(gateways: &[u16], links: &[u16], process_servers: u32) -> Vec<String> {
    let mut flags = ["--profile", "api-server,process-server"]
        .map(str::to_owned)
        .to_vec();
    flags.extend(set("gateway.advertise", loopback(gateways)));
    flags.extend(set("link.connect", loopback(links)));
    flags.extend(set("process_servers", process_servers));
    flags
}

/// Makes an agent server's identity from that of a server with the authorities, as an operator does.
fn make_identity(work: &Path, from: &str, name: &str) {
    let control = work.join(from);
    eventually("the deployment's identity", || {
        control.join("identity/identity.json").exists()
    });
    let agents = work.join(name);
    let made = std::fs::DirBuilder::new().mode(0o700).create(&agents);
    made.expect("a folder");
    let output = command(work)
        .args(["identity", "agent-server"])
        .arg(agents.join("identity"))
        .arg("--data-dir")
        .arg(&control)
        .output()
        .expect("drover runs");
    assert!(output.status.success(), "{}", said(&output));
}

/// Gives a server the identity of another one.
pub(crate) fn copy_identity(work: &Path, from: &str, to: &str) {
    let (from, to) = (
        work.join(from).join("identity"),
        work.join(to).join("identity"),
    );
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700).recursive(true);
    private.create(&to).expect("a folder");
    for file in std::fs::read_dir(from).expect("an identity") {
        let file = file.expect("a file").path();
        let name = file.file_name().expect("it has a name");
        std::fs::copy(&file, to.join(name)).expect("it is ours");
    }
}

fn text(ready: &Value, key: &str) -> String {
    ready[key].as_str().expect(key).to_owned()
}

impl Apart {
    pub(crate) async fn start(agent_servers: usize, process_servers: u32) -> Self {
        Self::start_with(agent_servers, process_servers, &[]).await
    }

    /// The same with more settings for every process, as `KEY=VALUE`.
    pub(crate) async fn start_with(
        agent_servers: usize,
        process_servers: u32,
        settings: &[String],
    ) -> Self {
        let settings = settings.iter();
        let more = settings.flat_map(|one| ["--set".to_owned(), one.clone()]);
        let more: Vec<String> = more.collect();
        let folder = tempfile::tempdir().expect("a folder");
        let work = folder.path().to_owned();
        let ports = free_ports(2 * agent_servers).expect("free ports");
        let (gateways, links) = ports.split_at(agent_servers);
        // The control side makes the identity, and waits.
        let mut flags = control_flags(gateways, links, process_servers);
        flags.extend(more.iter().cloned());
        let api = ["--api-listen", "127.0.0.1:0"].map(str::to_owned);
        let waiting = spawn("control", &[&flags[..], &api].concat(), &work);
        let mut agents = Vec::new();
        let mut own_first = gateways.to_vec();
        for link in links {
            let name = format!("agents-{}", agents.len());
            make_identity(&work, "control", &name);
            let mut flags = agents_flags(&own_first, *link);
            flags.extend(more.iter().cloned());
            own_first.rotate_left(1);
            agents.push(Server::start(&name, flags, &work));
        }
        let control = Server::with_api("control", flags, waiting);
        Self::assemble(folder, agents, control, Vec::new()).await
    }

    /// Two servers of profile `all` on the store at `store`, with these settings.
    pub(crate) async fn start_redundant(store: &str, settings: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ports = free_ports(4).expect("free ports");
        let (gateways, links) = ports.split_at(2);
        let start = |n: usize| {
            let mut flags = ["--gateway-listen".to_owned(), loopback(&gateways[n..=n])].to_vec();
            let own_first = [gateways[n], gateways[1 - n]];
            flags.extend(set("gateway.advertise", loopback(&own_first)));
            flags.extend(set("link.listen", loopback(&links[n..=n])));
            flags.extend(set("link.connect", loopback(links)));
            flags.extend(set("store", store));
            flags.extend(settings.iter().flat_map(|(key, value)| set(key, value)));
            Server::start_with_api(&format!("all-{n}"), flags, folder.path())
        };
        let first = start(0);
        copy_identity(folder.path(), "all-0", "all-1");
        let second = start(1);
        Self::assemble(folder, Vec::new(), first, vec![second]).await
    }

    /// Two agent servers on the store at `store`, one with an API, which is the first, the other with a process server.
    pub(crate) async fn start_halves(store: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let work = folder.path();
        let ports = free_ports(4).expect("free ports");
        let (gateways, links) = ports.split_at(2);
        let flags = |n: usize, profile: &str| {
            let own_first = [gateways[n], gateways[1 - n]];
            let mut flags = ["--profile", profile, "--gateway-listen"]
                .map(str::to_owned)
                .to_vec();
            flags.push(loopback(&own_first[..1]));
            flags.extend(set("gateway.advertise", loopback(&own_first)));
            flags.extend(set("link.listen", loopback(&links[n..=n])));
            flags.extend(set("link.connect", loopback(links)));
            flags.extend(set("store", store));
            flags
        };
        let api = Server::start_with_api("api", flags(0, "agent-server,api-server"), work);
        copy_identity(work, "api", "processes");
        let processes = flags(1, "agent-server,process-server");
        let processes = Server::start("processes", processes, work);
        Self::assemble(folder, Vec::new(), api, vec![processes]).await
    }

    /// Two servers of each profile on the store at `store`, with these settings. The first is an API server, those
    /// behind it are the other one and two process servers.
    pub(crate) async fn start_distributed(store: &str, settings: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let work = folder.path();
        let ports = free_ports(4).expect("free ports");
        let (gateways, links) = ports.split_at(2);
        let flags = |profile: &str| {
            let mut flags = ["--profile", profile].map(str::to_owned).to_vec();
            flags.extend(set("gateway.advertise", loopback(gateways)));
            flags.extend(set("link.connect", loopback(links)));
            flags.extend(set("store", store));
            flags.extend(settings.iter().flat_map(|(key, value)| set(key, value)));
            flags
        };
        // The first process server makes the identity, and waits for an agent server.
        let first = spawn("processes-0", &flags("process-server"), work);
        let mut agents = Vec::new();
        for n in 0..2 {
            let name = format!("agents-{n}");
            make_identity(work, "processes-0", &name);
            let own_first = [gateways[n], gateways[1 - n]];
            let flags = agents_flags(&own_first, links[n]);
            agents.push(Server::start(&name, flags, work));
        }
        let (running, ready) = ready(first);
        let first = Server {
            name: "processes-0".to_owned(),
            flags: flags("process-server"),
            running,
            ready,
        };
        for name in ["processes-1", "api-0", "api-1"] {
            copy_identity(work, "processes-0", name);
        }
        let second = Server::start("processes-1", flags("process-server"), work);
        let api = |name: &str| Server::start_with_api(name, flags("api-server"), work);
        let (control, other) = (api("api-0"), api("api-1"));
        Self::assemble(folder, agents, control, vec![other, first, second]).await
    }

    /// Enrols a fleet at servers that run.
    async fn assemble(
        folder: tempfile::TempDir,
        agents: Vec<Server>,
        control: Server,
        others: Vec<Server>,
    ) -> Self {
        let work = folder.path().to_owned();
        let token = std::fs::read_to_string(text(&control.ready, "admin_token_file"));
        let token = token.expect("a token");
        let with_api = [&control].into_iter().chain(&others);
        let apis = with_api.filter_map(|server| server.ready["api"].as_str());
        let apis = apis.map(|api| Api::new(api, &token).expect("a client"));
        let apis: Vec<Api> = apis.collect();
        let door = agents.first().unwrap_or(&control);
        let spec = FleetSpec {
            agents: AGENTS,
            server: text(&door.ready, "agents"),
            work_dir: work.clone(),
            steering_hint: true,
        };
        let ledger = Arc::new(Ledger::default());
        let fleet = Fleet::enrol(spec, &apis[0], Arc::clone(&ledger), |_| {});
        let fleet = fleet.await.expect("a fleet");
        fleet.start(0..AGENTS);
        let apart = Self {
            agents,
            control,
            others,
            fleet,
            work,
            apis,
            ledger,
            made: 0,
            asked: 0,
            _folder: folder,
        };
        apart
            .until("all sessions", || apart.fleet.up() == AGENTS)
            .await;
        apart
    }

    /// All of them, those with sessions alone last.
    fn servers(&self) -> impl Iterator<Item = &Server> {
        let with_api = [&self.control].into_iter().chain(&self.others);
        with_api.chain(&self.agents)
    }

    /// Waits until each of two agent servers has its share of the agents.
    pub(crate) async fn until_spread(&self) {
        let spread = || {
            let of_agents = self
                .servers()
                .filter(|server| server.ready["agents"].is_string());
            let sessions: Vec<usize> = of_agents.map(Server::sessions).collect();
            sessions.iter().sum::<usize>() == AGENTS && sessions.iter().all(|one| *one >= SHARE)
        };
        self.until("agents on both", spread).await;
    }

    /// What a server has logged.
    pub(crate) fn log(&self, server: &Server) -> String {
        let file = self.work.join(format!("{}.log", server.name));
        std::fs::read_to_string(file).unwrap_or_default()
    }

    pub(crate) async fn until(&self, what: &str, mut look: impl FnMut() -> bool) {
        let began = monotonic();
        while !look() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes processes as a careful client does: with the same keys until there are answers, of one API after the
    /// other.
    pub(crate) async fn create(&mut self) {
        let ids = self.fleet.ids();
        let items: Vec<Item> = (self.made..self.made + PROCESSES)
            .map(|n| Item {
                idempotency_key: format!("n{n}"),
                process: NewProcess {
                    agent: ids[n % ids.len()].to_string(),
                    kind: "simulated",
                    input: json!({ "service_ms": SERVICE_MS * (1 + n / AGENTS % STEPS) }),
                    deadline_seconds: 300,
                },
            })
            .collect();
        self.made += PROCESSES;
        self.ledger.attempting(PROCESSES as u64);
        let began = monotonic();
        let created = loop {
            self.asked += 1;
            let api = &self.apis[self.asked % self.apis.len()];
            match api.create(&items).await {
                Ok(created)
                    if created
                        .iter()
                        .all(|one| matches!(one, Created::Accepted(_))) =>
                {
                    break created;
                }
                other => assert!(began.elapsed() < PATIENCE, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        for one in created {
            if let Created::Accepted(process) = one {
                self.ledger.accepted(process, monotonic());
            }
        }
    }

    /// Waits until some of what is open has had its effect, and some has not.
    pub(crate) async fn until_half_done(&self) {
        let enough = (self.made - PROCESSES / 2) as u64;
        self.until("half of it", || self.ledger.totals().effects >= enough)
            .await;
        assert!(self.ledger.totals().effects < self.made as u64, "too late");
    }

    /// All that was made has ended well, and was done once.
    pub(crate) async fn check(&self) {
        let began = monotonic();
        loop {
            for process in self.ledger.open() {
                for api in &self.apis {
                    if let Ok(Some(end)) = api.end_of(process).await {
                        self.ledger.ended(process, end, monotonic());
                        break;
                    }
                }
            }
            if self.ledger.open_count() == 0 {
                break;
            }
            let open = self.ledger.open_count();
            assert!(began.elapsed() < PATIENCE, "{open} have not ended");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let totals = self.ledger.totals();
        let sums = (totals.succeeded, totals.lost, totals.duplicate_effects);
        assert_eq!(sums, (self.made as u64, 0, 0), "{totals:?}");
    }

    /// What the command line says, as JSON.
    pub(crate) fn drover(&self, arguments: &[&str]) -> Value {
        let output = command(&self.work)
            .args(["--output", "json"])
            .args(arguments)
            .arg("--data-dir")
            .arg(self.work.join(&self.control.name))
            .output()
            .expect("drover runs");
        let json = serde_json::from_slice(&output.stdout);
        json.unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
    }

    /// The epochs of all groups.
    pub(crate) fn epochs(&self) -> Vec<u64> {
        let groups = self.drover(&["groups", "list"]);
        let groups = groups.as_array().expect("a list").iter();
        groups.filter_map(|group| group["epoch"].as_u64()).collect()
    }

    pub(crate) async fn end(mut self) {
        self.fleet.expect_losses(true);
        let Self {
            control,
            others,
            agents,
            ..
        } = &mut self;
        for server in [control].into_iter().chain(others).chain(agents) {
            server.running.signal(Signal::TERM);
            assert!(server.running.wait().success());
        }
    }
}

impl Server {
    /// Starts one, and waits until it is ready.
    fn start(name: &str, flags: Vec<String>, work: &Path) -> Self {
        let (running, ready) = ready(spawn(name, &flags, work));
        Self {
            name: name.to_owned(),
            flags,
            running,
            ready,
        }
    }

    /// Starts one with an API, whose address stays its own.
    fn start_with_api(name: &str, flags: Vec<String>, work: &Path) -> Self {
        let anywhere = ["--api-listen", "127.0.0.1:0"].map(str::to_owned);
        let starting = spawn(name, &[&flags[..], &anywhere].concat(), work);
        Self::with_api(name, flags, starting)
    }

    /// One with an API, when it is ready.
    fn with_api(name: &str, mut flags: Vec<String>, starting: std::process::Child) -> Self {
        let (running, ready) = ready(starting);
        let address = text(&ready, "api").replace("http://", "");
        flags.extend(["--api-listen".to_owned(), address]);
        Self {
            name: name.to_owned(),
            flags,
            running,
            ready,
        }
    }

    /// What its admin listener answers, without its head where it is well.
    pub(crate) fn asks(&self, path: &str) -> String {
        let url = self.ready["admin"].as_str().expect("it has one");
        let address = url.strip_prefix("http://").expect("plain HTTP");
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// Where process servers reach an agent server.
    pub(crate) fn link(&self) -> String {
        text(&self.ready, "link")
    }

    /// The sum of a metric's samples.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.asks("/metrics");
        let samples = page.lines().filter_map(|line| line.strip_prefix(name));
        let samples = samples.filter(|rest| rest.starts_with([' ', '{']));
        let values = samples.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<u64>().ok());
        values.sum()
    }

    /// The sessions of an agent server.
    pub(crate) fn sessions(&self) -> usize {
        usize::try_from(self.metric("drover_gateway_sessions")).expect("a few")
    }

    /// Starts it again where it was.
    pub(crate) fn start_again(&mut self, work: &Path) {
        (self.running, self.ready) = ready(spawn(&self.name, &self.flags, work));
    }
}
