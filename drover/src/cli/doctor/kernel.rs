//! What the kernel gives an agent server: asked by doing what its start does.

use gateway::{DatapathKind, LaunchError, Machine, Rings};

use super::check::Check;
use super::limits::{self, Limit};
use crate::cli::top::format::bytes;
use crate::config::GatewaySettings;
use crate::fault::chain;

/// The kernel that everything is tested on.
const KERNEL_LEAST: (u32, u32) = (6, 1);
/// Who may use io_uring: 0 all, 1 a group, 2 nobody.
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

/// Everything about the kernel for `shards` shards.
pub(super) fn checks(
    settings: &GatewaySettings,
    shards: u16,
    probed: &Result<Machine, LaunchError>,
) -> Vec<Check> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut checks = vec![version(release.trim())];
    match probed {
        Err(error) => checks.push(Check::failure(
            "kernel.steering",
            chain(error),
            "use Linux 6.1 or later; without IPv6, listen on 0.0.0.0 (gateway.listen)",
        )),
        Ok(machine) => {
            checks.push(steering(shards));
            checks.push(rings(&machine.rings, settings.datapath, shards));
            checks.push(segmentation(machine.send_segments));
            checks.push(buffers(machine));
        }
    }
    checks
}

/// Tries it on a thread of its own: rings belong to the thread that made them.
pub(super) fn probe(settings: &GatewaySettings, shards: u16) -> Result<Machine, LaunchError> {
    let (listen, datapath, park) = (settings.listen, settings.datapath, settings.park);
    let trying = std::thread::spawn(move || gateway::probe(listen, shards, datapath, park));
    let died = |_| Err(LaunchError::Died(protocol::ids::ShardId(0)));
    trying.join().unwrap_or_else(died)
}

fn version(release: &str) -> Check {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    match (number(), number()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_LEAST => {
            Check::ok("kernel.version", format!("Linux {release}"))
        }
        _ => Check::warning(
            "kernel.version",
            format!("Linux {release}: older than 6.1, the oldest that is tested"),
            "use Linux 6.1 or later",
        ),
    }
}

fn steering(shards: u16) -> Check {
    let found = match shards {
        1 => "one shard: there is nothing to steer".to_owned(),
        shards => format!("packets reach their shard of {shards} by BPF on one reuseport group"),
    };
    Check::ok("kernel.steering", found)
}

fn rings(rings: &Rings, wanted: DatapathKind, shards: u16) -> Check {
    let name = "kernel.io_uring";
    match rings {
        Rings::NotAsked => Check::ok(name, "not asked for: gateway.datapath is poll"),
        Rings::Given => Check::ok(name, format!("a ring for each of {shards} shards")),
        Rings::Refused(error) => {
            let switch = std::fs::read_to_string(SWITCH).unwrap_or_default();
            let locked = limits::locked_memory();
            let advice = allow(error.raw_os_error(), switch.trim(), &locked);
            match wanted {
                DatapathKind::Uring => {
                    let found = format!("refused, and gateway.datapath is uring: {error}");
                    Check::failure(name, found, advice)
                }
                DatapathKind::Auto | DatapathKind::Poll => Check::warning(
                    name,
                    format!("refused; plain system calls take its place, somewhat slower: {error}"),
                    format!("{advice}; or set gateway.datapath = \"poll\""),
                ),
            }
        }
        Rings::Failed(error) => Check::failure(
            name,
            format!("the rings of {shards} shards cannot be made: {error}"),
            "raise the limit of open files (LimitNOFILE=65536), or set gateway.shards lower",
        ),
    }
}

/// What lets io_uring in, by what keeps it out.
fn allow(error: Option<i32>, switch: &str, locked: &Limit) -> String {
    const ENOMEM: i32 = 12;
    const NOT_HERE: [i32; 3] = [22, 38, 95]; // EINVAL, ENOSYS, EOPNOTSUPP
    if ["1", "2"].contains(&switch) {
        return "sysctl -w kernel.io_uring_disabled=0".to_owned();
    }
    match error {
        Some(ENOMEM) => format!(
            "raise the limit of locked memory, which is {locked}: LimitMEMLOCK=64M in the unit, `ulimit -l 65536` in a \
             shell; a shard takes up to 256 KiB, and a running server of the same user counts too"
        ),
        Some(code) if NOT_HERE.contains(&code) => {
            "use Linux 6.1 or later, built with io_uring".to_owned()
        }
        _ => "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile or \
              the unit's SystemCallFilter"
            .to_owned(),
    }
}

fn segmentation(segments: usize) -> Check {
    let name = "kernel.segmentation";
    match segments {
        0 | 1 => Check::warning(
            name,
            "the kernel splits no datagrams (UDP_SEGMENT): each is a system call of its own",
            "use Linux 6.1 or later, and a network driver with checksum offload: `ethtool -k DEVICE`",
        ),
        segments => Check::ok(
            name,
            format!("up to {segments} datagrams in one send; merged ones are not asked for"),
        ),
    }
}

fn buffers(machine: &Machine) -> Check {
    let (name, wanted) = ("kernel.socket_buffers", machine.wanted_buffer_bytes);
    let (receive, send) = (machine.receive_buffer_bytes, machine.send_buffer_bytes);
    let shown = |size: usize| bytes(u64::try_from(size).unwrap_or(u64::MAX));
    if receive >= wanted && send >= wanted {
        return Check::ok(name, format!("{} each way for each shard", shown(wanted)));
    }
    Check::warning(
        name,
        format!(
            "a shard's socket holds {} of packets not read yet and {} not sent yet, and asks for {}: a burst, \
             such as a fleet that comes back, loses packets",
            shown(receive),
            shown(send),
            shown(wanted)
        ),
        format!(
            "sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}; in /etc/sysctl.d/ it stays"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::check::Status;
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_number_and_not_by_letter() {
        assert_eq!(version("6.1.0-13-amd64").status, Status::Ok);
        assert_eq!(version("10.0").status, Status::Ok);
        assert_eq!(version("6.0.9").status, Status::Warning);
        assert_eq!(version("5.15.0").status, Status::Warning);
        assert_eq!(version("").status, Status::Warning);
    }

    #[test]
    fn a_refusal_is_a_failure_only_where_rings_were_demanded() {
        let refused = || Rings::Refused(io::Error::from_raw_os_error(1));
        assert_eq!(
            rings(&Rings::Given, DatapathKind::Uring, 2).status,
            Status::Ok
        );
        assert_eq!(
            rings(&Rings::NotAsked, DatapathKind::Poll, 2).status,
            Status::Ok
        );
        assert_eq!(
            rings(&refused(), DatapathKind::Auto, 2).status,
            Status::Warning
        );
        assert_eq!(
            rings(&refused(), DatapathKind::Uring, 2).status,
            Status::Failure
        );
        let failed = Rings::Failed(io::Error::from_raw_os_error(24));
        assert_eq!(
            rings(&failed, DatapathKind::Auto, 2).status,
            Status::Failure
        );
    }

    #[test]
    fn what_keeps_io_uring_out_decides_what_lets_it_in() {
        let locked = Limit(Some(8 << 20));
        let allow = |error, switch| allow(Some(error), switch, &locked);
        assert!(allow(1, "2").contains("io_uring_disabled=0"));
        assert!(allow(12, "0").contains("which is 8.00 MiB"));
        assert!(allow(38, "").contains("Linux 6.1"));
        assert!(allow(1, "0").contains("seccomp"));
    }

    #[test]
    fn small_buffers_are_told_with_the_command_that_mends_them() {
        let machine = |receive_buffer_bytes| Machine {
            rings: Rings::Given,
            send_segments: 64,
            receive_buffer_bytes,
            send_buffer_bytes: 8 << 20,
            wanted_buffer_bytes: 8 << 20,
            cpus: 2,
        };
        assert_eq!(buffers(&machine(8 << 20)).status, Status::Ok);
        let small = buffers(&machine(212_992));
        assert_eq!(small.status, Status::Warning);
        let advice = small.advice.unwrap();
        assert!(advice.contains("net.core.rmem_max=8388608"), "{advice}");
        assert_eq!(segmentation(1).status, Status::Warning);
        assert_eq!(segmentation(64).status, Status::Ok);
    }
}
