//! A control plane with a made-up gateway: what is sent down is written down, and agents that
//! "run" do everything at once and succeed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use control::Control;
use control::api::ApiConfig;
use control::api::model::access::{CreateApiToken, CreatedApiToken, CreatedTokens, Role};
use control::coordination::{EventsUrl, LocksUrl};
use control::downlink::{End, Ends, Link, LinkFull, Wake};
use control::enrol::EnrolConfig;
use control::identity::{AGENT_CERTIFICATE_LIFE, Identity};
use control::kinds::Kinds;
use control::store::{OpenError, Store};
use control::telemetry::metrics::{self, Family, Kind};
use control::telemetry::{GatewayFigures, GatewaySource, LogConfig};
use control::webhooks::WebhooksConfig;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest, Enrolment, JoinToken};
use protocol::flow::{AgentFlow, LimitKey, LimitUse};
use protocol::identity::KeyHash;
use protocol::ids::{AgentId, Epoch, GatewayId, GrantId, ServerId, SessionId, ShardId};
use protocol::link::{DownReason, Event, Request, SessionUp, Target};
use protocol::operation::{Outcome, OutcomeStatus};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::{Method, Response};
use serde_json::{Value, json};

pub(crate) const DOMAIN: &str = "cloud.example";
pub(crate) const REMOTE: &str = "192.0.2.7:40000";

/// What the made-up gateway says about itself; at its door more has come each time it is asked.
fn gateway_figures() -> GatewaySource {
    let asked = AtomicU64::new(0);
    Arc::new(move || {
        let asked = asked.fetch_add(1, Ordering::Relaxed);
        GatewayFigures {
            datapath: Some("poll"),
            dropped: 5,
            uplink_full: 6,
            mailbox_full: 7,
            half_open: [(ShardId(0), 1), (ShardId(1), 2)].into(),
            admitted: asked * 8,
            retried: asked * 4,
            turned_away: asked * 2,
            handshakes_failed: asked,
        }
    })
}

/// The drivers of the agents.
pub(crate) const DRIVERS: &[&str] = &["exec", "fail", "flaky", "hang"];

/// The built-in kinds, and two on drivers that the made-up agents know: `three` stays in its last
/// step, `doomed` fails there.
fn kinds() -> Kinds {
    let kind = |name: &str, last: &str| {
        format!(
            r#"
            [kinds.{name}]
            description = "Three steps."
            resource = "thing/${{thing}}"
            class = "background"
            deadline = "1h"
            max_attempts = 2
            supersedes = ["{name}"]
            [[kinds.{name}.steps]]
            name = "first"
            operation = "exec"
            input = {{ say = "${{thing}}" }}
            timeout = "30s"
            compensate = {{ operation = "exec", input = {{ undo = "first" }} }}
            [[kinds.{name}.steps]]
            name = "second"
            operation = "exec"
            class = "light"
            resources = ["pool/${{thing}}"]
            [[kinds.{name}.steps]]
            name = "third"
            operation = "{last}"
            "#
        )
    };
    Kinds::declare(&(kind("three", "hang") + &kind("doomed", "fail"))).unwrap()
}

/// A gateway that is not there.
#[derive(Default)]
pub(crate) struct FakeGateway {
    pub(crate) sent: Mutex<Vec<Request>>,
    events: Mutex<VecDeque<Event>>,
    /// Agents that are admitted, by id.
    pub(crate) admitted: Mutex<BTreeMap<AgentId, (Target, Vec<KeyHash>)>>,
    epochs: Mutex<BTreeMap<uuid::Uuid, Epoch>>,
    /// What it answers about agents and about limits; about others it says nothing.
    flows: Mutex<BTreeMap<AgentId, AgentFlow>>,
    uses: Mutex<BTreeMap<LimitKey, LimitUse>>,
    /// Agents that are given no permit.
    full: Mutex<BTreeSet<AgentId>>,
    wake: Wake,
}

impl Link for FakeGateway {
    fn gateway(&self) -> GatewayId {
        GatewayId(uuid::Uuid::from_u128(1))
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        self.sent.lock().unwrap().push(request.clone());
        match request {
            Request::AssignGroup { group, epoch, .. } => {
                self.epochs.lock().unwrap().insert(group.0, epoch);
            }
            Request::AdmitAgent { target, keys } => {
                let mut admitted = self.admitted.lock().unwrap();
                admitted.insert(target.agent, (target, keys));
            }
            Request::RevokeAgent { agent } => {
                self.admitted.lock().unwrap().remove(&agent);
            }
            Request::Demand {
                target,
                server,
                lines,
            } if lines.iter().any(|line| line.ready > 0)
                && !self.full.lock().unwrap().contains(&target.agent) =>
            {
                let line = &lines[0];
                let epoch = self.epochs.lock().unwrap()[&target.group.0];
                self.say(Event::Granted {
                    target,
                    server,
                    line: line.number,
                    grant: GrantId(1),
                    epoch,
                    permits: line.ready.min(8),
                    ttl: Duration::from_secs(2),
                });
            }
            Request::Dispatch {
                target, command, ..
            } => self.run(target, &command),
            Request::AskFlow { target, ticket } => {
                if let Some(flow) = self.flows.lock().unwrap().get(&target.agent) {
                    let flow = Some(Box::new(flow.clone()));
                    self.say(Event::FlowTold {
                        target,
                        ticket,
                        flow,
                    });
                }
            }
            Request::AskLimit { key, ticket } => self.tell_use(&key, ticket),
            _ => {}
        }
        Ok(())
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let mut events = self.events.lock().unwrap();
        let count = events.len().min(max);
        out.extend(events.drain(..count));
        count
    }
}

impl FakeGateway {
    pub(crate) fn say(&self, event: Event) {
        self.events.lock().unwrap().push_back(event);
        self.wake.ring();
    }

    /// What it says from now on about what an agent is given.
    pub(crate) fn flow(&self, agent: AgentId, flow: AgentFlow) {
        self.flows.lock().unwrap().insert(agent, flow);
    }

    /// From now on an agent is given no permit.
    pub(crate) fn fill(&self, agent: AgentId) {
        self.full.lock().unwrap().insert(agent);
    }

    /// What each of its two shards says from now on about a limit.
    pub(crate) fn use_of(&self, key: LimitKey, used: LimitUse) {
        self.uses.lock().unwrap().insert(key, used);
    }

    fn tell_use(&self, key: &LimitKey, ticket: u64) {
        let nothing = LimitUse {
            limit: None,
            in_use: 0,
            waiting: 0,
        };
        let used = self.uses.lock().unwrap().get(key).copied();
        for shard in [0, 1] {
            self.say(Event::LimitTold {
                ticket,
                shard: ShardId(shard),
                shards: 2,
                used: used.unwrap_or(nothing),
            });
        }
    }

    /// The agent takes the command, and unless its kind is `hang` ends it with its input as output;
    /// `fail` fails for good, `flaky` in a way that may pass.
    fn run(&self, target: Target, command: &protocol::operation::Command) {
        let (operation, fence) = (command.operation, command.fence);
        self.say(Event::Accepted {
            target,
            operation,
            fence,
        });
        if command.kind == "hang" {
            return;
        }
        let fails = ["fail", "flaky"].contains(&command.kind.as_str());
        self.say(Event::Finished {
            target,
            operation,
            fence,
            outcome: Outcome {
                status: match command.kind.as_str() {
                    "fail" => OutcomeStatus::FailedPermanent,
                    "flaky" => OutcomeStatus::FailedTransient,
                    _ => OutcomeStatus::Succeeded,
                },
                exit_code: Some(i32::from(fails)),
                message: if fails { "it broke" } else { "" }.to_owned(),
                output: command.input.clone(),
                service_time: Duration::from_millis(1),
            },
        });
    }

    /// The agent's session is up, with all the drivers that it plays.
    pub(crate) fn connect(&self, agent: AgentId, hostname: &str) {
        self.connect_with(agent, hostname, DRIVERS);
    }

    /// The agent's session is up, with these drivers.
    pub(crate) fn connect_with(&self, agent: AgentId, hostname: &str, drivers: &[&str]) {
        let (target, _) = self.admitted.lock().unwrap()[&agent];
        self.say(Event::SessionUp(Box::new(SessionUp {
            target,
            session: SessionId(1),
            shard: ShardId(0),
            at_home: true,
            remote: REMOTE.parse().unwrap(),
            capacity: 4,
            kinds: drivers.iter().map(|name| (*name).to_owned()).collect(),
            open: Vec::new(),
            hostname: hostname.to_owned(),
            software: "drover 0.1.0".to_owned(),
            labels: vec![("rack".to_owned(), "7".to_owned())],
        })));
    }

    /// The agent's session has ended.
    pub(crate) fn disconnect(&self, agent: AgentId) {
        let (target, _) = self.admitted.lock().unwrap()[&agent];
        self.say(Event::SessionDown {
            target,
            session: SessionId(1),
            reason: DownReason::TimedOut,
        });
    }

    fn reply(&self, ticket: u64) -> Option<EnrolReply> {
        let sent = self.sent.lock().unwrap();
        sent.iter().find_map(|request| match request {
            Request::EnrolReply {
                ticket: of, reply, ..
            } if *of == ticket => Some(reply.clone()),
            _ => None,
        })
    }
}

/// A control plane under test.
pub(crate) struct Plane {
    pub(crate) control: Control,
    pub(crate) gateway: Arc<FakeGateway>,
    pub(crate) store: Store,
    pub(crate) admin: String,
    pub(crate) base: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) client: reqwest::Client,
    pub(crate) ca_key: KeyHash,
}

/// A fresh deployment.
pub(crate) async fn plane() -> Plane {
    plane_in(tempfile::tempdir().unwrap(), 10_000).await
}

/// A deployment in a directory that may have been used before.
pub(crate) async fn plane_in(dir: tempfile::TempDir, requests_per_second: u32) -> Plane {
    plane_with(dir, requests_per_second, WebhooksConfig::default()).await
}

/// The same with its own way to deliver webhooks.
pub(crate) async fn plane_with(
    dir: tempfile::TempDir,
    requests_per_second: u32,
    webhooks: WebhooksConfig,
) -> Plane {
    Box::pin(start(dir, per_token(requests_per_second), webhooks))
        .await
        .unwrap()
}

/// A fresh deployment that listens in its own way, or why it does not start.
pub(crate) async fn plane_on(api: ApiConfig) -> Result<Plane, control::StartError> {
    let dir = tempfile::tempdir().unwrap();
    Box::pin(start(dir, api, WebhooksConfig::default())).await
}

/// A deployment on a store of its own.
pub(crate) async fn plane_of(dir: tempfile::TempDir, store: Store) -> Plane {
    let webhooks = WebhooksConfig::default();
    Box::pin(start_of(dir, per_token(10_000), webhooks, store))
        .await
        .unwrap()
}

/// An API on a free port.
pub(crate) fn per_token(requests_per_second: u32) -> ApiConfig {
    ApiConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        requests_per_second: NonZeroU32::new(requests_per_second).unwrap(),
        ..ApiConfig::default()
    }
}

/// Why a deployment does not start.
pub(crate) async fn start_error(webhooks: WebhooksConfig) -> String {
    let dir = tempfile::tempdir().unwrap();
    match Box::pin(start(dir, per_token(10_000), webhooks)).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

async fn start(
    dir: tempfile::TempDir,
    api: ApiConfig,
    webhooks: WebhooksConfig,
) -> Result<Plane, control::StartError> {
    let store = open(dir.path()).await;
    start_of(dir, api, webhooks, store).await
}

/// Opens the store. Where a runtime was shut down as a crash would, listeners' threads end a moment after it, and the
/// lock is theirs until then.
async fn open(dir: &Path) -> Store {
    for _ in 0..500 {
        match Store::open("sqlite:", dir).await {
            Err(OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the store of a server that is gone stays locked")
}

async fn start_of(
    dir: tempfile::TempDir,
    api: ApiConfig,
    webhooks: WebhooksConfig,
    store: Store,
) -> Result<Plane, control::StartError> {
    let identity = Identity::open_or_create(&dir.path().join("identity"), DOMAIN).unwrap();
    let ca_key = identity.root_key();
    let gateway = Arc::new(FakeGateway::default());
    let wake = gateway.wake.clone();
    let config = control::Config {
        data_dir: dir.path().to_owned(),
        api,
        enrol: EnrolConfig {
            addresses: vec!["gw.cloud.example:7443".to_owned()],
            certificate_life: AGENT_CERTIFICATE_LIFE,
        },
        kinds: kinds(),
        retention: control::store::log::Retention::default(),
        metrics: vec![Arc::new(|families: &mut Vec<Family>| {
            let family = Family::new(Kind::Gauge, "fake_gateway", "Made up");
            families.push(family.with(Vec::new(), metrics::Value::Number(1)));
        })],
        gateway: Some(gateway_figures()),
        times: Vec::new(),
        histogram_log: LogConfig::default(),
        webhooks,
        locks: LocksUrl::Sql,
        events: EventsUrl::Local,
        gateways: None,
        ready: Vec::new(),
        runs: control::Runs {
            api: true,
            processes: true,
        },
    };
    let link: Arc<dyn Link> = Arc::clone(&gateway) as Arc<dyn Link>;
    let control = {
        let end = End {
            server: ServerId(1),
            link,
            wake,
        };
        control::start(config, Arc::new(identity), store.clone(), Ends::One(end)).await?
    };
    let admin = std::fs::read_to_string(dir.path().join("admin.token")).unwrap();
    Ok(Plane {
        base: format!("http://{}", control.api().unwrap().address().address),
        control,
        gateway,
        store,
        admin: admin.trim().to_owned(),
        dir,
        client: reqwest::Client::new(),
        ca_key,
    })
}

impl Plane {
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.admin)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        read(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        read(
            self.request(Method::POST, path)
                .json(&body)
                .send()
                .await
                .unwrap(),
        )
        .await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        read(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// Starts a process with an idempotency key.
    pub(crate) async fn start(&self, key: &str, body: Value) -> (u16, Value) {
        let request = self
            .request(Method::POST, "/v1/processes")
            .header("Idempotency-Key", key)
            .json(&body);
        read(request.send().await.unwrap()).await
    }

    /// A token with a role.
    pub(crate) async fn token(&self, role: Role) -> CreatedApiToken {
        let body = CreateApiToken {
            name: format!("a {role}"),
            role,
            ttl_seconds: None,
        };
        let (status, body) = self.post("/v1/api-tokens", json!(body)).await;
        assert_eq!(status, 201, "{body}");
        serde_json::from_value(body).unwrap()
    }

    /// The text of new join tokens.
    pub(crate) async fn join_tokens(&self, body: Value) -> Vec<JoinToken> {
        let (status, body) = self.post("/v1/tokens", body).await;
        assert_eq!(status, 201, "{body}");
        let created: CreatedTokens = serde_json::from_value(body).unwrap();
        let parse = |token: control::api::model::access::CreatedToken| token.token.parse();
        created
            .tokens
            .into_iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// Asks for a certificate as a gateway would pass it on.
    pub(crate) async fn enrol(
        &self,
        ticket: u64,
        secret: [u8; 32],
        csr: Vec<u8>,
    ) -> Result<Enrolment, EnrolRefusal> {
        self.gateway.say(Event::Enrol {
            shard: ShardId(0),
            ticket,
            remote: REMOTE.parse().unwrap(),
            request: Box::new(EnrolRequest {
                secret,
                csr,
                hostname: format!("hv-{ticket}"),
                software: "drover 0.1.0".to_owned(),
            }),
        });
        let reply = eventually("an answer to the enrolment", async || {
            self.gateway.reply(ticket)
        });
        match reply.await {
            EnrolReply::Enrolled(enrolment) => Ok(*enrolment),
            EnrolReply::Refused(refusal) => Err(refusal),
        }
    }

    /// A new agent that has joined; with a session if `connected`.
    pub(crate) async fn agent(&self, ticket: u64, connected: bool) -> AgentId {
        let token = self.join_tokens(json!({})).await.pop().unwrap();
        let agent = self.enrol(ticket, token.secret, csr()).await.unwrap().agent;
        if connected {
            self.gateway.connect(agent, &format!("hv-{ticket}"));
            let path = format!("/v1/agents/{agent}");
            eventually("the agent's session", async || {
                (self.get(&path).await.1["state"] == "connected").then_some(())
            })
            .await;
        }
        agent
    }
}

/// A certificate request with a new key.
pub(crate) fn csr() -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    request.der().to_vec()
}

pub(crate) async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let bytes: Bytes = response.bytes().await.unwrap();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
    (status, body)
}

/// Asks until there is an answer; gives up after so long that nothing else can be meant.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} never came");
}
