//! What an agent is told by its owner: `agent.toml` in the state directory, and flags over it.
//!
//! ```toml
//! servers = ["gateway.example:7443"]   # before those learnt at enrolment
//! capacity = 4                         # operations at once
//! stop_grace_seconds = 30              # for running operations when the agent stops
//! simulated = false                    # the driver for load tests and tours
//! [labels]
//! zone = "a"
//! [exec.programs.uname]
//! path = "/bin/uname"
//! args = ["-a"]                        # always there
//! extra_args = false                   # commands may not add any
//! env = []                             # variables that commands may set
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::limits;
use serde::Deserialize;

use crate::driver::exec::Program;
use crate::transport;

/// The file's name in the state directory.
pub const FILE_NAME: &str = "agent.toml";
/// Operations at once, unless configured.
const CAPACITY_DEFAULT: u32 = 4;
const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// Everything that [`crate::run()`] needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentConfig {
    /// Identity, journal and configuration live here.
    pub state_dir: PathBuf,
    /// `host:port` of gateways, before those learnt at enrolment.
    pub servers: Vec<String>,
    /// Operations at once, at most `limits::CAPACITY_MAX`.
    pub capacity: u32,
    /// For people and selection.
    pub labels: BTreeMap<String, String>,
    /// For people: this host's name.
    pub hostname: String,
    /// Programs that `exec` may run, by name.
    pub programs: BTreeMap<String, Program>,
    /// Whether the `simulated` driver is offered.
    pub simulated: bool,
    /// How long running operations may go on when the agent stops.
    pub stop_grace: Duration,
}

/// What the command line says; each wins over the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// Replaces the file's servers unless empty.
    pub servers: Vec<String>,
    /// Operations at once.
    pub capacity: Option<u32>,
    /// Added to the file's labels.
    pub labels: BTreeMap<String, String>,
    /// This host's name.
    pub hostname: Option<String>,
    /// Added to the file's programs: name and absolute path.
    pub programs: BTreeMap<String, PathBuf>,
    /// Offer the `simulated` driver.
    pub simulated: bool,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not valid.
    #[error("{}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what, with the keys that there are.
        problem: String,
    },
    /// A value is out of its range.
    #[error("{0}")]
    Value(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    servers: Vec<String>,
    capacity: Option<u32>,
    labels: BTreeMap<String, String>,
    hostname: Option<String>,
    simulated: bool,
    stop_grace_seconds: Option<u64>,
    exec: Exec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Exec {
    programs: BTreeMap<String, Program>,
}

impl AgentConfig {
    /// Reads `agent.toml` in the state directory, if there is one, and lays the flags over it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(state_dir: &Path, flags: Flags) -> Result<Self, ConfigError> {
        let path = state_dir.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Io { path, source }),
        };
        let file = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
            path,
            problem: error.to_string(),
        })?;
        Self::combine(state_dir, file, flags)
    }

    fn combine(state_dir: &Path, file: File, flags: Flags) -> Result<Self, ConfigError> {
        let programs = flags.programs.into_iter().map(|(name, path)| {
            let program = Program {
                path,
                args: Vec::new(),
                extra_args: true,
                env: Vec::new(),
            };
            (name, program)
        });
        let config = Self {
            state_dir: state_dir.to_owned(),
            servers: match flags.servers.is_empty() {
                true => file.servers,
                false => flags.servers,
            },
            capacity: flags.capacity.or(file.capacity).unwrap_or(CAPACITY_DEFAULT),
            labels: file.labels.into_iter().chain(flags.labels).collect(),
            hostname: flags.hostname.or(file.hostname).unwrap_or_else(hostname),
            programs: file.exec.programs.into_iter().chain(programs).collect(),
            simulated: file.simulated || flags.simulated,
            stop_grace: file
                .stop_grace_seconds
                .map_or(STOP_GRACE_DEFAULT, Duration::from_secs),
        };
        config.check().map_err(ConfigError::Value)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        for server in &self.servers {
            transport::check_address(server).map_err(|error| error.to_string())?;
        }
        let most = limits::CAPACITY_MAX;
        if !(1..=most).contains(&self.capacity) {
            let capacity = self.capacity;
            return Err(format!(
                "`capacity` is {capacity}; it must be from 1 to {most}"
            ));
        }
        if self.labels.len() > limits::LABELS_MAX {
            return Err(format!("there are more than {} labels", limits::LABELS_MAX));
        }
        for (name, value) in &self.labels {
            let name_max = limits::NAME_BYTES_MAX;
            let value_max = limits::LABEL_VALUE_BYTES_MAX;
            let sized = (1..=name_max).contains(&name.len()) && value.len() <= value_max;
            if !sized || name.contains('=') || has_control(name) || has_control(value) {
                return Err(format!(
                    "label `{name}`: a name has 1 to {name_max} bytes without `=`, a value at most \
                     {value_max}, and neither has control characters"
                ));
            }
        }
        let host_max = limits::NAME_BYTES_MAX;
        if self.hostname.len() > host_max || has_control(&self.hostname) {
            return Err(format!(
                "`hostname` must have at most {host_max} bytes and no control characters"
            ));
        }
        for (name, program) in &self.programs {
            if !program.path.is_absolute() {
                let path = program.path.display();
                return Err(format!(
                    "program `{name}`: `{path}` is not an absolute path"
                ));
            }
            let reserved = |variable: &&String| variable.starts_with("DROVER_");
            if let Some(variable) = program.env.iter().find(reserved) {
                return Err(format!(
                    "program `{name}`: `{variable}` is set by the agent itself"
                ));
            }
        }
        Ok(())
    }
}

fn has_control(text: &str) -> bool {
    text.contains(char::is_control)
}

/// The operating system's name of this host.
pub(crate) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let mut name = name.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned());
    crate::session::clip(&mut name, limits::NAME_BYTES_MAX);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, flags: Flags) -> Result<AgentConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
        AgentConfig::load(dir.path(), flags).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_of_the_module_page_is_valid_and_flags_win() {
        let source = include_str!("config.rs");
        let example = source
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1);
        let example: String = example
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//! ").to_owned() + "\n")
            .collect();
        let flags = Flags {
            capacity: Some(2),
            programs: [("date".to_owned(), PathBuf::from("/bin/date"))].into(),
            ..Flags::default()
        };
        let config = load(&example, flags).unwrap();
        assert_eq!(config.capacity, 2);
        assert_eq!(config.servers, ["gateway.example:7443"]);
        assert_eq!(
            config.programs.keys().collect::<Vec<_>>(),
            ["date", "uname"]
        );
        assert!(!config.programs["uname"].extra_args && config.programs["date"].extra_args);
    }

    #[test]
    fn without_a_file_there_are_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let config = AgentConfig::load(dir.path(), Flags::default()).unwrap();
        assert_eq!(
            (config.capacity, config.simulated),
            (CAPACITY_DEFAULT, false)
        );
        assert!(!config.hostname.is_empty() && config.programs.is_empty());
    }

    #[test]
    fn mistakes_are_refused_with_words_that_help() {
        for (text, word) in [
            ("capcity = 4", "expected one of"),
            ("capacity = 0", "from 1 to 16"),
            ("capacity = 17", "from 1 to 16"),
            ("capacity = \"many\"", "u32"),
            ("servers = [\"gateway\"]", "HOST:PORT"),
            ("[exec.programs]\nx = { path = \"uname\" }", "absolute"),
            (
                "[exec.programs]\nx = { path = \"/bin/x\", shell = true }",
                "shell",
            ),
            (
                "[exec.programs]\nx = { path = \"/bin/x\", env = [\"DROVER_X\"] }",
                "itself",
            ),
            ("[labels]\n\"\" = \"x\"", "label"),
            ("[labels]\n\"a=b\" = \"x\"", "without `=`"),
            ("hostname = \"a\\nb\"", "control characters"),
            ("servers = [", "agent.toml"),
        ] {
            let error = load(text, Flags::default()).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
