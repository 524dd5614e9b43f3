//! What a comparison measures, in the order in which it is shown.

use super::model::MeasureInfo;
use crate::report::grouped;

/// What stands behind the name of a measure that is a part of Drover's process.
pub(super) const PART: &str = "of Drover the gateway's thread alone";

/// All measures of a fleet that grows to `sessions` and has commands at `sizes`.
pub(crate) fn infos(sessions: usize, sizes: &[usize]) -> Vec<MeasureInfo> {
    let all = grouped(sessions as u64);
    let mut list = List::default();
    list.add("session_rss", "memory of an idle session", "KiB");
    list.add("server_rss", &format!("server with {all} sessions"), "MiB");
    list.add_with_part("handshake_cpu", "server CPU of a handshake", "µs");
    let net = "handshake, without the cost of the sessions held";
    list.add_with_part("handshake_cpu_net", net, "µs");
    for &size in sizes {
        let id = format!("command_cpu_{size}");
        let label = format!("server CPU of a command, {} sessions", grouped(size as u64));
        list.add_with_part(&id, &label, "µs");
        if size == sessions {
            let label = format!("{label}, without the idle share");
            list.add_with_part(&format!("{id}_net"), &label, "µs");
        }
        let label = format!("wake-ups for a command, {} sessions", grouped(size as u64));
        list.add(&format!("command_sleeps_{size}"), &label, "");
    }
    let packets = format!("datagrams or segments of a command, {all} sessions");
    list.add(&format!("command_packets_{sessions}"), &packets, "");
    let idle = format!("CPU of {all} idle sessions, of one core");
    list.add_with_part("idle_cpu", &idle, "%");
    let packets = "packets a second of the idle fleet";
    list.add("idle_packets", packets, "1/s");
    list.add("rtt_p50", "command round-trip, median", "ms");
    list.add("rtt_p99", "command round-trip, 99 %", "ms");
    list.add("rtt_p999", "command round-trip, 99.9 %", "ms");
    list.0
}

/// The id of the gateway's part: `_shard`, before a `_net`.
fn part_id(whole: &str) -> String {
    match whole.strip_suffix("_net") {
        Some(stem) => format!("{stem}_shard_net"),
        None => format!("{whole}_shard"),
    }
}

#[derive(Default)]
struct List(Vec<MeasureInfo>);

impl List {
    fn push(&mut self, id: &str, label: &str, unit: &str, part_of: Option<&str>) {
        self.0.push(MeasureInfo {
            id: id.to_owned(),
            label: label.to_owned(),
            unit: unit.to_owned(),
            part_of: part_of.map(str::to_owned),
        });
    }

    fn add(&mut self, id: &str, label: &str, unit: &str) {
        self.push(id, label, unit, None);
    }

    /// The whole process, and the gateway's thread alone.
    fn add_with_part(&mut self, id: &str, label: &str, unit: &str) {
        self.push(id, label, unit, None);
        let part = format!("{label}; {PART}");
        self.push(&part_id(id), &part, unit, Some(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_has_the_gateways_part_beside_it() {
        let infos = infos(10_000, &[100, 1_000, 10_000]);
        for whole in infos
            .iter()
            .filter(|info| info.id.contains("_cpu") && info.part_of.is_none())
        {
            let part = infos
                .iter()
                .find(|part| part.part_of.as_ref() == Some(&whole.id));
            assert!(
                part.is_some_and(|part| part.unit == whole.unit),
                "{whole:?}"
            );
        }
        let ids: Vec<_> = infos.iter().map(|info| info.id.as_str()).collect();
        assert!(ids.contains(&"command_cpu_10000_shard_net") && ids.contains(&"idle_cpu_shard"));
        assert!(ids.contains(&"handshake_cpu_shard_net"));
    }
}
