//! What is to go wrong by the configuration, for tests of what follows.

use std::time::Duration;

use control::Mishaps;

use crate::config::{Config, FaultSettings};
use crate::fault::Fault;

/// How long a process server hangs: longer than the gateway waits for it.
const HANGS_FOR: Duration = Duration::from_secs(30);

/// Refuses what one key alone does not show.
pub(super) fn check(config: &Config) -> Result<(), Fault> {
    match first_key(&config.faults) {
        Some(key) if config.process_servers < 2 => Err(Fault::new(format_args!(
            "{key}: there is only one process server, and nobody to take over"
        ))
        .advise("set process_servers to 2 at least")),
        _ => Ok(()),
    }
}

/// Of the keys that are set, the first.
fn first_key(faults: &FaultSettings) -> Option<&'static str> {
    let keys = [
        ("faults.process_server_dies_after", faults.dies_after),
        ("faults.process_servers_die_every", faults.die_every),
        ("faults.process_server_hangs_after", faults.hangs_after),
    ];
    let set = keys.into_iter().find(|(_, when)| when.is_some());
    set.map(|(key, _)| key)
}

/// Lets it go wrong when its time has come. What is begun ends with the program.
pub(super) fn begin(faults: &FaultSettings, mishaps: &Mishaps) {
    if let Some(after) = faults.dies_after {
        let mishaps = mishaps.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            tracing::warn!("a process server dies now, as faults.process_server_dies_after says");
            mishaps.crash_last_for_good();
        });
    }
    if let Some(every) = faults.die_every {
        tokio::spawn(die_every(every, mishaps.clone()));
    }
    if let Some(after) = faults.hangs_after {
        let mishaps = mishaps.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            tracing::warn!("a process server hangs now, as faults.process_server_hangs_after says");
            mishaps.hang_last(HANGS_FOR);
        });
    }
}

#[expect(clippy::infinite_loop, reason = "it ends with its task")]
async fn die_every(every: Duration, mishaps: Mishaps) {
    loop {
        tokio::time::sleep(every).await;
        tracing::warn!("a process server dies now, as faults.process_servers_die_every says");
        mishaps.crash_any();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_process_servers_needs_a_second_one() {
        let second = Some(Duration::from_secs(1));
        let none = FaultSettings::default();
        let each = [
            FaultSettings {
                dies_after: second,
                ..none
            },
            FaultSettings {
                die_every: second,
                ..none
            },
            FaultSettings {
                hangs_after: second,
                ..none
            },
        ];
        for faults in each {
            let mut config = Config {
                faults,
                ..Config::default()
            };
            let key = first_key(&faults).unwrap();
            let fault = check(&config).unwrap_err().to_string();
            assert!(fault.contains(key), "{fault}");
            config.process_servers = 2;
            assert!(check(&config).is_ok());
        }
        assert!(check(&Config::default()).is_ok());
    }
}
