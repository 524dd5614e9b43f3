//! What the system lets the server have, against what its fleet needs: files, memory, cores.

use std::fmt;

use rustix::process::{Resource, getrlimit};

use super::check::Check;
use super::store::of_agents;
use crate::cli::top::format::{bytes, count};

/// Files of a shard: its socket, its rings, what wakes it; and some to spare.
const FILES_A_SHARD: u64 = 16;
/// The store, the log, the locks, the control plane's own.
const FILES_AT_ALL: u64 = 128;

/// Memory of the whole server for an agent: 14 KiB at work, measured with 100,000 (docs/OPERATIONS.md, Sizing).
const MEMORY_AN_AGENT: u64 = 15 << 10;
/// Memory without any agent, with the store's caches warm.
const MEMORY_AT_ALL: u64 = 160 << 20;

/// A limit of the system; `None`: there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limit(pub(super) Option<u64>);

impl Limit {
    fn allows(self, wanted: u64) -> bool {
        self.0.is_none_or(|limit| limit >= wanted)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(limit) => f.write_str(&bytes(limit)),
            None => f.write_str("unlimited"),
        }
    }
}

/// The locked memory that this process may have.
pub(super) fn locked_memory() -> Limit {
    Limit(getrlimit(Resource::Memlock).current)
}

/// How many agents the server is to carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fleet {
    /// The store lets in so many.
    Known(u64),
    /// There is no store here: `link.agents_per_server` are given to an agent server, while another one has room.
    AtMost(u64),
}

/// What was asked for, and what there is.
pub(super) struct Needs {
    /// Its agents.
    pub(super) fleet: Fleet,
    /// Shards as configured.
    pub(super) shards: u16,
    /// Connections to the API at once, as configured.
    pub(super) connections: u64,
    /// CPUs that may be used, where that is known.
    pub(super) cpus: Option<usize>,
    /// The running server's process.
    pub(super) server: Option<u32>,
}

/// Everything about limits.
pub(super) fn checks(needs: &Needs) -> Vec<Check> {
    let served = needs.server.and_then(files_of);
    let whose = match served {
        Some(_) => "the running server",
        None => "what is started from here",
    };
    let limit = served.unwrap_or_else(|| Limit(getrlimit(Resource::Nofile).current));
    let mut checks = vec![files(limit, whose, (needs.shards, needs.connections))];
    let memory = std::fs::read_to_string("/proc/meminfo").ok();
    let total = memory.and_then(|text| total_memory(&text));
    checks.extend(total.map(|total| memory_for(needs.fleet, total)));
    checks.extend(needs.cpus.map(|cpus| cores(needs.shards, cpus)));
    checks
}

/// How many files a process may have open.
fn files_of(process: u32) -> Option<Limit> {
    let text = std::fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    soft_files(&text)
}

/// From `/proc/PID/limits`: name, soft limit, hard limit, unit.
fn soft_files(limits: &str) -> Option<Limit> {
    let mut lines = limits.lines();
    let rest = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(Limit(None)),
        number => number.parse().ok().map(|number| Limit(Some(number))),
    }
}

fn files(limit: Limit, whose: &str, (shards, connections): (u16, u64)) -> Check {
    let name = "limits.files";
    let least = FILES_AT_ALL + FILES_A_SHARD * u64::from(shards);
    let good = least.saturating_add(connections);
    let may = match limit.0 {
        Some(limit) => count(limit),
        None => "any number of".to_owned(),
    };
    let found = format!("{whose} may have {may} files open");
    if limit.allows(good) {
        return Check::ok(
            name,
            format!("{found}; sessions of agents need none of their own"),
        );
    }
    let advice = "set LimitNOFILE=65536 in the unit, or `ulimit -n 65536` before the start";
    match limit.allows(least) {
        true => Check::warning(
            name,
            format!(
                "{found}, fewer than the {} that {connections} connections to the API need",
                count(good)
            ),
            advice,
        ),
        false => Check::failure(
            name,
            format!(
                "{found}, fewer than the {} that {shards} shards need",
                count(least)
            ),
            advice,
        ),
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn memory_for(fleet: Fleet, total: u64) -> Check {
    let name = "limits.memory";
    let (agents, why, has_store) = match fleet {
        Fleet::Known(agents) => (agents, "", true),
        Fleet::AtMost(agents) => (agents, " (link.agents_per_server)", false),
    };
    let needed = MEMORY_AT_ALL.saturating_add(agents.saturating_mul(MEMORY_AN_AGENT));
    let found = format!(
        "for {}{why} about {}; this machine has {}",
        of_agents(agents),
        bytes(needed),
        bytes(total)
    );
    // The other half is for the page cache, without which the store reads its disk.
    match (needed > total, has_store && needed > total / 2) {
        (true, _) => Check::failure(
            name,
            found,
            "give the machine more memory, or divide the fleet",
        ),
        (false, true) => Check::warning(
            name,
            found,
            "give the machine twice what the server needs: the store reads through the page cache",
        ),
        (false, false) => Check::ok(name, found),
    }
}

fn cores(shards: u16, cpus: usize) -> Check {
    let name = "limits.cores";
    let found = format!("{shards} shards on {cpus} cores");
    match usize::from(shards) > cpus {
        true => Check::warning(
            name,
            format!("{found}: shards take each other's core"),
            "set gateway.shards to auto, or to as many as there are cores",
        ),
        false => Check::ok(name, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn files_are_judged_by_shards_and_by_connections() {
        let status = |limit| files(Limit(limit), "it", (2, 1024)).status;
        assert_eq!(status(None), Status::Ok);
        assert_eq!(status(Some(128 + 32 + 1024)), Status::Ok);
        assert_eq!(status(Some(128 + 32 + 1023)), Status::Warning);
        assert_eq!(status(Some(128 + 32)), Status::Warning);
        assert_eq!(status(Some(128 + 31)), Status::Failure);
    }

    #[test]
    fn the_limit_of_a_running_server_is_read_from_its_process() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max processes             9                    9                    processes\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(soft_files(text), Some(Limit(Some(1024))));
        let unlimited = text.replace("1024 ", "unlimited ");
        assert_eq!(soft_files(&unlimited), Some(Limit(None)));
        assert_eq!(soft_files(""), None);
        assert!(files_of(std::process::id()).is_some());
    }

    #[test]
    fn memory_is_judged_with_room_for_the_page_cache() {
        let gib = 1 << 30;
        let status = |agents, total| memory_for(Fleet::Known(agents), total).status;
        assert_eq!(status(10_000, gib), Status::Ok);
        assert_eq!(status(100_000, 4 * gib), Status::Ok);
        assert_eq!(status(100_000, 2 * gib), Status::Warning);
        assert_eq!(status(100_000, gib), Status::Failure);
        assert_eq!(
            total_memory("MemTotal:       24684084 kB\nMemFree: 1 kB\n"),
            Some(24_684_084 << 10)
        );
        assert_eq!(total_memory("MemFree: 1 kB"), None);
    }

    #[test]
    fn an_agent_server_without_a_store_is_judged_by_what_it_may_be_given() {
        let (mib, fleet) = (1 << 20, Fleet::AtMost(10_000));
        let check = memory_for(fleet, 512 * mib);
        assert_eq!(check.status, Status::Ok, "it has no pages to keep");
        let words = "for 10,000 agents (link.agents_per_server)";
        assert!(check.found.starts_with(words), "{check:?}");
        assert_eq!(memory_for(fleet, 256 * mib).status, Status::Failure);
        let known = memory_for(Fleet::Known(10_000), 512 * mib);
        assert_eq!(known.status, Status::Warning);
    }

    #[test]
    fn more_shards_than_cores_is_a_warning() {
        assert_eq!(cores(2, 2).status, Status::Ok);
        assert_eq!(cores(3, 2).status, Status::Warning);
    }
}
