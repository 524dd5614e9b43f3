//! Agent servers and the rest of a deployment, each a process of its own, with a fleet and what it is to do.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
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

use crate::deployment::{Running, command, eventually, said};

pub(crate) const AGENTS: usize = 24;
/// Processes of each round.
const PROCESSES: usize = 240;
/// The shortest processes take so long …
const SERVICE_MS: usize = 200;
/// … and the longest so many times that: at every moment some are under way.
const STEPS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(90);

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

/// Several processes, a fleet that is none of them, and what is to be done.
pub(crate) struct Apart {
    /// Agent servers.
    pub(crate) agents: Vec<Server>,
    /// API and process servers.
    pub(crate) control: Server,
    pub(crate) fleet: Fleet,
    pub(crate) work: PathBuf,
    api: Api,
    ledger: Arc<Ledger>,
    made: usize,
    _folder: tempfile::TempDir,
}

/// A test that fails shows what the servers said.
impl Drop for Apart {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in self.agents.iter().chain([&self.control]) {
                eprintln!("--- {} ---\n{}---", server.name, self.log(server));
            }
        }
    }
}

/// UDP ports of loopback that nobody had a moment ago.
fn free_ports(count: usize) -> Vec<u16> {
    let open = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let sockets: Vec<_> = std::iter::repeat_with(open).take(count).collect();
    let port = |socket: &UdpSocket| socket.local_addr().expect("its address").port();
    sockets.iter().map(port).collect()
}

/// `127.0.0.1:PORT`, of each, with commas.
fn loopback(ports: &[u16]) -> String {
    let all: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    all.join(",")
}

/// The flags of an agent server, where these are the ports of all, its own first.
fn agents_flags(gateways: &[u16], link: u16) -> Vec<String> {
    let set = |key: &str, value: String| ["--set".to_owned(), format!("{key}={value}")];
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
    let set = |key: &str, value: String| ["--set".to_owned(), format!("{key}={value}")];
    let mut flags = ["--profile", "api-server,process-server"]
        .map(str::to_owned)
        .to_vec();
    flags.extend(set("gateway.advertise", loopback(gateways)));
    flags.extend(set("link.connect", loopback(links)));
    flags.extend(set("process_servers", process_servers.to_string()));
    flags
}

/// Makes an agent server's identity, as an operator does.
fn make_identity(work: &Path, name: &str) {
    let control = work.join("control");
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

fn text(ready: &Value, key: &str) -> String {
    ready[key].as_str().expect(key).to_owned()
}

impl Apart {
    pub(crate) async fn start(agent_servers: usize, process_servers: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let work = folder.path().to_owned();
        let ports = free_ports(2 * agent_servers);
        let (gateways, links) = ports.split_at(agent_servers);
        // The control side makes the identity, and waits.
        let mut flags = control_flags(gateways, links, process_servers);
        let api = ["--api-listen", "127.0.0.1:0"].map(str::to_owned);
        let waiting = spawn("control", &[&flags[..], &api].concat(), &work);
        let mut agents = Vec::new();
        let mut own_first = gateways.to_vec();
        for link in links {
            let name = format!("agents-{}", agents.len());
            make_identity(&work, &name);
            let flags = agents_flags(&own_first, *link);
            own_first.rotate_left(1);
            let (running, ready) = ready(spawn(&name, &flags, &work));
            agents.push(Server {
                name,
                flags,
                running,
                ready,
            });
        }
        let (running, here) = ready(waiting);
        let address = text(&here, "api").replace("http://", "");
        flags.extend(["--api-listen".to_owned(), address]);
        let control = Server {
            name: "control".to_owned(),
            flags,
            running,
            ready: here,
        };
        let token = std::fs::read_to_string(text(&control.ready, "admin_token_file"));
        let api = Api::new(&text(&control.ready, "api"), &token.expect("a token"));
        let api = api.expect("a client");
        let spec = FleetSpec {
            agents: AGENTS,
            server: text(&agents[0].ready, "agents"),
            work_dir: work.clone(),
            steering_hint: true,
        };
        let ledger = Arc::new(Ledger::default());
        let fleet = Fleet::enrol(spec, &api, Arc::clone(&ledger), |_| {});
        let fleet = fleet.await.expect("a fleet");
        fleet.start(0..AGENTS);
        let apart = Self {
            agents,
            control,
            fleet,
            work,
            api,
            ledger,
            made: 0,
            _folder: folder,
        };
        apart
            .until("all sessions", || apart.fleet.up() == AGENTS)
            .await;
        apart
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

    /// Makes processes as a careful client does: with the same keys until there are answers.
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
            match self.api.create(&items).await {
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
                if let Ok(Some(end)) = self.api.end_of(process).await {
                    self.ledger.ended(process, end, monotonic());
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
            .arg(self.work.join("control"))
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
            control, agents, ..
        } = &mut self;
        for server in [control].into_iter().chain(agents) {
            server.running.signal(Signal::TERM);
            assert!(server.running.wait().success());
        }
    }
}

impl Server {
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

    /// The sessions of an agent server.
    pub(crate) fn sessions(&self) -> usize {
        let page = self.asks("/metrics");
        let lines = page
            .lines()
            .filter(|line| line.starts_with("drover_gateway_sessions{"));
        let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
        counts.sum()
    }

    /// Starts it again where it was.
    pub(crate) fn start_again(&mut self, work: &Path) {
        (self.running, self.ready) = ready(spawn(&self.name, &self.flags, work));
    }
}
