//! The agent server of a process: the gateway, and what goes between it and process servers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control::api::{AdminServer, ReadySource, Served};
use control::clock::UnixMs;
use control::coordination::{self, Locks, Presence};
use control::downlink::{Ends, Wake};
use control::gateways::LOCKS;
use control::identity::{AgentServerIdentity, GatewaySecrets, GatewayTls};
use control::telemetry::metrics::MetricsSource;
use gateway::telemetry::Level;
use gateway::{Gateway, Handle, Secrets, TlsMaterial};
use protocol::ids::GatewayId;
use protocol::limits::SHARDS_MAX;
use protocol::link::{Leave, Request};
use tokio::task::JoinHandle;

use super::build::{LOOK_EVERY, api_fault, cannot_listen};
use super::figures;
use crate::config::Config;
use crate::data_dir::{DataDir, IDENTITY};
use crate::fault::{Fault, chain};
use crate::link::{
    self, AgentsPlace, Departure, Door, Lease, ListenError, Listener, Opens, Shared,
};

/// Agents' sessions are closed in order within this, before the threads stop.
const DEPARTURE: Duration = Duration::from_millis(500);

/// An agent server, running.
pub(super) struct AgentServer {
    gateway: Gateway,
    handle: Handle,
    /// When the certificate ends that it shows.
    certificate_ends: UnixMs,
    /// Where several process servers share the gateway: what goes between.
    between: Option<JoinHandle<()>>,
    /// Where process servers come from elsewhere.
    listener: Option<Listener>,
    /// How it is with an agent server that they come to.
    watch: Option<Watch>,
    /// Where health and figures are told, if there is no API that does.
    admin: Option<AdminServer>,
    /// The lock that says that it is there, if there is a lock service: given back with this.
    _presence: Option<Presence>,
}

impl AgentServer {
    /// Starts one with its process servers in this process, behind a shut door; and makes their ends.
    pub(super) fn with_servers(
        config: &Config,
        data: &DataDir,
        identity: AgentServerIdentity,
    ) -> Result<(Self, Ends), Fault> {
        let (gateway, run, wake) = start(config, data, identity.tls, &identity.secrets, None)?;
        let handle = gateway.handle();
        let (between, ends) = match config.process_servers {
            1 => (None, Ends::One(link::only(run, handle.clone(), wake))),
            servers => {
                let shared = link::share(run, handle.clone(), wake, Opens::Elsewhere);
                let between = pass_on(&shared);
                let join = Arc::new(move || Box::pin(std::future::ready(shared.join())) as _);
                (Some(between), Ends::Several { servers, join })
            }
        };
        let server = Self {
            gateway,
            handle,
            certificate_ends: identity.not_after,
            between,
            listener: None,
            watch: None,
            admin: None,
            _presence: None,
        };
        Ok((server, ends))
    }

    /// Starts one alone, which tells of itself.
    pub(super) async fn alone(config: &Config, data: &DataDir) -> Result<Self, Fault> {
        let place = data.path().join(IDENTITY);
        let identity = AgentServerIdentity::load(&place, &config.domain)
            .map_err(|error| Fault::new(chain(&error)))?;
        let mut server = Self::open_to_servers(config, data, identity)?;
        if let (Some(address), Some(watch)) = (config.api.admin_listen, &server.watch) {
            let mut metrics = server.metrics();
            metrics.push(figures::about(config.profile));
            metrics.push(coordination::metrics(watch.locks.as_deref(), None));
            let started = AdminServer::start(address, metrics, watch.ready()).await;
            server.admin = Some(started.map_err(|error| api_fault(&error))?);
        }
        Ok(server)
    }

    /// Starts one that process servers come to, from this process as from others; the first opens its door.
    pub(super) fn open_to_servers(
        config: &Config,
        data: &DataDir,
        identity: AgentServerIdentity,
    ) -> Result<Self, Fault> {
        let door =
            Door::bind(config.link.listen, &identity).map_err(|error| listen_fault(&error))?;
        let locks = coordination::locks_of_their_own(&config.locks)
            .map_err(|error| Fault::new(chain(&error)))?;
        let lease = Arc::new(Lease::new(locks.is_some()));
        let asked = Arc::clone(&lease);
        let (gateway, run, wake) =
            start(config, data, identity.tls, &identity.secrets, Some(asked))?;
        let handle = gateway.handle();
        let shared = link::share(run, handle.clone(), wake, Opens::WithTheFirst);
        let watch = Watch {
            gateway: handle.clone(),
            shared: Arc::clone(&shared),
            lease: Arc::clone(&lease),
            departure: Arc::new(Departure::new()),
            locks: locks.clone(),
        };
        let place = AgentsPlace {
            shards: config.gateway.shards.unwrap_or_else(cores),
            port: gateway.local_addr().port(),
            addresses: config.gateway.advertise.clone(),
            lease,
            departure: Arc::clone(&watch.departure),
        };
        let listener = door.open(Arc::clone(&shared), place);
        let presence = locks.map(|locks| Presence::start(locks, LOCKS, run.0));
        Ok(Self {
            _presence: presence,
            gateway,
            handle,
            certificate_ends: identity.not_after,
            between: Some(pass_on(&shared)),
            listener: Some(listener),
            watch: Some(watch),
            admin: None,
        })
    }

    /// How it is with it, where process servers come to it.
    pub(super) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Its figures, and those of its lease where process servers come to it.
    pub(super) fn metrics(&self) -> Vec<MetricsSource> {
        let mut metrics = vec![
            figures::metrics(self.handle.clone()),
            figures::certificate(self.certificate_ends),
        ];
        metrics.extend(self.watch.as_ref().map(Watch::metrics));
        metrics
    }

    /// The gateway's front door for the rest of the program.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Where agents connect.
    pub(super) fn agents_addr(&self) -> SocketAddr {
        self.gateway.local_addr()
    }

    /// Where process servers connect, if they do.
    pub(super) fn link_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(Listener::local_addr)
    }

    /// Where health and figures are told, if they are and no API does.
    pub(super) fn admin_address(&self) -> Option<Served> {
        self.admin.as_ref().map(AdminServer::address)
    }

    /// Lets agents in, once control has said who may come.
    pub(super) async fn open(&self) {
        while !self.handle.open() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns when it has stopped by itself.
    pub(super) async fn stopped(&self) -> &'static str {
        while !self.handle.is_stopped() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        "the agent server"
    }

    /// Gives its groups to other agent servers before it stops, as far as there are any, and waits until its agents have
    /// gone there; not longer than `within`.
    pub(super) async fn leave(&self, within: Duration) {
        if let Some(admin) = &self.admin {
            admin.draining();
        }
        let Some(watch) = &self.watch else {
            return;
        };
        watch.departure.begin(within);
        let left = async {
            tokio::select! {
                leave = watch.departure.may_leave() => if leave == Leave::Empty {
                    self.until_empty().await;
                },
                () = watch.until_alone() => {}
            }
        };
        if tokio::time::timeout(within, left).await.is_err() {
            tracing::warn!(
                sessions = self.sessions(),
                ?within,
                "others do not have all agents of this agent server yet; the rest of them are cut off and come back by themselves"
            );
        }
    }

    /// Waits until no agent has a session here.
    async fn until_empty(&self) {
        while self.sessions() > 0 && !self.handle.is_stopped() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn sessions(&self) -> u64 {
        self.handle.telemetry().total().level(Level::Sessions)
    }

    /// Says farewell to process servers, closes agents' sessions, joins the threads.
    pub(super) async fn stop(self) -> Result<(), Fault> {
        if let Some(listener) = self.listener {
            listener.stop().await;
        }
        if let Some(between) = self.between {
            between.abort();
        }
        let drain = Request::Drain {
            addresses: Vec::new(),
            spread: DEPARTURE / 2,
            deadline: DEPARTURE,
        };
        // A gateway too busy to be asked is stopped without asking.
        if self.handle.send(drain).is_ok() {
            tokio::time::sleep(DEPARTURE).await;
        }
        tokio::task::spawn_blocking(|| self.gateway.stop())
            .await
            .map_err(|error| Fault::new(format_args!("the agent server's end failed: {error}")))?
            .map_err(|error| Fault::new(chain(&error)))?;
        if let Some(admin) = self.admin {
            admin.stop().await;
        }
        Ok(())
    }
}

/// What there is to be said of an agent server that process servers come to.
pub(super) struct Watch {
    gateway: Handle,
    shared: Arc<Shared>,
    lease: Arc<Lease>,
    departure: Arc<Departure>,
    locks: Option<Arc<dyn Locks>>,
}

impl Watch {
    /// Waits until no process server is here: nobody could give its groups away.
    async fn until_alone(&self) {
        while self.shared.servers() > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether it can do its work.
    pub(super) fn ready(&self) -> ReadySource {
        let (gateway, shared) = (self.gateway.clone(), Arc::clone(&self.shared));
        let held = Arc::clone(&self.lease);
        Arc::new(move || {
            let runs = match gateway.is_stopped() {
                true => Err("it has stopped".to_owned()),
                false => Ok("it runs".to_owned()),
            };
            let servers = match shared.servers() {
                0 => Err(
                    "none is here: nobody can enrol, and nothing is sent to agents; look at the process server's log"
                        .to_owned(),
                ),
                servers => Ok(format!("{servers} are here")),
            };
            let lease = match held.holds() {
                true => Ok("it holds".to_owned()),
                false => Err(
                    "it has run out, so nothing is sent to agents; look at the store, and at the process server's log"
                        .to_owned(),
                ),
            };
            vec![
                ("gateway", runs),
                ("process_servers", servers),
                ("lease", lease),
            ]
        })
    }

    /// Figures of its lease.
    fn metrics(&self) -> MetricsSource {
        let lease = Arc::clone(&self.lease);
        Arc::new(move |all| all.extend(lease.families()))
    }
}

fn pass_on(shared: &Arc<Shared>) -> JoinHandle<()> {
    tokio::spawn(Arc::clone(shared).run())
}

/// Starts the gateway, its door shut. `lease`: where its groups may be another's one day.
fn start(
    config: &Config,
    data: &DataDir,
    tls: GatewayTls,
    secrets: &GatewaySecrets,
    lease: Option<Arc<Lease>>,
) -> Result<(Gateway, GatewayId, Wake), Fault> {
    let (wake, run) = (Wake::new(), tls.gateway);
    let config = gateway_config(config, data, tls, secrets);
    let lease = lease.map(|lease| lease as Arc<dyn gateway::Lease>);
    let gateway = gateway::start_under(config, lease, wake.callback())
        .map_err(|error| gateway_fault(&error))?;
    Ok((gateway, run, wake))
}

fn gateway_config(
    config: &Config,
    data: &DataDir,
    tls: GatewayTls,
    kept: &GatewaySecrets,
) -> gateway::Config {
    let settings = &config.gateway;
    gateway::Config {
        listen: settings.listen,
        shards: settings.shards.unwrap_or_else(cores),
        datapath: settings.datapath,
        park: settings.park,
        pin_threads: settings.pin_threads,
        tls: TlsMaterial {
            chain: tls.chain,
            key: tls.key,
            agent_roots: tls.agent_roots,
        },
        secrets: secrets(kept),
        domain: config.domain.clone(),
        gateway: tls.gateway,
        lock_file: data.path().join("gateway.lock"),
        admission: gateway::AdmissionConfig {
            shut_at_start: true,
            ..settings.admission
        },
        advertise: settings.advertise.clone(),
        reconnect_spread: settings.reconnect_spread,
        adaptive_limits: settings.adaptive_limits,
    }
}

/// The gateway's keys from the deployment's, which are longer where a hash wants more.
fn secrets(kept: &GatewaySecrets) -> Secrets {
    let first = |key: &[u8]| {
        let mut half = [0; 32];
        for (to, from) in half.iter_mut().zip(key) {
            *to = *from;
        }
        half
    };
    Secrets {
        connection_ids: first(&kept.cid_key),
        stateless_reset: first(&kept.reset_key),
        tokens: first(&kept.token_key),
    }
}

/// One shard for each core that this process may use.
pub(crate) fn cores() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores).unwrap_or(SHARDS_MAX).min(SHARDS_MAX)
}

fn gateway_fault(error: &gateway::StartError) -> Fault {
    use gateway::{LaunchError, StartError};
    match error {
        StartError::Launch(LaunchError::Bind { address, source }) => cannot_listen(
            format_args!("the agent server cannot listen on UDP {address}"),
            source,
            "--gateway-listen",
        ),
        other => Fault::new(chain(other)),
    }
}

fn listen_fault(error: &ListenError) -> Fault {
    match error {
        ListenError::Bind { address, source } => cannot_listen(
            format_args!("the agent server cannot listen for process servers on UDP {address}"),
            source,
            "--set link.listen=IP:PORT",
        ),
        other @ ListenError::Tls(_) => Fault::new(chain(other)),
    }
}
