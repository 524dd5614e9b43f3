//! Every key of the server's configuration: its name, its meaning, how it is read and written.

use std::path::PathBuf;
use std::time::Duration;

use gateway::{DatapathKind, ParkKind};
use protocol::limits::SHARDS_MAX;

use super::layer::Key;
use super::value;
use super::{Config, LogFormat};
use crate::profile::Profile;

/// The names of all keys.
pub(super) fn names() -> Vec<&'static str> {
    KEYS.iter().map(|key| key.name).collect()
}

/// All keys, section by section, in the order in which they are printed.
pub(super) static KEYS: [Key<Config>; 15] = [
    Key {
        name: "data_dir",
        doc: "Directory of everything the server keeps (mode 0700): store, CA, tokens, lock.",
        set: |config, text| {
            if text.is_empty() {
                return Err("expected a directory".to_owned());
            }
            config.data_dir = PathBuf::from(text);
            Ok(())
        },
        show: |config| value::quote(&config.data_dir.to_string_lossy()),
    },
    Key {
        name: "profile",
        doc: "Which servers run in this process: all.",
        set: |config, text| Profile::parse(text).map(|profile| config.profile = profile),
        show: |config| value::quote(config.profile.name()),
    },
    Key {
        name: "domain",
        doc: "Trust domain in every certificate. Fixed at the first start.",
        set: |config, text| value::domain(text).map(|domain| config.domain = domain),
        show: |config| value::quote(&config.domain),
    },
    Key {
        name: "store",
        doc: "URL of the store: sqlite:PATH. Empty: drover.db in the data directory.",
        set: |config, text| {
            let scheme = text.split(':').next().unwrap_or_default();
            match scheme {
                "" | "sqlite" => {
                    config.store = text.to_owned();
                    Ok(())
                }
                "mysql" | "postgres" => Err(format!(
                    "{scheme} is not in this release; use sqlite:PATH or leave it empty"
                )),
                _ => Err("expected sqlite:PATH, or nothing for the embedded store".to_owned()),
            }
        },
        show: |config| value::quote(&config.store),
    },
    Key {
        name: "api.listen",
        doc: "Address of the REST API (TCP). Plain HTTP: keep it on loopback or behind a TLS proxy.",
        set: |config, text| value::listen(text).map(|address| config.api_listen = address),
        show: |config| value::quote(&config.api_listen.to_string()),
    },
    Key {
        name: "gateway.listen",
        doc: "Address that agents connect to (UDP, mutual TLS).",
        set: |config, text| value::listen(text).map(|address| config.gateway.listen = address),
        show: |config| value::quote(&config.gateway.listen.to_string()),
    },
    Key {
        name: "gateway.shards",
        doc: "Threads of the agent server, 1 to 64; auto: one per available core.",
        set: |config, text| {
            config.gateway.shards = match text {
                "auto" => None,
                _ => Some(
                    value::number(text, 1, SHARDS_MAX)
                        .map_err(|problem| format!("{problem}, or auto"))?,
                ),
            };
            Ok(())
        },
        show: |config| match config.gateway.shards {
            Some(shards) => shards.to_string(),
            None => value::quote("auto"),
        },
    },
    Key {
        name: "gateway.datapath",
        doc: "How packets reach the kernel: auto (io_uring where permitted), uring or poll.",
        set: |config, text| {
            config.gateway.datapath = match text {
                "auto" => DatapathKind::Auto,
                "uring" => DatapathKind::Uring,
                "poll" => DatapathKind::Poll,
                _ => return Err("expected auto, uring or poll".to_owned()),
            };
            Ok(())
        },
        show: |config| {
            value::quote(match config.gateway.datapath {
                DatapathKind::Auto => "auto",
                DatapathKind::Uring => "uring",
                DatapathKind::Poll => "poll",
            })
        },
    },
    Key {
        name: "gateway.park",
        doc: "How an idle thread sleeps: monoio or direct (our own loop on the ring).",
        set: |config, text| {
            config.gateway.park = match text {
                "monoio" => ParkKind::Monoio,
                "direct" => ParkKind::Direct,
                _ => return Err("expected monoio or direct".to_owned()),
            };
            Ok(())
        },
        show: |config| {
            value::quote(match config.gateway.park {
                ParkKind::Monoio => "monoio",
                ParkKind::Direct => "direct",
            })
        },
    },
    Key {
        name: "gateway.pin_threads",
        doc: "Whether each thread of the agent server stays on its core.",
        set: |config, text| value::truth(text).map(|pin| config.gateway.pin_threads = pin),
        show: |config| config.gateway.pin_threads.to_string(),
    },
    Key {
        name: "gateway.advertise",
        doc: "HOST:PORT list told to agents as ways back; empty: the address that they came by.",
        set: |config, text| value::addresses(text).map(|all| config.gateway.advertise = all),
        show: |config| value::quote_list(&config.gateway.advertise),
    },
    Key {
        name: "gateway.reconnect_spread",
        doc: "Agents that lost their session come back spread over this time (0ms to 10m).",
        set: |config, text| {
            value::duration_within(text, Duration::ZERO, Duration::from_secs(600))
                .map(|spread| config.gateway.reconnect_spread = spread)
        },
        show: |config| value::quote(&value::show_duration(config.gateway.reconnect_spread)),
    },
    Key {
        name: "drain.deadline",
        doc: "After SIGTERM the process ends after this time at the latest (1s to 10m).",
        set: |config, text| {
            value::duration_within(text, Duration::from_secs(1), Duration::from_secs(600))
                .map(|deadline| config.drain.deadline = deadline)
        },
        show: |config| value::quote(&value::show_duration(config.drain.deadline)),
    },
    Key {
        name: "log.filter",
        doc: "What is logged: error, warn, info, debug, trace, or a filter such as info,gateway=debug.",
        set: |config, text| {
            crate::log::check(text)?;
            config.log.filter = text.to_owned();
            Ok(())
        },
        show: |config| value::quote(&config.log.filter),
    },
    Key {
        name: "log.format",
        doc: "How log lines look on standard error: human or json.",
        set: |config, text| LogFormat::parse(text).map(|format| config.log.format = format),
        show: |config| value::quote(config.log.format.name()),
    },
];
