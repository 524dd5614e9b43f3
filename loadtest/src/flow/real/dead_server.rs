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
/// Outstanding on each host, of [`SLOTS`] and [`MEAN`]: what waits when the server dies is started within 5 s by
/// those that live, whatever else is measured. So what takes longer is the taking over.
const OUTSTANDING: usize = 20;
const SLOTS: u32 = 4;
const MEAN: Duration = Duration::from_secs(1);

/// What followed the death of one of several process servers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeadServer {
    /// Process servers.
    pub servers: usize,
    /// Claims that the others had to ask for.
    pub taken_over: u64,
    /// From the death until the last process that waited at that moment was started, seconds.
    pub resumed_s: f64,
    /// Of those: never ended, or without effect.
    pub lost: u64,
    /// Effects beyond the first.
    pub duplicate_effects: u64,
}

impl Hosts {
    /// Of the same number and capacity, with little that waits.
    fn with_little_outstanding(self) -> Self {
        Self {
            slots: SLOTS.min(self.capacity),
            mean: MEAN,
            outstanding: OUTSTANDING,
            ..self
        }
    }
}

/// About how long [`measure`] takes.
pub(super) fn expected(fleet: Hosts) -> Duration {
    SET_UP + DIES_AFTER + fleet.with_little_outstanding().drained_within()
}

/// Lets one of four process servers die under load, takes the load away at that moment, and sees how long
/// it takes until all that waited was started.
pub(super) async fn measure(options: &Options) -> anyhow::Result<DeadServer> {
    println!("one of {SERVERS} process servers dies …");
    let folder = options.work_dir.join("dead-server");
    let hosts = options.fleet.with_little_outstanding();
    let setting = format!("faults.process_server_dies_after={}s", DIES_AFTER.as_secs());
    let mut bed = Bed::prepare(&Plan {
        server: &options.server,
        folder: &folder,
        servers: SERVERS,
        settings: vec![setting],
        hosts,
        scenario: hosts.scenario(0.05, SERVERS, options.seed),
        agents_apart: 0,
    })
    .await?;
    bed.load();
    let died = last_words(&folder.join(SERVER_LOG)).await?;
    let unknown_before = bed.api.metric("drover_replies_lost_total").await?;
    bed.stop_load().await;
    ensure!(bed.settle().await, "not all processes ended");
    let started = bed.mill.last_start().context("nothing was started")?;
    let unknown = bed.api.metric("drover_replies_lost_total").await?;
    let totals = bed.ledger.totals();
    let found = DeadServer {
        servers: SERVERS,
        taken_over: difference(unknown_before, unknown),
        resumed_s: started.saturating_duration_since(died).as_secs_f64(),
        lost: totals.lost,
        duplicate_effects: totals.duplicate_effects,
    };
    bed.finish().await?;
    Ok(found)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count"
)]
fn difference(before: Option<f64>, after: Option<f64>) -> u64 {
    (after.unwrap_or(0.0) - before.unwrap_or(0.0)).max(0.0) as u64
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
