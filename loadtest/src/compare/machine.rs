//! Where a comparison runs.

use std::process::Command;

use super::model::Machine;

/// The commit of the working directory, `+dirty` behind it where tracked files differ; `unknown`
/// outside of a repository.
pub(super) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let out = Command::new("git").args(arguments).output().ok()?;
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let Some(mut commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    if git(&["status", "--porcelain", "--untracked-files=no"])
        .is_none_or(|changes| !changes.is_empty())
    {
        commit.push_str("+dirty");
    }
    commit
}

/// What `/proc` says about this machine. What cannot be read stays empty.
pub(super) fn describe() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let first_number = |text: &str| -> u64 {
        let word = text.split_whitespace().next();
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let load = read("/proc/loadavg");
    let limits = read("/proc/self/limits");
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    Machine {
        cpu: after(&read("/proc/cpuinfo"), "model name"),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: first_number(&after(&read("/proc/meminfo"), "MemTotal")) * 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        open_files: files
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0),
        load_before: load
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_files_and_a_kernel() {
        let machine = describe();
        assert!(machine.memory_bytes > 1 << 20 && machine.open_files > 10);
        assert!(!machine.kernel.is_empty() && machine.cpus > 0);
    }
}
