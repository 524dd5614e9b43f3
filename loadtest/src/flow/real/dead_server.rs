//! What a process server leaves that dies (T8).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::bed::{Bed, Plan, SERVER_LOG};
use super::{Hosts, Options, SET_UP};
use crate::clock;

/// Process servers.
const SERVERS: usize = 4;
/// From the server's start to the death of one of them: the fleet is up and at work by then.
const DIES_AFTER: Duration = Duration::from_secs(45);
/// What the server says whenever a process server dies because a setting says so.
const LAST_WORDS: &str = "a process server dies now";
/// What waits is started by those that live within 5 s whatever else is measured, so that what takes longer is
/// the following of the dead one.
const WAITING: Load = Load {
    slots: 4,
    mean: Duration::from_secs(1),
    outstanding: 20,
};
/// All of it runs, and most of it longer than until a dead server is missed: its claims are taken over.
const RUNNING: Load = Load {
    slots: 4,
    mean: Duration::from_secs(30),
    outstanding: 3,
};
/// After a death, until whoever is dead must have been missed, with a reserve.
const MISSED_WITHIN: Duration = Duration::from_secs(20);
/// How often it is asked what was taken over.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What hosts have to do.
#[derive(Clone, Copy)]
struct Load {
    slots: u32,
    mean: Duration,
    outstanding: usize,
}

impl Load {
    fn on(self, fleet: Hosts) -> Hosts {
        Hosts {
            slots: self.slots.min(fleet.capacity),
            mean: self.mean,
            outstanding: self.outstanding,
            ..fleet
        }
    }
}

/// What followed the death of one of several process servers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeadServer {
    /// Process servers.
    pub servers: usize,
    /// From the death until the last process that waited at that moment was started, seconds.
    pub resumed_s: f64,
    /// Claims that the others had to ask for, where operations take long.
    pub taken_over: u64,
    /// From the death until they had asked for the last of these, seconds.
    pub taken_over_s: f64,
    /// Of all: never ended, or without effect.
    pub lost: u64,
    /// Effects beyond the first.
    pub duplicate_effects: u64,
}

/// About how long [`measure`] takes.
pub(super) fn expected(fleet: Hosts) -> Duration {
    let loads = [WAITING, RUNNING].map(|load| load.on(fleet).drained_within());
    (SET_UP + DIES_AFTER) * 2 + MISSED_WITHIN + loads.iter().sum::<Duration>()
}

/// Lets one of four process servers die under load, takes the load away at that moment, and sees how long
/// it takes until all that waited was started; and, with other operations, until all that ran is looked after.
pub(super) async fn measure(options: &Options) -> anyhow::Result<DeadServer> {
    println!("one of {SERVERS} process servers dies …");
    let (bed, died) = one_dies(options, WAITING, "dead-server").await?;
    ensure!(bed.settle().await, "not all processes ended");
    let started = bed.mill.last_start().context("nothing was started")?;
    let waited = bed.ledger.totals();
    bed.finish().await?;
    let (bed, also_died) = one_dies(options, RUNNING, "dead-server-2").await?;
    let (taken_over, last) = taken_over(&bed, also_died).await?;
    ensure!(bed.settle().await, "not all processes ended");
    let ran = bed.ledger.totals();
    bed.finish().await?;
    Ok(DeadServer {
        servers: SERVERS,
        resumed_s: started.saturating_duration_since(died).as_secs_f64(),
        taken_over,
        taken_over_s: last.as_secs_f64(),
        lost: waited.lost + ran.lost,
        duplicate_effects: waited.duplicate_effects + ran.duplicate_effects,
    })
}

/// A server under a load that is taken away when one of its process servers dies, and when that was.
async fn one_dies(options: &Options, load: Load, name: &str) -> anyhow::Result<(Bed, Instant)> {
    let folder = options.work_dir.join(name);
    let hosts = load.on(options.fleet);
    let dies = format!("faults.process_server_dies_after={}s", DIES_AFTER.as_secs());
    let mut bed = Bed::prepare(&Plan {
        server: &options.server,
        site: options.site,
        folder: &folder,
        servers: SERVERS,
        // Limits that are still being learnt would make something wait.
        settings: vec![dies, "gateway.adaptive_limits=false".to_owned()],
        hosts,
        scenario: hosts.scenario(0.05, SERVERS, options.seed),
        agents_apart: 0,
    })
    .await?;
    bed.load();
    let died = last_words(&folder.join(SERVER_LOG)).await?;
    bed.stop_load().await;
    Ok((bed, died))
}

/// How many claims were taken over since a death, and how long after it the last ones were.
async fn taken_over(bed: &Bed, died: Instant) -> anyhow::Result<(u64, Duration)> {
    let count = async || -> anyhow::Result<u64> {
        let count = bed.api.metric("drover_replies_lost_total").await?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        Ok(count.unwrap_or(0.0) as u64)
    };
    let before = count().await?;
    let (mut seen, mut last) = (before, Duration::ZERO);
    let since_then = || clock::now().duration_since(died);
    while since_then() < MISSED_WITHIN {
        tokio::time::sleep(ASK_EVERY).await;
        let now = count().await?;
        if now > seen {
            (seen, last) = (now, since_then());
        }
    }
    Ok((seen - before, last))
}

/// How many process servers have died, as the server's log says.
pub(super) fn deaths_in(log: &Path) -> usize {
    let text = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text).matches(LAST_WORDS).count()
}

/// Waits until the server's log has its last words.
async fn last_words(log: &Path) -> anyhow::Result<Instant> {
    let since = clock::now();
    while deaths_in(log) == 0 {
        ensure!(
            clock::now().duration_since(since) < DIES_AFTER * 2,
            "no process server died; see {}",
            log.display()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(clock::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_counted_over_all_runs_that_the_log_tells_of() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("server.log");
        assert_eq!(deaths_in(&log), 0, "no log yet");
        let line = "WARN drover: a process server dies now, as a setting says\n";
        let text = format!("INFO ready\n{line}{line}INFO ready\n{line}");
        std::fs::write(&log, text).unwrap();
        assert_eq!(deaths_in(&log), 3);
    }
}
