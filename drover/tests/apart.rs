//! The agent server in one process, API and process servers in another, on real sockets: each of them dies
//! as the power does it while work is under way, and everything is done once.

#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use control::clock::{self, monotonic};
use control::store::Store;
use deployment::{Running, command, eventually, said};
use loadtest::api::{Api, Created, Item, NewProcess};
use loadtest::fleet::{Fleet, FleetSpec};
use loadtest::ledger::Ledger;
use rustix::process::Signal;
use serde_json::{Value, json};

const AGENTS: usize = 24;
/// Processes of each round.
const PROCESSES: usize = 240;
/// The shortest processes take so long …
const SERVICE_MS: usize = 200;
/// … and the longest so many times that: at every moment some are under way.
const STEPS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(90);

/// A server in a process of its own, which can die and be started again where it was.
struct Server {
    flags: Vec<String>,
    running: Running,
    ready: Value,
}

/// Starts a server; its first line is read later.
fn spawn(flags: &[String], work: &Path, log: &str) -> std::process::Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(work.join(log));
    let mut command: Command = command(work);
    command
        .args(["serve", "--output", "json", "--shards", "2"])
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

/// Two processes, a fleet that is neither, and what is to be done.
struct Apart {
    agents: Server,
    control: Server,
    api: Api,
    fleet: Fleet,
    ledger: Arc<Ledger>,
    made: usize,
    work: PathBuf,
    _folder: tempfile::TempDir,
}

/// A test that fails shows what the servers said.
impl Drop for Apart {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["agents.log", "control.log"] {
                eprintln!("--- {name} ---\n{}---", self.log(name));
            }
        }
    }
}

/// A UDP port of loopback that nobody had a moment ago.
fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.local_addr().expect("its address").port()
}

/// The flags of both sides: those of the agent server first.
fn flags(work: &Path, link: u16, process_servers: u32) -> [Vec<String>; 2] {
    let data = |name: &str| work.join(name).to_string_lossy().into_owned();
    let own = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect();
    let (agents, control) = (data("agents"), data("control"));
    let listen = format!("link.listen=127.0.0.1:{link}");
    let connect = format!("link.connect=127.0.0.1:{link}");
    let servers = format!("process_servers={process_servers}");
    [
        own(&[
            "--profile",
            "agent-server",
            "--data-dir",
            &agents,
            "--set",
            &listen,
        ]),
        own(&[
            "--profile",
            "api-server,process-server",
            "--data-dir",
            &control,
            "--set",
            &connect,
            "--set",
            &servers,
        ]),
    ]
}

/// Makes the agent server's identity, as an operator does.
fn make_identity(work: &Path) {
    let control = work.join("control");
    eventually("the deployment's identity", || {
        control.join("identity/identity.json").exists()
    });
    let agents = work.join("agents");
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

impl Apart {
    async fn start(process_servers: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let work = folder.path().to_owned();
        let [mut agents, mut control] = flags(&work, free_port(), process_servers);
        let local = ["--gateway-listen", "127.0.0.1:0"].map(str::to_owned);
        // The control side makes the identity, and waits.
        let api = ["--api-listen", "127.0.0.1:0"].map(str::to_owned);
        let waiting = spawn(&[&control[..], &api].concat(), &work, "control.log");
        make_identity(&work);
        let (running, here) = ready(spawn(&[&agents[..], &local].concat(), &work, "agents.log"));
        let text = |ready: &Value, key: &str| ready[key].as_str().expect(key).to_owned();
        agents.extend(["--gateway-listen".to_owned(), text(&here, "agents")]);
        let agents = Server {
            flags: agents,
            running,
            ready: here,
        };
        let (running, here) = ready(waiting);
        let address = text(&here, "api").replace("http://", "");
        control.extend(["--api-listen".to_owned(), address]);
        let control = Server {
            flags: control,
            running,
            ready: here,
        };
        let token = std::fs::read_to_string(text(&control.ready, "admin_token_file"));
        let api = Api::new(&text(&control.ready, "api"), &token.expect("a token"));
        let api = api.expect("a client");
        let spec = FleetSpec {
            agents: AGENTS,
            server: text(&agents.ready, "agents"),
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
            api,
            fleet,
            ledger,
            made: 0,
            work,
            _folder: folder,
        };
        apart
            .until("all sessions", || apart.fleet.up() == AGENTS)
            .await;
        apart
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.work.join(name)).unwrap_or_default()
    }

    async fn until(&self, what: &str, mut look: impl FnMut() -> bool) {
        let began = monotonic();
        while !look() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes processes as a careful client does: with the same keys until there are answers.
    async fn create(&mut self) {
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
    async fn until_half_done(&self) {
        let enough = (self.made - PROCESSES / 2) as u64;
        self.until("half of it", || self.ledger.totals().effects >= enough)
            .await;
        assert!(self.ledger.totals().effects < self.made as u64, "too late");
    }

    /// All that was made has ended well, and was done once.
    async fn check(&self) {
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

    /// The highest epoch of a group.
    fn epoch(&self) -> u64 {
        let output = command(&self.work)
            .args(["--output", "json", "groups", "list", "--data-dir"])
            .arg(self.work.join("control"))
            .output();
        let groups: Value =
            serde_json::from_slice(&output.expect("drover runs").stdout).expect("it prints JSON");
        let groups = groups.as_array().expect("a list").iter();
        let epochs = groups.filter_map(|group| group["epoch"].as_u64());
        epochs.max().expect("there are groups")
    }

    async fn end(mut self) {
        self.fleet.expect_losses(true);
        for server in [&mut self.control, &mut self.agents] {
            server.running.signal(Signal::TERM);
            assert!(server.running.wait().success());
        }
    }
}

impl Server {
    /// What its admin listener answers, without its head where it is well.
    fn asks(&self, path: &str) -> String {
        let url = self.ready["admin"].as_str().expect("it has one");
        let address = url.strip_prefix("http://").expect("plain HTTP");
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    fn start_again(&mut self, work: &Path, log: &str) {
        (self.running, self.ready) = ready(spawn(&self.flags, work, log));
    }
}

async fn whichever_dies(process_servers: u32) {
    let mut apart = Box::pin(Apart::start(process_servers)).await;
    let work = apart.work.clone();
    let first = apart.epoch();

    let ready = apart.agents.asks("/readyz");
    let words = format!("{process_servers} are here");
    assert!(
        ready.starts_with("HTTP/1.0 200") && ready.contains(&words),
        "{ready}"
    );
    let figures = apart.agents.asks("/metrics");
    assert!(figures.contains("drover_gateway_sessions"), "{figures}");

    apart.create().await;
    apart.until_half_done().await;
    apart.control.running.kill();
    // Once it is started again before the agent server knows, and once after.
    if process_servers > 1 {
        let alone = || {
            let ready = apart.agents.asks("/readyz");
            ready.starts_with("HTTP/1.0 503") && ready.contains("none is here")
        };
        apart.until("the agent server knows", alone).await;
    }
    apart.control.start_again(&work, "control.log");
    apart.check().await;
    assert_eq!(
        apart.fleet.lost(),
        0,
        "no session ended with the control side"
    );
    assert_eq!(apart.epoch(), first, "it is the same run of the gateway");

    apart.create().await;
    apart.until_half_done().await;
    apart.fleet.expect_losses(true);
    apart.agents.running.kill();
    apart.agents.start_again(&work, "agents.log");
    apart.check().await;
    assert_eq!(apart.epoch(), first + 1, "another run, another epoch");
    apart.until("sessions anew", || apart.fleet.renewed()).await;
    assert!(
        apart
            .log("control.log")
            .contains("the agent server is gone")
    );

    apart.create().await;
    apart.check().await;
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_side_dies_all_processes_are_done_once() {
    whichever_dies(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_several_process_servers() {
    whichever_dies(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_revoked_while_the_agent_server_could_not_be_told_is_out() {
    let mut apart = Box::pin(Apart::start(1)).await;
    let work = apart.work.clone();
    // The store has it, and nobody has told the gateway: as when the control side dies in between.
    apart.control.running.kill();
    let agent = apart.fleet.ids()[0];
    let store = Store::open("sqlite:", &work.join("control")).await;
    let store = store.expect("the control side's store");
    let revoked = store.revoke_agent(agent, "ann".to_owned(), clock::now());
    revoked.await.expect("it is written");
    store.close().await;
    apart.fleet.expect_losses(true);
    apart.control.start_again(&work, "control.log");
    apart
        .until("its session's end", || apart.fleet.up() == AGENTS - 1)
        .await;
    apart.end().await;
}
