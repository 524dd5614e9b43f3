//! Configuration: defaults, then a TOML file, then `DROVER_*` variables, then flags.
//!
//! ```text
//!   default < drover.toml < DROVER_GATEWAY_SHARDS=2 < --shards 2
//!                └─ all four as text ─▶ one parser per key (keys.rs) ─▶ Config
//! ```
//!
//! Everything is read and checked before the first socket is bound. An unknown key is refused with
//! the key that was probably meant. What the values do is not known here: `serve.rs` hands them to
//! the crates.

pub(crate) mod file;
mod keys;
pub(crate) mod layer;
mod suggest;
pub(crate) mod value;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use control::api::ApiConfig;
use control::coordination::{EventsUrl, LocksUrl};
use control::identity::AGENT_CERTIFICATE_LIFE;
use control::kinds::{Kinds, Origin as KindOrigin};
use control::store::ReplicasConfig;
use control::store::log::Retention;
use control::telemetry::LogConfig;
use control::webhooks::WebhooksConfig;

use self::layer::{Origin, Setting};
pub(crate) use self::suggest::nearest;
use crate::fault::Fault;
use crate::profile::{Profile, Server};

/// Read when neither `--config` nor `DROVER_CONFIG` names a file and it exists.
const DEFAULT_FILE: &str = "drover.toml";
/// The section that declares kinds of processes.
const KINDS: &str = "kinds";
/// What every configuration variable begins with.
const ENV_PREFIX: &str = "DROVER_";
/// Variables of ours that are no configuration keys.
const ENV_OTHERS: [&str; 10] = [
    "DROVER_API",
    "DROVER_TOKEN",
    "DROVER_CA_FILE",
    "DROVER_CONFIG",
    "DROVER_OUTPUT",
    "DROVER_AGENT_DIR",
    "DROVER_JOIN_TOKEN",
    "DROVER_SERVER",
    "DROVER_COPY_FROM",
    "DROVER_COPY_TO",
];

/// The configuration of `drover serve`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Config {
    /// Everything that the server keeps.
    pub(crate) data_dir: PathBuf,
    /// Which servers run in this process.
    pub(crate) profile: Profile,
    /// The trust domain in every certificate.
    pub(crate) domain: String,
    /// The store's URL.
    pub(crate) store: String,
    /// The store's replicas.
    pub(crate) replicas: ReplicasConfig,
    /// Process servers in this process.
    pub(crate) process_servers: u32,
    /// The lock service.
    pub(crate) locks: LocksUrl,
    /// The event service.
    pub(crate) events: EventsUrl,
    /// The API.
    pub(crate) api: ApiConfig,
    /// The agent server.
    pub(crate) gateway: GatewaySettings,
    /// The way between agent server and process servers on different machines.
    pub(crate) link: LinkSettings,
    /// How long an agent's certificate lives.
    pub(crate) certificate_life: Duration,
    /// The kinds of processes that are declared.
    pub(crate) kinds: Kinds,
    /// How long records are kept.
    pub(crate) retention: Retention,
    /// How histograms are written to disk.
    pub(crate) histograms: LogConfig,
    /// How webhooks are delivered.
    pub(crate) webhooks: WebhooksConfig,
    /// How the server stops.
    pub(crate) drain: DrainSettings,
    /// What is to go wrong, for tests.
    pub(crate) faults: FaultSettings,
    /// What is logged.
    pub(crate) log: LogSettings,
}

/// The agent server.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct GatewaySettings {
    /// Where agents connect (UDP).
    pub(crate) listen: SocketAddr,
    /// Threads; `None`: one per available core.
    pub(crate) shards: Option<u16>,
    /// How packets reach the kernel.
    pub(crate) datapath: gateway::DatapathKind,
    /// How an idle thread sleeps.
    pub(crate) park: gateway::ParkKind,
    /// Whether each thread stays on its core.
    pub(crate) pin_threads: bool,
    /// `host:port` told to agents as ways back; empty: the one that they came by.
    pub(crate) advertise: Vec<String>,
    /// Agents that lost their session come back spread over this time; `None`: over what the
    /// admission takes for all of them.
    pub(crate) reconnect_spread: Option<Duration>,
    /// Whether an agent's limit follows what it can take.
    pub(crate) adaptive_limits: bool,
    /// How fast newcomers are let in.
    pub(crate) admission: gateway::AdmissionConfig,
}

/// The way between agent server and process servers on different machines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LinkSettings {
    /// Where process servers connect (UDP) that are elsewhere.
    pub(crate) listen: SocketAddr,
    /// `host:port` of each agent server, for process servers that do not have the only one.
    pub(crate) connect: Vec<String>,
    /// Agents that each of them is given at most, while another one has room.
    pub(crate) agents_per_server: u32,
}

/// What is to go wrong, for tests of what follows; `None`: never.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct FaultSettings {
    /// After so long the last of several process servers dies, and stays dead.
    pub(crate) dies_after: Option<Duration>,
    /// So often one of several process servers dies, whichever it is.
    pub(crate) die_every: Option<Duration>,
    /// After so long the last of several process servers hangs.
    pub(crate) hangs_after: Option<Duration>,
}

/// How the server stops.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct DrainSettings {
    /// After this long the process ends, whatever is left.
    pub(crate) deadline: Duration,
}

/// What is logged.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct LogSettings {
    /// A `tracing` filter.
    pub(crate) filter: String,
    /// For people or for programs.
    pub(crate) format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogFormat {
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Reads `human` or `json`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err("expected human or json".to_owned()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

impl Config {
    /// `host:port` of the agent servers, where not the only one is in this process.
    pub(crate) fn connects_to(&self) -> &[String] {
        match self.profile.has_store() {
            true => &self.link.connect,
            false => &[],
        }
    }

    /// Whether process servers come from elsewhere: to an agent server without any, or beside others.
    pub(crate) fn listens_for_servers(&self) -> bool {
        let alone = !self.profile.is_part() && self.link.connect.is_empty();
        self.profile.runs(Server::Agent) && !alone
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./drover-data"),
            profile: Profile::default(),
            domain: "drover.internal".to_owned(),
            store: "sqlite:".to_owned(),
            replicas: ReplicasConfig::default(),
            process_servers: 1,
            locks: LocksUrl::Sql,
            events: EventsUrl::Local,
            api: ApiConfig {
                listen: SocketAddr::from(([127, 0, 0, 1], 7440)),
                admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 7441))),
                ..ApiConfig::default()
            },
            gateway: GatewaySettings {
                listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
                shards: None,
                datapath: gateway::DatapathKind::Auto,
                park: gateway::ParkKind::Monoio,
                pin_threads: true,
                advertise: Vec::new(),
                reconnect_spread: None,
                adaptive_limits: true,
                admission: gateway::AdmissionConfig::default(),
            },
            link: LinkSettings {
                listen: SocketAddr::from(([0, 0, 0, 0], 7444)),
                connect: Vec::new(),
                agents_per_server: 10_000,
            },
            certificate_life: AGENT_CERTIFICATE_LIFE,
            kinds: Kinds::default(),
            retention: Retention::default(),
            histograms: LogConfig::default(),
            webhooks: WebhooksConfig::default(),
            drain: DrainSettings {
                deadline: Duration::from_secs(20),
            },
            faults: FaultSettings::default(),
            log: LogSettings {
                filter: "info".to_owned(),
                format: LogFormat::Human,
            },
        }
    }
}

/// What a configuration is made from, apart from the defaults.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// From `--config` or `DROVER_CONFIG`.
    pub(crate) file: Option<PathBuf>,
    /// `DROVER_*` variables as `(name, value)`.
    pub(crate) environment: Vec<(String, String)>,
    /// Flags as settings.
    pub(crate) flags: Vec<Setting>,
}

/// A configuration, and where each of its values came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The values.
    pub(crate) config: Config,
    /// The file that was read, if any.
    pub(crate) file: Option<PathBuf>,
    /// Things that a person should know of, though they stop nothing.
    pub(crate) warnings: Vec<String>,
    settings: Vec<Setting>,
}

/// Reads every source in order of precedence.
pub(crate) fn load(sources: Sources) -> Result<Loaded, Fault> {
    let file = sources.file.or_else(|| {
        let default = PathBuf::from(DEFAULT_FILE);
        default.is_file().then_some(default)
    });
    let mut settings = Vec::new();
    let mut kinds = Kinds::default();
    if let Some(path) = &file {
        let name = path.display().to_string();
        let text = file::read(path)?;
        for entry in file::parse(&name, &text, Some(KINDS))? {
            settings.push(layer::from_entry(&name, entry, &keys::names())?);
        }
        kinds = declared(&name, &text)?;
    }
    let (from_environment, warnings) = read_environment(sources.environment);
    settings.extend(from_environment);
    settings.extend(sources.flags);

    let mut config = Config {
        kinds,
        ..Config::default()
    };
    for setting in &settings {
        layer::apply(&mut config, &keys::KEYS, setting)?;
    }
    Ok(Loaded {
        config,
        file,
        warnings,
        settings,
    })
}

/// The kinds of processes that a file declares, and the built-in ones.
fn declared(name: &str, text: &str) -> Result<Kinds, Fault> {
    Kinds::declare(text).map_err(|error| {
        Fault::usage(format_args!("{name}: {error}")).advise(
            "docs/PROCESSES.md says what a kind may be; `drover kinds show vm-create` shows a built-in one",
        )
    })
}

/// The variable of a key: `gateway.shards` is `DROVER_GATEWAY_SHARDS`.
fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// A variable that no key has is only warned of: other software sets variables too (Kubernetes
/// makes `DROVER_PORT` and more for a service named drover).
fn read_environment(variables: Vec<(String, String)>) -> (Vec<Setting>, Vec<String>) {
    let names: Vec<(String, &str)> = keys::names()
        .iter()
        .map(|key| (variable(key), *key))
        .collect();
    let mut settings = Vec::new();
    let mut warnings = Vec::new();
    for (name, value) in variables {
        if ENV_OTHERS.contains(&name.as_str()) || !name.starts_with(ENV_PREFIX) {
            continue;
        }
        if let Some((_, key)) = names.iter().find(|(variable, _)| *variable == name) {
            settings.push(Setting {
                key: (*key).to_owned(),
                value,
                origin: Origin::Variable(name),
            });
        } else if let Some(near) = nearest(&name, names.iter().map(|(v, _)| v.as_str())) {
            warnings.push(format!(
                "the variable {name} is no configuration key and was ignored; did you mean {near}?"
            ));
        }
    }
    (settings, warnings)
}

impl Loaded {
    /// The whole configuration as a TOML file that [`load`] reads back, each key with its meaning
    /// and where its value came from.
    pub(crate) fn print(&self) -> String {
        let mut text =
            String::from("# The configuration of `drover serve`, as it would start now.\n");
        let mut section = "";
        for key in &keys::KEYS {
            let (in_section, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
            if in_section != section {
                section = in_section;
                text.push_str(&format!("\n[{section}]\n"));
            } else {
                text.push('\n');
            }
            let origin = self
                .settings
                .iter()
                .rfind(|setting| setting.key == key.name)
                .map_or_else(
                    || "default".to_owned(),
                    |setting| setting.origin.to_string(),
                );
            text.push_str(&format!("# {}\n", key.doc));
            text.push_str(&format!("# {} ({origin})\n", variable(key.name)));
            text.push_str(&format!("{name} = {}\n", (key.show)(&self.config)));
        }
        let kinds = self.config.kinds.iter();
        let declared: Vec<&str> = kinds
            .filter(|kind| kind.origin == KindOrigin::Configured)
            .map(|kind| kind.name.as_str())
            .collect();
        if !declared.is_empty() {
            text.push_str(&format!(
                "\n# [kinds] of the file declares: {} (`drover kinds show NAME`)\n",
                declared.join(", ")
            ));
        }
        text
    }
}

/// Every `DROVER_*` variable that is valid UTF-8 and not empty.
pub(crate) fn environment() -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| name.starts_with(ENV_PREFIX) && !value.is_empty())
        .collect();
    variables.sort();
    variables
}

#[cfg(test)]
mod tests;
