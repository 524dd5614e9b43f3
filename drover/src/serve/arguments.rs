//! The flags of `drover serve`: each is a configuration key under a shorter name.

use std::path::PathBuf;

use clap::Args;

use crate::cli::Global;
use crate::config::layer::{Origin, Setting};
use crate::config::{Sources, environment};

#[derive(Args, Debug, Default)]
#[command(after_help = "\
Every key can also stand in drover.toml (--config) or in a variable: gateway.shards is
DROVER_GATEWAY_SHARDS. Flags win over variables, variables over the file. --print-config shows
every key, its value and where it came from.")]
pub(crate) struct ServeArguments {
    /// Configuration file [default: ./drover.toml where it exists]
    #[arg(long, env = "DROVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the configuration as a file, and start nothing
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Which servers run in this process [default: all]
    #[arg(long)]
    profile: Option<String>,
    /// Address of the API [default: 127.0.0.1:7440]
    #[arg(long, value_name = "IP:PORT")]
    api_listen: Option<String>,
    /// Address for agents, UDP [default: 0.0.0.0:7443]
    #[arg(long, value_name = "IP:PORT")]
    gateway_listen: Option<String>,
    /// Threads of the agent server [default: one per core]
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// How packets reach the kernel: auto, uring or poll [default: auto]
    #[arg(long, value_name = "KIND")]
    datapath: Option<String>,
    /// How an idle thread sleeps: monoio or direct [default: monoio]
    #[arg(long, value_name = "KIND")]
    park: Option<String>,
    /// HOST:PORT told to agents as a way back; repeat for more
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Trust domain in every certificate, fixed at the first start [default: drover.internal]
    #[arg(long)]
    domain: Option<String>,
    /// What is logged [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look: human or json [default: human]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any other key, such as drain.deadline=30s; repeat for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_set)]
    set: Vec<(String, String)>,
}

impl ServeArguments {
    /// No flags, and the file that was named.
    pub(crate) fn of_file(config: Option<PathBuf>) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// Where the configuration comes from.
    pub(crate) fn sources(self, global: &Global) -> Sources {
        let advertise = (!self.advertise.is_empty()).then(|| self.advertise.join(","));
        let data_dir = global
            .data_dir
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        let named = [
            ("--data-dir", "data_dir", data_dir),
            ("--profile", "profile", self.profile),
            ("--api-listen", "api.listen", self.api_listen),
            ("--gateway-listen", "gateway.listen", self.gateway_listen),
            ("--shards", "gateway.shards", self.shards),
            ("--datapath", "gateway.datapath", self.datapath),
            ("--park", "gateway.park", self.park),
            ("--advertise", "gateway.advertise", advertise),
            ("--domain", "domain", self.domain),
            ("--log", "log.filter", self.log),
            ("--log-format", "log.format", self.log_format),
        ];
        let mut flags: Vec<Setting> = named
            .into_iter()
            .filter_map(|(flag, key, value)| Some(setting(flag, key, value?)))
            .collect();
        flags.extend(
            self.set
                .into_iter()
                .map(|(key, value)| setting("--set", &key, value)),
        );
        Sources {
            file: self.config,
            environment: environment(),
            flags,
        }
    }
}

fn setting(flag: &str, key: &str, value: String) -> Setting {
    Setting {
        key: key.to_owned(),
        value,
        origin: Origin::Flag(flag.to_owned()),
    }
}

fn parse_set(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .ok_or_else(|| "expected KEY=VALUE, such as drain.deadline=30s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Output;
    use crate::config;

    fn global() -> Global {
        Global {
            api: None,
            token: None,
            ca_file: None,
            data_dir: Some(PathBuf::from("/data")),
            output: Output::Human,
        }
    }

    #[test]
    fn every_flag_reaches_a_key_that_exists() {
        let arguments = ServeArguments {
            profile: Some("all".to_owned()),
            api_listen: Some("127.0.0.1:1".to_owned()),
            gateway_listen: Some("127.0.0.1:2".to_owned()),
            shards: Some("2".to_owned()),
            datapath: Some("poll".to_owned()),
            park: Some("direct".to_owned()),
            advertise: vec!["a:1".to_owned(), "b:2".to_owned()],
            domain: Some("cloud.example".to_owned()),
            log: Some("debug".to_owned()),
            log_format: Some("json".to_owned()),
            set: vec![parse_set("drain.deadline = 5s").unwrap()],
            ..ServeArguments::default()
        };
        let mut sources = arguments.sources(&global());
        sources.environment.clear();
        let config = config::load(sources).unwrap().config;
        assert_eq!(config.data_dir, PathBuf::from("/data"));
        assert_eq!(config.gateway.shards, Some(2));
        assert_eq!(config.gateway.advertise, ["a:1", "b:2"]);
        assert_eq!(config.domain, "cloud.example");
        assert_eq!(config.drain.deadline.as_secs(), 5);
    }

    #[test]
    fn a_slip_in_set_is_told_with_the_key_that_was_meant() {
        let arguments = ServeArguments {
            set: vec![parse_set("drain.deadlin=5s").unwrap()],
            ..ServeArguments::default()
        };
        let mut sources = arguments.sources(&global());
        sources.environment.clear();
        let fault = config::load(sources).unwrap_err();
        assert!(
            fault.what.starts_with("--set: there is no key"),
            "{fault:?}"
        );
        assert_eq!(
            fault.advice.as_deref(),
            Some("did you mean `drain.deadline`?")
        );
    }
}
