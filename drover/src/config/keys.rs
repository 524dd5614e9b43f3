//! Every key of the server's configuration: its name, its meaning, how it is read and written.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use control::coordination::{EventsUrl, LocksUrl};
use gateway::{DatapathKind, ParkKind};
use protocol::limits::SHARDS_MAX;

mod listeners;

use self::listeners::listener_key;
use super::layer::Key;
use super::value;
use super::{Config, LogFormat};
use crate::profile::Profile;

/// The most that a rate of admission can be.
const RATE_MAX: NonZeroU32 = NonZeroU32::new(100_000).unwrap();
/// Process servers in one process: more than can be of use on one store.
const PROCESS_SERVERS_MAX: u32 = 16;
/// More than an agent server can hold.
const AGENTS_PER_SERVER_MAX: u32 = 1_000_000;
/// One day.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The names of all keys.
pub(super) fn names() -> Vec<&'static str> {
    KEYS.iter().map(|key| key.name).collect()
}

/// All keys, section by section, in the order in which they are printed.
pub(super) static KEYS: [Key<Config>; 59] = [
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
        doc: "Which servers run in this process: all; or of agent-server, api-server and process-server, with commas.",
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
        doc: "URL of the store: sqlite: is drover.db in the data directory, sqlite:PATH another file; \
              postgres://… and mysql://… are databases that several servers share (docs/STORES.md).",
        set: |config, text| {
            match text.split_once(':') {
            Some(("sqlite", _)) => {
                config.store = text.to_owned();
                Ok(())
            }
            Some(("postgres" | "postgresql" | "mysql" | "mariadb", rest))
                if rest.starts_with("//") =>
            {
                config.store = text.to_owned();
                Ok(())
            }
            Some(_) | None => Err(
                "expected sqlite:, sqlite:PATH, postgres://USER:PASSWORD@HOST/DATABASE or mysql://…"
                    .to_owned(),
            ),
        }
        },
        // The password is nobody's business who looks at the configuration.
        show: |config| value::quote(&control::store::shown(&config.store)),
    },
    Key {
        name: "store_read_urls",
        doc: "URLs of replicas of the store, one for each server: what the API only shows is read there (docs/STORES.md).",
        set: |config, text| value::replicas(text).map(|urls| config.replicas.urls = urls),
        show: |config| {
            let urls = config.replicas.urls.iter();
            let shown: Vec<String> = urls.map(|url| control::store::shown(url)).collect();
            value::quote_list(&shown)
        },
    },
    Key {
        name: "store_read_max_age",
        doc: "What is read from a replica was so at most this long ago; an older one is not read from (2s to 10m).",
        set: |config, text| {
            // It is looked at twice a second on both sides: below this, one without any lag may be too old.
            value::duration_within(text, Duration::from_secs(2), Duration::from_secs(600))
                .map(|age| config.replicas.max_age = age)
        },
        show: |config| value::quote(&value::show_duration(config.replicas.max_age)),
    },
    Key {
        name: "process_servers",
        doc: "Process servers in this process, each with its own identity, heartbeat and claims (1 to 16).",
        set: |config, text| {
            value::number(text, 1, PROCESS_SERVERS_MAX).map(|count| config.process_servers = count)
        },
        show: |config| config.process_servers.to_string(),
    },
    Key {
        name: "locks.url",
        doc: "URL of the lock service, by which servers hear at once that one is gone: sql:, local:, zookeeper://HOST or \
              redis://HOST. A password is shown as ***.",
        set: |config, text| {
            let url = LocksUrl::parse(text).map_err(|error| error.to_string());
            url.map(|url| config.locks = url)
        },
        show: |config| value::quote(&config.locks.to_string()),
    },
    Key {
        name: "events.url",
        doc: "URL of the event service, by which processes of servers wake each other: local:, sql: or redis://HOST. A \
              password is shown as ***.",
        set: |config, text| {
            let url = EventsUrl::parse(text).map_err(|error| error.to_string());
            url.map(|url| config.events = url)
        },
        show: |config| value::quote(&config.events.to_string()),
    },
    Key {
        name: "api.listen",
        doc: "Address of the REST API and the dashboard (TCP): the listener ui.",
        set: |config, text| value::listen(text).map(|address| config.api.listen = address),
        show: |config| value::quote(&config.api.listen.to_string()),
    },
    Key {
        name: "api.requests_per_second",
        doc: "Requests a second for each API token; twice as many in a burst (1 to 100000).",
        set: |config, text| {
            let least = NonZeroU32::MIN;
            value::number(text, least, RATE_MAX).map(|rate| config.api.requests_per_second = rate)
        },
        show: |config| config.api.requests_per_second.to_string(),
    },
    listener_key!(ui.certificate),
    listener_key!(ui.key),
    listener_key!(ui.requests_per_second),
    listener_key!(ui.burst),
    listener_key!(ui.address_requests_per_second),
    listener_key!(ui.concurrent_requests),
    listener_key!(ui.connections),
    listener_key!(ui.workers),
    Key {
        name: "api.public.listen",
        doc: "Address of the API for programs from outside (TCP): the listener public; off: there is none.",
        set: |config, text| {
            value::listen_or_off(text).map(|address| config.api.public_listen = address)
        },
        show: |config| value::quote(&value::show_or_off(config.api.public_listen)),
    },
    Key {
        name: "api.public.admin_routes",
        doc: "Whether the listener public also serves what needs the role admin.",
        set: |config, text| value::truth(text).map(|serve| config.api.public_admin_routes = serve),
        show: |config| config.api.public_admin_routes.to_string(),
    },
    listener_key!(public.certificate),
    listener_key!(public.key),
    listener_key!(public.requests_per_second),
    listener_key!(public.burst),
    listener_key!(public.address_requests_per_second),
    listener_key!(public.concurrent_requests),
    listener_key!(public.connections),
    listener_key!(public.workers),
    Key {
        name: "admin.listen",
        doc: "Address of /healthz, /readyz and /metrics without a token (TCP, plain HTTP): keep it on \
              loopback; off: there is none.",
        set: |config, text| {
            value::listen_or_off(text).map(|address| config.api.admin_listen = address)
        },
        show: |config| value::quote(&value::show_or_off(config.api.admin_listen)),
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
        doc: "Agents that lost their session come back spread over this time (0ms to 10m); auto: as \
              long as their handshakes take.",
        set: |config, text| {
            config.gateway.reconnect_spread = match text {
                "auto" => None,
                _ => {
                    let most = Duration::from_secs(600);
                    Some(value::duration_within(text, Duration::ZERO, most)?)
                }
            };
            Ok(())
        },
        show: |config| {
            let spread = config.gateway.reconnect_spread;
            value::quote(&spread.map_or("auto".to_owned(), value::show_duration))
        },
    },
    Key {
        name: "gateway.adaptive_limits",
        doc: "Whether operations at once on an agent follow what it can take, up to its capacity: true, false.",
        set: |config, text| {
            value::truth(text).map(|adaptive| config.gateway.adaptive_limits = adaptive)
        },
        show: |config| config.gateway.adaptive_limits.to_string(),
    },
    Key {
        name: "gateway.handshakes_per_second",
        doc: "TLS handshakes that each shard starts a second, in the long run (1 to 100000).",
        set: |config, text| {
            value::number(text, 1, RATE_MAX.get())
                .map(|rate| config.gateway.admission.handshakes_per_second = rate)
        },
        show: |config| config.gateway.admission.handshakes_per_second.to_string(),
    },
    Key {
        name: "gateway.handshake_burst",
        doc: "TLS handshakes that each shard starts at once after a pause (1 to 100000).",
        set: |config, text| {
            value::number(text, 1, RATE_MAX.get())
                .map(|rate| config.gateway.admission.handshake_burst = rate)
        },
        show: |config| config.gateway.admission.handshake_burst.to_string(),
    },
    Key {
        name: "gateway.enrolments_per_second",
        doc: "Enrolments that each shard takes a second, in the long run (1 to 100000).",
        set: |config, text| {
            value::number(text, 1, RATE_MAX.get())
                .map(|rate| config.gateway.admission.enrolments_per_second = rate)
        },
        show: |config| config.gateway.admission.enrolments_per_second.to_string(),
    },
    Key {
        name: "gateway.enrolment_burst",
        doc: "Enrolments that each shard takes at once after a pause (1 to 100000).",
        set: |config, text| {
            value::number(text, 1, RATE_MAX.get())
                .map(|rate| config.gateway.admission.enrolment_burst = rate)
        },
        show: |config| config.gateway.admission.enrolment_burst.to_string(),
    },
    Key {
        name: "link.listen",
        doc: "Address where an agent server lets process servers in (UDP, mutual TLS): every profile with one; `all` with \
              link.connect.",
        set: |config, text| value::listen(text).map(|address| config.link.listen = address),
        show: |config| value::quote(&config.link.listen.to_string()),
    },
    Key {
        name: "link.connect",
        doc: "HOST:PORT of each agent server, its link.listen. Empty with profile all: the only one is in this process; \
              otherwise its own is named, too.",
        set: |config, text| value::addresses(text).map(|all| config.link.connect = all),
        show: |config| value::quote_list(&config.link.connect),
    },
    Key {
        name: "link.agents_per_server",
        doc: "Agents that an agent server is given at most, while another one has room (1 to 1000000).",
        set: |config, text| {
            value::number(text, 1, AGENTS_PER_SERVER_MAX)
                .map(|most| config.link.agents_per_server = most)
        },
        show: |config| config.link.agents_per_server.to_string(),
    },
    Key {
        name: "agents.certificate_life",
        doc: "How long an agent's certificate lives (1h to 8760h).",
        set: |config, text| {
            value::duration_within(text, Duration::from_secs(3600), 365 * DAY)
                .map(|life| config.certificate_life = life)
        },
        show: |config| value::quote(&value::show_duration(config.certificate_life)),
    },
    Key {
        name: "retention.processes",
        doc: "Ended processes are deleted after this, with their output (1h to 87600h).",
        set: |config, text| {
            value::duration_within(text, Duration::from_secs(3600), 3650 * DAY)
                .map(|keep| config.retention.processes = keep)
        },
        show: |config| value::quote(&value::show_duration(config.retention.processes)),
    },
    Key {
        name: "retention.events",
        doc: "Events that are kept at most; the oldest go first (1000 to 1000000000).",
        set: |config, text| {
            value::number(text, 1000, 1_000_000_000).map(|keep| config.retention.events = keep)
        },
        show: |config| config.retention.events.to_string(),
    },
    Key {
        name: "histograms.log_interval",
        doc: "Histograms are written to DATA/histograms this often (1s to 10m).",
        set: |config, text| {
            value::duration_within(text, Duration::from_secs(1), Duration::from_secs(600))
                .map(|interval| config.histograms.interval = interval)
        },
        show: |config| value::quote(&value::show_duration(config.histograms.interval)),
    },
    Key {
        name: "histograms.log_files",
        doc: "Files of histograms that are kept; the oldest go first (0 to 1000; 0: none is written).",
        set: |config, text| {
            value::number(text, 0, 1000).map(|files| config.histograms.files = files)
        },
        show: |config| config.histograms.files.to_string(),
    },
    Key {
        name: "histograms.log_file_mib",
        doc: "A file of histograms of so many MiB is followed by another (1 to 1024).",
        set: |config, text| {
            value::number(text, 1, 1024).map(|mib: u64| config.histograms.file_bytes = mib << 20)
        },
        show: |config| (config.histograms.file_bytes >> 20).to_string(),
    },
    Key {
        name: "webhooks.allow_insecure",
        doc: "Lets webhooks use http:// and addresses that are not public: for tests and labs.",
        set: |config, text| value::truth(text).map(|allow| config.webhooks.allow_insecure = allow),
        show: |config| config.webhooks.allow_insecure.to_string(),
    },
    Key {
        name: "webhooks.ca_file",
        doc: "PEM file of authorities that webhooks trust beside this machine's; empty: none.",
        set: |config, text| {
            config.webhooks.ca_file = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
        show: |config| {
            let path = config.webhooks.ca_file.as_deref();
            value::quote(&path.unwrap_or("".as_ref()).to_string_lossy())
        },
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
        name: "faults.process_server_dies_after",
        doc: "For tests: so long after the start (1s to 24h) the last of several process servers dies as in a \
              crash, and stays dead; never: it does not.",
        set: |config, text| {
            value::never_or_within(text, Duration::from_secs(1), DAY)
                .map(|after| config.faults.dies_after = after)
        },
        show: |config| value::quote(&value::show_or_never(config.faults.dies_after)),
    },
    Key {
        name: "faults.process_servers_die_every",
        doc: "For tests: so often (1s to 24h) one of several process servers dies as in a crash, whichever it \
              is, and another one takes its place; never: none does.",
        set: |config, text| {
            value::never_or_within(text, Duration::from_secs(1), DAY)
                .map(|every| config.faults.die_every = every)
        },
        show: |config| value::quote(&value::show_or_never(config.faults.die_every)),
    },
    Key {
        name: "faults.process_server_hangs_after",
        doc: "For tests: so long after the start (1s to 24h) the last of several process servers hangs for \
              30 s; never: it does not.",
        set: |config, text| {
            value::never_or_within(text, Duration::from_secs(1), DAY)
                .map(|after| config.faults.hangs_after = after)
        },
        show: |config| value::quote(&value::show_or_never(config.faults.hangs_after)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_page_has_every_key_with_its_default() {
        let page = include_str!("../../../docs/OPERATIONS.md");
        let defaults = Config::default();
        for key in &KEYS {
            let row = format!("| `{}` | ", key.name);
            let line = page.lines().find(|line| line.starts_with(&row));
            let line = line.unwrap_or_else(|| panic!("docs/OPERATIONS.md lacks {}", key.name));
            let default = (key.show)(&defaults);
            let plain = default.trim_matches('"');
            let shown = if ["", "[]"].contains(&plain) {
                "empty"
            } else {
                plain
            };
            assert!(
                line.contains(shown),
                "{}: the default is {default}",
                key.name
            );
        }
    }

    #[test]
    fn every_default_is_a_value_that_its_key_takes() {
        for key in &KEYS {
            let shown = (key.show)(&Config::default());
            let text = shown.trim_matches(['"', '[', ']']);
            let mut config = Config::default();
            (key.set)(&mut config, text).unwrap_or_else(|error| panic!("{}: {error}", key.name));
            assert_eq!(config, Config::default(), "{}", key.name);
        }
    }
}
