//! Lines of demand through the whole house: store, process server, link, gateway, agent. Server and agent
//! live in this process, so that limits can be set on the link itself.

use std::sync::Arc;
use std::time::Duration;

use control::Control;
use control::downlink::{End, Ends, Link, LinkFull, Wake};
use control::enrol::EnrolConfig;
use control::identity::Identity;
use control::process::{Plan, PlanOperation, PlanStep, State};
use control::store::Store;
use control::store::processes::{Creation, NewProcess};
use gateway::{DatapathKind, Gateway, Handle, ParkKind, Secrets, SendError, TlsMaterial};
use loadtest::api::Api;
use loadtest::fleet::{Fleet, FleetSpec};
use loadtest::ledger::Ledger;
use protocol::flow::{Limit, LimitKey};
use protocol::ids::{AgentId, GatewayId, ProcessId, ServerId};
use protocol::link::{Event, Request};

const DOMAIN: &str = "lines.example";
/// Longer than any look of this test.
const FOREVER_MS: u32 = 3_600_000;

struct Local(GatewayId, Handle);

impl Link for Local {
    fn gateway(&self) -> GatewayId {
        self.0
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        match self.1.send(request) {
            Err(SendError::Full(request)) => Err(LinkFull(request)),
            Ok(()) | Err(SendError::Stopped) => Ok(()),
        }
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        self.1.receive(out, max)
    }
}

/// A server, and one agent that takes sixteen operations at once.
struct House {
    control: Control,
    gateway: Gateway,
    store: Store,
    fleet: Fleet,
    directory: tempfile::TempDir,
}

fn gateway_config(identity: &Identity, directory: &std::path::Path) -> gateway::Config {
    let tls = identity.gateway_tls().expect("the identity is new");
    gateway::Config {
        listen: ([127, 0, 0, 1], 0).into(),
        shards: 1,
        datapath: DatapathKind::Auto,
        park: ParkKind::default(),
        pin_threads: false,
        tls: TlsMaterial {
            chain: tls.chain,
            key: tls.key,
            agent_roots: tls.agent_roots,
        },
        secrets: Secrets {
            connection_ids: [1; 32],
            stateless_reset: [2; 32],
            tokens: [3; 32],
        },
        domain: DOMAIN.to_owned(),
        gateway: tls.gateway,
        lock_file: directory.join("gateway.lock"),
        admission: gateway::AdmissionConfig::default(),
        advertise: Vec::new(),
        reconnect_spread: None,
        adaptive_limits: false,
    }
}

fn control_config(directory: &std::path::Path) -> control::Config {
    control::Config {
        data_dir: directory.to_owned(),
        api: control::api::ApiConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            ..control::api::ApiConfig::default()
        },
        enrol: EnrolConfig {
            addresses: Vec::new(),
            certificate_life: Duration::from_secs(24 * 3600),
        },
        kinds: control::kinds::Kinds::default(),
        retention: control::store::log::Retention::default(),
        metrics: Vec::new(),
        gateway: None,
        times: Vec::new(),
        histogram_log: control::telemetry::LogConfig::default(),
        webhooks: control::webhooks::WebhooksConfig::default(),
        locks: control::coordination::LocksUrl::Sql,
        events: control::coordination::EventsUrl::Local,
        gateways: None,
        ready: Vec::new(),
        runs: control::Runs {
            api: true,
            processes: true,
        },
    }
}

impl House {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a folder");
        let path = directory.path();
        let identity = Identity::open_or_create(&path.join("identity"), DOMAIN);
        let identity = identity.expect("an identity");
        let store = Store::open("sqlite:", path).await.expect("a store");
        let wake = Wake::new();
        let config = gateway_config(&identity, path);
        let run = config.gateway;
        let gateway = gateway::start(config, wake.callback()).expect("a gateway");
        let end = End {
            server: ServerId(1),
            link: Arc::new(Local(run, gateway.handle())),
            wake,
        };
        let told = control_config(path);
        let control = control::start(told, Arc::new(identity), store.clone(), Ends::One(end)).await;
        let control = control.expect("a control plane");
        let token = std::fs::read_to_string(path.join(control::api::ADMIN_TOKEN_FILE));
        let base = format!(
            "http://{}",
            control.api().expect("an API").address().address
        );
        let api = Api::new(&base, &token.expect("a token")).expect("a client");
        let spec = FleetSpec {
            agents: 1,
            server: gateway.local_addr().to_string(),
            work_dir: path.to_owned(),
            steering_hint: true,
        };
        let fleet = Fleet::enrol(spec, &api, Arc::new(Ledger::default()), |_| {});
        let fleet = fleet.await.expect("an agent");
        fleet.start(0..1);
        Self {
            control,
            gateway,
            store,
            fleet,
            directory,
        }
    }

    fn agent(&self) -> AgentId {
        self.fleet.ids()[0]
    }

    /// A process of one step of this class that runs so long.
    fn process(&self, class: Option<&str>, service_ms: u32) -> NewProcess {
        let deadline = control::clock::now().plus(Duration::from_secs(600));
        let step = PlanStep {
            name: "work".to_owned(),
            work: PlanOperation {
                operation: "simulated".to_owned(),
                input: format!("{{\"service_ms\":{service_ms}}}"),
                timeout: Duration::from_secs(600),
            },
            class: class.map(str::to_owned),
            resources: Vec::new(),
            undo: None,
        };
        NewProcess {
            plan: Some(Plan { steps: vec![step] }),
            ..NewProcess::of_driver(self.agent(), "house", "{}", deadline)
        }
    }

    async fn create(&self, class: Option<&str>, service_ms: u32) -> ProcessId {
        let process = self.process(class, service_ms);
        let made = self.control.engine().create(vec![process]).await;
        match made.expect("it is made").swap_remove(0) {
            Creation::Created(record) => record.id,
            other => panic!("{other:?}"),
        }
    }

    async fn state(&self, process: ProcessId) -> State {
        let record = self.store.process(process).await.expect("the store works");
        record.expect("it is there").state
    }

    async fn until(&self, process: ProcessId, state: State) {
        for _ in 0..600 {
            if self.state(process).await == state {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never {state}, but {}", self.state(process).await);
    }

    async fn end(self) {
        self.fleet.stop().await;
        self.control.drain(Duration::from_secs(10)).await;
        let stopped = tokio::task::spawn_blocking(|| self.gateway.stop()).await;
        stopped.expect("no panic").expect("it stops in order");
        drop(self.directory);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_one_sort_of_work_holds_up_that_sort_and_no_other() {
    let house = Box::pin(House::start()).await;
    let limits = vec![Limit {
        key: LimitKey::Work("build".to_owned()),
        min: 1,
        max: 1,
        pin: None,
    }];
    let engine = house.control.engine();
    engine
        .send(Request::SetLimits { limits })
        .expect("there is room");
    let first = house.create(Some("build"), FOREVER_MS).await;
    house.until(first, State::Running).await;
    let second = house.create(Some("build"), FOREVER_MS).await;
    // More of them than are kept in memory or stated at once.
    let many = (0..300).map(|_| house.process(Some("build"), FOREVER_MS));
    let made = engine.create(many.collect()).await.expect("they are made");
    assert!(made.iter().all(|made| matches!(made, Creation::Created(_))));
    // The agent has room for fifteen more; each of these has come and gone while the second build waits.
    for class in [None, Some("migrate"), None, Some("migrate")] {
        let other = house.create(class, 1).await;
        house.until(other, State::Succeeded).await;
    }
    assert_eq!(house.state(first).await, State::Running);
    assert_eq!(house.state(second).await, State::Ready);
    let waits = engine.waiting_on(second, house.agent()).await;
    let Ok(Some(control::dispatch::WaitingOn::Host(queued))) = waits else {
        panic!("{waits:?}");
    };
    let line = queued.line.expect("it is in memory");
    assert_eq!((line.work.as_str(), queued.position), ("build", 1));

    engine.cancel(first).await.expect("it is told");
    house.until(first, State::Cancelled).await;
    house.until(second, State::Running).await;
    house.end().await;
}
