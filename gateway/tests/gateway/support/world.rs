//! A gateway, and the control plane as a test plays it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use gateway::telemetry::Figures;
use gateway::{
    AdmissionConfig, Config, DatapathKind, Gateway, Handle, ParkKind, Secrets, TlsMaterial,
};
use protocol::flow::Demand;
use protocol::ids::{
    AgentId, Epoch, Fence, GatewayId, GrantId, GroupId, OperationId, ServerId, Slot,
};
use protocol::link::{Event, Request, SessionUp, Target};
use protocol::operation::Command;
use protocol::steering::initial_destination_id;

use super::agent::{Agent, hello};
use super::authority::{Authority, Credentials, DOMAIN};
use super::client::ClientOptions;
use super::{PATIENCE, now};

#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) datapath: DatapathKind,
    pub(crate) park: ParkKind,
    pub(crate) shards: u16,
    pub(crate) admission: AdmissionConfig,
}

impl Setup {
    pub(crate) fn new(datapath: DatapathKind, park: ParkKind) -> Self {
        Self {
            datapath,
            park,
            shards: 1,
            admission: AdmissionConfig::default(),
        }
    }

    pub(crate) fn shards(self, shards: u16) -> Self {
        Self { shards, ..self }
    }

    pub(crate) fn admission(self, admission: AdmissionConfig) -> Self {
        Self { admission, ..self }
    }
}

pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) gateway: Option<Gateway>,
    pub(crate) handle: Handle,
    events: Vec<Event>,
    wakes: Receiver<()>,
    _directory: tempfile::TempDir,
}

pub(crate) const EPOCH: Epoch = Epoch(7);

impl World {
    pub(crate) fn start(setup: Setup) -> Self {
        let authority = Authority::new();
        let directory = tempfile::tempdir().unwrap();
        let own = authority.gateway();
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            shards: setup.shards,
            datapath: setup.datapath,
            park: setup.park,
            pin_threads: false,
            tls: TlsMaterial {
                chain: own.chain,
                key: own.key,
                agent_roots: vec![authority.agent_root()],
            },
            secrets: Secrets {
                connection_ids: [1; 32],
                stateless_reset: [2; 32],
                tokens: [3; 32],
            },
            domain: DOMAIN.to_owned(),
            gateway: GatewayId::from_bytes([9; 16]),
            lock_file: directory.path().join("gateway.lock"),
            admission: setup.admission,
            advertise: vec!["gateway.test:7443".to_owned()],
            reconnect_spread: Some(Duration::from_secs(5)),
            adaptive_limits: false,
        };
        let (wake, wakes): (SyncSender<()>, _) = sync_channel(1);
        let wake = move || {
            // Full: a wake waits already.
            wake.try_send(()).ok();
        };
        let gateway = gateway::start(config, Arc::new(wake)).unwrap();
        let handle = gateway.handle();
        Self {
            authority,
            handle,
            gateway: Some(gateway),
            events: Vec::new(),
            wakes,
            _directory: directory,
        }
    }

    pub(crate) fn send(&self, request: Request) {
        self.handle.send(request).unwrap();
    }

    /// The next event that `pick` wants; others are kept for later.
    pub(crate) fn event<T>(&mut self, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let begin = now();
        loop {
            if let Some(place) = self.events.iter().position(|event| pick(event).is_some()) {
                let event = self.events.remove(place);
                return pick(&event).unwrap();
            }
            assert!(
                now() - begin < PATIENCE,
                "waited in vain; there are {:?}",
                self.events
            );
            if self.handle.receive(&mut self.events, 100) == 0 {
                self.wakes.recv_timeout(Duration::from_millis(10)).ok();
            }
        }
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        self.handle.receive(&mut self.events, 1000);
        std::mem::take(&mut self.events)
    }

    /// A group of its own for each agent: group, agent and slot share a number.
    pub(crate) fn target(&self, n: u8) -> Target {
        Target {
            agent: super::agent_id(n.into()),
            group: GroupId::from_bytes([n; 16]),
            slot: Slot(n),
        }
    }

    /// Assigns the group and admits the agent with new credentials.
    pub(crate) fn admit(&mut self, n: u8) -> Credentials {
        let target = self.target(n);
        let credentials = self.authority.agent(target.agent);
        self.admit_with(target, &credentials);
        credentials
    }

    pub(crate) fn admit_with(&mut self, target: Target, credentials: &Credentials) {
        self.send(Request::AssignGroup {
            group: target.group,
            slot: target.slot,
            epoch: EPOCH,
        });
        self.send(Request::AdmitAgent {
            target,
            keys: vec![credentials.key_hash],
        });
        // Requests overtake packets only by luck: wait until every shard has had its turn.
        std::thread::yield_now();
    }

    pub(crate) fn options(&self, credentials: &Credentials) -> ClientOptions {
        let address = self.gateway.as_ref().unwrap().local_addr();
        ClientOptions::session(address, self.authority.gateway_root(), credentials)
    }

    /// An agent whose session is up at its home shard.
    pub(crate) fn agent(&mut self, n: u8) -> (Agent, SessionUp) {
        let credentials = self.admit(n);
        self.agent_with(n, &credentials, None)
    }

    /// An agent that lands on the shard of `slot`, or wherever chance takes it.
    pub(crate) fn agent_with(
        &mut self,
        n: u8,
        credentials: &Credentials,
        slot: Option<Slot>,
    ) -> (Agent, SessionUp) {
        let mut options = self.options(credentials);
        let slot = slot.unwrap_or(Slot(n));
        options.first_id = Some(initial_destination_id(slot, rand::random()));
        let mut agent = Agent::connect(self.target(n).agent, &options);
        agent.welcome(hello(agent.id));
        let up = self.session_up(agent.id);
        (agent, up)
    }

    /// Waits until the figures of all shards together satisfy `check`.
    pub(crate) fn figures(&self, mut check: impl FnMut(&Figures) -> bool) {
        let begin = now();
        while !check(&self.handle.telemetry().total()) {
            let total = self.handle.telemetry().total();
            assert!(now() - begin < PATIENCE, "waited in vain: {total:?}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    pub(crate) fn session_up(&mut self, agent: AgentId) -> SessionUp {
        self.event(|event| match event {
            Event::SessionUp(up) if up.target.agent == agent => Some((**up).clone()),
            _ => None,
        })
    }

    pub(crate) fn session_down(&mut self, agent: AgentId) -> protocol::link::DownReason {
        self.event(|event| match event {
            Event::SessionDown { target, reason, .. } if target.agent == agent => Some(*reason),
            _ => None,
        })
    }

    pub(crate) fn security(&mut self) -> (protocol::link::SecurityEvent, Option<AgentId>) {
        self.event(|event| match event {
            Event::Security { kind, agent, .. } => Some((*kind, *agent)),
            _ => None,
        })
    }

    pub(crate) fn permits(&mut self, n: u8, ready: u32) -> GrantId {
        let target = self.target(n);
        self.send(Request::Demand {
            target,
            server: ServerId(1),
            lines: vec![Demand::of("exec", ready)],
        });
        self.event(|event| match event {
            Event::Granted {
                target: of, grant, ..
            } if *of == target => Some(*grant),
            _ => None,
        })
    }

    pub(crate) fn offer(&mut self, n: u8) -> GrantId {
        let target = self.target(n);
        self.event(|event| match event {
            Event::Offered {
                target: of, grant, ..
            } if *of == target => Some(*grant),
            _ => None,
        })
    }

    pub(crate) fn dispatch(&mut self, n: u8, operation: OperationId, fence: Fence) {
        self.dispatch_input(n, operation, fence, Bytes::from_static(b"{}"));
    }

    pub(crate) fn dispatch_input(
        &mut self,
        n: u8,
        operation: OperationId,
        fence: Fence,
        input: Bytes,
    ) {
        let grant = self.permits(n, 1);
        self.dispatch_on(n, grant, operation, fence, input);
    }

    pub(crate) fn dispatch_on(
        &mut self,
        n: u8,
        grant: GrantId,
        operation: OperationId,
        fence: Fence,
        input: Bytes,
    ) {
        let command = Command {
            operation,
            fence,
            kind: "exec".to_owned(),
            input,
            deadline_ms: 4_000_000_000_000,
        };
        self.send(Request::Dispatch {
            target: self.target(n),
            grant,
            epoch: EPOCH,
            command: Box::new(command),
        });
    }

    pub(crate) fn stop(mut self) {
        self.gateway.take().unwrap().stop().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take()
            && !std::thread::panicking()
        {
            gateway.stop().unwrap();
        }
    }
}
