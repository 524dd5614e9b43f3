//! `drover doctor`: looks at everything that a server needs, says what to do, and changes nothing.
//!
//! ```text
//!   configuration, as `serve` reads it
//!     ├─ data.rs      the directory: owner, modes, file system, room     ─┐
//!     ├─ store.rs     damage, schema, log (read beside a running server)  │
//!     ├─ replicas.rs  whether its replicas answer, and how far they are   │
//!     ├─ coordination.rs  whether lock and event services answer          │
//!     ├─ identity.rs  when certificates end                               │
//!     ├─ link.rs      where the agent server is, if it is elsewhere       ├─▶ check.rs ─▶ text or JSON
//!     ├─ clock.rs     who sets it, and whether it jumped                  │
//!     ├─ kernel.rs    io_uring, steering, buffers, tried as at a start    │
//!     └─ limits.rs, ports.rs                                             ─┘
//! ```
//!
//! Only what the profile runs is looked at. It asks the running server nothing: it also works where that hangs.

pub(super) mod check;
mod clock;
mod coordination;
mod data;
mod identity;
mod kernel;
mod limits;
mod link;
mod ports;
pub(super) mod replicas;
pub(super) mod store;

use std::fs::File;

use clap::Args;
use control::store::{Depth, Inspection};
use serde::Serialize;

use self::check::{Check, Status, worst};
use self::data::Place;
use super::{Global, print};
use crate::config::{self, Config, Loaded};
use crate::data_dir;
use crate::fault::{Exit, Fault};
use crate::profile::Server;
use crate::serve::{self, ServeArguments};

#[derive(Args, Debug)]
pub(crate) struct DoctorArguments {
    /// Look at every index and reference of the store too: several times as long
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    serve: ServeArguments,
}

/// What programs read.
#[derive(Serialize)]
struct Report<'a> {
    /// The worst of the checks.
    status: Status,
    /// The version that looked.
    version: &'static str,
    checks: &'a [Check],
}

/// Looks, tells, and ends with 1 where there was a failure; warnings alone end with 0.
pub(super) async fn run(global: &Global, arguments: DoctorArguments) -> Result<Exit, Fault> {
    if arguments.serve.print_config {
        return Err(Fault::usage("doctor prints no configuration")
            .advise("`drover serve --print-config` does, with the same flags"));
    }
    let depth = depth(arguments.deep);
    let checks = match config::load(arguments.serve.sources(global)) {
        Ok(loaded) => Box::pin(examine(&loaded, depth)).await,
        Err(fault) => vec![Check::of_fault("configuration", &fault)],
    };
    tell(global, &checks)
}

/// How closely to look at a store.
pub(super) fn depth(deep: bool) -> Depth {
    if deep { Depth::Deep } else { Depth::Quick }
}

/// Prints checks, and says how the program ends.
pub(super) fn tell(global: &Global, checks: &[Check]) -> Result<Exit, Fault> {
    let report = Report {
        status: worst(checks),
        version: env!("CARGO_PKG_VERSION"),
        checks,
    };
    print::value(global.output, &report, |report| check::text(report.checks))?;
    Ok(match report.status {
        Status::Failure => Exit::Failure,
        Status::Ok | Status::Warning => Exit::Success,
    })
}

async fn examine(loaded: &Loaded, depth: Depth) -> Vec<Check> {
    let config = &loaded.config;
    let place = Place::look(&config.data_dir);
    let now = control::clock::now();
    let since = place
        .server()
        .and_then(|_| data_dir::ready_since(&place.path));
    let mut checks = configuration(loaded);
    let mut fleet = 0;
    if config.profile.has_store() {
        checks.extend(link::checks(config).await);
        let server = control::store::inspect_server(&config.store)
            .await
            .transpose();
        let looked = match &server {
            Some(_) => Ok(None),
            None => control::store::inspect(&config.store, &config.data_dir, depth).await,
        };
        let found = looked.as_ref().ok().and_then(Option::as_ref);
        fleet = match &server {
            Some(server) => server.as_ref().map_or(0, |server| server.agents),
            None => store::agents(&looked),
        };
        let file = found.map(|store| (store.path.as_path(), store.bytes));
        checks.extend(data::checks(&place, file));
        match &server {
            Some(server) => checks.extend(store::server_checks(server)),
            None => checks.extend(store::checks(&looked, depth)),
        }
        checks.extend(replicas::checks(config).await);
        checks.extend(found.and_then(|store| user(store, &place)));
        checks.extend(coordination::checks(config).await);
        let authorities = identity::checks(&place.path, &config.domain, fleet, since, now);
        checks.extend(authorities);
        checks.extend(clock::checks(found, since.is_some(), now));
    } else {
        checks.extend(data::checks(&place, None));
        checks.push(identity::of_agent_server(&place.path, &config.domain, now));
        checks.extend(clock::checks(None, since.is_some(), now));
    }
    checks.extend(machine(config, &place, fleet));
    checks.extend(ports::checks(config, place.server()));
    checks
}

/// Whether the server that has the store is the one of this data directory.
fn user(store: &Inspection, place: &Place) -> Option<Check> {
    (store.in_use && !place.is_in_use()).then(|| {
        Check::failure(
            "store.user",
            "a server on another data directory has this store",
            "give each server a store of its own: `store` in their configurations",
        )
    })
}

/// What kernel and system give. `fleet`: how many agents the store lets in.
fn machine(config: &Config, place: &Place, fleet: u64) -> Vec<Check> {
    let connections = match config.profile.runs(Server::Api) {
        true => config.api.connections(),
        false => 0,
    };
    let mut needs = limits::Needs {
        agents: fleet,
        shards: 0,
        connections,
        cpus: None,
        server: place.server().map(|ready| ready.pid),
    };
    let mut checks = Vec::new();
    if config.profile.runs(Server::Agent) {
        let shards = config.gateway.shards.unwrap_or_else(serve::cores);
        let probed = kernel::probe(&config.gateway, shards);
        checks = kernel::checks(&config.gateway, shards, &probed);
        needs.shards = shards;
        needs.cpus = probed.ok().map(|machine| machine.cpus);
    }
    checks.extend(limits::checks(&needs));
    checks
}

/// What was read, and what of it should not stay so.
fn configuration(loaded: &Loaded) -> Vec<Check> {
    let found = match &loaded.file {
        Some(file) => format!("valid; {} was read", file.display()),
        None => "valid; no file was read".to_owned(),
    };
    let mut checks = vec![Check::ok("configuration", found)];
    checks.extend(loaded.warnings.iter().map(|warning| {
        let advice = "unset it, or name the key that was meant";
        Check::warning("configuration.variables", warning.as_str(), advice)
    }));
    checks.extend(for_tests(&loaded.config));
    if let Some(path) = &loaded.config.webhooks.ca_file
        && let Err(error) = File::open(path)
    {
        checks.push(Check::failure(
            "configuration.webhooks",
            format!(
                "webhooks.ca_file: {} cannot be read: {error}",
                path.display()
            ),
            "name a PEM file that the server's user can read, or leave the key out",
        ));
    }
    checks
}

/// Keys that are for tests and labs.
fn for_tests(config: &Config) -> Vec<Check> {
    let name = "configuration.tests";
    let mut checks = Vec::new();
    if config.faults != config::FaultSettings::default() {
        let found = "faults.… has process servers hang or die on purpose";
        checks.push(Check::warning(name, found, "remove the section [faults]"));
    }
    if config.webhooks.allow_insecure {
        let found = "webhooks.allow_insecure lets webhooks reach whatever the server can reach";
        checks.push(Check::warning(name, found, "set it to false"));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_for_tests_are_warned_of() {
        let mut config = Config::default();
        assert_eq!(for_tests(&config), Vec::new());
        config.webhooks.allow_insecure = true;
        config.faults.die_every = Some(std::time::Duration::from_secs(5));
        assert_eq!(for_tests(&config).len(), 2);
    }
}
