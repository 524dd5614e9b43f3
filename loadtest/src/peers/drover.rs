//! Drover itself: the gateway on one shard, and the agent's own session code.
//!
//! The generator takes the control plane's place at the gateway's real handle and leads every command
//! through its whole life (a permit, offered or asked for; dispatch, accepted, finished, forget), but keeps nothing on
//! disk; nor do the other peers. It runs on tokio, as the control plane does, and is on the server's
//! bill. Agents journal as always, to memory (`/dev/shm`).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::driver::{Driver, Drivers, Job, Lost, Recovered};
use agent::transport::SilenceableEndpoint;
use agent::{Agent, AgentParts, Identity, Journal, Observer, Profile, SessionEnd, Trust};
use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use gateway::{
    AdmissionConfig, Config, DatapathKind, Handle, ParkKind, Secrets, SendError, TlsMaterial,
};
use protocol::agent::Welcome;
use protocol::flow::Demand;
use protocol::ids::{
    AgentId, Epoch, Fence, GatewayId, GrantId, GroupId, OperationId, ProcessId, ServerId, Slot,
};
use protocol::limits::CAPACITY_MAX;
use protocol::link::{Event, Request, Target};
use protocol::operation::{Command, Outcome, OutcomeStatus};
use tokio::runtime;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::load::Ticket;
use super::material::{self, Material};
use super::orders::{self, Held};
use super::{CONNECTING_MAX, PAYLOAD_BYTES, Peer, Role, Server};

/// Drover as it is.
pub(super) const DROVER: Peer = Peer {
    name: "drover",
    about: "Drover's gateway, one shard, driven over its handle; agents with a journal in memory",
    server: Server::Library(serve),
    clients,
};

/// The same, with shards that sleep in the kernel directly.
pub(super) const DROVER_DIRECT: Peer = Peer {
    name: "drover-direct",
    about: "Drover as above, its shard parked in its own ring instead of in monoio",
    server: Server::Library(serve_direct),
    clients,
};

/// Agents that share a socket, as in the fleet of `hold`, and a journal. An agent has a journal of
/// its own; were all in one, each would wait at every compaction for the results of all.
const AGENTS_PER_SOCKET: usize = 500;
/// All agents are in this group.
const GROUP: GroupId = GroupId(Uuid::from_u128(1));
/// The group's place.
const SLOT: Slot = Slot(0);
/// The group's epoch.
const EPOCH: Epoch = Epoch(1);
/// Every operation's fence: none is sent twice.
const FENCE: Fence = Fence(1);
/// The kind of every command.
const KIND: &str = "echo";
/// Far in the future, in milliseconds since the Unix epoch.
const DEADLINE_MS: u64 = 4_000_000_000_000;
/// Events taken at once.
const EVENTS_MAX: usize = 1024;

fn serve(role: Role) -> anyhow::Result<()> {
    serve_parked(role, ParkKind::Monoio)
}

fn serve_direct(role: Role) -> anyhow::Result<()> {
    serve_parked(role, ParkKind::Direct)
}

fn serve_parked(role: Role, park: ParkKind) -> anyhow::Result<()> {
    let woken = Arc::new(Notify::new());
    let wake = Arc::clone(&woken);
    let config = config(&role.material, &role.dir, role.address, park);
    let gateway = gateway::start(config, Arc::new(move || wake.notify_one()))?;
    let control = Control::new(gateway.handle(), &role.material);
    let address = gateway.local_addr();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        control
            .send(Request::AssignGroup {
                group: GROUP,
                slot: SLOT,
                epoch: EPOCH,
            })
            .await;
        tokio::select! {
            ended = orders::follow_server(role.orders, address, &control) => ended,
            () = control.follow(&woken) => Ok(()),
        }
    })?;
    Ok(gateway.stop()?)
}

fn config(material: &Material, dir: &Path, listen: SocketAddr, park: ParkKind) -> Config {
    // Newcomers come as fast as at the other peers, which have no door.
    let newcomers = 100_000;
    let connecting = CONNECTING_MAX * 8;
    Config {
        listen,
        shards: 1,
        datapath: DatapathKind::Uring,
        park,
        pin_threads: true,
        tls: TlsMaterial {
            chain: material.server().chain(),
            key: material.server().key().into(),
            agent_roots: vec![material.authority()],
        },
        secrets: Secrets {
            connection_ids: rand::random(),
            stateless_reset: rand::random(),
            tokens: rand::random(),
        },
        domain: material::DOMAIN.to_owned(),
        gateway: GatewayId(Uuid::from_u128(1)),
        lock_file: dir.join("gateway.lock"),
        admission: AdmissionConfig {
            handshakes_per_second: newcomers,
            handshake_burst: newcomers,
            half_open_max: connecting,
            half_open_retry: connecting,
            ..AdmissionConfig::default()
        },
        advertise: Vec::new(),
        reconnect_spread: Some(Duration::from_secs(5)),
        adaptive_limits: true,
    }
}

/// The control plane's place at the gateway's handle.
struct Control {
    handle: Handle,
    pins: Vec<protocol::identity::KeyHash>,
    admitted: Cell<usize>,
    sessions: Cell<usize>,
    /// Commands for an agent that no permit was granted for yet.
    waiting: RefCell<HashMap<AgentId, VecDeque<Ticket>>>,
    /// Permits that were offered before anybody asked.
    offers: RefCell<HashMap<AgentId, GrantId>>,
    /// Commands that were dispatched.
    flying: RefCell<HashMap<OperationId, Ticket>>,
    next: Cell<u128>,
}

impl Control {
    fn new(handle: Handle, material: &Material) -> Self {
        Self {
            handle,
            pins: material.clients().iter().map(|c| c.pin()).collect(),
            admitted: Cell::new(0),
            sessions: Cell::new(0),
            waiting: RefCell::default(),
            offers: RefCell::default(),
            flying: RefCell::default(),
            next: Cell::new(1),
        }
    }

    /// Sends a request that must arrive, however full the mailbox is.
    async fn send(&self, mut request: Request) {
        while let Err(SendError::Full(again)) = self.handle.send(request) {
            request = *again;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends a request of the load; one that finds a full mailbox is lost.
    fn send_now(&self, request: Request) {
        if let Err(error) = self.handle.send(request) {
            tracing::warn!(%error, "a request was lost");
        }
    }

    /// Takes events until the gateway stops.
    async fn follow(&self, woken: &Notify) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !self.handle.is_stopped() {
            woken.notified().await;
            while self.handle.receive(&mut events, EVENTS_MAX) > 0 {
                events.drain(..).for_each(|event| self.handle_event(event));
            }
        }
    }

    fn handle_event(&self, event: Event) {
        match event {
            Event::SessionUp(_) => self.sessions.set(self.sessions.get() + 1),
            Event::SessionDown { reason, .. } => {
                self.sessions.set(self.sessions.get().saturating_sub(1));
                tracing::warn!(?reason, "a session was lost");
            }
            Event::Granted {
                target,
                grant,
                permits,
                ..
            } => self.handle_grant(target, grant, permits),
            Event::Offered { target, grant, .. } => self.handle_offer(target, grant),
            Event::Withdrawn { target, grant } => {
                let mut offers = self.offers.borrow_mut();
                if offers.get(&target.agent) == Some(&grant) {
                    offers.remove(&target.agent);
                }
            }
            Event::Finished {
                target, operation, ..
            } => {
                if let Some(ticket) = self.flying.borrow_mut().remove(&operation) {
                    ticket.answered();
                }
                self.send_now(Request::Forget {
                    target,
                    operations: vec![operation],
                });
            }
            Event::Accepted { .. } | Event::Progress { .. } => {}
            other => tracing::warn!(?other, "not what a fair run brings"),
        }
    }

    fn handle_grant(&self, target: Target, grant: GrantId, permits: u32) {
        let mut waiting = self.waiting.borrow_mut();
        let mut unused = permits;
        if let Some(queue) = waiting.get_mut(&target.agent) {
            while unused > 0
                && let Some(ticket) = queue.pop_front()
            {
                unused -= 1;
                self.dispatch(target, grant, ticket);
            }
            if queue.is_empty() {
                waiting.remove(&target.agent);
            }
        }
        if unused > 0 {
            self.send_now(Request::ReturnPermits {
                target,
                grant,
                unused,
            });
        }
    }

    fn handle_offer(&self, target: Target, grant: GrantId) {
        let mut waiting = self.waiting.borrow_mut();
        match waiting.get_mut(&target.agent).and_then(VecDeque::pop_front) {
            Some(ticket) => self.dispatch(target, grant, ticket),
            None => {
                self.offers.borrow_mut().insert(target.agent, grant);
            }
        }
    }

    fn dispatch(&self, target: Target, grant: GrantId, ticket: Ticket) {
        let n = self.next.get();
        self.next.set(n + 1);
        let operation = OperationId::new(ProcessId(Uuid::from_u128(n)), 0);
        self.flying.borrow_mut().insert(operation, ticket);
        self.send_now(Request::Dispatch {
            target,
            grant,
            epoch: EPOCH,
            command: Box::new(Command {
                operation,
                fence: FENCE,
                kind: KIND.to_owned(),
                input: Bytes::copy_from_slice(&[0xc0; PAYLOAD_BYTES]),
                deadline_ms: DEADLINE_MS,
            }),
        });
    }
}

impl Held for Control {
    fn count(&self) -> usize {
        self.sessions.get()
    }

    async fn expect(&self, sessions: usize) {
        for n in self.admitted.get()..sessions.min(self.pins.len()) {
            self.send(Request::AdmitAgent {
                target: target(n),
                keys: vec![self.pins[n]],
            })
            .await;
            self.admitted.set(n + 1);
        }
    }

    fn command(&self, session: usize, ticket: Ticket) {
        let target = target(session);
        if let Some(grant) = self.offers.borrow_mut().remove(&target.agent) {
            return self.dispatch(target, grant, ticket);
        }
        let mut waiting = self.waiting.borrow_mut();
        let queue = waiting.entry(target.agent).or_default();
        queue.push_back(ticket);
        let ready = u32::try_from(queue.len()).unwrap_or(u32::MAX);
        self.send_now(Request::Demand {
            target,
            server: ServerId(1),
            lines: vec![Demand::of(KIND, ready)],
        });
    }
}

fn target(n: usize) -> Target {
    Target {
        agent: material::agent(n),
        group: GROUP,
        slot: SLOT,
    }
}

fn clients(role: Role) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let memory = Path::new("/dev/shm");
        let place = match memory.is_dir() {
            true => tempfile::tempdir_in(memory)?,
            false => tempfile::tempdir()?,
        };
        let fleet = Fleet::new(&role.material, place.path(), role.address)?;
        let connect = |n: usize| fleet.start(n);
        orders::follow_clients(role.orders, role.address, connect).await
    })
}

/// What all agents share.
struct Fleet<'a> {
    material: &'a Material,
    trust: Arc<Trust>,
    journals: Vec<Journal>,
    drivers: Arc<Drivers>,
    profile: Arc<Profile>,
    sockets: Vec<SilenceableEndpoint>,
    server: SocketAddr,
}

impl<'a> Fleet<'a> {
    fn new(material: &'a Material, place: &Path, server: SocketAddr) -> anyhow::Result<Self> {
        let sockets = material.clients().len().div_ceil(AGENTS_PER_SOCKET);
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self {
            material,
            trust: Arc::new(Trust::new(&[material.authority()])?),
            journals: (0..sockets)
                .map(|n| Journal::open(&place.join(format!("journal-{n}"))))
                .collect::<Result<_, _>>()?,
            drivers: Arc::new(Drivers::new().with(KIND, Echo)),
            profile: Arc::new(Profile {
                capacity: CAPACITY_MAX,
                hostname: "compare".to_owned(),
                software: concat!("drover-loadtest/", env!("CARGO_PKG_VERSION")).to_owned(),
                labels: Vec::new(),
            }),
            sockets: (0..sockets)
                .map(|_| SilenceableEndpoint::bind(any_port))
                .collect::<Result<_, _>>()?,
            server,
        })
    }

    /// Starts agent `n`; returns when its session is up.
    async fn start(&self, n: usize) -> anyhow::Result<()> {
        let credentials = self.material.clients().get(n).context("no such client")?;
        let (up, is_up) = oneshot::channel();
        let agent = Agent::new(AgentParts {
            identity: Identity {
                agent: material::agent(n),
                group: GROUP,
                slot: SLOT,
                domain: material::DOMAIN.to_owned(),
                key: credentials.key(),
                chain: credentials.chain(),
                roots: Vec::new(),
                addresses: Vec::new(),
            },
            trust: Arc::clone(&self.trust),
            endpoint: self.sockets[n / AGENTS_PER_SOCKET].endpoint().clone(),
            journal: self.journals[n / AGENTS_PER_SOCKET].clone(),
            drivers: Arc::clone(&self.drivers),
            profile: Arc::clone(&self.profile),
            servers: vec![self.server.to_string()],
            observer: Arc::new(FirstSession(Mutex::new(Some(up)))),
            stop_grace: Duration::ZERO,
        })?;
        tokio::spawn(async move {
            if let Err(error) = agent.run(CancellationToken::new()).await {
                tracing::error!(%error, n, "an agent ended");
            }
        });
        is_up.await.context("the agent ended")
    }
}

/// Tells of an agent's first session.
struct FirstSession(Mutex<Option<oneshot::Sender<()>>>);

impl Observer for FirstSession {
    fn session_up(&self, _agent: AgentId, _welcome: &Welcome, _took: Duration) {
        let up = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(up) = up {
            // Nobody waits when the orders have ended.
            let _told = up.send(());
        }
    }

    fn session_down(&self, agent: AgentId, end: &SessionEnd) {
        tracing::warn!(%agent, %end, "a session was lost");
    }

    fn connect_failed(&self, agent: AgentId, reason: &str) {
        tracing::warn!(%agent, reason, "a connection failed");
    }
}

/// A driver that has nothing to do: it answers with what it was given.
struct Echo;

impl Driver for Echo {
    fn validate(&self, _input: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn run(&self, job: Job) -> BoxFuture<'static, Outcome> {
        Box::pin(future::ready(Outcome {
            status: OutcomeStatus::Succeeded,
            exit_code: None,
            message: String::new(),
            output: job.input,
            service_time: Duration::ZERO,
        }))
    }

    fn recover(&self, _lost: Lost) -> BoxFuture<'static, Recovered> {
        Box::pin(future::ready(Recovered::Restart))
    }
}
