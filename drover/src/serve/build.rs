//! Builds the parts of profile `all` in order, from the configuration, and takes them down again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use control::Control;
use control::api::ADMIN_TOKEN_FILE;
use control::downlink::{Ends, Wake};
use control::enrol::EnrolConfig;
use control::identity::{GatewaySecrets, Identity};
use control::store::Store;
use gateway::{Gateway, Handle, Secrets, TlsMaterial};
use protocol::limits::SHARDS_MAX;
use protocol::link::Request;
use tokio::task::JoinHandle;

use super::{banner, faults, figures};
use crate::config::Config;
use crate::data_dir::{DataDir, Ready};
use crate::fault::{Fault, chain};
use crate::link;

/// Agents' sessions are closed in order within this, before the threads stop.
const DEPARTURE: Duration = Duration::from_millis(500);
/// How often a part is looked at that cannot call.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The servers of profile `all`, running.
pub(super) struct Servers {
    control: Control,
    gateway: Gateway,
    handle: Handle,
    /// Where several process servers share the gateway: what goes between.
    between: Option<JoinHandle<()>>,
}

impl Servers {
    /// Starts everything, the gateway behind a shut door until control has said who may come in.
    pub(super) async fn start(config: &Config, data: &DataDir) -> Result<Self, Fault> {
        faults::check(config)?;
        let identity = identity(config, data)?;
        let store = Store::open(&config.store, data.path())
            .await
            .map_err(|error| Fault::new(chain(&error)))?;
        let wake = Wake::new();
        let gateway_config = gateway_config(config, data, &identity)?;
        let run = gateway_config.gateway;
        let gateway = gateway::start(gateway_config, wake.callback())
            .map_err(|error| gateway_fault(&error))?;
        let handle = gateway.handle();
        let (between, ends) = match config.process_servers {
            1 => (None, Ends::One(link::only(run, handle.clone(), wake))),
            servers => {
                let shared = link::share(run, handle.clone(), wake);
                let between = tokio::spawn(Arc::clone(&shared).run());
                let join = Arc::new(move || shared.join());
                (Some(between), Ends::Several { servers, join })
            }
        };
        let told = control_config(config, data, handle.clone());
        let control = control::start(told, identity, store, ends)
            .await
            .map_err(|error| control_fault(&error))?;
        while !handle.open() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        faults::begin(&config.faults, &control.mishaps());
        Ok(Self {
            control,
            gateway,
            handle,
            between,
        })
    }

    /// Where everything is.
    pub(super) fn ready(&self, config: &Config, data: &DataDir) -> Ready {
        let api = self.control.api();
        Ready {
            api: banner::url(api.address()),
            api_certificate: config.api.ui.certificate.as_deref().map(absolute),
            public: api.public_address().map(banner::url),
            admin: api.admin_address().map(banner::url),
            agents: banner::reachable(self.gateway.local_addr()).to_string(),
            admin_token_file: data.path().join(ADMIN_TOKEN_FILE),
            data_dir: data.path().to_owned(),
            pid: std::process::id(),
            profile: config.profile.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Whether a listener has a certificate that may be read again.
    pub(super) fn speaks_tls(&self) -> bool {
        let api = self.control.api();
        api.address().tls || api.public_address().is_some_and(|public| public.tls)
    }

    /// Looks at the files of all certificates now.
    pub(super) fn reload_certificates(&self) {
        self.control.api().reload_certificates();
    }

    /// Returns when a part has failed, with what is known of it.
    pub(super) async fn failed(&self) -> Fault {
        let gateway_stopped = async {
            while !self.handle.is_stopped() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            "the agent server"
        };
        let name = tokio::select! {
            name = gateway_stopped => name,
            name = self.control.failed() => name,
        };
        Fault::new(format_args!("{name} has stopped by itself"))
            .advise("the log says why; nothing accepted is lost, start the server again")
    }

    /// Takes everything down in order: nothing new from the API, nothing new claimed, what has
    /// arrived stored, agents' sessions closed, threads joined.
    pub(super) async fn drain(self, deadline: Duration) -> Result<(), Fault> {
        self.control.drain(deadline).await;
        let drain = Request::Drain {
            addresses: Vec::new(),
            spread: DEPARTURE / 2,
            deadline: DEPARTURE,
        };
        if let Some(between) = self.between {
            between.abort();
        }
        // A gateway too busy to be asked is stopped without asking.
        if self.handle.send(drain).is_ok() {
            tokio::time::sleep(DEPARTURE).await;
        }
        tokio::task::spawn_blocking(|| self.gateway.stop())
            .await
            .map_err(|error| Fault::new(format_args!("the agent server's end failed: {error}")))?
            .map_err(|error| Fault::new(chain(&error)))
    }
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

fn control_fault(error: &control::StartError) -> Fault {
    use control::api::StartError as ApiError;
    match error {
        control::StartError::Api(ApiError::Listen {
            listener,
            address,
            source,
        }) => cannot_listen(
            format_args!("the listener {listener} of the API cannot listen on TCP {address}"),
            source,
            match *listener {
                "public" => "--set api.public.listen=IP:PORT",
                "admin" => "--set admin.listen=IP:PORT",
                _ => "--api-listen",
            },
        ),
        control::StartError::Api(ApiError::HalfOfTls { listener, missing }) => {
            Fault::usage(format_args!("there is no api.{listener}.{missing}")).advise(format_args!(
                "set both api.{listener}.certificate and api.{listener}.key, or neither"
            ))
        }
        control::StartError::Api(ApiError::Tls { listener, source }) => tls_fault(listener, source),
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

fn cannot_listen(what: fmt::Arguments<'_>, cause: &io::Error, flag: &str) -> Fault {
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

fn identity(config: &Config, data: &DataDir) -> Result<Identity, Fault> {
    let place = data.path().join("identity");
    Identity::open_or_create(&place, &config.domain).map_err(|error| Fault::new(chain(&error)))
}

fn gateway_config(
    config: &Config,
    data: &DataDir,
    identity: &Identity,
) -> Result<gateway::Config, Fault> {
    let tls = identity
        .gateway_tls()
        .map_err(|error| Fault::new(chain(&error)))?;
    let settings = &config.gateway;
    Ok(gateway::Config {
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
        secrets: secrets(identity.gateway_secrets()),
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
    })
}

fn control_config(config: &Config, data: &DataDir, gateway: Handle) -> control::Config {
    control::Config {
        data_dir: data.path().to_owned(),
        api: config.api.clone(),
        enrol: EnrolConfig {
            addresses: config.gateway.advertise.clone(),
            certificate_life: config.certificate_life,
        },
        kinds: config.kinds.clone(),
        retention: config.retention,
        metrics: vec![figures::metrics(gateway.clone())],
        gateway: Some(figures::overview(gateway.clone())),
        times: vec![figures::times(gateway)],
        histogram_log: config.histograms,
        webhooks: config.webhooks.clone(),
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
