//! Builds the parts of a profile in order, from the configuration, and takes them down again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use control::Control;
use control::api::{ADMIN_TOKEN_FILE, ApiConfig, ApiServer, Served};
use control::clock;
use control::downlink::Ends;
use control::enrol::EnrolConfig;
use control::identity::Identity;
use control::store::Store;

use super::agents::AgentServer;
use super::{banner, faults, figures, neighbours};
use crate::config::Config;
use crate::data_dir::{DataDir, IDENTITY, Ready};
use crate::fault::{Fault, chain};
use crate::link::Remote;
use crate::profile::Server;

/// Where a server's identity is to come from that is not the first one.
const COPY_IDENTITY: &str =
    "copy the folder `identity` from the data directory of one of its servers, or from a backup";

/// How often a part is looked at that cannot call.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The servers of a profile, running.
pub(super) struct Servers {
    control: Option<Control>,
    agents: Option<AgentServer>,
    /// The way to agent servers, where some are elsewhere.
    remote: Option<Arc<Remote>>,
}

impl Servers {
    /// Starts everything that the profile has.
    pub(super) async fn start(config: &Config, data: &DataDir) -> Result<Self, Fault> {
        if !config.profile.has_store() {
            return Ok(Self {
                control: None,
                agents: Some(AgentServer::alone(config, data).await?),
                remote: None,
            });
        }
        if let Some((_, fault)) = refusals(config).into_iter().next() {
            return Err(fault);
        }
        let (identity, store) = deployment(config, data).await?;
        if config.profile.runs(Server::Agent) {
            neighbours::check(config, &store).await?;
        }
        match config.profile.is_part() || !config.link.connect.is_empty() {
            true => Box::pin(Self::start_among_others(config, data, identity, store)).await,
            false => Box::pin(Self::start_alone(config, data, identity, store)).await,
        }
    }

    /// Everything, and nobody else. The gateway is behind a shut door until control has said who may come in.
    async fn start_alone(
        config: &Config,
        data: &DataDir,
        identity: Arc<Identity>,
        store: Store,
    ) -> Result<Self, Fault> {
        let own = identity.agent_server();
        let own = own.map_err(|error| Fault::new(chain(&error)))?;
        let (agents, ends) = AgentServer::with_servers(config, data, own)?;
        let told = control_config(config, data, Some(&agents));
        let control = start_control(config, told, identity, store, ends).await?;
        agents.open().await;
        Ok(Self {
            control: Some(control),
            agents: Some(agents),
            remote: None,
        })
    }

    /// One of several that share a deployment: agent servers are reached as if they were elsewhere, also one that is
    /// here. Where none can be reached it begins without.
    async fn start_among_others(
        config: &Config,
        data: &DataDir,
        identity: Arc<Identity>,
        store: Store,
    ) -> Result<Self, Fault> {
        let mut remote = remote(config, &identity, &store)?;
        let agents = match config.profile.runs(Server::Agent) {
            true => {
                remote = remote.among_others();
                let own = identity.agent_server();
                let own = own.map_err(|error| Fault::new(chain(&error)))?;
                Some(AgentServer::open_to_servers(config, data, own)?)
            }
            false => None,
        };
        if !config.profile.runs(Server::Process) {
            remote = remote.observing();
        }
        let remote = Arc::new(remote);
        let mut told = control_config(config, data, agents.as_ref());
        told.gateways = remote.several();
        if let Some(watch) = agents.as_ref().and_then(AgentServer::watch) {
            told.ready.push(watch.ready());
        }
        let ends = ends(config, &remote);
        let control = start_control(config, told, identity, store, ends).await?;
        Ok(Self {
            control: Some(control),
            agents,
            remote: Some(remote),
        })
    }

    /// Where everything is.
    pub(super) fn ready(&self, config: &Config, data: &DataDir) -> Ready {
        let agents = self.agents.as_ref();
        let here = |address| banner::reachable(address).to_string();
        let api = self.api();
        let admin = self.control.as_ref().and_then(Control::admin_address);
        let admin = admin.or_else(|| agents.and_then(AgentServer::admin_address));
        Ready {
            api: api.map(|api| banner::url(api.address())),
            api_certificate: api.and(config.api.ui.certificate.as_deref()).map(absolute),
            public: api.and_then(ApiServer::public_address).map(banner::url),
            admin: admin.map(banner::url),
            agents: agents.map(|agents| here(agents.agents_addr())),
            link: agents.and_then(AgentServer::link_addr).map(here),
            // Of several servers on a store, the first has made it.
            admin_token_file: api
                .map(|_| data.path().join(ADMIN_TOKEN_FILE))
                .filter(|file| file.exists()),
            data_dir: data.path().to_owned(),
            pid: std::process::id(),
            profile: config.profile.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Whether a listener has a certificate that may be read again.
    pub(super) fn speaks_tls(&self) -> bool {
        let tls = |served: Served| served.tls;
        self.api()
            .is_some_and(|api| tls(api.address()) || api.public_address().is_some_and(tls))
    }

    /// Looks at the files of all certificates now.
    pub(super) fn reload_certificates(&self) {
        if let Some(api) = self.api() {
            api.reload_certificates();
        }
    }

    fn api(&self) -> Option<&ApiServer> {
        self.control.as_ref()?.api()
    }

    /// Returns when a part has failed, with what is known of it.
    pub(super) async fn failed(&self) -> Fault {
        let agents = async {
            match &self.agents {
                Some(agents) => agents.stopped().await,
                None => std::future::pending().await,
            }
        };
        let control = async {
            match &self.control {
                Some(control) => control.failed().await,
                None => std::future::pending().await,
            }
        };
        let name = tokio::select! {
            name = agents => name,
            name = control => name,
        };
        Fault::new(format_args!("{name} has stopped by itself"))
            .advise("the log says why; nothing accepted is lost, start the server again")
    }

    /// Takes everything down in order: the agent server's groups given to others, nothing new from the API, nothing
    /// new claimed, what has arrived stored, agents' sessions closed, threads joined.
    pub(super) async fn drain(self, deadline: Duration) -> Result<(), Fault> {
        let began = clock::monotonic();
        if let Some(agents) = &self.agents {
            // What is left is for whoever works on the store here.
            let within = match self.control {
                Some(_) => deadline / 2,
                None => deadline,
            };
            agents.leave(within).await;
        }
        if let Some(control) = self.control {
            let left = deadline.saturating_sub(began.elapsed());
            control.drain(left).await;
        }
        if let Some(remote) = self.remote {
            remote.farewell().await;
        }
        match self.agents {
            Some(agents) => agents.stop().await,
            None => Ok(()),
        }
    }
}

/// What a server with a store refuses that one key alone does not show: each with the key, or the section, to mend.
pub(crate) fn refusals(config: &Config) -> Vec<(&'static str, Fault)> {
    let mut refused = Vec::new();
    if let Err(fault) = faults::check(config) {
        refused.push(("faults", fault));
    }
    let (profile, name) = (config.profile, config.profile.name());
    if profile.is_part() && config.link.connect.is_empty() {
        let fault = Fault::usage(format_args!(
            "the profile {name} works with servers elsewhere, and link.connect does not say where the agent servers are"
        ))
        .advise("set link.connect to HOST:PORT of each agent server's link.listen");
        refused.push(("link.connect", fault));
    }
    let alone = profile.runs(Server::Api) && profile.runs(Server::Process);
    if !alone && config.store.starts_with("sqlite:") {
        let fault = Fault::usage(format_args!(
            "the profile {name} shares its store with servers elsewhere, and one process opens an SQLite store"
        ))
        .advise(
            "set store to the URL of a PostgreSQL or MariaDB database, or run API and process servers in one \
             process: --profile api-server,process-server",
        );
        refused.push(("store", fault));
    }
    refused
}

/// The way to the agent servers that are named.
fn remote(config: &Config, identity: &Arc<Identity>, store: &Store) -> Result<Remote, Fault> {
    let addresses = config.link.connect.clone();
    let most = config.link.agents_per_server;
    let remote = Remote::new(Arc::clone(identity), store.clone(), addresses, most);
    remote.map_err(|error| Fault::new(format_args!("there is no UDP socket for the link: {error}")))
}

/// The ends that process servers get there.
fn ends(config: &Config, remote: &Arc<Remote>) -> Ends {
    let remote = Arc::clone(remote);
    Ends::Several {
        servers: match config.profile.runs(Server::Process) {
            true => config.process_servers,
            // What keeps the API's read model is no process server, and one is enough.
            false => 1,
        },
        join: Arc::new(move || {
            let remote = Arc::clone(&remote);
            Box::pin(async move { remote.join().await })
        }),
    }
}

async fn start_control(
    config: &Config,
    told: control::Config,
    identity: Arc<Identity>,
    store: Store,
    ends: Ends,
) -> Result<Control, Fault> {
    let control = control::start(told, identity, store, ends)
        .await
        .map_err(|error| control_fault(&error))?;
    faults::begin(&config.faults, &control.mishaps());
    Ok(control)
}

fn control_fault(error: &control::StartError) -> Fault {
    match error {
        control::StartError::Api(error) => api_fault(error),
        other => Fault::new(chain(other)),
    }
}

/// What keeps a listener of the API from starting.
pub(crate) fn api_fault(error: &control::api::StartError) -> Fault {
    use control::api::StartError;
    match error {
        StartError::Listen {
            listener,
            address,
            source,
        } => cannot_listen(
            format_args!("the listener {listener} of the API cannot listen on TCP {address}"),
            source,
            match *listener {
                "public" => "--set api.public.listen=IP:PORT",
                "admin" => "--set admin.listen=IP:PORT",
                _ => "--api-listen",
            },
        ),
        StartError::HalfOfTls { listener, missing } => {
            Fault::usage(format_args!("there is no api.{listener}.{missing}")).advise(format_args!(
                "set both api.{listener}.certificate and api.{listener}.key, or neither"
            ))
        }
        StartError::Tls { listener, source } => tls_fault(listener, source),
        other => Fault::new(chain(other)),
    }
}

/// For clients that start somewhere else.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn tls_fault(listener: &str, error: &control::api::TlsError) -> Fault {
    let text = error.to_string();
    let (what, advice) = text.split_once("; ").unwrap_or((&text, ""));
    Fault::usage(format_args!("api.{listener}: {what}")).advise(advice)
}

/// An address that cannot be listened on, and the flag that names another one.
pub(super) fn cannot_listen(what: fmt::Arguments<'_>, cause: &io::Error, flag: &str) -> Fault {
    let fault = Fault::new(format_args!("{what}: {cause}"));
    match cause.kind() {
        io::ErrorKind::AddrInUse => fault.advise(format_args!(
            "stop who uses this port, or choose another one with {flag}"
        )),
        _ => fault.advise(format_args!(
            "choose an address of this machine, and a port that may be used, with {flag}"
        )),
    }
}

/// The deployment's identity and store. Whose the store is stands there from the first start on: where it is another
/// one's, an identity is neither made nor used.
async fn deployment(config: &Config, data: &DataDir) -> Result<(Arc<Identity>, Store), Fault> {
    let failed = |error| Fault::new(chain(&error));
    let store = store(config, data).await?;
    let place = data.path().join(IDENTITY);
    let is_new = !place.exists();
    if is_new && store.is_of_a_deployment().await.map_err(failed)? {
        return Err(Fault::usage(format_args!(
            "the store is in use by a deployment whose identity is not here: {} is missing",
            place.display()
        ))
        .advise(COPY_IDENTITY));
    }
    let identity = identity(config, &place)?;
    let claim = store.claim(identity.root_key(), clock::now());
    if claim.await.map_err(failed)? == identity.root_key() {
        return Ok((identity, store));
    }
    let place = place.display();
    Err(match is_new {
        // Both have made one at the same moment.
        true => Fault::usage(format_args!(
            "another server has begun a deployment on this store, and {place} was made for nothing"
        ))
        .advise(format_args!("remove {place}; then {COPY_IDENTITY}")),
        false => Fault::usage(format_args!(
            "the store belongs to a deployment with another identity than {place}"
        ))
        .advise(format_args!(
            "set store to this deployment's own, or, where this is the right one, move {place} away and {COPY_IDENTITY}"
        )),
    })
}

fn identity(config: &Config, place: &Path) -> Result<Arc<Identity>, Fault> {
    let identity = Identity::open_or_create(place, &config.domain);
    identity
        .map(Arc::new)
        .map_err(|error| Fault::new(chain(&error)))
}

async fn store(config: &Config, data: &DataDir) -> Result<Store, Fault> {
    let store = Store::open_with_replicas(&config.store, data.path(), &config.replicas).await;
    store.map_err(|error| Fault::new(chain(&error)))
}

/// `agents`: those of this process, whose figures the API shows.
fn control_config(
    config: &Config,
    data: &DataDir,
    agents: Option<&AgentServer>,
) -> control::Config {
    let gateway = || agents.map(|agents| agents.handle().clone());
    let mut metrics = vec![figures::about(config.profile)];
    metrics.extend(agents.map(AgentServer::metrics).into_iter().flatten());
    let runs = |server| config.profile.runs(server);
    control::Config {
        runs: control::Runs {
            api: runs(Server::Api),
            processes: runs(Server::Process),
        },
        data_dir: data.path().to_owned(),
        api: ApiConfig {
            profile: config.profile.name(),
            ..config.api.clone()
        },
        enrol: EnrolConfig {
            addresses: config.gateway.advertise.clone(),
            certificate_life: config.certificate_life,
        },
        kinds: config.kinds.clone(),
        retention: config.retention,
        metrics,
        gateway: gateway().map(figures::overview),
        times: gateway().map(figures::times).into_iter().collect(),
        histogram_log: config.histograms,
        webhooks: config.webhooks.clone(),
        locks: config.locks.clone(),
        events: config.events.clone(),
        gateways: None,
        ready: Vec::new(),
    }
}
