//! `drover doctor`: looks at everything that a server needs, says what to do, and changes nothing.
//!
//! ```text
//!   configuration.rs  as `serve` reads it, and what `serve` would refuse of it
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
mod configuration;
mod coordination;
mod data;
mod identity;
mod kernel;
mod limits;
mod link;
mod ports;
pub(super) mod replicas;
pub(super) mod store;

use clap::Args;
use control::store::{Depth, Inspection};
use serde::Serialize;

use self::check::{Check, Status, worst};
use self::data::Place;
use self::limits::Fleet;
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
    let mut checks = configuration::checks(loaded);
    let mut fleet = Fleet::AtMost(u64::from(config.link.agents_per_server));
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
        let database = server.as_ref().and_then(|server| server.as_ref().ok());
        let agents = database.map_or_else(|| store::agents(&looked), |server| server.agents);
        fleet = Fleet::Known(agents);
        let file = found.map(|store| (store.path.as_path(), store.bytes));
        checks.extend(data::checks(&place, file));
        match &server {
            Some(server) => checks.extend(store::server_checks(server, depth)),
            None => checks.extend(store::checks(&looked, depth)),
        }
        checks.extend(replicas::checks(config).await);
        checks.extend(found.and_then(|store| user(store, &place)));
        let others = database.filter(|_| !place.is_in_use());
        checks.extend(others.and_then(|server| link::beside_others(config, server)));
        checks.extend(coordination::checks(config).await);
        let known = identity::Known {
            agents,
            is_elsewhere: database.is_some_and(|server| server.is_of_a_deployment),
        };
        let authorities = identity::checks(&place.path, &config.domain, known, since, now);
        checks.extend(authorities);
        checks.extend(clock::checks(found, since.is_some(), now));
        checks.extend(database.map(clock::against_server));
    } else {
        checks.extend(data::checks(&place, None));
        checks.push(coordination::of_agent_server(config).await);
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

/// What kernel and system give.
fn machine(config: &Config, place: &Place, fleet: Fleet) -> Vec<Check> {
    let connections = match config.profile.runs(Server::Api) {
        true => config.api.connections(),
        false => 0,
    };
    let mut needs = limits::Needs {
        fleet,
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
